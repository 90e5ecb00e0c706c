"""Prediction at full resolution: tiles, padding, and the stages at which tokens were pruned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor, Reg4PruSemanticSegmenterOutput
from reg4pru.inference import loading, prediction


class LocalModel(Reg4PruForSemanticSegmentation):
    """Each logit and each keep decision depends on the pixels right there, so that tiles must not change anything."""

    def forward(self, pixel_values, keep_rates=None, output_keep_masks=False):
        brightness = pixel_values.mean(dim=1, keepdim=True)
        logit = F.avg_pool2d(brightness, 4)
        token = F.avg_pool2d(brightness, self.config.patch_size)[:, 0]
        keep_masks = torch.stack([token > level for level in (-1.0, 0.0, 1.0)], dim=1)
        return Reg4PruSemanticSegmenterOutput(
            logits=torch.cat((torch.zeros_like(logit), logit), dim=1), keep_masks=keep_masks
        )


class TileModel(LocalModel):
    """A prediction that ignores the pixels and grows from 0 to 1 over each tile: the worst case for seams."""

    def forward(self, pixel_values, keep_rates=None, output_keep_masks=False):
        side = pixel_values.shape[-1] // 4
        ramp = torch.linspace(-4, 4, side).expand(pixel_values.shape[0], 1, side, side)
        return Reg4PruSemanticSegmenterOutput(logits=torch.cat((torch.zeros_like(ramp), ramp), dim=1))


@pytest.fixture
def processor() -> Reg4PruImageProcessor:
    return Reg4PruImageProcessor(size={"height": 64, "width": 64})


def smooth_photograph(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("height", "width"), [(152, 168), (150, 170)])
def test_tiles_give_what_the_whole_photograph_gives(tiny_config, processor, height, width):
    model, photograph = LocalModel(tiny_config()).eval(), smooth_photograph(height, width)

    whole, whole_stages = prediction.predict_with_stages(model, processor, photograph, tile_size=176)
    tiled, tiled_stages = prediction.predict_with_stages(model, processor, photograph, tile_size=64, overlap=32)

    assert whole.shape == tiled.shape == (height, width)
    assert whole.dtype == tiled.dtype == np.float32
    assert whole.max() - whole.min() > 0.5
    # Not to the last digit: at the edge of a tile the upsampling of the logits has no neighbour to lean on.
    np.testing.assert_allclose(tiled, whole, atol=2e-3)
    assert whole_stages.shape == (-(-height // 8), -(-width // 8))
    assert set(np.unique(whole_stages)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(tiled_stages, whole_stages)


def test_overlap_leaves_no_seams(tiny_config, processor):
    model, photograph = TileModel(tiny_config()).eval(), smooth_photograph(160, 160)

    seams = [
        np.abs(np.diff(prediction.predict_probability(model, processor, photograph, overlap=overlap), axis=1)).max()
        for overlap in (0, 32)
    ]

    assert seams[0] > 0.9
    assert seams[1] < 0.1


def test_whole_model_on_one_tile_is_the_model(tiny_model, processor):
    model, photograph = tiny_model(), smooth_photograph(64, 64)
    inputs = processor(images=photograph, return_tensors="pt")

    probability = prediction.predict_probability(model, processor, photograph, 0.5)

    with torch.no_grad():
        logits = model(**inputs, keep_rates=0.5).logits
    expected = F.interpolate(logits, size=(64, 64), mode="bilinear").softmax(1)[0, 1]
    np.testing.assert_allclose(probability, expected.numpy(), atol=1e-6)


def test_batch_size_and_training_mode_change_nothing(tiny_model, processor):
    model, photograph = tiny_model(), smooth_photograph(100, 130)
    one, stages = prediction.predict_with_stages(model, processor, photograph, 0.5, batch_size=1)

    model.train()
    many, same_stages = prediction.predict_with_stages(model, processor, photograph, 0.5, batch_size=16)

    assert model.training
    np.testing.assert_allclose(many, one, atol=1e-5)
    np.testing.assert_array_equal(same_stages, stages)


def test_photograph_smaller_than_a_tile(tiny_model, processor):
    probability, stages = prediction.predict_with_stages(tiny_model(), processor, smooth_photograph(20, 37), 0.5)

    assert probability.shape == (20, 37)
    assert stages.shape == (3, 5)


def test_unpruned_is_dense_and_prunes_nothing(tiny_model, processor):
    model, photograph = tiny_model(), smooth_photograph(100, 100)
    dense = tiny_model(pruning_layers=[], keep_rates=[])
    dense.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("selectors.")})

    unpruned, stages = prediction.predict_with_stages(model, processor, photograph, 1.0)
    expected, dense_stages = prediction.predict_with_stages(dense, processor, photograph)
    pruned = prediction.predict_probability(model, processor, photograph, 0.3)

    np.testing.assert_array_equal(unpruned, expected)
    assert (stages == 3).all()
    assert (dense_stages == 0).all()
    assert np.abs(pruned - unpruned).max() > 1e-3


def test_pruning_stage_is_the_last_departure():
    kept_after = {  # of three stages
        (0, 0, 0): 0,
        (1, 0, 0): 1,
        (1, 1, 0): 2,
        (1, 1, 1): 3,
        (0, 1, 0): 2,  # came back, as it may with the pool "all", and left again
        (0, 0, 1): 3,
    }
    keep_masks = torch.tensor(list(kept_after)).bool().T[:, None]

    assert prediction.pruning_stages(keep_masks).tolist() == [list(kept_after.values())]


def test_stage_counts_follow_the_keep_rates(tiny_model, processor):
    model = tiny_model()

    _, stages = prediction.predict_with_stages(model, processor, smooth_photograph(64, 64), 0.5)

    # 5 prefix tokens and 32, 16, 8 of 64 patches, rounded to multiples of 8: 35, 19 and 11 (tokens less prefix) stay
    expected = [64 - (kept - 5) for kept in (40, 24, 16)]
    assert [int((stages <= stage).sum()) for stage in range(3)] == expected


def test_random_selection_follows_the_seed(tiny_model, processor):
    model, photograph = tiny_model(), smooth_photograph(64, 64)
    _, learned = prediction.predict_with_stages(model, processor, photograph, 0.5)
    loading.select_at_random(model)

    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(prediction.predict_with_stages(model, processor, photograph, 0.5)[1])

    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert (drawn[0] != learned).any()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"tile_size": 60}, "60"),
        ({"overlap": 12}, "overlap is 12"),
        ({"overlap": 64}, "0 to 63"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"keep_rates": 1.5}, "1.5"),
    ],
)
def test_sizes_that_do_not_fit(tiny_model, processor, keywords, message):
    with pytest.raises(ValueError, match=message):
        prediction.predict_probability(tiny_model(), processor, smooth_photograph(64, 64), **keywords)


def test_model_with_more_classes_is_refused(tiny_model, processor, save_checkpoint):
    model = tiny_model(num_labels=5, num_queries=4)

    with pytest.raises(ValueError, match="5 classes"):
        prediction.predict_probability(model, processor, smooth_photograph(64, 64))
    with pytest.raises(ValueError, match="5 classes"):
        loading.load_checkpoint(str(save_checkpoint(model)))


def test_incomplete_checkpoint_is_refused(tiny_model, save_checkpoint):
    model = tiny_model()
    folder = save_checkpoint(model)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("mask_head.")}
    model.save_pretrained(folder, state_dict=weights)

    with pytest.raises(ValueError, match=r"lacks \d+ weights.* mask_head"):
        loading.load_checkpoint(str(folder))


def test_damaged_checkpoint_is_refused(tiny_model, save_checkpoint):
    weights = save_checkpoint(tiny_model()) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])

    with pytest.raises(ValueError, match=f"could be loaded from '{weights.parent}'"):
        loading.load_checkpoint(str(weights.parent))


@pytest.mark.parametrize(("keywords", "message"), [({"device": "nowhere"}, "nowhere"), ({"dtype": "int8"}, "int8")])
def test_wrong_device_or_type(tiny_model, save_checkpoint, keywords, message):
    with pytest.raises(ValueError, match=message):
        loading.load_checkpoint(str(save_checkpoint(tiny_model())), **keywords)


def test_bfloat16_stays_close(tiny_model, processor, save_checkpoint):
    model = tiny_model()
    half, _ = loading.load_checkpoint(str(save_checkpoint(model)), dtype="bfloat16")
    photograph = smooth_photograph(64, 64)

    difference = prediction.predict_probability(half, processor, photograph, 1.0) - prediction.predict_probability(
        model, processor, photograph, 1.0
    )

    assert half.dtype == torch.bfloat16
    assert 0 < np.abs(difference).max() < 0.1
