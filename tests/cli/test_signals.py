"""Signals: the first asks, the second acts, and the handlers that were there come back."""

import os
import signal

import pytest

from tuner.cli.signals import SIGNALS, leave_on_signal


@pytest.mark.parametrize("number", SIGNALS)
def test_first_and_second_signal(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    second: list[str] = []
    with leave_on_signal(lambda: second.append("again"), notice="leaving") as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        assert second == []
        os.kill(os.getpid(), number)
        assert second == ["again"]
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert capfd.readouterr().err == "leaving\n"


def test_a_signal_after_the_end_of_the_input_is_a_first_one() -> None:
    second: list[str] = []
    with leave_on_signal(lambda: second.append("again")) as stop:
        stop.set()  # as when the launcher lets a worker go, whom the same Ctrl-C reaches a moment later
        os.kill(os.getpid(), signal.SIGINT)
        assert second == []
        os.kill(os.getpid(), signal.SIGINT)
        assert second == ["again"]


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(ZeroDivisionError), leave_on_signal(lambda: None):
        raise ZeroDivisionError
    assert [signal.getsignal(each) for each in SIGNALS] == before
