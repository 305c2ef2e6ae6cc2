"""Optuna's own tables, written in bulk: what its public API would have written, in a few statements for a whole pack.

Optuna's API costs some 20 statements a trial and 3 a report. Here the number of statements depends neither on the
number of trials nor on that of epochs. ``tests/storage/test_records.py`` compares the FrozenTrials made both ways.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Connection, Table, and_, delete, func, insert, or_, select, update

from tuner.errors import BadInputError
from tuner.spec import Direction
from tuner.storage import bulk

studies: Table = models.StudyModel.__table__
directions: Table = models.StudyDirectionModel.__table__
study_user_attrs: Table = models.StudyUserAttributeModel.__table__
study_system_attrs: Table = models.StudySystemAttributeModel.__table__
trials: Table = models.TrialModel.__table__
params: Table = models.TrialParamModel.__table__
values: Table = models.TrialValueModel.__table__
intermediate_values: Table = models.TrialIntermediateValueModel.__table__
trial_user_attrs: Table = models.TrialUserAttributeModel.__table__
trial_system_attrs: Table = models.TrialSystemAttributeModel.__table__
heartbeats: Table = models.TrialHeartbeatModel.__table__

_OF_TRIALS = (heartbeats, intermediate_values, params, values, trial_user_attrs, trial_system_attrs)
_MANY = 10_000  # ids that one IN (…) may list; some databases take no more than 32,766
MAX_TEXT = 65_535  # bytes of a TEXT column of MySQL and MariaDB; the others take more
_METRIC_NAMES = "study:metric_names"  # where Study.set_metric_names puts them
_NOTE_VERSION, _NOTE_PART = "dashboard:note_ver", "dashboard:note_str:"  # where optuna-dashboard keeps a study's note
_NOTE_PART_LENGTH = 2045  # characters of one part, of which it joins as many as there are
_ARTIFACT, _TRIAL_ARTIFACT = "artifacts:", "dashboard:artifacts:"  # where Optuna and its dashboard list artifacts
_ATTACHED = "tuner:attached:"  # and where Tuner remembers which of them are its own


@dataclass(frozen=True, kw_only=True)
class Start:
    """A trial that begins: its number in the study, and its parameters in Optuna's words."""

    number: int
    params: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One intermediate value. ``value`` may be NaN or infinite."""

    trial_id: int
    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Finish:
    """A trial that ends. ``value`` None or NaN: it ends without one, which COMPLETE may not."""

    trial_id: int
    state: TrialState
    value: float | None
    user_attrs: Mapping[str, Any] = field(default_factory=dict)


def check_lengths(distributions: Mapping[str, BaseDistribution]) -> None:
    """Raises BadInputError when a distribution does not fit into its column on every database."""
    for name, distribution in distributions.items():
        if (size := len(distribution_to_json(distribution).encode())) > MAX_TEXT:
            raise BadInputError(
                f"{name}: its choices take {size:,} bytes in the database, where at most {MAX_TEXT:,} fit; list fewer"
            )


def create_study(
    connection: Connection, name: str, direction: Direction, metric: str, user_attrs: Mapping[str, Any]
) -> int:
    """A study with one objective, named after the metric. IntegrityError when the name is taken."""
    key = connection.execute(insert(studies).values(study_name=name)).inserted_primary_key
    assert key is not None
    study_id = int(key[0])
    towards = StudyDirection.MAXIMIZE if direction == "maximize" else StudyDirection.MINIMIZE
    bulk.insert(connection, directions, [{"study_id": study_id, "objective": 0, "direction": towards}])
    attrs = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in user_attrs.items()]
    bulk.insert(connection, study_user_attrs, attrs)
    names = {"study_id": study_id, "key": _METRIC_NAMES, "value_json": json.dumps([metric])}
    bulk.insert(connection, study_system_attrs, [names])
    return study_id


def start_trials(connection: Connection, study_id: int, starts: Sequence[Start], at: float) -> dict[int, int]:
    """Insert RUNNING trials that began ``at`` (seconds since the epoch). Returns each number's trial id."""
    # New ids are above every id that is visible now, so the new rows are found by a short range of the primary key.
    last = connection.execute(select(func.max(trials.c.trial_id))).scalar() or 0
    begun = _stored_time(at)
    bulk.insert(
        connection,
        trials,
        [
            {"number": s.number, "study_id": study_id, "state": TrialState.RUNNING, "datetime_start": begun}
            for s in starts
        ],
    )
    found = select(trials.c.number, trials.c.trial_id).where(
        trials.c.trial_id > last,
        trials.c.study_id == study_id,
        trials.c.number.in_([start.number for start in starts]),
    )
    ids = {row.number: row.trial_id for row in connection.execute(found)}
    texts: dict[BaseDistribution, str] = {}
    rows = []
    for start in starts:
        for name, value in start.params.items():
            distribution = start.distributions[name]
            if distribution not in texts:
                texts[distribution] = distribution_to_json(distribution)
            rows.append(
                {
                    "trial_id": ids[start.number],
                    "param_name": name,
                    "param_value": float(distribution.to_internal_repr(value)),
                    "distribution_json": texts[distribution],
                }
            )
    bulk.insert(connection, params, rows)
    return ids


