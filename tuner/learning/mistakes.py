"""Mistakes: where a model errs. Of classes which are taken for which, of numbers how far off and to which side.

Shapes: ``K`` refits, ``n`` rows, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner.learning.metrics import score

FULL_MATRIX = 50  # classes up to which the confusion matrix is kept whole
LARGEST = 20  # confusions listed
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
WITHIN = (0.1, 0.25, 0.5, 1.0)  # standard deviations of the target


@dataclass(frozen=True, kw_only=True)
class ClassErrors:
    """Which classes are taken for which, means over refits.

    rows, error: of each class, how many rows and the share of them that is wrong. matrix: rows of class i (first) that
    are taken for class j; None for more than :data:`FULL_MATRIX` classes. confusions: the largest off its diagonal, as
    (class, taken for, rows).
    """

    labels: tuple[str, ...]
    rows: tuple[int, ...]
    error: tuple[float | None, ...]
    matrix: tuple[tuple[float, ...], ...] | None
    confusions: tuple[tuple[str, str, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        return {
            "labels": list(self.labels),
            "rows": list(self.rows),
            "error": list(self.error),
            "matrix": None if self.matrix is None else [list(row) for row in self.matrix],
            "confusions": [list(found) for found in self.confusions],
        }


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Prediction minus target in the target's own unit, over rows and refits.

    quantiles: share -> residual. within: multiple of the target's standard deviation on the fitted rows -> share of
    residuals that are no larger. r2: mean over refits.
    """

    bias: float
    sd: float
    quantiles: dict[str, float]
    within: dict[str, float]
    target_sd: float
    r2: float

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        return dict(vars(self))


def class_errors(outputs: Tensor, y: Tensor, classes: Sequence[str]) -> ClassErrors:
    """outputs (K, n, C), y (n,) codes."""
    K, C = len(outputs), len(classes)
    cells = (y * C + outputs.argmax(-1)).flatten()
    matrix = torch.bincount(cells, minlength=C * C).view(C, C).double().cpu().numpy() / K
    rows = np.bincount(y.cpu().numpy(), minlength=C)
    wrong = matrix * (1 - np.eye(C))
    order = np.argsort(-wrong, axis=None, kind="stable")[:LARGEST]
    pairs = [divmod(int(cell), C) for cell in order if wrong.flat[cell] > 0]
    return ClassErrors(
        labels=tuple(classes),
        rows=tuple(rows.tolist()),
        error=tuple(float(w) / n if n else None for w, n in zip(wrong.sum(1), rows.tolist(), strict=True)),
        matrix=tuple(tuple(row) for row in matrix.tolist()) if C <= FULL_MATRIX else None,
        confusions=tuple((classes[i], classes[j], float(wrong[i, j])) for i, j in pairs),
    )


def residuals(outputs: Tensor, y: Tensor, target_sd: float) -> Residuals:
    """outputs (K, n, 1) and y (n,), both standardised."""
    off = ((outputs.squeeze(-1) - y).double() * target_sd).flatten().cpu().numpy()
    return Residuals(
        bias=float(off.mean()),
        sd=float(off.std()),
        quantiles={f"{q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(off, QUANTILES), strict=True)},
        within={f"{share:g}": float(np.mean(np.abs(off) <= share * target_sd)) for share in WITHIN},
        target_sd=target_sd,
        r2=float(score("r2", outputs, y, target_sd).mean()),
    )
