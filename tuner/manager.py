"""The manager: creates, lists, shows, stops and deletes the studies of one database."""

from __future__ import annotations

import difflib
import hashlib
import json
import mimetypes
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import Connection, Row, Table, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from tuner import __version__, strict_json
from tuner.errors import BadInputError, StorageError, StudyNotFoundError
from tuner.search import hyperband
from tuner.search.distributions import distributions
from tuner.spec import LogSection, StudySpec
from tuner.storage import agreement, bulk, overview, records
from tuner.storage.agreement import stored_spec
from tuner.storage.artifacts import below, open_files, parse_root, shown
from tuner.storage.attachments import Attachments
from tuner.storage.checkpoints import CheckpointStore
from tuner.storage.database import (
    OPEN_PATIENCE_S,
    PATIENCE_S,
    Database,
    clock,
    now,
    open_database,
    parse_url,
    sqlite_file,
)
from tuner.storage.ledger import Ledger
from tuner.storage.overview import (
    BestTrial,
    CurvePoint,
    PlaceRow,
    RungRow,
    StudySummary,
    TrialHistory,
    TrialRow,
    TrialStateName,
    WorkerRow,
)
from tuner.storage.schema import checkpoints, curves, evaluations, rungs, slots, studies, workers
from tuner.words import minutes

__all__ = [
    "BestTrial",
    "CurvePoint",
    "Digests",
    "PlaceRow",
    "RungRow",
    "StudyManager",
    "StudySummary",
    "TrialHistory",
    "TrialRow",
    "WorkerRow",
]

_TABLES: tuple[Table, ...] = (slots, rungs, curves, checkpoints, workers, evaluations, studies)
_LOG, _LOGGER = "tuner:log", "tuner:logger"  # system attributes: where to, and who is at it
_CHUNK = 50_000  # slots in one insert
_DIAGNOSIS = "diagnosis.json"
_DEMONSTRATIONS = "demonstrations.json"


