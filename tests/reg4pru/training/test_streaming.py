"""Training samples from a stream: deterministic, seeded by position, resumable anywhere."""

import pytest
import torch

from datasets_fives.training_samples import StreamedSamples, count_rows
from datasets_fives.transforms import TrainTransform
from reg4pru.training.arguments import DataArguments
from reg4pru.training.command_line import parse_arguments
from reg4pru.training.setup import load_data


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    arguments = DataArguments(working_size=48, synthetic_counts=[20, 2, 2], streaming=True)
    return load_data(arguments, seed=0)


def samples(data, **more):
    return list(StreamedSamples(data["train"], TrainTransform(48), **{"total": 50, "start": 0, "seed": 3, **more}))


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in ("pixel_values", "labels")
    )


@pytest.mark.parametrize("start", [0, 7, 20, 33, 50])
def test_a_resumed_stream_goes_on_where_it_was(data, start):
    assert equal(samples(data, start=start), samples(data)[start:])


def test_order_follows_from_the_seed_and_differs_by_epoch(data):
    one = samples(data)
    assert equal(one, samples(data))
    assert not equal(one, samples(data, seed=4))
    # No two epochs alike, and augmentation differs even where an image comes at the same place.
    assert not equal(one[:20], one[20:40])


def test_every_image_is_seen_once_an_epoch(data):
    seen = []

    def names(batch):
        seen.append(batch["mask"][0].tobytes())
        return {"pixel_values": [torch.zeros(1)], "labels": [torch.zeros(1)]}

    list(StreamedSamples(data["train"], names, total=40, start=0, seed=0))
    assert len(set(seen[:20])) == len(set(seen[20:])) == 20
    assert seen[:20] != seen[20:]
    assert sorted(seen[:20]) == sorted(seen[20:])


def test_validation_is_held_in_memory_and_counts_are_known(data):
    assert count_rows(data["train"]) == 20
    assert count_rows(data["validation"]) == len(data["validation"]) == 2
    assert data["validation"][0]["mask"].mode == "L"


def test_a_stream_that_ends_early_is_noticed(data):
    short = StreamedSamples(data["train"].take(15), TrainTransform(48), total=50, start=0, seed=0)
    with pytest.raises(ValueError, match="ended after 15 of 20"):
        list(short)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--streaming", "--tile_size", "64"], "give --random_crop with --streaming"),
        (["--streaming", "--dataloader_num_workers", "2"], "one stream has one reader"),
        (["--push_to_hub"], "--push_to_hub needs --hub_model_id"),
    ],
)
def test_bad_flags_are_refused(capsys, flags, message):
    with pytest.raises(SystemExit):
        parse_arguments(["--output_dir", "out", *flags])
    assert message in capsys.readouterr().err
