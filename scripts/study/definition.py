"""
The definition of a study, read from a YAML file: variants × seeds to train, and the evaluations of every trained run.

    recipe: tiny_synthetic                # of `reg4pru train`, a name or a path; shared by all runs
    overrides: {max_train_steps: 900}     # fields of the recipe, for all runs
    config: {routing_keep_rate: 0.5}      # fields of Reg4PruConfig, for all runs
    seeds: [0, 1, 2]
    keep_rates: [1.0, 0.7, 0.5, 0.3]      # of the evaluations, each for every stage
    evaluations:                          # besides that of the model as trained, on the test images
      - {selector: random}                # with this change of the model
      - {name: HRF, dataset: $HRF_DIR}    # on other images, at the same working size; `split` as in training
      - {working_size: 1024}              # at this size, whatever the working size of a variant
      - {tile_overlap: 0.25}              # on these tiles, whatever those of the image processor
    limit: 60                             # only so many images of an evaluation, spread evenly; unset, all
    compare: [soft, reg4pru]              # the two variants that figures show side by side
    variants:                             # the first is the reference of the costs
      dense: {label: no pruning, config: {train_pruning: none, routing: false}}
      drawn: {config: {train_pruning: hard}, flags: {keep_rate_range: [0.3, 1.0]}}
      soft: {config: {train_pruning: soft}, num_seeds: 1}      # only the first of the seeds

A variant is a combination of settings and nothing else. `$NAME` in a value stands for an environment variable; an
evaluation on a data set whose variable is not set is left out with a warning. A study may define only its differences
from a `base`: `overrides` and `config` are added to those of the base, `variants` may be a list of names of the base's
variants, some with other settings, and any other field replaces that of the base.

    base: sample
    overrides: {max_train_steps: 1200}
    variants: [dense, {reg4pru: {num_seeds: 1}}]
"""

import logging
import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from modeling_reg4pru import Reg4PruConfig

from ..common.former_names import with_present_names
from ..common.keep_rates import check_keep_rates
from ..common.recipes import find_yaml
from ..training.arguments import TRAIN_ARGUMENTS

logger = logging.getLogger(__name__)

# What an evaluation may change: the model, and the images that it is done on.
MODEL_FIELDS = (
    "selection_pool", "selector", "reactivation_layer", "blend_share_weight", "allocation", "context_grid",
)  # fmt: skip
DATA_FIELDS = ("dataset", "split", "working_size", "tile_overlap")
# Flags that the study sets for every run.
RESERVED_FLAGS = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed", "config_overrides")
AS_TRAINED = "as trained"

REQUIRED_FIELDS = ("recipe", "seeds", "keep_rates", "variants")
OPTIONAL_FIELDS = {"overrides": {}, "config": {}, "evaluations": [], "compare": [], "limit": None}
# Fields that a study adds to those of its base instead of replacing them.
MERGED_FIELDS = ("overrides", "config")


@dataclass
class Study:
    """
    Args:
        name (`str`): Name of the file.
        recipe (`dict`): Settings that all runs share, `config_overrides` among them.
        seeds (`list[int]`): Seeds, the same for every variant, of which one may have the first ones only.
        keep_rates (`list[float]`): Keep rates of the evaluations.
        evaluations (`dict[str, dict]`): Settings of every evaluation by name; the first, without any, is that of the
            model as trained, on the test images.
        variants (`dict[str, dict]`): `label`, `config` and `flags` of every variant by name, and `seeds` where it does
            not have all.
        compare (`list[str]`): Two variants to show side by side, or none.
        limit (`int`, *optional*): So many images of an evaluation, spread evenly, are measured; unset, all.
    """

    name: str
    recipe: dict
    seeds: list[int]
    keep_rates: list[float]
    evaluations: dict[str, dict]
    variants: dict[str, dict]
    compare: list[str]
    limit: int | None = None

    @property
    def shown_rate(self) -> float:
        """The mildest pruning of the study, which figures show; in the paper it is 0.7."""
        return max((rate for rate in self.keep_rates if rate < 1), default=1.0)

    def run_recipe(self, variant: str, seed: int) -> dict:
        """The complete recipe of one run."""
        settings = self.variants[variant]
        config = _changed(self.recipe.get("config_overrides", {}), settings["config"])
        return {**self.recipe, **settings["flags"], "seed": seed, "config_overrides": config}

    def runs(self) -> list[tuple[str, int]]:
        """Variant and seed of every run; all variants of a seed come before the next seed."""
        return [(variant, seed) for seed in self.seeds for variant in self.variants if seed in self.seeds_of(variant)]

    def seeds_of(self, variant: str) -> list[int]:
        """The seeds that a variant has."""
        return [seed for seed in self.seeds if seed in self.variants[variant].get("seeds", self.seeds)]

    def part(self, variants: list[str] | None = None, seeds: list[int] | None = None) -> "Study":
        """
        The study with some of its variants and seeds, in the same order; without variants that have none of these
        seeds, and without figures of compared variants unless both are among them.

        Raises:
            `ValueError`: for an unknown variant or seed, or if no run is left.
        """
        for flag, wanted, known in (("--only", variants, list(self.variants)), ("--seeds", seeds, self.seeds)):
            unknown = sorted(set(wanted or ()) - set(known))
            if unknown:
                names, available = (", ".join(map(str, entries)) for entries in (unknown, known))
                raise ValueError(f"{flag} names {names}: {self.name} has {available}.")
        part = replace(self, seeds=[seed for seed in self.seeds if not seeds or seed in seeds])
        wanted = variants or list(self.variants)
        kept = {
            variant: settings
            for variant, settings in self.variants.items()
            if variant in wanted and part.seeds_of(variant)
        }
        if not kept:
            raise ValueError(f"--only and --seeds leave no run: none of {', '.join(wanted)} has these seeds.")
        return replace(
            part,
            variants=kept,
            compare=self.compare if set(self.compare) <= set(kept) else [],
        )


