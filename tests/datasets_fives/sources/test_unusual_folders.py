"""Folders with names and entries of any kind: pairs that belong together, or an error of our own."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_fives.images import read_image
from datasets_fives.masks import read_mask
from datasets_fives.sources.image_folders import list_folders

pytestmark = pytest.mark.usefixtures("bounded_memory")

# Spaces, quotes, what a shell or a pattern would read, right-to-left, combining and wide letters, line breaks.
NAMES = st.one_of(
    st.text("ab01_- .'\"*?[]$;&\\\néß眼Жλא\u0301🩸", min_size=1, max_size=12),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20),
)
KINDS = st.sampled_from(
    ["image"] * 6
    + ["text", "truncated", "empty", "wrong ending", "link out", "broken link", "loop", "device", "folder"]
)
ENTRIES = st.lists(st.tuples(NAMES, KINDS), min_size=1, max_size=5, unique_by=lambda entry: entry[0])


def write(path: Path, kind: str, pixels: np.ndarray, outside: Path) -> None:
    """An entry of a folder, whatever its name promises."""
    match kind:
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "broken link":
            path.symlink_to(outside / "nothing")
        case "loop":
            path.symlink_to(path)
        case "link out":
            Image.fromarray(pixels).save(outside / "image.png")
            path.symlink_to(outside / "image.png")
        case "text" | "empty":
            path.write_text("no image" if kind == "text" else "", encoding="utf-8")
        case _:
            Image.fromarray(pixels).save(path, "BMP" if kind == "wrong ending" else "PNG")
            if kind == "truncated":
                os.truncate(path, path.stat().st_size // 2)


def check_folder(entries: list[tuple[str, str]]) -> int:
    """How many pairs were found and read; each is one that was written as such."""
    image = np.full((6, 8, 3), 90, np.uint8)
    mask = np.eye(6, 8, dtype=np.uint8) * 255
    with tempfile.TemporaryDirectory() as folder:
        root, outside = Path(folder) / "data", Path(folder) / "outside"
        for part in (root / "images", root / "masks", outside):
            part.mkdir(parents=True)
        readable = set()
        for name, kind in entries:
            try:
                write(root / "images" / f"{name}.png", kind, image, outside)
                write(root / "masks" / f"{name}.png", "image", mask, outside)
            except (OSError, ValueError):  # a name that this file system does not have, or has already
                return 0
            if kind in ("image", "wrong ending", "link out"):
                readable.add(name)
        try:
            pairs = list_folders(root).records
        except ValueError as error:
            said = str(error)
            return names_what(said, root, [name for name, _ in entries])
        count = 0
        for pair in pairs:
            assert Path(pair.image).stem == Path(pair.mask).stem
            assert read_mask(pair.mask).sum() == 6
            try:
                found = np.asarray(read_image(pair.image))
            except ValueError as error:
                said = str(error)
            else:
                said = ""
                np.testing.assert_array_equal(found, image)
            assert bool(said) == (Path(pair.image).stem not in readable)
            count += not said
        return count


def names_what(said: str, root: Path, names: list[str]) -> int:
    """The error names the folder, or what in it is meant; no pairs were found."""
    assert str(root) in said or any(name in said for name in names), said
    return 0


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(ENTRIES)
def test_some_folders(entries):
    check_folder(entries)


@pytest.mark.slow
def test_many_folders():
    counts = []

    @settings(max_examples=600, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(ENTRIES)
    def check(entries):
        counts.append(check_folder(entries))

    check()
    assert len(counts) >= 600
    assert sum(counts) > 200  # most names are good names
