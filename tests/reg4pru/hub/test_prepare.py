"""The published archive as Parquet: rows, card, and what is refused."""

import hashlib
import json
import os

import numpy as np
import PIL.Image
import pytest
from datasets import Image, load_dataset
from huggingface_hub import metadata_load

from datasets_fives import load_fives
from reg4pru import prepare as command
from reg4pru.common.former_names import FORMER_NAMES, FORMER_TAGS
from reg4pru.hub.fives_dataset import TAG, prepare
from reg4pru.hub.transfer import has_tag


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def fives(tmp_path):
    """Six images with the defects that the card has to tell of."""
    rng = np.random.default_rng(0)
    for split, names in {"train": ["1_A", "2_A", "3_D", "122_G"], "test": ["1_A", "2_N"]}.items():
        for kind in ("Original", "Ground truth"):
            (tmp_path / "fives" / split / kind).mkdir(parents=True)
        previous = None
        for name in names:
            mask = np.zeros((20, 20), dtype=np.uint8)
            mask[:, rng.integers(10, 18) : 19] = 255  # less than half: more would be taken for an inverted mask
            mask[rng.integers(20), :] = 255
            if name == "122_G":
                mask[:] = 0
                mask[3, 3] = 255
            if name == "2_A":
                mask = previous  # a twin
            previous = mask
            colours = [mask] * 3 + ([np.full_like(mask, 255)] if name == "3_D" else [])
            if (split, name) == ("test", "2_N"):
                soft = mask.copy()
                soft[2, 18], soft[9, 2] = 254, 3  # a vessel's edge, and background
                colours = [soft] * 3
            photo = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
            PIL.Image.fromarray(photo).save(tmp_path / "fives" / split / "Original" / f"{name}.png")
            PIL.Image.fromarray(np.dstack(colours)).save(tmp_path / "fives" / split / "Ground truth" / f"{name}.png")
    (tmp_path / "fives" / "train" / "Original" / "Thumbs.db").write_bytes(b"stray")
    return tmp_path / "fives"


def test_rows_are_those_of_the_archive(fives, tmp_path):
    prepare(fives, tmp_path / "out", "user/fives", images_per_shard=3)
    assert sorted(path.name for path in (tmp_path / "out" / "data").iterdir()) == [
        "test-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
    ]  # fmt: skip
    rows = load_dataset(str(tmp_path / "out"))
    assert rows["train"]["name"][:] == ["train/1_A", "train/2_A", "train/3_D", "train/122_G"]
    assert rows["test"]["name"][:] == ["test/1_A", "test/2_N"]
    for side in rows.values():
        stored = side.cast_column("image", Image(decode=False)).cast_column("mask", Image(decode=False))
        for row, raw in zip(side, stored, strict=True):
            split, name = row["name"].split("/")
            assert raw["image"]["bytes"] == (fives / split / "Original" / f"{name}.png").read_bytes()
            assert raw["image"]["path"] == f"{name}.png", "no path of the machine that prepared it"
            assert raw["mask"]["bytes"].startswith(b"\x89PNG")
            assert (row["mask"].mode, row["image"].mode) == ("L", "RGB")
            published = np.asarray(PIL.Image.open(fives / split / "Ground truth" / f"{name}.png").convert("L"))
            assert np.array_equal(np.asarray(row["mask"]), published > 127)
    # load_fives takes validation out of train, and leaves images with twins on one side.
    ours = load_fives(tmp_path / "out", validation_fraction=0.3)
    assert sum(len(side) for side in ours.values()) == 6
    sides = {name: side for side, part in ours.items() for name in part["name"]}
    assert sides["train/1_A"] == sides["train/2_A"]
    streamed = load_fives(tmp_path / "out", validation_fraction=0.3, streaming=True)
    assert {side: part.info.splits[side].num_examples for side, part in streamed.items()} == {
        side: len(list(part)) for side, part in streamed.items()
    }


