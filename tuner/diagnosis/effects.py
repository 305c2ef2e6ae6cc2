"""Effects: how far one change moved a score, from paired seeds and the same rows, and how sure that is.

Two things are random, the seeds and the rows, and both count. Let D (K, n) hold what each row adds to each seed's
difference from its mean: for a mean over rows the row's own difference, for any other metric its influence (the
infinitesimal jackknife: Jaeckel 1972; Efron 1982). In a two-way table of random seeds and rows the mean has a variance
of about

    a + b - c,   a = s²(means of seeds)/K,   b = s²(means of rows)/n,   c = s²(what is left of both)/(Kn)

and about df = (a + b - c)² / (a²/(K - 1) + b²/(n - 1)) degrees of freedom (Satterthwaite 1946); the interval is
Student's. Where ``level`` is 0.05 over the number of changes (Bonferroni), all intervals hold together: a diagnosis of
changes without effect claims one with a probability of at most 0.05.

Shapes: ``K`` seeds, ``n`` rows, ``C`` outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from tuner.learning.metrics import score
from tuner.learning.resampling import Floats
from tuner.spec import METRICS, Metric

Verdict = Literal["better", "worse", "unseen", "same", "diverged"]

FEWEST_SEEDS = 2  # a spread needs two
SAME = 1e-4  # of the largest output: more than rounding makes of a training, less than any change of it


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A changed network's score minus the winner's: ``mean`` ± ``half_width`` (NaN where too many diverged).

    verdict: ``better`` or ``worse`` by the metric's direction where the interval excludes 0; ``unseen`` where it does
    not; ``same`` where the change left every answer as it was; ``diverged`` where fewer than two pairs of seeds have
    a score. score: the changed network's own mean. diverged: of how many seeds.
    """

    mean: float
    half_width: float
    verdict: Verdict
    score: float
    diverged: int

    @property
    def seen(self) -> bool:
        """Whether chance does not explain it."""
        return self.verdict in ("better", "worse")


def effects(
    metric: Metric,
    base: Tensor,
    changed: Mapping[str, Tensor],
    y: Tensor,
    *,
    level: float,
    target_sd: float = 1.0,
) -> dict[str, Effect]:
    """The effect of each change: outputs (K, n, C) of the winner, and of each changed network from the same seeds.

    y (n,). level: the probability that one interval may miss, such as 0.05 / (how many there are).
    """
    own, own_parts = scored(metric, base, y, target_sd)
    found = {}
    for name, outputs in changed.items():
        values, parts = scored(metric, outputs, y, target_sd)
        usable = np.isfinite(own) & np.isfinite(values)
        diverged = int((~np.isfinite(values)).sum())
        if usable.sum() < FEWEST_SEEDS:
            found[name] = Effect(
                mean=math.nan, half_width=math.nan, verdict="diverged", score=math.nan, diverged=diverged
            )
            continue
        mean, same = float((values - own)[usable].mean()), _same(outputs, base)
        half = 0.0
        if not same:
            floor = len(y) ** -2.0 if METRICS[metric].zero_one else 0.0
            half = half_width((values - own)[usable], (parts - own_parts)[usable], level, floor=floor)
        found[name] = Effect(
            mean=0.0 if same else mean,
            half_width=half,
            verdict="same" if same else verdict(metric, mean, half),
            score=float(values[usable].mean()),
            diverged=diverged,
        )
    return found


def scored(metric: Metric, outputs: Tensor, y: Tensor, target_sd: float = 1.0) -> tuple[Floats, Floats]:
    """The score of each lane, and each row's influence on it: outputs (K, n, C), y (n,) -> (K,), (K, n).

    A row's influence is n times the derivative of the score by the row's weight; over the rows they add up to 0. The
    influence of a lane that has no score is NaN.
    """
    weights = torch.ones(outputs.shape[:2], dtype=torch.float64, device=outputs.device, requires_grad=True)
    values = score(metric, outputs, y, target_sd, weights)
    (slopes,) = torch.autograd.grad(values.nansum(), weights)
    parts = torch.where(torch.isfinite(values)[:, None], len(y) * slopes, torch.nan)
    return values.detach().cpu().numpy(), parts.cpu().numpy()


