"""The manager: creates, lists, shows, stops and deletes the studies of one database."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import Connection, Row, Table, and_, case, delete, false, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from tuner import __version__, strict_json
from tuner.errors import (
    BadInputError,
    DataError,
    SpecMismatchError,
    StorageError,
    StudyNotFoundError,
    WorkerRefusedError,
)
from tuner.search import hyperband
from tuner.search.distributions import distributions
from tuner.spec import Direction, StudySpec, parse_spec
from tuner.storage import bulk, records
from tuner.storage.artifacts import below, parse_root
from tuner.storage.checkpoints import CheckpointStore
from tuner.storage.crew import union_s, worker_name
from tuner.storage.database import OPEN_PATIENCE_S, PATIENCE_S, Database, now, open_database, sqlite_file
from tuner.storage.ledger import Ledger
from tuner.storage.schema import UNFINISHED, checkpoints, curves, evaluations, rungs, slots, studies, workers
from tuner.trial import Value
from tuner.words import minutes

LIVE_S = 30.0  # seconds without a heartbeat after which a worker counts as dead
StudyState = Literal["created", "running", "finished", "stopped", "interrupted"]
WorkerState = Literal["live", "left", "lost"]
TrialStateName = Literal["complete", "pruned", "failed", "running", "waiting"]
_FINAL = ("complete", "pruned", "failed")
_TABLES: tuple[Table, ...] = (slots, rungs, curves, checkpoints, workers, evaluations, studies)
_OPENED = "null"  # an evaluation that was begun and is not stored yet
_CHUNK = 50_000  # slots in one insert
_MISSING = object()  # a key that is not there


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
class Digests:
    """What all workers of a study must agree on."""

    spec: str
    data: str
    split: str


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One epoch of one trial; a number that was not finite is None. ``value`` is the metric on the validation rows."""

    epoch: int
    value: float | None
    train_loss: float | None
    val_loss: float | None


