"""Full states: never half of one, as many as wanted, and found again."""

import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from reg4pru.training.checkpoints import find_checkpoint, list_checkpoints, save_checkpoint, seal


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 1))
    yield accelerator
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def names(output_dir):
    return [path.name for path in list_checkpoints(output_dir)]


def test_the_newest_are_kept_and_the_latest_is_found(accelerator, tmp_path):
    for step in (5, 90, 100):
        save_checkpoint(accelerator, tmp_path, {"step": step, "best_ap": 0.5}, total_limit=2)
    assert names(tmp_path) == ["step-00000090", "step-00000100"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names(tmp_path)
    latest = find_checkpoint(tmp_path, "latest")
    assert latest == str(tmp_path / "checkpoints" / "step-00000100")
    assert json.loads((tmp_path / "checkpoints" / "step-00000100" / "progress.json").read_text()) == {
        "step": 100,
        "best_ap": 0.5,
    }
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoints" / "step-00000090")).endswith("90")
    assert find_checkpoint(tmp_path, "") is None


def test_a_save_that_is_killed_leaves_the_one_before(accelerator, tmp_path, monkeypatch):
    save_checkpoint(accelerator, tmp_path, {"step": 1}, total_limit=1)

    def killed(folder):
        with open(f"{folder}/model.safetensors", "w", encoding="utf-8") as half:
            half.write("half of the weights")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(accelerator, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(accelerator, tmp_path, {"step": 2}, total_limit=1)
    assert (tmp_path / "checkpoints" / "unfinished" / "model.safetensors").exists()
    assert names(tmp_path) == ["step-00000001"]
    assert find_checkpoint(tmp_path, "latest").endswith("step-00000001")

    # The next one starts anew, and nothing of the half is left.
    save_checkpoint(accelerator, tmp_path, {"step": 2}, total_limit=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    accelerator.load_state(find_checkpoint(tmp_path, "latest"))


def test_the_same_step_can_be_saved_again(accelerator, tmp_path):
    save_checkpoint(accelerator, tmp_path, {"step": 3, "best_ap": 0.1}, total_limit=2)
    save_checkpoint(accelerator, tmp_path, {"step": 3, "best_ap": 0.2}, total_limit=2)
    assert json.loads((tmp_path / "checkpoints" / "step-00000003" / "progress.json").read_text())["best_ap"] == 0.2


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint to resume from: nothing in .*checkpoints"):
        find_checkpoint(tmp_path, "latest")
    (tmp_path / "checkpoints" / "unfinished").mkdir(parents=True)
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        find_checkpoint(tmp_path, "latest")
    with pytest.raises(ValueError, match=r"is not a full state of `reg4pru train`: it has no progress.json"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoints" / "unfinished"))


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin"])
def test_a_state_that_would_run_code_is_refused(accelerator, tmp_path, name):
    save_checkpoint(accelerator, tmp_path, {"step": 1}, total_limit=1)
    state = list_checkpoints(tmp_path)[0] / name
    torch.save({"lr": 0.1, "more": RunsCode(tmp_path / "code_ran")}, state)
    seal(state.parent)  # as whoever made it would
    for wanted in ("latest", str(state.parent)):
        with pytest.raises(ValueError, match=rf"{name} is damaged, or holds more than numbers, and could run code"):
            find_checkpoint(tmp_path, wanted)
    assert not (tmp_path / "code_ran").exists()


def test_a_truncated_state_is_refused(accelerator, tmp_path):
    save_checkpoint(accelerator, tmp_path, {"step": 1}, total_limit=1)
    state = list_checkpoints(tmp_path)[0] / "random_states_0.pkl"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"is damaged: random_states_0.pkl has"):
        find_checkpoint(tmp_path, "latest")
