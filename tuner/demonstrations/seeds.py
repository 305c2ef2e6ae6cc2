"""Numbers of several seeds, and whether they say anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CERTAIN = 3.0  # standard errors over seeds from which on a mean is not chance


def standard_error(values: Sequence[float] | Floats) -> float:
    """Of the mean; infinite for a single value."""
    table = np.asarray(values, dtype=np.float64)
    return float(table.std(ddof=1)) / math.sqrt(len(table)) if len(table) > 1 else math.inf


def certain(differences: Sequence[float] | Floats) -> bool:
    """Whether paired differences, one a seed, are above 0 by more than seeds explain.

    >>> certain([0.1, 0.11, 0.09]), certain([0.1, 0.3, -0.2]), certain([0.0, 0.0])
    (True, False, False)
    """
    return float(np.mean(differences)) > max(CERTAIN * standard_error(differences), 1e-12)


def percent(shares: Sequence[float] | Floats) -> str:
    """
    >>> percent([0.1, 0.12])
    '11.0 %'
    """
    return f"{100 * float(np.mean(shares)):.1f} %"
