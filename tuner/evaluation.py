"""The honest estimate: the winner refitted over several seeds, and the test set opened once.

Everything is fitted before the test set is opened: the refits, the ensemble where one is asked for, and the baselines.
This is the only module that may open the test set (see :mod:`tuner.data.sealed`; an import contract says so).

Shapes: ``K`` refits, ``n`` rows, ``C`` outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tuner.data.dataset import TrainingData, View, load_training_data, scalings
from tuner.data.sealed import open_test
from tuner.data.synthetic import known_truth
from tuner.errors import BadInputError
from tuner.learning.baselines import Baseline, Outputs, Y, fit_baselines
from tuner.learning.device import resolve_device
from tuner.learning.metrics import score
from tuner.learning.mistakes import class_errors, residuals
from tuner.learning.resampling import Floats, interval, quantile_interval, resampled_scores
from tuner.learning.trainer import single_thread
from tuner.manager import StudyManager
from tuner.refits import FinalRows, Member, Refits, Selection, candidates, refit, select_ensemble, winner
from tuner.spec import METRICS, Metric, StudySpec
from tuner.theory.risk import RISKS, Decomposition, decompose
from tuner.trial import Scaling, TrialConfig, Value
from tuner.worker import check_digests

Verdict = Literal["network", "level", "other"]


@dataclass(frozen=True, kw_only=True)
class TestScore:
    """The metric on the test rows: mean and standard deviation over refits, and an interval for the mean.

    values: of each refit. sd: over seeds, with n-1; None for a single seed. low, high: see :func:`interval`.
    """

    mean: float
    sd: float | None
    low: float
    high: float
    confidence: float
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The tuned network's test score minus another model's on the same rows, with its paired bootstrap interval.

    verdict: which is better; ``level`` where the interval holds 0.
    """

    mean: float
    low: float
    high: float
    verdict: Verdict

    @classmethod
    def between(cls, network: Floats, other: Floats, mean: float, metric: Metric, confidence: float) -> Difference:
        """From paired resamples (R,) of both scores, and the difference of the scores themselves."""
        low, high = quantile_interval(network - other, confidence)
        larger_is_worse = METRICS[metric].direction == "minimize"
        verdict: Verdict = "level"
        if low > 0:
            verdict = "other" if larger_is_worse else "network"
        elif high < 0:
            verdict = "network" if larger_is_worse else "other"
        return cls(mean=mean, low=low, high=high, verdict=verdict)


@dataclass(frozen=True, kw_only=True)
class BaselineScore:
    """A baseline's test score; rows: how many it was fitted on; difference: the network's score minus its."""

    name: str
    title: str
    settings: Mapping[str, Value]
    rows: int
    seconds: float
    test: TestScore
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class EnsembleScore:
    """An ensemble's test score. members: (trial, weight). difference: the winner's score minus the ensemble's.

    validation: of the ensemble as it was chosen, on the very rows it was chosen by.
    """

    members: tuple[tuple[int, int], ...]
    candidates: int
    validation: float
    test: TestScore
    difference: Difference

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        members = [{"trial": trial, "weight": weight} for trial, weight in self.members]
        return {**asdict(self), "members": members}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What ``tuner evaluate`` reports. ``validation`` is the winner's own score: optimistic, since it was picked by it.

    gap_test_validation, gap_test_train: test mean minus that; positive means worse on test for a minimised metric.
    risk: what the test score is made of, see :class:`tuner.theory.risk.Decomposition`; None for a metric that is no
    risk. selection_bound: see :func:`selection_bound`; None for a metric that is no mean of numbers in [0, 1].
    mistakes: of the refits on the test rows, see :mod:`tuner.learning.mistakes`.
    train_rows, test_rows: how many there are. baselines: fitted on the same rows, of a large table on a sample of them.
    seconds: what all of this took.
    """

    trial: int
    params: dict[str, Value]
    metric: Metric
    seeds: int
    validation: float
    test: TestScore
    train_mean: float
    risk: Decomposition | None
    selection_bound: float | None
    train_rows: int
    test_rows: int
    mistakes: Mapping[str, Any]
    baselines: tuple[BaselineScore, ...]
    ensemble: EnsembleScore | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form, without ``peeks``, which the storage counts."""
        return {
            "trial": self.trial,
            "params": self.params,
            "metric": self.metric,
            "seeds": self.seeds,
            "validation": self.validation,
            "test": asdict(self.test),
            "train": {"mean": self.train_mean},
            "gap_test_validation": self.test.mean - self.validation,
            "gap_test_train": self.test.mean - self.train_mean,
            "risk": None if self.risk is None else asdict(self.risk),
            "selection_bound": self.selection_bound,
            "train_rows": self.train_rows,
            "test_rows": self.test_rows,
            "mistakes": dict(self.mistakes),
            "baselines": [asdict(baseline) for baseline in self.baselines],
            "ensemble": None if self.ensemble is None else self.ensemble.as_dict(),
            "seconds": self.seconds,
        }