def report(connection: Connection, reports: Sequence[Report]) -> None:
    """Insert intermediate values; one that is there already stays as it is."""
    rows = []
    for item in reports:
        value, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(item.value)
        rows.append(
            {
                "trial_id": item.trial_id,
                "step": item.step,
                "intermediate_value": value,
                "intermediate_value_type": kind,
            }
        )
    bulk.insert(connection, intermediate_values, rows, conflict="skip", key=("trial_id", "step"))


def reached(
    connection: Connection, trial_ids: Sequence[int], best: Direction | None
) -> dict[int, tuple[int, float | None]]:
    """The last step of each trial that has any, and its value there; ``best``: its best finite value so far instead."""
    steps = intermediate_values
    found: dict[int, tuple[int, float | None]] = {}
    for ids in batched(trial_ids):
        ends = select(steps.c.trial_id, func.max(steps.c.step).label("step")).where(steps.c.trial_id.in_(ids))
        last = ends.group_by(steps.c.trial_id).subquery()
        at = and_(steps.c.trial_id == last.c.trial_id, steps.c.step == last.c.step)
        rows = connection.execute(
            select(
                steps.c.trial_id, steps.c.step, steps.c.intermediate_value, steps.c.intermediate_value_type
            ).select_from(steps.join(last, at))
        )
        for row in rows:
            value = loaded_value(row.intermediate_value, row.intermediate_value_type.name)
            found[row.trial_id] = (row.step, value)
        if best is not None:
            pick = func.max if best == "maximize" else func.min
            kinds = models.TrialIntermediateValueModel.TrialIntermediateValueType
            finite = (steps.c.trial_id.in_(ids), steps.c.intermediate_value_type == kinds.FINITE)
            values = select(steps.c.trial_id, pick(steps.c.intermediate_value).label("value")).where(*finite)
            for pair in connection.execute(values.group_by(steps.c.trial_id)):
                found[pair.trial_id] = (found[pair.trial_id][0], pair.value)
    return found


def truncate(connection: Connection, epochs: Mapping[int, int]) -> None:
    """Delete the intermediate values of each trial id that lie beyond its step."""
    if not epochs:
        return
    by_step: dict[int, list[int]] = {}
    for trial_id, step in epochs.items():
        by_step.setdefault(step, []).append(trial_id)
    beyond = [
        and_(intermediate_values.c.trial_id.in_(ids), intermediate_values.c.step > step)
        for step, ids in by_step.items()
    ]
    connection.execute(delete(intermediate_values).where(or_(*beyond)))


def finish_trials(connection: Connection, finishes: Sequence[Finish], at: float) -> None:
    """End trials ``at`` (seconds since the epoch), as ``Study.tell`` does: NaN is no value, infinity is one."""
    rows = []
    for item in finishes:
        if item.value is not None and item.value == item.value:
            value, kind = models.TrialValueModel.value_to_stored_repr(item.value)
            rows.append({"trial_id": item.trial_id, "objective": 0, "value": value, "value_type": kind})
    bulk.insert(connection, values, rows)
    attrs = [
        {"trial_id": item.trial_id, "key": key, "value_json": json.dumps(value)}
        for item in finishes
        for key, value in item.user_attrs.items()
    ]
    bulk.insert(connection, trial_user_attrs, attrs)
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        for ids in batched([item.trial_id for item in finishes if item.state == state]):
            ended = update(trials).where(trials.c.trial_id.in_(ids))
            connection.execute(ended.values(state=state, datetime_complete=_stored_time(at)))


def reopen_trials(connection: Connection, trial_ids: Sequence[int]) -> None:
    """Let failed trials run again: as they were before they ended, without what their end wrote."""
    for ids in batched(trial_ids):
        connection.execute(delete(trial_user_attrs).where(trial_user_attrs.c.trial_id.in_(ids)))
        again = update(trials).where(trials.c.trial_id.in_(ids))
        connection.execute(again.values(state=TrialState.RUNNING, datetime_complete=None))


def delete_trials(connection: Connection, trial_ids: Sequence[int]) -> None:
    """Delete trials with all that belongs to them."""
    for ids in batched(trial_ids):
        for table in (*_OF_TRIALS, trials):
            connection.execute(delete(table).where(table.c.trial_id.in_(ids)))


def delete_study(connection: Connection, study_id: int) -> None:
    """Delete a study with all its trials, rows that plain Optuna tools added included."""
    ids = select(trials.c.trial_id).where(trials.c.study_id == study_id)
    for table in _OF_TRIALS:
        connection.execute(delete(table).where(table.c.trial_id.in_(ids)))
    for table in (trials, study_user_attrs, study_system_attrs, directions, studies):
        connection.execute(delete(table).where(table.c.study_id == study_id))


def stored_value(value: float) -> tuple[float | None, str]:
    """A float as a column and the name of its kind, which is FINITE, INF_POS, INF_NEG or NAN."""
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    return stored, kind.name