def read_study(path: Path) -> Study:
    """
    Read and validate a study; every mistake in it is found here, before any run.

    Raises:
        `ValueError`: for a file, field, variant, setting or value that does not exist or is not allowed.
    """
    content = _with_base(_read_fields(path), path)
    missing = [name for name in REQUIRED_FIELDS if not content.get(name)]
    if missing:
        raise ValueError(f"The study {path} has no {', '.join(missing)}.")
    content["evaluations"] = [entry for entry in content.get("evaluations") or [] if _has_data(entry)]
    content = {**OPTIONAL_FIELDS, **_expand(content, str(path))}

    recipe = with_present_names(
        yaml.safe_load(_find(content["recipe"], "recipe", path).read_text(encoding="utf-8")) or {}
    )
    _check_flags(content["overrides"], f"`overrides` of {path}")
    config = _changed(recipe.get("config_overrides", {}), content["config"])
    recipe = {**recipe, **content["overrides"], "config_overrides": config}

    seeds = content["seeds"]
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` of {path} is {seeds}: it must be a list of distinct integers, 0 or above.")
    check_keep_rates(content["keep_rates"])
    study = Study(
        name=path.stem,
        recipe=recipe,
        seeds=seeds,
        keep_rates=content["keep_rates"],
        evaluations={AS_TRAINED: {}, **_read_evaluations(content["evaluations"], path)},
        variants={
            name: _read_variant(name, settings or {}, seeds, path) for name, settings in content["variants"].items()
        },
        compare=content["compare"],
        limit=content["limit"],
    )
    if study.limit is not None and (type(study.limit) is not int or study.limit < 1):
        raise ValueError(f"`limit` of {path} is {study.limit!r}: it must be a positive number of images.")
    if study.compare and (len(study.compare) != 2 or set(study.compare) - set(study.variants)):
        raise ValueError(f"`compare` of {path} is {study.compare}: it must name two of {', '.join(study.variants)}.")
    for variant in study.variants:
        _check_configurations(study, variant)
    return study


def _changed(config: dict, changes: dict) -> dict:
    """A configuration with changes; a change to null leaves the field at its default."""
    unset = {name for name, value in changes.items() if value is None}
    return {name: value for name, value in {**config, **changes}.items() if name not in unset}


def _read_fields(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"The study {path} does not exist.")
    content = with_present_names(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    _check_keys(content, (*REQUIRED_FIELDS, *OPTIONAL_FIELDS, "base"), f"The study {path}")
    for name in MERGED_FIELDS:
        if not isinstance(content.setdefault(name, {}), dict):
            raise ValueError(f"`{name}` of {path} is {content[name]!r}: it must be a mapping.")
    return content


def _find(name: str, field: str, path: Path) -> Path:
    try:
        return find_yaml(name, "recipes" if field == "recipe" else "studies")
    except ValueError as error:
        raise ValueError(f"`{field}` of {path} is {name!r}. {error}") from None


def _with_base(content: dict, path: Path) -> dict:
    """The fields of a study, completed by those of its `base`; variants given as names are those of the base."""
    base = {}
    if "base" in content:
        base_path = _find(content["base"], "base", path)
        base = _read_fields(base_path)
        if "base" in base:
            raise ValueError(f"`base` of {path} is {content['base']}, which has a base itself: use {base['base']}.")
        base = _with_base(base, base_path)
    if isinstance(content.get("variants"), list):
        known, changed = base.get("variants", {}), {}
        for entry in content["variants"]:
            changed |= entry if isinstance(entry, dict) else {entry: {}}
        unknown = [str(variant) for variant in changed if variant not in known]
        if unknown:
            known = ", ".join(known) or "none"
            raise ValueError(f"`variants` of {path} names {', '.join(unknown)}: the variants of its base are {known}.")
        content = {**content, "variants": {variant: {**known[variant], **changed[variant]} for variant in changed}}
    merged = {name: {**base.get(name, {}), **content[name]} for name in MERGED_FIELDS}
    return {name: value for name, value in {**base, **content, **merged}.items() if name != "base"}


def evaluation_name(settings: dict) -> str:
    """The name of an evaluation in the results: its `name`, or its settings, such as `"selection_pool=all"`."""
    _check_keys(settings, ("name", *MODEL_FIELDS, *DATA_FIELDS), "An evaluation")
    if settings.get("selector", "random") != "random":
        raise ValueError(f"An evaluation has selector {settings['selector']!r}: it can only be 'random'.")
    if "split" in settings and "dataset" not in settings:
        raise ValueError(f"An evaluation has split {settings['split']!r} but no dataset to split.")
    size = settings.get("working_size", 1)
    if type(size) is not int or size < 1:
        raise ValueError(f"An evaluation has working_size {size!r}: it must be a positive number of pixels.")
    overlap = settings.get("tile_overlap", 0)
    if not isinstance(overlap, (int, float)) or not (0 <= overlap < 1 or (type(overlap) is int and overlap > 0)):
        raise ValueError(
            f"An evaluation has tile_overlap {overlap!r}: it must be a number of pixels, or a part of a tile below 1."
        )
    if "dataset" in settings and "name" not in settings:
        raise ValueError(f"An evaluation on {settings['dataset']} has no name: give it one to show in the tables.")
    return settings.get("name") or ", ".join(f"{name}={value}" for name, value in settings.items()) or AS_TRAINED


def is_as_trained(settings: dict) -> bool:
    """Whether an evaluation changes nothing in the model; its images may be others."""
    return not set(settings) & set(MODEL_FIELDS)


def _has_data(settings: dict) -> bool:
    """Whether the variable of an evaluation's data set is set; a warning says which evaluation is left out."""
    if not (isinstance(settings, dict) and "$" in os.path.expandvars(str(settings.get("dataset", "")))):
        return True
    logger.warning("Not evaluated on %s: %s is not set.", settings.get("name"), settings["dataset"])
    return False


def _read_evaluations(entries: list[dict], path: Path) -> dict[str, dict]:
    names = [evaluation_name(settings) for settings in entries]
    twice = sorted({name for name in names if [AS_TRAINED, *names].count(name) > 1})
    if twice:
        raise ValueError(f"`evaluations` of {path} has {', '.join(twice)} more than once.")
    settings = [{field: value for field, value in entry.items() if field != "name"} for entry in entries]
    return dict(zip(names, settings, strict=True))


def _read_variant(name: str, settings: dict, seeds: list[int], path: Path) -> dict:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"{path} has a variant {name!r}: a name consists of letters, digits, '_', '-' and '.'.")
    _check_keys(settings, ("label", "config", "flags", "num_seeds"), f"The variant {name} of {path}")
    variant = {"label": name.replace("_", " "), "config": {}, "flags": {}, **settings}
    if "num_seeds" in variant:
        count = variant.pop("num_seeds")
        if type(count) is not int or not 1 <= count <= len(seeds):
            raise ValueError(f"`num_seeds` of the variant {name} is {count!r}: the study has {len(seeds)} seeds.")
        variant["seeds"] = seeds[:count]
    _check_flags(variant["flags"], f"`flags` of the variant {name}")
    return variant


def _check_configurations(study: Study, variant: str) -> None:
    """Raises `ValueError` unless every configuration of the variant, trained or evaluated, is valid."""
    config = study.run_recipe(variant, study.seeds[0])["config_overrides"]
    _check_keys(config, (*Reg4PruConfig().to_dict(), "num_labels"), f"The configuration of the variant {variant}")
    for name, settings in study.evaluations.items():
        changed = {field: settings[field] for field in settings if field in MODEL_FIELDS and field != "selector"}
        try:
            Reg4PruConfig(**{**config, **changed})
        except Exception as error:  # the strict dataclass of huggingface_hub wraps errors in its own classes
            raise ValueError(
                f"The configuration of the variant {variant}, evaluated {name}, is not valid: {error}"
            ) from error


def _check_flags(flags: dict, where: str) -> None:
    known = [entry.name for cls in TRAIN_ARGUMENTS for entry in fields(cls)]
    _check_keys(flags, [name for name in known if name not in RESERVED_FLAGS], where)


def _check_keys(settings: dict, known: tuple | list, where: str) -> None:
    if not isinstance(settings, dict):
        raise ValueError(f"{where} is {settings!r}: it must be a mapping with {', '.join(known)}.")
    unknown = [str(name) for name in settings if name not in known]
    if unknown:
        raise ValueError(f"{where} has {', '.join(unknown)}: it may have {', '.join(known)}.")


def _expand(value: object, where: str) -> object:
    """The value with environment variables replaced in its strings; raises `ValueError` for one that is not set."""
    if isinstance(value, dict):
        return {key: _expand(entry, where) for key, entry in value.items()}
    if isinstance(value, list):
        return [_expand(entry, where) for entry in value]
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise ValueError(f"{where} refers to {value}, and this environment variable is not set.")
    return expanded
