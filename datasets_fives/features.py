"""Records and rows: what is known of an image before it is decoded, and the columns that it becomes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL.Image
from datasets import ClassLabel, Features, Image, Value

# A age-related macular degeneration, D diabetic retinopathy, G glaucoma, N normal.
CONDITIONS = ("A", "D", "G", "N")
# The condition of images of which none is known.
UNKNOWN = "unknown"
QUALITY = ("illumination", "blur", "contrast")

FEATURES = Features(
    {
        "image": Image(mode="RGB"),
        "mask": Image(mode="L"),
        "name": Value("string"),
        "condition": ClassLabel(names=list(CONDITIONS)),
    }
)
# By these columns duplicates are found; users see them on request only.
FINGERPRINTS = ("image_hash", "mask_hash")

Content = str | bytes | PIL.Image.Image


class Record(NamedTuple):
    """
    An image and what is known of it.

    Args:
        name (`str`): Its name, unique in the data set.
        split (`str`): The published split it belongs to: `"train"`, `"validation"`, `"test"`, or `""` for none.
        condition (`str`): What it shows, [`UNKNOWN`] if nobody says.
        image (`str`, `bytes` or `PIL.Image.Image`, *optional*): Path of its file, the content of that file, or the
            decoded image. `b""`: not read yet, or missing.
        mask (`str`, `bytes` or `PIL.Image.Image`, *optional*): The same of its vessel mask.
        field_of_view (`str` or `bytes`, *optional*): The same of the mask of its field of view, if there is one.
        quality (`tuple[str, ...]`, *optional*): Its grades, in the order of [`QUALITY`].
        stamp (`tuple[int, ...]`, *optional*): Size and times of its files: a cache is stale when they change.
        image_hash (`str`, *optional*): Fingerprint of the image, if it is not that of its pixels.
    """

    name: str
    split: str
    condition: str
    image: Content = b""
    mask: Content = b""
    field_of_view: str | bytes | None = None
    quality: tuple[str, ...] | None = None
    stamp: tuple[int, ...] = ()
    image_hash: str | None = None


class Listing(NamedTuple):
    """
    What a source holds.

    Args:
        records (`Sequence[Record]`): All images, with at least name, split and condition.
        contents (`Sequence[Record]`): The same, complete; reading one may read a file, a row of a data set, or draw.
        conditions (`list[str]`, *optional*): Class names of the conditions; by default those that occur.
        stated (`Mapping`, *optional*): What the source itself says of `classes`, `ignore_value`, `reduce_labels` and
            `group_pattern`, the arguments of [`~datasets_fives.load_segmentation`].
    """

    records: Sequence[Record]
    contents: Sequence[Record]
    conditions: list[str] | None = None
    stated: Mapping = {}


def list_some(names: Sequence[str]) -> str:
    """The first ten of some names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def problems_error(where: Path | str, problems: list[str]) -> ValueError:
    """One error for all problems, the first ten by name."""
    more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ValueError(f"{count} in {where}: {'; '.join(problems[:10])}{more}")
