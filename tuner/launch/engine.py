"""An engine: whatever starts, places and restarts workers, here or on many machines.

An engine has one small interface: ``start`` N workers, say how many are ``alive``, ``stop`` them. Every engine runs
``tuner worker`` and leaves the rest to it: what a study needs, and what it has learned, is in its database.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sysconfig
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

import tuner
from tuner.errors import BadInputError, EngineError, TunerError
from tuner.launch import Place
from tuner.words import count

if TYPE_CHECKING:
    from tuner.manager import StudyManager, StudySummary
    from tuner.storage.ledger import Holder, Outstanding

POLL_S = 0.5  # seconds between two looks at the study, or ten times as long as a look takes
LEAVE_S = 10.0  # seconds in which workers find out by themselves that the study is finished
AWAIT_S = 5.0  # seconds between two looks at whom the workers wait for
CALL_S = 60.0  # seconds that a call of an engine's own program may take

_log = logging.getLogger(__name__)


class WorkersLostError(TunerError):
    """No worker is left, and the study is not finished."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class Crew:
    """What an engine is to start: ``workers`` equal workers of one study.

    storage: the database's URL. artifacts: where checkpoints live, None for the default place. gpus: GPUs of each
    worker, one process a GPU; 0 is a worker on CPUs, one process a CPU. cpus: CPU cores of each worker.
    """

    study: str
    workers: int
    storage: str
    artifacts: str | None = None
    cpus: int = 1
    gpus: int = 0

    @property
    def words(self) -> list[str]:
        """One worker's command line, after ``tuner``.

        >>> crew = Crew(study="digits", workers=8, storage="postgresql://db/tuner", cpus=2)
        >>> " ".join(crew.words)
        'worker digits --quiet --device cpu --workers 2'
        """
        words = ["worker", self.study, "--quiet"]
        if self.gpus:
            return [*words, "--gpus", "all"] if self.gpus > 1 else [*words, "--device", "cuda"]
        return [*words, "--device", "cpu", *(["--workers", str(self.cpus)] if self.cpus > 1 else [])]

    @property
    def environment(self) -> dict[str, str]:
        """Where everything is. Through the environment: a password in a URL never shows in a list of processes."""
        places = {"TUNER_STORAGE": self.storage}
        return places if self.artifacts is None else {**places, "TUNER_ARTIFACTS": self.artifacts}

    @property
    def shown_environment(self) -> dict[str, str]:
        """The environment as it may be shown: without passwords."""
        from tuner.storage import artifacts, database

        shown = {"TUNER_STORAGE": database.shown(database.parse_url(self.storage))}
        return shown if self.artifacts is None else {**shown, "TUNER_ARTIFACTS": artifacts.shown(self.artifacts)}

    @property
    def needs(self) -> str:
        """What one worker needs, in words."""
        return count(self.gpus, "GPU") if self.gpus else count(self.cpus, "CPU")


class Engine(ABC):
    """Starts the workers of one crew. A context manager: they are started on entry and stopped on exit.

    name: what people call it. look_s: seconds between two looks of a follower at who is alive; programs of a cluster
    want to be asked seldom. died: is told the process id of each worker of this machine that died, once, so that what
    it held can be freed. over: whether the study is finished, so that workers leave by themselves.
    """

    name: ClassVar[str]
    look_s: ClassVar[float] = 0.0

    def __init__(self, crew: Crew, *, died: Callable[[int], object] = lambda _: None) -> None:
        self.crew, self.died = crew, died
        self.over = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def submission(self, *, detach: bool = False) -> str:
        """Exactly what ``start`` hands over, as text. Needs no engine."""

    @abstractmethod
    def check(self) -> None:
        """Raises EngineError when the engine is missing or out of reach, DeviceError when it lacks what is needed."""

    @abstractmethod
    def start(self, *, detach: bool = False) -> None:
        """Start the workers, or put them into the engine's queue. Returns at once.

        detach: they outlive this process, and go on until the study is finished or stopped.
        """

    @property
    @abstractmethod
    def traces(self) -> str:
        """Where workers that were started are: what the engine calls them, how it shows and ends them, and where their
        words go.
        """

    @abstractmethod
    def alive(self) -> int:
        """How many workers are at work or will be: those that wait for a place, or to be started again, included.

        Raises WorkersLostError, with its last words, when none is left and at least one did not leave in peace.
        """

    @abstractmethod
    def stop(self) -> None:
        """Let every worker finish its epoch, save and leave, and wait for it; nothing is left then. Twice is once."""

    def owns(self, holder: Holder) -> bool:  # noqa: ARG002
        """Whether a holder of leases may be one of these workers."""
        return True


def make_engine(
    place: Place,
    crew: Crew,
    *,
    address: str | None = None,
    runtime_env: str | None = None,
    slurm: Sequence[str] = (),
    kubernetes: Sequence[str] = (),
) -> Engine:
    """The engine for a place.

    address: of the Ray cluster. runtime_env: Ray's, as JSON. slurm: options of sbatch, as KEY=VALUE. kubernetes: of the
    pods and kubectl, too.

    Raises BadInputError when the crew cannot work there, or an option is for another engine.
    """
    options = {
        "--address": (address, "ray"),
        "--runtime-env": (runtime_env, "ray"),
        "--slurm": (slurm, "slurm"),
        "--kubernetes": (kubernetes, "kubernetes"),
    }
    for option, (given, engine) in options.items():
        if given and place != engine:
            raise BadInputError(f"{option} is for --on {engine}, and this is --on {place}")
    if place == "local":
        from tuner.launch.local import LocalWorkers

        return LocalWorkers.of(crew)
    _must_be_shared(crew.storage)
    if place == "kubernetes":
        from tuner.launch.kubernetes import KubernetesWorkers

        return KubernetesWorkers(crew, settings(kubernetes, "--kubernetes"))
    crew = replace(crew, artifacts=_same_place(crew.artifacts))
    if place == "slurm":
        from tuner.launch.slurm import SlurmWorkers

        return SlurmWorkers(crew, settings(slurm, "--slurm"))
    from tuner.launch.ray import RayWorkers, read_runtime_env

    environment = None if runtime_env is None else read_runtime_env(runtime_env)
    return RayWorkers(crew, address=address, runtime_env=environment)


