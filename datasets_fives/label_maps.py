"""Label maps of K classes: what their values or colours mean, and reading one as class indices."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from .features import list_some
from .masks import IGNORED

# Class indices and the ignored value share 8 bits.
MOST_CLASSES = IGNORED
_NO_CLASS = 256
_HIGHEST_VALUE = 65535
# A label map with more values that no class has is none.
_MOST_VALUES = 64

Color = tuple[int, int, int]


class LabelFormat(NamedTuple):
    """
    How the label maps of a data set say what is where.

    Args:
        names (`tuple[str, ...]`): Names of the classes, by index.
        values (`tuple[int, ...]` or `tuple[tuple[int, int, int], ...]`): Value, or colour, that stands for each.
        ignored (`tuple[int, ...]` or `tuple[tuple[int, int, int], ...]`): Those that stand for pixels that do not
            count.
        reduce_labels (`bool`, *optional*, defaults to `False`): Whether the maps count the classes from 1, and 0 is
            ignored, as under transformers' `do_reduce_labels`; `values` are those after one is subtracted.
    """

    names: tuple[str, ...]
    values: tuple[int, ...] | tuple[Color, ...]
    ignored: tuple[int, ...] | tuple[Color, ...] = (IGNORED,)
    reduce_labels: bool = False

    @property
    def has_colors(self) -> bool:
        """Whether colours stand for the classes."""
        return isinstance(self.values[0], tuple)

    @property
    def is_plain_binary(self) -> bool:
        """Whether these are masks of 0 and 1, or of black and white, see [`~datasets_fives.masks.interpret_mask`]."""
        return self.values == (0, 1) and self.ignored == (IGNORED,) and not self.reduce_labels


class ValuesWithoutClass(ValueError):
    """
    Raised for a label map with values that are of no class, and not the ignored one.

    Args:
        counts (`dict[str, int]`): Number of pixels of each such value.
    """

    def __init__(self, counts: dict[str, int]):
        super().__init__("values without a class: " + ", ".join(f"{v} ({n} pixels)" for v, n in counts.items()))
        self.counts = counts


def list_values(without_class: Mapping[str, ValuesWithoutClass]) -> list[str]:
    """What is wrong with some label maps, value by value: of how many pixels and maps it is."""
    pixels, maps = Counter(), {}
    for name, error in without_class.items():
        pixels.update(error.counts)
        for value in error.counts:
            maps.setdefault(value, []).append(name)
    return [
        f"value {value} has no class, and is not ignored: {count} pixels in {len(maps[value])} label maps "
        f"({list_some(maps[value])})"
        for value, count in pixels.most_common()
    ]


def read_label_format(
    classes: Sequence[str] | Mapping,
    ignore_value: int | Sequence[int] | None = None,
    reduce_labels: bool = False,
) -> LabelFormat:
    """
    Check what is known of the label maps of a data set.

    Args:
        classes (`Sequence[str]` or `Mapping`): Names of the classes, whose places are their values; or names by
            value, `{0: "sky", 1: "road"}`; values by name, `{"sky": 0}`; or colours by name,
            `{"road": [128, 64, 128]}`. The classes of a mapping of values are in the order of these.
        ignore_value (`int` or `Sequence[int]`, *optional*): Value of pixels that do not count, or several; where
            colours stand for the classes, their colour, or several in a row, and one number for a grey. By default
            255, unless that is of a class.
        reduce_labels (`bool`, *optional*, defaults to `False`): See [`LabelFormat`].

    Raises:
        ValueError: If these are no such names, values and colours, or contradict each other.
    """
    if isinstance(classes, Mapping):
        names, values = _read_mapping(classes)
    else:
        names, values = list(classes), list(range(len(classes)))
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"classes must be names, got {names!r}.")
    for kind, found in (("name", names), ("value or colour", values)):
        if repeated := sorted({str(one) for one in found if found.count(one) > 1}):
            raise ValueError(f"Each class has a {kind} of its own, but these repeat: {', '.join(repeated)}.")
    if not 2 <= len(names) <= MOST_CLASSES:
        raise ValueError(
            f"There must be 2 to {MOST_CLASSES} classes, of which a background is one, got {len(names)}: "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."
        )
    has_colors = isinstance(values[0], tuple)
    if has_colors and reduce_labels:
        raise ValueError("reduce_labels subtracts one from values, but colours stand for these classes.")
    ignored = _read_ignored(IGNORED if ignore_value is None else ignore_value, has_colors)
    # What is ignored are values as they are in the files.
    in_files = [value + 1 for value in values] if reduce_labels else values
    both = [value for value in ignored if value in in_files]
    if both and ignore_value is not None:
        raise ValueError(f"{both[0]} is ignored, but also stands for {names[in_files.index(both[0])]!r}.")
    ignored = tuple(value for value in ignored if value not in both)
    return LabelFormat(tuple(names), tuple(values), ignored, reduce_labels)


def _read_mapping(classes: Mapping) -> tuple[list[str], list]:
    """Names, and the value or colour of each."""
    pairs = list(classes.items())
    if all(isinstance(value, (list, tuple)) for _, value in pairs):
        return [name for name, _ in pairs], [_check_color(color) for _, color in pairs]
    if all(isinstance(value, str) for _, value in pairs):
        pairs = [(name, value) for value, name in pairs]
    try:
        by_value = sorted((int(value), name) for name, value in pairs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "classes must map values to names, or names to values or to colours [red, green, blue], got "
            f"{dict(classes)!r}."
        ) from error
    if by_value and not 0 <= by_value[0][0] <= by_value[-1][0] <= _HIGHEST_VALUE:
        raise ValueError(f"Class values are 0 to {_HIGHEST_VALUE}, got {by_value[0][0]} to {by_value[-1][0]}.")
    return [name for _, name in by_value], [value for value, _ in by_value]


def _read_ignored(ignore_value: int | Sequence[int], has_colors: bool) -> tuple[int, ...] | tuple[Color, ...]:
    numbers = [ignore_value] if isinstance(ignore_value, int) else list(ignore_value)
    if has_colors:
        numbers = numbers * 3 if len(numbers) == 1 else numbers
        return tuple(_check_color(numbers[start : start + 3]) for start in range(0, len(numbers), 3))
    if not all(isinstance(number, int) and 0 <= number <= _HIGHEST_VALUE for number in numbers):
        raise ValueError(f"ignore_value must be whole numbers from 0 to {_HIGHEST_VALUE}, got {ignore_value!r}.")
    return tuple(numbers)


def _check_color(color: Sequence[int]) -> Color:
    if len(color) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in color):
        raise ValueError(f"A colour is [red, green, blue], each from 0 to 255, got {color!r}.")
    return tuple(color)


def read_label_map(image: Image.Image, labels: LabelFormat) -> np.ndarray:
    """
    Class indices of a label map.

    | label map | what is looked up |
    |---|---|
    | grey of 1, 8 or 16 bits, whole numbers in any mode, RGB of equal channels | its values |
    | palette | its indices |
    | any of 8 bits, where colours stand for the classes | its colours |
    | with transparency, or RGB without colours of the classes | refused |

    Args:
        image (`PIL.Image.Image`): The label map.
        labels ([`LabelFormat`]): What it means.

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`, class indices, 255 where pixels are ignored.

    Raises:
        ValueError: If it is no label map; [`ValuesWithoutClass`] if it has other values.
    """
    stored = _colors(image) if labels.has_colors else _values(image)
    found = _table(labels)[stored]
    if np.any(found == _NO_CLASS):
        values, counts = np.unique(stored[found == _NO_CLASS], return_counts=True)
        if len(values) > _MOST_VALUES:
            raise ValueError(f"label map has {len(values)} values without a class: is it smoothed, or a JPEG?")
        named = [_color_name(value) if labels.has_colors else str(value) for value in values.tolist()]
        raise ValuesWithoutClass(dict(zip(named, counts.tolist(), strict=True)))
    return found.astype(np.uint8)


@lru_cache(maxsize=2)
def _table(labels: LabelFormat) -> np.ndarray:
    """Class index by value, or by colour as one number of 24 bits."""
    table = np.full(1 << 24 if labels.has_colors else _HIGHEST_VALUE + 2, _NO_CLASS, np.uint16)
    numbers = [_pack(value) if labels.has_colors else value + labels.reduce_labels for value in labels.values]
    if labels.reduce_labels:
        table[0] = IGNORED
    table[[_pack(value) if labels.has_colors else value for value in labels.ignored]] = IGNORED
    # Last: the values of the file are those of the classes, plus one, and the last may be 255.
    table[numbers] = range(len(labels.names))
    return table


def _pack(color: Color) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue


def _color_name(packed: int) -> str:
    return str([packed >> 16, packed >> 8 & 255, packed & 255])


def _values(image: Image.Image) -> np.ndarray:
    if image.mode in ("P", "PA"):
        return np.asarray(image.getchannel(0))
    pixels = np.asarray(_opaque(image))
    if pixels.ndim == 3:
        if image.mode not in ("RGB", "RGBA", "LA", "La") or np.any(pixels != pixels[..., :1]):
            raise ValueError(
                f"label map of mode {image.mode} has colours: say which class each stands for, "
                "classes={name: [red, green, blue]}"
            )
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f" or pixels.dtype.itemsize > 2:
        lowest, highest = pixels.min(initial=0), pixels.max(initial=0)
        if not (lowest >= 0 and highest <= _HIGHEST_VALUE) or not np.array_equal(pixels, np.rint(pixels)):
            raise ValueError(
                f"label map of mode {image.mode} has values from {lowest} to {highest}, allowed are whole numbers "
                f"from 0 to {_HIGHEST_VALUE}"
            )
    return pixels.astype(np.uint16)


def _colors(image: Image.Image) -> np.ndarray:
    if image.mode[0] in "IF":
        raise ValueError(f"label map of mode {image.mode} has no colours, but colours stand for the classes")
    pixels = np.asarray(_opaque(image).convert("RGB")).astype(np.uint32)
    return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]


def _opaque(image: Image.Image) -> Image.Image:
    """The image without its alpha channel, which must say nothing."""
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa"):
        return image
    if image.getchannel(image.getbands()[-1]).getextrema() != (255, 255):
        raise ValueError("label map has transparent pixels: save it without an alpha channel")
    return image.convert({"LA": "L", "PA": "P"}.get(image.mode, "RGB"))
