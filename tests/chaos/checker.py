"""What Tuner promises of a finished study, checked against the database, Optuna's reading and the workers' journals."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial
from sqlalchemy import Row, select

from tests.chaos.worker import digest, truth
from tests.storage.fleet import ends, read_optuna
from tuner.manager import StudyManager
from tuner.search import plan, promotable
from tuner.search.distributions import decode
from tuner.spec import StudySpec
from tuner.storage import schema

_OPTUNA = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


class BrokenPromiseError(AssertionError):
    """One line for each promise that does not hold."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known of a study once it has ended."""

    spec: StudySpec
    slots: Sequence[Row[Any]]
    rungs: Sequence[Row[Any]]
    trials: Sequence[FrozenTrial]
    journal: Sequence[dict[str, Any]]

    @property
    def results(self) -> list[dict[str, Any]]:
        """The acknowledged ones."""
        return [line for line in self.journal if line["what"] == "result"]

    @property
    def claims(self) -> list[dict[str, Any]]:
        return [line for line in self.journal if line["what"] == "claim"]


def gather(manager: StudyManager, url: str, spec: StudySpec, journal: Sequence[dict[str, Any]]) -> Evidence:
    study = manager.ledger(spec.study.name).study_id
    slots = select(schema.slots).where(schema.slots.c.study_id == study).order_by(schema.slots.c.number)
    rungs = select(schema.rungs).where(schema.rungs.c.study_id == study)
    return Evidence(
        spec=spec,
        slots=manager._database.read(lambda c: c.execute(slots).all()),
        rungs=manager._database.read(lambda c: c.execute(rungs).all()),
        trials=read_optuna(url, spec.study.name).trials,
        journal=journal,
    )


def exactly_n(seen: Evidence) -> list[str]:
    numbers = list(range(seen.spec.total_trials))
    found = []
    if [row.number for row in seen.slots] != numbers:
        found.append(f"the ledger has {len(seen.slots)} slots instead of {len(numbers)}")
    if sorted(trial.number for trial in seen.trials) != numbers:
        found.append(f"Optuna has {len(seen.trials)} trials instead of {len(numbers)}")
    return found


def grid_points_once(seen: Evidence) -> list[str]:
    if seen.spec.search.sampler != "grid":
        return []
    wanted = Counter(digest(point) for point in seen.spec.search_space.grid())
    drawn = Counter(digest(json.loads(row.params)) for row in seen.slots if row.params is not None)
    return [f"{sum((wanted - drawn).values())} points missing, {sum((drawn - wanted).values())} too many"] * (
        wanted != drawn
    )


def acknowledged_kept(seen: Evidence) -> list[str]:
    stored = {(row.number, row.rung): (row.token, row.epochs, row.value) for row in seen.rungs}
    return [
        f"trial {line['number']}, rung {line['rung']}: acknowledged {line['value']} of lease {line['token']}, "
        f"stored {stored.get((line['number'], line['rung']))}"
        for line in seen.results
        if stored.get((line["number"], line["rung"])) != (line["token"], line["epochs"], line["value"])
    ]


def accepted_once(seen: Evidence) -> list[str]:
    counted = Counter((line["number"], line["rung"]) for line in seen.results)
    return [f"trial {n}, rung {rung}: accepted {count} times" for (n, rung), count in counted.items() if count > 1]


def no_stale_lease(seen: Evidence) -> list[str]:
    """A result comes from the last lease of its slot at its rung; whoever held an earlier one was fenced off."""
    last: dict[tuple[int, int], int] = defaultdict(int)
    for line in seen.claims:
        place = line["number"], line["rung"]
        last[place] = max(last[place], line["token"])
    return [
        f"trial {row.number}, rung {row.rung}: result of lease {row.token}, after lease {last[row.number, row.rung]} "
        "was given"
        for row in seen.rungs
        if row.token < last[row.number, row.rung]
    ]


