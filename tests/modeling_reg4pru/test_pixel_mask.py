"""Masks of pixels that show nothing, from the image to the prediction; the tokens themselves in test_image_budget."""

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.mark.parametrize("kind", [np.uint8, bool, Image.Image, torch.Tensor, "file"])
def test_masks_of_any_kind(processor, image, mask, kind, tmp_path):
    as_image = Image.fromarray(mask.astype(np.uint8) * 255)
    as_image.save(tmp_path / "mask.png")
    given = {Image.Image: as_image, torch.Tensor: torch.from_numpy(mask), "file": tmp_path / "mask.png"}
    found = processor.cut_image(image, given.get(kind, mask.astype(kind) if kind in (np.uint8, bool) else None))
    np.testing.assert_array_equal(found.mask, processor.cut_image(image, mask).mask)


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


def test_there_is_no_foreground_where_nothing_is_shown(tiny_model, processor, image, mask):
    model = tiny_model(allocation="image")
    torch.nn.init.constant_(model.mask_head.fc3.bias, 1.0)
    probabilities = predict_image(model, processor, image, 0.5, pixel_mask=mask).probabilities[1]
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    far = (rows - 75) ** 2 + (columns - 90) ** 2 > 95**2  # by more than a patch of 16 pixels, and what is interpolated
    assert far.sum() > 1000
    assert probabilities[torch.from_numpy(far)].max() < 1e-6
    assert probabilities[torch.from_numpy(mask)].max() > 1e-3


def test_of_one_tile_the_hidden_tokens_are_pruned_first(tiny_model, processor, image, mask):
    model = tiny_model(allocation="tile", blend_share_weight=1.0)
    batch = processor(image, pixel_masks=mask, return_tensors="pt")
    with torch.no_grad():
        kept = model(**batch, keep_rates=[0.2, 1.0, 1.0], output_keep_masks=True).keep_masks[:, 0]
    visible = visible_patches(batch["pixel_mask"], model.config.patch_size)
    for keeps, sees in zip(kept, visible, strict=True):
        assert not (keeps & ~sees).any() or not (sees & ~keeps).any()


def test_masks_that_do_not_fit(tiny_model, processor, image, mask):
    with pytest.raises(ValueError, match=r"150x200 pixels .* but its pixel mask 200x150"):
        processor.cut_image(image, mask.T)
    with pytest.raises(ValueError, match="Got 1 images but 2 pixel masks"):
        processor(image, pixel_masks=[mask, mask])
    batch = processor(image, pixel_masks=mask, return_tensors="pt")
    model = tiny_model(allocation="image")
    with pytest.raises(ValueError, match=r"`pixel_mask` has shape \(1, 64, 64\): it must be \(4, 64, 64\)"):
        model(**{**batch, "pixel_mask": batch["pixel_mask"][:1]})
    with pytest.raises(ValueError, match="`pixel_mask` needs `patch_offsets`"):
        model(batch["pixel_values"], pixel_mask=batch["pixel_mask"])
