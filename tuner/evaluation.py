"""The honest estimate: the winner refitted over several seeds, and the test set opened once.

This is the only module that may open the test set (see :mod:`tuner.data.sealed`; an import contract says so).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner.data.dataset import FinalData, load_final_data
from tuner.data.sealed import open_test
from tuner.errors import BadInputError, NothingCompletedError
from tuner.learning.device import DeviceData, resolve_device, tensors
from tuner.learning.lanes import Lane
from tuner.learning.metrics import score
from tuner.learning.randomness import lane_key
from tuner.learning.trainer import LaneTask, kept_outputs, single_thread, train_to_end
from tuner.manager import BestTrial, StudyManager
from tuner.spec import METRICS, Metric, StudySpec
from tuner.trial import TrialConfig, Value
from tuner.worker import check_digests

REFIT = 1  # the second part of a refit's key path; a trial's key has one part, so no refit repeats a trial's stream
BOOTSTRAP_RESAMPLES = 4000
_AT_ONCE = 2**22  # numbers of (resample, refit, row) at a time


@dataclass(frozen=True, kw_only=True)
class TestScore:
    """The metric on the test rows: mean and standard deviation over refits, and an interval for the mean.

    sd: over seeds, with n-1; None for a single seed. low, high: see :func:`interval`.
    """

    mean: float
    sd: float | None
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What ``tuner evaluate`` reports. ``validation`` is the winner's own score: optimistic, since it was picked by it.

    gap_test_validation, gap_test_train: test mean minus that; positive means worse on test for a minimised metric.
    selection_bound: see :func:`selection_bound`; None for a metric that is no mean of numbers in [0, 1].
    """

    trial: int
    params: dict[str, Value]
    metric: Metric
    seeds: int
    validation: float
    test: TestScore
    train_mean: float
    selection_bound: float | None

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
            "selection_bound": self.selection_bound,
        }


def evaluate(manager: StudyManager, name: str, *, device: str = "auto") -> dict[str, Any]:
    """Refit the winner, open the test set, store the result; or the stored result, counted as one more peek.

    Raises StudyNotFoundError; BadInputError while the study is unfinished and not stopped; NothingCompletedError when
    no trial completed; DataError when the data are not what the study was created with.
    """
    if manager.evaluation(name) is not None:
        manager.count_peek(name)
    else:
        state = manager.summary(name).state
        if state not in ("finished", "stopped"):
            raise BadInputError(
                f"study {name!r} is {state}: the test set opens when the search is over; "
                f"finish it with tuner run or tuner worker, or end it with: tuner stop {name}"
            )
        winner = manager.best(name)
        if winner is None:
            raise NothingCompletedError(f"study {name!r} has no completed trial, so there is no winner to evaluate")
        spec, root = manager.spec(name), manager.data_root(name)
        final = load_final_data(spec, root, spec.trial_config(winner.params).scaling)
        check_digests(manager, name, final.data)
        manager.begin_evaluation(name)
        manager.store_evaluation(name, refit_and_test(spec, root, final, winner, device=device).as_dict())
    stored = manager.evaluation(name)
    assert stored is not None
    return stored


