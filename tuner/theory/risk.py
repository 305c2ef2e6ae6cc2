"""Risk: the expected loss of a predictor, what a sample says of it, and what it is made of (lecture, slides
"Statistical Learning Theory", "Hypothesis Class" and "Decomposition of Expected Risk").

Shapes: ``n`` rows, ``M`` samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RISKS = ("error", "log_loss", "mse", "mae")  # metrics that are the mean over rows of a loss: the empirical risk
_AT_ONCE = 2_000_000  # rows drawn at a time


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Of the expected risk of a learned f_S: R(f_S) = R_S(f_S) + (R(f_S) - R_S(f_S)), training risk plus generalization
    gap; and R(f_S) = R(f*) + (R(f_H) - R(f*)) + (R(f_S) - R(f_H)), irreducible error, approximation error of the class
    H and estimation error.

    gap, gap_low, gap_high: with the interval of the risk, which fresh rows estimate; the training risk is known
    exactly. irreducible: R(f*), None where nobody knows it.
    best_low, best_high: a bracket of R(f_H), the best that f_S's class can do: the training risk of an f_S that
    minimises
        it is below R(f_H) on average, since it is below R_S(f_H), and R(f_S) is above it. A regularized f_S does not
        quite minimise it.
    approximation_low, approximation_high: of R(f_H) - R(f*), None where R(f*) is unknown.
    """

    training: float
    risk: float
    gap: float
    gap_low: float
    gap_high: float
    irreducible: float | None
    best_low: float
    best_high: float
    approximation_low: float | None
    approximation_high: float | None


def decompose(
    training: float, risk: float, low: float, high: float, *, irreducible: float | None = None
) -> Decomposition:
    """From the training risk, and the risk on fresh rows with its interval.

    >>> parts = decompose(0.1, 0.3, 0.25, 0.4, irreducible=0.2)
    >>> round(parts.gap, 3), round(parts.approximation_low, 3), round(parts.approximation_high, 3)
    (0.2, 0.0, 0.2)
    """
    best_low, best_high = min(training, risk), max(high, training)
    if irreducible is not None:
        best_low, best_high = max(best_low, irreducible), max(best_high, irreducible)
    return Decomposition(
        training=training,
        risk=risk,
        gap=risk - training,
        gap_low=low - training,
        gap_high=high - training,
        irreducible=irreducible,
        best_low=best_low,
        best_high=best_high,
        approximation_low=None if irreducible is None else best_low - irreducible,
        approximation_high=None if irreducible is None else best_high - irreducible,
    )


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """The empirical risk of one fixed predictor on M samples of n rows. mean, sd: over samples; low, high: the middle
    95 % of them.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float


def convergence(losses: Callable[[int], Floats], sizes: Sequence[int], samples: int) -> list[Convergence]:
    """R_S(f) for samples S of every size. losses(m): the losses of f on m fresh rows, (m,)."""
    found = []
    for n in sizes:
        step = max(_AT_ONCE // n, 1)
        parts = []
        for first in range(0, samples, step):
            size = min(step, samples - first)
            parts.append(losses(size * n).reshape(size, n).mean(1))
        risks = np.concatenate(parts)
        low, high = np.quantile(risks, [0.025, 0.975])
        found.append(
            Convergence(n=n, mean=float(risks.mean()), sd=float(risks.std(ddof=1)), low=float(low), high=float(high))
        )
    return found


def rate(sizes: Sequence[int], deviations: Sequence[float], samples: int) -> tuple[float, float]:
    """The slope of log sd over log n, which the law of large numbers makes -½ for a loss of finite variance, and its
    standard error, from that of each sd: 1/√(2(M - 1)) of it, where risks are near normal.

    >>> slope, error = rate([10, 100, 1000], [1.0, 0.1, 0.01], 201)
    >>> round(slope, 6), round(error, 4)
    (-1.0, 0.0154)
    """
    x = np.log(sizes)
    centred = x - x.mean()
    slope = float(centred @ np.log(deviations) / (centred @ centred))
    return slope, 1 / math.sqrt(2 * (samples - 1)) / math.sqrt(float(centred @ centred))
