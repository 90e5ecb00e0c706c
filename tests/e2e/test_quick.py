"""End to end: the commands of `make quick`, in a shell, and the notebook, in a fresh kernel."""

import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# The same with fewer images and steps.
SMALLER = {
    "--synthetic_counts 16 1 2": "--synthetic_counts 2 1 1",
    "--max_train_steps 130 --eval_steps 130": "--max_train_steps 2 --eval_steps 2",
}


def smaller(text: str) -> str:
    for full, less in SMALLER.items():
        text = text.replace(full, less)
    return text


def commands_of_quick() -> list[str]:
    recipe = (ROOT / "Makefile").read_text().split("\nquick: $(BASE)\n")[1].split("\n\n")[0]
    for written, meant in (
        ("$(VENV)/bin/reg4pru", f"{sys.executable} -m reg4pru"),
        ("$(RUN)", sys.executable),
        ("$(QUICK)", "outputs/quick"),
    ):
        recipe = recipe.replace(written, meant)
    return smaller(recipe.replace("\\\n", " ").replace("$$", "$")).splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `make quick` was run."""
    folder = tmp_path_factory.mktemp("quick")
    for command in commands_of_quick():
        ended = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    (folder / "summary.txt").write_text(ended.stdout + ended.stderr)
    return folder


def test_quick_ends_with_what_it_has_shown(folder):
    said = (folder / "summary.txt").read_text()
    assert "average precision" in said
    for name in re.findall(r"outputs/quick/[\w./-]*\w", said):
        assert (folder / name).exists(), name


def test_the_notebook_runs_as_it_stands(tmp_path):
    notebook = nbformat.read(ROOT / "docs/quickstart.ipynb", as_version=4)
    started = time.monotonic()
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert time.monotonic() - started < 900  # a minute and a half on two free cores
    assert (tmp_path / "outputs/quickstart/model/config.json").is_file()
