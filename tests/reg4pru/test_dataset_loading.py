"""From flags to rows, as every command that reads a data set does it."""

import pytest

from datasets_fives import class_names
from reg4pru.common.arguments import DatasetArguments
from reg4pru.common.dataset_loading import load_sides

from ..street_scenes import CLASSES, write_street


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_flags_say_what_label_maps_mean(tmp_path):
    root = str(write_street(tmp_path / "street", "11"))
    (tmp_path / "names.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    for classes in (CLASSES, [str(tmp_path / "names.txt")]):
        sides = load_sides(DatasetArguments(dataset=root, classes=classes, ignore_value=[11]), seed=0)
        assert {side: len(rows) for side, rows in sides.items()} == {"train": 6, "validation": 3, "test": 3}
        assert class_names(sides["train"]) == CLASSES
    drawn = DatasetArguments(
        dataset=root, classes=CLASSES, ignore_value=[11], split="resplit", group_pattern=r"^(\w+)_"
    )
    assert {side: len(rows) for side, rows in load_sides(drawn, seed=0).items()}["test"] == 3
    reduced = DatasetArguments(dataset=root, classes=CLASSES[1:], ignore_value=[11], reduce_labels=True)
    assert load_sides(reduced, seed=0)["train"][0]["classes"] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"names\.csv cannot be read"):
        load_sides(DatasetArguments(dataset=root, classes=[str(tmp_path / "names.csv")]), seed=0)


def test_no_flags_are_vessels():
    sides = load_sides(DatasetArguments(working_size=32, synthetic_counts=[2, 1, 1]), seed=0)
    assert class_names(sides["train"]) == ["background", "vessel"]
    assert "classes" not in sides["train"].column_names
