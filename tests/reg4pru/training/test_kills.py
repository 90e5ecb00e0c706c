"""Runs that are killed, told to end, or out of disk, in real processes: what they leave, and that they end alike."""

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from .processes import STEPS, TOKEN, Runs

pytestmark = pytest.mark.timeout(600)
COMMANDS = ("train", "finetune")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"))
    runs.seconds = {}
    for command in COMMANDS:
        begun = time.monotonic()
        assert runs.complete(command, f"whole-{command}") == 0, runs.said(f"whole-{command}")
        runs.seconds[command] = time.monotonic() - begun
    return runs


def check_same(runs, command, name):
    assert runs.resume(command, name) == 0, runs.said(name)
    assert runs.weights(command, name) == runs.weights(command, f"whole-{command}")
    if command == "train":
        logs = [(runs.folder / run / "training_log.jsonl").read_text() for run in (name, "whole-train")]
        assert logs[0] == logs[1]
    assert not list((runs.folder / name).glob("*unfinished*"))


def kill(runs, command, name, point):
    """Inside the writing of a full state (odd points), at any moment (multiples of 4), or in one of the steps."""
    draw = random.Random(point)
    process = runs.start(command, name)
    if point % 2:
        runs.wait_for_writing(process, command, name, draw)
    elif point % 4 == 0:
        process.join(draw.uniform(0, 1) * runs.seconds[command])
    else:
        count = draw.choice([1, 2])
        runs.wait_until(process, lambda: len(runs.states(command, name)) >= count)
        process.join(draw.uniform(0, 0.02))
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.parametrize(
    ("command", "point"), [("train", 1), ("finetune", 3), pytest.param("train", 2, marks=pytest.mark.slow)]
)
def test_a_killed_run_ends_in_the_same_weights(runs, command, point):
    name = f"killed-{command}-{point}"
    assert kill(runs, command, name, point) == -signal.SIGKILL
    check_same(runs, command, name)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_is_killed_after_its_last_step_learns_no_more(runs, command):
    name = f"ended-{command}"
    shutil.copytree(runs.folder / f"whole-{command}", runs.folder / name)
    (runs.folder / name / "train_results.json").unlink()
    check_same(runs, command, name)
    results = [
        json.loads((runs.folder / run / "train_results.json").read_text()) for run in (name, f"whole-{command}")
    ]
    assert results[0]["best_validation_ap"] == pytest.approx(results[1]["best_validation_ap"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", COMMANDS)
def test_twenty_kills(runs, command):
    killed = 0
    for point in range(100, 120):
        name = f"killed-{command}-{point}"
        killed += kill(runs, command, name, point) == -signal.SIGKILL
        check_same(runs, command, name)
    assert killed >= 15, "the others had ended before"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train", signal.SIGTERM),
        ("finetune", signal.SIGINT),
        pytest.param("train", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("finetune", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_told_to_end_it_saves_and_ends(runs, command, told):
    name = f"told-{command}-{told.name}"
    folder = runs.folder / name
    process = runs.start(command, name)
    first = {"train": "checkpoints/step-00000002", "finetune": "checkpoint-2/files.json"}[command]
    runs.wait_until(process, (folder / first).exists)
    os.kill(process.pid, told)
    process.join(60)
    assert process.exitcode == {signal.SIGTERM: 143, signal.SIGINT: 130}[told]
    assert f"Ended by {told.name}; continue with --resume_from_checkpoint latest" in runs.said(name)
    assert not (folder / "train_results.json").exists()
    check_same(runs, command, name)


def small_files() -> None:
    """A disk that takes no file above 60 KB: like a full one, for whoever runs the test."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_told_of_and_the_state_before_stays(runs, command):
    name = f"full-{command}"
    folder = runs.folder / name
    assert runs.complete(command, name, prepare=small_files) == 1
    said = runs.said(name)
    assert "could not be written to" in said
    assert "Is the disk full or read-only?" in said
    assert "There is no full state to resume from yet" in said
    assert "Traceback" not in said
    left = {path.name for path in folder.rglob("*")}
    assert not left & {"unfinished", "checkpoint-2"}, "space is given back"


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_state_is_skipped_with_a_warning(runs, command):
    whole, name = runs.folder / f"whole-{command}", f"damaged-{command}"
    shutil.copytree(whole, runs.folder / name)
    for result in (runs.folder / name).rglob("*results.json"):
        result.unlink()
    states = [path if path.is_dir() else path.parent for path in runs.states(command, name)]
    states.sort(key=lambda path: int(path.name.split("-")[1]))
    assert len(states) == 2
    damage(states[-1] / "model.safetensors")
    check_same(runs, command, name)
    said = runs.said(name)
    assert f"{states[-1].name} is damaged: model.safetensors has" in said
    assert f"Continuing from the state before, {states[0]}" in said

    for state in states:
        damage(state / "optimizer.bin" if command == "train" else state / "optimizer.pt")
    assert runs.complete(command, name, "--resume_from_checkpoint", "latest") != 0
    assert "There is no earlier one: start again" in runs.said(name)


def test_no_token_is_written_anywhere(runs):
    """Every run of this file had one in its environment."""
    files = [path for path in runs.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_what_a_run_records(runs):
    for command in COMMANDS:
        folder = runs.folder / f"whole-{command}"
        begun, ended = (json.loads((folder / f"{name}.json").read_text()) for name in ("run", "train_results"))
        assert begun["data"]["images"] == {"test": 1, "train": 6, "validation": 2}
        assert begun.items() <= ended.items()
        assert begun["provenance"]["commit"]
        assert begun["provenance"]["versions"]["torch"]
        assert begun["arguments"]["learning_rate"] == 1e-3
    same = [json.loads((runs.folder / f"whole-{command}/run.json").read_text())["data"] for command in COMMANDS]
    assert same[0] == same[1]
    assert ended["total_steps"] == STEPS
