"""Any data set as Parquet and card: label maps of five classes in a folder, and vessel masks."""

import re

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import metadata_load

from datasets_fives import class_names, load_segmentation
from reg4pru import prepare as command

from ...street_scenes import CLASSES, write_street


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def prepare(tmp_path, capsys):
    """Runs the command; returns the folder, or what it says when it refuses."""

    def run(*words, output_dir="out"):
        try:
            command.main([*map(str, words), "--output_dir", str(tmp_path / output_dir)])
        except SystemExit:
            return capsys.readouterr().err
        return tmp_path / output_dir

    return run


def test_a_folder_of_five_classes_becomes_parquet_with_a_card(prepare, tmp_path):
    root = write_street(tmp_path / "street", "11")
    out = prepare("--dataset", root, "--classes", *CLASSES, "--ignore_value", 11, "--license", "cc-by-4.0")
    direct, rows = load_segmentation(root, classes=CLASSES, ignore_value=11), load_segmentation(out)
    for split, wanted in direct.items():
        assert class_names(rows[split]) == CLASSES
        assert rows[split].features == wanted.features
        assert rows[split]["name"][:] == wanted["name"][:]
        for one, other in zip(rows[split], wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(one["image"]), np.asarray(other["image"]))
            np.testing.assert_array_equal(np.asarray(one["mask"]), np.asarray(other["mask"]))
    plain = load_dataset(str(out))  # as others read it
    assert plain["train"].features["classes"].feature.names == CLASSES

    header = metadata_load(out / "README.md")
    assert (header["license"], header["pretty_name"]) == ("cc-by-4.0", "street")
    assert header["task_categories"] == ["image-segmentation"]
    counts = {split["name"]: split["num_examples"] for split in header["dataset_info"]["splits"]}
    assert counts == {"train": 6, "validation": 3, "test": 3}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "12 images with label maps of 5 classes" in card
    maps = {split: np.stack([np.asarray(mask) for mask in rows["mask"]]) for split, rows in plain.items()}
    assert f"| train | 6 | 32 × 24 | {np.mean(maps['train'] == 255):.2%} |" in card
    for label, name in enumerate(CLASSES):
        cells = []
        for found in maps.values():
            shares, images = np.mean(found[found != 255] == label), np.sum(np.any(found == label, axis=(1, 2)))
            cells += [f"{shares:.2%}", str(images)]
        assert f"| {name} | {label} | {' | '.join(cells)} |" in card
    assert str(tmp_path) not in card
    assert not re.search(r"\n\n\n|{{|{%", card)

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    same = ("--dataset", root, "--classes", *CLASSES, "--ignore_value", 11, "--license", "cc-by-4.0")
    assert prepare(*same) == out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    assert "was not prepared from these" in prepare(*same[:-1], "mit")


def test_published_splits_are_kept_and_others_are_drawn_on_request(prepare, tmp_path):
    root = write_street(tmp_path / "street")
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    for place in ("images", "labels"):
        (root / place / "val").rename(tmp_path / f"{place} of val")
    rows = load_dataset(str(prepare("--dataset", root)))
    assert {split: len(part) for split, part in rows.items()} == {"train": 6, "test": 3}
    for place in ("images", "labels"):
        (root / place / "test").rename(tmp_path / place)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    plain = tmp_path / "plain"
    plain.mkdir()
    for place in ("images", "labels", "classes.txt"):
        (tmp_path / place).rename(plain / place)
    assert "no official split" in prepare("--dataset", plain, output_dir="drawn")
    rows = load_dataset(str(prepare("--dataset", plain, "--split", "resplit", output_dir="drawn")))
    assert sum(len(part) for part in rows.values()) == 3


def test_vessel_masks_are_two_classes_without_a_column_of_them(prepare, tmp_path):
    out = prepare("--dataset", "synthetic", "--synthetic_counts", 2, 1, 1, "--working_size", 32)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "4 images with label maps of 2 classes" in card
    assert "| vessel | 1 |" in card
    assert "it is not stated here" in card
    assert "`classes`" not in card
    assert load_segmentation(out)["train"].column_names == ["image", "mask", "name", "condition"]


def test_one_source_is_named(prepare, tmp_path):
    assert "give --dataset or --fives_dir, and not both" in prepare()
    both = ("--dataset", tmp_path, "--fives_dir", tmp_path)
    assert "give --dataset or --fives_dir, and not both" in prepare(*both)
    unused = ("--fives_dir", tmp_path, "--classes", "a", "b", "--split", "resplit")
    assert "so --split, --classes would have no effect" in prepare(*unused)
    root = write_street(tmp_path / "street")
    said = prepare("--dataset", root, "--classes", *CLASSES[:4])
    assert "value 4 has no class, and is not ignored: 64 pixels in 4 label maps" in said
    assert not (tmp_path / "out").exists()
