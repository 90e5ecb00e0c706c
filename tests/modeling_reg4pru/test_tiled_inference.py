"""Images of any size through the model: seams, stages, memory, and the same result as the steps one by one."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil

from modeling_reg4pru import (
    Reg4PruForSemanticSegmentation,
    Reg4PruImageProcessor,
    Reg4PruSemanticSegmenterOutput,
    predict_image,
    predict_images,
)
from modeling_reg4pru.tiled_inference import pruning_stages


class LocalModel(Reg4PruForSemanticSegmentation):
    """Each logit and each keep decision depends on the pixels right there, so that tiles must not change anything."""

    def forward(self, pixel_values, keep_rates="config", output_keep_masks=False, patch_offsets=None):
        brightness = pixel_values.mean(dim=1, keepdim=True)
        logit = F.avg_pool2d(brightness, 4)
        token = F.avg_pool2d(brightness, self.config.patch_size)[:, 0]
        return Reg4PruSemanticSegmenterOutput(
            logits=torch.cat((torch.zeros_like(logit), logit), dim=1),
            keep_masks=torch.stack([token > level for level in (-1.0, 0.0, 1.0)], dim=1),
            token_counts=torch.tensor([64]),
        )


class TileModel(LocalModel):
    """A prediction that ignores the pixels and grows from 0 to 1 over each tile: the worst case for seams."""

    def forward(self, pixel_values, keep_rates="config", output_keep_masks=False, patch_offsets=None):
        side = pixel_values.shape[-1] // 4
        ramp = torch.linspace(-4, 4, side).expand(pixel_values.shape[0], 1, side, side)
        return Reg4PruSemanticSegmenterOutput(
            logits=torch.cat((torch.zeros_like(ramp), ramp), dim=1), token_counts=torch.tensor([64])
        )


def make_processor(tile: int = 64, **fields) -> Reg4PruImageProcessor:
    return Reg4PruImageProcessor(size={"height": tile, "width": tile}, **fields)


def smooth_image(height: int, width: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("height", "width"), [(152, 168), (150, 170)])
@pytest.mark.parametrize("working_size", [None, 136])
def test_tiles_give_the_prediction_of_the_whole_image(tiny_config, height, width, working_size):
    model, image = LocalModel(tiny_config()).eval(), smooth_image(height, width)
    one_tile = make_processor(176, working_size=working_size)
    many_tiles = make_processor(64, working_size=working_size, tile_overlap=32)

    whole = predict_image(model, one_tile, image, output_stages=True)
    tiled = predict_image(model, many_tiles, image, output_stages=True)

    assert whole.num_tiles == 1 < tiled.num_tiles
    assert whole.probabilities.shape == tiled.probabilities.shape == (2, height, width)
    assert whole.probabilities[1].max() - whole.probabilities[1].min() > 0.5
    # Not to the last digit: logits of 4 x 4 pixels lie elsewhere, and have no neighbour at the edge of a tile.
    torch.testing.assert_close(tiled.probabilities, whole.probabilities, rtol=0, atol=0.02)
    assert whole.stages.shape == (height, width)
    assert set(whole.stages.unique().tolist()) == {0, 1, 2, 3}
    # Tokens are 8 pixels wide and lie elsewhere.
    assert (tiled.stages != whole.stages).float().mean() < 0.25
    assert (tiled.stages.int() - whole.stages.int()).abs().max() <= 1


def test_overlap_leaves_no_seams(tiny_config):
    model, image = TileModel(tiny_config()).eval(), smooth_image(192, 192)

    seams = [
        predict_image(model, make_processor(tile_overlap=overlap), image).probabilities.diff(dim=-1).abs().max()
        for overlap in (0, 32)
    ]

    assert seams[0] > 0.9
    assert seams[1] < 0.1


@pytest.mark.parametrize("size", [(64, 64), (20, 37), (100, 150)])
@pytest.mark.parametrize("num_labels", [2, 4])
@pytest.mark.parametrize("do_split_image", [True, False])
def test_equals_processor_model_and_post_processing(tiny_model, size, num_labels, do_split_image):
    model = tiny_model(num_labels=num_labels, num_queries=num_labels - 1)
    processor, image = make_processor(do_split_image=do_split_image), smooth_image(*size)

    prediction = predict_image(model, processor, image, batch_size=64)

    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    assert torch.equal(prediction.probabilities, processor.post_process_probabilities(outputs)[0])
    assert torch.equal(prediction.segmentation, processor.post_process_semantic_segmentation(outputs)[0])
    assert prediction.num_tokens == prediction.num_tiles * sum(int(count) for count in outputs.token_counts)


def test_batches_and_training_mode_change_nothing(tiny_model):
    model, processor = tiny_model(), make_processor()
    images = [smooth_image(100, 130, 0), smooth_image(30, 40, 1), smooth_image(64, 200, 2)]
    single = [predict_image(model, processor, one, 0.5, batch_size=1, output_stages=True) for one in images]
    model.train()
    model.layers[0].eval()  # frozen

    for batch_size in (3, 64):
        together = predict_images(model, processor, images, 0.5, batch_size=batch_size, output_stages=True)
        for found, wanted in zip(together, single, strict=True):
            torch.testing.assert_close(found.probabilities, wanted.probabilities, rtol=0, atol=1e-5)
            assert torch.equal(found.stages, wanted.stages)
            assert (found.num_tiles, found.num_tokens) == (wanted.num_tiles, wanted.num_tokens)
    assert model.training
    assert model.layers[1].training
    assert not model.layers[0].training


def test_keep_rate_one_equals_a_model_without_stages(tiny_model):
    model, processor, image = tiny_model(), make_processor(), smooth_image(100, 100)
    dense = tiny_model(pruning_layers=[], keep_rates=[])
    dense.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("selectors.")})

    unpruned = predict_image(model, processor, image, 1.0, output_stages=True)
    expected = predict_image(dense, processor, image, output_stages=True)
    pruned = predict_image(model, processor, image, 0.3)

    assert torch.equal(unpruned.probabilities, expected.probabilities)
    assert (unpruned.stages == 3).all()
    assert (expected.stages == 0).all()
    assert pruned.stages is None
    assert (pruned.probabilities - unpruned.probabilities).abs().max() > 1e-3
    assert pruned.num_tokens < unpruned.num_tokens


def test_pruning_stage_is_the_one_at_which_a_token_leaves_for_good():
    kept_after = {  # of three stages
        (0, 0, 0): 0,
        (1, 0, 0): 1,
        (1, 1, 0): 2,
        (1, 1, 1): 3,
        (0, 1, 0): 2,  # came back, as it may with the pool "all", and left again
        (0, 0, 1): 3,
    }
    keep_masks = torch.tensor(list(kept_after)).bool().T[:, None]

    assert pruning_stages(keep_masks).tolist() == [list(kept_after.values())]


def test_stage_counts_follow_the_keep_masks(tiny_model):
    model, processor, image = tiny_model(), make_processor(), smooth_image(64, 64)

    stages = predict_image(model, processor, image, 0.5, output_stages=True).stages

    with torch.no_grad():
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
        keep_masks = model(pixel_values, keep_rates=0.5, output_keep_masks=True).keep_masks
    pruned = [int((~kept).sum()) for kept in keep_masks[0]]
    assert [int((stages <= stage).sum()) // 64 for stage in range(3)] == pruned  # a token has 8 x 8 pixels


def test_memory_does_not_grow_with_images_or_tiles(tiny_config):
    """Of one float32 tile, 64 x 64 x 3, there may be a handful; of images, one and its maps."""
    model, processor = LocalModel(tiny_config()).eval(), make_processor(tile_overlap=0)
    image = np.zeros((64 * 16, 64 * 16, 3), np.uint8)
    tiles_in_bytes = 256 * 3 * 64 * 64 * 4

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in predict_images(model, processor, (image for _ in range(count)), batch_size=4):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)
    once = peak(1)
    assert once < tiles_in_bytes / 4  # NumPy's memory is traced: it holds the tiles, the frame and no more
    assert peak(5) < 1.2 * once


def test_bad_arguments_are_refused_at_once(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        predict_images(model, make_processor(), [], batch_size=0)
    with pytest.raises(ValueError, match=r"EomtImageProcessorPil.*use a Reg4PruImageProcessor"):
        predict_images(model, EomtImageProcessorPil(do_split_image=True), [])
    with pytest.raises(ValueError, match=r"1\.5"):
        predict_image(model, make_processor(), smooth_image(64, 64), 1.5)
    assert list(predict_images(model, make_processor(), [])) == []


def test_processor_fields_that_are_set_later_apply(tiny_model):
    """Scripts assign `size` as the plain dictionary that is in `preprocessor_config.json`."""
    image, processor, model = smooth_image(70, 90), make_processor(), tiny_model()
    processor.size = {"height": 32, "width": 32}
    processor.tile_overlap = 8
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    prediction = predict_image(model, processor, image, batch_size=len(outputs.logits))
    assert prediction.num_tiles == len(outputs.logits) == 12
    (wanted,) = processor.post_process_probabilities(outputs)
    assert torch.equal(prediction.probabilities, wanted)
    processor.tile_overlap = 32
    with pytest.raises(ValueError, match="`tile_overlap` is 32"):
        predict_image(model, processor, image)
    with pytest.raises(TypeError, match="working_siz"):
        processor.cut_image(image, working_siz=32)


def test_paths_as_str_and_path(tiny_model, tmp_path):
    image, processor, model = smooth_image(70, 90), make_processor(num_labels=2), tiny_model()
    path = tmp_path / "the left eye.png"
    image.save(path)
    wanted = predict_image(model, processor, image).probabilities
    for source in (path, str(path)):
        assert torch.equal(predict_image(model, processor, source).probabilities, wanted)
    mask = tmp_path / "mask.png"
    Image.fromarray((np.asarray(image)[..., 0] > 127).astype(np.uint8) * 255).save(mask)
    by_path, by_name = (
        processor(kind(path), segmentation_maps=kind(mask), return_tensors="pt") for kind in (Path, str)
    )
    assert torch.equal(by_path["pixel_values"], by_name["pixel_values"])
    assert torch.equal(by_path["labels"], by_name["labels"])
    assert set(by_path["labels"].unique().tolist()) >= {0, 1}
    with pytest.raises(ValueError, match=r"There is no image at .*no such file\.png"):
        predict_image(model, processor, tmp_path / "no such file.png")


def test_bfloat16_stays_close(tiny_model):
    image, processor = smooth_image(64, 64), make_processor()
    whole = predict_image(tiny_model(), processor, image, 1.0).probabilities
    half = predict_image(tiny_model().to(torch.bfloat16), processor, image, 1.0).probabilities
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.1