def refit_and_test(
    spec: StudySpec, root: Path, final: FinalData, winner: BestTrial, *, device: str = "auto"
) -> Evaluation:
    """Train the winner's configuration anew from ``final.seeds`` seeds, then score it on the test rows."""
    config, metric = spec.trial_config(winner.params), spec.study.metric
    place = resolve_device(device)
    if place.type == "cpu":
        single_thread()
    rows = DeviceData.place(final.data, place)
    view = rows.view(config.scaling)
    target_epochs = winner.epochs if spec.fit_on == "train+val" else config.max_epochs
    seeds = range(spec.final.seeds)
    tasks = [_refit_task(spec, config, target_epochs, seed) for seed in seeds]
    states = train_to_end(tasks, rows, metric)
    x_test, y_test = tensors([open_test(spec, root, final.preprocessing)], place, rows.dtype)
    test = kept_outputs(tasks, states, rows, x_test)
    train = score(metric, kept_outputs(tasks, states, rows, rows.x_train), rows.y_train, view.target_sd)
    per_seed = score(metric, test, y_test, view.target_sd).tolist()
    low, high = interval(test, y_test, metric, spec.final.confidence, target_sd=view.target_sd, seed=spec.study.seed)
    return Evaluation(
        trial=winner.number,
        params=dict(winner.params),
        metric=metric,
        seeds=len(seeds),
        validation=winner.value,
        test=TestScore(
            mean=float(np.mean(per_seed)),
            sd=float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None,
            low=low,
            high=high,
            confidence=spec.final.confidence,
        ),
        train_mean=train.mean().item(),
        selection_bound=selection_bound(spec, config, validation_rows=final.validation_rows),
    )


def interval(
    outputs: Tensor, y: Tensor, metric: Metric, confidence: float, *, target_sd: float = 1.0, seed: int = 0
) -> tuple[float, float]:
    """An interval for the mean over refits of the metric: outputs (seeds, test rows, C), y (test rows,).

    Percentile bootstrap over test rows and seeds, 4,000 resamples. A bootstrap of no mistakes would claim [0, 0], so
    for error and accuracy it is widened to Wilson's score interval for the mean share where that reaches further.
    Resamples in which the metric is not defined (an area under the curve of a single class) are left out.

    >>> low, high = interval(torch.eye(2).repeat(5, 50, 1), torch.arange(100) % 2, "error", 0.95)
    >>> low, round(high, 3)
    (0.0, 0.037)
    """
    rng = np.random.default_rng([seed, 2])
    K, n = outputs.shape[:2]
    parts = []
    for first in range(0, BOOTSTRAP_RESAMPLES, step := max(_AT_ONCE // (K * n), 1)):
        R = min(step, BOOTSTRAP_RESAMPLES - first)
        picked = rng.integers(0, n, (R, n)) + n * np.arange(R)[:, None]
        counts = torch.from_numpy(np.bincount(picked.ravel(), minlength=R * n).reshape(R, 1, n)).to(outputs.device)
        scores = score(metric, outputs, y, target_sd, counts).cpu().numpy()
        seeds = rng.integers(0, K, (R, K))
        parts.append(np.take_along_axis(scores, seeds, axis=1).mean(1))
    statistics = np.concatenate(parts)
    tail = (1 - confidence) / 2
    low, high = (float(bound) for bound in np.nanquantile(statistics, [tail, 1 - tail]))
    if METRICS[metric].zero_one:
        least, most = wilson(float(score(metric, outputs, y).mean()), n, confidence)
        return min(low, least), max(high, most)
    return low, high


def wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval (1927) for a share observed on ``n`` independent rows."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(center - half, 0.0) if share > 0 else 0.0, min(center + half, 1.0) if share < 1 else 1.0


def selection_bound(spec: StudySpec, config: TrialConfig, *, validation_rows: int) -> float | None:
    """How far the best of N validation scores may lie from the truth: √(ln(2N/δ) / 2m), with probability 1 - δ.

    The finite-class bound (Hoeffding and a union over N candidates): N trials, times the epochs to choose from where
    the best epoch is kept; m validation rows; δ = 1 - confidence. For means of numbers in [0, 1] only.
    """
    if not METRICS[spec.study.metric].zero_one:
        return None
    candidates = spec.total_trials * (config.max_epochs if config.keep == "best" else 1)
    return math.sqrt(math.log(2 * candidates / (1 - spec.final.confidence)) / (2 * validation_rows))


def _refit_task(spec: StudySpec, config: TrialConfig, target_epochs: int, seed: int) -> LaneTask:
    lane = Lane(number=seed, config=config, key=lane_key(spec.study.seed, seed, REFIT))
    return LaneTask(lane=lane, target_epochs=target_epochs)