class StudyManager:
    """The studies of one database, and their checkpoint files in one place.

    A context manager; threads may share it.

    storage: a database URL.
    create: whether to make its tables, and an SQLite file, where they are missing; else that is a StorageError.
    artifacts: where their files live, a folder or any URL that fsspec has a driver for; left out it is
        ``TUNER_ARTIFACTS``, else ``tuner-artifacts`` beside the SQLite file, else ``./tuner-artifacts``.
    patience_s: seconds to wait for a database that is locked or out of reach.

    Raises StorageError when the database cannot be used, BadInputError for a URL that is none or has no driver.
    Every method that takes a study's name raises StudyNotFoundError, with near matches, where there is none.
    """

    def __init__(
        self,
        storage: str,
        artifacts: str | Path | None = None,
        *,
        create: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        place = artifacts if artifacts is not None else os.environ.get("TUNER_ARTIFACTS") or None
        root = None if place is None else parse_root(place)
        self._database: Database = open_database(
            storage, create=create, patience_s=patience_s, open_patience_s=min(OPEN_PATIENCE_S, patience_s)
        )
        self.artifacts = root if root is not None else _beside(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    @property
    def storage(self) -> str:
        """The URL as it may be shown: without its password."""
        return str(self._database)

    # A study as a whole

    def create(self, spec: StudySpec, *, data_root: Path, data_digest: str, split_digest: str) -> bool:
        """Create a study with all its slots, in one transaction. False when the same study is there already.

        Raises SpecMismatchError when the name has another spec, DataError when its data or split has changed since,
        BadInputError when the name is that of a study which Optuna made, or when a list of choices is longer than the
        tables take.
        """
        records.check_lengths(distributions(spec.search_space))

        def work(connection: Connection) -> bool:
            name = spec.study.name
            row = connection.execute(select(studies).select_from(_ours()).where(studies.c.name == name)).one_or_none()
            if row is not None:
                _must_match(row, spec, data_digest, split_digest)
                # The same study from a folder that has moved: from now on its data are found there.
                mine = studies.c.study_id == row.study_id
                connection.execute(update(studies).where(mine).values(data_root=str(data_root)))
                return False
            for other in records.taken(connection, [name]):
                if other == name:
                    raise BadInputError(
                        f"study {name!r} is in this database already and was not made by Tuner; use another name"
                    )
                raise BadInputError(f"study {other!r} differs from {name!r} only in case; use another name")
            study_id = records.create_study(
                connection,
                name,
                spec.direction,
                spec.study.metric,
                {"spec_digest": spec.digest, "metric": spec.study.metric},
            )
            # Left by a study that another tool deleted from Optuna's tables, whose number has come again.
            orphans = connection.execute(select(studies.c.study_id).where(studies.c.name == name)).scalars().all()
            for orphan in {study_id, *orphans}:
                _delete(connection, orphan)
            connection.execute(
                insert(studies).values(
                    study_id=study_id,
                    name=name,
                    spec=spec.as_json(),
                    spec_digest=spec.digest,
                    data_root=str(data_root),
                    data_digest=data_digest,
                    split_digest=split_digest,
                    folder=_folder(name),
                    stopped=False,
                    tuner_version=__version__,
                    created_at=now(),
                )
            )
            _insert_slots(connection, study_id, hyperband.plan(spec))
            return True

        try:
            return self._database.write(work)
        except StorageError as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            return self._database.write(work)  # another process created it between our look and our insert

    def names(self) -> list[str]:
        """The names of all studies, in alphabetical order."""
        query = select(studies.c.name).select_from(_ours())
        return sorted(self._database.read(lambda connection: connection.execute(query).scalars().all()))

    def spec(self, name: str) -> StudySpec:
        """The study's spec as it was created."""
        return _parsed(self._study(name))

    def data_root(self, name: str) -> Path:
        """The folder that a relative data source is relative to: ``TUNER_DATA_ROOT`` where this machine keeps its data
        elsewhere, else the study file's folder on the machine that created or last ran it.
        """
        stored = self._study(name).data_root
        return Path(os.environ.get("TUNER_DATA_ROOT") or stored)

    def digests(self, name: str) -> Digests:
        """The hashes of spec, data and split."""
        row = self._study(name)
        return Digests(spec=row.spec_digest, data=row.data_digest, split=row.split_digest)

    def check_digests(self, name: str, *, data: str, split: str) -> None:
        """Raises DataError when the hash of the rows, or of their split, is not that of the study's creation."""
        _check_digests(self._study(name), data, split)

    def ledger(self, name: str) -> Ledger:
        """The study's slots, to work on. Raises WorkerRefusedError as :meth:`admit`."""
        row = self._study(name)
        _admit(row)
        return Ledger(self._database, row.study_id, _parsed(row))

    def admit(self, name: str) -> None:
        """Make sure that this Tuner may work on the study.

        Raises WorkerRefusedError, with the difference, when its major.minor version is not the one that created the
        study, or it reads another spec from what is stored than was stored.
        """
        _admit(self._study(name))

    def checkpoints(self, name: str) -> CheckpointStore:
        """The study's checkpoint files."""
        return CheckpointStore(below(self.artifacts, self._study(name).folder))

    def bury(self, name: str, host: str, pid: int) -> int:
        """Free at once what a worker of the study holds whose process is known to be dead; returns how many slots."""
        return self.ledger(name).bury(host, pid)

    def stop(self, name: str) -> None:
        """Ask all workers of the study to stop; :meth:`resume` takes it back."""
        self._set_stopped(name, True)

    def resume(self, name: str) -> None:
        """Let workers go on with a stopped study. Raises BadInputError when its test set has been opened."""
        self._keep_sealed(name)
        self._set_stopped(name, False)

    def retry(self, name: str) -> int:
        """Let workers try the study's failed trials again, with all their attempts; returns how many there are.

        Raises BadInputError when the study's test set has been opened, or its time budget is over.
        """
        self._keep_sealed(name)
        study = self.summary(name)
        if study.minutes is not None and study.seconds >= 60 * study.minutes:
            raise BadInputError(
                f"the time budget of study {name!r} is over: {minutes(study.minutes)}; to search on, use another name"
            )
        return len(self.ledger(name).retry())

    def delete(self, name: str) -> None:
        """Delete a study: its rows in Optuna's tables and Tuner's, and its checkpoint files."""
        row = self._study(name)

        def work(connection: Connection) -> None:
            records.delete_study(connection, row.study_id)
            _delete(connection, row.study_id)

        self._database.write(work)
        CheckpointStore(below(self.artifacts, row.folder)).clear()

    # Reports

    def summary(self, name: str) -> StudySummary:
        return self._summaries([self._study(name)])[0]

    def summaries(self) -> list[StudySummary]:
        """Every study, by name."""
        query = select(studies).select_from(_ours())
        rows = self._database.read(lambda connection: connection.execute(query).all())
        return self._summaries(sorted(rows, key=lambda row: str(row.name)))

    def trials(self, name: str) -> list[TrialRow]:
        """Every trial, by number: the finished ones, and those that are still to come."""
        study_id = self._study(name).study_id
        query = (
            select(
                slots,
                workers.c.host,
                workers.c.pid,
                and_(slots.c.state == "leased", slots.c.lease_until > now()).label("running"),
            )
            .select_from(slots.outerjoin(workers, workers.c.id == slots.c.worker_id))
            .where(slots.c.study_id == study_id)
            .order_by(slots.c.number)
        )
        rows = self._database.read(lambda connection: connection.execute(query).all())
        return [_trial_row(row) for row in rows]

    def curve(self, name: str, number: int) -> list[CurvePoint]:
        """The learning curve of one trial, from its first epoch on; empty before it has been trained."""
        study_id = self._study(name).study_id
        values = records.intermediate_values
        value = case((values.c.intermediate_value_type == "FINITE", values.c.intermediate_value))
        mine = and_(slots.c.study_id == curves.c.study_id, slots.c.number == curves.c.number)
        of_epoch = and_(values.c.trial_id == slots.c.trial_id, values.c.step == curves.c.epoch)
        query = (
            select(curves.c.epoch, curves.c.train_loss, curves.c.val_loss, value.label("value"))
            .select_from(curves.join(slots, mine).outerjoin(values, of_epoch))
            .where(curves.c.study_id == study_id, curves.c.number == number)
            .order_by(curves.c.epoch)
        )
        rows = self._database.read(lambda connection: connection.execute(query).all())
        return [
            CurvePoint(epoch=row.epoch, value=row.value, train_loss=row.train_loss, val_loss=row.val_loss)
            for row in rows
        ]

    def best(self, name: str) -> BestTrial | None:
        """The best completed trial so far, None before there is one. Once a time budget is over, the best of the trials
        that got furthest where none completed.
        """
        row = self._study(name)
        return self._database.read(lambda connection: _best(connection, row.study_id, _parsed(row)))

    def workers(self, name: str) -> list[WorkerRow]:
        """Everybody who ever worked on the study, in order of arrival."""
        study_id = self._study(name).study_id
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
            for row in self._database.read(lambda connection: connection.execute(query).all())
        ]

    def save_note(self, name: str, text: str) -> bool:
        """Write the Markdown note that optuna-dashboard shows with the study. Whether it was written: a note that does
        not begin with the same line is somebody's own, and stays.
        """
        study_id, first_line = self._study(name).study_id, text.partition("\n")[0]
        return self._database.write(lambda connection: records.save_note(connection, study_id, text, first_line))

    # The sealed-test ledger

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """What the opening of the test set showed, with ``peeks``: how often it was looked at again."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: _evaluations(connection, [study_id]).get(study_id))

    def begin_evaluation(self, name: str) -> int:
        """Write down that the test set is about to be opened; returns how often it was opened before, by others or by
        a process that did not live to store its result. Each of those is a peek.
        """
        study_id = self._study(name).study_id

        def work(connection: Connection) -> int:
            mine = evaluations.c.study_id == study_id
            if connection.execute(select(evaluations.c.study_id).where(mine)).first() is not None:
                connection.execute(update(evaluations).where(mine).values(peeks=evaluations.c.peeks + 1))
            else:
                created = float(connection.execute(select(now())).scalar_one())
                row = {"study_id": study_id, "content": _OPENED, "peeks": 0, "created_at": created}
                bulk.insert(connection, evaluations, [row], conflict="skip")
            return int(connection.execute(select(evaluations.c.peeks).where(mine)).scalar_one())

        return self._database.write(work)

    def store_evaluation(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Store the evaluation if there is none yet; returns the one that is stored. NaN and infinities become None."""
        study_id = self._study(name).study_id
        text = strict_json.dumps(dict(content))

        def work(connection: Connection) -> dict[str, Any]:
            created = float(connection.execute(select(now())).scalar_one())
            row = {"study_id": study_id, "content": text, "peeks": 0, "created_at": created}
            bulk.insert(connection, evaluations, [row], conflict="skip")
            begun = (evaluations.c.study_id == study_id, evaluations.c.content == _OPENED)
            connection.execute(update(evaluations).where(*begun).values(content=text))
            return _evaluations(connection, [study_id])[study_id]

        return self._database.write(work)

    def extend_evaluation(self, name: str, part: Mapping[str, Any]) -> dict[str, Any]:
        """Add keys to the stored evaluation; returns the whole. Keys that have a value already keep it."""
        study_id = self._study(name).study_id

        def work(connection: Connection) -> dict[str, Any]:
            mine = evaluations.c.study_id == study_id
            stored = json.loads(connection.execute(select(evaluations.c.content).where(mine)).scalar_one()) or {}
            whole = {**stored, **{key: value for key, value in part.items() if not stored.get(key)}}
            connection.execute(update(evaluations).where(mine).values(content=strict_json.dumps(whole)))
            return _evaluations(connection, [study_id])[study_id]

        return self._database.write(work)

    def count_peek(self, name: str) -> int:
        """Write down that the stored evaluation was looked at again; returns how often that makes. 0 without one."""
        study_id = self._study(name).study_id

        def work(connection: Connection) -> int:
            mine = evaluations.c.study_id == study_id
            connection.execute(update(evaluations).where(mine).values(peeks=evaluations.c.peeks + 1))
            return connection.execute(select(evaluations.c.peeks).where(mine)).scalar() or 0

        return self._database.write(work)

    # Parts

    def _study(self, name: str) -> Row[Any]:
        """The study's row. Raises StudyNotFoundError with near matches."""
        query = select(studies).select_from(_ours()).where(studies.c.name == name)
        row = self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is not None:
            return row
        known = self.names()
        if near := difflib.get_close_matches(name, known, n=3):
            advice = f"did you mean {', '.join(near)}?"
        elif known:
            advice = f"it has: {', '.join(known[:10])}{', …' if len(known) > 10 else ''}"
        else:
            advice = "it has no studies; make one with: tuner create STUDY.toml"
        raise StudyNotFoundError(f"no study {name!r} in {self.storage}; {advice}")

    def _keep_sealed(self, name: str) -> None:
        """Refuse to search on after the test set was opened: what is picked then has been seen by whoever looked."""
        study_id = self._study(name).study_id
        opened = select(evaluations.c.study_id).where(evaluations.c.study_id == study_id)
        if self._database.read(lambda connection: connection.execute(opened).first()) is None:
            return
        if self.summary(name).state != "finished":
            raise BadInputError(
                f"study {name!r} was evaluated before its search was over, so its test set is open and the search has "
                f"ended; tuner evaluate {name} shows the result; to search on, use another name"
            )

    def _set_stopped(self, name: str, stopped: bool) -> None:
        change = update(studies).where(studies.c.study_id == self._study(name).study_id).values(stopped=stopped)
        self._database.write(lambda connection: connection.execute(change) and None)

    def _summaries(self, rows: Sequence[Row[Any]]) -> list[StudySummary]:
        """In a number of statements that does not depend on the number of trials."""
        ids = [row.study_id for row in rows]
        specs = {row.study_id: _parsed(row) for row in rows}

        def work(connection: Connection) -> list[StudySummary]:
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
            crew = connection.execute(
                select(workers.c.study_id, workers.c.started_at, workers.c.heartbeat_at, _live().label("live")).where(
                    workers.c.study_id.in_(ids)
                )
            ).all()
            stored = _evaluations(connection, ids)
            return [
                _summary(
                    row,
                    specs[row.study_id],
                    [count for count in counted if count.study_id == row.study_id],
                    [worker for worker in crew if worker.study_id == row.study_id],
                    _best(connection, row.study_id, specs[row.study_id]),
                    stored.get(row.study_id),
                )
                for row in rows
            ]

        return self._database.read(work)


def _beside(database: Database) -> Path:
    """Where artifacts live that nobody gave a place."""
    file = sqlite_file(database.url)
    return (file.parent if file is not None else Path()) / "tuner-artifacts"


def _folder(name: str) -> str:
    """A folder for a study's checkpoints, different for each study that ever was: a name may come again.

    Names may hold what file systems do not take, so only the harmless part shows.
    """
    harmless = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:60].strip("-") or "study"
    return f"{harmless}-{hashlib.sha256(name.encode()).hexdigest()[:8]}-{uuid.uuid4().hex[:8]}"


