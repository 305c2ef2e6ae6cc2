"""Packs that several processes train: the same states bit for bit, no process left, nothing lost with one that dies."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.learning.packs import lane_of, make_config, make_data
from tuner.learning import crew
from tuner.learning.crew import train_all
from tuner.learning.trainer import LaneState, LaneTask, train_to_end

FORMS = [{"activation": name, "width": width} for name in ("relu", "gelu", "tanh") for width in (5, 9)]
LONG = 10**9  # epochs


def tasks_of(epochs: int = 3) -> list[LaneTask]:
    configs = [make_config(**form, schedule="constant", max_epochs=epochs) for form in FORMS]
    return [LaneTask(lane=lane_of(config, n), target_epochs=epochs) for n, config in enumerate(configs)]


@pytest.fixture
def _worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any work is worth a process."""
    monkeypatch.setattr(crew, "WORTH_S", 1e-9)


def assert_trained(found: dict[int, LaneState], tasks: Sequence[LaneTask]) -> None:
    data = make_data()
    assert found.keys() == {task.lane.number for task in tasks}
    for task in tasks:
        state, expected = found[task.lane.number], train_to_end([task], data, "error")[task.lane.number]
        assert state.progress.epoch == expected.progress.epoch
        np.testing.assert_allclose(state.kept()["theta"], expected.kept()["theta"], atol=1e-9)
        assert (
            set(expected.arrays) - set(state.arrays) == {name for name in expected.arrays if "moment" in name} != set()
        )


def test_out_of_memory_halves_the_pack_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def small(pack: Sequence[LaneTask], *given: Any, **named: Any) -> dict[int, LaneState]:
        asked.append(len(pack))
        if len(pack) > 1:
            raise MemoryError
        return train_to_end(pack, *given, **named)

    monkeypatch.setattr(crew, "train_to_end", small)
    monkeypatch.setattr(crew, "plan_packs", lambda tasks, _: [list(tasks)])
    tasks = [task for task in tasks_of() if task.lane.config.activation == "relu"]
    assert_trained(train_all(tasks, make_data(), "error"), tasks)
    assert asked == [2, 1, 1]
    assert caplog.messages == ["out of memory with 2 lanes; going on with half of them"]


def test_a_lane_that_fits_no_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(crew, "train_to_end", never)
    with pytest.raises(MemoryError):
        train_all(tasks_of(), make_data(), "error")


@pytest.mark.usefixtures("_worth_it")
def test_processes_train_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, data = tasks_of(), make_data()
    alone = train_all(tasks, data, "error")
    assert_trained(alone, tasks)
    monkeypatch.setattr(crew, "_trained", None)  # here nothing is trained
    together = train_all(tasks, data, "error", processes=2)
    assert together.keys() == alone.keys()
    for number, state in together.items():
        assert state.progress == alone[number].progress
        assert state.arrays.keys() == alone[number].arrays.keys()
        assert all((array == alone[number].arrays[name]).all() for name, array in state.arrays.items())
    assert multiprocessing.active_children() == []


def test_little_work_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_by_processes", None)
    assert len(train_all(tasks_of(), make_data(), "error", processes=8)) == len(FORMS)


def once_started(number: signal.Signals, *, itself: bool) -> threading.Thread:
    """Send a signal to every child, and to this process as well, as soon as they are started."""

    def watch() -> None:
        while len(children := multiprocessing.active_children()) < 2 or (
            itself and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        ):
            time.sleep(0.01)
        for pid in [child.pid for child in children] + [os.getpid()] * itself:
            assert pid is not None
            os.kill(pid, number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("_worth_it")
def test_when_a_process_is_killed_the_rest_is_trained_here(caplog: pytest.LogCaptureFixture) -> None:
    tasks = tasks_of(epochs=4)
    watch = once_started(signal.SIGKILL, itself=False)
    with caplog.at_level(logging.WARNING):
        found = train_all(tasks, make_data(), "error", processes=2)
    watch.join()
    assert_trained(found, tasks)
    assert "was killed" in caplog.text
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("_worth_it")
def test_ctrl_c_ends_all_of_them_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    watch = once_started(signal.SIGINT, itself=True)
    with pytest.raises(KeyboardInterrupt):
        train_all(tasks_of(LONG), make_data(), "error", processes=2)
    watch.join()
    assert multiprocessing.active_children() == []
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


PROGRAM = """
import multiprocessing, threading, time
from tests.learning.test_crew import LONG, crew, make_data, tasks_of

def tell():
    while len(children := multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    print(*(child.pid for child in children), flush=True)

if __name__ == "__main__":
    crew.WORTH_S = 1e-9
    threading.Thread(target=tell, daemon=True).start()
    crew.train_all(tasks_of(LONG), make_data(), "error", processes=2)
"""


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked at in /proc")
def test_nobody_outlives_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # Python's resource tracker complains of the parent's death
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert program.stdout is not None
    children = [int(pid) for pid in program.stdout.readline().split()]
    assert len(children) == 2
    program.kill()
    program.wait()
    deadline = time.monotonic() + 60
    while any(map(is_running, children)):
        assert time.monotonic() < deadline, "a process trains on for nobody"
        time.sleep(0.05)
    program.stdout.close()
