"""Baselines of the study `race`: its variants can be built, and times are those of whole images."""

import math

import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from reg4pru.common.recipes import PACKAGE
from reg4pru.study.cost import _first_alike
from reg4pru.study.definition import Study, read_study
from reg4pru.study.race import draw_race, race_markdown, race_rows
from reg4pru.training.command_line import parse_arguments
from reg4pru.training.setup import build_model, make_processor


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """The race on a DINOv2 that is as deep as ViT-S/14, and narrow."""
    backbone = Dinov2Config(hidden_size=16, num_hidden_layers=12, num_attention_heads=2, image_size=518, patch_size=14)
    Dinov2Model(backbone).save_pretrained(tmp_path / "dinov2")
    monkeypatch.setenv("DINOV2_DIR", str(tmp_path / "dinov2"))
    monkeypatch.setenv("FIVES_DIR", str(tmp_path))
    return read_study(PACKAGE / "studies" / "race.yaml")


def built(study: Study, variant: str, tmp_path):
    recipe = study.run_recipe(variant, 0)
    flags = [
        f"--{name}={value}" for name, value in recipe.items() if name in ("backbone_name_or_path", "working_size")
    ]
    fields = [f"{name}={value}" for name, value in recipe["config_overrides"].items()]
    arguments = ["--random_crop", "true", *flags, "--config_overrides", *fields, "--output_dir", str(tmp_path / "run")]
    model_arguments, data_arguments, _ = parse_arguments(arguments)
    model = build_model(model_arguments)
    return model, make_processor(model.config, data_arguments)


def test_every_variant_can_be_built_and_learns(study, tmp_path):
    models, tiles = {}, {}
    image = Image.new("RGB", (1024, 1024))
    for variant in study.variants:
        model, processor = built(study, variant, tmp_path)
        outputs = model.train()(torch.randn(1, 3, 252, 252), labels=torch.ones(1, 252, 252, dtype=torch.long))
        outputs.loss.backward()
        assert outputs.logits.shape[-2:] == (72, 72), variant
        models[variant], tiles[variant] = model, len(processor.cut_image(image).patch_offsets)
    assert tiles == {variant: 16 if variant == "reduced_724" else 25 for variant in study.variants}
    assert models["patch_28"].config.patch_size == 28
    assert len(models["layers_8"].layers) == len(models["pruned_layers_8"].layers) == 8
    counts = [models[variant].eval()(torch.randn(1, 3, 252, 252), keep_rates=1.0).token_counts for variant in models]
    assert {int(count[0]) for count in counts} == {1 + 18 * 18, 1 + 9 * 9}
    pruned = [variant for variant, model in models.items() if model.config.train_pruning == "hard"]
    assert pruned == ["pruned", "pruned_860", "pruned_layers_8"]
    assert all(isinstance(model, Reg4PruForSemanticSegmentation) for model in models.values())


def test_variants_that_differ_in_their_images_only_cost_the_same(study):
    step, prediction = (_first_alike(study, training=training) for training in (True, False))
    assert {variant for variant, like in step.items() if like == "dense"} == {"dense", "reduced_860", "reduced_724"}
    assert [prediction[variant] for variant in ("reduced_724", "soft", "reg4pru", "layers_8")] == [
        *["dense"] * 3, "layers_8"
    ]  # fmt: skip
    assert step["pruned_860"] == prediction["pruned_860"] == "pruned"


def test_the_time_of_a_image_is_that_of_its_tiles(study, tmp_path):
    evaluation = "at 1024 px"
    rows = [
        {
            "variant": variant,
            "seed": seed,
            "evaluation": evaluation,
            "keep_rate": rate,
            "average_precision": 0.8,
            "cldice": 0.7,
        }
        for variant in study.variants
        for seed in study.seeds
        for rate in ("1.0", "0.7", "0.5", "0.3")
    ]
    speeds = {"1.0": 10.0, "0.7": 15.0, "0.5": 20.0, "0.3": 25.0}
    cost = {
        "inference": {
            variant: {rate: {"images_per_second": 0.0, "ratio": speed / 10} for rate, speed in speeds.items()}
            for variant in study.variants
        }
    }
    cost["inference"]["dense"]["1.0"]["images_per_second"] = 10.0  # of the others the ratio within a round counts
    tiles = {evaluation: dict.fromkeys(study.variants, 36) | {"reduced_724": 16}}
    compared = race_rows(study, rows, cost, tiles)

    of_variant = {variant: [row for row in compared if row["variant"] == variant] for variant in study.variants}
    assert [row["keep_rate"] for row in of_variant["dense"]] == ["1.0"], "it never learned to prune"
    assert [row["seconds"] for row in of_variant["pruned"]] == pytest.approx([36 / speed for speed in speeds.values()])
    assert of_variant["reduced_724"][0]["seconds"] == pytest.approx(1.6)
    assert compared[0]["cldice"] == pytest.approx(0.7)
    assert math.isclose(compared[0]["average_precision_sd"], 0, abs_tol=1e-9)

    compared[0]["average_precision"], compared[1]["average_precision"] = 0.9, 0.7  # dense; pruned, at 1.0
    table = race_markdown(study, compared, "a CPU").splitlines()
    assert table[6].startswith("| **dense** | 1.0 | 36 | 3.60 | 1.00 | 0.900 ± 0.000 |")
    assert table[7].startswith("| default recipe | 1.0 | 36 | 3.60 | 1.00 | 0.700 ± 0.000 |")
    assert sum(line.startswith("| ") for line in table) == 2 + len(compared)

    draw_race(study, compared, "a CPU", "cldice", "clDice", tmp_path / "race.png")
    with Image.open(tmp_path / "race.png") as figure:
        assert len(figure.getcolors(1 << 20)) > 20
