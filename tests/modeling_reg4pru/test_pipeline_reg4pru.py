"""`pipeline("image-segmentation")` with the package: no questions, no false errors, the result of the processor."""

import base64
import builtins
import logging
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ImageSegmentationPipeline,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor, Reg4PruImageSegmentationPipeline


@pytest.fixture
def checkpoint(tiny_model, tmp_path) -> Path:
    tiny_model(id2label={0: "background", 1: "vessel"}).save_pretrained(tmp_path / "saved")
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=100, num_labels=2)
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def no_questions(monkeypatch, caplog):
    """An input is an error, and so is whatever transformers logs as a warning or an error."""

    def ask(prompt=""):
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr(builtins, "input", ask)
    logger = transformers_logging.get_logger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records] == []


def image_of(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def expected(checkpoint: Path, image: Image.Image) -> np.ndarray:
    model = Reg4PruForSemanticSegmentation.from_pretrained(checkpoint)
    processor = Reg4PruImageProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    return processor.post_process_semantic_segmentation(outputs)[0].numpy()


def vessels(results: list[dict]) -> np.ndarray:
    masks = {result["label"]: np.asarray(result["mask"]) for result in results}
    assert masks.keys() == {"background", "vessel"}
    assert np.array_equal(masks["background"] == 0, masks["vessel"] == 255)
    return masks["vessel"] == 255


def test_equals_processor_model_and_post_processing(checkpoint, no_questions):
    image = image_of(120, 90)
    segmenter = pipeline("image-segmentation", model=str(checkpoint), device="cpu")
    assert type(segmenter) is Reg4PruImageSegmentationPipeline
    wanted = expected(checkpoint, image)
    assert wanted.shape == (120, 90)
    assert 0 < wanted.mean() < 1
    assert np.array_equal(vessels(segmenter(image)), wanted == 1)


def test_lists_batches_and_generators(checkpoint, no_questions):
    images = [image_of(120, 90, 0), image_of(30, 200, 1), image_of(64, 64, 2)]
    wanted = [expected(checkpoint, image) == 1 for image in images]
    segmenter = pipeline("image-segmentation", model=str(checkpoint), device="cpu")
    for batch_size in (1, 2, 3):
        found = segmenter(images, batch_size=batch_size)
        streamed = list(segmenter((image for image in images), batch_size=batch_size))
        for results, again, mask in zip(found, streamed, wanted, strict=True):
            assert np.array_equal(vessels(results), mask)
            assert np.array_equal(vessels(again), mask)


def test_paths_base64_orientation_and_sixteen_bits(checkpoint, tmp_path, no_questions):
    segmenter = pipeline("image-segmentation", model=str(checkpoint), device="cpu")
    exif = Image.Exif()
    exif[0x0112] = 6
    image_of(90, 120).save(tmp_path / "turned.png", exif=exif)
    upright = Image.fromarray(np.rot90(np.asarray(image_of(90, 120)), -1))
    found = vessels(segmenter(str(tmp_path / "turned.png")))
    assert np.array_equal(found, vessels(segmenter(tmp_path / "turned.png")))
    assert found.shape == (120, 90)
    assert np.array_equal(found, expected(checkpoint, upright) == 1)

    grey = image_of(80, 80).convert("L")
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    buffer = BytesIO()
    sixteen.save(buffer, format="PNG")
    for source in (sixteen, base64.b64encode(buffer.getvalue()).decode()):
        assert np.array_equal(vessels(segmenter(source)), expected(checkpoint, grey) == 1)


def test_only_semantic_segmentation(checkpoint):
    segmenter = pipeline("image-segmentation", model=str(checkpoint), device="cpu")
    assert len(segmenter(image_of(64, 64), subtask="semantic")) == 2
    with pytest.raises(ValueError, match="`subtask` is 'panoptic'"):
        segmenter(image_of(64, 64), subtask="panoptic")


def test_a_pipeline_can_be_saved_and_loaded(checkpoint, tmp_path):
    segmenter = pipeline("image-segmentation", model=str(checkpoint), device="cpu")
    assert "custom_pipelines" in repr(segmenter.model.config)
    segmenter.save_pretrained(tmp_path / "again")
    again = pipeline("image-segmentation", model=str(tmp_path / "again"), device="cpu")
    image = image_of(64, 64)
    assert np.array_equal(vessels(again(image)), vessels(segmenter(image)))


@pytest.mark.skipif(
    getattr(SegformerImageProcessorPil, "is_dummy", False),
    reason="without torchvision this transformers has no Segformer",
)
def test_other_models_keep_the_pipeline_of_transformers(tmp_path):
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    segmenter = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
    assert type(segmenter) is ImageSegmentationPipeline
    assert segmenter(image_of(30, 40))[0]["mask"].size == (40, 30)
