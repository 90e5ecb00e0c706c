"""Masks of pixels that show nothing, from the image to the prediction; the tokens themselves in test_image_budget."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil

from modeling_reg4pru import Reg4PruImageProcessor, predict_image
from modeling_reg4pru.blend_shares import visible_patches
from modeling_reg4pru.tiled_inference import predict_images

HEIGHT, WIDTH = 150, 200


@pytest.fixture
def processor() -> Reg4PruImageProcessor:
    return Reg4PruImageProcessor(size={"height": 64, "width": 64}, num_labels=2, working_size=100)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return (rows - 75) ** 2 + (columns - 90) ** 2 < 60**2


def test_a_patch_is_visible_where_one_of_its_pixels_is():
    pixel_mask = torch.zeros(2, 6, 9)
    pixel_mask[0, 2, 5] = pixel_mask[1, 3, 0] = pixel_mask[1, 5, 8] = 1
    seen = [[False, True, False], [False] * 3], [[False] * 3, [True, False, True]]
    assert visible_patches(pixel_mask, 3).tolist() == list(seen)


def test_tiles_of_the_mask_are_those_of_the_image(processor, image, mask):
    batch = processor([image, image[:40]], pixel_masks=[mask, np.ones((40, WIDTH), bool)], return_tensors="pt")
    small = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((100, 75), Image.Resampling.BOX)) > 127
    for tile, (index, top, left, *_) in zip(batch["pixel_mask"], batch["patch_offsets"].tolist(), strict=True):
        whole = small if index == 0 else np.ones((20, 100), bool)
        piece = whole[top : top + 64, left : left + 64]
        np.testing.assert_array_equal(tile[: piece.shape[0], : piece.shape[1]], piece)
        assert not tile[piece.shape[0] :].any(), "the mirror continuation shows nothing"
    assert "pixel_mask" not in processor(image)


def test_masks_of_any_kind(processor, image, mask, tmp_path):
    wanted = processor.cut_image(image, mask).mask
    as_image = Image.fromarray(mask.astype(np.uint8) * 255)
    as_image.save(tmp_path / "mask.png")
    as_image.convert("RGB").save(tmp_path / "mask.jpg")  # not quite black and white at the edge
    palette = Image.fromarray(mask.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 60, 0, 0])
    stray = mask.astype(np.uint8) * 255
    stray[75, 90] = 1
    kinds = [mask.astype(np.uint8), mask * 0.5, torch.from_numpy(mask), np.repeat(mask[..., None], 3, axis=2), stray]
    kinds += [as_image, as_image.convert("1"), Image.fromarray(mask.astype(np.uint8)), palette]
    kinds += [tmp_path / "mask.png", str(tmp_path / "mask.jpg")]
    for given in kinds:
        found = processor.cut_image(image, given).mask
        assert (found != wanted).sum() <= (5 if "jpg" in str(given) else 0), given
    assert not processor.cut_image(image, np.zeros_like(mask)).mask.any()
    assert processor.cut_image(image, np.ones_like(mask)).mask.all()


@pytest.mark.parametrize("rate", [None, 1.0, 0.5])
@pytest.mark.parametrize("allocation", ["tile", "image"])
def test_steps_one_by_one_and_the_whole_agree(tiny_model, processor, image, mask, allocation, rate):
    model = tiny_model(allocation=allocation, blend_share_weight=1.0)
    whole = predict_image(model, processor, image, rate, pixel_mask=mask, batch_size=2, output_stages=True)
    batch = processor(image, pixel_masks=mask, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**batch, keep_rates=rate)
    (steps,) = processor.post_process_probabilities(outputs)
    torch.testing.assert_close(whole.probabilities, steps, rtol=1e-5, atol=1e-6)
    others = [processor.cut_image(image), processor.cut_image(image, mask)]
    unmasked, masked = predict_images(model, processor, others, rate, batch_size=100)
    torch.testing.assert_close(masked.probabilities, whole.probabilities, rtol=1e-5, atol=1e-6)
    plain = predict_image(model, processor, image, rate)
    torch.testing.assert_close(unmasked.probabilities, plain.probabilities, rtol=1e-5, atol=1e-6)
    assert (masked.num_tokens < plain.num_tokens) == (allocation == "image")


@pytest.mark.parametrize("allocation", ["tile", "image"])
def test_there_is_no_class_where_nothing_is_shown(tiny_model, processor, image, mask, allocation):
    hidden = torch.from_numpy(~mask)
    processor.working_size = None  # so that no score is interpolated across the edge of the mask
    plain = predict_image(tiny_model(allocation=allocation), processor, image, None, pixel_mask=mask)
    assert (plain.probabilities[1][hidden] == 0).all()
    assert (plain.probabilities[0][hidden] == 1).all()
    assert (plain.probabilities[1][~hidden] > 0).all()
    several = tiny_model(allocation=allocation, num_labels=3, num_queries=4)
    found = predict_image(several, processor, image, None, pixel_mask=mask)
    assert (found.probabilities[:, hidden] == 0).all()
    assert (found.segmentation[hidden] == 255).all()
    assert (found.segmentation[~hidden] < 3).all()
    with torch.no_grad():
        outputs = several(**processor(image, pixel_masks=mask, return_tensors="pt"), keep_rates=None)
    assert processor.post_process_semantic_segmentation(outputs)[0].equal(found.segmentation)


def test_visible_pixels_keep_their_prediction(tiny_model, processor, image, mask):
    """A mask changes nothing but what it hides, where no token leaves."""
    model = tiny_model(allocation="tile")
    processor.working_size = None
    masked = predict_image(model, processor, image, None, pixel_mask=mask).probabilities[1]
    plain = predict_image(model, processor, image, None).probabilities[1]
    assert masked.equal(plain * torch.from_numpy(mask))


@pytest.mark.parametrize("training", [True, False])
def test_no_loss_counts_what_is_hidden(tiny_model, processor, image, mask, training):
    model = tiny_model(allocation="image", routing=False, train_pruning="none").train(training)
    labels = np.random.default_rng(1).integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8)
    batch = processor(image, segmentation_maps=labels, pixel_masks=mask, return_tensors="pt")
    wanted = batch["labels"].masked_fill(~batch["pixel_mask"], 255)
    losses = []
    for given in (batch["labels"], wanted, torch.where(wanted == 255, 1 - batch["labels"].clamp(0, 1), wanted)):
        torch.manual_seed(0)
        losses.append(model(**{**batch, "labels": given}, keep_rates=None).loss.item())
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_of_one_tile_the_hidden_tokens_are_pruned_first(tiny_model, processor, image, mask, weight):
    model = tiny_model(allocation="tile", blend_share_weight=weight)
    batch = processor(image, pixel_masks=mask, return_tensors="pt")
    with torch.no_grad():
        kept = model(**batch, keep_rates=[0.2, 1.0, 1.0], output_keep_masks=True).keep_masks[:, 0]
    visible = visible_patches(batch["pixel_mask"], model.config.patch_size)
    for keeps, sees in zip(kept, visible, strict=True):
        assert not (keeps & ~sees).any() or not (sees & ~keeps).any()


def test_masks_that_do_not_fit(tiny_model, processor, image, mask):
    with pytest.raises(ValueError, match=r"150x200 pixels .* but its pixel mask 200x150"):
        processor.cut_image(image, mask.T)
    with pytest.raises(ValueError, match="seems not to be turned as the EXIF orientation"):
        processor.cut_image(image, mask.T)
    with pytest.raises(ValueError, match="Got 1 images but 2 pixel masks"):
        processor(image, pixel_masks=[mask, mask])
    with pytest.raises(ValueError, match="One of the pixel masks is None"):
        processor([image, image], pixel_masks=[mask, None])
    batch = processor(image, pixel_masks=mask, return_tensors="pt")
    model = tiny_model(allocation="image")
    with pytest.raises(ValueError, match=r"`pixel_mask` has shape \(1, 64, 64\): it must be \(4, 64, 64\)"):
        model(**{**batch, "pixel_mask": batch["pixel_mask"][:1]})
    with pytest.raises(ValueError, match="`pixel_mask` needs `patch_offsets`"):
        model(batch["pixel_values"], pixel_mask=batch["pixel_mask"])
    with pytest.raises(ValueError, match="The image is cut already: give its mask to `cut_image`"):
        predict_image(model, processor, processor.cut_image(image), pixel_mask=mask)
    with pytest.raises(ValueError, match="The image processor is a EomtImageProcessorPil"):
        predict_image(model, EomtImageProcessorPil(), image, pixel_mask=mask)


@pytest.mark.parametrize("pool", ["active", "all"])
def test_an_image_that_shows_nothing_keeps_nothing(tiny_model, processor, image, mask, pool):
    model = tiny_model(allocation="image", selection_pool=pool)
    batch = processor([image, image], pixel_masks=[np.zeros_like(mask), mask], return_tensors="pt")
    alone = processor(image, pixel_masks=mask, return_tensors="pt")
    with torch.no_grad():
        both = model(**batch, keep_rates=0.5, output_keep_masks=True)
        wanted = model(**alone, keep_rates=0.5, output_keep_masks=True)
    num_tiles = len(alone["pixel_values"])
    assert not both.keep_masks[:num_tiles].any()
    assert both.keep_masks[num_tiles:].equal(wanted.keep_masks)
    torch.testing.assert_close(both.logits[num_tiles:], wanted.logits, rtol=1e-4, atol=1e-5)
