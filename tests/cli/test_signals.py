"""Signals: the first asks, the second acts, and the handlers that were there come back."""

import os
import signal
import subprocess
import sys

import pytest

from tuner.cli.signals import SIGNALS, leave_on_signal

DEADLINE_S = 60

# Presses Ctrl-C while a wait for the event holds the event's lock, which it does for a moment only.
PRESS = """
import signal, sys
from tuner.cli.signals import leave_on_signal

def press(frame, event, argument):
    if frame.f_code.co_qualname == "Condition.wait":
        sys.settrace(None)
        signal.raise_signal(signal.SIGINT)

with leave_on_signal(lambda: None) as stop:
    sys.settrace(press)
    while not stop.wait(0.01):
        pass
print("left")
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_first_and_second_signal(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    second: list[str] = []
    with leave_on_signal(lambda: second.append("again"), notice="leaving") as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(DEADLINE_S)
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


def test_a_signal_in_the_middle_of_a_wait_for_its_event() -> None:
    """The wait holds the event's lock for a moment; a handler that set the event would wait for that lock for ever."""
    done = subprocess.run([sys.executable, "-c", PRESS], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr
