"""Output that a console cannot show, paths at home, and places that cannot be written to."""

import ast
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import reg4pru
from reg4pru import benchmark, evaluate, export, predict, prepare, push, tune
from reg4pru.common.cli import CommandParser
from reg4pru.common.output_checks import check_writable
from reg4pru.study import __main__ as study


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_without_greek_ends_no_command(encoding):
    code = (
        "import sys; from reg4pru.__main__ import COMMANDS, main; COMMANDS['x'] = ('x', 'x');"
        "sys.modules['reg4pru.x'] = type('x', (), {'main': staticmethod(lambda: print('β0 ± 1'))});"
        "sys.argv = ['reg4pru', 'x']; sys.exit(main())"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout.startswith(b"\\u03b20 ")


def test_every_text_file_has_its_encoding():
    for path in Path(reg4pru.__file__).resolve().parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                named = {keyword.arg for keyword in call.keywords}
                texts = call.func.attr in ("read_text", "write_text") or (
                    call.func.attr == "open" and "newline" in named
                )
                assert not texts or "encoding" in named, f"{path}:{call.lineno}"


@dataclass
class Flags:
    output_dir: str
    images: list[str] = field(default_factory=list)
    name: str = ""


@pytest.mark.parametrize("words", [["--output_dir=~/x", "--images", "~/a/*.png", "b~"], ["--output_dir", "~/x"]])
def test_a_tilde_is_home_in_every_flag(words, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (flags,) = CommandParser(Flags, "Example:\n").read_flags([*words, "--name", "a=~/b"])
    assert flags.output_dir == str(tmp_path / "x")
    assert flags.images in ([], [str(tmp_path / "a/*.png"), "b~"])
    assert flags.name == "a=~/b"


@pytest.fixture
def blocked(tmp_path) -> Path:
    """A path where nobody, whatever their rights, can write: its folder is a file."""
    (tmp_path / "file").write_text("mine")
    return tmp_path / "file" / "out"


@pytest.mark.parametrize("command", [benchmark, evaluate, export, predict, prepare, push, study])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(
    command, blocked, save_checkpoint, tiny_model, images, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    images[0]["image"].save(tmp_path / "image.png")
    model = ["--model_name_or_path", str(save_checkpoint(tiny_model()))]
    flags = {
        benchmark: [*model, "--output_dir", str(blocked)],
        evaluate: [*model, "--output_dir", str(blocked)],
        export: [*model, "--output", str(blocked)],
        predict: [*model, "--images", str(tmp_path / "image.png"), "--output_dir", str(blocked)],
        prepare: ["--fives_dir", str(tmp_path), "--output_dir", str(blocked)],
        push: [*model, "--hub_model_id", "me/eyes", "--output_dir", str(blocked)],
        study: ["synthetic", "--output_dir", str(tmp_path / "tables"), "--runs_dir", str(blocked)],
    }[command]
    for work in ("datasets_fives.metrics.measure", "reg4pru.inference.onnx_export.export_onnx"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(SystemExit) as stopped:
        command.main(flags)
    assert stopped.value.code == 2
    assert f"{tmp_path / 'file'} cannot be written to: " in capsys.readouterr().err


def test_tune_refuses_a_checkpoint_that_cannot_be_written_to(save_checkpoint, tiny_model, monkeypatch, capsys):
    checkpoint = save_checkpoint(tiny_model())

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("reg4pru.common.output_checks.tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("reg4pru.benchmarking.tuning.Tuning", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(SystemExit):
        tune.main(["--model_name_or_path", str(checkpoint)])
    said = " ".join(capsys.readouterr().err.split())
    assert f"--model_name_or_path is {checkpoint}: {checkpoint} cannot be written to: Permission denied" in said


def test_a_check_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new" / "folder", "--output_dir")
    (tmp_path / "model.onnx").write_text("old")
    check_writable(tmp_path / "model.onnx", "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_export_without_its_extra_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit) as stopped:
        export.main(["--model_name_or_path", "x", "--output", "y.onnx"])
    assert stopped.value.code == 2
    assert 'pip install "reg4pru[export]"' in capsys.readouterr().err
