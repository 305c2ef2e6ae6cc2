"""One chaos run: studies one after the other, each under faults, each checked in the end."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import make_url

from tests.chaos import checker
from tests.chaos.faults import Injector, describe
from tests.chaos.proxy import Proxy
from tests.chaos.worker import Orders, read_journals, run
from tests.spaces import study as make_study
from tests.storage.private import PrivatePostgres
from tests.storage.servers import fresh_database
from tuner.manager import StudyManager
from tuner.spec import StudySpec

LEASE_S = 1.0
END_S = 120.0  # after the last fault a study has to end within this time
_SIGNALLED = (-9, -15)  # exit codes of a process that was killed; 0: it left


@dataclass
class Outcome:
    """What happened in a run, to be printed."""

    studies: int = 0
    trials: int = 0
    results: int = 0  # acknowledged
    deaths: int = 0  # worker processes that were killed
    lost_answers: int = 0  # COMMITs that were done, with no answer
    retried_leases: int = 0  # results that came from a second lease of their rung, or a later one
    injected: Counter[str] = field(default_factory=Counter)


class Fleet:
    """Worker processes; one that was killed, or told to leave, is replaced."""

    def __init__(self, size: int, order: Callable[[int], Orders]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.chaos.worker"])
        self._order = order
        self._size = size
        self._made = 0
        self._processes: list[BaseProcess] = []
        self.deaths = 0
        self.errors: list[str] = []

    def pids(self) -> list[int]:
        return [process.pid for process in list(self._processes) if process.pid is not None and process.is_alive()]

    def tend(self) -> None:
        """Keep the fleet at its size."""
        alive = []
        for process in self._processes:
            if process.is_alive():
                alive.append(process)
            elif process.exitcode in _SIGNALLED:
                self.deaths += 1
            elif process.exitcode != 0:
                self.errors.append(f"a worker ended with exit code {process.exitcode}")
        while len(alive) < self._size:
            self._made += 1
            process = self._context.Process(target=run, args=(self._order(self._made),), daemon=True)
            process.start()
            alive.append(process)
        self._processes = alive

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()


def make_spec(name: str, rng: random.Random, size: int) -> StudySpec:
    """A study of another form each time: sampler, pruner, size."""
    sampler = rng.choice(["random", "grid", "qmc"])
    pruner = rng.choice(["hyperband", "hyperband", "asha", "asha", "successive_halving", "none"])
    trials = {} if sampler == "grid" else {"trials": rng.randint(size // 2, size)}
    return make_study(
        sampler, study={"name": name}, search={**trials, "pruner": pruner}, training={"max_epochs": rng.choice([9, 27])}
    )


def chaos(
    kind: str,
    folder: Path,
    *,
    seconds: float,
    seed: int = 0,
    workers: int = 4,
    size: int = 100,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run studies under faults for so many seconds; the last one is brought to its end without faults.

    Raises BrokenPromiseError when a promise does not hold, AssertionError when a worker gave up or a study hangs.
    """
    rng = random.Random(seed)
    outcome = Outcome()
    with ExitStack() as stack:
        server = stack.enter_context(PrivatePostgres()) if kind == "postgresql" else None
        url = server.url() if server is not None else stack.enter_context(fresh_database(kind, folder))
        proxy, through = None, url
        if kind != "sqlite":
            parsed = make_url(url)
            proxy = stack.enter_context(Proxy(parsed.host or "127.0.0.1", parsed.port or 3306))
            through = parsed.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            spec = make_spec(f"chaos-{outcome.studies}", rng, size)
            place = folder / spec.study.name
            place.mkdir()
            _one(spec, url, through, place, deadline, rng.randrange(2**32), workers, proxy, server, outcome)
            say(f"{spec.study.name}: {spec.search.sampler}, {spec.search.pruner}, {spec.total_trials} trials: kept")
        outcome.lost_answers = proxy.cut_commits if proxy is not None else 0
    return outcome


def _one(
    spec: StudySpec,
    url: str,
    through: str,
    folder: Path,
    deadline: float,
    seed: int,
    workers: int,
    proxy: Proxy | None,
    server: PrivatePostgres | None,
    outcome: Outcome,
) -> None:
    """One study from its creation to the check of its promises; faults from the first moment on."""
    name = spec.study.name
    artifacts = folder / "artifacts"
    checkpoints: list[Path] = []

    def order(count: int) -> Orders:
        journal = str(folder / f"worker-{count}")
        return Orders(
            url=through, artifacts=str(artifacts), study=name, journal=journal, seed=seed + count, lease_s=LEASE_S
        )

    fleet = Fleet(workers, order)
    injector = Injector(
        url=url,
        seed=seed,
        lease_s=LEASE_S,
        victims=fleet,
        checkpoints=lambda: checkpoints[0] if checkpoints else None,
        proxy=proxy,
        server=server,
    )
    injector.start()
    try:
        with StudyManager(through, artifacts, patience_s=90) as manager:
            manager.create(spec, data_root=folder, data_digest="d" * 64, split_digest="s" * 64)
            checkpoints.append(manager.checkpoints(name).root)
            ledger = manager.ledger(name)
            calm = False
            while not ledger.finished():
                fleet.tend()
                time.sleep(0.1)
                if not calm and time.monotonic() > deadline:
                    injector.close()
                    calm = True
                assert time.monotonic() < deadline + END_S, f"{name} hangs: {ledger.outstanding()}"
            if not calm:
                injector.close()
            with _drained(fleet):
                journal = read_journals(folder)
            assert not fleet.errors, f"{name}: {fleet.errors}; see {folder}"
            checker.check(checker.gather(manager, url, spec, journal))
    finally:
        injector.close()
        fleet.close()
    outcome.studies += 1
    outcome.trials += spec.total_trials
    outcome.deaths += fleet.deaths
    outcome.injected += injector.counts
    firsts: dict[tuple[int, int], int] = {}
    for line in journal:
        if line["what"] == "claim":
            at = line["number"], line["rung"]
            firsts[at] = min(firsts.get(at, line["token"]), line["token"])
    results = [line for line in journal if line["what"] == "result"]
    outcome.results += len(results)
    outcome.retried_leases += sum(line["token"] > firsts[line["number"], line["rung"]] for line in results)


@contextmanager
def _drained(fleet: Fleet, seconds: float = 30.0) -> Iterator[None]:
    """Workers see that the study is finished, and leave; what they were told is in their journals then."""
    end = time.monotonic() + seconds
    while fleet.pids() and time.monotonic() < end:
        time.sleep(0.05)
    assert not fleet.pids(), "workers did not leave a finished study"
    fleet._size = 0
    fleet.tend()
    yield


def report(kind: str, seed: int, outcome: Outcome) -> list[str]:
    """What to print of a run whose promises were all kept."""
    return [
        f"{kind}, seed {seed}: {outcome.studies} studies, {outcome.trials} trials, {outcome.results} results",
        f"  injected: {describe(outcome.injected)}",
        f"  workers killed: {outcome.deaths}; COMMITs whose answer was lost: {outcome.lost_answers}",
        f"  results of a lease after the first: {outcome.retried_leases}",
        *(f"  kept: {promise}" for promise in checker.PROMISES),
        "  kept: no worker gave up",
    ]
