"""Splits by image: fractions, strata, duplicates, and requests that cannot be met; conditions from names."""

import logging

import pytest

from datasets_fives.features import Record
from datasets_fives.splits import (
    SAMPLE_SPLIT,
    SplitRequest,
    check_unique,
    group_duplicates,
    read_conditions,
    read_split_request,
    split_records,
    warn_of_left_out,
)


def make_records(train: int, test: int) -> list[Record]:
    """A data set with `train` and `test` images of each condition."""
    return [
        Record(f"{split}/{4 * n + c}_{'ADGN'[c]}", split, "ADGN"[c])
        for split, count in (("train", train), ("test", test))
        for n in range(count)
        for c in range(4)
    ]


def make(split, train=150, test=50, groups=None, seed=0, fraction=0.1):
    records = make_records(train, test)
    groups = range(len(records)) if groups is None else groups
    return split_records(records, groups, "ADGN", SplitRequest(split, seed, fraction)), records


def count_conditions(records, indices) -> list[int]:
    return [sum(records[i].condition == condition for i in indices) for condition in "ADGN"]


def test_the_official_split_takes_validation_out_of_train_by_condition():
    splits, records = make("official")
    assert {split: len(members) for split, members in splits.items()} == {"train": 540, "validation": 60, "test": 200}
    assert splits["test"] == list(range(600, 800))
    assert sorted(splits["train"] + splits["validation"]) == list(range(600))
    assert count_conditions(records, splits["validation"]) == [15] * 4


def test_the_resplit_is_70_20_10_by_condition():
    splits, records = make("resplit")
    assert {split: len(members) for split, members in splits.items()} == {"train": 560, "validation": 80, "test": 160}
    assert sorted(i for members in splits.values() for i in members) == list(range(800))
    for split, count in (("train", 140), ("validation", 20), ("test", 40)):
        assert count_conditions(records, splits[split]) == [count] * 4


@pytest.mark.parametrize("split", ["official", "resplit"])
def test_the_seed_decides_the_split(split):
    assert make(split, seed=3) == make(split, seed=3)
    assert make(split, seed=3) != make(split, seed=4)


def test_the_order_of_the_conditions_decides_the_draw():
    records = make_records(20, 0)
    one, other = (split_records(records, range(80), names, SplitRequest("resplit")) for names in ("ADGN", "NGDA"))
    assert one != other
    assert {split: count_conditions(records, members) for split, members in one.items()} == {
        split: count_conditions(records, members) for split, members in other.items()
    }


def test_small_fractions_still_give_one_validation_image():
    assert len(make("official", train=1, test=1, fraction=0.1)[0]["validation"]) == 1
    assert "validation" not in make("official", fraction=0.0)[0]
    one = [Record("train/1_A", "train", "A")]
    with pytest.raises(ValueError, match="too few"):
        split_records(one, [0], "A", SplitRequest("resplit"))
    with pytest.raises(ValueError, match="validation_fraction=0"):
        split_records(one, [0], "A", SplitRequest("official"))


def test_a_validation_part_of_the_source_is_kept():
    records = [Record(str(n), split, "A") for n, split in enumerate(("train", "validation", "test"))]
    splits = split_records(records, [0, 1, 2], "A", SplitRequest("official", 0, 0.5))
    assert splits == {"train": [0], "validation": [1], "test": [2]}


def test_duplicates_are_found_through_pixels_masks_and_chains():
    images = ["a", "b", "b", "c", "d", "e"]
    masks = ["1", "2", "3", "3", "", ""]
    assert group_duplicates(images, masks) == [0, 1, 1, 1, 4, 5]  # empty masks say nothing


@pytest.mark.parametrize("split", ["official", "resplit"])
def test_duplicates_stay_together(split):
    groups = [i - i % 8 + i % 4 for i in range(800)]  # every image has a duplicate of its condition
    for seed in range(3):
        splits, _ = make(split, groups=groups, seed=seed)
        split_of = {i: name for name, members in splits.items() for i in members}
        assert len(split_of) == 800
        assert all(split_of[i] == split_of[groups[i]] for i in range(800))