def _ours() -> Any:
    """Tuner's studies that Optuna has as well; one that another tool deleted there is gone."""
    return studies.join(
        records.studies,
        and_(records.studies.c.study_id == studies.c.study_id, records.studies.c.study_name == studies.c.name),
    )


def _delete(connection: Connection, study_id: int) -> None:
    for table in _TABLES:
        connection.execute(delete(table).where(table.c.study_id == study_id))


def _must_match(row: Row[Any], spec: StudySpec, data_digest: str, split_digest: str) -> None:
    name = spec.study.name
    if row.spec_digest != spec.digest and (differences := _parsed(row).differences(spec)):
        raise SpecMismatchError(name, differences)
    _check_digests(row, data_digest, split_digest)


def _check_digests(row: Row[Any], data: str, split: str) -> None:
    for what, then, found in (("data", row.data_digest, data), ("split", row.split_digest, split)):
        if then != found:
            raise DataError(
                f"the {what} of study {row.name!r} changed since it was created: SHA-256 {then[:12]}… then, "
                f"{found[:12]}… now; restore the data, use another name, or: tuner delete {row.name}"
            )


def _insert_slots(connection: Connection, study_id: int, dealt: Sequence[hyperband.Bracket]) -> None:
    rows = [
        {"study_id": study_id, "number": number, "bracket": place, "target": dealt[place].rungs[0].epochs}
        for place, numbers in enumerate(hyperband.slots(dealt))
        for number in numbers
    ]
    for start in range(0, len(rows), _CHUNK):
        bulk.insert(connection, slots, rows[start : start + _CHUNK])