def loaded_value(value: float | None, kind: str | None) -> float | None:
    """Undoes :func:`stored_value`; None where nothing was stored."""
    if kind is None:
        return None
    kinds = models.TrialIntermediateValueModel.TrialIntermediateValueType
    loaded: float = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(value, kinds[kind])
    return loaded


def taken(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """The study ids of those names that Optuna's table has."""
    rows = connection.execute(
        select(studies.c.study_name, studies.c.study_id).where(studies.c.study_name.in_(list(names)))
    )
    return {row.study_name: row.study_id for row in rows}


def study_attr(connection: Connection, study_id: int, key: str) -> Any:
    """The value of a study's user attribute; None without one."""
    return _attr(connection, study_user_attrs, study_id, key)


def keep_study_attr(connection: Connection, study_id: int, key: str, value: Any) -> None:
    """Set a study's user attribute if it has none of this key yet."""
    row = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
    bulk.insert(connection, study_user_attrs, [row], conflict="skip", key=("study_id", "key"))


def system_attr(connection: Connection, study_id: int, key: str) -> Any:
    """The value of a study's system attribute; None without one."""
    return _attr(connection, study_system_attrs, study_id, key)


def _attr(connection: Connection, table: Table, study_id: int, key: str) -> Any:
    text = connection.execute(
        select(table.c.value_json).where(table.c.study_id == study_id, table.c.key == key)
    ).scalar()
    return None if text is None else json.loads(text)


def set_system_attr(connection: Connection, study_id: int, key: str, value: Any) -> None:
    """Set a study's system attribute."""
    row = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
    bulk.insert(connection, study_system_attrs, [row], conflict="update", key=("study_id", "key"))


def save_note(connection: Connection, study_id: int, text: str, first_line: str) -> bool:
    """Write the note that optuna-dashboard shows on the study's page, unless somebody wrote one of their own: one that
    does not begin with ``first_line``. Whether it was written.
    """
    mine = study_system_attrs.c.study_id == study_id
    about = (study_system_attrs.c.key == _NOTE_VERSION) | study_system_attrs.c.key.like(f"{_NOTE_PART}%")
    query = select(study_system_attrs.c.key, study_system_attrs.c.value_json).where(mine, about)
    known = {row.key: json.loads(row.value_json) for row in connection.execute(query)}
    before = str(known.get(f"{_NOTE_PART}0", ""))
    if before and before.partition("\n")[0] != first_line:
        return False
    parts = [text[start : start + _NOTE_PART_LENGTH] for start in range(0, len(text), _NOTE_PART_LENGTH)]
    count = max(len(parts), len(known) - 1)
    attrs: dict[str, Any] = {f"{_NOTE_PART}{i}": parts[i] if i < len(parts) else "" for i in range(count)}
    attrs[_NOTE_VERSION] = int(known.get(_NOTE_VERSION, 0)) + 1
    rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
    bulk.insert(connection, study_system_attrs, rows, conflict="update", key=("study_id", "key"))
    return True


def attach(connection: Connection, study_id: int, kind: str, artifact: Mapping[str, str | None]) -> str | None:
    """List a file among the study's artifacts, in the place of the one of its kind that Tuner listed before.

    artifact: Optuna's ``ArtifactMeta``. Returns the id of the one that went; None where there was none.
    """
    attrs, pointer, identity = study_system_attrs, f"{_ATTACHED}{kind}", artifact["artifact_id"]
    before: str | None = system_attr(connection, study_id, pointer)
    if before == identity:  # done already, by a commit whose answer was lost
        return None
    if before is not None:
        connection.execute(delete(attrs).where(attrs.c.study_id == study_id, attrs.c.key == f"{_ARTIFACT}{before}"))
    set_system_attr(connection, study_id, pointer, identity)
    # Optuna stores the text of a JSON object, not the object.
    set_system_attr(connection, study_id, f"{_ARTIFACT}{identity}", json.dumps(dict(artifact)))
    return before


def artifacts_of(connection: Connection, study_id: int) -> set[str]:
    """The ids of all artifacts of a study and its trials, whoever listed them."""
    of_study, of_trial = study_system_attrs, trial_system_attrs
    listed = or_(of_study.c.key.like(f"{_ARTIFACT}%"), of_study.c.key.like(f"{_TRIAL_ARTIFACT}%"))
    keys = list(connection.execute(select(of_study.c.key).where(of_study.c.study_id == study_id, listed)).scalars())
    mine = select(trials.c.trial_id).where(trials.c.study_id == study_id)
    own = select(of_trial.c.key).where(of_trial.c.trial_id.in_(mine), of_trial.c.key.like(f"{_ARTIFACT}%"))
    return {key.rpartition(":")[2] for key in [*keys, *connection.execute(own).scalars()]}


def batched(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Ids in lists that every database takes."""
    return (ids[start : start + _MANY] for start in range(0, len(ids), _MANY))


def _stored_time(at: float) -> datetime:
    """Optuna 5 stores naive UTC."""
    return datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
