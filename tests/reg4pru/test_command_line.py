"""The command `reg4pru`: quick help, clear errors, and everything that it needs beside its code."""

import errno
import os
import re
import shlex
import subprocess
import sys

import pytest

from reg4pru import export
from reg4pru.__main__ import COMMANDS, main
from reg4pru.common.cli import CommandParser
from reg4pru.common.recipes import PACKAGE, find_yaml

HELP = """
import sys
import reg4pru.__main__ as commands
sys.argv = ["reg4pru", *sys.argv[1:], "--help"]
try:
    commands.main()
finally:
    print(*sys.modules)
"""


def start(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "reg4pru", *arguments], capture_output=True, text=True, timeout=120)


def read_help(*arguments: str) -> tuple[str, set[str]]:
    """What `--help` prints, and the modules that it imports."""
    command = [sys.executable, "-c", HELP, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *shown, modules = done.stdout.splitlines()
    return "\n".join(shown), set(modules.split())


def test_help_lists_every_command():
    shown, modules = read_help()
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert not {"torch", "transformers", "numpy"} & modules


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_quick_and_complete(name, monkeypatch):
    shown, modules = read_help(name)
    slow = {"torch", "datasets", "accelerate", "datasets_fives", "modeling_reg4pru", "matplotlib", "skimage", "gradio"}
    assert not slow & modules
    assert shown.startswith(f"usage: reg4pru {name}")
    assert "--output" in shown or name in ("app", "tune"), (
        "the app writes nothing that stays, tune into the checkpoint"
    )
    flags, examples = shown.split("\nexample:\n")
    for flag in re.split(r"\n  (?=--)", flags)[1:]:
        assert flag.lower().count("default:") <= 1, "shown once"
        assert "default: None" not in flag

    # Every example is a command line that the command understands.
    lines = [shlex.split(line, comments=True) for line in examples.replace("\\\n", "").splitlines()]
    for words in lines:
        assert words[words.index("reg4pru") + 1] == name
        monkeypatch.setattr(sys, "argv", words[words.index("reg4pru") :])
        read_flags, filled = CommandParser.read_flags, []

        def stop(parser, *arguments, read_flags=read_flags, filled=filled):
            filled += read_flags(parser, *arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(CommandParser, "read_flags", stop)
            assert main() == 130
        assert filled
    assert lines


NEEDED = {
    "train": ["--output_dir", "new"],
    "finetune": ["--model_name_or_path", "nowhere"],
    "evaluate": ["--model_name_or_path", "nowhere", "--output_dir", "new"],
    "predict": ["--model_name_or_path", "nowhere", "--output_dir", "new", "--images", "a.png"],
    "app": [],
    "export": ["--model_name_or_path", "nowhere", "--output", "new"],
    "benchmark": ["--output_dir", "new"],
    "tune": ["--model_name_or_path", "nowhere"],
    "study": ["demo", "--output_dir", "new", "--runs_dir", "runs"],
    "prepare": ["--fives_dir", "nowhere"],
    "push": ["--model_name_or_path", "nowhere", "--hub_model_id", "user/name"],
    "prune": ["--model_name_or_path", "nowhere", "--output_dir", "new", "--images", "a.png"],
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_a_line(number, monkeypatch, capsys):
    def fail():
        raise OSError(number, os.strerror(number), "out/model.onnx")

    monkeypatch.setattr(export, "main", fail)
    monkeypatch.setattr(sys, "argv", ["reg4pru", "export"])
    assert main() == 1
    assert re.fullmatch(r"reg4pru export: error: .*: 'out/model\.onnx'\n", capsys.readouterr().err)


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch):
    def fail():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(export, "main", fail)
    monkeypatch.setattr(sys, "argv", ["reg4pru", "export"])
    with pytest.raises(FileNotFoundError):
        main()


def test_recipes_and_studies_go_by_their_names():
    assert find_yaml("tiny_synthetic", "recipes") == PACKAGE / "recipes" / "tiny_synthetic.yaml"
    assert find_yaml(PACKAGE / "studies" / "demo.yaml", "studies").stem == "demo"
    with pytest.raises(ValueError, match=r"There is no file tiny, and the recipes .*tiny_synth"):
        find_yaml("tiny", "recipes")


def test_the_profiler_of_torch_writes_nothing():
    code = (
        "from reg4pru.common.cli import set_up_logging; set_up_logging(); import torch\n"
        "from torch.profiler import ProfilerActivity, profile\n"
        "with profile(activities=[ProfilerActivity.CPU]): torch.ones(1) + 1"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "profiler_st" not in done.stdout + done.stderr