def evaluate(
    manager: StudyManager, name: str, *, device: str = "auto", ensemble: bool = False, processes: int = 1
) -> dict[str, Any]:
    """Refit the winner, open the test set, store the result; or the stored result, counted as one more peek.

    ensemble: evaluate a greedy ensemble of the best trials as well. Where the stored result has none, that opens the
    test set again, which counts as a peek too. processes: as :func:`tuner.learning.crew.train_all` takes it.

    Raises StudyNotFoundError; BadInputError while the study is unfinished and not stopped; NothingCompletedError when
    no trial completed; DataError when the data are not what the study was created with.
    """
    stored = manager.evaluation(name)
    if stored is not None and (stored.get("ensemble") or not ensemble):
        manager.count_peek(name)
    else:
        summary = manager.summary(name)
        state = summary.state
        if state not in ("finished", "stopped"):
            raise BadInputError(
                f"study {name!r} is {state}: the test set opens when the search is over; "
                f"finish it with tuner run or tuner worker, or end it with: tuner stop {name}"
            )
        spec, root = manager.spec(name), manager.data_root(name)
        if not spec.has_test_rows:
            raise BadInputError(f"study {name!r} keeps no test rows (data.split.test = 0), so nothing can be opened")
        best = winner(manager, name)
        data = load_training_data(spec, root)
        check_digests(manager, name, data)
        ranked = candidates(manager, name) if ensemble else []
        fits = fit_all(spec, root, data, best, ranked, device=device, processes=processes)
        manager.begin_evaluation(name)
        found = fits.score_on_test(root, trials=summary.trials["total"]).as_dict()
        if ensemble and not manager.store_evaluation(name, found).get("ensemble"):
            manager.extend_evaluation(name, {"ensemble": found["ensemble"]})
        elif not ensemble:
            manager.store_evaluation(name, found)
    stored = manager.evaluation(name)
    assert stored is not None
    return stored


