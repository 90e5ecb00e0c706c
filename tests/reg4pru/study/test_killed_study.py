"""A study that is killed takes the trainings with it that its processes have started."""

import multiprocessing
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

from reg4pru.study.runs import end_with_parent


def _train(pid_file: Path) -> None:
    training = subprocess.Popen(["sleep", "300"])
    pid_file.write_text(f"{training.pid}\n", encoding="utf-8")
    training.wait()


def _study(pid_file: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=end_with_parent) as pool:
        pool.submit(_train, pid_file).result()


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_trainings_end_with_their_study(tmp_path):
    pid_file = tmp_path / "pid"
    study = multiprocessing.get_context("fork").Process(target=_study, args=(pid_file,))
    study.start()
    while not pid_file.is_file() or not pid_file.read_text():
        assert study.is_alive()
        time.sleep(0.05)
    training = psutil.Process(int(pid_file.read_text()))
    worker = training.parent()
    assert worker.ppid() == study.pid
    study.kill()
    study.join()
    gone, alive = psutil.wait_procs([training, worker], timeout=30)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not alive
    assert len(gone) >= 1
