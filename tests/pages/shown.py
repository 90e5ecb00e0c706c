"""What the pages and cards show to be typed, block by block, and which of it the tests cannot run."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "model_card.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
RESULTS = tuple(sorted(f"results/{page.name}" for page in (ROOT / "results").glob("*.md")))

# How a command begins → why it is not run. The parser of the command reads what comes after `reg4pru` all the same.
NOT_RUN = {
    "git clone": "needs the address of the repository",
    "cd ": "the same",
    "make demo": "takes ten minutes; its study is run smaller in tests/reg4pru/study",
    "hf auth login": "asks for a token",
    "hf jobs": "rents a machine of the Hub; the same script is run by `uv run` above it",
    "torchrun": "several processes: tests/reg4pru/training/test_two_processes.py",
    "accelerate launch": "several processes: tests/reg4pru/training/test_two_processes.py",
    "reg4pru train fives_vits16_1024": "tiles of 1024 px: for a GPU; tests/reg4pru/training/test_recipes.py",
    "reg4pru app": "serves until it is stopped: tests/reg4pru/app",
    "reg4pru export": "takes half a minute: tests/reg4pru/inference/test_export.py",
    "reg4pru benchmark --engines all": "compiles for minutes: tests/reg4pru/benchmarking/test_engines.py",
    "reg4pru study": "takes hours: tests/reg4pru/study",
    "python -m reg4pru.maintenance.render_readme": "would write the pages: make lint",
}


class Block(NamedTuple):
    """A fenced block: where it stands, `"bash"` or `"python"`, and its text."""

    page: str
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """The blocks of Bash and Python of a page, in their order."""
    found = re.findall(r"^```(bash|python)\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(page, language, text) for language, text in found]


def commands_of(text: str) -> list[str]:
    """The commands of a Bash block or a Makefile rule: one a line, without comments and continuations."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    commands = " && ".join(re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    commands = [command.strip() for command in re.split(r" &&? ?", commands)]
    return [
        re.sub(r"^([A-Z][A-Z0-9_]*=\S+ )+", "", command)
        for command in commands
        if command and not command.startswith("wait ")
    ]


def quick_rule() -> list[str]:
    """The commands of `make quick`, as they are after Make has filled in its variables."""
    rule = (ROOT / "Makefile").read_text("utf-8").split("\nquick: $(BASE)\n")[1].split("\n\n")[0]
    for written, meant in (("$(VENV)/bin/", ""), ("$(RUN)", "python"), ("$(QUICK)", "outputs/quick")):
        rule = rule.replace(written, meant)
    return commands_of(rule)
