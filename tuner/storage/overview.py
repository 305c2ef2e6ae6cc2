"""What a study looks like from outside: its summary, its trials, its workers, its best trial so far. Reads only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, and_, case, false, func, select

from tuner.spec import Direction, StudySpec
from tuner.storage import records
from tuner.storage.agreement import stored_spec
from tuner.storage.crew import union_s, worker_name
from tuner.storage.database import now
from tuner.storage.schema import UNFINISHED, State, curves, evaluations, rungs, slots, workers
from tuner.trial import Value

LIVE_S = 30.0  # seconds without a heartbeat after which a worker counts as dead
StudyState = Literal["created", "running", "finished", "stopped", "interrupted"]
WorkerState = Literal["live", "left", "lost"]
TrialStateName = Literal["complete", "pruned", "failed", "running", "waiting"]
_FINAL = ("complete", "pruned", "failed")
OPENED = "null"  # the content of an evaluation that was begun and is not stored yet


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The best completed trial so far; the lower number of equal ones.

    complete: False where a time budget was over before any trial completed: the best of those that got furthest.
    """

    number: int
    value: float
    epochs: int
    complete: bool
    params: dict[str, Value]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """One study at a glance.

    state: created, before anybody worked on it; running; interrupted, when work is left and nobody is at it; stopped,
    when somebody asked for that; finished.
    minutes: its time budget, if it has one; then it has at most ``trials["total"]`` trials, and those that never began
    do not count once it is over. trials: counts by state. seconds: how long at least one worker was at work.
    """

    name: str
    state: StudyState
    metric: str
    direction: Direction
    sampler: str
    pruner: str
    minutes: float | None
    trials: dict[str, int]
    epochs_trained: int
    seconds: float
    best: BestTrial | None
    evaluation: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial. ``params`` None until drawn; ``value`` is its last rung's, None where that was not finite."""

    number: int
    state: TrialStateName
    value: float | None
    params: dict[str, Value] | None
    epochs: int
    bracket: int
    rung: int
    attempt: int
    worker: str | None
    seconds: float
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """One worker of a study. Times are seconds since the epoch in UTC, ages seconds, both by the database's clock.

    state: live; left, when it said so; lost, when its heartbeat stopped or its launcher saw it die.
    """

    id: int
    worker: str
    host: str
    pid: int
    device: str
    version: str
    state: WorkerState
    started_at: float
    heartbeat_at: float
    heartbeat_age_s: float
    ended_at: float | None
    lanes: int
    epochs_per_s: float

    @property
    def live(self) -> bool:
        """Whether it has not left, and its heart beats."""
        return self.state == "live"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One epoch of one trial; a number that was not finite is None. ``value`` is the metric on the validation rows."""

    epoch: int
    value: float | None
    train_loss: float | None
    val_loss: float | None


@dataclass(frozen=True, kw_only=True)
class RungRow:
    """What a trial reached at one rung: epochs in total, and the value there, None where it was not finite."""

    number: int
    rung: int
    epochs: int
    value: float | None


@dataclass(frozen=True, kw_only=True)
class PlaceRow:
    """How many slots of one bracket are at one rung in one state; ``running``: how many of them are being trained."""

    bracket: int
    rung: int
    state: State
    slots: int
    running: int


@dataclass(frozen=True, kw_only=True)
class TrialHistory:
    """All that is known of one trial. Times in seconds since the epoch; attributes are Optuna's user attributes."""

    trial: TrialRow
    curve: list[CurvePoint]
    attributes: dict[str, Any]
    started_at: float
    ended_at: float


def trials(connection: Connection, study_id: int, numbers: Sequence[int] | None = None) -> list[TrialRow]:
    """Every trial, by number; or those of some numbers."""
    query = (
        select(
            slots,
            workers.c.host,
            workers.c.pid,
            and_(slots.c.state == "leased", slots.c.lease_until > now()).label("running"),
        )
        .select_from(slots.outerjoin(workers, workers.c.id == slots.c.worker_id))
        .where(slots.c.study_id == study_id, *_among(slots.c.number, numbers))
        .order_by(slots.c.number)
    )
    return [_trial_row(row) for row in connection.execute(query)]


def ended(connection: Connection, study_id: int) -> dict[int, TrialStateName]:
    """How each trial ended that is over, by number."""
    query = select(slots.c.number, slots.c.state).where(slots.c.study_id == study_id, slots.c.state.in_(_FINAL))
    return {row.number: row.state for row in connection.execute(query.order_by(slots.c.number))}


