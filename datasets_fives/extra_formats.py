"""DICOM and HEIC, the formats of hospitals and of telephones, where pydicom and pillow-heif are installed."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def read_extra_format(source: str | Path | bytes, kind: str) -> Image.Image:
    """
    Decode a file of one of the two formats; of several frames the first.

    Args:
        source (`str`, `Path` or `bytes`): The file, or its content.
        kind (`str`): `"DICOM"` or `"HEIC"`, see [`~datasets_fives.images.extra_format`].

    Returns:
        `PIL.Image.Image`: Upright; grey or RGB of 8 bits, or 16-bit grey whose white is 65535.

    Raises:
        ValueError: If the package that reads it is not installed, or it has too many pixels or other values than it
            says.
    """
    opened = BytesIO(source) if isinstance(source, bytes) else source
    try:
        return _read_dicom(opened) if kind == "DICOM" else _read_heic(opened)
    except ImportError as error:
        raise ValueError(f'{kind} needs {error.name}: pip install "reg4pru[formats]"') from error


def _read_heic(source: str | Path | BytesIO) -> Image.Image:
    import pillow_heif

    opened = pillow_heif.open_heif(source)
    _check_size(*opened.size)
    return opened.to_pillow()


def _read_dicom(source: str | Path | BytesIO) -> Image.Image:
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, pixel_array

    data = dcmread(source)
    _check_size(data.Columns, data.Rows)
    pixels = pixel_array(data, index=0)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)
        return Image.fromarray((pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels)
    if data.SamplesPerPixel > 1:
        return Image.fromarray(pixels)
    white = (1 << data.BitsStored) - 1
    if (lowest := pixels.min(initial=0)) < 0:
        raise ValueError(f"values from {lowest}, allowed are 0 to {white}")
    if data.PhotometricInterpretation == "MONOCHROME1":  # whose 0 is white
        pixels = white - pixels
    return Image.fromarray(
        pixels.astype(np.uint8) if white == 255 else np.rint(pixels * (65535 / white)).astype(np.uint16)
    )


def _check_size(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(f"{width}x{height} pixels are more than {limit}")
