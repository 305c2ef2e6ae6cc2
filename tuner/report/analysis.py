"""The analysis of one study: every number that its report shows, as one record that JSON can hold.

Figures and pages are drawn from this record alone, so ``tuner report --json`` says the same as the page.
"""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner import __version__
from tuner.search import plan
from tuner.space import Choices, Range, Space
from tuner.trial import Value

if TYPE_CHECKING:
    from tuner.manager import CurvePoint, RungRow, StudyManager, TrialRow, WorkerRow
    from tuner.spec import StudySpec

Record = dict[str, Any]

SHOWN_CURVES = 60  # evenly from the best to the worst, the winner among them
SHOWN_POINTS = 200  # of one curve
ENOUGH = 30  # trials at the same epochs, for importances and contours
GRID = 24  # points a side of a contour
BANDWIDTH = 0.1  # of the Gaussian kernel of a contour, in units of a hyperparameter's whole range
STATES = ("promoted", "complete", "pruned", "failed", "running", "waiting")
_LIBRARIES = ("torch", "numpy", "optuna", "sqlalchemy", "scikit-learn", "polars")


def analyse(manager: StudyManager, name: str) -> Record:
    """Everything the report of a study shows. Raises StudyNotFoundError.

    A study may be anything: not begun, unfinished, of one trial, without a completed or with diverged trials. What
    cannot be said of it is None or empty.
    """
    spec, summary = manager.spec(name), manager.summary(name)
    trials, crew = manager.trials(name), manager.workers(name)
    times, reached, curves = manager.times(name), manager.rungs(name), manager.curves(name)
    winner = None if summary.best is None else summary.best.number
    zero = min([w.started_at for w in crew] + [start for start, _ in times.values()], default=None)
    space = spec.search_space
    epochs, judged = fidelity(reached)
    points = {t.number: _unit_point(space, t.params) for t in trials if t.params is not None and t.number in judged}
    importance = importances(list(space.searched), points, judged, maximize=spec.direction == "maximize")
    return {
        "study": summary.as_dict(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "trials": [_trial(t, times.get(t.number), zero) for t in trials if t.params is not None or t.state == "failed"],
        "curves": _curves(curves, trials, winner, maximize=spec.direction == "maximize"),
        "history": _history(trials, times, zero, maximize=spec.direction == "maximize"),
        "rungs": _rungs(spec, trials),
        "importance": {"epochs": epochs, "trials": len(points), "share": importance},
        "space": [_axis(name, domain) for name, domain in space.searched.items()],
        "contours": contours(list(space.searched), points, judged),
        "timeline": _timeline(trials, times, crew, zero),
        "diagnosis": manager.diagnosis(name),
        "demonstrations": manager.demonstrations(name),
        "reproduce": _reproduce(manager, spec),
    }


def fidelity(reached: Sequence[RungRow]) -> tuple[int | None, dict[int, float]]:
    """Trials that may be compared: (epochs, finite value by trial) of one number of epochs.

    The most epochs that ``ENOUGH`` trials reached; where none has so many, what most trials reached.
    """
    by_epochs: dict[int, dict[int, float]] = {}
    for row in reached:
        if row.value is not None and math.isfinite(row.value):
            by_epochs.setdefault(row.epochs, {})[row.number] = row.value
    if not by_epochs:
        return None, {}
    enough = [epochs for epochs, values in by_epochs.items() if len(values) >= ENOUGH]
    epochs = max(enough) if enough else max(by_epochs, key=lambda e: (len(by_epochs[e]), e))
    return epochs, by_epochs[epochs]


def importances(
    names: Sequence[str], points: Mapping[int, Sequence[float]], values: Mapping[int, float], *, maximize: bool
) -> dict[str, float]:
    """Each hyperparameter's share of what separates the best tenth of trials from the rest, the largest first.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023), as Optuna computes it, over the unit cube of the search space,
    so that a log scale, a list of choices and ``or_zero`` count as they were drawn. Empty where there is nothing to
    compare: fewer than ten trials, equal values, no hyperparameter that varies.
    """
    varied = [i for i, _ in enumerate(names) if len({point[i] for point in points.values()}) > 1]
    if len(points) < 10 or len({values[number] for number in points}) < 2 or not varied:
        return {}
    import optuna

    unit = optuna.distributions.FloatDistribution(0.0, 1.0)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a study in memory is nothing to tell anybody
    try:
        study = optuna.create_study(direction="maximize" if maximize else "minimize")
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={names[i]: point[i] for i in varied},
                distributions={names[i]: unit for i in varied},
                value=values[number],
            )
            for number, point in points.items()
        ]
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def contours(names: Sequence[str], points: Mapping[int, Sequence[float]], values: Mapping[int, float]) -> list[Record]:
    """For each pair of hyperparameters that vary, the value as a smooth function of the two.

    A kernel regression (Nadaraya and Watson, 1964) on a grid of the unit square; None where no trial is near.
    """
    numbers = [number for number in points if number in values]
    varied = [i for i, _ in enumerate(names) if len({points[number][i] for number in numbers}) > 1]
    if len(numbers) < 3:
        return []
    x = np.asarray([points[number] for number in numbers])
    y = np.asarray([values[number] for number in numbers])
    grid = (np.arange(GRID) + 0.5) / GRID
    near = np.exp(-0.5 * ((grid[:, None, None] - x[None]) / BANDWIDTH) ** 2)  # (GRID, trials, hyperparameters)
    found = []
    for i, j in combinations(varied, 2):
        weight = near[:, :, i] @ near[:, :, j].T  # (GRID of i, GRID of j)
        total = (near[:, :, i] * y) @ near[:, :, j].T
        mean = np.where(weight > 0.3, total / np.maximum(weight, 1e-12), np.nan).T  # a row for each point of j
        z = [[None if math.isnan(v) else float(f"{v:.5g}") for v in row] for row in mean.tolist()]
        found.append({"x": names[i], "y": names[j], "z": z})
    return found


