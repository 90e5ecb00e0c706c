"""The U-Net of the race: any size, one run whether or not it was interrupted, records like those of the variants."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from reg4pru.study import unet
from reg4pru.study.definition import Study, read_study
from reg4pru.study.evaluation import read_images
from reg4pru.study.run_folder import RunFolder

RECIPE = {
    "config_overrides": {"image_size": 32, "patch_size": 8, "num_hidden_layers": 6, "pruning_layers": [1, 3]},
    "dataset": "synthetic",
    "working_size": 64,
    "synthetic_counts": [2, 0, 1],
    "random_crop": True,
}


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.setattr(unet, "_OWN", {**unet._OWN, "max_train_steps": 4, "per_device_train_batch_size": 2})
    monkeypatch.setattr(unet, "_STATE_STEPS", 2)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    content = {
        "recipe": str(tmp_path / "recipe.yaml"),
        "seeds": [0],
        "keep_rates": [1.0, 0.5],
        "variants": {"dense": {}},
    }
    content["evaluations"] = [{"selector": "random"}, {"name": "few tiles", "working_size": 64, "tile_overlap": 0}]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    return read_study(tmp_path / "small.yaml")


def weights(runs_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(runs_dir, "unet", 0).checkpoint / "model.safetensors")


@pytest.mark.parametrize("size", [32, 36, 50])
def test_logits_have_the_size_of_the_image(size):
    assert unet.UNet(width=4)(torch.randn(2, 3, size, size)).shape == (2, size, size)


def test_it_has_two_million_parameters():
    assert round(sum(parameter.numel() for parameter in unet.UNet().parameters()) / 1e6, 1) == 2.0


def test_pixels_that_do_not_count_change_no_loss():
    logits, labels = torch.randn(1, 8, 8), torch.randint(2, (1, 8, 8))
    labels[0, :2] = 255
    other = logits.clone()
    other[0, :2] = 7.0
    assert torch.equal(unet._loss(logits, labels), unet._loss(other, labels))


def test_an_interrupted_training_ends_as_one_that_was_not(study, tmp_path, monkeypatch):
    unet.complete_run(study, tmp_path / "runs", 0)
    calls, loss = [], unet._loss

    def stopped(*arguments):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(unet, "_loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            unet.complete_run(study, tmp_path / "again", 0)
    assert not RunFolder(tmp_path / "again", "unet", 0).is_trained
    assert unet.with_unet(study, tmp_path / "again") == study
    unet.complete_run(study, tmp_path / "again", 0)
    first, second = weights(tmp_path / "runs"), weights(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in first)

    folder = RunFolder(tmp_path / "runs", "unet", 0)
    assert list(folder.results()) == ["as trained", "few tiles"], "nothing is pruned, so that no selector matters"
    assert folder.results()["as trained"] != folder.results()["few tiles"], "tiles overlap less"
    assert read_images(folder).keys() == {("as trained", "1.0"), ("few tiles", "1.0")}
    assert list(unet.with_unet(study, tmp_path / "runs").variants) == ["dense", "unet"]
    monkeypatch.setattr(unet, "_train", None)
    monkeypatch.setattr(unet, "measure", None)
    unet.complete_run(study, tmp_path / "runs", 0)  # nothing is left to do
    monkeypatch.setitem(unet._OWN, "learning_rate", 1.0)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.002, is 1\.0"):
        unet.complete_run(study, tmp_path / "runs", 0)
