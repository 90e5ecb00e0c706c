"""Recipes and studies: YAML files of the user's own, or those that come with the package, by name."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# What a reader needs to train the same again; paths and housekeeping stay in train_results.json.
RECIPE = ("learning_rate", "weight_decay", "layer_decay", "selector_learning_rate", "head_warmup_steps",
          "backbone_warmup_steps", "poly_power", "per_device_train_batch_size", "gradient_accumulation_steps",
          "max_grad_norm", "ema_decay", "mixed_precision", "keep_rate_warmup", "keep_rate_range", "dense_fraction",
          "distillation", "random_crop", "augment_flips", "augment_turns", "augment_colours", "augment_scales",
          "tile_size", "working_size", "seed")  # fmt: skip


def find_yaml(name: str | Path, kind: str) -> Path:
    """
    A file, or the one of that name which comes with the package.

    Args:
        name (`str` or `Path`): Path of a YAML file, or the bare name of one of ours, such as `"sample_scratch"`.
        kind (`str`): `"recipes"` or `"studies"`.

    Raises:
        `ValueError`: if there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    ours = {path.stem: path for path in sorted((PACKAGE / kind).glob("*.yaml"))}
    if str(name) in ours:
        return ours[str(name)]
    raise ValueError(f"There is no file {name}, and the {kind} that come with the package are {', '.join(ours)}.")
