"""Which of the models that `make demo` writes the app shows."""

import os
import re

import pytest

from reg4pru.app.__main__ import DEMOS, find_model
from reg4pru.common.recipes import PACKAGE


def test_the_newest_demo_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`make demo` trains one"):
        find_model(None)
    for age, demo in enumerate(DEMOS):
        demo.mkdir(parents=True)
        (demo / "config.json").write_text("{}")
        os.utime(demo / "config.json", (2_000_000 - age, 2_000_000 - age))
    for newest in DEMOS:
        os.utime(newest / "config.json", (3_000_000, 3_000_000))
        assert find_model(None) == str(newest)
        os.utime(newest / "config.json", (1_000_000, 1_000_000))
    assert find_model("user/name") == "user/name"


def test_every_study_of_make_demo_is_known():
    studies = {path.stem for path in (PACKAGE / "studies").glob("demo*.yaml")}
    assert {demo.parts[1] for demo in DEMOS} == studies
    makefile = (PACKAGE.parent / "Makefile").read_text()
    suffixes = re.findall(r"study=demo\$\(if \$\(DATA\),(\w+)\)|study=\$\$\{study\}(\w+)", makefile)
    assert suffixes == [("_fives", ""), ("", "_scratch")]
    assert '--output_dir "outputs/$$study" --runs_dir "outputs/$$study/runs"' in makefile
