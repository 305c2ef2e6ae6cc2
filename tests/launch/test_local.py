"""Local workers: started, watched, started again when they die, released, and gone in the end."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.command import ROOT, wait_until
from tests.launch.lost import until_lost
from tuner.launch import engine, local
from tuner.launch.engine import Crew, WorkersLostError, awaited, follow
from tuner.launch.local import LocalWorkers, devices_for
from tuner.storage.ledger import Holder, Outstanding

PYTHON = sys.executable  # before a test puts another in its place
LEAVES_WHEN_RELEASED = "sys.stdin.read()"


def crew(*devices: str, name: str = "s") -> LocalWorkers:
    return LocalWorkers(orders(name), devices)


def orders(name: str = "s", storage: str = "sqlite:///t.db") -> Crew:
    return Crew(study=name, workers=2, storage=storage, artifacts="a")


def test_each_device_gets_a_worker(interpreter: Any) -> None:
    starts = interpreter(LEAVES_WHEN_RELEASED)
    with crew("cpu", "cuda:1", name="study") as workers:
        wait_until(lambda: starts.exists() and len(starts.read_text().splitlines()) == 2)
        assert workers.alive() == 2
    assert sorted(starts.read_text().splitlines()) == [
        f"-P -m tuner worker study --device {device} --quiet --leashed" for device in ("cpu", "cuda:1")
    ]


def test_storage_goes_through_the_environment(interpreter: Any) -> None:
    interpreter("sys.exit(f\"{os.environ['TUNER_STORAGE']} {os.environ['TUNER_ARTIFACTS']}\")")
    with LocalWorkers(orders(storage="postgresql://me:word@h/d"), ["cpu"]) as workers:
        assert "postgresql://me:word@h/d a" in str(until_lost(workers))


def test_released_workers_leave(interpreter: Any) -> None:
    interpreter(LEAVES_WHEN_RELEASED)
    with crew("cpu", "cpu") as workers:
        pids = workers.pids
        assert len(pids) == 2
    assert workers.alive() == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_worker_that_does_not_leave_is_killed(
    interpreter: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = interpreter("signal.pause()")
    monkeypatch.setattr(local, "GRACE_S", 0.1)
    with crew("cpu") as workers:
        wait_until(starts.exists)
    assert workers.pids == []
    assert "worker 1 (cpu) did not finish its epoch in time: killed" in caplog.text


def test_worker_that_dies_is_started_again(interpreter: Any, caplog: pytest.LogCaptureFixture) -> None:
    starts = interpreter("print('one'); print('last words', file=sys.stderr); sys.exit(7)")
    with crew("cpu") as workers:
        error = until_lost(workers)
    assert len(starts.read_text().splitlines()) == 1 + local.RESTARTS
    assert error.exit_code == 1
    assert str(error) == "no worker is left: worker 1 (cpu) exited with code 7 after 3 restarts\n  last words"
    assert "worker 1 (cpu) exited with code 7; starting it again (3 of 3)" in caplog.text


def test_killed_worker_is_named(interpreter: Any) -> None:
    interpreter("os.kill(os.getpid(), signal.SIGKILL)")
    with crew("cpu") as workers:
        assert "worker 1 (cpu) died of signal 9 (Killed; out of memory?)" in str(until_lost(workers))


def test_bad_input_is_not_tried_again(interpreter: Any) -> None:
    starts = interpreter("sys.exit(print('error: no such device', file=sys.stderr) or 2)")
    with crew("cpu") as workers:
        error = until_lost(workers)
    assert (str(error), error.exit_code) == ("no such device", 2)
    assert len(starts.read_text().splitlines()) == 1


def test_others_go_on_without_it(interpreter: Any) -> None:
    interpreter("sys.exit(2) if 'cuda:0' in sys.argv else sys.stdin.read()")
    with crew("cuda:0", "cuda:1") as workers:
        wait_until(lambda: workers.alive() == 1)
        assert workers.alive() == 1


def test_workers_leave_when_the_launcher_dies(interpreter: Any, tmp_path: Path) -> None:
    left = tmp_path / "left"
    starts = interpreter(f"sys.stdin.read(); open({str(left)!r}, 'w').close()")
    launch = (
        "import os, sys; from tuner.launch.engine import Crew; from tuner.launch.local import LocalWorkers; "
        "sys.executable = sys.argv[1]; "
        "LocalWorkers(Crew(study='s', workers=1, storage='sqlite:///t.db'), ['cpu']).start(); os._exit(0)"
    )
    subprocess.run([PYTHON, "-c", launch, local.sys.executable], cwd=ROOT, check=True)
    wait_until(lambda: starts.exists() and left.exists())


@pytest.mark.parametrize(
    ("state", "stopped"), [("finished", False), ("running", True), ("stopped", False)], ids=["end", "signal", "stop"]
)
def test_follow_ends(interpreter: Any, state: str, stopped: bool) -> None:
    interpreter("pass" if state == "stopped" else LEAVES_WHEN_RELEASED)
    stop, seen = threading.Event(), []
    if stopped:
        stop.set()
    with crew("cpu") as workers:
        follow(_manager(state), "s", workers, stop=stop, show=seen.append)
    assert {summary.state for summary in seen} == {state}


def test_follow_fails_when_all_left_an_unfinished_study(interpreter: Any) -> None:
    interpreter("pass")
    with crew("cpu") as workers, pytest.raises(WorkersLostError, match="all workers left, but study 's' is not"):
        follow(_manager("interrupted"), "s", workers, stop=threading.Event(), show=lambda _: None)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: 3)
    monkeypatch.setattr(local, "_cuda_devices", lambda: 0)
    assert devices_for("auto", None, 100) == ["cpu", "cpu", "cpu"]
    assert devices_for("auto", None, 2) == ["cpu", "cpu"]
    assert devices_for("cpu", 5, 2) == ["cpu"] * 5
    monkeypatch.setattr(local, "_cuda_devices", lambda: 2)
    assert devices_for("auto", None, 100) == ["cuda:0", "cuda:1"]
    assert devices_for("auto", 3, 100) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices_for("cpu", None, 100) == ["cpu", "cpu", "cpu"]


def _manager(state: str, *holders: Holder, waiting: int = 0) -> Any:
    left = Outstanding(waiting=waiting, leased=0, expired=0, paused=0, holders=holders)
    ledger = SimpleNamespace(outstanding=lambda: left)
    return SimpleNamespace(summary=lambda name: SimpleNamespace(name=name, state=state), ledger=lambda _: ledger)


def test_the_dead_are_reported_once_each(interpreter: Any) -> None:
    """What they held is freed at once; one that left in peace held nothing."""
    starts = interpreter("os.kill(os.getpid(), signal.SIGKILL) if 'cuda:0' in sys.argv else None")
    died: list[int] = []
    with LocalWorkers(orders(), ["cuda:0", "cpu"], died=died.append) as workers:
        until_lost(workers)
    assert len(starts.read_text().splitlines()) == 2 + local.RESTARTS
    assert len(died) == len(set(died)) == 1 + local.RESTARTS


def test_after_a_signal_nobody_is_started_again(interpreter: Any) -> None:
    """Ctrl-C in a terminal reaches the workers too; those that are still importing end at once."""
    starts = interpreter("os.kill(os.getpid(), signal.SIGKILL)")
    stop = threading.Event()
    stop.set()
    with crew("cpu") as workers:
        wait_until(lambda: not workers.pids)
        follow(_manager("running"), "s", workers, stop=stop, show=lambda _: None)
    assert len(starts.read_text().splitlines()) == 1


class TestAwaited:
    here = socket.gethostname()

    def mine(self, holder: Holder) -> bool:
        return (holder.host, holder.pid) == (self.here, 9)

    def left(self, *holders: Holder, waiting: int = 0) -> Outstanding:
        return Outstanding(waiting=waiting, leased=0, expired=0, paused=1, holders=holders)

    def test_others_hold_all_that_is_left(self) -> None:
        one = Holder(host="node2", pid=7, slots=3, lease_s=21.4)
        two = Holder(host=self.here, pid=8, slots=1, lease_s=9.0)
        assert awaited(self.left(one, two), self.mine) == (
            f"3 trials of worker node2:7, 1 trial of worker {self.here}:8",
            "if nothing is heard of it they can be claimed in 21 s",
        )

    def test_not_while_there_is_work(self) -> None:
        other = Holder(host="node2", pid=7, slots=3, lease_s=21.4)
        mine = Holder(host=self.here, pid=9, slots=3, lease_s=30.0)
        assert awaited(self.left(other, mine), self.mine) is None
        assert awaited(self.left(other, waiting=1), self.mine) is None
        assert awaited(self.left(), self.mine) is None

    def test_it_is_said_once(
        self, interpreter: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        interpreter(LEAVES_WHEN_RELEASED)
        monkeypatch.setattr(engine, "AWAIT_S", 0.0)
        monkeypatch.setattr(engine, "POLL_S", 0.0)
        stop, looks = threading.Event(), []

        def show(_: Any) -> None:
            looks.append(1)
            if len(looks) == 5:
                stop.set()

        manager = _manager("running", Holder(host="node2", pid=7, slots=3, lease_s=21.4))
        with crew("cpu") as workers, caplog.at_level("WARNING", logger="tuner.launch.engine"):
            follow(manager, "s", workers, stop=stop, show=show)
        assert [record.getMessage() for record in caplog.records] == [
            "s: waiting for 3 trials of worker node2:7; if nothing is heard of it they can be claimed in 21 s"
        ]


def test_interrupted_worker_is_not_started_again(interpreter: Any) -> None:
    starts = interpreter(f"sys.exit({128 + signal.SIGINT})")
    with crew("cpu") as workers:
        wait_until(lambda: workers.alive() == 0)
    assert len(starts.read_text().splitlines()) == 1
