"""The published layout on disk: find the pairs of photograph and mask, and refuse what is broken."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .pixels import binary_mask, encode_png, fingerprint_image, fingerprint_mask, resize_image, resize_mask

CONDITIONS = ("A", "D", "G", "N")
PHOTOGRAPHS, MASKS = "Original", "Ground truth"
_NAME = re.compile(r"(\d+)_([ADGN])\.png", re.IGNORECASE)
_PNG_END = b"IEND\xaeB`\x82"


class Photograph(NamedTuple):
    """One pair of the published layout; size and time of the files tell a cache when they change."""

    name: str
    published: str
    condition: str
    image_path: str
    mask_path: str
    stamp: tuple[int, int, int, int]


def is_published_layout(folder: Path) -> bool:
    """Whether `folder` holds `train` or `test` with `Original` or `Ground truth` inside."""
    return any((folder / split / kind).is_dir() for split in ("train", "test") for kind in (PHOTOGRAPHS, MASKS))


def list_photographs(folder: Path) -> list[Photograph]:
    """
    List the pairs of photograph and mask in the published layout, after checking everything that needs no decoding.

    Args:
        folder (`Path`): Holds `<split>/Original/<n>_<condition>.png` and `<split>/Ground truth/<n>_<condition>.png`
            for split `train`, `test` or both. Files that are not PNG (`Thumbs.db`, spreadsheets) are ignored.

    Returns:
        `list[Photograph]`: Sorted by split (train first) and number.

    Raises:
        ValueError: If a mask or a photograph is missing, a name is wrong, a file is no complete PNG, the two sizes of
            a pair differ, or there are no photographs. All problems of the folder are in one message, the first ten
            by name.
    """
    photographs, problems = [], []
    for published in ("train", "test"):
        if not (folder / published).is_dir():
            continue
        images = _numbered_files(folder / published / PHOTOGRAPHS, problems)
        masks = _numbered_files(folder / published / MASKS, problems)
        problems += [f"{published}/{stem}: photograph without mask" for stem in images if stem not in masks]
        problems += [f"{published}/{stem}: mask without photograph" for stem in masks if stem not in images]
        for stem in sorted((s for s in images if s in masks), key=lambda s: (int(s.split("_")[0]), s)):
            name = f"{published}/{stem}"
            problem = _cheap_problem(images[stem], masks[stem])
            if problem:
                problems.append(f"{name}: {problem}")
                continue
            stats = [path.stat() for path in (images[stem], masks[stem])]
            stamp = tuple(value for stat in stats for value in (stat.st_size, stat.st_mtime_ns))
            photographs.append(Photograph(name, published, stem[-1], str(images[stem]), str(masks[stem]), stamp))
    raise_problems(folder, problems)
    if not photographs:
        raise ValueError(f"No photographs in {folder}: expected <split>/{PHOTOGRAPHS}/<n>_<A|D|G|N>.png.")
    return photographs


def read_photographs(photographs: tuple[Photograph, ...], image_size: int | None, version: int) -> Iterator[dict]:
    """
    Decode, check, and if asked for resize, the listed pairs.

    Args:
        photographs (`tuple[Photograph, ...]`): From [`list_photographs`].
        image_size (`int`, *optional*): Side of the square that photographs and masks are resized to.
        version (`int`): Unused here; part of the cache key, so that old caches are left when this code changes.

    Yields:
        `dict`: A row, with `image_hash` and `mask_hash` beside the public columns.

    Raises:
        ValueError: If files cannot be decoded or masks are not binary; all of them are in one message.
    """
    problems = []
    for photograph in photographs:
        try:
            with Image.open(photograph.image_path) as opened:
                image = opened.convert("RGB")
            with Image.open(photograph.mask_path) as opened:
                opened.load()
                mask = binary_mask(opened)
        except (OSError, SyntaxError, ValueError) as error:
            problems.append(f"{photograph.name}: {error}")
            continue
        if problems:
            continue  # nothing will be kept: only look for further problems
        row = {
            "name": photograph.name,
            "condition": photograph.condition,
            "image_hash": fingerprint_image(image),
            "mask_hash": fingerprint_mask(mask),
        }
        if image_size is None:
            # The untouched file is pointed to, not copied: the full data set has gigabytes of them.
            yield row | {"image": {"path": photograph.image_path, "bytes": None}, "mask": encode_png(mask)}
        else:
            yield row | {
                "image": encode_png(resize_image(image, image_size)),
                "mask": encode_png(resize_mask(mask, image_size)),
            }
    raise_problems(Path(photographs[0].image_path).parents[2], problems)


def raise_problems(where: Path | str, problems: list[str]) -> None:
    """Raise one `ValueError` for all problems (first ten by name), or return when there is none."""
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{len(problems)} problems in {where}: {'; '.join(problems[:10])}{more}")


def _numbered_files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Map "12_A" to its file; PNG files of other names are problems, anything else is ignored."""
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".png" or path.name.startswith("."):
            continue
        match = _NAME.fullmatch(path.name)
        if match:
            found[f"{match[1]}_{match[2].upper()}"] = path
        else:
            problems.append(f"{path.relative_to(folder.parents[1])}: the name is not <number>_<A|D|G|N>.png")
    return found


def _cheap_problem(image_path: Path, mask_path: Path) -> str | None:
    """What the header and the last bytes of the two files tell, without decoding pixels."""
    sizes = []
    for kind, path in (("photograph", image_path), ("mask", mask_path)):
        try:
            with Image.open(path) as opened:
                sizes.append(opened.size)
                if opened.format != "PNG":
                    return f"{kind} is not a PNG file but {opened.format}"
        except (OSError, SyntaxError) as error:
            return f"{kind} cannot be read ({error})"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            if _PNG_END not in file.read():
                return f"{kind} cannot be read (truncated PNG file)"
    if sizes[0] != sizes[1]:
        return f"photograph is {sizes[0][0]}x{sizes[0][1]} but mask is {sizes[1][0]}x{sizes[1][1]}"
    return None
