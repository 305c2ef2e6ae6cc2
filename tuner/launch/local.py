"""Local workers: processes of this machine that run ``tuner worker``, watched until the study is over.

A worker's standard input is a pipe that its launcher holds open. End of file asks it to finish its epoch, save its
lanes and leave; it comes when the launcher releases its workers and also when the launcher dies, however it dies.
Workers stay in the launcher's process group, so that Ctrl-C and Ctrl-Z in a terminal mean all of them at once. Where
the storage is goes through the environment: a password in its URL never shows in a list of processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import tuner
from tuner.errors import TunerError
from tuner.words import count

if TYPE_CHECKING:
    from tuner.manager import StudyManager, StudySummary
    from tuner.storage.ledger import Outstanding

RESTARTS = 3  # how often a worker that died is started again
GRACE_S = 60.0  # seconds that released workers get to finish their epoch and save
POLL_S = 0.5  # seconds between two looks at the study, or ten times as long as a look takes
AWAIT_S = 5.0  # seconds between two looks at whom the workers wait for
LAST_WORDS = 5  # lines of a dead worker's standard error that a message shows
INTERRUPTED = 130  # exit code of a worker that was asked to leave by a signal

_log = logging.getLogger(__name__)


class WorkersLostError(TunerError):
    """No local worker is left, and the study is not finished."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LocalWorkers:
    """One worker process a device, started on entry and gone on exit.

    A worker that dies is started again up to ``RESTARTS`` times; one that refuses its input (exit code 2) is not. The
    others go on without it. Not thread safe.

    died: is told the process id of each worker that died, once, so that what it held can be freed.
    """

    def __init__(
        self,
        name: str,
        devices: Sequence[str],
        *,
        storage: str,
        artifacts: str | None = None,
        died: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._died = died
        environment = _environment(storage, artifacts)
        self._workers = [_Worker(i, name, device, environment) for i, device in enumerate(devices, start=1)]
        self._released = False

    def __enter__(self) -> LocalWorkers:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        self.wait(GRACE_S)
        if error is None or isinstance(error, WorkersLostError):
            self._bury()

    @property
    def pids(self) -> list[int]:
        """The process of each worker that is alive."""
        return [worker.process.pid for worker in self._workers if worker.alive]

    def check(self) -> int:
        """How many workers are alive, after dead ones were started again.

        Raises WorkersLostError when none is left and at least one of them did not leave in peace.
        """
        self._bury()
        for worker in self._workers:
            if not self._released:
                worker.revive()
        alive = sum(worker.alive for worker in self._workers)
        failed = [worker for worker in self._workers if worker.failed]
        if failed and not alive:
            raise WorkersLostError(failed[-1].obituary(), failed[-1].exit_code)
        return alive

    def _bury(self) -> None:
        """Report the dead."""
        for worker in self._workers:
            if worker.failed and not worker.buried:
                worker.buried = True
                self._died(worker.process.pid)

    def release(self) -> None:
        """Ask every worker to finish its epoch, save its lanes and leave. Returns at once."""
        self._released = True
        for worker in self._workers:
            worker.release()

    def wait(self, timeout_s: float) -> None:
        """Wait until all have left; whoever has not after ``timeout_s`` seconds is killed, which costs its epoch."""
        deadline = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.wait(max(deadline - time.monotonic(), 0.0))


def follow(
    manager: StudyManager,
    name: str,
    workers: LocalWorkers,
    *,
    stop: threading.Event,
    show: Callable[[StudySummary], None],
) -> None:
    """Watch a study until it is finished, or stopped and all workers have left, or ``stop`` is set; ``show`` sees every
    look at it. The study's last state is the caller's to read: workers that leave still save. Where the workers have
    nothing to do but to wait for others, a line of the log says so.

    Raises WorkersLostError when the study needs work and no worker is left.
    """
    ledger, told, look = manager.ledger(name), "", 0.0
    while True:
        began = time.monotonic()
        # After a signal whoever dies was meant to: a worker that is still importing ends at once.
        alive = len(workers.pids) if stop.is_set() else workers.check()
        summary = manager.summary(name)
        show(summary)
        if stop.is_set() or summary.state == "finished" or (not alive and summary.state == "stopped"):
            return
        if not alive:
            raise WorkersLostError(f"all workers left, but study {name!r} is not finished; run the same command again")
        if began >= look:
            look = began + AWAIT_S
            line = awaited(ledger.outstanding(), workers.pids)
            if line and line[0] != told:
                _log.warning("%s: waiting for %s; %s", name, *line)
            told = line[0] if line else ""
        stop.wait(max(POLL_S, 10 * (time.monotonic() - began)))


def awaited(outstanding: Outstanding, pids: Collection[int]) -> tuple[str, str] | None:
    """Whom the local workers, these processes of this machine, wait for, and for how long; None while they have work.

    Where nothing may be claimed, what is left depends on slots that others hold.
    """
    host = socket.gethostname()
    others = [holder for holder in outstanding.holders if holder.host != host or holder.pid not in pids]
    if outstanding.claimable or not others or len(others) < len(outstanding.holders):
        return None
    held = ", ".join(f"{count(holder.slots, 'trial')} of worker {holder.name}" for holder in others)
    return held, f"if nothing is heard of it they can be claimed in {max(h.lease_s for h in others):.0f} s"


def devices_for(device: str, workers: int | None, trials: int) -> list[str]:
    """The device of each local worker: by default one worker a CUDA device, else one a CPU core, at most one a trial.

    ``auto`` and ``cuda`` deal the workers to all CUDA devices in turn. Raises DeviceError for a device that is not
    here.

    >>> devices_for("cpu", None, 1), devices_for("cpu", 2, 1)
    (['cpu'], ['cpu', 'cpu'])
    """
    if device not in ("auto", "cpu"):
        from tuner.learning.device import resolve_device

        resolve_device(device)
    cuda = _cuda_devices() if device in ("auto", "cuda") else 0
    if cuda:
        places = [f"cuda:{i}" for i in range(cuda)]
    elif device in ("auto", "cpu"):
        places = ["cpu"] * usable_cores()
    else:
        places = [device]
    if workers is None:
        return places[:trials]
    return [places[i % len(places)] for i in range(workers)]


def usable_cores() -> int:
    """The CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cuda_devices() -> int:
    """How many CUDA devices torch sees. Torch takes seconds to import: without a driver it is not asked."""
    driver = any(Path("/dev").glob("nvidia*")) or Path("/dev/dxg").exists() or shutil.which("nvidia-smi")
    if not driver:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _environment(storage: str, artifacts: str | None) -> dict[str, str]:
    environment = {**os.environ, "TUNER_STORAGE": storage}
    if artifacts is not None:
        environment["TUNER_ARTIFACTS"] = artifacts
    # Workers run this very package, also where it is not installed.
    home = str(Path(tuner.__file__).resolve().parents[1])
    if home not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), home]))
    return environment


class _Worker:
    """One place in the crew, and the process that fills it at the moment."""

    process: subprocess.Popen[str]

    def __init__(self, number: int, name: str, device: str, environment: Mapping[str, str]) -> None:
        self.label = f"worker {number} ({device})"
        self._command = [
            sys.executable,
            "-P",
            "-m",
            "tuner",
            "worker",
            name,
            "--device",
            device,
            "--quiet",
            "--leashed",
        ]
        self._environment = environment
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._restarts = 0
        self.buried = False  # whether somebody was told that the process died
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        self._last_words.clear()
        self.buried = False
        self.process = subprocess.Popen(
            self._command,
            env=dict(self._environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._listen, args=(self.process,), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def failed(self) -> bool:
        return self.process.poll() not in (None, 0, INTERRUPTED)

    @property
    def exit_code(self) -> int:
        """Its own where that says what was wrong, else 1."""
        return code if (code := self.process.returncode) in (2, 3) else 1

    def revive(self) -> None:
        """Start it again if it died and may yet do better."""
        if not self.failed or self.process.returncode == 2 or self._restarts >= RESTARTS:
            return
        self._restarts += 1
        _log.warning("%s; starting it again (%d of %d)", self._end(), self._restarts, RESTARTS)
        self._hang_up()
        self.start()

    def release(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def wait(self, timeout_s: float) -> None:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _log.warning("%s did not finish its epoch in time: killed, its last checkpoint stays", self.label)
            self.process.kill()
            self.process.wait()
        self._hang_up()

    def obituary(self) -> str:
        """How it ended and its last words, for the user."""
        if self._reader is not None:
            self._reader.join(timeout=1)
        words = list(self._last_words)
        if self.process.returncode == 2 and words:  # its own message says it all
            return "\n".join(words).removeprefix("error: ")
        tried = f" after {self._restarts} restarts" if self._restarts else ""
        return "\n".join([f"no worker is left: {self._end()}{tried}", *(f"  {line}" for line in words)])

    def _end(self) -> str:
        code = self.process.returncode
        if code >= 0:
            return f"{self.label} exited with code {code}"
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"{self.label} died of signal {-code} ({signal.strsignal(-code)}{hint})"

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if text := line.rstrip():
                self._last_words.append(text)
                _log.info("%s: %s", self.label, text)

    def _hang_up(self) -> None:
        """Close the pipes of a process that has ended."""
        self.release()
        if self._reader is not None:
            self._reader.join(timeout=1)
            if self._reader.is_alive():  # a grandchild holds the pipe
                return
        if self.process.stderr is not None:
            self.process.stderr.close()
