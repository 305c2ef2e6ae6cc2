"""What the storage costs: Tuner's ledger beside plain Optuna, the same work on the same databases in one run.

    python -m tests.benchmarks.storage [-f json] [--databases sqlite postgresql mysql] [--parts cost history asha crowd]

- ``cost``: milliseconds of storage a trial (create, sample 6 hyperparameters, report epochs, decide, finish). ``full``
  trains 27 epochs a trial without pruning; ``hyperband`` decides rungs at 1, 3, 9 and 27 epochs, each side by its own
  rule. The ledger works in packs of 64, Optuna trial by trial, as each is made for. Nothing is trained.
- ``history``: the ledger's cost in a study that holds 100 finished trials, and in one that holds 100,000.
- ``asha``: milliseconds that claims and commits take at the beginning and at the end of a study of 10,000 trials under
  the asynchronous rule, which decides in every claim.
- ``crowd``: 64 workers (8 processes of 8 threads) on one PostgreSQL that claim, sleep and commit: how long a claim
  takes, and whether everything came out exactly once.

Databases are those of the tests (``TUNER_TEST_POSTGRES_URL``, ``TUNER_TEST_MYSQL_URL``); one that does not answer is
left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy import Double, event, literal, select, true, union_all, update

from tests.storage.fleet import truth
from tests.storage.servers import KINDS, fresh_database, why_not
from tuner.manager import StudyManager
from tuner.search import hyperband
from tuner.search.distributions import distributions_for, encode, suggest
from tuner.search.samplers import make_sampler
from tuner.spec import StudySpec, parse_spec
from tuner.storage import bulk, records, schema
from tuner.storage.checkpoints import Checkpoint
from tuner.storage.database import parse_url
from tuner.storage.ledger import Claim, EpochRow, Ledger, RungResult

everybody: Any = None
PARTS = ["cost", "history", "asha", "crowd"]
EPOCHS = 27
PAUSE_S = 5.0  # seconds that a worker of the crowd takes for a pack, half as much more or less
PACK = 64
SPACE = {
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "batch_size": {"choices": [16, 32, 64, 128, 256]},
    "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True, "or_zero": True},
    "dropout": {"low": 0.0, "high": 0.6},
    "width": {"low": 16, "high": 512, "log": True},
    "depth": {"low": 1, "high": 4},
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Milliseconds a trial, and SQL statements of one pack (its claim and its commit)."""

    database: str
    workload: str
    ledger_ms: float
    optuna_ms: float
    ratio: float
    statements: int


