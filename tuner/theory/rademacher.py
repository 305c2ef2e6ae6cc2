"""Rademacher complexity: how well a class of functions fits random signs (lecture, slides "Bounding the Generalization
Error" and "Example: Complexity of Linear Models").

ℜ_S(H) = E_σ[sup_h 1/n Σ σᵢ h(xᵢ)], σᵢ independent and ±1 with equal chances. The slides write min where the definition
(Bartlett and Mendelson, JMLR 2002) has the supremum; over a class that holds -h with every h the two differ in sign
only, and the supremum is what the slides go on to bound. It is the supremum here.

Shapes: ``n`` rows, ``D`` features, ``M`` draws of σ.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_AT_ONCE = 4_000_000  # signs in memory


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean over draws of σ, and its standard error; 0 where every σ was enumerated."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, suprema: Floats) -> Estimate:
        """Of what each of M draws gave, (M,)."""
        deviation = float(np.std(suprema, ddof=1)) if len(suprema) > 1 else math.nan
        return cls(value=float(suprema.mean()), standard_error=deviation / math.sqrt(len(suprema)))


def signs(n: int, draws: int, seed: int) -> Floats:
    """σ, (M, n)."""
    return 2 * np.random.default_rng([seed, 0x51]).integers(0, 2, (draws, n)).astype(np.float64) - 1


def linear_class(x: Floats, radius: float, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """ℜ_S of {x ↦ wᵀx : ‖w‖ ≤ Λ}, Λ = ``radius``: the supremum is Λ/n ‖Σ σᵢxᵢ‖, taken at w ∝ Σ σᵢxᵢ. x (n, D).

    >>> linear_class(np.array([[3.0, 4.0]]), 2.0).value
    10.0
    """
    n = len(x)
    step = max(_AT_ONCE // n, 1)
    parts = [
        np.linalg.norm(signs(n, min(step, draws - first), seed + first) @ x, axis=1) for first in range(0, draws, step)
    ]
    return Estimate.of(radius / n * np.concatenate(parts))


def linear_class_exactly(x: Floats, radius: float) -> float:
    """The same by all 2ⁿ σ, for n up to 20. Raises ValueError above."""
    n = len(x)
    if n > 20:
        raise ValueError(f"2^{n} signs are too many to enumerate; use linear_class")
    every = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
    return float(radius / n * np.linalg.norm(every @ x, axis=1).mean())


def linear_bound(x: Floats, radius: float) -> float:
    """√(R²Λ²/n), R the largest ‖xᵢ‖: by Cauchy-Schwarz and Jensen, as on the slide. x (n, D).

    >>> linear_bound(np.array([[3.0, 4.0], [0.0, 1.0]]), 2.0) == 10 / math.sqrt(2)
    True
    """
    return float(np.linalg.norm(x, axis=1).max()) * radius / math.sqrt(len(x))


def of_signs_fitted(errors: Floats) -> Estimate:
    """ℜ_S of a class with values ±1, from below: for each of M draws of σ, the share of signs (M,) that the best
    function found in the class gets wrong. Then 1/n Σ σᵢh(xᵢ) = 1 - 2·error; training may miss the supremum, never
    exceed it.

    >>> of_signs_fitted(np.array([0.0, 0.5])).value
    0.5
    """
    return Estimate.of(1 - 2 * errors)


def gap_bound(complexity: float, n: int, confidence: float = 0.95) -> float:
    """What the expected zero-one error of any ±1-valued h in H may exceed its error on n rows by, with this
    probability: ℜ_S(H) + 3√(ln(2/δ)/2n) (Mohri, Rostamizadeh and Talwalkar, Foundations of Machine Learning, theorem
    3.5).

    >>> round(gap_bound(1.0, 1000), 3)
    1.129
    """
    return complexity + 3 * math.sqrt(math.log(2 / (1 - confidence)) / (2 * n))