def attributes(connection: Connection, study_id: int, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Optuna's user attributes of some trials, by number."""
    attrs = records.trial_user_attrs
    query = (
        select(slots.c.number, attrs.c.key, attrs.c.value_json)
        .select_from(slots.join(attrs, attrs.c.trial_id == slots.c.trial_id))
        .where(slots.c.study_id == study_id, *_among(slots.c.number, numbers))
    )
    found: dict[int, dict[str, Any]] = {}
    for row in connection.execute(query):
        found.setdefault(row.number, {})[row.key] = json.loads(row.value_json)
    return found


def histories(connection: Connection, study_id: int, numbers: Sequence[int]) -> list[TrialHistory]:
    """All that is known of some trials, by number, in a number of statements that does not depend on how many."""
    curves, attrs = curves_of(connection, study_id, numbers), attributes(connection, study_id, numbers)
    begun = times(connection, study_id, numbers)
    found = []
    for trial in trials(connection, study_id, numbers):
        start, end = begun.get(trial.number, (0.0, None))
        found.append(
            TrialHistory(
                trial=trial,
                curve=curves.get(trial.number, []),
                attributes=attrs.get(trial.number, {}),
                started_at=start,
                ended_at=start if end is None else end,
            )
        )
    return found


def curves_of(
    connection: Connection, study_id: int, numbers: Sequence[int] | None = None
) -> dict[int, list[CurvePoint]]:
    """The learning curve of each trial that has one, from its first epoch on, by number; or of some trials alone."""
    values = records.intermediate_values
    value = case((values.c.intermediate_value_type == "FINITE", values.c.intermediate_value))
    mine = and_(slots.c.study_id == curves.c.study_id, slots.c.number == curves.c.number)
    of_epoch = and_(values.c.trial_id == slots.c.trial_id, values.c.step == curves.c.epoch)
    query = (
        select(curves.c.number, curves.c.epoch, curves.c.train_loss, curves.c.val_loss, value.label("value"))
        .select_from(curves.join(slots, mine).outerjoin(values, of_epoch))
        .where(curves.c.study_id == study_id, *_among(curves.c.number, numbers))
        .order_by(curves.c.number, curves.c.epoch)
    )
    found: dict[int, list[CurvePoint]] = {}
    for row in connection.execute(query):
        point = CurvePoint(epoch=row.epoch, value=row.value, train_loss=row.train_loss, val_loss=row.val_loss)
        found.setdefault(row.number, []).append(point)
    return found


def places(connection: Connection, study_id: int) -> list[PlaceRow]:
    """How many slots are where, by bracket, rung and state."""
    running = case((and_(slots.c.state == "leased", slots.c.lease_until > now()), 1), else_=0)
    keys = (slots.c.bracket, slots.c.rung, slots.c.state)
    query = select(*keys, func.count().label("slots"), func.sum(running).label("running"))
    return [
        PlaceRow(bracket=row.bracket, rung=row.rung, state=row.state, slots=row.slots, running=int(row.running))
        for row in connection.execute(query.where(slots.c.study_id == study_id).group_by(*keys))
    ]


def results(connection: Connection, study_id: int) -> list[RungRow]:
    """Every result that a trial had at a rung, by trial and rung."""
    query = select(rungs).where(rungs.c.study_id == study_id).order_by(rungs.c.number, rungs.c.rung)
    return [
        RungRow(number=row.number, rung=row.rung, epochs=row.epochs, value=row.value)
        for row in connection.execute(query)
    ]


def times(
    connection: Connection, study_id: int, numbers: Sequence[int] | None = None
) -> dict[int, tuple[float, float | None]]:
    """When each trial began, and when it was over (None before), by number; or some trials."""
    trial = records.trials
    mine = and_(trial.c.trial_id == slots.c.trial_id, slots.c.study_id == study_id, *_among(slots.c.number, numbers))
    query = select(slots.c.number, trial.c.datetime_start, trial.c.datetime_complete)
    return {
        row.number: (_seconds(row.datetime_start), row.datetime_complete and _seconds(row.datetime_complete))
        for row in connection.execute(query.select_from(slots.join(trial, mine)))
        if row.datetime_start is not None
    }


def crew(connection: Connection, study_id: int) -> list[WorkerRow]:
    """Everybody who ever worked on a study, in order of arrival."""
    query = (
        select(workers, _live().label("live"), (now() - workers.c.heartbeat_at).label("age"))
        .where(workers.c.study_id == study_id)
        .order_by(workers.c.id)
    )
    return [
        WorkerRow(
            id=row.id,
            worker=worker_name(row.host, row.pid),
            host=row.host,
            pid=row.pid,
            device=row.device,
            version=row.version,
            state="left" if row.ended_at is not None else "live" if row.live else "lost",
            started_at=row.started_at,
            heartbeat_at=row.heartbeat_at,
            heartbeat_age_s=float(row.age),
            ended_at=row.ended_at,
            lanes=row.lanes,
            epochs_per_s=row.epochs_per_s,
        )
        for row in connection.execute(query)
    ]


def summaries(connection: Connection, rows: Sequence[Row[Any]]) -> list[StudySummary]:
    """One for each row of ``tuner_studies``, in a number of statements that does not depend on the number of trials."""
    ids = [row.study_id for row in rows]
    running = case((and_(slots.c.state == "leased", slots.c.lease_until > now()), 1), else_=0)
    counted = connection.execute(
        select(
            slots.c.study_id,
            slots.c.state,
            func.count().label("slots"),
            func.sum(running).label("running"),
            func.sum(slots.c.epochs).label("epochs"),
        )
        .where(slots.c.study_id.in_(ids))
        .group_by(slots.c.study_id, slots.c.state)
    ).all()
    hands = connection.execute(
        select(workers.c.study_id, workers.c.started_at, workers.c.heartbeat_at, _live().label("live")).where(
            workers.c.study_id.in_(ids)
        )
    ).all()
    stored = evaluations_of(connection, ids)
    specs = {row.study_id: stored_spec(row) for row in rows}
    return [
        _summary(
            row,
            specs[row.study_id],
            [count for count in counted if count.study_id == row.study_id],
            [hand for hand in hands if hand.study_id == row.study_id],
            best(connection, row.study_id, specs[row.study_id]),
            stored.get(row.study_id),
        )
        for row in rows
    ]


def best(connection: Connection, study_id: int, spec: StudySpec) -> BestTrial | None:
    """The best completed trial; once a time budget is over, else the best of those that got furthest."""
    value = slots.c.value.desc() if spec.direction == "maximize" else slots.c.value
    judged = select(slots.c.number, slots.c.value, slots.c.epochs, slots.c.params, slots.c.state).where(
        slots.c.study_id == study_id, slots.c.value.is_not(None)
    )
    complete = judged.where(slots.c.state == "complete").order_by(value, slots.c.number)
    row = connection.execute(complete.limit(1)).one_or_none()
    if row is None and spec.search.minutes is not None:
        unfinished = select(slots.c.number).where(slots.c.study_id == study_id, slots.c.state.in_(UNFINISHED))
        if connection.execute(unfinished.limit(1)).first() is None:
            furthest = judged.where(slots.c.state == "pruned").order_by(slots.c.epochs.desc(), value, slots.c.number)
            row = connection.execute(furthest.limit(1)).one_or_none()
    if row is None:
        return None
    return BestTrial(
        number=row.number,
        value=row.value,
        epochs=row.epochs,
        complete=row.state == "complete",
        params=json.loads(row.params),
    )


def evaluations_of(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The stored evaluation of those studies that have one, with its peeks."""
    stored = (evaluations.c.study_id.in_(ids), evaluations.c.content != OPENED)
    rows = connection.execute(select(evaluations).where(*stored))
    return {row.study_id: {**json.loads(row.content), "peeks": row.peeks} for row in rows}


def _among(column: Any, numbers: Sequence[int] | None) -> list[Any]:
    """The condition that a number is one of some; none for all."""
    return [] if numbers is None else [column.in_(numbers)]


def _live() -> Any:
    return and_(workers.c.ended_at.is_(None), workers.c.lost == false(), workers.c.heartbeat_at > now() - LIVE_S)


def _summary(
    row: Row[Any],
    spec: StudySpec,
    counted: Sequence[Row[Any]],
    crew: Sequence[Row[Any]],
    best: BestTrial | None,
    evaluation: dict[str, Any] | None,
) -> StudySummary:
    by_state = {count.state: count.slots for count in counted}
    total = sum(by_state.values())
    final = {state: by_state.get(state, 0) for state in _FINAL}
    running = sum(int(count.running) for count in counted)
    unfinished = total - sum(final.values())
    state: StudyState
    if unfinished == 0:
        state = "finished"
    elif row.stopped:
        state = "stopped"
    elif not crew:
        state = "created"
    else:
        state = "running" if running or any(worker.live for worker in crew) else "interrupted"
    return StudySummary(
        name=row.name,
        state=state,
        metric=spec.study.metric,
        direction=spec.direction,
        sampler=spec.search.sampler,
        pruner=spec.search.pruner,
        minutes=spec.search.minutes,
        trials={"total": total, **final, "running": running, "waiting": unfinished - running},
        epochs_trained=sum(int(count.epochs) for count in counted),
        seconds=union_s((worker.started_at, worker.heartbeat_at) for worker in crew),
        best=best,
        evaluation=evaluation,
    )


def _trial_row(row: Row[Any]) -> TrialRow:
    state: TrialStateName = "running" if row.running else "waiting"
    if row.state in _FINAL:
        state = row.state
    return TrialRow(
        number=row.number,
        state=state,
        value=None if state == "failed" else row.value,
        params=None if row.params is None else json.loads(row.params),
        epochs=row.epochs,
        bracket=row.bracket,
        rung=row.rung,
        attempt=row.attempts,
        worker=None if row.host is None else worker_name(row.host, row.pid),
        seconds=row.seconds,
        reason=row.reason,
    )


def _seconds(stored: datetime) -> float:
    """Optuna 5 stores naive UTC."""
    return stored.replace(tzinfo=UTC).timestamp()