@dataclass(frozen=True, kw_only=True)
class History:
    """Milliseconds a trial of the ledger in studies with few and with many finished trials."""

    database: str
    workload: str
    few: int
    many: int
    few_ms: float
    many_ms: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Milliseconds of a claim and of a commit, over the first tenth and the last tenth of a study's packs."""

    database: str
    trials: int
    packs: int
    first_claim_ms: float
    last_claim_ms: float
    first_commit_ms: float
    last_commit_ms: float


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Many workers on one server. Latencies in milliseconds."""

    workers: int
    trials: int
    finished: int
    claims: int
    errors: int
    exact: bool
    claim_p50_ms: float
    claim_p99_ms: float
    commit_p99_ms: float
    packs_per_s: float  # between the first and the last tenth of the commits
    seconds: float


def make_spec(workload: str, trials: int, name: str | None = None, max_epochs: int = EPOCHS) -> StudySpec:
    pruner = "none" if workload == "full" else workload
    return parse_spec(
        {
            "study": {"name": name or f"bench-{uuid.uuid4().hex[:8]}", "metric": "error"},
            "data": {"source": "sklearn:digits"},
            "search": {"sampler": "random", "pruner": pruner, "trials": trials},
            "training": {"max_epochs": max_epochs},
            "space": SPACE,
        }
    )


def create(manager: StudyManager, spec: StudySpec) -> Ledger:
    manager.create(spec, data_root=Path("/data"), data_digest="d" * 64, split_digest="s" * 64)
    return manager.ledger(spec.study.name)


# One pack, as a worker does it


def commit(ledger: Ledger, worker: int, claims: Sequence[Claim]) -> None:
    """What a worker writes of a pack that has reached its rung."""
    rows = [
        EpochRow(
            number=claim.number,
            token=claim.token,
            epoch=epoch,
            value=truth(claim.params, epoch),
            train_loss=1 / epoch,
            val_loss=2 / epoch,
        )
        for claim in claims
        for epoch in range(claim.epochs + 1, claim.target_epochs + 1)
    ]
    results = [
        RungResult(
            number=claim.number,
            token=claim.token,
            epochs=claim.target_epochs,
            value=truth(claim.params, claim.target_epochs),
            seconds=0.1,
        )
        for claim in claims
    ]
    goes_on = claims[0].target_epochs < ledger.spec.training.max_epochs
    # The files themselves are not SQL; their rows, and sweeping them, are.
    file = Checkpoint(name=f"{uuid.uuid4().hex}.safetensors", sha256="0" * 64, bytes=1) if goes_on else None
    ledger.commit(worker, results, rows, file)


def ledger_ms(ledger: Ledger, trials: int) -> float:
    """Milliseconds a trial until so many more are finished, in packs."""
    worker = ledger.register("bench", os.getpid(), "cpu", "0")
    before = unfinished(ledger)
    began = time.perf_counter()
    while claims := ledger.claim(worker, limit=PACK, lease_s=60):
        commit(ledger, worker, claims)
    spent = time.perf_counter() - began
    assert before - unfinished(ledger) == trials
    ledger.leave(worker)
    return 1000 * spent / trials


def unfinished(ledger: Ledger) -> int:
    """How many slots wait, are leased, or are paused at a rung."""
    left = ledger.outstanding()
    return left.claimable + left.leased + left.paused


def optuna_ms(url: str, spec: StudySpec, trials: int) -> float:
    """Milliseconds a trial of the same work by Optuna's public API."""
    hyper = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=3)
    storage = optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    study = optuna.create_study(
        study_name=f"{spec.study.name}-optuna",
        storage=storage,
        direction="minimize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=hyper if spec.search.pruner == "hyperband" else optuna.pruners.NopPruner(),
    )
    space = spec.search_space

    def one() -> None:
        trial = study.ask()
        params = suggest(trial, space)
        for epoch in range(1, EPOCHS + 1):
            trial.report(truth(params, epoch), epoch)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return
        study.tell(trial, truth(params, EPOCHS))

    try:
        one()  # warm
        began = time.perf_counter()
        for _ in range(trials):
            one()
        return 1000 * (time.perf_counter() - began) / trials
    finally:
        storage.remove_session()
        storage.engine.dispose()


