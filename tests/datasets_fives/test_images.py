"""Every mode of image is read upright, and scaled like its mask; what is not an image ends in our own error."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_fives.images import (
    FORMATS,
    SUFFIXES,
    as_rgb,
    has_image_name,
    image_stem,
    list_image_files,
    open_image,
    read_image,
    resize_image,
    scaled_size,
)
from datasets_fives.masks import read_mask, resize_mask

ORIENTATION = 0x0112


def draw(height: int = 24, width: int = 36, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that JPEG changes little."""
    rows, columns = np.mgrid[:height, :width]
    red = 255 * columns / width
    return np.stack([red, 255 * rows / height, 128 + 60 * np.sin(columns / 6 + seed)], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **kwargs) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "BMP", "WEBP"])
def test_colour_comes_out_as_it_went_in(kind):
    read = read_image(encoded(Image.fromarray(draw()), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read), draw())


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_other_modes_become_what_they_show(mode):
    grey = Image.fromarray(draw()[..., 0])
    shown = grey.convert("1") if mode == "1" else grey
    read = read_image(encoded(grey.convert(mode), "TIFF" if mode == "CMYK" else "PNG"))
    np.testing.assert_array_equal(np.asarray(read), np.asarray(shown.convert("RGB")))


def test_a_gif_is_read_through_its_palette():
    read = np.asarray(read_image(encoded(Image.fromarray(draw()).quantize(256), "GIF")))
    assert np.abs(read.astype(int) - draw()).mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    grey = draw()[..., 0]
    read = read_image(encoded(Image.fromarray(grey.astype(np.uint16) * 257), kind))
    np.testing.assert_array_equal(np.asarray(read), np.repeat(grey[..., None], 3, axis=-1))
    wide = Image.fromarray(grey.astype(np.int32) * 257)  # how older versions of Pillow open 16 bits
    np.testing.assert_array_equal(np.asarray(as_rgb(wide))[..., 0], grey)
    floating = Image.fromarray(grey.astype(np.float32) / 255)
    np.testing.assert_array_equal(np.asarray(as_rgb(floating))[..., 0], grey)


def test_values_without_a_known_white_are_refused():
    grey = draw()[..., 0]
    with pytest.raises(ValueError, match=r"16 bits but no value above 1976.*white is 65535"):
        as_rgb(Image.fromarray(grey.astype(np.uint16) * 8))  # 11 bits
    for pixels in (grey.astype(np.float32), np.full((4, 4), np.nan, np.float32), grey.astype(np.int32) - 300):
        with pytest.raises(ValueError, match=r"image has values from .*, allowed in mode [IF]: 0 to (1|65535)"):
            as_rgb(Image.fromarray(pixels))
    assert not np.asarray(as_rgb(Image.fromarray(np.zeros((4, 4), np.uint16)))).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_are_turned_alike(orientation):
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    mask = np.zeros((24, 36), np.uint8)
    mask[2:5, 3:30] = mask[2:20, 3:6] = 255  # no symmetry
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for shown, read in ((draw(), read_image), (mask, read_mask)):
        upright = Image.fromarray(shown)
        stored = upright if back is None else upright.transpose(Image.Transpose(back))
        found = np.asarray(read(encoded(stored, "PNG", exif=exif)))
        np.testing.assert_array_equal(found, shown // 255 if shown is mask else shown)


def test_a_file_is_what_it_holds_not_what_it_is_called(tmp_path):
    for name in ("photo.gif", "with space, 'quotes' and \"more\".jpg", "Auge_眼底.tif", "no_ending"):
        (tmp_path / name).write_bytes(encoded(Image.fromarray(draw())))
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name)), draw())


def test_what_is_not_an_image_is_refused(tmp_path, monkeypatch):
    whole = encoded(Image.fromarray(draw()))
    for content in (b"", b"text", whole[: len(whole) // 2], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_image(content)
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "link.png").symlink_to(tmp_path / "missing.png")
    for path in (tmp_path / "missing.png", tmp_path / "pipe.png", tmp_path / "link.png", tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match=r"cannot be read \(no such file"):
            read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 36 - 1)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="36x24 pixels are more than 863"),
    ):
        read_image(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"cannot be read.*decompression bomb"):
        read_image(whole)


def test_the_first_page_counts():
    pages = [Image.fromarray(draw(seed=seed)) for seed in range(2)]
    content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(np.asarray(open_image(content)), draw())


def test_scaling_keeps_the_aspect():
    assert scaled_size(3504, 2336, 504) == (504, 336)
    assert scaled_size(10, 2000, 100) == (1, 100)
    image = Image.fromarray(draw(60, 90))
    assert resize_image(image, 45).size == (45, 30)
    assert resize_image(image, 180).size == (180, 120)
    assert resize_image(image, 90) is image
    np.testing.assert_array_equal(np.asarray(resize_image(image, 45)), np.asarray(image.resize((45, 30), 2)))
    mask = np.zeros((60, 90), np.uint8)
    mask[10:20] = 1
    mask[30:40] = 255
    small = resize_mask(mask, 45)
    assert small.shape == (30, 45)
    assert [small[row, 0] for row in (4, 5, 9, 10, 14, 15, 19, 20)] == [0, 1, 1, 0, 0, 255, 255, 0]


def test_every_entry_is_an_image_or_told(tmp_path):
    for name in ("b.JFIF", "a.png", "scan.dcm", "phone.heic", "notes.txt", "results.v2", "._a.png", ".hidden.png",
                 "Thumbs.db", "desktop.ini"):  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "left.png").symlink_to(tmp_path / "never pulled")
    for folder in ("more", "__MACOSX", "looks like.png"):
        (tmp_path / folder).mkdir()
    images, others = list_image_files(tmp_path)
    assert [path.name for path in images] == ["a.png", "b.JFIF", "left.png", "phone.heic", "scan.dcm"]
    assert others == ["looks like.png/", "more/", "notes.txt", "results.v2"]
    assert list_image_files(tmp_path, "*.png")[1] == ["looks like.png/"]
    assert not has_image_name(Path("x/._a.png"))
    assert "EPS" not in FORMATS


@pytest.mark.parametrize(
    ("name", "stem"),
    [("1.2.840.100", "1.2.840.100"), ("1.2.840.100.dcm", "1.2.840.100"), ("a/OD.JPG", "a/OD"), ("scan.v2", "scan.v2")],
)
def test_only_the_suffix_of_an_image_is_no_part_of_its_name(name, stem):
    assert image_stem(name) == stem


def test_the_formats_of_cameras_telephones_and_hospitals_are_images():
    assert set(SUFFIXES) >= {".jfif", ".dcm", ".heic"}
