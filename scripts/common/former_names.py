"""
Names of before in what was saved: recipes, studies, records and checkpoints of early versions are read with the names
of today. Flags on the command line have no former names.
"""

from typing import Any

FORMER_NAMES = {
    "photograph_size": "working_size",
    "samples_per_photograph": "samples_per_image",
    "allow_training_photographs": "allow_training_images",
    "photographs_per_shard": "images_per_shard",
    "tiles_per_photograph": "tiles_per_image",
    "photographs": "images",
    "arms": "variants",
    "arm": "variant",
}
FORMER_TAGS = {"reg4pru-images": "reg4pru-photographs"}  # of data sets on the Hub
FORMER_TRAINING_IMAGES = "training_photographs.json"  # of a checkpoint


def present_name(name: str) -> str:
    """What a key, or an evaluation that is named by its settings (`"photograph_size=1024"`), is called today."""
    settings = [setting.partition("=") for setting in name.split(", ")]
    return ", ".join(f"{FORMER_NAMES.get(key, key)}{sign}{value}" for key, sign, value in settings)


def with_present_names(content: Any) -> Any:
    """
    What a YAML or JSON file holds, with the keys of today.

    Args:
        content (`dict`, `list` or a plain value): As it was read.

    Raises:
        `ValueError`: if it gives the same twice, under its former name and that of today.
    """
    if isinstance(content, list):
        return [with_present_names(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    renamed = {present_name(key) if isinstance(key, str) else key: key for key in content}
    if len(renamed) < len(content):
        twice = sorted(present_name(key) for key in content if key not in renamed.values())
        raise ValueError(f"{', '.join(twice)} is given twice, once under its former name.")
    return {name: with_present_names(content[key]) for name, key in renamed.items()}
