"""The divergence of a dropped token, and the selector that guesses its logarithm."""

import pytest
import torch

from modeling_reg4pru.divergence import SMALLEST, log_divergence
from modeling_reg4pru.segmentation_head import semantic_logits


@pytest.mark.parametrize("classes", [{}, {"num_labels": 4, "num_queries": 6}], ids=["binary", "four classes"])
@torch.no_grad()
def test_divergence_is_the_kl_of_the_predictions_at_the_pixels_of_a_patch(tiny_model, classes):
    model = tiny_model(**classes)
    guessed, dense = torch.randn(2, 3, 64, 32).unbind()
    queries = torch.randn(3, model.config.num_queries, 32)
    found = log_divergence(model, guessed, dense, queries, (8, 8))

    student, teacher = (
        semantic_logits(*model.predict(queries, states, (8, 8))).softmax(1) for states in (guessed, dense)
    )
    pixels = (teacher * (teacher / student).log()).sum(1)
    side = pixels.shape[-1] // 8
    for image in range(3):
        for patch in (0, 9, 63):
            top, left = side * (patch // 8), side * (patch % 8)
            wanted = (pixels[image, top : top + side, left : left + side].mean() + SMALLEST).log()
            assert found[image, patch].item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-3)


def test_a_token_that_comes_back_as_it_should_be_diverges_by_nothing(tiny_model):
    model, states = tiny_model(), torch.randn(1, 64, 32)
    found = log_divergence(model, states, states, torch.randn(1, 1, 32), (8, 8))
    torch.testing.assert_close(found, torch.full((1, 64), SMALLEST).log())


def test_training_refuses_a_selector_that_it_does_not_reach(tiny_model, pixel_values, labels):
    model = tiny_model(selector="divergence", train_pruning="hard").train()
    with pytest.raises(ValueError, match="reg4pru prune"):
        model(pixel_values, labels=labels)