def test_the_card_is_computed(fives, tmp_path):
    prepare(fives, tmp_path / "out", "me/eyes")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    header = metadata_load(tmp_path / "out" / "README.md")
    assert header["license"] == "cc-by-4.0"
    assert header["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": side, "path": f"data/{side}-*"} for side in ("train", "test")],
        }
    ]
    info = header["dataset_info"]
    assert [feature["name"] for feature in info["features"]] == ["image", "mask", "name", "condition"]
    assert [(split["name"], split["num_examples"]) for split in info["splits"]] == [("train", 4), ("test", 2)]
    sizes = [path.stat().st_size for path in (tmp_path / "out" / "data").iterdir()]
    assert info["download_size"] == sum(sizes) == sum(split["num_bytes"] for split in info["splits"])

    vessel = [np.mean(np.asarray(row["mask"])) for row in load_dataset(str(tmp_path / "out"), split="train")]
    assert f"| train | 4 | 2 | 1 | 1 | 0 | {100 * np.mean(vessel):.1f} % |" in card
    assert "| test | 2 | 1 | 0 | 0 | 1 |" in card
    assert "6 colour fundus images" in card
    assert 'load_dataset("me/eyes", split="train")' in card
    assert "  - train/1_A, train/2_A\n" in card
    assert "alpha channel, which was dropped: train/3_D." in card
    assert "between black and white, which the threshold removed: test/2_N." in card
    assert "that hardly show any vessels: train/122_G." in card
    assert "10.1038/s41597-022-01564-3" in card
    assert "Train and test are those of the published archive, complete." in card
    assert str(tmp_path) not in card


def test_what_is_there_is_kept(fives, tmp_path, caplog):
    out = tmp_path / "out"
    prepare(fives, out, "user/fives")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    prepare(fives, out, "user/fives")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times, "the same again is used as it is"
    with pytest.raises(ValueError, match="is not empty, and was not prepared from these files"):
        prepare(fives, out, "user/other")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    assert not list(tmp_path.glob(".out-*")), "nothing is left beside it"


def test_an_archive_is_known_by_its_content(fives, tmp_path):
    out = tmp_path / "out"
    mask = fives / "train" / "Ground truth" / "1_A.png"
    content = mask.read_bytes()
    mask.write_bytes(content + b"1")
    before = mask.stat()
    prepare(fives, out, "user/fives")
    os.utime(mask, ns=(0, 0))
    prepare(fives, out, "user/fives")
    mask.write_bytes(content + b"2")  # as large as before, and by its time as old
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match="was not prepared from these files"):
        prepare(fives, out, "user/fives")


def test_what_9db4d4a_prepared_is_known_here_and_on_the_hub(fives, tmp_path, caplog):
    out = tmp_path / "out"
    prepare(fives, out, "user/fives")
    listed = []
    for name in ("train/1_A", "train/2_A", "train/3_D", "train/122_G", "test/1_A", "test/2_N"):
        split, stem = name.split("/")
        files = [(fives / split / kind / f"{stem}.png").stat() for kind in ("Original", "Ground truth")]
        listed.append((name, [number for one in files for number in (one.st_size, one.st_mtime_ns)]))
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    former = next(former for former, name in FORMER_NAMES.items() if name == "images_per_shard")
    noted = {"files": digest, "repo_id": "user/fives", former: 100, "version": 1}
    (out / ".prepared.json").write_text(json.dumps(noted))
    card = out / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(TAG, FORMER_TAGS[TAG]), encoding="utf-8")
    caplog.set_level("INFO")
    prepare(fives, out, "user/fives")
    assert "was prepared from the same files" in caplog.text
    assert has_tag(card, TAG)
    assert not has_tag(card, "reg4pru-predictions")


def test_a_broken_archive_writes_nothing(fives, tmp_path, capsys):
    (fives / "train" / "Ground truth" / "3_D.png").unlink()
    with pytest.raises(SystemExit) as stopped:
        command.main(["--fives_dir", str(fives), "--output_dir", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "train/3_D: image without mask" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for arguments, message in (
        (["--fives_dir", str(fives)], "give --output_dir, --push_to_hub or both"),
        (["--fives_dir", str(fives), "--push_to_hub"], "--push_to_hub needs --hub_dataset_id"),
        (["--fives_dir", str(fives), "--output_dir", "x", "--images_per_shard", "0"], "must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert message in capsys.readouterr().err
