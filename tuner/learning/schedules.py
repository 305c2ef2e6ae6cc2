"""Learning-rate schedules: pure functions from a step to a factor of η (slide "Learning Rate Decay")."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tuner.trial import Schedule

F64 = npt.NDArray[np.float64]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps in one epoch: the last batch may be short; a batch larger than the set is the whole set."""
    return -(-rows // min(batch_size, rows))


def factor(schedule: Schedule, step: npt.ArrayLike, total: int, warmup: float = 0.0) -> F64:
    """η's factor at 0-based ``step`` of ``total`` steps, element by element.

    The first ``round(warmup * total)`` steps rise linearly to 1; the schedule walks over the steps that are left:
    ``constant`` stays at 1; ``cosine`` falls as (1 + cos(π t/T))/2 and would reach 0 at the step after the last.

    >>> factor("cosine", [0, 2, 3], 4).round(3).tolist()
    [1.0, 0.5, 0.146]
    >>> factor("constant", [0, 1, 2, 3], 4, warmup=0.5).tolist()
    [0.5, 1.0, 1.0, 1.0]
    """
    t = np.asarray(step, dtype=np.float64)
    warm = round(warmup * total)
    rest = max(total - warm, 1)
    if schedule == "cosine":
        after = 0.5 * (1 + np.cos(np.pi * np.clip(t - warm, 0, rest) / rest))
    else:
        after = np.ones_like(t)
    return np.where(t < warm, (t + 1) / max(warm, 1), after)
