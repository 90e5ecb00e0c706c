"""What is fitted to the states of a frozen model."""

import numpy as np
import pytest
import torch

from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.divergence import log_divergence
from modeling_reg4pru.pruning_adapter import add_pruning
from reg4pru.pruning import calibration
from reg4pru.pruning.calibration import fit_correction, fit_selector, log_divergences
from reg4pru.pruning.levels import FITTED
from reg4pru.pruning.tile_states import SampledTiles, TileStates


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((10, 3, 64, 64), dtype=np.float32)


@pytest.fixture
def model(tiny_model):
    return add_pruning(tiny_model(selector="learned_query", train_pruning="none"), **FITTED)


@pytest.fixture
def states(model, tiles, tmp_path) -> TileStates:
    states = TileStates(tmp_path / "states", model, len(tiles))
    states.compute(tiles)
    return states


def test_states_are_those_of_the_dense_pass(model, states, tiles):
    with torch.inference_mode():
        hidden = model(torch.from_numpy(tiles), keep_rates=None, output_hidden_states=True).hidden_states
    for stage, layer in enumerate(model.config.pruning_layers):
        torch.testing.assert_close(torch.from_numpy(states.stages[stage]), hidden[layer + 1][:, -64:])
    after = hidden[model.config.reactivation_layer + 1]
    torch.testing.assert_close(torch.from_numpy(states.reactivated), after[:, -64:])
    torch.testing.assert_close(torch.from_numpy(states.queries), hidden[6][:, : model.config.num_queries])


def test_interrupted_states_go_on_where_they_stopped(model, states, tiles, tmp_path, monkeypatch):
    unfinished, run = TileStates(tmp_path / "unfinished", model, len(tiles)), TileStates._run
    ran = []

    def interrupted(self, first, batch):
        if first == 4 and "interrupted" not in ran:
            ran.append("interrupted")
            raise KeyboardInterrupt
        ran.append(first)
        run(self, first, batch)

    monkeypatch.setattr(TileStates, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unfinished.compute(tiles)
    again = TileStates(tmp_path / "unfinished", model, len(tiles))
    again.compute(tiles)
    assert ran == [0, "interrupted", 4, 8]
    for name, wanted in states.files.items():
        assert np.array_equal(again.files[name], wanted)


@pytest.fixture
def more_steps(monkeypatch):
    monkeypatch.setattr(calibration, "CORRECTION_STEPS", 300)
    monkeypatch.setattr(calibration, "SELECTOR_STEPS", 600)


@pytest.mark.usefixtures("more_steps")
def test_a_fitted_correction_guesses_better_than_the_last_state(model, states):
    def error() -> float:
        with torch.inference_mode():
            before, after = (torch.from_numpy(of) for of in (states.stages[0], states.reactivated))
            return (before + model.drift_corrections[0](before) - after).square().mean().item()

    stale = error()
    left = fit_correction(model, states, 0, seed=0)
    assert error() < 0.8 * stale
    variance = states.reactivated.reshape(-1, 32).var(axis=0).mean()
    assert left == pytest.approx(error() / variance, rel=0.3)


@pytest.mark.usefixtures("more_steps")
def test_a_fitted_selector_ranks_tokens_by_their_divergence(model, states):
    fit_correction(model, states, 0, seed=0)
    wanted = log_divergences(model, states, 0)
    with torch.inference_mode():
        before, after, queries = (
            torch.from_numpy(of[3:5]) for of in (states.stages[0], states.reactivated, states.queries)
        )
        guess = before + model.drift_corrections[0](before)
        torch.testing.assert_close(
            torch.from_numpy(wanted[3:5]), log_divergence(model, guess, after, queries, (8, 8)), atol=1e-4, rtol=1e-4
        )
    fit_selector(model, states, 0, seed=0)
    with torch.inference_mode():
        scores = model.selectors[0](torch.from_numpy(states.stages[0])).numpy()
    assert np.corrcoef(scores.ravel(), wanted.ravel())[0, 1] > 0.3


def test_a_seed_gives_the_same_fit(model, states):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    errors = [fit_correction(model, states, 1, seed=3)]
    fitted = model.drift_corrections[1].fc2.weight.clone()
    model.load_state_dict(before)
    errors.append(fit_correction(model, states, 1, seed=3))
    assert errors[0] == errors[1]
    assert torch.equal(model.drift_corrections[1].fc2.weight, fitted)


def test_tiles_are_drawn_from_all_images_as_the_processor_cuts_them():
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=96, num_labels=2)
    images = [np.full((64, 96, 3), 10 * number, np.uint8) for number in range(8)]
    sizes = [(96, 64)] * 8
    all_of_them = SampledTiles(images, sizes, processor, 100, seed=0)
    assert len(all_of_them) == 8 * len(processor.cut_image(images[0]))
    drawn = SampledTiles(images, sizes, processor, 9, seed=0)
    assert len(set(drawn.places)) == 9
    for (image, tile), pixels in zip(drawn.places, drawn, strict=True):
        assert np.array_equal(pixels, processor.cut_image(images[image])[tile])
