"""A colour for every class, the same in label maps, overlays, figures and the app, and legends of them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

# The seven colours of Okabe and Ito, and thirteen more, each as far as possible (CIEDE2000) from all before it as seen
# with full and with dichromatic vision (Machado et al., IEEE TVCG 2009): 9.8 apart up to 15 classes, 7.9 up to 20.
# None is grey: readers of label maps look greys of a palette up, where colours are indices.
_COLOURS = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66),
    (120, 0, 15), (0, 60, 75), (180, 240, 195), (0, 15, 180), (165, 75, 60), (75, 255, 255), (75, 135, 255),
    (150, 90, 120), (135, 195, 135), (255, 180, 210), (75, 0, 255), (120, 60, 60), (120, 60, 120),
)  # fmt: skip
MOST_CLASSES = 256  # of which an image with a palette can tell
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def class_colours(num_classes: int) -> np.ndarray:
    """
    The colours of classes, `(num_classes, 3)`, `uint8`; a class keeps its colour whatever other classes there are, up
    to 20. Of more classes, all have the colours of PASCAL VOC (the bits of the index, dealt out to red, green and blue
    from the highest down), but that greys are moved to blue.

    Args:
        num_classes (`int`): Up to [`MOST_CLASSES`].

    Raises:
        `ValueError`: If there are more.
    """
    if num_classes > MOST_CLASSES:
        raise ValueError(f"There are {num_classes} classes: label maps with a palette have {MOST_CLASSES} at most.")
    if num_classes <= len(_COLOURS):
        return np.array(_COLOURS[:num_classes], dtype=np.uint8)
    index = np.arange(num_classes)[:, None]
    bits = sum((index >> (3 * place + np.arange(3)) & 1) << (7 - place) for place in range(3))
    grey = (bits == bits[:, :1]).all(axis=1) & (index[:, 0] > 0)
    bits[grey, 2] ^= 32  # a bit that no other colour has
    return bits.astype(np.uint8)


def label_image(labels: np.ndarray, num_classes: int) -> Image.Image:
    """
    A label map as it is saved: an image with a palette, whose indices are the classes.

    Args:
        labels (`np.ndarray` of shape `(height, width)`): The class of every pixel.
        num_classes (`int`): Of the model.
    """
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(class_colours(num_classes).tobytes())
    return image


def legend_strip(names: Sequence[str], colours: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """
    A legend to put below an image: boxes of the colours, each with its name, in as many lines as it takes.

    Args:
        names (`Sequence[str]`): What to write.
        colours (`Sequence` of RGB): One for each.
        width (`int`): Of the image, in pixels.

    Returns:
        `np.ndarray` of shape `(strip_height, width, 3)`, `uint8`.
    """
    size = max(10, round(width / 50))
    # Pillow's own font has no letters but those of English.
    font, gap = ImageFont.truetype(findfont("DejaVu Sans"), size), size // 2
    names = [_shortened(name, font, width - size - 3 * gap) for name in names]
    places, left, line = [], gap, 0
    for name in names:
        needed = round(font.getlength(name)) + size + 3 * gap
        if left > gap and left + needed > width:
            left, line = gap, line + 1
        places.append((left, line))
        left += needed
    height = size + gap
    strip = Image.new("RGB", (width, (line + 1) * height + gap), _WHITE)
    draw = ImageDraw.Draw(strip)
    for name, colour, (left, line) in zip(names, colours, places, strict=True):
        top = gap + line * height
        draw.rectangle([left, top, left + size - 1, top + size - 1], fill=tuple(map(int, colour)), outline=_BLACK)
        draw.text((left + size + gap, top + size / 2), name, fill=_BLACK, font=font, anchor="lm")
    return np.asarray(strip)


def _shortened(name: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """A name, or as much of it as fits into a width."""
    if font.getlength(name) <= width:
        return name
    return next(
        (f"{name[:end]}…" for end in range(len(name) - 1, 0, -1) if font.getlength(f"{name[:end]}…") <= width), "…"
    )
