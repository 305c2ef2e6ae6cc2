"""Trackers: other tools that trials are logged to, and the one process at a time that logs them, each trial once.

A process that logs holds the study's lease on it. It asks a tool which trials it has as a whole, and logs the others
that are over: whoever comes after it, or after its death, logs what is missing and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tuner.errors import BadInputError, StorageError, TunerError
from tuner.manager import CurvePoint, StudyManager, TrialHistory
from tuner.spec import LogSection
from tuner.words import count

LEASE_S = 60.0  # a process that logs and is silent for so long is taken for dead
PAUSE_S = 5.0  # between two looks for trials that are over, or ten times as long as a look takes
CHUNK = 64  # trials that are read together
# Of MLflow, unless the user says otherwise: no usage data to anybody, and a server that is away is noticed soon.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """One place in one tool. Every method raises StorageError, with the place and the reason, where it cannot work."""

    title: str

    def known(self) -> Mapping[int, str]:
        """How each trial ended that is there as a whole. What somebody left half-written is removed."""
        ...

    def log(self, history: TrialHistory) -> None:
        """Add a trial, instead of the one of its number that is there."""
        ...

    def describe(self, text: str) -> None:
        """Say what the study came to, in Markdown."""
        ...

    def close(self) -> None: ...


def check_installed(log: LogSection) -> None:
    """Raises BadInputError, with what to install, where a tool is asked for that is not here."""
    for extra, place in (("mlflow", log.mlflow), ("tensorboard", log.tensorboard)):
        if place is not None and find_spec(extra) is None:
            raise BadInputError(
                f"log.{extra}: {extra} is not installed here; pip install 'tuner[{extra}]', or leave {extra} out of "
                "the study file's [log]"
            )


def open_trackers(manager: StudyManager, name: str) -> list[Tracker]:
    """The tools that the study's ``[log]`` names. Raises as :func:`check_installed`; StorageError out of reach."""
    spec, root, identity = manager.spec(name), manager.data_root(name), manager.identity(name)
    check_installed(spec.log)
    trackers: list[Tracker] = []
    if spec.log.mlflow is not None:
        for key, value in _DEFAULTS.items():
            os.environ.setdefault(key, value)
        from tuner.tracking.mlflow import MlflowTracker

        place = spec.log.mlflow if "://" in spec.log.mlflow else _folder(root, spec.log.mlflow)
        trackers.append(MlflowTracker(place, name, identity, spec.study.metric))
    if spec.log.tensorboard is not None:
        from tuner.tracking.tensorboard import TensorBoardTracker

        own = f"{name}-{identity.rpartition('-')[2]}".replace(":", "-")
        trackers.append(TensorBoardTracker(_folder(root, spec.log.tensorboard) / own, spec.study.metric))
    return trackers


def _folder(root: Path, place: str) -> Path:
    """A folder of this machine. Raises StorageError where it is said from one that this machine has not."""
    if not Path(place).is_absolute() and not root.is_dir():
        raise StorageError(
            f"[log]: {place} is relative to {root}, which is not on this machine; give an absolute path or an address"
        )
    return root / place


def timed(history: TrialHistory) -> Iterator[tuple[CurvePoint, float]]:
    """Each epoch, with about when it ended, in seconds since the epoch."""
    lasted = history.ended_at - history.started_at
    for i, point in enumerate(history.curve, start=1):
        yield point, history.started_at + lasted * i / len(history.curve)


class Tracking:
    """A study's trials on their way to its trackers. A context manager; gives the lease back at its end."""

    def __init__(self, manager: StudyManager, name: str, trackers: list[Tracker]) -> None:
        self._manager = manager
        self._name = name
        self._trackers = trackers
        self._holder = uuid.uuid4().hex
        self._known: dict[str, dict[int, str]] = {}
        self._renewed = 0.0
        self._turn = threading.Lock()

    @classmethod
    def of(cls, manager: StudyManager, name: str) -> Self:
        """Where the study file's ``[log]`` says. Raises as :func:`open_trackers`."""
        return cls(manager, name, open_trackers(manager, name))

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._renewed:
                self._manager.lease_log(self._name, self._holder, 0.0)
        except TunerError as trouble:  # the lease ends by itself, and a deleted study has none
            _log.debug("%s: %s", self._name, trouble)
        finally:
            for tracker in self._trackers:
                tracker.close()

    def catch_up(self, stop: threading.Event | None = None) -> int | None:
        """Log every trial that is over and not there yet, or until ``stop`` is set; how many those were. None where
        another process is at it.

        Raises StorageError where a tool or the database cannot be used.
        """
        logged = 0
        with self._turn:
            for tracker in self._trackers:
                if not self._hold():
                    return None
                ended = self._manager.ended(self._name)
                known = self._known.get(tracker.title)
                if known is None:
                    known = self._known[tracker.title] = dict(tracker.known())
                missing = [number for number, state in ended.items() if known.get(number) != state]
                for start in range(0, len(missing), CHUNK):
                    for history in self._manager.histories(self._name, missing[start : start + CHUNK]):
                        if stop is not None and stop.is_set():
                            return logged
                        if time.monotonic() - self._renewed > LEASE_S / 6 and not self._hold():
                            return None
                        tracker.log(history)
                        known[history.trial.number] = history.trial.state
                        logged += 1
        return logged

    def finish(self, note: str, say: Callable[[str], object], *, wait: bool = True) -> None:
        """Log what is missing once the study is over, and what it came to.

        wait: for another process that is at it; else that one is trusted to do it. Trouble is a line of the log: the
        study has its results, and whoever comes next logs what is missing.
        """
        if not self:
            return
        say(f"{self._name}: logging its trials to {' and '.join(tracker.title for tracker in self._trackers)}")
        waiting = False
        try:
            while self.catch_up() is None:
                if not wait:
                    return
                if not waiting:
                    say(f"{self._name}: another process logs its trials; waiting for it")
                waiting = True
                time.sleep(1.0)
            for tracker in self._trackers:
                tracker.describe(note)
        except StorageError as error:
            _log.warning("%s: not all of its trials are logged: %s; the same command logs the rest", self._name, error)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Log trials as they end, beside what else goes on. Trouble is said once; what is missing comes later."""
        gone = threading.Event()

        def follow() -> None:
            told, pause = "", PAUSE_S
            while not gone.wait(pause):
                began = time.monotonic()
                try:
                    if logged := self.catch_up(gone):
                        _log.debug("%s: logged %s", self._name, count(logged, "trial"))
                    told = ""
                except TunerError as error:
                    if str(error) != told:
                        _log.warning("%s: trials are not logged at the moment: %s", self._name, error)
                    told = str(error)
                pause = max(PAUSE_S, 10 * (time.monotonic() - began))

        if not self:
            yield
            return
        thread = threading.Thread(target=follow, name="tracking", daemon=True)
        thread.start()
        try:
            yield
        finally:
            gone.set()
            thread.join()

    def _hold(self) -> bool:
        """Take or renew the lease; forget what the tools had where another process may have logged since."""
        answer = self._manager.lease_log(self._name, self._holder, LEASE_S)
        self._renewed = time.monotonic()
        if answer != "kept":
            self._known.clear()
        return answer != "refused"