@dataclass(frozen=True, kw_only=True)
class Digests:
    """What all workers of a study must agree on."""

    spec: str
    data: str
    split: str


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
        self.artifacts = artifacts_root(storage, artifacts)
        self._database: Database = open_database(
            storage, create=create, patience_s=patience_s, open_patience_s=min(OPEN_PATIENCE_S, patience_s)
        )

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
                agreement.must_match(row, spec, data_digest, split_digest)
                # The same study from a folder that has moved: from now on its data are found there.
                mine = studies.c.study_id == row.study_id
                connection.execute(update(studies).where(mine).values(data_root=str(data_root)))
                records.set_system_attr(connection, row.study_id, _LOG, spec.log.model_dump())
                return False
            for other in records.taken(connection, [name]):
                if other == name:
                    raise BadInputError(
                        f"study {name!r} is in this database already and was not made by Tuner; use another name"
                    )
                raise BadInputError(f"study {other!r} differs from {name!r} only in case or accents; use another name")
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
            records.set_system_attr(connection, study_id, _LOG, spec.log.model_dump())
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
        """The study's spec as it was created, and where it is logged to as it was last run."""
        row = self._study(name)
        log = self._database.read(lambda connection: records.system_attr(connection, row.study_id, _LOG))
        return stored_spec(row).model_copy(update={"log": LogSection.model_validate(log or {})})

    def data_root(self, name: str) -> Path:
        """The folder that a relative data source is relative to: ``TUNER_DATA_ROOT`` where this machine keeps its data
        elsewhere, else the study file's folder on the machine that created or last ran it.
        """
        return Path(os.environ.get("TUNER_DATA_ROOT") or self.created_in(name))

    def created_in(self, name: str) -> Path:
        """The study file's folder on the machine that created or last ran it."""
        return Path(self._study(name).data_root)

    def digests(self, name: str) -> Digests:
        """The hashes of spec, data and split."""
        row = self._study(name)
        return Digests(spec=row.spec_digest, data=row.data_digest, split=row.split_digest)

    def check_digests(self, name: str, *, data: str, split: str) -> None:
        """Raises DataError when the hash of the rows, or of their split, is not that of the study's creation."""
        agreement.check_digests(self._study(name), data, split)

    def ledger(self, name: str) -> Ledger:
        """The study's slots, to work on. Raises WorkerRefusedError as :meth:`admit`."""
        row = self._study(name)
        agreement.admit(row)
        return Ledger(self._database, row.study_id, stored_spec(row), row.folder)

    def admit(self, name: str) -> None:
        """Make sure that this Tuner may work on the study.

        Raises WorkerRefusedError, with the difference, when its major.minor version is not the one that created the
        study, or it reads another spec from what is stored than was stored.
        """
        agreement.admit(self._study(name))

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
        if study.trials["failed"] and self._opened(name):
            raise BadInputError(
                f"study {name!r} was evaluated, so its test set is open and the search has ended; to search on, use "
                "another name"
            )
        if study.minutes is not None and study.seconds >= 60 * study.minutes:
            raise BadInputError(
                f"the time budget of study {name!r} is over: {minutes(study.minutes)}; to search on, use another name"
            )
        return len(self.ledger(name).retry())

    def delete(self, name: str) -> None:
        """Delete a study: its rows in Optuna's tables and Tuner's, its checkpoint files and its attachments."""
        row = self._study(name)

        def work(connection: Connection) -> set[str]:
            # The slots first: results that are being written are waited for, and who comes later holds no slot. Else
            # a worker could add to trials in the middle of their deletion.
            _delete(connection, row.study_id)
            attached = records.artifacts_of(connection, row.study_id)
            records.delete_study(connection, row.study_id)
            return attached

        attached = self._database.write(work)
        CheckpointStore(below(self.artifacts, row.folder)).clear()
        self.attachments.discard(attached)

    # Reports

    def summary(self, name: str) -> StudySummary:
        row = self._study(name)
        return self._database.read(lambda connection: overview.summaries(connection, [row]))[0]

    def summaries(self) -> list[StudySummary]:
        """Every study, by name."""
        query = select(studies).select_from(_ours())

        def work(connection: Connection) -> list[StudySummary]:
            rows = connection.execute(query).all()
            return overview.summaries(connection, sorted(rows, key=lambda row: str(row.name)))

        return self._database.read(work)

    def trials(self, name: str) -> list[TrialRow]:
        """Every trial, by number: the finished ones, and those that are still to come."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: overview.trials(connection, study_id))

    def curve(self, name: str, number: int) -> list[CurvePoint]:
        """The learning curve of one trial, from its first epoch on; empty before it has been trained."""
        study_id = self._study(name).study_id
        found = self._database.read(lambda connection: overview.curves_of(connection, study_id, [number]))
        return found.get(number, [])

    def curves(self, name: str) -> dict[int, list[CurvePoint]]:
        """The learning curves of all trials that have one, by number."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: overview.curves_of(connection, study_id))

    def places(self, name: str) -> list[PlaceRow]:
        """How many slots are where, by bracket (in the order of the deal), rung and state."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: overview.places(connection, study_id))

    def rungs(self, name: str) -> list[RungRow]:
        """Every result that a trial had at a rung, by trial and rung."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: overview.results(connection, study_id))

    def times(self, name: str) -> dict[int, tuple[float, float | None]]:
        """When each trial began, and when it was over (None before), by number, in seconds since the epoch."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: overview.times(connection, study_id))

    def workers(self, name: str) -> list[WorkerRow]:
        """Everybody who ever worked on the study, in order of arrival."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: overview.crew(connection, study_id))

    def best(self, name: str) -> BestTrial | None:
        """The best completed trial so far, None before there is one. Once a time budget is over, the best of the trials
        that got furthest where none completed.
        """
        row = self._study(name)
        return self._database.read(lambda connection: overview.best(connection, row.study_id, stored_spec(row)))

    def save_note(self, name: str, text: str) -> bool:
        """Write the Markdown note that optuna-dashboard shows with the study. Whether it was written: a note that does
        not begin with the same line is somebody's own, and stays.
        """
        study_id, first_line = self._study(name).study_id, text.partition("\n")[0]
        return self._database.write(lambda connection: records.save_note(connection, study_id, text, first_line))

    @property
    def attachments(self) -> Attachments:
        """The files that the studies of this place carry."""
        return Attachments(self.artifacts)

    def attach(self, name: str, kind: str, file_name: str, content: bytes) -> str:
        """Let the study carry a file, as one of Optuna's artifacts, instead of the one of its ``kind`` before. Its id.

        Raises StorageError when the file cannot be written or is too large; then nothing has changed.
        """
        study_id, identity = self._study(name).study_id, str(uuid.uuid4())
        mimetype, encoding = mimetypes.guess_type(file_name)
        artifact = {
            "artifact_id": identity,
            "filename": file_name,
            "mimetype": mimetype or "application/octet-stream",
            "encoding": encoding,
        }
        replaced: set[str] = set()

        def work(connection: Connection) -> None:
            # One at a time: of two that both replaced the same one, neither would replace the other.
            still = select(studies.c.study_id).select_from(_ours()).where(studies.c.study_id == study_id)
            if connection.execute(still.with_for_update()).first() is None:
                raise StudyNotFoundError(f"study {name!r} was deleted meanwhile")
            if (before := records.attach(connection, study_id, kind, artifact)) is not None:
                replaced.add(before)

        self.attachments.save(identity, content)
        try:
            self._database.write(work)
        except BaseException:
            self.attachments.discard([identity])
            raise
        self.attachments.discard(replaced)
        return identity

    # Logging to other tools

    def identity(self, name: str) -> str:
        """A name for a study that no other one ever had: a deleted study's name may come again."""
        return str(self._study(name).folder)

    def ended(self, name: str) -> dict[int, TrialStateName]:
        """How each trial ended that is over, by number."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: overview.ended(connection, study_id))

    def histories(self, name: str, numbers: Sequence[int]) -> list[TrialHistory]:
        """All that is known of some trials, by number."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: overview.histories(connection, study_id, numbers))

    def lease_log(self, name: str, holder: str, seconds: float) -> Literal["taken", "kept", "refused"]:
        """Let one process at a time log the study's trials: for so long it is ``holder``, unless another one holds it.

        kept: nobody else had it since it was taken. seconds: 0 gives it back.
        """
        study_id, taken = self._study(name).study_id, False

        def work(connection: Connection) -> Literal["taken", "kept", "refused"]:
            nonlocal taken
            connection.execute(select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update()).all()
            held, at = records.system_attr(connection, study_id, _LOGGER) or {}, clock(connection)
            mine = held.get("holder") == holder
            if not mine and held.get("until", 0.0) > at:
                return "refused"
            records.set_system_attr(connection, study_id, _LOGGER, {"holder": holder, "until": at + seconds})
            taken = taken or not mine  # also where an answer was lost and this is the second time
            return "taken" if taken else "kept"

        return self._database.write(work)

    # The sealed-test ledger

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """What the opening of the test set showed, with ``peeks``: how often it was looked at again."""
        study_id = self._study(name).study_id
        return self._database.read(lambda connection: overview.evaluations_of(connection, [study_id]).get(study_id))

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
                row = {"study_id": study_id, "content": overview.OPENED, "peeks": 0, "created_at": created}
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
            begun = (evaluations.c.study_id == study_id, evaluations.c.content == overview.OPENED)
            connection.execute(update(evaluations).where(*begun).values(content=text))
            return overview.evaluations_of(connection, [study_id])[study_id]

        return self._database.write(work)

    def extend_evaluation(self, name: str, part: Mapping[str, Any]) -> dict[str, Any]:
        """Add keys to the stored evaluation; returns the whole. Keys that have a value already keep it."""
        study_id = self._study(name).study_id

        def work(connection: Connection) -> dict[str, Any]:
            mine = evaluations.c.study_id == study_id
            stored = json.loads(connection.execute(select(evaluations.c.content).where(mine)).scalar_one()) or {}
            whole = {**stored, **{key: value for key, value in part.items() if not stored.get(key)}}
            connection.execute(update(evaluations).where(mine).values(content=strict_json.dumps(whole)))
            return overview.evaluations_of(connection, [study_id])[study_id]

        return self._database.write(work)

    def count_peek(self, name: str) -> int:
        """Write down that the stored evaluation was looked at again; returns how often that makes. 0 without one."""
        study_id = self._study(name).study_id

        def work(connection: Connection) -> int:
            mine = evaluations.c.study_id == study_id
            connection.execute(update(evaluations).where(mine).values(peeks=evaluations.c.peeks + 1))
            return connection.execute(select(evaluations.c.peeks).where(mine)).scalar() or 0

        return self._database.write(work)

    # What was found out after the search: files beside the checkpoints

    def store_diagnosis(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what a diagnosis found, in place of an earlier one; returns it as it is kept, NaN as None.

        Raises StorageError when the file cannot be written.
        """
        return self._store_finding(name, _DIAGNOSIS, record)

    def diagnosis(self, name: str) -> dict[str, Any] | None:
        """What the last diagnosis found. None before there is one, and where this machine does not reach its file."""
        return self._finding(name, _DIAGNOSIS)

    def store_demonstration(self, name: str, what: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what a demonstration found, in place of an earlier one of that kind; as :meth:`store_diagnosis`."""
        kept: dict[str, Any] = self._store_finding(name, _DEMONSTRATIONS, {**self.demonstrations(name), what: record})[
            what
        ]
        return kept

    def demonstrations(self, name: str) -> dict[str, dict[str, Any]]:
        """The latest demonstration of each kind; none where this machine does not reach their file."""
        return self._finding(name, _DEMONSTRATIONS) or {}

    def _store_finding(self, name: str, file: str, record: Mapping[str, Any]) -> dict[str, Any]:
        place, text = self._findings_place(name), strict_json.dumps(dict(record))
        try:
            open_files(place).write(file, text.encode())
        except OSError as error:
            raise StorageError(f"{shown(place)}: cannot be written: {error.strerror or error}") from error
        kept: dict[str, Any] = json.loads(text)
        return kept

    def _finding(self, name: str, file: str) -> dict[str, Any] | None:
        try:
            kept: dict[str, Any] = json.loads(open_files(self._findings_place(name)).read(file))
        except (OSError, ValueError):
            return None
        return kept

    def _findings_place(self, name: str) -> str | Path:
        """A folder of its own, where nobody takes it for a checkpoint that was left behind."""
        return below(below(self.artifacts, self._study(name).folder), "diagnosis")

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
        if self._opened(name) and self.summary(name).state != "finished":
            raise BadInputError(
                f"study {name!r} was evaluated before its search was over, so its test set is open and the search has "
                f"ended; tuner show {name} shows the result; to search on, use another name"
            )

    def _opened(self, name: str) -> bool:
        """Whether the test set has been opened, or was about to be."""
        mine = select(evaluations.c.study_id).where(evaluations.c.study_id == self._study(name).study_id)
        return self._database.read(lambda connection: connection.execute(mine).first()) is not None

    def _set_stopped(self, name: str, stopped: bool) -> None:
        change = update(studies).where(studies.c.study_id == self._study(name).study_id).values(stopped=stopped)
        self._database.write(lambda connection: connection.execute(change) and None)


def artifacts_root(storage: str, artifacts: str | Path | None = None) -> str | Path:
    """Where the files of a database's studies live, as :class:`StudyManager` says. Raises BadInputError."""
    place = artifacts if artifacts is not None else os.environ.get("TUNER_ARTIFACTS") or None
    if place is not None:
        return parse_root(place)
    file = sqlite_file(parse_url(storage))
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


def _insert_slots(connection: Connection, study_id: int, dealt: Sequence[hyperband.Bracket]) -> None:
    rows = (
        {"study_id": study_id, "number": number, "bracket": place, "target": dealt[place].rungs[0].epochs}
        for place, numbers in enumerate(hyperband.slots(dealt))
        for number in numbers
    )
    while chunk := list(islice(rows, _CHUNK)):
        bulk.insert(connection, slots, chunk)
