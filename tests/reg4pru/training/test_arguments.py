"""Recipes and flags: which wins, what becomes of their values, and what is refused with which words."""

import pytest
import yaml

from reg4pru.training.command_line import config_fields, parse_arguments


@pytest.fixture
def write(tmp_path):
    """Writes a recipe and gives its path."""

    def write_recipe(content) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write_recipe


def refusal(capsys, *argv) -> str:
    with pytest.raises(SystemExit):
        parse_arguments([str(word) for word in argv])
    return capsys.readouterr().err


def test_flags_override_the_recipe_and_the_recipe_the_defaults(write):
    recipe = write({"seed": 3, "weight_decay": 0.1, "keep_rate_range": [0.3, 1.0], "synthetic_counts": [4, 1, 1]})
    argv = [recipe, "--output_dir", "out", "--seed", "5", "--synthetic_counts", "2", "0", "1"]
    model, data, training = parse_arguments(argv)
    assert (training.seed, training.weight_decay, training.keep_rate_range) == (5, 0.1, [0.3, 1.0])
    assert data.synthetic_counts == [2, 0, 1]
    assert (training.num_train_epochs, data.dataset, model.config_overrides) == (50, "synthetic", [])


def test_values_of_a_recipe_get_the_types_of_their_fields(write):
    text = "learning_rate: 1e-4\nkeep_rate_range: [1e-1, 1]\nrandom_crop: true\nstreaming: false\ntile_size: null\n"
    _, data, training = parse_arguments([write(text + "dataset: 12\nmax_train_steps: 7\n"), "--output_dir", "out"])
    assert training.learning_rate == 1e-4
    assert training.keep_rate_range == [0.1, 1.0]
    assert type(training.max_train_steps) is int
    assert (data.random_crop, data.streaming, data.tile_size, data.dataset) == (True, False, None, "12")


def test_a_flag_can_switch_off_what_the_recipe_switches_on(write):
    _, data, _ = parse_arguments([write({"random_crop": True}), "--random_crop", "false", "--output_dir", "out"])
    assert data.random_crop is False


def test_config_overrides_of_recipe_and_flags_are_merged(write):
    recipe = write({"config_overrides": {"keep_rates": 0.7, "routing": True, "pruning_layers": [2, 5]}})
    flags = ["--config_overrides", "routing=false", "keep_rates=[0.7, 0.5]", "num_blocks=3"]
    model, _, _ = parse_arguments([recipe, "--output_dir", "out", *flags])
    assert config_fields(model.config_overrides) == {
        "keep_rates": [0.7, 0.5],
        "routing": False,
        "pruning_layers": [2, 5],
        "num_blocks": 3,
    }


def test_config_fields_are_yaml_and_the_last_entry_wins():
    fields = config_fields(
        ["a=1e-4", "b=soft", "c=null", "d= [2, 3]", " e =true", "f=x=y", "a=2e-3", "g='1'", "h=1.5"]
    )
    assert fields == {
        "a": 0.002,
        "b": "soft",
        "c": None,
        "d": [2, 3],
        "e": True,
        "f": "x=y",
        "g": 1.0,
        "h": 1.5,
    }
    # What a recipe held comes through unchanged.
    held = {"selector": "mlp", "keep_rates": [0.7, 0.5], "id2label": {0: "background", 1: "vessel"}, "rate": 0.3}
    assert config_fields([f"{name}={yaml.safe_dump(value).strip()}" for name, value in held.items()]) == held


@pytest.mark.parametrize("override", ["routing", "keep_rates=[0.7"])
def test_bad_config_overrides_are_refused(override):
    with pytest.raises(ValueError, match=override.split("=")[0]):
        config_fields([override])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"learnin_rate": 1}, ["unknown fields learnin_rate", "known are", "learning_rate"]),
        ({"seed": 1.5}, ["--seed", "'1.5'"]),
        ({"learning_rate": "fast"}, ["--learning_rate", "'fast'"]),
        ({"synthetic_counts": ["many", 1, 1]}, ["--synthetic_counts", "'many'"]),
        ({"random_crop": "perhaps"}, ["--random_crop", "perhaps"]),
        ({"config_overrides": ["routing=false"]}, ["config_overrides", "['routing=false']", "mapping"]),
        ({"max_train_steps": 0}, ["--max_train_steps is 0", "at least 1"]),
        ("[seed, 1]", ["['seed', 1]", "must be a mapping"]),
        ("seed: [1", ["is not YAML"]),
    ],
    ids=str,
)
def test_bad_recipes_are_refused(write, capsys, content, words):
    message = refusal(capsys, write(content), "--output_dir", "out")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning_rate", "0"], ["--learning_rate is 0.0", "above 0"]),
        (["--learning_rate", "nan"], ["--learning_rate is nan", "above 0"]),
        (["--selector_learning_rate", "0"], ["--selector_learning_rate is 0.0", "above 0"]),
        (["--layer_decay", "1.5"], ["--layer_decay is 1.5", "(0, 1]"]),
        (["--ema_decay", "2"], ["--ema_decay is 2.0", "[0, 1]"]),
        (["--dense_fraction", "-0.1"], ["--dense_fraction is -0.1", "[0, 1]"]),
        (["--keep_rate_warmup", "1.1"], ["--keep_rate_warmup is 1.1", "[0, 1]"]),
        (["--keep_rate_range", "0.9", "0.3"], ["--keep_rate_range is [0.9, 0.3]", "low <= high"]),
        (["--keep_rate_range", "0.5"], ["--keep_rate_range is [0.5]", "two rates"]),
        (["--mixed_precision", "fp8"], ["--mixed_precision", "'fp8'", "choose from", "bf16"]),
        (["--samples_per_image", "0"], ["--samples_per_image is 0", "at least 1"]),
        (["--checkpointing_steps", "0"], ["--checkpointing_steps is 0", "at least 1"]),
        (["--gradient_accumulation_steps", "0"], ["--gradient_accumulation_steps is 0", "at least 1"]),
        (["--tile_size", "-5"], ["--tile_size is -5", "at least 1"]),
        (["--seed", "-1"], ["--seed is -1", "at least 0"]),
        (["--weight_decay", "-1"], ["--weight_decay is -1.0", "at least 0"]),
        (["--dataloader_num_workers", "-2"], ["--dataloader_num_workers is -2", "at least 0"]),
        (["--random_crop", "--tile_size", "64"], ["--random_crop or --tile_size, not both"]),
        (["--model_name_or_path", "a", "--backbone_name_or_path", "b"], ["not both"]),
        (["--no_such_flag", "1"], ["unknown arguments --no_such_flag 1"]),
        (["recipe.yaml"], ["unknown arguments recipe.yaml", "a recipe comes first"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_flags_are_refused_with_flag_value_and_what_is_allowed(capsys, flags, words):
    message = refusal(capsys, "--output_dir", "out", *flags)
    assert all(word in message for word in words), message


def test_the_output_folder_and_the_recipe_must_be_there(capsys, tmp_path):
    assert "--output_dir is needed" in refusal(capsys, "--seed", "1")
    missing = tmp_path / "missing.yaml"
    assert f"There is no file {missing}" in refusal(capsys, missing, "--output_dir", "out")
