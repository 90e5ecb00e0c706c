"""Damaged and hostile files: each ends in a right answer or in our own error, in bounded time."""

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
from datasets_fives.images import read_image
from datasets_fives.masks import read_mask
from modeling_reg4pru.label_maps import read_label_map

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
    except ValueError:
        return None


def check_file(content: bytes) -> None:
    # Damaged sizes may ask for gigabytes below Pillow's own limit; a user with less memory sets a lower one, too.
    start = time.process_time()
    with warnings.catch_warnings(), patch.object(Image, "MAX_IMAGE_PIXELS", 4_000_000):
        warnings.simplefilter("ignore")  # Pillow's own remarks on the damage
        image, of_model = answer(read_image, content), answer(model_reads, content)
        mask, map_of_model = answer(read_mask, content), answer(model_reads_mask, content)
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