def statements(manager: StudyManager, ledger: Ledger) -> int:
    """SQL statements of one full pack: its claim and its commit."""
    worker = ledger.register("bench", os.getpid(), "cpu", "0")
    seen: list[str] = []
    listen = (manager._database.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    event.listen(*listen)
    try:
        commit(ledger, worker, ledger.claim(worker, limit=PACK, lease_s=60))
    finally:
        event.remove(*listen)
    return len(seen)


# Parts


def cost(kind: str, url: str, folder: Path, rounds: int) -> list[Cost]:
    found = []
    with StudyManager(url, folder) as manager:
        for workload in ("full", "hyperband"):
            trials = whole_rounds(workload, 256)
            mine, theirs = [], []
            for _ in range(rounds):
                spec = make_spec(workload, trials)
                mine.append(ledger_ms(create(manager, spec), trials))
                theirs.append(optuna_ms(url, spec, 24))
            counted = statements(manager, create(manager, make_spec(workload, trials)))
            found.append(
                Cost(
                    database=kind,
                    workload=workload,
                    ledger_ms=statistics.median(mine),
                    optuna_ms=statistics.median(theirs),
                    ratio=statistics.median(b / a for a, b in zip(mine, theirs, strict=True)),
                    statements=counted,
                )
            )
    return found


def whole_rounds(workload: str, trials: int) -> int:
    """The number of trials, a little more if need be, that makes whole rounds of brackets."""
    size = PACK
    if workload == "hyperband":
        spec = make_spec(workload, 1)
        size = sum(bracket.size for bracket in hyperband.brackets(spec.search, EPOCHS))
    return -(-trials // size) * size


def history(kind: str, url: str, folder: Path, workload: str, few: int, many: int, then: int = 256) -> History:
    """Studies with a past, side by side: the trials that follow are measured in turn, a round each."""
    trials, rounds = whole_rounds(workload, then), 3
    took: dict[int, list[float]] = {}
    with StudyManager(url, folder) as manager:
        ledgers = {}
        for size in (whole_rounds(workload, few), whole_rounds(workload, many)):
            spec = make_spec(workload, size + rounds * trials)
            ledgers[size] = create(manager, spec)
            write_history(manager, ledgers[size], size)
        settle(manager)
        for turn in range(rounds):
            for size, ledger in ledgers.items():
                hold_back(manager, ledger, size + (turn + 1) * trials)
                took.setdefault(size, []).append(ledger_ms(ledger, trials))
    (few, few_took), (many, many_took) = took.items()
    return History(
        database=kind,
        workload=workload,
        few=few,
        many=many,
        few_ms=statistics.median(few_took),
        many_ms=statistics.median(many_took),
        ratio=statistics.median(b / a for a, b in zip(few_took, many_took, strict=True)),
    )


def asha(kind: str, url: str, folder: Path, trials: int) -> Asha:
    """A whole study by one worker."""
    with StudyManager(url, folder) as manager:
        ledger = create(manager, make_spec("asha", trials, max_epochs=9))
        worker = ledger.register("bench", os.getpid(), "cpu", "0")
        took: list[tuple[float, float]] = []
        began = time.perf_counter()
        while claims := ledger.claim(worker, limit=PACK, lease_s=60):
            claimed = time.perf_counter()
            commit(ledger, worker, claims)
            done = time.perf_counter()
            took.append((1000 * (claimed - began), 1000 * (done - claimed)))
            began = done
        assert ledger.finished()
    tenth = max(1, len(took) // 10)
    first, last = (
        [statistics.median(part) for part in zip(*some, strict=True)] for some in (took[:tenth], took[-tenth:])
    )
    return Asha(
        database=kind,
        trials=trials,
        packs=len(took),
        first_claim_ms=first[0],
        last_claim_ms=last[0],
        first_commit_ms=first[1],
        last_commit_ms=last[1],
    )


def hold_back(manager: StudyManager, ledger: Ledger, number: int) -> None:
    """Let only slots below ``number`` be claimed now."""
    mine = (schema.slots.c.study_id == ledger.study_id, schema.slots.c.state.in_(("waiting", "held back")))
    later = update(schema.slots).where(*mine, schema.slots.c.number >= number).values(state="held back")
    here = update(schema.slots).where(*mine, schema.slots.c.number < number).values(state="waiting")
    manager._database.write(lambda c: c.execute(later) and c.execute(here) and None)


def write_history(manager: StudyManager, ledger: Ledger, size: int) -> None:
    """Finished trials with parameters, values and 27 epochs each, as if they had been trained."""
    sampler, space = make_sampler(ledger.spec), ledger.spec.search_space
    worker = ledger.register("past", 1, "cpu", "0")
    at = time.time() - 3600
    epochs = union_all(*(select(literal(epoch).label("epoch")) for epoch in range(1, EPOCHS + 1))).subquery()
    for start in range(0, size, 20_000):
        numbers = range(start, min(start + 20_000, size))
        drawn = sampler.draw(numbers, lambda: None)

        def work(connection: Any, numbers: range = numbers, drawn: list[Any] = drawn) -> None:
            starts = [
                records.Start(
                    number=number, params=encode(params, space), distributions=distributions_for(params, space)
                )
                for number, params in zip(numbers, drawn, strict=True)
            ]
            ids = records.start_trials(connection, ledger.study_id, starts, at)
            values = {number: truth(params, EPOCHS) for number, params in zip(numbers, drawn, strict=True)}
            finishes = [
                records.Finish(trial_id=ids[n], state=TrialState.COMPLETE, value=values[n], user_attrs={"epochs": 27})
                for n in numbers
            ]
            records.finish_trials(connection, finishes, at)
            rows = [
                {
                    "study_id": ledger.study_id,
                    "number": number,
                    "state": "complete",
                    "trial_id": ids[number],
                    "params": json.dumps(params),
                    "epochs": EPOCHS,
                    "value": values[number],
                    "value_type": "FINITE",
                    "worker_id": worker,
                    "token": 1,
                    "attempts": 1,
                }
                for number, params in zip(numbers, drawn, strict=True)
            ]
            bulk.insert(connection, schema.slots, rows, conflict="update")
            rungs = [
                {"study_id": ledger.study_id, "number": n, "rung": 0, "epochs": EPOCHS, "value": v, "token": 1}
                for n, v in values.items()
            ]
            bulk.insert(connection, schema.rungs, rungs)
            slot, table = schema.slots.c, records.intermediate_values
            finite = literal("FINITE", type_=table.c.intermediate_value_type.type)
            half = literal(0.5, type_=Double())
            pairs = (
                select(slot.trial_id, epochs.c.epoch, half, finite)
                .select_from(schema.slots.join(epochs, true()))
                .where(slot.study_id == ledger.study_id, slot.number.between(numbers[0], numbers[-1]))
            )
            columns = ["trial_id", "step", "intermediate_value", "intermediate_value_type"]
            connection.execute(table.insert().from_select(columns, pairs, include_defaults=False))
            columns = ["study_id", "number", "epoch", "train_loss", "val_loss"]
            pairs = pairs.with_only_columns(
                slot.study_id, slot.number, epochs.c.epoch, half, half.label("again"), maintain_column_froms=True
            )
            connection.execute(schema.curves.insert().from_select(columns, pairs))

        manager._database.write(work)
    ledger.leave(worker)


def settle(manager: StudyManager) -> None:
    """Let the planner know the tables, as a server that has run for a while does."""
    engine = manager._database.engine
    tables = [*schema.metadata.tables, "trials", "trial_params", "trial_values", "trial_intermediate_values"]
    commands = {"postgresql": ["VACUUM ANALYZE"], "sqlite": []}.get(
        engine.dialect.name, [f"ANALYZE TABLE {table}" for table in tables]
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for command in commands:
            connection.exec_driver_sql(command)


# The crowd


def crowd(url: str, folder: Path, workers: int, trials: int, pause_s: float) -> Crowd:
    spec = make_spec("hyperband", trials, "crowd", max_epochs=9)
    processes = max(1, workers // 8)
    with StudyManager(url, folder) as manager:
        create(manager, spec)
        began = time.perf_counter()
        context = get_context("spawn")
        ready = (context.Barrier(processes),)
        with ProcessPoolExecutor(processes, mp_context=context, initializer=crowd_start, initargs=ready) as pool:
            jobs = [
                pool.submit(crowd_process, url, str(folder), workers // processes, place, pause_s)
                for place in range(processes)
            ]
            found = [job.result() for job in jobs]
        seconds = time.perf_counter() - began
        rows = manager.trials("crowd")
        rungs = manager._database.read(lambda c: c.execute(select(schema.rungs.c.number, schema.rungs.c.rung)).all())
    claims = [s for each in found for s in each["claims"]]
    commits = [s for each in found for s in each["commits"]]
    ends = sorted(at for each in found for at in each["ends"])
    middle = ends[len(ends) // 10 : max(len(ends) // 10 + 2, 9 * len(ends) // 10)]
    accepted = Counter(tuple(place) for each in found for place in each["accepted"])
    finished = sum(row.state in ("complete", "pruned") for row in rows)
    return Crowd(
        workers=workers,
        trials=trials,
        finished=finished,
        claims=len(claims),
        errors=sum(each["errors"] for each in found),
        exact=finished == trials == len(rows) and accepted == Counter((row.number, row.rung) for row in rungs),
        claim_p50_ms=1000 * statistics.median(claims),
        claim_p99_ms=1000 * statistics.quantiles(claims, n=100)[98],
        commit_p99_ms=1000 * statistics.quantiles(commits, n=100)[98],
        packs_per_s=(len(middle) - 1) / (middle[-1] - middle[0]),
        seconds=seconds,
    )


def crowd_start(ready: Any) -> None:
    """The processes of the crowd begin together: the first ones need not share their cores with others' imports."""
    global everybody
    everybody = ready


def crowd_process(url: str, folder: str, threads: int, seed: int, pause_s: float) -> dict[str, Any]:
    """Some workers of the crowd; each arrives at a moment of its own."""
    found: dict[str, Any] = {"claims": [], "commits": [], "ends": [], "accepted": [], "errors": 0}
    with ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
        # Each with a connection of its own, as it would be in a process of its own.
        managers = [stack.enter_context(StudyManager(url, folder)) for _ in range(threads)]
        everybody.wait(timeout=300)

        def one(place: int) -> None:
            ledger = managers[place].ledger("crowd")
            rng = random.Random(1000 * seed + place)
            time.sleep(rng.uniform(0, pause_s))
            worker = ledger.register("crowd", place, "cpu", "0")
            while True:
                began = time.perf_counter()
                claims = ledger.claim(worker, limit=8, lease_s=60)
                found["claims"].append(time.perf_counter() - began)
                if not claims and ledger.finished():
                    break
                time.sleep(pause_s * rng.uniform(0.5, 1.5))
                if claims:
                    began = time.perf_counter()
                    commit(ledger, worker, claims)
                    found["commits"].append(time.perf_counter() - began)
                    found["ends"].append(time.time())
                    found["accepted"] += [(claim.number, claim.rung) for claim in claims]

        for job in [pool.submit(one, place) for place in range(threads)]:
            if job.exception() is not None:
                found["errors"] += 1
                print(f"worker: {job.exception()}", flush=True)
    return found


# The tables


def show(rows: Sequence[Any]) -> None:
    """A table of dataclasses of one kind."""
    cells = [
        [f"{v:.3g}" if isinstance(v, float) and v < 1000 else str(v) for v in asdict(row).values()] for row in rows
    ]
    head = [name.removesuffix("_ms") + " ms" if name.endswith("_ms") else name for name in asdict(rows[0])]
    widths = [max(len(cell) for cell in column) for column in zip(head, *cells, strict=True)]
    for line in (head, *cells):
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))
    print(flush=True)


def main() -> None:
    """Print the tables, each as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    parser.add_argument("--databases", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--history", type=int, default=100_000, help="finished trials of the large study")
    parser.add_argument("--workers", type=int, default=64, help="workers of the crowd")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = [kind for kind in arguments.databases if kind == "sqlite" or why_not(kind) is None]
    out: dict[str, Any] = {"left_out": sorted(set(arguments.databases) - set(kinds))}

    def measured(part: str, measure: Callable[[str, str, Path], list[Any]], kinds: Sequence[str]) -> None:
        rows: list[Any] = []
        for kind in kinds:
            with TemporaryDirectory() as folder, fresh_database(kind, Path(folder)) as url:
                rows += measure(kind, url, Path(folder))
        out[part] = [asdict(row) for row in rows]
        if rows and arguments.format == "table":
            show(rows)

    if "cost" in arguments.parts:
        measured("cost", lambda kind, url, folder: cost(kind, url, folder, 3), kinds)
    if "history" in arguments.parts:
        measured(
            "history",
            lambda kind, url, folder: [
                history(kind, url, folder, load, 100, arguments.history) for load in ("full", "hyperband")
            ],
            kinds,
        )
    if "asha" in arguments.parts:
        measured("asha", lambda kind, url, folder: [asha(kind, url, folder, 10_000)], kinds)
    if "crowd" in arguments.parts and "postgresql" in kinds:
        measured("crowd", lambda _, url, folder: [crowd(url, folder, arguments.workers, 1200, PAUSE_S)], ["postgresql"])
    if arguments.format == "json":
        print(json.dumps(out))
    elif out["left_out"]:
        print(f"no server answers: {', '.join(out['left_out'])}")


if __name__ == "__main__":
    main()
