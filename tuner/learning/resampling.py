"""Resampling: how far a test score may be from the truth, and two scores on the same rows from each other.

Shapes: ``n`` rows, ``C`` outputs, ``K`` refits of a model, ``R`` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.learning.metrics import score
from tuner.spec import METRICS, Metric

RESAMPLES = 4000
FEWEST_RESAMPLES = (
    400  # for very many rows, where the quantiles of fewer are still good to a few percent of their width
)
WORK = 400_000_000  # (resample, row) pairs; metrics that are no means over rows cost more for each
_AT_ONCE = 2**22  # numbers in memory at a time
_MEANS: tuple[Metric, ...] = ("error", "accuracy", "log_loss", "rmse", "mse", "mae")  # rmse: of its square

Floats = npt.NDArray[np.float64]


def resampled_scores(
    metric: Metric, models: Sequence[Tensor], y: Tensor, *, target_sd: float = 1.0, seed: int = 0
) -> list[Floats]:
    """The mean over refits of each model's score on R bootstrap resamples of rows and refits: (R,) for each model.

    models: outputs (K, n, C), K may differ. All models see the same resamples, and those of equal K the same refits, so
    that differences are paired. NaN where a metric is not defined (an area under the curve of a single class).
    """
    n = len(y)
    rng = np.random.default_rng([seed, 2])
    cost = 1 if metric in _MEANS else 4 * sum(len(outputs) for outputs in models)
    R = int(np.clip(WORK // (n * cost), FEWEST_RESAMPLES, RESAMPLES))
    refits = {K: rng.integers(0, K, (R, K)) for K in sorted({len(outputs) for outputs in models})}
    rows = [_row_values(metric, outputs, y, target_sd) for outputs in models] if metric in _MEANS else []
    found: list[list[Floats]] = [[] for _ in models]
    most = max(len(outputs) for outputs in models)
    for first in range(0, R, step := max(_AT_ONCE // (most * n), 1)):
        size = min(step, R - first)
        picked = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(picked.ravel(), minlength=size * n).reshape(size, n)
        for i, outputs in enumerate(models):
            if rows:
                scores = counts @ rows[i].T / n
                scores = np.sqrt(scores) if metric == "rmse" else scores
            else:
                weights = torch.from_numpy(counts[:, None, :]).to(outputs.device)
                scores = score(metric, outputs, y, target_sd, weights).cpu().numpy()
            chosen = refits[len(outputs)][first : first + size]
            found[i].append(np.take_along_axis(scores, chosen, axis=1).mean(1))
    return [np.concatenate(parts) for parts in found]


def quantile_interval(statistics: Floats, confidence: float) -> tuple[float, float]:
    """The percentile interval of resampled statistics; those that are not defined are left out."""
    if np.isnan(statistics).all():
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(statistics, [tail, 1 - tail])
    return float(low), float(high)


def interval(
    outputs: Tensor,
    y: Tensor,
    metric: Metric,
    confidence: float,
    *,
    target_sd: float = 1.0,
    seed: int = 0,
    statistics: Floats | None = None,
) -> tuple[float, float]:
    """An interval for the mean over refits of the metric: outputs (K, n, C), y (n,).

    Percentile bootstrap over test rows and refits. A bootstrap of no mistakes would claim [0, 0], so for error and
    accuracy it is widened to Wilson's score interval for the mean share where that reaches further.

    statistics: what :func:`resampled_scores` gave for these outputs, where it is known already.

    >>> low, high = interval(torch.eye(2).repeat(5, 50, 1), torch.arange(100) % 2, "error", 0.95)
    >>> low, round(high, 3)
    (0.0, 0.037)
    """
    if statistics is None:
        (statistics,) = resampled_scores(metric, [outputs], y, target_sd=target_sd, seed=seed)
    low, high = quantile_interval(statistics, confidence)
    if METRICS[metric].zero_one:
        least, most = wilson(float(score(metric, outputs, y).mean()), len(y), confidence)
        return min(low, least), max(high, most)
    return low, high


def wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval (1927) for a share observed on ``n`` independent rows."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(center - half, 0.0) if share > 0 else 0.0, min(center + half, 1.0) if share < 1 else 1.0


def _row_values(metric: Metric, outputs: Tensor, y: Tensor, target_sd: float) -> Floats:
    """(K, n): what each row adds to the mean, its square error for rmse. Each row is scored as a table of its own."""
    each: Metric = "mse" if metric == "rmse" else metric
    values: Floats = score(each, outputs.unsqueeze(-2), y.unsqueeze(-1), target_sd).cpu().numpy()
    return values
