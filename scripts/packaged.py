"""Recipes and studies: YAML files of the user's own, or those that come with the package, by name."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


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
