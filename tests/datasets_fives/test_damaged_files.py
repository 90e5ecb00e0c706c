"""Damaged, hostile and odd files: each is read by both packages alike, or ends in our own errors, in bounded time."""

import struct
import time
import warnings
import zlib
from io import BytesIO
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import modeling_reg4pru.image_reading as of_the_model
from datasets_fives.images import open_image, read_image
from datasets_fives.masks import binary_mask, resize_mask
from modeling_reg4pru.label_maps import read_label_map, resize_label_map

pytestmark = pytest.mark.usefixtures("bounded_memory")

KINDS = ("PNG", "JPEG", "TIFF", "GIF", "PPM", "BMP", "WEBP")
# Far more than any of these small images takes.
SECONDS = 5.0


def originals() -> list[bytes]:
    """One small image in every format, and in several modes."""
    rows, columns = np.mgrid[:40, :60]
    pixels = np.stack([rows * 6, columns * 4, (rows * columns) % 256], axis=-1).astype(np.uint8)
    found = []
    for kind in KINDS:
        for mode in ("RGB", "L", "P", "CMYK", "I;16"):
            image = Image.fromarray(pixels)
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
            buffer = BytesIO()
            try:
                image.save(buffer, kind)
            except (OSError, ValueError):  # a mode that this format does not have
                continue
            found.append(buffer.getvalue())
    return found


WHOLE = originals()


@st.composite
def damaged(draw) -> bytes:
    """An image, cut off, overwritten (its header, too, where sizes and types are) or with a part repeated."""
    raw = bytearray(draw(st.sampled_from(WHOLE)))
    place = st.one_of(st.integers(0, min(63, len(raw) - 1)), st.integers(0, len(raw) - 1))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(place)
        match draw(st.sampled_from(["cut", "byte", "bytes", "repeat"])):
            case "cut":
                return bytes(raw[:start])
            case "byte":
                raw[start] = draw(st.sampled_from([0, 1, 127, 128, 255]))
            case "bytes":
                part = draw(st.binary(min_size=1, max_size=40))
                raw[start : start + len(part)] = part
            case "repeat":
                raw[start:start] = raw[start : start + draw(st.integers(1, 200))]
    return bytes(raw)


def model_reads(content: bytes) -> np.ndarray:
    return of_the_model.read_image(of_the_model._decode(BytesIO(content), "a file"))


def model_reads_mask(content: bytes) -> np.ndarray:
    return read_label_map(of_the_model._decode(BytesIO(content), "a file"), num_labels=2)


def answer(read, content: bytes) -> np.ndarray | None:
    """What comes out, or `None` where the file is refused in our words; nothing else may happen."""
    try:
        return np.asarray(read(content))
    except ValueError as refused:
        message = str(refused)
    assert " at 0x" not in message, "an address in memory tells nothing of the file"
    return None


def check_file(content: bytes) -> None:
    # Damaged sizes may ask for gigabytes below Pillow's own limit; a user with less memory sets a lower one, too.
    start = time.process_time()
    with warnings.catch_warnings(), patch.object(Image, "MAX_IMAGE_PIXELS", 4_000_000):
        warnings.simplefilter("ignore")  # Pillow's own remarks on the damage
        image, of_model = answer(read_image, content), answer(model_reads, content)
        # Whether so much can be vessel is asked by data sets of vessels only.
        mask = answer(lambda content: binary_mask(open_image(content)), content)
        map_of_model = answer(model_reads_mask, content)
    assert time.process_time() - start < SECONDS
    assert (image is None) == (of_model is None)
    if image is not None:
        np.testing.assert_array_equal(image, of_model)  # both packages see the same image
    assert (mask is None) == (map_of_model is None)
    if mask is not None:
        assert set(np.unique(mask)) <= {0, 1, 255}
        np.testing.assert_array_equal(mask, map_of_model)


def test_whole_images_are_read_alike():
    assert len(WHOLE) > 15
    for content in WHOLE:
        check_file(content)
        assert answer(read_image, content) is not None


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(damaged())
def test_some_damaged_images(content):
    check_file(content)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
def test_many_damaged_images(content):
    check_file(content)


@pytest.mark.parametrize("grey", [1, 2, 31, 32, 33, 127, 128, 222, 223, 254])
@pytest.mark.parametrize("columns", [0, 1, 9, 10, 11])
def test_both_packages_draw_the_same_line_between_masks_and_label_maps(grey, columns):
    """Black and white with 5 % of its pixels grey, a little less or more: as dots, as a line, as an area."""
    pixels = np.zeros((40, 200), np.uint8)
    pixels[:20] = 255
    dots, line, area = pixels.copy(), pixels.copy(), pixels.copy()
    dots[::4, : 4 * columns : 1] = grey
    line[20, : 20 * columns] = grey
    area[5:35, :columns] = grey
    for image in (dots, line, area, area.astype(np.uint16) * 257):
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        check_file(buffer.getvalue())


@pytest.mark.parametrize("highest", [1, 255, 4095, 4096, 65535])
def test_both_packages_draw_the_same_line_in_dark_images_of_16_bits(highest):
    buffer = BytesIO()
    Image.fromarray(np.linspace(0, highest, 600).astype(np.uint16).reshape(20, 30)).save(buffer, "PNG")
    check_file(buffer.getvalue())
    assert (answer(read_image, buffer.getvalue()) is None) == (highest < 4096)


@pytest.mark.parametrize("size", [(20, 30), (13, 21), (40, 60), (200, 300)])
def test_both_packages_scale_masks_alike(size):
    mask = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (40, 60), p=[0.6, 0.3, 0.1])
    longest = max(size)
    scaled = resize_mask(mask, longest)
    np.testing.assert_array_equal(scaled, resize_label_map(mask, *scaled.shape, num_labels=2))


@pytest.mark.parametrize("content", [b"\x89PNG", b"", b"text"], ids=["cut", "empty", "text"])
def test_what_is_said_of_a_damaged_file_is_the_reason_alone(content, tmp_path):
    """Whether Pillow is given its content or its path."""
    path = tmp_path / "cut.png"
    path.write_bytes(content)
    reason = r"cannot be read \(none of the formats PNG, JPEG, .*JPEG2000, or damaged\)"
    for source in (content, path):
        with pytest.raises(ValueError, match=f"^{reason}$"):
            open_image(source)
    with pytest.raises(ValueError, match=rf"^The image 'a file' {reason}\.$"):
        model_reads(content)
    with pytest.raises(ValueError, match=rf"^The image '[^']*cut\.png' {reason}\.$"):
        of_the_model.open_image(path)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_images_that_claim_to_be_huge(side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"cannot be read"):
        read_image(b"\x89PNG\r\n\x1a\n" + header + body)


def test_text_that_unpacks_to_megabytes():
    buffer = BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    whole = buffer.getvalue()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000)))
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(whole[:33] + bomb + whole[33:])
