"""Levels above calibration: all weights learn, and a run that was killed ends in the same ones."""

import json

import pytest
import torch

from datasets_fives import load_segmentation
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.pruning_adapter import add_pruning
from reg4pru.common.data_overlap import read_training_images
from reg4pru.prune import main
from reg4pru.pruning import distillation, labelled_training, levels
from reg4pru.training.trainer import Reg4PruTrainer

from .test_prune import same_weights


@torch.no_grad()
def test_distillation_goes_on_after_a_kill_and_leaves_the_base_alone(flags, tmp_path, monkeypatch, pixel_values):
    distill = ["--level", "distill", "--max_steps", "6"]
    monkeypatch.setattr(distillation, "SAVE_EVERY", 2)
    main([*flags[:-5], "--output_dir", str(tmp_path / "whole"), *flags[-3:], *distill])
    step, steps = distillation._step, []

    def stopping(*arguments):
        steps.append(len(steps))
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(distillation, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        main([*flags, *distill])
    main([*flags, *distill])
    assert len(steps) == 4 + 4  # from the state of step 2
    assert same_weights(tmp_path / "whole", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "prune_results.json").read_text(encoding="utf-8"))
    assert list(results["agreement"]) == ["untrained", "calibrated", "distilled"]
    assert not (tmp_path / "out" / "adapter").exists()
    model = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    base = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "eomt").eval()
    assert not torch.equal(model(pixel_values, keep_rates=None).logits, base(pixel_values, keep_rates=None).logits)


@torch.no_grad()
def test_distillation_brings_the_pruned_prediction_nearer_to_the_dense_one(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setattr(distillation, "LEARNING_RATE", 1e-3)
    base = tiny_model(selector="learned_query", train_pruning="none")
    model = add_pruning(base, **levels.FITTED)
    tiles = torch.randn(8, 3, 64, 64).numpy()
    losses = [distillation._step(model, base, torch.from_numpy(tiles), 0.4).item()]
    distillation.distill(model, base, tiles, 60, 0, tmp_path / "state.pt")
    losses.append(distillation._step(model, base, torch.from_numpy(tiles), 0.4).item())
    assert losses[1] < 0.8 * losses[0]


@torch.no_grad()
def test_distillation_leaves_selectors_alone(tiny_model, tmp_path):
    base = tiny_model(selector="learned_query", train_pruning="none")
    model = add_pruning(base, **levels.FITTED)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    distillation.distill(model, base, torch.randn(8, 3, 64, 64).numpy(), 2, 0, tmp_path / "state.pt")
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert not [name for name in changed if name.startswith("selectors.")]
    assert {name.split(".")[0] for name in changed} >= {"embeddings", "layers", "layernorm", "query", "mask_head"}


@pytest.mark.parametrize("layer", [4, 5])
def test_states_are_compared_where_all_tokens_are_together_again(tiny_model, layer):
    """Also where nothing but the heads comes after the last layer."""
    fields = {"selector": "random", "train_pruning": "none", "pruning_layers": [1, 2]}
    model = tiny_model(**fields, reactivation_layer=layer)
    with torch.no_grad(), distillation._reactivated(model) as found:
        counts = model(torch.randn(2, 3, 64, 64), keep_rates=0.4).token_counts
    assert counts[layer] < 64 <= found[-1].shape[1]


def test_with_labels_the_default_recipe_trains_from_there(flags, labelled, tmp_path, monkeypatch):
    flags = [*flags[:2], *flags[4:], "--dataset", str(labelled), "--level", "labels", "--max_steps", "4"]
    monkeypatch.setattr(labelled_training, "SAVE_EVERY", 2)
    whole = ["--output_dir", str(tmp_path / "whole")]
    main([*flags, *whole, "--report_side", "test"])
    step, steps = Reg4PruTrainer.training_step, []

    def stopping(*arguments, **kwargs):
        steps.append(len(steps))
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(*arguments, **kwargs)

    monkeypatch.setattr(Reg4PruTrainer, "training_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        main([*flags, "--report_side", "test"])
    main([*flags, "--report_side", "test"])
    assert len(steps) == 4 + 2  # from the state of step 2
    assert same_weights(tmp_path / "whole", tmp_path / "out")

    results = json.loads((tmp_path / "out" / "prune_results.json").read_text(encoding="utf-8"))
    assert list(results["agreement"]) == ["untrained", "calibrated", "labelled"]
    assert list(results["agreement"]["labelled"]) == ["1.0", "0.7", "0.4"]
    assert set(results["seconds"]) == set(results["processor_seconds"]) == {"calibrated", "labelled"}
    assert results["num_images"] == {"fitted_on": len(load_segmentation(labelled)["train"]), "reported_on": 3}
    assert read_training_images(str(tmp_path / "out")) is None  # nobody knows those of the base
    assert not (tmp_path / "out" / "adapter").exists()