def test_a_duplicate_of_a_test_image_is_left_out_of_train_with_a_warning(caplog):
    groups = list(range(800))
    groups[700] = 17
    with caplog.at_level(logging.WARNING):
        splits, _ = make("official", groups=groups)
    assert 17 not in splits["train"] + splits["validation"]
    assert 700 in splits["test"]
    assert "Left out of train because a duplicate is in test: train/17_D" in caplog.text


def test_a_mapping_names_the_images_of_each_split():
    split = {"train": ["test/0_A", "train/1_D"], "validation": [], "test": ["train/0_A"]}
    splits, records = make(split, 2, 2)
    assert {name: [records[i].name for i in members] for name, members in splits.items()} == {
        "train": ["train/1_D", "test/0_A"],
        "test": ["train/0_A"],
    }


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": ["train/0_A", "train/0_A"]}, "must be unique in split.*train/0_A"),
        ({"train": ["train/0_A"], "test": ["train/0_A"]}, "must be unique in split.*train/0_A"),
        ({"train": ["train/0_A"], "val": ["train/1_D"]}, "map train, validation, test to names; got 'val'"),
        ({"train": "train/0_A"}, "map train to a list of names, got 'train/0_A'"),
        ({"train": [1]}, r"map train to a list of names, got \[1\]"),
        ({"train": []}, "names no image"),
        (["train/0_A"], "got list"),
        ("best", "'best'"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(split, message):
    with pytest.raises(ValueError, match=message):
        read_split_request(split, 0, 0.1)


def test_a_request_may_be_a_file(tmp_path):
    for name, text in (
        ("split.yaml", "train: [a, b]\ntest: [c]\n"),
        ("split.json", '{"train": ["a", "b"], "test": ["c"]}'),
    ):
        (tmp_path / name).write_text(text)
        assert read_split_request(tmp_path / name, 1, 0.2)[:3] == ({"train": ["a", "b"], "test": ["c"]}, 1, 0.2)
    assert read_split_request("sample", 0, 0.1).split == SAMPLE_SPLIT
    with pytest.raises(ValueError, match=r"missing.yaml does not exist"):
        read_split_request(str(tmp_path / "missing.yaml"), 0, 0.1)
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(ValueError, match="is neither YAML nor JSON"):
        read_split_request(tmp_path / "split.json", 0, 0.1)


def test_unknown_names_and_separated_duplicates_are_refused():
    with pytest.raises(ValueError, match="1 images of the split are not in the source, first test/999_A"):
        make({"train": ["train/0_A"], "test": ["test/999_A"]})
    groups = list(range(800))
    groups[4] = 0
    with pytest.raises(ValueError, match=r"separates duplicates.*train/0_A \(train\) and train/4_A \(test\)"):
        make({"train": ["train/0_A"], "test": ["train/4_A"]}, groups=groups)


def test_images_in_no_split_are_named(caplog):
    records = make_records(2, 1)
    for split, said in (({"train": ["train/0_A"]}, "11 of 12 images are in no split: train/1_D, "), ("sample", "")):
        caplog.clear()
        request = read_split_request(split, 0, 0.1)
        with caplog.at_level(logging.WARNING):
            warn_of_left_out(records, {"train": [0]}, request)
        assert said in caplog.text if said else not caplog.text


def test_too_few_images_are_counted_without_their_duplicates():
    with pytest.raises(ValueError, match=r"8 images, of which 1 differ in .* are too few to be re-split"):
        make("resplit", train=1, test=1, groups=[0] * 8)
    with pytest.raises(ValueError, match=r"No training image is left: all have the same pixels or the same mask"):
        make("official", train=1, test=1, groups=[0, 1, 2, 3] * 2)


def test_the_sample_split_holds_14_images_and_keeps_duplicates_together():
    assert len(SAMPLE_SPLIT["train"]) == 11
    assert len(SAMPLE_SPLIT["test"]) == 3
    assert len({name for names in SAMPLE_SPLIT.values() for name in names}) == 14
    assert {"test/22_A", "test/23_A"} <= set(SAMPLE_SPLIT["train"])


def test_conditions_are_read_from_names():
    assert read_conditions(["train/1_A", "test/02_dr"], None) == ["A", "dr"]
    assert read_conditions(["1_A", "image"], None) == ["unknown", "unknown"]
    assert read_conditions(["a-x1", "b-y2"], "-(.)") == ["x", "y"]


def test_names_that_repeat_are_listed():
    check_unique(["a", "b"])
    with pytest.raises(ValueError, match="Names must be unique, but these are not: a, b"):
        check_unique(["b", "a", "b", "a", "c"])


FILM = r"^(\w+)_\d+$"


def make_frames(**frames) -> list[Record]:
    """So many frames of each film, all of train."""
    return [Record(f"train/{film}_{n}", "train", "unknown") for film, count in frames.items() for n in range(count)]


def films_of(records, splits) -> dict[str, set[str]]:
    return {split: {records[i].name[6:].partition("_")[0] for i in members} for split, members in splits.items()}


@pytest.mark.parametrize("split", ["official", "resplit"])
def test_drawn_splits_do_not_take_films_apart(split):
    records = make_frames(**{f"f{n}": 10 for n in range(10)})
    groups = list(range(100))
    groups[25] = groups[71] = 5  # the same image in three films
    splits = split_records(records, groups, ["unknown"], SplitRequest(split, 0, 0.2, FILM))
    found = films_of(records, splits)
    assert sum(len(films) for films in found.values()) == 10
    assert all(len(splits[side]) == 10 * len(films) for side, films in found.items())
    (together,) = [films for films in found.values() if "f0" in films]
    assert {"f2", "f7"} <= together
    assert len(splits["validation"]) in ((10, 20) if split == "official" else (10,))


def test_a_film_that_is_longer_than_a_split_is_drawn_nevertheless(caplog):
    records = make_frames(a=60, b=25, c=15)
    splits = split_records(records, range(100), ["unknown"], SplitRequest("official", 0, 0.1, FILM))
    assert films_of(records, splits) == {"train": {"a", "b"}, "validation": {"c"}}
    assert f"Every group of {FILM!r} has more than the 10 images wanted; drawn are 15." in caplog.text
    with pytest.raises(ValueError, match="puts all 5 images into one group"):
        split_records(make_frames(a=5), range(5), ["unknown"], SplitRequest("official", 0, 0.2, FILM))


def test_published_splits_and_those_by_name_may_share_films():
    records = make_frames(a=4, b=4)
    records += [Record(f"test/a_{n}", "test", "unknown") for n in range(4, 6)]
    splits = split_records(records, range(10), ["unknown"], SplitRequest("official", 0, 0, FILM))
    assert splits == {"train": list(range(8)), "test": [8, 9]}
    named = {"train": ["train/a_0"], "test": ["train/a_1"]}
    assert split_records(records, range(10), ["unknown"], SplitRequest(named, 0, 0, FILM)) == {
        "train": [0],
        "test": [1],
    }


def test_wrong_patterns_of_groups_are_refused():
    for pattern, message in (("(", "group_pattern is not a regular"), ("a", "one group in parentheses, the group")):
        with pytest.raises(ValueError, match=message):
            read_split_request("official", 0, 0.1, pattern)
    with pytest.raises(ValueError, match=r"group_pattern '\^\(x\)' does not match 2 of 2 names, first train/a_0"):
        split_records(make_frames(a=2), range(2), ["unknown"], SplitRequest("resplit", 0, 0, "^(x)"))
