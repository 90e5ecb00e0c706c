"""Signals that ask a training to end."""

import os
import signal

import pytest
from torch.utils.data import DataLoader

from reg4pru.training.interruption import StopRequest, leave_interrupts


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted(told):
    with StopRequest() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), told)
        assert stop.agreed()
        assert stop.requested == told


def test_a_second_interrupt_ends_at_once():
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGINT)
    assert ended.value.code == 130


def test_a_launcher_may_pass_signals_on():
    with StopRequest() as stop:
        for told in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), told)
        assert stop.requested == signal.SIGINT


def test_the_workers_of_a_loader_leave_interrupts_to_the_training():
    batches = iter(DataLoader(range(20), num_workers=1, worker_init_fn=leave_interrupts))
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGINT)
    assert len(list(batches)) == 19
