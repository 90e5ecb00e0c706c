"""The command line of `reg4pru train`: a recipe, which is a YAML file of flags, and flags that override it."""

import argparse
import sys
from dataclasses import fields

import yaml

from ..common.cli import CommandParser
from ..common.former_names import with_present_names
from ..common.recipes import find_yaml
from .arguments import TRAIN_ARGUMENTS, DataArguments, ModelArguments, TrainArguments, check_values


def make_parser(documentation: str = "") -> CommandParser:
    """The parser of `reg4pru train`; `documentation` is its docstring."""
    return CommandParser(TRAIN_ARGUMENTS, documentation, "[recipe] --output_dir OUTPUT_DIR")


def parse_arguments(
    argv: list[str] | None = None, documentation: str = ""
) -> tuple[ModelArguments, DataArguments, TrainArguments]:
    """
    `reg4pru train [recipe] [--flag value ...]`: flags override the recipe, the recipe overrides the defaults.

    Args:
        argv (`list[str]`, *optional*): The words after the command; by default those of this process.
        documentation (`str`, *optional*): See [`make_parser`].

    Raises:
        `SystemExit`: with the parser's message, for a flag, a recipe field or a value that does not exist or fit.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(documentation)
    recipe_overrides: list[str] = []
    if argv and not argv[0].startswith("-"):
        recipe = _read_recipe(parser, argv[0])
        overrides = recipe.pop("config_overrides", None) or {}
        recipe_overrides = [f"{name}={yaml.safe_dump(value).strip()}" for name, value in overrides.items()]
        argv = [*_as_flags(recipe), *argv[1:]]
    model, data, training = parser.read_flags(argv, "; a recipe comes first")
    model.config_overrides = recipe_overrides + model.config_overrides
    _check(parser, model, data, training)
    return model, data, training


def _read_recipe(parser: argparse.ArgumentParser, name: str) -> dict:
    try:
        path = find_yaml(name, "recipes")
        recipe = with_present_names(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as error:
        parser.error(f"recipe {path} is not YAML: {error}")
    except ValueError as error:
        parser.error(str(error))
    if not isinstance(recipe, dict):
        parser.error(f"recipe {path} is {recipe!r}: it must be a mapping of fields to values")
    known = {entry.name for cls in TRAIN_ARGUMENTS for entry in fields(cls)}
    unknown = sorted(map(str, set(recipe) - known))
    if unknown:
        parser.error(f"recipe {path} has unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    overrides = recipe.get("config_overrides")
    if overrides is not None and not isinstance(overrides, dict):
        parser.error(f"config_overrides of recipe {path} is {overrides!r}: it must be a mapping of fields to values")
    return recipe


def _as_flags(recipe: dict) -> list[str]:
    """A recipe as flags, so that the parser converts and checks its values too: 1e-4 is a string to YAML."""
    flags = []
    for name, value in recipe.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:  # null stands for the default
            flags.append(f"--{name}={value}")
    return flags


def _check(
    parser: argparse.ArgumentParser, model: ModelArguments, data: DataArguments, training: TrainArguments
) -> None:
    if not training.output_dir:
        parser.error("--output_dir is needed")
    if model.model_name_or_path and model.backbone_name_or_path:
        parser.error("give --model_name_or_path or --backbone_name_or_path, not both")
    if data.streaming and data.tile_size:
        parser.error("--tile_size needs all images at once: give --random_crop with --streaming")
    if data.streaming and training.dataloader_num_workers > 1:
        parser.error(
            f"--dataloader_num_workers is {training.dataloader_num_workers}: one stream has one reader, 0 or 1"
        )
    if training.push_to_hub and not training.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id")
    try:
        check_values({**vars(data), **vars(training)})
    except ValueError as error:
        parser.error(str(error))


def config_fields(overrides: list[str]) -> dict:
    """`["routing=false", "keep_rates=[0.7, 0.5]"]` to a dict; later entries win. Values are YAML."""
    parsed = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"config_overrides: {override!r} is not of the form field=value.")
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"config_overrides: the value of {override!r} is not YAML.") from error
        # PyYAML takes 1e-4 for a string; what float() understands is a number.
        try:
            parsed[name.strip()] = float(value) if isinstance(value, str) else value
        except ValueError:
            parsed[name.strip()] = value
    return parsed
