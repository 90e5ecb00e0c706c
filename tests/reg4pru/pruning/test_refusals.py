"""What `reg4pru prune` refuses, with what can be done, before anything is written."""

import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import (
    Dinov2Config,
    Dinov2Model,
    EomtImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from modeling_reg4pru import Reg4PruImageProcessor
from reg4pru.prune import main


def spoil(kind: str, tmp_path) -> None:
    images, eomt = tmp_path / "images", tmp_path / "eomt"
    files = sorted(images.iterdir())
    if kind == "segformer":
        shutil.rmtree(eomt)
        config = SegformerConfig(hidden_sizes=[8] * 4, decoder_hidden_size=8, num_attention_heads=[1] * 4)
        SegformerForSemanticSegmentation(config).save_pretrained(eomt)
    elif kind in ("mask2former", "upernet"):
        shutil.rmtree(eomt)
        swin = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2}
        if kind == "mask2former":
            backbone = SwinConfig(**swin, out_features=["stage1", "stage2", "stage3", "stage4"])
            sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 1}
            layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_feedforward_dim": 8, "dim_feedforward": 8}
            config = Mask2FormerConfig(backbone_config=backbone, **sizes, **layers)
            Mask2FormerForUniversalSegmentation(config).save_pretrained(eomt)
        else:
            backbone = ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4, embedding_size=8, layer_type="basic",
                                    out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
            config = UperNetConfig(backbone_config=backbone, hidden_size=8, auxiliary_channels=8,
                                   auxiliary_in_channels=8, pool_scales=[1, 2])  # fmt: skip
            UperNetForSemanticSegmentation(config).save_pretrained(eomt)
    elif kind == "bare backbone":
        shutil.rmtree(eomt)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(eomt)
    elif kind == "no processor":
        (eomt / "preprocessor_config.json").unlink()
    elif kind == "other tiles":
        EomtImageProcessorPil(size={"shortest_edge": 32, "longest_edge": None}).save_pretrained(eomt)
    elif kind == "few images":
        for file in files[5:]:
            file.unlink()
    elif kind == "copies":
        for file in files[1:]:
            shutil.copy(files[0], file)
    elif kind == "alike":
        for number, file in enumerate(files):
            pixels = np.asarray(Image.open(files[0])).copy()
            pixels[0, 0] = number
            Image.fromarray(pixels).save(file)
    elif kind == "broken":
        files[3].write_bytes(files[3].read_bytes()[:100])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("segformer", "is a 'segformer' model; reg4pru prune takes"),
        ("mask2former", "is a 'mask2former' model; reg4pru prune takes"),
        ("upernet", "is a 'upernet' model; reg4pru prune takes"),
        ("bare backbone", "It has no segmentation head yet"),
        ("no processor", "No image processor"),
        ("other tiles", "they do not belong together"),
        ("few images", "at least 32 are needed"),
        ("copies", "Got 1 distinct images"),
        ("alike", "look alike"),
        ("broken", "03.png"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_anything_is_written(flags, tmp_path, capsys, kind, message):
    spoil(kind, tmp_path)
    with pytest.raises(SystemExit) as refused:
        main(flags)
    assert refused.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--keep_rates", "1.5"], "keep rate"),
        (["--num_tiles", "0"], "--num_tiles is 0"),
        (["--dataset", "user/images"], "one of them"),
        (["--report_side", "test"], "it is a side of --dataset"),
        (["--report_limit", "3"], "is for --report_side"),
        (["--level", "labels"], "but --images has none"),
        (["--pruning_layers", "9"], "pruning_layers"),
        (["--output_dir", "images"], "not empty"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main([*flags, *more])
    assert refused.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_pixels_are_normalised_as_the_processor_of_the_checkpoint_says(flags, tmp_path):
    """Values that are no longer those of the default, and a scale at which the images are enlarged."""
    fields = {"do_normalize": False, "rescale_factor": 1.0, "size": {"shortest_edge": 64, "longest_edge": None}}
    EomtImageProcessorPil(**fields).save_pretrained(tmp_path / "eomt")
    main(flags)
    processor = Reg4PruImageProcessor.from_pretrained(tmp_path / "out")
    image = Image.open(tmp_path / "images" / "00.png")
    tile = processor.cut_image(image)[0]
    assert np.array_equal(tile, np.asarray(image)[:64, :64].transpose(2, 0, 1).astype(np.float32))


def test_images_much_smaller_than_the_model_sees_them_are_told(flags, caplog, tmp_path):
    main([*flags, "--working_size", "256", "--num_tiles", "32"])
    assert "96 pixels (the longer side), and are enlarged to the 256" in " ".join(caplog.text.split())