def _same_place(artifacts: str | None) -> str:
    """Where checkpoints live, whatever folder a worker starts in."""
    place = artifacts or "tuner-artifacts"
    return place if "://" in place else str(Path(place).absolute())


def _must_be_shared(storage: str) -> None:
    """Raises BadInputError for a database that workers on several machines cannot share."""
    from tuner.storage.database import parse_url, shown, sqlite_file

    url = parse_url(storage)
    if sqlite_file(url) is not None:
        raise BadInputError(
            f"{shown(url)} is a file, and workers on several machines cannot share one; use PostgreSQL: pip install "
            "'tuner[postgresql]', createdb tuner, then --storage postgresql://USER@HOST/tuner"
        )
    if url.host in (None, "localhost", "127.0.0.1", "::1"):
        _log.warning("%s: on other machines %s is another database, if any", shown(url), url.host or "a socket")


def follow(
    manager: StudyManager,
    name: str,
    engine: Engine,
    *,
    stop: threading.Event,
    show: Callable[[StudySummary], None],
) -> None:
    """Watch a study until it is finished, or stopped and all workers have left, or ``stop`` is set; ``show`` sees every
    look at it. The study's last state is the caller's to read: workers that leave still save. Where the workers have
    nothing to do but to wait for others, a line of the log says so.

    Raises WorkersLostError when the study needs work and no worker is left.
    """
    ledger, told, look, ask, alive = manager.ledger(name), "", 0.0, 0.0, 1
    while True:
        began = time.monotonic()
        lost: WorkersLostError | None = None
        # After a signal whoever dies was meant to: a worker that is still importing ends at once.
        if began >= ask and not stop.is_set():
            ask = began + engine.look_s
            try:
                alive = engine.alive()
            except WorkersLostError as error:
                alive, lost = 0, error
            except EngineError as error:  # the study goes on while its scheduler is being restarted
                _log.warning("%s", error)
        summary = manager.summary(name)
        show(summary)
        engine.over = summary.state == "finished"
        if stop.is_set() or summary.state == "finished" or (not alive and summary.state == "stopped"):
            return
        if not alive:
            raise lost or WorkersLostError(
                f"all workers left, but study {name!r} is not finished; run the same command again"
            )
        if began >= look:
            look = began + AWAIT_S
            line = awaited(ledger.outstanding(), engine.owns)
            if line and line[0] != told:
                _log.warning("%s: waiting for %s; %s", name, *line)
            told = line[0] if line else ""
        stop.wait(max(POLL_S, 10 * (time.monotonic() - began)))


def awaited(outstanding: Outstanding, owns: Callable[[Holder], bool]) -> tuple[str, str] | None:
    """Whom one's own workers wait for, and for how long; None while they have work.

    Where nothing may be claimed, what is left depends on slots that others hold.
    """
    others = [holder for holder in outstanding.holders if not owns(holder)]
    if outstanding.claimable or not others or len(others) < len(outstanding.holders):
        return None
    held = ", ".join(f"{count(holder.slots, 'trial')} of worker {holder.name}" for holder in others)
    return held, f"if nothing is heard of it they can be claimed in {max(h.lease_s for h in others):.0f} s"


def source_folder() -> Path | None:
    """The folder that this package lies in where it is not installed, so that workers can run this very package."""
    home = Path(tuner.__file__).resolve().parents[1]
    return None if str(home) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")) else home


def label(name: str) -> str:
    """A study's name as engines take names: small letters, digits and dashes.

    >>> label("Wine, 2nd try")
    'tuner-wine-2nd-try'
    """
    harmless = re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-")
    return f"tuner-{harmless or 'study'}"


def settings(words: Sequence[str], option: str) -> dict[str, str]:
    """``KEY=VALUE`` words, and flags, as a mapping. Raises BadInputError for one that is none.

    >>> settings(["partition=gpu", "exclusive"], "--slurm")
    {'partition': 'gpu', 'exclusive': ''}
    """
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        if not re.fullmatch(r"-{0,2}[A-Za-z][A-Za-z0-9-]*", key):
            raise BadInputError(f"{option} takes KEY=VALUE, as in partition=gpu, not {word!r}")
        found[key.lstrip("-")] = value
    return found


def call(
    command: Sequence[str],
    *,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    patience_s: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run an engine's own program; its exit code is the caller's to look at. Raises EngineError when it hangs."""
    patience_s = CALL_S if patience_s is None else patience_s
    try:
        return subprocess.run(
            command,
            input=stdin if stdin is not None else "",
            env=None if environment is None else dict(environment),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=patience_s,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"{command[0]} did not answer within {patience_s:.0f} s; is its server there?") from None


def require(program: str, *, advice: str) -> None:
    """Raises EngineError when a program is not installed."""
    if shutil.which(program) is None:
        raise EngineError(f"{program} is not installed here; {advice}")


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it says nothing")
