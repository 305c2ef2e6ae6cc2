"""How many workers one PostgreSQL serves: a discrete-event simulation, fed with what calls were measured to cost.

    python -m tests.benchmarks.scale [-f json] [--cores 8] [--check]

It measures what a claim, a commit, a save, a write of learning curves and a heartbeat cost on the PostgreSQL of the
tests, which must run on this machine: processor time of the client and of the server, and how much of it a commit
spends while it holds the study's row, one commit after the other. Then it prints, for packs of some sizes that train
for some time, at how many workers throughput falls below nine tenths of what an infinitely fast server would give, and
what runs out first: the server's cores, or the row.

- ``--cores``: of the server; by default those of this machine.
- ``--check``: also runs 64 workers on the cores of this machine, where the server is, too, once with the pause of the
  crowd in ``tests.benchmarks.storage`` and once with almost none, and prints the simulated throughput beside the
  measured one. The second run has far more threads than cores: what it costs to take turns is not simulated, so that
  the simulated server serves more there than the real one.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import event

from tests.benchmarks.storage import PAUSE_S, commit, create, crowd, make_spec, show
from tests.storage.servers import fresh_database
from tuner.manager import StudyManager
from tuner.storage.checkpoints import Checkpoint
from tuner.storage.ledger import Claim, EpochRow, Ledger

PACKS = (8, 32, 128)  # lanes
TRAINING_S = (5.0, 60.0, 600.0)  # seconds that a pack trains
SHARE = 0.9  # of the throughput without a server: below it the server is saturated
BEAT_S, SAVE_S, RECORD_S = 5.0, 5.0, 2.0  # as in tuner/worker.py, which would import torch
MOST = 100_000  # workers
HURRIED_S = 0.2  # seconds between claim and commit of the workers that the simulation is checked with


@dataclass(frozen=True, kw_only=True)
class Call:
    """Processor seconds that one call takes of its client and of the server, and of these what is spent while it holds
    the study's row.
    """

    client_s: float
    server_s: float
    locked_client_s: float = 0.0
    locked_server_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the calls of a worker with packs of one size cost."""

    pack: int
    claim: Call
    commit: Call
    save: Call
    record: Call
    beat: Call

    @property
    def background(self) -> float:
        """Server seconds a second that a worker takes while it trains."""
        return self.beat.server_s / BEAT_S + self.save.server_s / SAVE_S + self.record.server_s / RECORD_S


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a simulated crowd came to."""

    packs_per_s: float
    claim_ms: float
    commit_ms: float


# Measuring


def measured(url: str, folder: Path, pack: int, rounds: int = 12) -> Costs:
    """Medians over some packs of a study of three rungs, by one worker that has the server for itself."""
    with StudyManager(url, folder) as manager:
        ledger = create(manager, make_spec("hyperband", pack * rounds, f"scale-{pack}", max_epochs=9))
        worker = ledger.register("scale", os.getpid(), "cpu", "0")
        clock = _Clock(manager)
        found: dict[str, list[Call]] = {}
        while True:
            call, claims = clock.timed(lambda: ledger.claim(worker, limit=pack, lease_s=60))
            if not claims:
                break
            found.setdefault("claim", []).append(call)
            middle: dict[str, Callable[[], object]] = {
                "record": lambda given=claims: ledger.record(worker, _rows(given)),
                "save": lambda given=claims: _save(ledger, worker, given),
                "beat": lambda: ledger.heartbeat(worker, pack, 1.0),
                "commit": lambda given=claims: commit(ledger, worker, given),
            }
            for name, work in middle.items():
                found.setdefault(name, []).append(clock.timed(work)[0])
    return Costs(pack=pack, **{name: _median(calls) for name, calls in found.items()})


class _Clock:
    """Times calls, and in them the time for which the study's row is locked.

    Processor time, of this thread and of the server's process that serves it: other programs of a busy machine are in
    neither.
    """

    def __init__(self, manager: StudyManager) -> None:
        engine = manager._database.engine
        pid = manager._database.read(lambda c: c.exec_driver_sql("SELECT pg_backend_pid()").scalar())
        self._server = Path(f"/proc/{pid}/schedstat")
        self._locked: tuple[float, float] | None = None
        self._held = (0.0, 0.0)
        event.listen(engine, "before_cursor_execute", self._statement)
        event.listen(engine, "commit", self._commit)

    def timed(self, work: Callable[[], Any]) -> tuple[Call, Any]:
        self._held = (0.0, 0.0)
        before = self._now()
        answer = work()
        client_s, server_s = _difference(before, self._now())
        locked_client_s, locked_server_s = self._held
        call = Call(
            client_s=client_s, server_s=server_s, locked_client_s=locked_client_s, locked_server_s=locked_server_s
        )
        return call, answer

    def _now(self) -> tuple[float, float]:
        return time.thread_time(), int(self._server.read_text().split()[0]) / 1e9

    def _statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FOR UPDATE" in statement and "FROM tuner_studies" in statement and self._locked is None:
            self._locked = self._now()

    def _commit(self, _connection: Any) -> None:
        if self._locked is not None:
            self._held = _difference(self._locked, self._now())
            self._locked = None


def _difference(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    return after[0] - before[0], after[1] - before[1]


def _rows(claims: list[Claim]) -> list[EpochRow]:
    return [
        EpochRow(number=c.number, token=c.token, epoch=c.epochs + 1, value=0.5, train_loss=0.5, val_loss=0.5)
        for c in claims
    ]


def _save(ledger: Ledger, worker: int, claims: list[Claim]) -> None:
    file = Checkpoint(name=f"{random.getrandbits(128):032x}.safetensors", sha256="0" * 64, bytes=1)
    ledger.save(worker, [(c.number, c.token, c.epochs) for c in claims], [], file)


def _median(calls: list[Call]) -> Call:
    """Part by part."""
    names = ("client_s", "server_s", "locked_client_s", "locked_server_s")
    return Call(**{name: statistics.median(getattr(call, name) for call in calls) for name in names})


# The simulation

Process = Generator[Any, None, None]


class Station:
    """``places`` servers and one queue, first come, first served."""

    def __init__(self, places: int) -> None:
        self.free = places
        self.queue: deque[Process] = deque()


class Events:
    """Runs processes: generators that yield seconds to wait, or a station to enter, which they then leave."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Process]] = []
        self._ticket = itertools.count()

    def start(self, process: Process) -> None:
        heapq.heappush(self._heap, (self.now, next(self._ticket), process))

    def leave(self, station: Station) -> None:
        if station.queue:
            self.start(station.queue.popleft())
        else:
            station.free += 1

    def run(self, until: Callable[[], bool]) -> None:
        while not until():
            self.now, _, process = heapq.heappop(self._heap)
            wanted = next(process)
            if isinstance(wanted, Station):
                if wanted.free:
                    wanted.free -= 1
                    self.start(process)
                else:
                    wanted.queue.append(process)
            else:
                heapq.heappush(self._heap, (self.now + wanted, next(self._ticket), process))


