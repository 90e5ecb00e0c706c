"""Rows of vessels are what they were before other classes were loaded: pixels, names, conditions, splits, hashes."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from datasets_fives import load_fives, load_segmentation, load_vessels

# Digests of what commit f2e1321 loaded, the last before `load_segmentation`; of HRF, six images on both sides of the
# split.
MADE_UP = {None: "830f514c8e6e5de2", 16: "56ad439a51f4c3cf"}
REAL = {"FIVES_DIR": ("resplit", "3e1af3e5c47329ca"), "HRF_DIR": ("official", "a378bc160e0a15cb")}


def digest(splits) -> str:
    """One digest for all that rows hold."""
    digested = hashlib.sha256()
    for split, rows in splits.items():
        digested.update(f"{split}{rows.features['condition'].names}{rows.column_names}".encode())
        for row in rows:
            for value in row.values():
                is_text = isinstance(value, (str, int))
                digested.update(str(value).encode() if is_text else np.asarray(value).tobytes())
    return digested.hexdigest()[:16]


@pytest.mark.parametrize("load", [load_fives, load_vessels, load_segmentation])
@pytest.mark.parametrize("working_size", MADE_UP)
def test_rows_of_a_made_up_archive(archive, tmp_path, load, working_size):
    kwargs = {"working_size": working_size, "fingerprints": True, "cache_dir": tmp_path / "cache"}
    assert digest(load(archive, validation_fraction=0.25, **kwargs)) == MADE_UP[working_size]


@pytest.mark.parametrize("variable", REAL)
def test_rows_of_real_images(variable, tmp_path):
    if not os.environ.get(variable):
        pytest.skip(f"{variable}, a folder of real images, is not set")
    split, wanted = REAL[variable]
    source = Path(os.environ[variable])
    if variable == "HRF_DIR":
        for path in source.glob("*/0[56]_*"):
            link = tmp_path / "some" / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
        source = tmp_path / "some"
    rows = load_segmentation(source, split=split, working_size=256, fingerprints=True, cache_dir=tmp_path / "cache")
    assert digest(rows) == wanted
