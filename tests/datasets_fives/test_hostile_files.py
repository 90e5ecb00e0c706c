"""Damaged and hostile files: each ends in a right answer or in our own error, in bounded time."""

import struct
import time
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from datasets_fives.reading import read_mask, read_photograph

KINDS = ("PNG", "JPEG", "TIFF", "GIF", "PPM", "BMP", "WEBP")
# Far more than any of these small pictures takes.
SECONDS = 5.0


def originals() -> list[bytes]:
    """One small picture in every format, and in several modes."""
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


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, overwrite, swap or repeat a part."""
    raw = bytearray(content)
    match rng.integers(5):
        case 0:
            return bytes(raw[: rng.integers(len(raw))])
        case 1:
            for place in rng.integers(len(raw), size=rng.integers(1, 20)):
                raw[place] = rng.integers(256)
        case 2:  # the header, where sizes and types are
            for place in rng.integers(min(64, len(raw)), size=rng.integers(1, 4)):
                raw[place] = rng.choice([0, 1, 127, 128, 255])
        case 3:
            start, length = rng.integers(len(raw)), rng.integers(1, 200)
            raw[start : start + length] = rng.bytes(length)
        case 4:
            start, length = rng.integers(len(raw)), rng.integers(1, 200)
            raw[start:start] = raw[start : start + length]
    return bytes(raw)


def read_both(content: bytes) -> int:
    """Read as photograph and as mask; how many of the two gave an answer."""
    answers = 0
    start = time.process_time()
    for read in (read_photograph, read_mask):
        try:
            found = np.asarray(read(content))
        except ValueError:
            continue
        answers += 1
        assert found.dtype == np.uint8
        if read is read_mask:
            assert found.ndim == 2
            assert set(np.unique(found)) <= {0, 1, 255}
        else:
            assert found.ndim == 3
            assert found.shape[2] == 3
    assert time.process_time() - start < SECONDS
    return answers


@pytest.mark.parametrize("count", [200, pytest.param(4000, marks=pytest.mark.slow)])
def test_damaged_pictures(count, monkeypatch):
    # Damaged sizes may ask for gigabytes below Pillow's own limit; a user with less memory sets a lower one, too.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000_000)
    rng = np.random.default_rng(0)
    whole = originals()
    assert len(whole) > 15
    assert all(read_both(content) for content in whole)
    answers = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own remarks on the damage
        for index in range(count):
            answers += read_both(damage(whole[index % len(whole)], rng))
    assert 0 < answers < 2 * count


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_pictures_that_claim_to_be_huge(side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"cannot be read"):
        read_photograph(b"\x89PNG\r\n\x1a\n" + header + body)


def test_text_that_unpacks_to_megabytes():
    buffer = BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    whole = buffer.getvalue()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000)))
    with pytest.raises(ValueError, match="cannot be read"):
        read_photograph(whole[:33] + bomb + whole[33:])