def parameters_give_values(seen: Evidence) -> list[str]:
    found = []
    params = {row.number: json.loads(row.params) for row in seen.slots if row.params is not None}
    for row in seen.slots:
        if row.state != "failed" and row.value != truth(params.get(row.number, {}), row.epochs):
            found.append(f"trial {row.number}: {row.value} is not the value of its parameters")
    for row in seen.rungs:
        if row.value != truth(params.get(row.number, {}), row.epochs):
            found.append(f"trial {row.number}, rung {row.rung}: {row.value} is not the value of its parameters")
    for line in seen.claims:
        if line["params"] != digest(params.get(line["number"], {})):
            found.append(f"trial {line['number']}: lease {line['token']} had other parameters")
    return found


def optuna_agrees(seen: Evidence) -> list[str]:
    """Optuna's trials tell the same: state, parameters, value, and each epoch's value once."""
    found = []
    slots = {row.number: row for row in seen.slots}
    for trial in seen.trials:
        if (row := slots.get(trial.number)) is None or row.params is None or row.state == "failed":
            continue
        params = json.loads(row.params)
        if trial.state.name != _OPTUNA.get(row.state) or trial.value != row.value:
            found.append(f"trial {row.number}: {row.state} {row.value} here, {trial.state.name} {trial.value} there")
        if {**params, **decode(trial.params, seen.spec.search_space)} != params:
            found.append(f"trial {row.number}: other parameters in Optuna's tables")
        if trial.intermediate_values != {epoch: truth(params, epoch) for epoch in range(1, row.epochs + 1)}:
            found.append(f"trial {row.number}: Optuna's curve is not that of its {row.epochs} epochs")
    return found


def nothing_runs(seen: Evidence) -> list[str]:
    found = [f"trial {t.number} is {t.state.name} in Optuna's tables" for t in seen.trials if not t.state.is_finished()]
    return found + [f"slot {row.number} is {row.state}" for row in seen.slots if row.state not in _OPTUNA]


def rungs_as_dealt(seen: Evidence) -> list[str]:
    """Synchronous brackets end as dealt; of an asynchronous one's every rung, the best 1/η went on."""
    if seen.spec.search.pruner == "asha":
        return _left_behind(seen)
    counted, dealt = Counter((row.bracket, row.rung) for row in seen.slots), ends(seen.spec)
    return [
        f"bracket {bracket}, rung {rung}: {counted[bracket, rung]} trials end there, {dealt[bracket, rung]} were dealt"
        for bracket, rung in sorted(counted.keys() | dealt.keys())
        if counted[bracket, rung] != dealt[bracket, rung]
    ]


def _left_behind(seen: Evidence) -> list[str]:
    place = {row.number: (row.bracket, row.rung) for row in seen.slots}
    values: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    for row in seen.rungs:
        bracket, _ = place[row.number]
        values[bracket, row.rung][row.number] = math.nan if row.value is None else row.value
    found = []
    for index, bracket in enumerate(plan(seen.spec)):
        if not any(row.bracket == index and row.state == "complete" for row in seen.slots):
            found.append(f"bracket {index}: nobody is complete")
        for rung in range(len(bracket.rungs) - 1):
            gone = {number for number in values[index, rung] if place[number][1] > rung}
            for number in promotable(values[index, rung], gone, seen.spec.search.eta, seen.spec.direction):
                found.append(f"bracket {index}, rung {rung}: trial {number} was left behind")
    return found


PROMISES: dict[str, Callable[[Evidence], list[str]]] = {
    "exactly N results": exactly_n,
    "every grid point once": grid_points_once,
    "no acknowledged result lost": acknowledged_kept,
    "no result accepted twice": accepted_once,
    "no result of a stale lease": no_stale_lease,
    "the stored parameters produced the stored value": parameters_give_values,
    "Optuna's tables tell the same": optuna_agrees,
    "nothing runs after the end": nothing_runs,
    "every rung as dealt": rungs_as_dealt,
}


def check(seen: Evidence) -> None:
    """Raises BrokenPromiseError that names each broken promise."""
    broken = {promise: found for promise, kept in PROMISES.items() if (found := kept(seen))}
    if broken:
        lines = [f"{promise}: {'; '.join(found[:3])} ({len(found)} in all)" for promise, found in broken.items()]
        raise BrokenPromiseError("\n".join(lines))
