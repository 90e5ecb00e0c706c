"""Splits by image: fractions, strata, twins, and mappings that cannot be."""

import logging

import pytest

from datasets_fives.splits import SAMPLE_SPLIT, check_split_request, split_images, twin_groups


def images(train: int, test: int):
    """Names, conditions and published split of a data set with `train` and `test` images of each condition."""
    rows = [
        (f"{published}/{4 * n + c}_{'ADGN'[c]}", c, published)
        for published, count in (("train", train), ("test", test))
        for n in range(count)
        for c in range(4)
    ]
    return tuple(map(list, zip(*rows, strict=True)))


def make(split, train=150, test=50, groups=None, seed=0, fraction=0.1):
    names, conditions, published = images(train, test)
    groups = list(range(len(names))) if groups is None else groups
    return split_images(names, conditions, published, groups, split, seed, fraction), conditions


def test_the_official_split_takes_validation_out_of_train_by_condition():
    sides, conditions = make("official")
    assert {side: len(members) for side, members in sides.items()} == {"train": 540, "validation": 60, "test": 200}
    assert sides["test"] == list(range(600, 800))
    assert sorted(sides["train"] + sides["validation"]) == list(range(600))
    assert [sum(conditions[i] == c for i in sides["validation"]) for c in range(4)] == [15] * 4


def test_the_resplit_is_70_20_10_by_condition():
    sides, conditions = make("resplit")
    assert {side: len(members) for side, members in sides.items()} == {"train": 560, "validation": 80, "test": 160}
    assert sorted(i for members in sides.values() for i in members) == list(range(800))
    for side, count in (("train", 140), ("validation", 20), ("test", 40)):
        assert [sum(conditions[i] == c for i in sides[side]) for c in range(4)] == [count] * 4


@pytest.mark.parametrize("split", ["official", "resplit"])
def test_the_seed_decides_the_split(split):
    assert make(split, seed=3) == make(split, seed=3)
    assert make(split, seed=3) != make(split, seed=4)


def test_small_fractions_still_give_one_validation_image():
    assert len(make("official", train=1, test=1, fraction=0.1)[0]["validation"]) == 1
    assert "validation" not in make("official", fraction=0.0)[0]
    with pytest.raises(ValueError, match="too few"):
        split_images(["train/1_A"], [0], ["train"], [0], "resplit", 0, 0.1)
    with pytest.raises(ValueError, match="validation_fraction=0"):
        split_images(["train/1_A"], [0], ["train"], [0], "official", 0, 0.1)


def test_a_validation_part_of_the_source_is_kept():
    names, published = ["train/1_A", "train/2_A", "train/3_A"], ["train", "validation", "test"]
    sides = split_images(names, [0] * 3, published, [0, 1, 2], "official", 0, 0.5)
    assert sides == {"train": [0], "validation": [1], "test": [2]}


def test_twins_are_found_through_pixels_masks_and_chains():
    images = ["a", "b", "b", "c", "d", "e"]
    masks = ["1", "2", "3", "3", "", ""]
    assert twin_groups(images, masks) == [0, 1, 1, 1, 4, 5]  # empty masks say nothing


@pytest.mark.parametrize("split", ["official", "resplit"])
def test_twins_land_on_one_side(split):
    groups = [i - i % 8 + i % 4 for i in range(800)]  # every image has a twin of its condition
    for seed in range(3):
        sides, _ = make(split, groups=groups, seed=seed)
        side_of = {i: side for side, members in sides.items() for i in members}
        assert len(side_of) == 800
        assert all(side_of[i] == side_of[groups[i]] for i in range(800))


def test_a_training_twin_of_a_test_image_is_left_out_with_a_warning(caplog):
    groups = list(range(800))
    groups[700] = 17
    with caplog.at_level(logging.WARNING):
        sides, _ = make("official", groups=groups)
    assert 17 not in sides["train"] + sides["validation"]
    assert 700 in sides["test"]
    assert "train/17_D" in caplog.text


def test_a_mapping_names_the_sides():
    names, conditions, published = images(2, 2)
    split = {"train": ["test/0_A", "train/1_D"], "validation": [], "test": ["train/0_A"]}
    sides = split_images(names, conditions, published, list(range(16)), split, 0, 0.1)
    assert {side: [names[i] for i in members] for side, members in sides.items()} == {
        "train": ["train/1_D", "test/0_A"],
        "test": ["train/0_A"],
    }


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": ["train/0_A", "train/0_A"]}, "more than once.*train/0_A"),
        ({"train": ["train/0_A"], "test": ["train/0_A"]}, "more than once.*train/0_A"),
        ({"train": ["train/0_A"], "val": ["train/1_D"]}, "sides of a split are train, validation, test; got 'val'"),
        ({"train": []}, "names no image"),
        (["train/0_A"], "got list"),
        ("best", "'best'"),
    ],
)
def test_requests_that_cannot_be_are_refused(split, message):
    with pytest.raises(ValueError, match=message):
        check_split_request(split, 0.1)


def test_unknown_names_and_parted_twins_are_refused():
    with pytest.raises(ValueError, match="1 images of the split are not in the source, first test/999_A"):
        make({"train": ["train/0_A"], "test": ["test/999_A"]})
    groups = list(range(800))
    groups[4] = 0
    with pytest.raises(ValueError, match=r"twins.*train/0_A \(train\) and train/4_A \(test\)"):
        make({"train": ["train/0_A"], "test": ["train/4_A"]}, groups=groups)


def test_the_sample_split_holds_14_images_and_keeps_the_twins_together():
    assert len(SAMPLE_SPLIT["train"]) == 11
    assert len(SAMPLE_SPLIT["test"]) == 3
    assert len({name for names in SAMPLE_SPLIT.values() for name in names}) == 14
    assert {"test/22_A", "test/23_A"} <= set(SAMPLE_SPLIT["train"])
