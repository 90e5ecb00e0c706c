"""Masks and label maps of any kind (grey, RGB, palette; {0, 255}, {0, 1}, antialiased) as a class per pixel."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter

from .image_reading import open_image, to_channels_last, turn_upright

# Label of pixels that do not count: padding, or marked so by the annotator.
IGNORE_INDEX = 255
# Of a drawn mask, black is at most this, and white at least 255 less this: edges are antialiased, or compressed.
_BLACK = 32
# Share of its pixels that may be grey, and of these that may lie in an even patch of 3 x 3: edges have few or none
# there, areas of a class of their own have many.
_MAX_GREY = 0.05
# How much grey, as a share of what is white, may be no edge of anything white, and so is lost; less if it has very few
# values: it is then a class of its own, such as arteries of 100 beside veins of 255.
_MAX_LOST, _MAX_LOST_OF_FEW_VALUES = 0.5, 0.1


def read_label_map(
    image: Image.Image | np.ndarray | torch.Tensor, num_labels: int | None = None, do_reduce_labels: bool = False
) -> np.ndarray:
    """
    Turn a mask or label map into a class per pixel.

    Colour channels must agree. A palette of greys is looked up, one of colours is not: there the indices are the
    classes. With two classes a mask whose foreground is white, with antialiased edges or not, becomes {0, 1}.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            The mask. The EXIF orientation is applied. What is transparent must be black; with two classes, a mask
            of one colour on a transparent background is read by its opacity.
        num_labels (`int`, *optional*):
            Number of classes. Unset, any label map is taken as it is.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether 0 stands for pixels to be ignored and the classes begin with 1.

    Returns:
        `np.ndarray` of shape `(height, width)`, `int32`: classes and [`IGNORE_INDEX`].

    Raises:
        `ValueError`: if the values are not those of such a mask, or do not say what they mean.
    """
    values = _brightness_or_class(image, by_opacity=num_labels == 2 and not do_reduce_labels)
    if do_reduce_labels:
        values = np.where((values == 0) | (values == IGNORE_INDEX), IGNORE_INDEX, values - 1)
    elif num_labels == 2:
        values = _binary(values)
    elif num_labels is None and set(np.unique(values)) == {0, IGNORE_INDEX}:
        raise ValueError(
            "A mask has the values 0 and 255 only, and 255 is also the label of pixels to be ignored: say how many "
            "classes there are, as in `from_pretrained(..., num_labels=2)` for a mask with white foreground."
        )
    if num_labels is not None:
        wrong = [int(value) for value in np.unique(values) if not 0 <= value < num_labels and value != IGNORE_INDEX]
        if wrong:
            raise ValueError(
                f"A label map has the values {_some(wrong)}, but there are {num_labels} classes (`num_labels`): "
                f"labels must be 0 to {num_labels - 1}, or {IGNORE_INDEX} where pixels are to be ignored."
            )
    return values


def resize_label_map(labels: np.ndarray, height: int, width: int, num_labels: int | None = None) -> np.ndarray:
    """
    Resize a label map: area average with a threshold at one half for two classes, else the nearest label.

    Args:
        labels (`np.ndarray` of shape `(height, width)`): Classes and [`IGNORE_INDEX`].
        height (`int`): Wanted height.
        width (`int`): Wanted width.
        num_labels (`int`, *optional*): Number of classes.

    Returns:
        `np.ndarray` of shape `(height, width)`, `int32`.
    """
    if labels.shape == (height, width):
        return labels
    if num_labels != 2:
        return np.asarray(Image.fromarray(labels.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST))
    foreground, ignored = (
        np.asarray(
            Image.fromarray((labels == value).astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        )
        for value in (1, IGNORE_INDEX)
    )
    resized = (foreground > 127).astype(np.int32)
    resized[ignored > 127] = IGNORE_INDEX
    return resized


def fit_label_map(
    source,
    image_size: Sequence[int],
    frame_size: Sequence[int],
    num_labels: int | None = None,
    do_reduce_labels: bool = False,
) -> np.ndarray:
    """
    The label map of an image at the size to which the image was resized.

    Args:
        source (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str` or `os.PathLike`): See [`read_label_map`].
        image_size, frame_size (`tuple[int, int]`): Height and width of the image, and to which it was resized.
        num_labels, do_reduce_labels: As for [`read_label_map`].

    Returns:
        `np.ndarray` of shape `frame_size`, `int32`.

    Raises:
        `ValueError`: if it cannot be read, or has another size than the image.
    """
    opened = open_image(source) if isinstance(source, (str, os.PathLike)) else source
    labels = read_label_map(opened, num_labels, do_reduce_labels)
    _check_size(labels, image_size, "label map")
    return resize_label_map(labels, *frame_size, num_labels)


def fit_pixel_mask(source, image_size: Sequence[int], frame_size: Sequence[int]) -> np.ndarray:
    """
    Where an image shows something, at the size to which it was resized: where most of what a pixel covers is shown.

    Args:
        source (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str` or `os.PathLike`): 0 where the image shows
            nothing; images of more values than 0 and 1 where they are dark, as what was compressed is not quite black.
        image_size, frame_size (`tuple[int, int]`): Height and width of the image, and to which it was resized.

    Returns:
        `np.ndarray` of shape `frame_size`, `bool`.

    Raises:
        `ValueError`: if it cannot be read, or has another size than the image.
    """
    opened = open_image(source) if isinstance(source, (str, os.PathLike)) else source
    if isinstance(opened, Image.Image):
        upright = turn_upright(opened)
        values = np.asarray(upright if upright.mode == "P" else upright.convert("L"))
        shown = values > (127 if values.max() > 1 and upright.mode != "P" else 0)
    else:
        values = to_channels_last(opened)
        shown = (values if values.ndim == 2 else values.any(axis=2)) != 0
    _check_size(shown, image_size, "pixel mask")
    return resize_label_map(shown.astype(np.int32), *frame_size, 2) == 1


def _check_size(values: np.ndarray, image_size: Sequence[int], name: str) -> None:
    if values.shape == tuple(image_size):
        return
    turned = " It seems not to be turned as the EXIF orientation of the image says." * (
        values.shape == tuple(image_size)[::-1]
    )
    raise ValueError(
        f"An image has {image_size[0]}x{image_size[1]} pixels (height, width), but its {name} "
        f"{values.shape[0]}x{values.shape[1]}: they must be of the same size.{turned}"
    )


def _brightness_or_class(image: Image.Image | np.ndarray | torch.Tensor, by_opacity: bool) -> np.ndarray:
    """One channel of integers, `int32`."""
    if isinstance(image, Image.Image):
        image = turn_upright(image)
        indices = np.asarray(image) if image.mode == "P" else None
        if image.has_transparency_data and image.mode in ("1", "L", "P", "PA", "RGB"):
            image = image.convert("RGBA")
        # Where white is not the highest value of each channel.
        elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
            image = image.convert("RGB")
        elif image.mode == "1":
            image = image.convert("L")
        values = np.asarray(image)
        if indices is not None and not _is_layer(values) and not _channels_agree(values[..., :3]):
            values = indices
    else:
        values = to_channels_last(image)
    if values.ndim == 3:
        channels = values.shape[-1]
        colours = values[..., : 1 if channels < 3 else 3]
        opacity = values[..., -1] if channels in (2, 4) else np.array(255)
        if _is_layer(values) and by_opacity:
            colours = np.where((opacity == 1) & (opacity.max() > 1), 0, opacity)[..., None]  # 1 of 255 is no class
        elif channels > 4 or not _channels_agree(colours):
            raise ValueError(
                f"A mask has {channels} channels that disagree: it must be grey, or an image of a palette or an array "
                "whose values are the classes."
            )
        elif opacity.min() < opacity.max() and (_is_layer(values) or np.any((colours[..., 0] > 0) & (opacity < 255))):
            raise ValueError("A mask has transparent parts that are not black: save it without an alpha channel.")
        values = colours[..., 0]
    whole = values.astype(np.int32)
    if not np.array_equal(whole, values):
        raise ValueError(
            f"A mask has values of type {values.dtype} that are no whole numbers, such as {values.max()}."
        )
    return whole


def _channels_agree(colours: np.ndarray) -> bool:
    first = colours[..., :1].astype(np.int32)
    return bool(np.abs(colours.astype(np.int32) - first).max() <= 2)  # JPEG rounds


def _is_layer(values: np.ndarray) -> bool:
    """Whether all is of one colour, and what was drawn is told by its opacity."""
    with_opacity = values.ndim == 3 and values.shape[-1] in (2, 4) and values[..., -1].min() < 255
    return bool(with_opacity and np.all(values[..., :-1] == values[0, 0, :-1]))


def _binary(values: np.ndarray) -> np.ndarray:
    """Foreground as 1, where it is that already or white; [`IGNORE_INDEX`] stays in label maps."""
    seen = [int(value) for value in np.unique(values)]
    labels = [value for value in seen if value != IGNORE_INDEX]
    if max(labels, default=0) <= 1 and (1 in labels or IGNORE_INDEX not in seen):
        return values  # {0, 1}, or {0, 1, 255}, where 255 is to be ignored
    if seen[-1] > 255:  # white is 65535; small values beside it would be labels
        if seen[0] < 0 or seen[-1] > 65535 or any(0 < value < 256 for value in seen):
            raise ValueError(f"A mask has the values {_some(seen)}: it must be black and white, or a label map.")
        values = np.rint(values / 257).astype(np.int32)
        seen = [int(value) for value in np.unique(values)]
        labels = [value for value in seen if value != IGNORE_INDEX]
    if seen[0] < 0 or seen[-1] < 255 - _BLACK or 0 < max(labels, default=0) <= _BLACK:
        raise ValueError(
            f"A mask has the values {_some(seen)}: for two classes it must be a label map of 0 and 1 (255 where "
            "pixels are to be ignored), or have white foreground on black. Map other labels, such as those "
            "of arteries and veins, to 0 and 1 first."
        )
    grey = (values > _BLACK) & (values < 255 - _BLACK)
    if max(labels, default=0) > 0:
        image = Image.fromarray(values.astype(np.uint8))
        highest = np.asarray(image.filter(ImageFilter.MaxFilter(3)))
        lowest = np.asarray(image.filter(ImageFilter.MinFilter(3)))
        # Compression spreads what is nearly black over many values; where there are few, none is noise.
        lost = values[(values > (0 if len(seen) <= 8 else _BLACK)) & (highest <= 127)]
        of_few_values = np.sort(np.bincount(lost, minlength=4))[-4:].sum() > 0.8 * lost.size
        max_lost = (_MAX_LOST_OF_FEW_VALUES if of_few_values else _MAX_LOST) * np.count_nonzero(values > 127)
        is_class = grey.any() and (np.mean(grey) > _MAX_GREY or np.mean((highest == lowest)[grey]) > _MAX_GREY)
        if is_class or lost.size > max_lost:
            raise ValueError(
                f"A mask has areas of grey, or grey lines, between black and white ({np.mean(grey):.0%} of its "
                "pixels): map its labels, such as those of arteries and veins, to 0 and 1 first."
            )
    return (values > 127).astype(np.int32)


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