def ticks(domain: Choices | Range) -> list[tuple[float, str]]:
    """Where on [0, 1] to write which values of a hyperparameter.

    >>> ticks(Range(low=0.001, high=0.1, log=True))
    [(0.0, '0.001'), (0.5, '0.01'), (1.0, '0.1')]
    """
    if isinstance(domain, Choices):
        return [(domain.to_unit(value), str(value)) for value in domain.choices]
    shown: list[Value] = [domain.zero] if domain.or_zero else []
    if domain.log:
        first, last = math.ceil(math.log10(domain.low) - 1e-9), math.floor(math.log10(domain.high) + 1e-9)
        powers = [10.0**e for e in range(first, last + 1)][:: max(1, -(-(last - first) // 3))]
        shown += [v for v in powers if domain.contains(v)] if len(powers) > 1 else [domain.low, domain.high]
    else:
        shown += [domain.low + (domain.high - domain.low) * i / 4 for i in range(5)]
    if domain.integer:
        shown = sorted({round(v) for v in shown if isinstance(v, int | float)})
    found = []
    for value in shown:
        if domain.contains(value):
            u = domain.to_unit(value)
            found.append((round(min(max(u, 0.0), 1.0), 6), f"{value:g}"))
        elif not domain.stepped:
            continue
    return found


def _axis(name: str, domain: Choices | Range) -> Record:
    kind = "choices" if isinstance(domain, Choices) else "log" if domain.log else "linear"
    return {"name": name, "kind": kind, "ticks": [list(tick) for tick in ticks(domain)]}


def _unit_point(space: Space, params: Mapping[str, Value]) -> list[float]:
    return [_unit(domain, params[name]) for name, domain in space.searched.items()]


def _unit(domain: Choices | Range, value: Value) -> float:
    """Where a value lies on [0, 1]. The stored one may carry another library's rounding at an end of its range."""
    try:
        return domain.to_unit(value)
    except ValueError:
        assert isinstance(domain, Range)
        return domain.to_unit(min(max(float(value), domain.low), domain.high))


def _trial(trial: TrialRow, times: tuple[float, float | None] | None, zero: float | None) -> Record:
    start, end = times if times is not None else (None, None)
    keys = ("number", "state", "value", "epochs", "bracket", "rung", "worker", "seconds", "reason")
    return {
        **{key: getattr(trial, key) for key in keys},
        "params": trial.params or {},
        "began_s": None if start is None or zero is None else start - zero,
        "ended_s": None if end is None or zero is None else end - zero,
    }


def _curves(
    curves: Mapping[int, Sequence[CurvePoint]], trials: Sequence[TrialRow], winner: int | None, *, maximize: bool
) -> Record:
    """Learning curves: the winner's, and others from the best to the worst."""

    def rank(trial: TrialRow) -> tuple[int, float]:
        value = math.inf if trial.value is None else -trial.value if maximize else trial.value
        return -trial.epochs, value

    ranked = [trial.number for trial in sorted(trials, key=rank) if trial.number in curves]
    count = min(len(ranked), SHOWN_CURVES)
    chosen = {ranked[round(i * (len(ranked) - 1) / max(count - 1, 1))] for i in range(count)}
    if winner in curves:
        chosen.add(winner)  # type: ignore[arg-type]
    shown = []
    for number in sorted(chosen):
        points = list(curves[number])
        each = -(-len(points) // SHOWN_POINTS)
        points = points if each <= 1 else [*points[: len(points) - 1 : each], points[-1]]
        columns = {
            key: [getattr(point, key) for point in points] for key in ("epoch", "value", "train_loss", "val_loss")
        }
        shown.append({"number": number, "winner": number == winner, **columns})
    return {"shown": shown, "of": len(ranked)}


def _history(
    trials: Sequence[TrialRow], times: Mapping[int, tuple[float, float | None]], zero: float | None, *, maximize: bool
) -> Record:
    """The best completed value so far, in the order of trial numbers and in the order in which they were over."""
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]

    def best_so_far(ordered: Iterable[tuple[float, float]]) -> list[list[float]]:
        steps: list[list[float]] = []
        for at, value in ordered:
            if not steps or (value > steps[-1][1] if maximize else value < steps[-1][1]):
                steps.append([at, value])
        return steps

    by_number = ((trial.number, trial.value) for trial in complete if trial.value is not None)
    ended = [(times[t.number][1], t.value) for t in complete if t.number in times]
    by_time = sorted((end - (zero or 0.0), value) for end, value in ended if end is not None and value is not None)
    return {"by_trial": best_so_far(by_number), "by_second": best_so_far(by_time)}


def _rungs(spec: StudySpec, trials: Sequence[TrialRow]) -> list[Record]:
    """Each kind of bracket, rung by rung: how many trials it was to have, had, and what became of them.

    Brackets of the same rungs are added up. A trial counts at the rung it ended at, and as promoted at those below.
    """
    dealt = plan(spec)
    planned: Counter[tuple[int, int, int]] = Counter()
    count: dict[tuple[int, int, int], Counter[str]] = {}
    for place in sorted({trial.bracket for trial in trials}):  # a time budget leaves out those that never began
        bracket = dealt[place]
        for i, rung in enumerate(bracket.rungs):
            planned[bracket.index, i, rung.epochs] += rung.size
    for trial in trials:
        bracket = dealt[trial.bracket]
        for i in range(trial.rung + 1):
            tally = count.setdefault((bracket.index, i, bracket.rungs[i].epochs), Counter())
            tally["promoted" if i < trial.rung else trial.state] += 1
    return [
        {
            "bracket": index,
            "rung": i,
            "epochs": epochs,
            "planned": planned[index, i, epochs],
            **{state: count.get((index, i, epochs), Counter())[state] for state in STATES},
        }
        for index, i, epochs in sorted(planned, key=lambda key: (-key[0], key[1]))
    ]


def _timeline(
    trials: Sequence[TrialRow],
    times: Mapping[int, tuple[float, float | None]],
    crew: Sequence[WorkerRow],
    zero: float | None,
) -> Record:
    """Who worked when, and what each worker brought to its end; seconds since the study began."""
    start = zero or 0.0
    workers: list[Record] = [
        {
            "worker": worker.worker,
            "device": worker.device,
            "version": worker.version,
            "state": worker.state,
            "began_s": worker.started_at - start,
            "until_s": (worker.heartbeat_at if worker.ended_at is None else worker.ended_at) - start,
            "trials": sum(trial.worker == worker.worker for trial in trials),
        }
        for worker in crew
    ]
    pauses = []
    reached: float | None = None
    for row in sorted(workers, key=lambda row: row["began_s"]):
        if reached is not None and row["began_s"] > reached + 1.0:
            pauses.append([reached, row["began_s"]])
        reached = max(row["until_s"], reached if reached is not None else row["until_s"])
    names = {row["worker"] for row in workers}
    ended = [
        {"worker": trial.worker, "number": trial.number, "state": trial.state, "at_s": end - start}
        for trial in trials
        if trial.worker in names and (end := times.get(trial.number, (0.0, None))[1]) is not None
    ]
    return {"workers": workers, "pauses": pauses, "ended": ended}


def _reproduce(manager: StudyManager, spec: StudySpec) -> Record:
    """The spec, the data and the software."""
    digests = manager.digests(spec.study.name)
    return {
        "spec": json.loads(spec.as_json()),
        "digests": {"spec": digests.spec, "data": digests.data, "split": digests.split},
        "storage": manager.storage,
        "software": {
            "tuner": __version__,
            "python": platform.python_version(),
            **{library: found for library in _LIBRARIES if (found := _version(library))},
        },
        "platform": platform.platform(),
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