def _parsed(row: Row[Any]) -> StudySpec:
    return parse_spec(json.loads(row.spec), source=f"study {row.name}")


def _admit(row: Row[Any]) -> None:
    name, stored = row.name, row.tuner_version
    series, mine = (".".join(version.split(".")[:2]) for version in (stored, __version__))
    if series != mine:
        raise WorkerRefusedError(
            f"study {name!r} was created by Tuner {stored}, this is Tuner {__version__}; all workers of a study run "
            f"the same major.minor version: install tuner {series}, or create a study of another name"
        )
    if (found := hashlib.sha256(row.spec.encode()).hexdigest()) != row.spec_digest:
        raise WorkerRefusedError(
            f"the spec of study {name!r} was changed in the database: SHA-256 {row.spec_digest[:12]}… when it was "
            f"created, {found[:12]}… now; restore it, or: tuner delete {name}"
        )
    read = _parsed(row)
    if read.digest != row.spec_digest:
        head = (
            f"study {name!r} means something else to this Tuner {__version__} than to the {stored} that created it; "
            "use that version, or create a study of another name"
        )
        lines = _differences(json.loads(row.spec), json.loads(read.as_json()))
        raise WorkerRefusedError("\n".join([head, *(f"  {line}" for line in lines)]))


def _differences(stored: Mapping[str, Any], read: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: stored -> read``, dotted, for every key that differs.

    >>> _differences({"a": {"b": 1}}, {"a": {"b": 2, "c": None}})
    ['a.b: 1 -> 2', 'a.c: missing -> null']
    """
    lines = []
    for key in sorted(stored.keys() | read.keys()):
        one, other = stored.get(key, _MISSING), read.get(key, _MISSING)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            texts = ["missing" if value is _MISSING else json.dumps(value) for value in (one, other)]
            lines.append(f"{prefix}{key}: {' -> '.join(texts)}")
    return lines


def _live() -> Any:
    return and_(workers.c.ended_at.is_(None), workers.c.lost == false(), workers.c.heartbeat_at > now() - LIVE_S)


def _best(connection: Connection, study_id: int, spec: StudySpec) -> BestTrial | None:
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


def _evaluations(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    stored = (evaluations.c.study_id.in_(ids), evaluations.c.content != _OPENED)
    rows = connection.execute(select(evaluations).where(*stored))
    return {row.study_id: {**json.loads(row.content), "peeks": row.peeks} for row in rows}


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
