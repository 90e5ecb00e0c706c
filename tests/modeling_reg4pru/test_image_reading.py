"""Images as they are found, and what must not be guessed."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_reg4pru.image_reading import open_image, read_image

ORIENTATION = 0x0112


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.fixture
def grey() -> np.ndarray:
    return np.linspace(0, 65535, 54).reshape(6, 9).astype(np.uint16)


def test_eight_bits_stay_as_they_are(pixels):
    image = Image.fromarray(pixels)
    for same in (image, pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels), pixels.astype(np.int64)):
        np.testing.assert_array_equal(read_image(same), pixels)
    np.testing.assert_array_equal(read_image(pixels / 255), pixels)
    np.testing.assert_array_equal(read_image(torch.from_numpy(pixels).float() / 255), pixels)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    np.testing.assert_array_equal(read_image(image), np.asarray(image.convert("RGB")))


def test_channels_are_found_in_images_of_few_rows(pixels):
    few = pixels[:3]
    np.testing.assert_array_equal(read_image(few), few)
    np.testing.assert_array_equal(read_image(torch.from_numpy(few.transpose(2, 0, 1).copy())), few)
    np.testing.assert_array_equal(read_image(few.transpose(2, 0, 1), channels_last=False), few)


def test_transparent_pixels_keep_their_colour(pixels):
    image = Image.fromarray(pixels)
    image.putalpha(Image.fromarray(pixels[..., 0]))
    np.testing.assert_array_equal(read_image(image), pixels)
    np.testing.assert_array_equal(read_image(np.asarray(image)), pixels)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled(grey, suffix, tmp_path):
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(grey).save(path)
    with Image.open(path) as image:
        found = read_image(image)
    wanted = np.rint(grey / 65535 * 255)
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], wanted)
    np.testing.assert_array_equal(read_image(grey), found)
    np.testing.assert_array_equal(read_image(grey.astype(">u2")), found)
    np.testing.assert_array_equal(read_image(Image.fromarray(grey.astype(np.int32))), found)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(pixels, orientation, tmp_path):
    """A viewer shows the file as `upright`, whichever way the camera stored it."""
    upright = Image.fromarray(pixels)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(open_image(str(tmp_path / "a.png"))), pixels)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4), 1.5), "float64 from 1.5 to 1.5"),
        (np.full((4, 4), np.nan), "from nan"),
        (np.full((4, 4), -1), "from -1"),
        (np.full((4, 4), 300), "300"),
        (np.ones((4, 4), bool), "type bool"),
        (np.zeros((6, 4, 5), np.uint8), "5 channels"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"shape \(2, 3, 4, 4\)"),
    ],
)
def test_ambiguous_arrays_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        read_image(array)
    with pytest.raises(ValueError, match="from -5 to -5"):
        read_image(Image.fromarray(np.full((2, 2), -5, np.int32)))


def test_images_are_opened_from_path_url_and_base64(pixels, tmp_path):
    path = tmp_path / "an image.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        text = base64.b64encode(data).decode()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        for source in (str(path), url, text, f"data:image/png;base64,{text}"):
            np.testing.assert_array_equal(read_image(open_image(source, timeout=10)), pixels)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    for source in ("no such file.png", str(tmp_path), "abcd", "", url):
        with pytest.raises(ValueError, match="no image at"):
            open_image(source, timeout=10)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_and_damaged_files_are_refused(pixels, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).resize((900, 600)).save(path)
    whole = path.read_bytes()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900 * 600 - 1)
    with pytest.raises(ValueError, match=r"a\.png' cannot be read \(900x600 pixels are more than 539999"):
        open_image(path)
    monkeypatch.undo()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png' cannot be read \("):
        open_image(path)
    with pytest.raises(ValueError, match=r"An image cannot be read"):  # opened by somebody else
        read_image(Image.open(path))
    with pytest.raises(ValueError, match=r"no image at '.*' \(The image 'in base64' cannot be read"):
        open_image(base64.b64encode(whole[:100]).decode())
    Image.fromarray(pixels).save(path, "ICO")
    with pytest.raises(ValueError, match=r"a\.png' cannot be read"):
        open_image(path)


def test_dark_sixteen_bits_are_refused(grey):
    with pytest.raises(ValueError, match=r"16 bits but no value above 4095"):
        read_image(grey // 16)
