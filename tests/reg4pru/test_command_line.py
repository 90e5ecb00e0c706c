"""The command `reg4pru`: quick help, clear errors, and everything that it needs beside its code."""

import re
import subprocess
import sys

import pytest

from reg4pru.__main__ import COMMANDS, main
from reg4pru.common.recipes import PACKAGE, find_yaml


def start(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "reg4pru", *arguments], capture_output=True, text=True, timeout=120)


def test_help_lists_every_command_without_waiting_for_torch():
    code = "import sys; sys.argv = ['reg4pru', '--help']; import reg4pru.__main__ as m; m.main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert not {"torch", "transformers", "numpy"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_own_flags(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reg4pru", name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: reg4pru {name}")
    assert "--output" in shown or name in ("app", "tune"), (
        "the app writes nothing that stays, tune into the checkpoint"
    )


NEEDED = {
    "train": ["--output_dir", "new"],
    "finetune": ["--model_name_or_path", "nowhere"],
    "evaluate": ["--model_name_or_path", "nowhere", "--output_dir", "new"],
    "predict": ["--model_name_or_path", "nowhere", "--output_dir", "new", "--images", "a.png"],
    "app": [],
    "export": ["--model_name_or_path", "nowhere", "--output", "new"],
    "benchmark": ["--output_dir", "new"],
    "engines": ["--output_dir", "new"],
    "tune": ["--model_name_or_path", "nowhere"],
    "study": ["demo", "--output_dir", "new", "--runs_dir", "runs"],
    "prepare": ["--fives_dir", "nowhere"],
    "push": ["--model_name_or_path", "nowhere", "--hub_model_id", "user/name"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_flag_that_there_is_not_is_named_in_a_line(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reg4pru", name, *NEEDED[name], "--keeprates", "0.5"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert re.search(r"error: (unknown|unrecognized) arguments:? --keeprates 0.5", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_command_that_there_is_not():
    done = start("trian")
    assert done.returncode == 2
    assert "there is no command 'trian'" in done.stderr
    assert "Traceback" not in done.stderr
    assert start().returncode == 2


def test_recipes_and_studies_go_by_their_names():
    assert find_yaml("tiny_synthetic", "recipes") == PACKAGE / "recipes" / "tiny_synthetic.yaml"
    assert find_yaml(PACKAGE / "studies" / "demo.yaml", "studies").stem == "demo"
    with pytest.raises(ValueError, match=r"There is no file tiny, and the recipes .*tiny_synth"):
        find_yaml("tiny", "recipes")
