"""Mappings that a user writes into YAML or JSON files."""

from pathlib import Path

import yaml

SUFFIXES = (".yaml", ".yml", ".json")


def read_mapping(path: str | Path) -> dict:
    """
    Read a YAML or JSON file that holds a mapping.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `dict`

    Raises:
        ValueError: If the file does not exist, is neither, or holds something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist.")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; needed is a mapping.")
    return content
