"""Local workers: processes of this machine that run ``tuner worker``, watched until the study is over.

A worker's standard input is a pipe that its launcher holds open. End of file asks it to finish its epoch, save its
lanes and leave; it comes when the launcher releases its workers and also when the launcher dies, however it dies.
Workers stay in the launcher's process group, so that Ctrl-C and Ctrl-Z in a terminal mean all of them at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tuner.cores import usable_cores
from tuner.errors import DeviceError
from tuner.launch.engine import Crew, Engine, WorkersLostError, label, source_folder
from tuner.words import count

if TYPE_CHECKING:
    from tuner.storage.ledger import Holder

RESTARTS = 3  # how often a worker that died is started again
GRACE_S = 60.0  # seconds that released workers get to finish their epoch and save
LAST_WORDS = 5  # lines of a dead worker's standard error that a message shows
INTERRUPTED = 130  # exit code of a worker that was asked to leave by a signal

_log = logging.getLogger(__name__)


class LocalWorkers(Engine):
    """One worker process a device.

    A worker that dies is started again up to ``RESTARTS`` times; one that refuses its input (exit code 2) is not. The
    others go on without it. Not thread safe.
    """

    name = "this machine"

    def __init__(self, crew: Crew, devices: Sequence[str], *, died: Callable[[int], object] = lambda _: None) -> None:
        super().__init__(crew, died=died)
        environment = worker_environment(crew)
        self._workers = [_Worker(i, crew.study, device, environment) for i, device in enumerate(devices, start=1)]
        self._released = False

    @classmethod
    def of(cls, crew: Crew, *, died: Callable[[int], object] = lambda _: None) -> Self:
        """A process for each CPU or GPU of each worker."""
        gpus = [f"cuda:{i}" for i in range(crew.workers * crew.gpus)]
        return cls(crew, gpus or ["cpu"] * (crew.workers * crew.cpus), died=died)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None or isinstance(error, WorkersLostError):
            self._bury()

    def submission(self, *, detach: bool = False) -> str:
        alone = f"setsid {shlex.join(self._watcher)} < /dev/null > /dev/null 2>> {self._log_file} &"
        return "\n".join(
            [
                *(f"export {name}={shlex.quote(value)}" for name, value in self.crew.shown_environment.items()),
                *([alone] if detach else [shlex.join(worker.command) for worker in self._workers]),
            ]
        )

    def check(self) -> None:
        if self.crew.gpus:
            wanted, here = self.crew.workers * self.crew.gpus, _cuda_devices()
            if wanted > here:
                raise DeviceError(
                    f"{count(self.crew.workers, 'worker')} of {self.crew.needs} need {count(wanted, 'GPU')}, this "
                    f"machine has {here}; ask for fewer, or for none: --gpus-per-worker 0"
                )

    def start(self, *, detach: bool = False) -> None:
        if detach:
            self._detach()
            return
        for worker in self._workers:
            worker.start()

    @property
    def traces(self) -> str:
        return f"their words go to {self._log_file}"

    @property
    def pids(self) -> list[int]:
        """The process of each worker that is alive."""
        return [worker.process.pid for worker in self._workers if worker.alive]

    def alive(self) -> int:
        """How many workers are alive, after dead ones were started again."""
        self._bury()
        for worker in self._workers:
            if not self._released:
                worker.revive()
        alive = sum(worker.alive for worker in self._workers)
        failed = [worker for worker in self._workers if worker.failed]
        if failed and not alive:
            raise WorkersLostError(failed[-1].obituary(), failed[-1].exit_code)
        return alive

    def owns(self, holder: Holder) -> bool:
        return holder.host == socket.gethostname() and holder.pid in self.pids

    @property
    def _watcher(self) -> list[str]:
        """One process that watches over all workers, where they are to outlive this one."""
        device = "cuda" if self.crew.gpus else "cpu"
        return worker_command(self.crew.study, device, "--workers", str(len(self._workers)))

    def _detach(self) -> None:
        """Start the watcher, as nobody's child."""
        with self._log_file.open("ab") as file:
            subprocess.Popen(
                self._watcher,
                env=worker_environment(self.crew),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )

    @property
    def _log_file(self) -> Path:
        return Path(f"{label(self.crew.study)}.log")

    def _bury(self) -> None:
        """Report the dead."""
        for worker in self._workers:
            if worker.failed and not worker.buried:
                worker.buried = True
                self.died(worker.process.pid)

    def release(self) -> None:
        """Ask every worker to finish its epoch, save its lanes and leave. Returns at once."""
        self._released = True
        for worker in self._workers:
            worker.release()

    def stop(self) -> None:
        """Whoever has not left after ``GRACE_S`` seconds is killed, which costs its epoch."""
        self.release()
        deadline = time.monotonic() + GRACE_S
        for worker in self._workers:
            worker.wait(max(deadline - time.monotonic(), 0.0))


def worker_command(name: str, device: str, *more: str) -> list[str]:
    """``tuner worker`` as this interpreter runs it."""
    return [sys.executable, "-P", "-m", "tuner", "worker", name, "--device", device, "--quiet", *more]


def worker_environment(crew: Crew) -> dict[str, str]:
    """This process's environment with what the crew's workers need. They run this very package, also where it is not
    installed.
    """
    environment = {**os.environ, **crew.environment}
    if (home := source_folder()) is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(home)]))
    return environment


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


def _cuda_devices() -> int:
    """How many CUDA devices torch sees. Torch takes seconds to import: without a driver it is not asked."""
    driver = any(Path("/dev").glob("nvidia*")) or Path("/dev/dxg").exists() or shutil.which("nvidia-smi")
    if not driver:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


class _Worker:
    """One place in the crew, and the process that fills it at the moment."""

    process: subprocess.Popen[str]

    def __init__(self, number: int, name: str, device: str, environment: Mapping[str, str]) -> None:
        self.label = f"worker {number} ({device})"
        self.command = worker_command(name, device, "--leashed")
        self._environment = environment
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._restarts = 0
        self.buried = False  # whether somebody was told that the process died
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        self._last_words.clear()
        self.buried = False
        self.process = subprocess.Popen(
            self.command,
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