@dataclass(frozen=True, kw_only=True)
class Fits:
    """All that is to be scored, fitted, with the test set still sealed."""

    spec: StudySpec
    data: TrainingData
    rows: FinalRows
    winner: Refits
    chosen: Selection | None
    ensemble: Refits | None
    baselines: Sequence[Baseline]
    baseline_scaling: Scaling
    began: float

    def score_on_test(self, root: Path, *, trials: int | None = None) -> Evaluation:
        """Open the test set and score everything on it.

        trials: how many the winner was picked among; None: as many as the study may have.
        """
        spec, member = self.spec, self.winner.members[0]
        metric, confidence, scaling = spec.study.metric, spec.final.confidence, member.config.scaling
        opened = open_test(spec, root, self.rows.fitted)
        device = self.rows.placed[scaling].device
        x = {key: torch.from_numpy(rows.x).to(device) for key, rows in opened.items()}
        y = torch.from_numpy(opened[scaling].y).to(device)
        outputs = [self.winner.outputs(x)]
        if self.ensemble is not None:
            outputs.append(self.ensemble.outputs(x))
        outputs += [
            torch.from_numpy(baseline.outputs(opened[self.baseline_scaling].x))[None].to(y.device)
            for baseline in self.baselines
        ]
        resampled = resampled_scores(metric, outputs, y, target_sd=self._view.target_sd, seed=spec.study.seed)
        scores = [
            self._test_score(answers, y, statistics) for answers, statistics in zip(outputs, resampled, strict=True)
        ]
        own, *others = [
            (test, Difference.between(resampled[0], statistics, scores[0].mean - test.mean, metric, confidence))
            for test, statistics in zip(scores, resampled, strict=True)
        ]
        ensemble = None
        if self.chosen is not None:
            test, difference = others.pop(0)
            ensemble = EnsembleScore(
                members=tuple((member.trial, member.weight) for member in self.chosen.members),
                candidates=self.chosen.candidates,
                validation=self.chosen.validation,
                test=test,
                difference=difference,
            )
        fitted = self.winner.outputs(self.rows.train)
        train = score(metric, fitted, torch.from_numpy(self._view.train.y).to(device), self._view.target_sd)
        train_mean = float(train.mean())
        return Evaluation(
            trial=member.trial,
            params=dict(member.params),
            metric=metric,
            seeds=self.winner.seeds,
            validation=member.value,
            test=own[0],
            train_mean=train_mean,
            risk=risk_of(spec, train_mean, own[0]),
            selection_bound=selection_bound(
                spec,
                member.config,
                trials=spec.total_trials if trials is None else trials,
                validation_rows=self.rows.finals[scaling].validation_rows,
            ),
            train_rows=len(self._view.train),
            test_rows=len(y),
            mistakes=self._mistakes(outputs[0], y),
            baselines=tuple(
                BaselineScore(
                    name=baseline.name,
                    title=baseline.title,
                    settings=baseline.settings,
                    rows=baseline.rows,
                    seconds=baseline.seconds,
                    test=test,
                    difference=difference,
                )
                for baseline, (test, difference) in zip(self.baselines, others, strict=True)
            ),
            ensemble=ensemble,
            seconds=time.perf_counter() - self.began,
        )

    @property
    def _view(self) -> View:
        """What the winner was refitted on."""
        return self.rows.finals[self.winner.members[0].config.scaling].data.only

    def _test_score(self, outputs: Tensor, y: Tensor, statistics: Floats) -> TestScore:
        spec, sd = self.spec, self._view.target_sd
        values = score(spec.study.metric, outputs, y, sd).tolist()
        low, high = interval(outputs, y, spec.study.metric, spec.final.confidence, target_sd=sd, statistics=statistics)
        return TestScore(
            mean=float(np.mean(values)),
            sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
            low=low,
            high=high,
            confidence=spec.final.confidence,
            values=tuple(values),
        )

    def _mistakes(self, outputs: Tensor, y: Tensor) -> dict[str, Any]:
        """Of the refits that did not diverge: the others decide for no class, and their residuals are no numbers."""
        outputs = outputs[torch.isfinite(outputs).flatten(1).all(1)]
        if not len(outputs):
            return {}
        if self.spec.task == "classification":
            return {"classes": class_errors(outputs, y, self.data.classes).as_dict()}
        return {"residuals": residuals(outputs, y, self._view.target_sd).as_dict()}