def simulate(
    workers: int, costs: Costs, training_s: float, cores: int, *, shared: bool = False, packs: int = 12, seed: int = 0
) -> Run:
    """``workers`` that claim, train and commit, each so many packs; the first third does not count.

    shared: clients compute on the server's cores, too, and write nothing while they train, as the measured crowd does.
    """
    events, rng = Events(), random.Random(seed)
    server, row = Station(cores), Station(1)
    load = (
        0.0 if shared else workers * costs.background / cores
    )  # what heartbeats and saves leave is shared by the rest
    if load >= 0.98:
        return Run(packs_per_s=0.0, claim_ms=float("inf"), commit_ms=float("inf"))
    done: list[tuple[float, float, float]] = []  # when, and how long its claim and its commit took

    def use(client_s: float, server_s: float) -> Process:
        if not shared:
            yield client_s
        yield server
        yield (server_s + client_s if shared else server_s) / (1 - load)
        events.leave(server)

    def call(cost: Call) -> Process:
        yield from use(cost.client_s - cost.locked_client_s, cost.server_s - cost.locked_server_s)
        if cost.locked_server_s:
            yield row
            yield from use(cost.locked_client_s, cost.locked_server_s)
            events.leave(row)

    def worker() -> Process:
        yield rng.uniform(0, training_s)
        while True:
            began = events.now
            yield from call(costs.claim)
            claimed = events.now
            yield training_s * rng.uniform(0.5, 1.5)
            trained = events.now
            yield from call(costs.commit)
            done.append((events.now, claimed - began, events.now - trained))

    for _ in range(workers):
        events.start(worker())
    wanted = workers * packs
    events.run(lambda: len(done) >= wanted)
    steady = done[wanted // 3 :]
    return Run(
        packs_per_s=(len(steady) - 1) / (steady[-1][0] - steady[0][0]),
        claim_ms=1000 * statistics.mean(claim for _, claim, _ in steady),
        commit_ms=1000 * statistics.mean(commit for _, _, commit in steady),
    )


def saturation(costs: Costs, training_s: float, cores: int) -> int:
    """The smallest number of workers whose throughput is below ``SHARE`` of what an infinitely fast server gives."""

    def saturated(workers: int) -> bool:
        cycle_s = training_s + costs.claim.client_s + costs.commit.client_s
        packs = max(4, min(12, 40_000 // workers))
        return simulate(workers, costs, training_s, cores, packs=packs).packs_per_s < SHARE * workers / cycle_s

    low, high = 1, 2
    while high < MOST and not saturated(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (low, middle) if saturated(middle) else (middle, high)
    return high


def bottleneck(costs: Costs, training_s: float, cores: int) -> str:
    """What is busiest: the cores, or the study's row."""
    busy_s = costs.claim.server_s + costs.commit.server_s + training_s * costs.background
    held_s = costs.commit.locked_client_s + costs.commit.locked_server_s
    return "row" if held_s > busy_s / cores else "cores"


# The tables


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Milliseconds of one call: of the client, of the server, and with the study's row locked."""

    pack: int
    call: str
    client_ms: float
    server_ms: float
    locked_ms: float


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """From how many workers on one server is saturated, and what runs out first."""

    pack: int
    training_s: float
    workers: int
    trials_per_s: float
    first: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """Packs a second, measured and simulated. pause_s: seconds between claim and commit of a worker."""

    workers: int
    pause_s: float
    measured: float
    simulated: float
    ratio: float


def check(costs: Costs, workers: int, pause_s: float, packs: int = 8) -> Check:
    """A real crowd, and the simulated one."""
    cores = os.cpu_count() or 1
    if (busy := os.getloadavg()[0]) > 0.5 * cores:
        print(f"this machine is busy with other work (load {busy:.1f}): the check means little", file=sys.stderr)
    with TemporaryDirectory() as folder, fresh_database("postgresql", Path(folder)) as url:
        found = crowd(url, Path(folder), workers, workers * packs * 8, pause_s)
    simulated = simulate(workers, costs, pause_s, cores, shared=True).packs_per_s
    return Check(
        workers=workers,
        pause_s=pause_s,
        measured=found.packs_per_s,
        simulated=simulated,
        ratio=simulated / found.packs_per_s,
    )


ADVICE = """\
What to turn up when one server is saturated: the time between a claim and its commit, which longer rungs (min_epochs, a
larger eta) and larger packs give; the cores of the server where they run out; studies, where the row does: each has its
own. Connections are no limit: a worker keeps one, and PgBouncer shares them (?pgbouncer=true)."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="of the server")
    parser.add_argument("--check", action="store_true", help="compare with 64 real workers")
    given = parser.parse_args()
    out: dict[str, Any] = {"cores": given.cores}
    with TemporaryDirectory() as folder, fresh_database("postgresql", Path(folder)) as url:
        costs = [measured(url, Path(folder), pack) for pack in PACKS]
    calls = [
        Measured(
            pack=each.pack,
            call=name,
            client_ms=1000 * call.client_s,
            server_ms=1000 * call.server_s,
            locked_ms=1000 * (call.locked_client_s + call.locked_server_s),
        )
        for each in costs
        for name in ("claim", "record", "save", "beat", "commit")
        for call in [getattr(each, name)]
    ]
    limits = []
    for each in costs:
        for training_s in TRAINING_S:
            workers = saturation(each, training_s, given.cores)
            limits.append(
                Saturation(
                    pack=each.pack,
                    training_s=training_s,
                    workers=workers,
                    trials_per_s=SHARE * workers * each.pack / training_s,
                    first=bottleneck(each, training_s, given.cores),
                )
            )
    tables: dict[str, list[Any]] = {"calls": calls, "saturation": limits}
    if given.check:
        tables["check"] = [check(costs[0], 64, pause_s) for pause_s in (PAUSE_S, HURRIED_S)]
    for name, rows in tables.items():
        out[name] = [asdict(row) for row in rows]
        if given.format == "table":
            show(rows)
    print(json.dumps(out) if given.format == "json" else ADVICE)


if __name__ == "__main__":
    main()
