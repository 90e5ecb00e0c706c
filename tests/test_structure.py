"""
The structure of the repository: who may import whom, how long a file may be, and which words are not used.

The allowed imports stand in one place, the table "Layout" of CONTRIBUTING.md, which is read here.
"""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from reg4pru.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
# Folder → the package that it is installed as.
PACKAGES = {"modeling_reg4pru": "modeling_reg4pru", "datasets_fives": "datasets_fives", "scripts": "reg4pru"}
LIBRARIES = ("modeling_reg4pru", "datasets_fives")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TEXTS = sorted(
    path.relative_to(ROOT)
    for place in (*PACKAGES, "tests", "examples", "docs", "*.md", "results/*.md", "Makefile", "pyproject.toml")
    for found in ROOT.glob(place)
    for path in ([found] if found.is_file() else found.rglob("*"))
    if path.suffix in (".py", ".md", ".yaml", ".toml", ".css", ".txt", "")
    if path.is_file() and "__pycache__" not in path.parts
)


def name_of(file: Path) -> str:
    """The name by which the module in `file` is imported."""
    parts = [PACKAGES[file.parts[0]], *file.with_suffix("").parts[1:]]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def imports_of(name: str) -> Iterator[tuple[str, int]]:
    """What a module imports, with the line: within functions and under `TYPE_CHECKING` as well."""
    file = MODULES[name]
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            parents = name.split(".")[: None if file.name == "__init__.py" else -1]
            parents = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield (module if (module := f"{source}.{alias.name}") in MODULES else source), node.lineno


def folder_of(name: str) -> str:
    """The row of the table that a module belongs to; the sub-folders of the two libraries are part of these."""
    file = MODULES[name]
    if file.parts[0] != "scripts":
        return file.parts[0]
    return "/".join(file.parts[:2]) if len(file.parts) > 2 else "scripts"


def allowed_imports() -> dict[str, set[str]]:
    """The table of CONTRIBUTING.md: folder → folders that it may import; the order of the rows is kept."""
    layout = (ROOT / "CONTRIBUTING.md").read_text().split("## Layout\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w/]+)/(?:\*\.py)?` \|[^|]*\|([^|]*)\|$", layout, re.MULTILINE)
    short = {folder.removeprefix("scripts/"): folder for folder, _ in rows}
    return {folder: {short[name] for name in re.findall(r"`(\w+)`", imported)} for folder, imported in rows}


def test_the_table_names_every_folder_and_each_imports_those_above_it_only():
    allowed = allowed_imports()
    assert set(allowed) == {folder_of(name) for name in MODULES}
    above = set()
    for folder, imported in allowed.items():
        assert imported <= above, f"{folder} stands above {imported - above}, which it imports"
        above.add(folder)


def test_imports_between_folders_are_those_of_the_table():
    allowed, found = allowed_imports(), {}
    for name in MODULES:
        for imported, line in imports_of(name):
            if imported in MODULES and folder_of(imported) != folder_of(name):
                arrow = folder_of(name), folder_of(imported)
                found.setdefault(arrow, f"{MODULES[name]}:{line} imports {imported}")
    # Everything in scripts/ stands on the two libraries.
    free = {(folder, library) for folder in allowed if folder.startswith("scripts") for library in LIBRARIES}
    arrows = {(folder, imported) for folder, those in allowed.items() for imported in those}
    assert not [where for arrow, where in found.items() if arrow not in arrows | free]
    assert not arrows - set(found), "what nothing imports any more is not allowed either"


def test_no_circle_of_files():
    graph = {name: {imported for imported, _ in imports_of(name) if imported in MODULES} for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_nothing_imports_a_command():
    commands = {f"reg4pru.{module}" for module, _ in COMMANDS.values()}
    assert commands <= set(MODULES)
    imported = [(name, command) for name in MODULES for command, _ in imports_of(name) if command in commands]
    assert not imported


def test_data_sets_know_no_model():
    names = [name for name in MODULES if folder_of(name) == "datasets_fives"]
    roots = {imported.split(".")[0] for name in names for imported, _ in imports_of(name)}
    assert not roots & {"transformers", "accelerate"}


def test_files_and_functions_are_short():
    for file in FILES:
        text = (ROOT / file).read_text()
        assert len(text.splitlines()) <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert lines_of_code(node) <= 60, f"{file}: {node.name}"


def lines_of_code(function: ast.FunctionDef) -> int:
    """Lines of a function without those of its docstring."""
    documentation = function.body[0] if ast.get_docstring(function) else None
    shorter = documentation.end_lineno - documentation.lineno + 1 if documentation else 0
    return function.end_lineno - function.lineno + 1 - shorter


def test_the_forward_pass_can_be_read_at_a_glance():
    (file,) = [file for file in FILES if file.name == "modeling_reg4pru.py"]
    classes = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.ClassDef)]
    (model,) = [node for node in classes if node.name == Reg4PruForSemanticSegmentation.__name__]
    (forward,) = [node for node in model.body if isinstance(node, ast.FunctionDef) and node.name == "forward"]
    assert lines_of_code(forward) <= 45


# Word that this field does not use → where it stands nevertheless, and why.
WORDS = {
    r"photograph\w*": {
        "CHANGELOG.md": "the names of before",
        "scripts/common/former_names.py": "the names of before, in what was saved",
        "tests/reg4pru/test_former_names.py": "likewise",
        "datasets_fives/sources/image_folders.py": "a name that users give to a folder",
        "datasets_fives/sources/saved_datasets.py": "a name that users give to a column",
        "tests/datasets_fives/sources/test_image_folders.py": "a name that users gave to a folder",
    },
    r"arms?": {
        "CHANGELOG.md": "the names of before",
        "scripts/common/former_names.py": "the names of before, in what was saved",
        "scripts/common/devices.py": "the maker of processors",
        "tests/reg4pru/test_former_names.py": "the names of before, in what was saved",
    },
    r"cures?": {},
    r"errands?": {},
    r"doors?": {},
    r"aloud": {},
}


@pytest.mark.parametrize("word", WORDS)
def test_words_are_those_of_the_field(word):
    pattern = re.compile(rf"(?<![A-Za-z]){word}(?![A-Za-z])", re.IGNORECASE)
    found = {str(path) for path in TEXTS if pattern.search((ROOT / path).read_text())}
    here = str(Path(__file__).relative_to(ROOT))
    assert found - {here} == set(WORDS[word])
