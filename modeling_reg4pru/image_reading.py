"""Images of any file format, mode, bit depth and orientation as upright RGB of 8 bits; lists of them."""

import base64
import os
from io import BytesIO
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import ImageInput

# What cameras and annotators write. Not more: of the formats that Pillow knows, EPS starts another program.
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "PPM", "BMP", "WEBP", "JPEG2000")
_WHITE_16_BIT = 65535
# 16-bit images with nothing above this hold 8, 10 or 12 bits, which would come out black.
_DARKEST_16_BIT = 4095


def open_image(source: str | os.PathLike, timeout: float | None = None) -> Image.Image:
    """
    Decode an image without converting it; [`~transformers.image_utils.load_image`] clips 16-bit images to white.

    Args:
        source (`str` or `os.PathLike`):
            A path, a URL (http or https), or the image in base64, with or without `data:image/...,`.
        timeout (`float`, *optional*): Seconds to wait for a URL.

    Raises:
        `ValueError`: if there is no image, or one that is damaged, of another format than [`FORMATS`], or of more
            pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    source = os.fspath(source)
    if source.startswith(("http://", "https://")):
        try:
            with urlopen(source, timeout=timeout) as response:
                content = response.read()
        except OSError as error:
            raise ValueError(f"There is no image at {source[:200]!r}: {error}.") from error
        return _decode(BytesIO(content), source)
    if os.path.isfile(source):  # unlike a `Path` it takes names that are too long to be one
        return _decode(source, source)
    try:
        if os.path.exists(source):
            raise ValueError("no file")  # but a folder, a pipe
        return _decode(BytesIO(base64.b64decode(source.rpartition(",")[2], validate=True)), "in base64")
    except ValueError as error:
        raise ValueError(
            f"There is no image at {source[:200]!r} ({error}): give a path, a URL or an image in base64."
        ) from error


def _decode(file: str | BytesIO, name: str) -> Image.Image:
    """An image with its pixels in memory and its file closed."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                advice = "raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
                raise ValueError(f"{image.width}x{image.height} pixels are more than {limit}; {advice}")
            image.load()
            return image
    except UnidentifiedImageError:  # whose message is an address in memory, or repeats the path
        formats = ", ".join(FORMATS)
        raise ValueError(f"The image {name!r} cannot be read (none of the formats {formats}, or damaged).") from None
    # Damaged files make Pillow's decoders stumble in any way: struct.error, KeyError, EOFError, ...
    except Exception as error:
        raise ValueError(f"The image {name!r} cannot be read ({error}).") from error


def turn_upright(image: Image.Image) -> Image.Image:
    """An image, turned as its EXIF orientation says; `ValueError` if it is damaged, as Pillow decodes only now."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # as in `_decode`
        raise ValueError(f"An image cannot be read ({error}).") from error


def read_image(image: Image.Image | np.ndarray | torch.Tensor, channels_last: bool | None = None) -> np.ndarray:
    """
    Turn an image into upright RGB of 8 bits.

    The EXIF orientation is applied, 16-bit grey is divided by 65535, CMYK and palettes are converted, and an alpha
    channel is dropped.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            The image. Arrays are `(height, width)` or have 1, 2 (grey, alpha), 3 or 4 channels, first or last;
            `uint8`, `uint16`, other integers from 0 to 255, or floating point numbers from 0 to 1.
        channels_last (`bool`, *optional*):
            Whether the channels of an array are its last dimension. Unset, they are the one of size 1, 3 or 4; if
            both could be, the last of a NumPy array and the first of a tensor.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, `uint8`.

    Raises:
        `ValueError`: if an image is damaged, an array has another shape, or values do not say how bright white is.
    """
    if isinstance(image, Image.Image):
        image = turn_upright(image)
        if image.mode[0] not in "IF":  # all modes of more than 8 bits
            return np.asarray(image.convert("RGB"))
        pixels = np.asarray(image)
        if image.mode != "F":  # older versions of Pillow open 16 bits as 32
            pixels = _check_range(pixels, 0, _WHITE_16_BIT).astype(np.uint16)
    else:
        pixels = to_channels_last(image, channels_last)
    return _three_channels(_eight_bits(pixels))


def to_channels_last(array: np.ndarray | torch.Tensor, channels_last: bool | None = None) -> np.ndarray:
    """
    An array `(height, width)` as it is, and one with channels as `(height, width, channels)`.

    Raises:
        `ValueError`: if it is neither, or empty.
    """
    pixels = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise ValueError(
            f"An image has shape {pixels.shape}: it must be (height, width), (height, width, channels) or (channels, "
            "height, width), and not empty."
        )
    if pixels.ndim == 2:
        return pixels
    if channels_last is None:
        could_be_first, could_be_last = (pixels.shape[side] in (1, 3, 4) for side in (0, -1))
        channels_last = not could_be_first or (could_be_last and isinstance(array, np.ndarray))
    return pixels if channels_last else np.moveaxis(pixels, 0, -1)


def is_floating(image: Image.Image | np.ndarray | torch.Tensor) -> bool:
    """Whether the pixels of an image are floating-point numbers, from 0 to 1."""
    if isinstance(image, Image.Image):
        return image.mode == "F"
    if isinstance(image, torch.Tensor):
        return image.is_floating_point()
    return np.issubdtype(np.asarray(image).dtype, np.floating)


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if np.issubdtype(pixels.dtype, np.floating):
        return np.rint(_check_range(pixels, 0, 1) * 255).astype(np.uint8)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:  # of either byte order
        if 0 < pixels.max() <= _DARKEST_16_BIT:
            raise ValueError(
                f"An image has 16 bits but no value above {pixels.max()}: scale its values so that white is 65535."
            )
        return np.rint(pixels * (255 / _WHITE_16_BIT)).astype(np.uint8)
    return _check_range(pixels, 0, 255).astype(np.uint8)


def _check_range(pixels: np.ndarray, low: int, high: int) -> np.ndarray:
    if pixels.dtype == bool or not (pixels.min() >= low and pixels.max() <= high):  # not: NaN is refused, too
        raise ValueError(
            f"An image has values of type {pixels.dtype} from {pixels.min()} to {pixels.max()}: they must be 0 to "
            "255 (integers), 0 to 65535 (`uint16`) or 0 to 1 (floating point)."
        )
    return pixels


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[-1]
    if not 1 <= channels <= 4:
        raise ValueError(f"An image has {channels} channels: it must have 1 to 4.")
    return np.repeat(pixels[..., :1], 3, axis=-1) if channels < 3 else pixels[..., :3]


def flat_list(images: ImageInput, array_dims: int = 3) -> list:
    """Images as a list; an array or tensor of more than `array_dims` sides is a batch."""
    if isinstance(images, (list, tuple)):
        return [one for image in images for one in flat_list(image)]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return list(images) if images.ndim > array_dims else [images]
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    raise ValueError(
        f"An image is of type {type(images).__name__}: it must be a PIL image, an array, a tensor, a path or a URL."
    )


def flat_maps(maps: ImageInput, num_images: int, name: str) -> list:
    """One map for each image; raises `ValueError` if they are more or fewer, or one is missing."""
    if isinstance(maps, (list, tuple)) and any(one is None for one in maps):
        raise ValueError(f"One of the {name} is None: give one for each image, or none at all.")
    # Of one image, three sides are a mask with channels; of several, they are several maps.
    flat = flat_list(maps, array_dims=3 if num_images == 1 else 2)
    if len(flat) != num_images:
        raise ValueError(f"Got {num_images} images but {len(flat)} {name}.")
    return flat
