"""`--report_to`: what a tracker is told, and that a run which never began leaves nothing."""

import json
import os

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from reg4pru import finetune, train
from reg4pru.training.tracking import as_hyperparameters

DATA = ["--synthetic_counts", "2", "1", "1", "--per_device_train_batch_size", "2", "--working_size", "64"]


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


class StrictTracker(GeneralTracker):
    """Takes what TensorBoard takes, and keeps it in a file of the folder that it is given."""

    name, requires_logging_directory = "tensorboard", True
    broken = False

    def __init__(self, run_name: str, logging_dir: str, **kwargs):
        super().__init__()
        self.folder = os.path.join(logging_dir, run_name)
        os.makedirs(self.folder, exist_ok=True)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values: dict) -> None:
        if self.broken:
            raise RuntimeError("no account")
        wrong = {name: value for name, value in values.items() if not isinstance(value, int | float | str)}
        if wrong:
            raise ValueError(f"value should be one of int, float, str, or bool: {wrong}")
        self._write({"settings": values})

    def log(self, values: dict, step: int | None, **kwargs) -> None:
        self._write({"step": step, **values})

    def _write(self, line: dict) -> None:
        with open(os.path.join(self.folder, "events"), "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@pytest.fixture
def tracker(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", StrictTracker)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    return StrictTracker


@pytest.fixture
def checkpoint(tiny_model, save_checkpoint):
    return save_checkpoint(tiny_model(masked_attention=False))


def run(checkpoint, folder, *more):
    train.main(["--model_name_or_path", str(checkpoint), "--output_dir", str(folder), *DATA, "--max_train_steps", "1",
                "--logging_steps", "1", *more])  # fmt: skip


def test_lists_and_missing_settings_are_told_as_words():
    told = as_hyperparameters({"a": [1, 2], "b": None, "c": 0.5, "d": True, "e": "x", "f": {"g": None}})
    assert told == {"a": "[1, 2]", "c": 0.5, "d": True, "e": "x", "f": '{"g": null}'}


def test_a_training_reports(tracker, checkpoint, tmp_path):
    run(checkpoint, tmp_path / "out", "--report_to", "tensorboard")
    (events,) = (tmp_path / "out").rglob("events")
    begun, *steps = map(json.loads, events.read_text().splitlines())
    assert begun["settings"]["synthetic_counts"] == "[2, 1, 1]"
    assert any("loss" in line for line in steps)


def test_a_run_that_never_began_leaves_nothing(tracker, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracker, "broken", True)
    with pytest.raises(SystemExit):
        run(checkpoint, tmp_path / "out", "--report_to", "tensorboard")
    assert "--report_to is tensorboard, which could not be started: no account" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}
    monkeypatch.setattr(tracker, "broken", False)
    run(checkpoint, tmp_path / "out", "--report_to", "tensorboard")


def test_a_tracker_that_is_not_there_is_refused(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.warns(UserWarning, match="no supported trackers"), pytest.raises(SystemExit):
        run(checkpoint, tmp_path / "out", "--report_to", "tensorboard")
    assert "--report_to is tensorboard, which is not installed here" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_failure_before_the_first_step_frees_the_folder(checkpoint, tmp_path, monkeypatch, command):
    def fail(*args, **kwargs):
        raise RuntimeError("the device is lost")

    def start():
        if command == "train":
            return run(checkpoint, tmp_path / "out")
        return finetune.main(["--model_name_or_path", str(checkpoint), "--output_dir", str(tmp_path / "out"), *DATA,
                              "--max_steps", "1", "--use_cpu", "--report_to", "none"])  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", fail)
        with pytest.raises(RuntimeError, match="the device is lost"):
            start()
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}
    start()


def test_tensorboard_itself(checkpoint, tmp_path):
    pytest.importorskip("tensorboard")
    run(checkpoint, tmp_path / "out", "--report_to", "tensorboard")
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))
