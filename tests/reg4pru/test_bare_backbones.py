"""A plain vision transformer in the place of a model: no command trains, measures or exports random weights."""

import pytest
from PIL import Image
from transformers import DINOv3ViTConfig, DINOv3ViTModel, ViTConfig, ViTModel

from modeling_reg4pru import Reg4PruImageProcessor
from reg4pru import evaluate, export, finetune, predict, train

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
GIVEN = "--model_name_or_path"
COMMANDS = {
    "train": (train.main, [GIVEN, "{model}", "--dataset", "synthetic", "--output_dir", "{out}"]),
    "finetune": (finetune.main, [GIVEN, "{model}", "--dataset", "synthetic", "--output_dir", "{out}"]),
    "evaluate": (evaluate.main, [GIVEN, "{model}", "--dataset", "synthetic", "--output_dir", "{out}"]),
    "predict": (predict.main, [GIVEN, "{model}", "--images", "{image}", "--output_dir", "{out}"]),
    "export": (export.main, [GIVEN, "{model}", "--output", "{out}/model.onnx"]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("family", ["dinov3", "vit"])
def test_a_bare_backbone_is_refused(family, command, tmp_path, capsys):
    backbone = tmp_path / "model"
    if family == "dinov3":
        DINOv3ViTModel(DINOv3ViTConfig(**SIZES, patch_size=8, image_size=64)).save_pretrained(backbone)
    else:
        ViTModel(ViTConfig(**SIZES, patch_size=8, image_size=64)).save_pretrained(backbone)
    Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=64).save_pretrained(backbone)
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    places = {"model": backbone, "out": tmp_path / "out", "image": tmp_path / "image.png"}
    main, flags = COMMANDS[command]
    with pytest.raises((ValueError, SystemExit)) as refusal:
        main([flag.format_map(places) for flag in flags])
    assert refusal.value.args != (0,)
    said = f"{refusal.value} {capsys.readouterr().err}"
    assert "from_backbone" in said
    assert not list((tmp_path / "out").rglob("*.*"))
