"""Workers that pretend to train: a value is a function of parameters and epochs, so it can be recomputed."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from tests.spaces import study as spaces_study
from tuner.manager import StudyManager
from tuner.search import hyperband
from tuner.spec import StudySpec
from tuner.storage.checkpoints import CheckpointStore
from tuner.storage.database import parse_url
from tuner.storage.ledger import Claim, EpochRow, Ledger, RungResult
from tuner.trial import Value

LEASE_S = 30.0


def make_spec(trials: int | None = 20, **search: Any) -> StudySpec:
    """A study named "fleet" of 9 epochs at most; hyperband unless said otherwise."""
    sampler = search.pop("sampler", "random")
    given = {} if trials is None else {"trials": trials}
    return spaces_study(sampler, study={"name": "fleet"}, search={**given, **search}, training={"max_epochs": 9})


def create(manager: StudyManager, spec: StudySpec) -> Ledger:
    manager.create(spec, data_root=Path("/data"), data_digest="d" * 64, split_digest="s" * 64)
    return manager.ledger(spec.study.name)


def truth(params: Mapping[str, Value], epochs: int) -> float:
    """The validation metric that training would give."""
    learning_rate, dropout, width = params["learning_rate"], params.get("dropout", 0.0), params["width"]
    assert isinstance(learning_rate, float)
    assert isinstance(dropout, float)
    assert isinstance(width, int)
    return abs(math.log10(learning_rate) + 2.5) + dropout / epochs + 1 / (width * epochs)


def lanes(claims: list[Claim]) -> dict[int, dict[str, Any]]:
    """What a checkpoint of a pack holds: enough to see whose it is and how far it was trained."""
    return {
        claim.number: {
            "epochs": np.array(claim.target_epochs),
            "rate": np.array([claim.params["learning_rate"]], dtype=np.float64),
        }
        for claim in claims
    }


def curve(claim: Claim, start: int, stop: int) -> list[EpochRow]:
    """Epochs ``start`` (excluded) to ``stop`` (included) of one lane."""
    return [
        EpochRow(
            number=claim.number,
            token=claim.token,
            epoch=epoch,
            value=truth(claim.params, epoch),
            train_loss=1 / epoch,
            val_loss=2 / epoch,
        )
        for epoch in range(start + 1, stop + 1)
    ]


def result(claim: Claim, value: float | None = None) -> RungResult:
    return RungResult(
        number=claim.number,
        token=claim.token,
        epochs=claim.target_epochs,
        value=truth(claim.params, claim.target_epochs) if value is None else value,
        seconds=0.5,
    )


@dataclass
class Log:
    """What the database acknowledged, whoever asked."""

    accepted: Counter[tuple[int, int]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def train(ledger: Ledger, worker: int, store: CheckpointStore, claims: list[Claim], log: Log | None = None) -> None:
    """Train a pack to its rung, as a worker would: reading checkpoints, recording epochs, committing."""
    for claim in claims:
        if claim.checkpoint is not None:
            state = store.read_pack(claim.checkpoint, [claim.number])[claim.number]
            assert int(state["epochs"]) == claim.epochs
            assert float(state["rate"][0]) == claim.params["learning_rate"]
        else:
            assert claim.epochs == 0
    middle = {claim.number: (claim.epochs + claim.target_epochs) // 2 for claim in claims}
    ledger.record(worker, [row for claim in claims for row in curve(claim, claim.epochs, middle[claim.number])])
    rest = [row for claim in claims for row in curve(claim, middle[claim.number], claim.target_epochs)]
    outcome = ledger.commit(worker, [result(claim) for claim in claims], rest, store.write(lanes(claims)))
    store.remove(outcome.removed)
    if log is not None:
        with log.lock:
            log.accepted.update((c.number, c.rung) for c in claims if c.number not in outcome.lost)


def work(
    ledger: Ledger,
    store: CheckpointStore,
    *,
    limit: int = 4,
    lease_s: float = LEASE_S,
    log: Log | None = None,
    pid: int = 1,
    wait: Callable[[], object] = lambda: threading.Event().wait(0.02),
) -> None:
    """Join the study until it is finished."""
    worker = ledger.register("host", pid, "cpu", "0")
    while not ledger.finished():
        if claims := ledger.claim(worker, limit=limit, lease_s=lease_s):
            train(ledger, worker, store, claims, log)
        else:
            wait()
    ledger.leave(worker)


def join(url: str, artifacts: str, name: str, pid: int) -> None:
    """A worker process."""
    with StudyManager(url, artifacts) as manager:
        work(manager.ledger(name), manager.checkpoints(name), pid=pid, lease_s=2.0)


def join_and_hang(url: str, artifacts: str, name: str, ready: Any) -> None:
    """A worker process that claims, trains half, and then never comes back."""
    with StudyManager(url, artifacts) as manager:
        ledger = manager.ledger(name)
        worker = ledger.register("host", 99, "cpu", "0")
        claims = ledger.claim(worker, limit=4, lease_s=0.5)
        ledger.record(worker, [row for claim in claims for row in curve(claim, 0, 1)])
        ready.set()
        threading.Event().wait(60)


def check(manager: StudyManager, spec: StudySpec, url: str, log: Log | None = None) -> None:
    """The promises, of a finished study. Raises AssertionError where one is broken."""
    name = spec.study.name
    rows = manager.trials(name)
    assert [row.number for row in rows] == list(range(spec.total_trials)), "exactly N"
    assert {row.state for row in rows} <= {"complete", "pruned", "failed"}, "nothing left over"
    for row in rows:
        if row.value is not None:
            assert row.params is not None
            assert row.value == truth(row.params, row.epochs), f"trial {row.number}: not the value of its parameters"
    trials = read_optuna(url, name).trials
    assert sorted(trial.number for trial in trials) == [row.number for row in rows], "Optuna has exactly N"
    for trial, row in zip(trials, rows, strict=True):
        assert trial.state.name == {"failed": "FAIL"}.get(row.state, row.state.upper())
        assert trial.value == row.value
        if row.state != "failed":
            assert sorted(trial.intermediate_values) == list(range(1, row.epochs + 1)), "each epoch once"
    if spec.search.pruner == "asha":
        left_behind(manager, spec)
    elif not any(row.state == "failed" for row in rows):
        assert Counter((row.bracket, row.rung) for row in rows) == ends(spec), "brackets as dealt"
    if log is not None:
        expected = {(row.number, rung) for row in rows for rung in range(row.rung + 1) if row.state != "failed"}
        assert {place for place in log.accepted if rows[place[0]].state != "failed"} == expected, "none lost"
        assert set(log.accepted.values()) <= {1}, "no result accepted twice"


def left_behind(manager: StudyManager, spec: StudySpec) -> None:
    """The end of the asynchronous rule: each rung's best 1/η went on, and something is complete in each bracket."""
    rows = manager.trials(spec.study.name)
    for place, bracket in enumerate(hyperband.plan(spec)):
        members = [row for row in rows if row.bracket == place]
        assert any(row.state == "complete" for row in members), "somebody gets to the top"
        for rung, rule in enumerate(bracket.rungs[:-1]):
            reached = {row.number: truth(row.params or {}, rule.epochs) for row in members if row.rung >= rung}
            gone = {row.number for row in members if row.rung > rung}
            assert not hyperband.promotable(reached, gone, spec.search.eta, spec.direction), "nobody is left behind"


def ends(spec: StudySpec) -> Counter[tuple[int, int]]:
    """How many trials end at which (bracket, rung) when all values are finite."""
    counts: Counter[tuple[int, int]] = Counter()
    for place, bracket in enumerate(hyperband.plan(spec)):
        sizes = [rung.size for rung in bracket.rungs] + [0]
        counts.update({(place, rung): sizes[rung] - sizes[rung + 1] for rung in range(len(bracket.rungs))})
    return +counts


@dataclass(frozen=True)
class Reading:
    """What Optuna says of a study."""

    trials: list[optuna.trial.FrozenTrial]
    best: optuna.trial.FrozenTrial | None


def read_optuna(url: str, name: str) -> Reading:
    """The study as any Optuna user reads it."""
    storage = optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    try:
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials()
        complete = any(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
        return Reading(trials, study.best_trial if complete else None)
    finally:
        storage.remove_session()
        storage.engine.dispose()
