"""The folder of a Space with a demo of a checkpoint: the app, its code and its requirements."""

import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from ..common.recipes import PACKAGE
from ..inference.model_classes import VESSEL_CLASSES

_TEMPLATE = PACKAGE / "app" / "space" / "README.md"
# The package is not on PyPI, so its code is part of the Space.
_PACKAGES = ("datasets_fives", "modeling_reg4pru")
_MEDICAL = "Research software, not a medical device: it must not be used for diagnosis or treatment."
_NOT_MEDICAL = "Research software: it must not be used where errors can do harm."
_CODE = ("*.py", "*.css", "*.md", "*.yaml")


def write_space(folder: Path, model_id: str, names: list[str] = VESSEL_CLASSES) -> None:
    """
    Write the files of a Space.

    Args:
        folder (`Path`): A new or empty folder.
        model_id (`str`): Hub id of the checkpoint, `"user/name"`.
        names (`list[str]`, *optional*, defaults to background and vessel): Its classes.

    Raises:
        `ValueError`: If the folder is not empty, or gradio, whose version a Space has to state, is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: choose another folder.")
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        raise ValueError('The Space needs the version of gradio: pip install "reg4pru[app]".') from None
    for source, name in ((PACKAGE, "reg4pru"), *((PACKAGE.parent / name, name) for name in _PACKAGES)):
        for path in sorted(file for pattern in _CODE for file in source.rglob(pattern)):
            target = folder / name / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    card = _TEMPLATE.read_text(encoding="utf-8").replace("<model>", model_id).replace("<gradio>", gradio)
    card = card.replace("<image>", "an image of the retina" if names == VESSEL_CLASSES else "an image")
    card = card.replace("<note>", _MEDICAL if len(names) == 2 else _NOT_MEDICAL)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "app.py").write_text(
        f'from reg4pru.app.__main__ import main\n\nmain(["--model", "{model_id}", "--mcp_server"])\n', encoding="utf-8"
    )
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")


def requirements() -> list[str]:
    """The requirements of the app, from the metadata of the installed package."""
    needed = (line.partition(";") for line in requires("reg4pru") or ())
    wanted = (name.strip() for name, _, condition in needed if "extra" not in condition or '"app"' in condition)
    return sorted(wanted)
