"""Which samples a run sees: an order that follows from the seed, samples that follow from their address, tiles."""

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import set_seed

from datasets_fives import load_fives
from datasets_fives.training_samples import ORDER as ORDER_SEED
from datasets_fives.training_samples import SAMPLE, STEP, ResumableSampler, SeededSamples, cut_into_tiles, derived_seed
from datasets_fives.transforms import TrainTransform
from reg4pru.training.arguments import DataArguments
from reg4pru.training.setup import load_data

ORDER = {"num_rows": 7, "visits": 3, "total": 50, "seed": 5}  # 21 samples an epoch


@pytest.mark.parametrize("start", range(51))
def test_a_resumed_order_is_the_rest_of_the_order(start):
    rest = ResumableSampler(**ORDER, start=start)
    assert list(rest) == list(ResumableSampler(**ORDER, start=0))[start:]
    assert len(rest) == 50 - start


def test_an_epoch_visits_every_row_as_often_as_wanted():
    addresses = list(ResumableSampler(**ORDER, start=0))
    for epoch in range(2):
        of_epoch = addresses[21 * epoch : 21 * (epoch + 1)]
        assert Counter(row for _, row in of_epoch) == dict.fromkeys(range(7), 3)
        # Every visit counts as an epoch of its own to the augmentation: no sample comes twice.
        assert {visit for visit, _ in of_epoch} == set(range(3 * epoch, 3 * epoch + 3))
    assert len(set(addresses)) == 50


def test_the_order_differs_by_epoch_and_seed_and_not_by_the_global_generator():
    rows = [row for _, row in ResumableSampler(**ORDER, start=0)]
    assert rows[:21] != rows[21:42]
    assert rows != [row for _, row in ResumableSampler(**{**ORDER, "seed": 6}, start=0)]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert rows == [row for _, row in ResumableSampler(**ORDER, start=0)]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads 3 + 1 + 1 synthetic images of 64 pixels for a model with an input of 32."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def load_sides(**more):
        return load_data(DataArguments(working_size=64, synthetic_counts=[3, 1, 1], **more), seed=0)

    return load_sides


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in ("pixel_values", "labels"))


def test_a_sample_follows_from_its_address_and_the_seed_alone(load):
    rows = load()["train"]
    samples, other_seed = (SeededSamples(rows, TrainTransform(32, crop_size=32), seed) for seed in (0, 1))
    wanted = samples[2, 1]
    set_seed(123)
    before = torch.get_rng_state()
    _ = samples[0, 0]
    assert equal(samples[2, 1], wanted)
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(samples[3, 1], wanted)
    assert not equal(samples[2, 0], wanted)
    assert not equal(other_seed[2, 1], wanted)


def sizes(sides):
    return {side: (len(rows), rows[0]["image"].size) for side, rows in sides.items()}


def test_images_stay_whole_unless_the_recipe_wants_tiles(load):
    assert sizes(load()) == {"train": (3, (64, 64)), "validation": (1, (64, 64)), "test": (1, (64, 64))}


def test_tiles_are_cut_for_training_alone(load):
    """Whoever validates or tests cuts as the image processor does."""
    whole = {"train": (3, (64, 64)), "validation": (1, (64, 64)), "test": (1, (64, 64))}
    assert sizes(load(tile_size=32)) == {**whole, "train": (12, (32, 32))}
    assert sizes(load(random_crop=True)) == whole


def test_a_split_can_be_a_file_and_must_leave_something_to_train_on(load, tmp_path):
    names = [name for rows in load().values() for name in rows["name"]]
    split = tmp_path / "split.yaml"
    split.write_text(f"train: [{', '.join(names[1:])}]\ntest: [{names[0]}]\n")
    sides = load(split=str(split))
    assert {side: list(rows["name"]) for side, rows in sides.items()} == {"train": names[1:], "test": names[:1]}


def test_derived_seeds_are_those_of_numpy_and_tell_purposes_apart():
    # Written down: another interpreter or version must give the same runs.
    known = {(0, STEP, 0): 1961512366, (0, STEP, 1): 1663335698, (7, ORDER_SEED, 2): 2032283795}
    assert {key: derived_seed(*key) for key in known} == known
    keys = ((SAMPLE, 1), (SAMPLE, 1, 0), (ORDER_SEED, 1), (STEP, 1))
    assert len({derived_seed(seed, *key) for seed in range(3) for key in keys}) == 12


@pytest.fixture
def images(tmp_path):
    return load_fives("synthetic", working_size=64, synthetic_counts=(3, 0, 1), cache_dir=tmp_path)["train"]


def test_quadrants_put_together_are_the_image(images):
    tiles = cut_into_tiles(images, 32)
    assert len(tiles) == 12
    assert tiles.features == images.features
    assert tiles["name"][4:8] == ["synthetic/2_D#0-0", "synthetic/2_D#0-1", "synthetic/2_D#1-0", "synthetic/2_D#1-1"]
    assert tiles["condition"][:] == [0] * 4 + [1] * 4 + [2] * 4
    for key in ("image", "mask"):
        a, b, c, d = (np.asarray(tiles[i][key]) for i in range(4, 8))
        whole = np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)])
        np.testing.assert_array_equal(whole, np.asarray(images[1][key]))


def test_tiles_that_do_not_fit_are_shifted_inwards(images):
    tiles = cut_into_tiles(images, 40, stride=20)
    assert len(tiles) == 3 * 9
    np.testing.assert_array_equal(np.asarray(tiles[8]["mask"]), np.asarray(images[0]["mask"])[24:, 24:])
    np.testing.assert_array_equal(np.asarray(tiles[1]["image"]), np.asarray(images[0]["image"])[:40, 20:60])


def test_tiles_reach_beyond_images_that_are_smaller(images):
    (tile,) = cut_into_tiles(images.select([0]), 70)
    image, mask = (np.asarray(images[0][key]) for key in ("image", "mask"))
    np.testing.assert_array_equal(np.asarray(tile["image"]), np.pad(image, ((0, 6), (0, 6), (0, 0)), mode="reflect"))
    np.testing.assert_array_equal(np.asarray(tile["mask"]), np.pad(mask, (0, 6), constant_values=255))


def test_tiles_of_wrong_size_are_refused(images):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cut_into_tiles(images, 0)
    for stride in (0, 33):
        with pytest.raises(ValueError, match="may share 0 to 31 pixels"):
            cut_into_tiles(images, 32, stride=stride)
