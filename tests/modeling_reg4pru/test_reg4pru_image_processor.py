"""From photographs to pixel values, and from logits to label maps; the image-segmentation pipeline."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_reg4pru import Reg4PruImageProcessor, Reg4PruSemanticSegmenterOutput


@pytest.fixture
def processor():
    return Reg4PruImageProcessor(size={"height": 64, "width": 64})


@pytest.fixture
def photograph():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))


def test_defaults_are_those_of_the_model():
    processor = Reg4PruImageProcessor()
    assert (processor.size.height, processor.size.width) == (1024, 1024)
    assert list(processor.image_mean) == IMAGENET_DEFAULT_MEAN
    assert list(processor.image_std) == IMAGENET_DEFAULT_STD


def test_pixel_values_are_normalised(photograph):
    processor = Reg4PruImageProcessor(do_resize=False)
    values = processor(photograph, return_tensors="pt")["pixel_values"]
    pixels = np.asarray(photograph).astype(np.float64) / 255
    wanted = ((pixels - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD).transpose(2, 0, 1)
    assert values.dtype == torch.float32
    np.testing.assert_allclose(values[0].numpy(), wanted, atol=1e-5)


def test_images_are_resized_to_the_size_of_the_model(processor, photograph):
    values = processor([photograph, photograph.rotate(90, expand=True)], return_tensors="pt")["pixel_values"]
    assert values.shape == (2, 3, 64, 64)
    resized = np.asarray(photograph.resize((64, 64), Image.Resampling.BILINEAR)).astype(np.float64) / 255
    wanted = ((resized - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(values[0].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_three_channels(processor, photograph, mode):
    assert processor(photograph.convert(mode), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.parametrize("kind", ["array", "pil", "tensor"])
def test_labels_keep_their_values(processor, photograph, kind):
    labels = np.zeros((48, 80), dtype=np.uint8)
    labels[:24], labels[24:, 40:], labels[30:, :10] = 1, 255, 2
    maps = {"array": labels, "pil": Image.fromarray(labels), "tensor": torch.from_numpy(labels)}[kind]
    batch = processor(photograph, segmentation_maps=maps, return_tensors="pt")
    assert batch["labels"].shape == (1, 64, 64)
    assert batch["labels"].dtype == torch.int64
    nearest = np.asarray(Image.fromarray(labels).resize((64, 64), Image.Resampling.NEAREST))
    assert np.array_equal(batch["labels"][0].numpy(), nearest)


def test_as_many_maps_as_images(processor, photograph):
    with pytest.raises(ValueError, match="Got 1 images but 2 segmentation maps"):
        processor([photograph], segmentation_maps=[np.zeros((48, 80), np.uint8)] * 2)


def test_the_model_takes_what_the_processor_makes(processor, photograph, tiny_model):
    labels = (np.asarray(photograph)[..., 0] > 200).astype(np.uint8)
    batch = processor(photograph, segmentation_maps=labels, return_tensors="pt")
    assert tiny_model()(**batch).loss.isfinite()


def test_post_processing_gives_the_sizes_that_are_asked_for(processor):
    logits = torch.zeros(2, 2, 16, 16)
    logits[0, 1, :, 8:] = 1.0
    logits[0, 1, :, :8] = -1.0
    logits[1, 1] = -2.0
    outputs = Reg4PruSemanticSegmenterOutput(logits=logits)
    small = processor.post_process_semantic_segmentation(outputs)
    assert [tuple(one.shape) for one in small] == [(16, 16), (16, 16)]
    assert torch.equal(small[0], logits[0].argmax(0))
    sizes = [(48, 80), torch.tensor([100, 60])]
    left, right = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    assert left.shape == (48, 80)
    assert right.shape == (100, 60)
    assert left[:, 40:].all()
    assert not left[:, :40].any()
    assert not right.any()
    with pytest.raises(ValueError, match=re.escape("`target_sizes` has 1 entries for 2 images")):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(4, 4)])


def test_saving_and_loading(processor, photograph, tmp_path, tiny_model):
    processor.save_pretrained(tmp_path)
    tiny_model().config.save_pretrained(tmp_path)
    for loaded in (Reg4PruImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is Reg4PruImageProcessor
        assert loaded.to_dict() == processor.to_dict()
        wanted, values = (one(photograph, return_tensors="pt")["pixel_values"] for one in (processor, loaded))
        assert torch.equal(wanted, values)


def test_the_pipeline_finds_the_vessels(processor, photograph, tmp_path, tiny_model):
    model = tiny_model(id2label={0: "background", 1: "vessel"}, label2id={"background": 0, "vessel": 1})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    results = pipeline("image-segmentation", model=str(tmp_path), device="cpu")(photograph)
    found = {result["label"]: np.asarray(result["mask"]) for result in results}
    assert set(found) == {"background", "vessel"}
    with torch.no_grad():
        outputs = model(**processor(photograph, return_tensors="pt"))
    wanted = processor.post_process_semantic_segmentation(outputs, target_sizes=[(48, 80)])[0].numpy()
    assert 0 < wanted.mean() < 1
    assert np.array_equal(found["vessel"] > 0, wanted == 1)
    assert np.array_equal(found["background"] > 0, wanted == 0)


def test_a_real_photograph(fives_dir, tiny_model):
    path = sorted(fives_dir.glob("*/Original/*.png"))[0]
    with Image.open(path) as photograph:
        batch = Reg4PruImageProcessor(size={"height": 128, "width": 128})(photograph, return_tensors="pt")
        size = photograph.size[::-1]
    values = batch["pixel_values"]
    assert values.shape == (1, 3, 128, 128)
    assert values[0, 0].mean() > values[0, 2].mean()  # the fundus is red
    processor = Reg4PruImageProcessor()
    with torch.no_grad():
        maps = processor.post_process_semantic_segmentation(tiny_model()(values), target_sizes=[size])
    assert maps[0].shape == size