def verdict(metric: Metric, mean: float, half: float) -> Verdict:
    """``better``, ``worse`` or ``unseen`` for a difference of a metric.

    >>> verdict("error", -0.01, 0.004), verdict("accuracy", -0.01, 0.004), verdict("error", -0.01, 0.02)
    ('better', 'worse', 'unseen')
    """
    if not abs(mean) > half:
        return "unseen"
    return "better" if (mean < 0) == (METRICS[metric].direction == "minimize") else "worse"


def half_width(values: Floats, parts: Floats | None, level: float, *, floor: float = 0.0) -> float:
    """Half of Student's interval for the mean of values (K,), one a seed; parts (K, n): each row's in each of them.

    parts None: the seeds alone are random. floor: the least variance that rows may have (where no row of a few differs,
    one of as many others may).

    >>> round(half_width(np.array([1.0, 2.0, 3.0]), None, 0.05), 4) == round(4.30265 / 3**0.5, 4)
    True
    """
    K, n = len(values), 1 if parts is None else parts.shape[1]
    of_seeds = float(values.var(ddof=1)) / K
    of_rows = of_both = 0.0
    if parts is not None and n > 1:
        means = parts.mean(0)
        of_rows = max(float(means.var(ddof=1)) / n, floor)
        left = parts - parts.mean(1, keepdims=True) - means + means.mean()
        of_both = float((left**2).sum()) / ((K - 1) * (n - 1)) / (K * n)
    total = max(of_seeds + of_rows - of_both, of_seeds, of_rows)
    if total == 0:
        return 0.0
    df = total**2 / (of_seeds**2 / (K - 1) + of_rows**2 / max(n - 1, 1))
    return float(stats.t.ppf(1 - level / 2, df)) * math.sqrt(total)


def difference_interval(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float, float]:
    """first - second and its interval, from (value, low, high) of two that are measured on different rows.

    The limits' distances are squared and added, each side its own (Newcombe 1998 for shares; Zou and Donner 2008), so
    that two shares of a few rows keep the asymmetry of their own intervals.

    >>> [round(x, 4) for x in difference_interval((0.0125, 0.0047, 0.0303), (0.0, 0.0, 0.0035))]
    [0.0125, 0.004, 0.0303]
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    mean = a - b
    return mean, mean - math.hypot(a - a_low, b_high - b), mean + math.hypot(a_high - a, b - b_low)


def rise(curves: Sequence[Sequence[float]]) -> tuple[float, int, list[float]]:
    """How far curves, one a seed, rise from their lowest point to their end: mean, that epoch (0-based), each seed's.

    Each seed's lowest epoch is that of the other seeds' mean curve, so that no seed picks its own luck; the epoch that
    is returned is the mean curve's. Curves are cut to the shortest.

    >>> rise([[3, 1, 2], [3, 1, 4], [3, 2, 3]])
    (1.6666666666666667, 1, [1.0, 3.0, 1.0])
    """
    length = min(map(len, curves))
    table = np.array([curve[:length] for curve in curves], dtype=np.float64)
    total = table.sum(0)
    each = [float(row[-1] - row[int(np.argmin(total - row))]) for row in table]
    return float(np.mean(each)), int(np.argmin(total)), each


def _same(outputs: Tensor, base: Tensor) -> bool:
    """Whether networks answer the same but for what float32 rounds otherwise beside other lanes."""
    if not (finite(outputs) & finite(base)).all():
        return False
    return torch.allclose(outputs, base, rtol=0, atol=SAME * float(base.abs().max()))


def finite(outputs: Tensor) -> Tensor:
    """Which lanes' outputs are all finite: (K, n, C) -> (K,)."""
    return torch.isfinite(outputs).flatten(1).all(1).cpu()
