"""Signals that ask a training to end."""

import os
import signal

import pytest

from reg4pru.training.interruption import StopRequest


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