def fit_all(
    spec: StudySpec,
    root: Path,
    data: TrainingData,
    best: Member,
    ranked: Sequence[Member] = (),
    *,
    device: str = "auto",
    processes: int = 1,
) -> Fits:
    """Refit the winner and, where candidates are ``ranked``, an ensemble of them, and fit the baselines beside them."""
    began = time.perf_counter()
    place = resolve_device(device, spec.training.precision, double=True)
    if place.type == "cpu":
        single_thread()
    chosen = select_ensemble(spec, data, ranked, place, processes=processes) if ranked else None
    plain = _baseline_scaling(spec, best.config.scaling)
    rows = FinalRows.load(spec, root, [best, *(chosen.members if chosen else ())], place, also=plain)
    return Fits(
        spec=spec,
        data=data,
        rows=rows,
        winner=refit(spec, rows, [best], processes=processes),
        chosen=chosen,
        ensemble=None if chosen is None else refit(spec, rows, chosen.members, processes=processes),
        baselines=_baselines(spec, data, rows, plain),
        baseline_scaling=plain,
        began=began,
    )


def _baseline_scaling(spec: StudySpec, winners: Scaling) -> Scaling:
    """The winner's, but where it has numbers encoded in bins, which trees make for themselves and a simple baseline
    would not have: then the simplest of the study.
    """
    simpler: tuple[Scaling, ...] = ("standard", "robust", "quantile") if winners == "piecewise" else ()
    return next((scaling for scaling in simpler if scaling in scalings(spec)), winners)


def _baselines(spec: StudySpec, data: TrainingData, rows: FinalRows, scaling: Scaling) -> list[Baseline]:
    """Settings are picked between the first fold's train and validation rows; fitted on the rows that the winner is."""
    metric, searched, final = spec.study.metric, data.views[scaling, 0], rows.finals[scaling].data.only
    sign = -1 if METRICS[metric].direction == "maximize" else 1

    def loss(outputs: Outputs, y: Y) -> float:
        return sign * float(score(metric, torch.from_numpy(outputs), torch.from_numpy(y), searched.target_sd))

    return fit_baselines(
        (searched.train.x, searched.train.y),
        (searched.val.x, searched.val.y),
        loss,
        task=spec.task,
        n_outputs=data.n_outputs,
        metric=metric,
        refit_on=(final.train.x, final.train.y) if spec.fit_on == "train+val" else None,
        seed=spec.study.seed,
    )


def risk_of(spec: StudySpec, training: float, test: TestScore) -> Decomposition | None:
    """The parts of the winner's expected risk; None for a metric that is not a mean of losses, or is not known."""
    if spec.study.metric not in RISKS or not all(map(math.isfinite, (training, test.mean, test.low, test.high))):
        return None
    truth, irreducible = known_truth(spec.data), None
    if truth is not None and spec.study.metric == "mse":
        irreducible = truth.irreducible
    elif truth is not None and spec.study.metric == "error":
        irreducible = truth.bayes_error
    return decompose(training, test.mean, test.low, test.high, irreducible=irreducible)


def selection_bound(spec: StudySpec, config: TrialConfig, *, trials: int, validation_rows: int) -> float | None:
    """How far the best of N validation scores may lie from the truth: √(ln(2N/δ) / 2m), with probability 1 - δ.

    The finite-class bound (Hoeffding and a union over N candidates): N ``trials``, times the epochs to choose from
    where the best epoch is kept; m validation rows; δ = 1 - confidence. For means of numbers in [0, 1] only.

    The candidates must not depend on the validation rows. Trials of random, grid and qmc do not; those that tpe and
    refine draw do, and of them the bound is a rule of thumb. Nor may N: all that were begun count, whether or not they
    got far enough to win. Of a time budget that is over they are fewer than the study might have had: it was time that
    ended the search, and no score; under a pruner scores decide who takes up that time, which the bound leaves out.
    A search that somebody stopped, who may have seen its scores, counts as many as it might have had.
    """
    if not METRICS[spec.study.metric].zero_one:
        return None
    candidates = trials * (config.max_epochs if config.keep == "best" else 1)
    return math.sqrt(math.log(2 * candidates / (1 - spec.final.confidence)) / (2 * validation_rows))
