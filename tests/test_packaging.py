"""What is installed: every folder and file of the packages; and one version of ruff everywhere."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    first, *rest = package.split(".")
    return ROOT.joinpath(SETUPTOOLS["package-dir"].get(first, first), *rest)


TOP = [package for package in SETUPTOOLS["packages"] if "." not in package]


def test_every_folder_with_code_is_a_package():
    found = {path.parent for package in TOP for path in folder_of(package).rglob("*.py")}
    assert found == {folder_of(package) for package in SETUPTOOLS["packages"]}
    assert all((folder / "__init__.py").is_file() for folder in found)


@pytest.mark.parametrize("package", TOP)
def test_every_other_file_is_package_data(package):
    folder = folder_of(package)
    patterns = SETUPTOOLS["package-data"][package]
    matched = {pattern: {path for path in folder.glob(pattern) if path.is_file()} for pattern in patterns}
    assert all(matched.values()), "a pattern that matches nothing"
    files = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert set.union(*matched.values()) == {path for path in files if path.suffix != ".py"}


def test_the_script_for_uv_asks_for_versions_that_the_package_allows():
    script = (ROOT / "examples/finetune_from_hub.py").read_text(encoding="utf-8")
    header = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", script)[1]
    metadata = tomllib.loads(re.sub(r"^# ?", "", header, flags=re.MULTILINE))
    assert metadata["requires-python"] == PROJECT["project"]["requires-python"]
    allowed = {need.name: need.specifier for need in map(Requirement, PROJECT["project"]["dependencies"])}
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    for need in map(Requirement, metadata["dependencies"]):
        lowest = min(Version(one.version) for one in need.specifier if one.operator == ">=")
        assert lowest in allowed[need.name], need
        assert tested[need.name] in need.specifier, need


def test_ruff_is_of_one_version():
    (version,) = (need for need in PROJECT["project"]["optional-dependencies"]["dev"] if need.startswith("ruff"))
    assert version in (ROOT / "constraints.txt").read_text().splitlines()
    (hook,) = re.findall(r"ruff-pre-commit\n\s*rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert version == f"ruff=={hook}"
