"""The folder that is uploaded as the Space of an `evaluate` module."""

import html
import shutil
from pathlib import Path

# Module → the files that it imports, and what must be installed.
_MODULES = {
    "vessel_metrics": (("accumulator.py", "image_counts.py"), ("scikit-image",)),
    "segmentation_metrics": (("class_metrics.py",), ("torch", "torchmetrics")),
}
_REQUIREMENTS = ("evaluate", "datasets", "numpy", "scipy")


def write_space(folder: str | Path, repo_id: str) -> Path:
    """Write the files of the Space from which `evaluate.load(repo_id)` loads the metrics of vessels or of classes.

    Upload them with `hf upload <repo_id> <folder> --repo-type space`.

    Args:
        folder (`str` or `Path`):
            Where to write. Made if missing; must be empty.
        repo_id (`str`):
            `"<user>/vessel_metrics"` or `"<user>/segmentation_metrics"`. `evaluate` looks for a Python file with the
            name of the repository, therefore the second part says which.

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: If `repo_id` has another form, or the folder holds something.
    """
    user, _, name = repo_id.partition("/")
    if not user or name not in _MODULES:
        allowed = " or ".join(f"'<user>/{module}'" for module in _MODULES)
        raise ValueError(f"repo_id is {repo_id!r}; it must be {allowed}.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; an empty or new folder is needed.")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; an empty or new folder is needed.")

    source, (files, requirements) = Path(__file__).parent, _MODULES[name]
    card = (source / f"{name}_card.md").read_text(encoding="utf-8").replace("<user>", user)
    folder.mkdir(parents=True, exist_ok=True)
    for file in (f"{name}.py", *files):
        shutil.copyfile(source / file, folder / file)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join((*_REQUIREMENTS, *requirements)) + "\n", encoding="utf-8")
    # What a static Space shows to a visitor: the card without its metadata.
    text = html.escape(card.split("---\n", 2)[2].strip())
    title = name.replace("_", " ").capitalize()
    (folder / "index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>{title}</title><pre>{text}</pre>\n', encoding="utf-8"
    )
    return folder
