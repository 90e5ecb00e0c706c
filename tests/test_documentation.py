"""What the pages say can be typed: imports, flags, files and links exist."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from reg4pru.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = sorted(page.relative_to(ROOT) for found in ("*.md", "docs/*.md", "results/*.md") for page in ROOT.glob(found))
every_page = pytest.mark.parametrize("page", PAGES, ids=str)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_of_docs_begins_with_a_command(page):
    title, _, begins, *_ = page.read_text().splitlines()
    assert title.startswith("# ")
    assert begins == "```bash"


def test_the_readme_is_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@every_page
def test_python_imports_what_there_is(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module


def test_commands_have_the_flags_that_are_shown(monkeypatch, capsys):
    shown = {}
    for page in (*PAGES, "Makefile"):
        for block in [(ROOT / page).read_text()] if page == "Makefile" else blocks(page, "bash"):
            lines = re.split(r"\n| & ", re.sub(r"\\\n", " ", block))
            for line in (line.split(" #")[0] for line in lines if not line.startswith("#")):
                for command, rest in re.findall(r"\breg4pru ([a-z]+)(.*)", line):
                    flags = dict.fromkeys(re.findall(r"(?<!\S)--\w+", rest), page)
                    shown.setdefault(command, {}).update(flags)
    assert shown.keys() <= COMMANDS.keys()
    for command, flags in shown.items():
        monkeypatch.setattr(sys, "argv", ["reg4pru", command, "--help"])
        with pytest.raises(SystemExit):
            main()
        known = set(re.findall(r"--\w+", capsys.readouterr().out))
        assert not {flag: str(page) for flag, page in flags.items() if flag not in known}, command


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, link


@every_page
def test_files_that_are_named_exist(page):
    named = re.findall(
        r"`([\w./-]+/[\w.-]*\.(?:py|md|png|yaml|csv|json|toml)|\w+\.(?:py|yaml|toml))`", (ROOT / page).read_text()
    )
    ours = {
        path.name
        for folder in ("modeling_reg4pru", "datasets_fives", "scripts", "tests")
        for path in (ROOT / folder).rglob("*")
    }
    for name in named:
        known = (ROOT / name).exists() or ((ROOT / page).parent / name).exists()
        assert known or ("/" not in name and name in ours), name


def test_the_notebook_is_committed_as_it_ran():
    text = (ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", text), "a path of the machine that ran it"
