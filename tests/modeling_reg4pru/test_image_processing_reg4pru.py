"""From images of any size to tiles, and from logits back to maps."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_reg4pru import Reg4PruImageProcessor, Reg4PruSemanticSegmenterOutput


def make_processor(tile: int = 64, **fields) -> Reg4PruImageProcessor:
    return Reg4PruImageProcessor(size={"height": tile, "width": tile}, **fields)


def make_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def normalised(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image).astype(np.float64) / 255
    return ((pixels - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD).transpose(2, 0, 1)


def outputs_of(labels: torch.Tensor, patch_offsets: torch.Tensor) -> Reg4PruSemanticSegmenterOutput:
    """As from a model that knows the labels."""
    mask = labels[:, None].float() * 20 - 10
    return Reg4PruSemanticSegmenterOutput(
        logits=torch.cat((torch.zeros_like(mask), mask), dim=1), patch_offsets=patch_offsets
    )


def test_defaults_are_those_of_the_model():
    processor = Reg4PruImageProcessor()
    assert (processor.size.height, processor.size.width) == (1024, 1024)
    assert (processor.working_size, processor.tile_overlap, processor.do_split_image) == (None, None, True)
    assert processor.do_reduce_labels is False
    assert list(processor.image_mean) == IMAGENET_DEFAULT_MEAN
    assert list(processor.image_std) == IMAGENET_DEFAULT_STD


def test_an_image_is_scaled_cut_and_normalised():
    image = make_image(100, 150)
    batch = make_processor(working_size=120, tile_overlap=8)(image, return_tensors="pt")
    frame = normalised(image.resize((120, 80), Image.Resampling.BILINEAR))
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["patch_offsets"].tolist() == [
        [0, top, left, 64, 80, 120, 100, 150, 8] for top in (0, 16) for left in (0, 56)
    ]
    for tile, (_, top, left, *_) in zip(batch["pixel_values"], batch["patch_offsets"].tolist(), strict=True):
        np.testing.assert_allclose(tile, frame[:, top : top + 64, left : left + 64], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "fields", "frame", "num_tiles"),
    [
        ((64, 64), {}, (64, 64), 1),
        ((2336, 3504), {"working_size": 64}, (43, 64), 1),
        ((3504, 2336), {"working_size": 64}, (64, 43), 1),
        ((300, 200), {"do_split_image": False}, (64, 43), 1),
        ((30, 20), {"do_split_image": False}, (64, 43), 1),
        ((30, 20), {"do_split_image": False, "do_resize": False}, (30, 20), 1),
        ((30, 20), {"do_split_image": False, "working_size": 60}, (60, 40), 1),
        ((100, 128), {"tile_overlap": 0}, (100, 128), 4),
        ((100, 128), {"tile_overlap": 0, "working_size": 32, "do_resize": False}, (100, 128), 4),
        ((1000, 1), {"working_size": 100}, (100, 1), 2),
        ((50, 50), {"working_size": 128, "tile_overlap": 0}, (128, 128), 4),
    ],
)
def test_any_size_and_shape(size, fields, frame, num_tiles):
    batch = make_processor(**fields)(make_image(*size), return_tensors="pt")
    assert batch["pixel_values"].shape == (num_tiles, 3, 64, 64)
    assert batch["patch_offsets"].shape == (num_tiles, 9)
    assert batch["patch_offsets"].dtype == torch.int64
    assert {tuple(row[4:8]) for row in batch["patch_offsets"].tolist()} == {(*frame, *size)}


def test_small_images_are_padded_by_reflection():
    image = make_image(40, 50)
    values = make_processor()(image, return_tensors="pt")["pixel_values"][0]
    mirrored = np.pad(normalised(image), ((0, 0), (0, 24), (0, 14)), mode="reflect")
    np.testing.assert_allclose(values, mirrored, atol=1e-5)


def test_rescaling_and_normalising_can_be_switched_off():
    image = make_image(64, 64)
    pixels = np.asarray(image).transpose(2, 0, 1)
    raw = make_processor(do_rescale=False, do_normalize=False)(image)["pixel_values"][0]
    np.testing.assert_array_equal(raw, pixels)
    only_scaled = make_processor()(image, do_normalize=False)["pixel_values"][0]
    np.testing.assert_allclose(only_scaled, pixels / 255, atol=1e-6)
    own = make_processor(image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3])(image)["pixel_values"][0]
    wanted = (pixels / 255 - np.reshape([0.5, 0.4, 0.3], (3, 1, 1))) / np.reshape([0.1, 0.2, 0.3], (3, 1, 1))
    np.testing.assert_allclose(own, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda array: Image.fromarray(array[..., 0])])
def test_pixels_from_0_to_1_can_stay_as_they_are(kind):
    image = kind((np.asarray(make_image(64, 64)) / 255).astype(np.float32))
    wanted = make_processor()(image)["pixel_values"]
    assert np.abs(wanted).max() < 5
    np.testing.assert_allclose(make_processor()(image, do_rescale=False)["pixel_values"], wanted, atol=1e-5)


def test_tiles_share_two_ninths_of_the_size_that_they_have(tmp_path):
    make_processor(64, working_size=120).save_pretrained(tmp_path)
    image = make_image(90, 120)
    for size, overlap in ((18, 4), (32, 7)):
        wanted = make_processor(size, working_size=120, tile_overlap=overlap)(image)["patch_offsets"]
        loaded = Reg4PruImageProcessor.from_pretrained(tmp_path, size=size)
        np.testing.assert_array_equal(loaded(image)["patch_offsets"], wanted)
        np.testing.assert_array_equal(loaded(image, tile_overlap=None)["patch_offsets"], wanted)


def test_an_overlap_can_be_a_part_of_a_tile():
    image = make_image(90, 120)
    for part, pixels in ((0.25, 16), (0.5, 32), (0.999, 63), (0.0, 0)):
        wanted = make_processor(64, tile_overlap=pixels)(image)["patch_offsets"]
        np.testing.assert_array_equal(make_processor(64, tile_overlap=part)(image)["patch_offsets"], wanted)


def test_a_processor_that_was_saved_without_an_overlap_keeps_a_quarter(tmp_path):
    processor = make_processor(64, working_size=120)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    former = {key: value for key, value in json.loads(path.read_text()).items() if key != "tile_overlap"}
    path.write_text(json.dumps(former))
    image = make_image(90, 120)
    for size in (16, 64):
        wanted = make_processor(size, working_size=120, tile_overlap=size // 4)(image)["patch_offsets"]
        loaded = Reg4PruImageProcessor.from_pretrained(tmp_path, size=size)
        np.testing.assert_array_equal(loaded(image)["patch_offsets"], wanted)
    loaded.save_pretrained(tmp_path)
    again = Reg4PruImageProcessor.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(image)["patch_offsets"], wanted)


@pytest.mark.parametrize("sizes", [[(64, 64)], [(90, 130)], [(40, 30), (100, 64), (64, 200)]])
@pytest.mark.parametrize("as_array", [False, True])
def test_label_maps_are_cut_like_their_images(sizes, as_array):
    processor = make_processor(tile_overlap=16, num_labels=2)
    masks = [(np.asarray(make_image(*size))[..., 0] > 127).astype(np.uint8) * np.uint8(255) for size in sizes]
    maps = masks if as_array else [Image.fromarray(mask) for mask in masks]
    batch = processor([make_image(*size) for size in sizes], segmentation_maps=maps, return_tensors="pt")
    labels, offsets = batch["labels"], batch["patch_offsets"]
    assert labels.dtype == torch.int64
    assert labels.shape == (len(batch["pixel_values"]), 64, 64)
    for tile, (index, top, left, *_) in zip(labels, offsets.tolist(), strict=True):
        piece = masks[index][top : top + 64, left : left + 64] // 255
        height, width = piece.shape
        np.testing.assert_array_equal(tile[:height, :width], piece)
        assert (tile[height:] == 255).all()
        assert (tile[:, width:] == 255).all()
    found = processor.post_process_semantic_segmentation(outputs_of(labels == 1, offsets))
    for one, mask in zip(found, masks, strict=True):
        np.testing.assert_array_equal(one, mask // 255)


@pytest.mark.parametrize("shape", [(80, 100), (80, 100, 3), (3, 80, 100), (1, 80, 100)])
def test_a_single_mask_in_any_layout(shape):
    mask = np.zeros(shape, np.uint8)
    batch = make_processor(num_labels=2)(make_image(80, 100), segmentation_maps=mask, return_tensors="pt")
    assert batch["labels"].shape == (len(batch["pixel_values"]), 64, 64)
    several = make_processor(num_labels=2)([make_image(8, 9)] * 3, segmentation_maps=np.zeros((3, 8, 9), np.uint8))
    assert len(several["labels"]) == 3


def test_labels_are_scaled_by_the_rule_of_their_kind():
    image = make_image(128, 128)
    mask = np.random.default_rng(1).integers(0, 2, (128, 128)).astype(np.uint8)
    share = mask.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    binary = make_processor(working_size=64, num_labels=2)(image, segmentation_maps=mask)["labels"][0]
    np.testing.assert_array_equal(binary, share >= 0.5)  # 127.5 of 255 is rounded up
    several = make_processor(working_size=64, num_labels=3)(image, segmentation_maps=mask * 2)["labels"][0]
    np.testing.assert_array_equal(several, mask[1::2, 1::2] * 2)


def test_masks_of_another_size_are_refused():
    processor = make_processor(num_labels=2)
    with pytest.raises(ValueError, match="Got 1 images but 2 segmentation maps"):
        processor([make_image(8, 9)], segmentation_maps=[np.zeros((8, 9), np.uint8)] * 2)
    with pytest.raises(ValueError, match=r"80x100 pixels .* but its label map 100x80"):
        processor(make_image(80, 100), segmentation_maps=np.zeros((100, 80), np.uint8))
    with pytest.raises(ValueError, match="values 0, 2"):
        processor(make_image(8, 9), segmentation_maps=np.full((8, 9), 2, np.uint8) * (np.arange(9) > 3))
    with pytest.raises(ValueError, match="no images"):
        processor([])
    with pytest.raises(ValueError, match="type dict"):
        processor([{}])


def test_image_and_mask_are_turned_together(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = make_image(40, 60), np.zeros((40, 60), np.uint8)
    mask[:10, :30] = 255
    image.save(tmp_path / "image.png", exif=exif)
    Image.fromarray(mask).save(tmp_path / "mask.png", exif=exif)
    paths = [str(tmp_path / f"{name}.png") for name in ("image", "mask")]
    batch = make_processor(num_labels=2)(paths[0], segmentation_maps=paths[1], return_tensors="pt")
    assert batch["patch_offsets"][0, 6:8].tolist() == [60, 40]
    turned = np.rot90(np.asarray(image), -1)
    np.testing.assert_allclose(batch["pixel_values"][0, :, :60, :40], normalised(turned), atol=1e-5)
    np.testing.assert_array_equal(batch["labels"][0, :60, :40], np.rot90(mask, -1) // 255)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 64, "width": 32}}, "`size` is"),
        ({"size": {"shortest_edge": 64}}, "`size` is"),
        ({"working_size": 0}, "`working_size` is 0"),
        ({"tile_overlap": 1024}, "`tile_overlap` is 1024: tiles of side 1024 .* 0 to 1023"),
        ({"tile_overlap": -1}, "`tile_overlap` is -1"),
        ({"working_size": 2048, "do_split_image": False}, "`working_size` is 2048 and `do_split_image=False`"),
    ],
)
def test_scales_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Reg4PruImageProcessor(**fields)
    with pytest.raises(ValueError, match=message):
        Reg4PruImageProcessor()(make_image(8, 8), **fields)


def test_an_image_that_must_not_be_split_has_to_fit_one_tile():
    with pytest.raises(ValueError, match=r"65x10 pixels .* does not fit a tile of 64"):
        make_processor(do_split_image=False, do_resize=False)(make_image(65, 10))


@pytest.mark.parametrize("num_labels", [2, 4])
def test_outputs_of_the_processor_are_inputs_of_the_model(num_labels, tiny_model):
    processor, model = (
        make_processor(num_labels=num_labels),
        tiny_model(num_labels=num_labels, num_queries=num_labels - 1),
    )
    images = [make_image(90, 130), make_image(20, 30)]
    labels = [np.asarray(one)[..., 0] // 200 for one in images]
    batch = processor(images, segmentation_maps=labels, return_tensors="pt")
    outputs = model(**batch)
    assert outputs.loss.isfinite()
    assert torch.equal(outputs.patch_offsets, batch["patch_offsets"])
    maps = processor.post_process_semantic_segmentation(outputs)
    scores = processor.post_process_probabilities(outputs)
    for one, score, image in zip(maps, scores, images, strict=True):
        assert one.shape == image.size[::-1]
        assert one.dtype == torch.int64
        assert score.shape == (num_labels, *one.shape)
        assert torch.equal(one, score.argmax(0))
        assert score.min() >= 0
        if num_labels == 2:
            assert score.max() <= 1
            torch.testing.assert_close(score.sum(0), torch.ones(one.shape))


@pytest.mark.parametrize(
    "fields", [{}, {"working_size": 100, "tile_overlap": 3, "num_labels": 2, "do_split_image": True}]
)
def test_saving_and_loading(fields, tmp_path, tiny_model, caplog):
    processor = make_processor(**fields)
    processor.save_pretrained(tmp_path)
    tiny_model().config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["working_size"] == fields.get("working_size")
    assert saved["tile_overlap"] == fields.get("tile_overlap")
    with caplog.at_level(logging.WARNING):
        loaded = [one.from_pretrained(tmp_path) for one in (Reg4PruImageProcessor, AutoImageProcessor)]
    assert not caplog.records
    image = make_image(90, 120)
    for one in loaded:
        assert type(one) is Reg4PruImageProcessor
        assert one.to_dict() == processor.to_dict()
        wanted, values = (each(image, return_tensors="pt")["pixel_values"] for each in (processor, one))
        assert torch.equal(wanted, values)


def test_a_configuration_without_a_scale_is_reported(tmp_path, caplog):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    new = ("working_size", "tile_overlap", "do_split_image", "do_reduce_labels")
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in new}))
    with caplog.at_level(logging.WARNING):
        old = Reg4PruImageProcessor.from_pretrained(tmp_path)
    assert "from_pretrained(..., working_size=<longest side in pixels>)" in caplog.text
    assert len(caplog.records) == 1
    assert old.to_dict() == {**processor.to_dict(), "tile_overlap": 0.25}
    caplog.clear()
    for working_size in (512, None):
        assert Reg4PruImageProcessor.from_pretrained(tmp_path, working_size=working_size).working_size == working_size
    assert not caplog.records


def test_fields_that_the_example_scripts_of_transformers_read(tmp_path):
    make_processor().save_pretrained(tmp_path)
    processor = Reg4PruImageProcessor.from_pretrained(tmp_path, do_reduce_labels=True)
    assert "shortest_edge" not in processor.size
    assert (processor.size["height"], processor.size["width"]) == (64, 64)
    assert processor.do_reduce_labels is True
    labels = processor(make_image(64, 64), segmentation_maps=np.eye(64, dtype=np.uint8))["labels"][0]
    np.testing.assert_array_equal(labels, np.where(np.eye(64), 0, 255))


def test_a_real_image(fives_dir):
    path = sorted(fives_dir.glob("*/Original/*.png"))[0]
    processor = make_processor(128, working_size=256, num_labels=2)
    mask = path.parent.parent / "Ground truth" / path.name
    batch = processor(str(path), segmentation_maps=str(mask), return_tensors="pt")
    values, labels = batch["pixel_values"], batch["labels"]
    assert values.shape == (9, 3, 128, 128)
    assert values[:, 0].mean() > values[:, 2].mean()  # the fundus is red
    assert 0.01 < (labels == 1).float().mean() < 0.3
    (found,) = processor.post_process_semantic_segmentation(outputs_of(labels, batch["patch_offsets"]))
    with Image.open(mask) as image:
        truth = np.asarray(image.convert("L")) > 127
    overlap = 2 * (truth & (found == 1).numpy()).sum() / (truth.sum() + int(found.sum()))
    assert found.shape == truth.shape
    assert overlap > 0.7  # what an eighth of the resolution can tell of thin vessels
