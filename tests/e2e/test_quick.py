"""End to end: the commands of `make quick`, what the pages show in Python, on what these wrote, and the notebook."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# The same with fewer images and steps.
SMALLER = {
    "--synthetic_counts 16 1 2": "--synthetic_counts 2 1 1",
    "--max_train_steps 150 --eval_steps 150": "--max_train_steps 2 --eval_steps 2",
    "max_steps=100": "max_steps=1",
    "max_steps=150": "max_steps=1",
    "eval_steps=50": "eval_steps=1",
    "synthetic_counts=(16, 2, 2)": "synthetic_counts=(2, 1, 1)",
}
# What is shown of these needs the Hub, or a measured speed.
ELSEWHERE = ("user/", "set_speed_budget")


def smaller(text: str) -> str:
    for full, less in SMALLER.items():
        text = text.replace(full, less)
    return text


def run(script: str, folder: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def commands_of_quick() -> list[list[str]]:
    recipe = (ROOT / "Makefile").read_text().split("\nquick: install\n")[1].split("\n\n")[0]
    for written, meant in (
        ("$(VENV)/bin/reg4pru", f"{sys.executable} -m reg4pru"),
        ("$(RUN)", sys.executable),
        ("$(QUICK)", "outputs/quick"),
    ):
        recipe = recipe.replace(written, meant)
    return [shlex.split(line) for line in smaller(recipe.replace("\\\n", " ")).splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `make quick` was run."""
    folder = tmp_path_factory.mktemp("quick")
    for command in commands_of_quick():
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    (folder / "summary.txt").write_text(ended.stdout + ended.stderr)
    return folder


def test_quick_ends_with_what_it_has_shown(folder):
    said = (folder / "summary.txt").read_text()
    assert "average precision" in said
    for name in re.findall(r"outputs/quick/[\w./-]*\w", said):
        assert (folder / name).exists(), name


@pytest.mark.parametrize("page", ["README.md", "docs/data.md", "docs/training.md", "docs/inference.md"])
def test_python_of_the_pages_runs(folder, page):
    tiny = folder / "outputs/tiny"
    if not tiny.exists():
        tiny.symlink_to(folder / "outputs/quick/run")
        Image.new("RGB", (128, 128), "brown").save(folder / "image.jpg")
    shown = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    script = "\n".join(smaller(block) for block in shown if not any(place in block for place in ELSEWHERE))
    assert script
    run(script, folder)


def test_the_notebook_runs(tmp_path):
    notebook = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    run(smaller("\n".join(cells)), tmp_path)
    assert (tmp_path / "outputs/quickstart/model/config.json").is_file()
