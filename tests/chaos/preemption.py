"""Machines that are taken away: real workers that train, each for a random time, every other with a notice before."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tuner import worker
from tuner.cli.signals import leave_on_signal
from tuner.manager import StudyManager
from tuner.plan import create_study
from tuner.spec import StudySpec, parse_spec
from tuner.storage.ledger import Ledger

NOTICE_S = 30.0  # between SIGTERM and SIGKILL


@dataclass
class Outcome:
    """What happened. Seconds of workers, not of the clock, in ``lost_s``."""

    seconds: float = 0.0
    noticed: int = 0  # workers that were told before
    vanished: int = 0  # and that were not
    leave_s: list[float] = field(default_factory=list)  # from the notice to the end
    lost_s: float = 0.0
    killed: int = 0  # that had not left when their notice was over


def make_spec(trials: int, max_epochs: int = 27) -> StudySpec:
    return parse_spec(
        {
            "study": {"name": "spot", "metric": "error"},
            "data": {"source": "sklearn:digits"},
            "training": {"max_epochs": max_epochs},
            "search": {"trials": trials},
            "space": {
                "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
                "batch_size": {"choices": [16, 32, 64]},
                "width": {"low": 16, "high": 128, "log": True},
                "depth": {"low": 1, "high": 2},
            },
        }
    )


def work(url: str, artifacts: str, journal: str, settings: dict[str, float]) -> None:
    """A worker process. Its journal has a line for each moment up to which nothing it has trained can be lost."""
    for name, value in settings.items():
        setattr(worker, name, value)

    def note(what: str) -> None:
        with Path(journal).open("a") as file:
            print(json.dumps({"what": what, "at": time.time()}), file=file)

    def noted(name: str) -> Any:
        original = getattr(Ledger, name)

        def call(*given: Any, **named: Any) -> Any:
            answer = original(*given, **named)
            if name != "claim" or answer:
                note(name)
            return answer

        return call

    for name in ("claim", "save", "commit", "release"):
        setattr(Ledger, name, noted(name))
    with leave_on_signal(lambda: None) as stop, Patient(url, artifacts) as manager:
        worker.run_worker(manager, "spot", device="cpu", stop=stop)


class Patient(StudyManager):
    """Its slots never fail: a machine that is gone before the first epoch is over is no exception here."""

    def ledger(self, name: str) -> Ledger:
        ledger = super().ledger(name)
        ledger.max_losses = 10**6
        return ledger


def preempted(
    url: str,
    folder: Path,
    spec: StudySpec,
    *,
    life_s: float = math.inf,
    life_saves: int | None = None,
    workers: int = 2,
    seed: int = 0,
    settings: dict[str, float] | None = None,
) -> Outcome:
    """Bring a study to its end with workers that live ``life_s`` seconds on average, or ``life_saves`` entries of their
    journals, which does not depend on how busy the machine is.
    """
    rng = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.preemption"])
    outcome, crew = Outcome(), [_Place(rng, life_s, life_saves) for _ in range(workers)]
    with StudyManager(url, folder / "artifacts") as manager:
        create_study(manager, spec, folder)
        began, made, noticed = time.monotonic(), 0, False
        while manager.summary("spot").state != "finished":
            for place in crew:
                if place.process is None or not place.process.is_alive():
                    place.bury(outcome)
                    made += 1
                    place.journal = folder / f"journal-{made}"
                    arguments = (url, str(folder / "artifacts"), str(place.journal), settings or {})
                    place.start(context.Process(target=work, args=arguments, daemon=True))
                elif place.told is not None:
                    if time.monotonic() - place.told > NOTICE_S:
                        place.process.kill()
                        place.process.join()
                        outcome.killed += 1
                elif place.due():
                    place.end(noticed := not noticed, outcome)
            time.sleep(0.02)
        outcome.seconds = time.monotonic() - began
        for place in crew:
            assert place.process is not None
            place.process.join(NOTICE_S)
            place.bury(outcome)
    return outcome


class _Place:
    """One machine after the other, each with a worker."""

    def __init__(self, rng: random.Random, life_s: float, life_saves: int | None) -> None:
        self._rng, self._life_s, self._life_saves = rng, life_s, life_saves
        self.process: BaseProcess | None = None
        self.journal = Path(os.devnull)
        self._until: float | None = None
        self.told: float | None = None
        self._gone: float | None = None  # time.time() when its worker was told, or killed
        self._before: float | None = None  # the same of the one before it

    def start(self, process: BaseProcess) -> None:
        self.process, self.told = process, None
        process.start()
        self._until = None

    def due(self) -> bool:
        """Whether its time is over, which begins with its first claim."""
        if not self.journal.exists():
            return False
        if self._life_saves is not None:
            if self._until is None:
                self._until = self._rng.randint(2, 2 * self._life_saves)
            return len(self.journal.read_text().splitlines()) >= self._until
        if self._until is None:
            self._until = time.monotonic() + (self._rng.expovariate(1) * self._life_s)
        return time.monotonic() > self._until

    def end(self, noticed: bool, outcome: Outcome) -> None:
        assert self.process is not None
        if noticed:
            outcome.noticed += 1
            self.told = time.monotonic()
            self.process.terminate()
        else:
            outcome.vanished += 1
            self.process.kill()
            self.process.join()
        self._gone = time.time()

    def bury(self, outcome: Outcome) -> None:
        """Count what its worker cost: the time until it had work, and what it had trained since its last save."""
        if self.process is None:
            return
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()] if self.journal.exists() else []
        claimed = [line["at"] for line in lines if line["what"] == "claim"]
        saved = [line["at"] for line in lines if line["what"] != "claim"]
        if self.told is not None:
            outcome.leave_s.append(time.monotonic() - self.told)
        if self._before is not None:
            outcome.lost_s += (claimed[0] if claimed else self._gone or time.time()) - self._before
        if self._gone is not None and claimed:
            outcome.lost_s += max(0.0, self._gone - max([claimed[0], *saved]))
        self._before, self._gone = self._gone, None
        self.process.close()
        self.process = None


def check(manager: StudyManager, spec: StudySpec) -> None:
    """Exactly N, nothing left over, each epoch once. Raises AssertionError."""
    rows = manager.trials("spot")
    assert [row.number for row in rows] == list(range(spec.total_trials))
    assert {row.state for row in rows} <= {"complete", "pruned"}, {row.reason for row in rows if row.state == "failed"}
    curves = manager.curves("spot")
    assert all([point.epoch for point in curves[row.number]] == list(range(1, row.epochs + 1)) for row in rows)
