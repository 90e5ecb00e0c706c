"""From logits back to maps of the images' own size."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil
from transformers.utils import ModelOutput

from modeling_reg4pru import Reg4PruImageProcessor, Reg4PruSemanticSegmenterOutput


def make_processor(tile: int = 64, **fields) -> Reg4PruImageProcessor:
    return Reg4PruImageProcessor(size={"height": tile, "width": tile}, **fields)


def make_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def outputs_of(labels: torch.Tensor, patch_offsets: torch.Tensor) -> Reg4PruSemanticSegmenterOutput:
    """As from a model that knows the labels."""
    mask = labels[:, None].float() * 20 - 10
    return Reg4PruSemanticSegmenterOutput(
        logits=torch.cat((torch.zeros_like(mask), mask), dim=1), patch_offsets=patch_offsets
    )


def test_maps_have_the_target_sizes():
    processor = make_processor(tile_overlap=0)
    offsets = processor([make_image(64, 128), make_image(32, 64)], return_tensors="pt")["patch_offsets"]
    labels = torch.zeros(3, 16, 16)
    labels[1] = 1
    outputs = outputs_of(labels, offsets)
    first, second = processor.post_process_semantic_segmentation(outputs, [(100, 60), torch.tensor([4, 8])])
    assert first.shape == (100, 60)
    assert first[:, 30:].all()
    assert not first[:, :30].any()
    assert second.shape == (4, 8)
    with pytest.raises(ValueError, match=re.escape("`target_sizes` has 1 entries for 2 images")):
        processor.post_process_semantic_segmentation(outputs, [(4, 4)])
    with pytest.raises(ValueError, match="do not cover"):
        processor.post_process_semantic_segmentation(outputs_of(labels[:1], offsets[1:2]))


def test_without_offsets_every_input_is_an_image_of_one_tile():
    processor = make_processor(working_size=64)
    labels = torch.zeros(2, 16, 16)
    labels[:, :8] = 1  # the upper half of the tile, which is all of an image of half its height
    outputs = outputs_of(labels, None)
    small = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(small), labels.long())
    wide, square = processor.post_process_semantic_segmentation(outputs, [(50, 100), (100, 100)])
    assert wide.shape == (50, 100)
    assert wide[:48].all()
    assert square[:48].all()
    assert not square[52:].any()
    with pytest.raises(ValueError, match="`target_sizes` has 1 entries for 2 images"):
        processor.post_process_semantic_segmentation(outputs, [(4, 4)])
    with pytest.raises(ValueError, match=r"100x100 pixels does not fit a tile .* `patch_offsets`"):
        make_processor().post_process_semantic_segmentation(outputs, [(100, 100)] * 2)


def test_what_pipelines_of_transformers_hand_on_lacks_what_is_none():
    """With the model itself, not its name, `pipeline` takes theirs, which copies the output into one of no class."""
    labels = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)).round()
    outputs, processor = outputs_of(labels, None), make_processor()
    (wanted,) = processor.post_process_semantic_segmentation(outputs, [(40, 64)])
    (found,) = processor.post_process_semantic_segmentation(ModelOutput(dict(outputs.items())), [(40, 64)])
    assert torch.equal(found, wanted)
    assert 0 < found.float().mean() < 1


def test_many_queries_are_combined_as_in_eomt():
    """From the same output the same scores and maps, at the size of the tile and at another one."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(2, 7, 16, 16, generator=generator) * 4
    classes = torch.randn(2, 7, 5, generator=generator) * 2
    scores = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    outputs = Reg4PruSemanticSegmenterOutput(
        logits=scores.log(), masks_queries_logits=masks, class_queries_logits=classes
    )
    theirs = EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64})
    for size in ((64, 64), (150, 150), (31, 31)):
        expected = theirs.post_process_semantic_segmentation(outputs, [size] * 2, return_segmentation_scores=True)
        processor = make_processor(working_size=64)
        found = processor.post_process_probabilities(outputs, [size] * 2)
        maps = processor.post_process_semantic_segmentation(outputs, [size] * 2)
        for one, score, wanted in zip(maps, found, expected, strict=True):
            torch.testing.assert_close(score, wanted.segmentation_scores, rtol=0, atol=1e-6)
            assert torch.equal(one, wanted.segmentation)
    thinner = F.interpolate(outputs.logits, size=(64, 64), mode="bilinear").argmax(1)  # of interpolated scores
    assert not torch.equal(thinner, torch.stack(processor.post_process_semantic_segmentation(outputs, [(64, 64)] * 2)))
