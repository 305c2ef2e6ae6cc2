"""Preprocessing: what is learnt from the train rows alone and then applied to all (lecture, slide "Input
Normalization").

Shapes: ``n`` rows, ``D`` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import StandardScaler

from tuner.errors import DataError
from tuner.trial import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Preprocessing:
    """Fitted by :meth:`fit`; x becomes (x - mean) / sd, the sd being the population's (divisor n).

    feature_mean, feature_sd: (D,) float64. A feature that is constant on the train rows has sd 0 and becomes zero in
    every part: nothing could be learnt about it, so a new value of it must not move a prediction.
    target_mean, target_sd: the regression target's; 0 and 1 for classification, whose codes are left alone.
    """

    task: Task
    feature_names: tuple[str, ...]
    target_name: str
    feature_mean: npt.NDArray[np.float64]
    feature_sd: npt.NDArray[np.float64]
    target_mean: float
    target_sd: float

    @classmethod
    def fit(
        cls,
        features: npt.NDArray[np.float64],
        target: npt.NDArray[Any],
        *,
        task: Task,
        feature_names: Sequence[str],
        target_name: str,
    ) -> Preprocessing:
        """Fit on train rows: ``features`` (n, D), ``target`` (n,). Both finite.

        Raises DataError when the regression target is constant, or numbers are so large that their variance is not.
        """
        mean, sd = _mean_sd(features, [f"column {name!r}" for name in feature_names])
        target_mean, target_sd = 0.0, 1.0
        if task == "regression":
            means, sds = _mean_sd(np.asarray(target, dtype=np.float64)[:, None], [f"target {target_name!r}"])
            target_mean, target_sd = float(means[0]), float(sds[0])
            if target_sd == 0:
                raise DataError(
                    f"target {target_name!r} is constant on the train rows ({target_mean:g} in all {len(target)}), "
                    f"so there is nothing to learn; choose another target, or give more rows"
                )
        return cls(
            task=task,
            feature_names=tuple(feature_names),
            target_name=target_name,
            feature_mean=mean,
            feature_sd=sd,
            target_mean=target_mean,
            target_sd=target_sd,
        )

    def transform(self, features: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """(n, D) as read to (n, D) float32 standardised, C-contiguous; computed in float64.

        Raises DataError when a value is so far from the train rows that float32 cannot hold it.
        """
        constant = self.feature_sd == 0
        with np.errstate(over="ignore"):
            scaled = (features - self.feature_mean) / np.where(constant, 1.0, self.feature_sd)
            scaled[:, constant] = 0.0
            result = np.ascontiguousarray(scaled, dtype=np.float32)
        wrong = np.flatnonzero(~np.isfinite(result).all(axis=0))
        if wrong.size:
            _refuse_far(f"column {self.feature_names[wrong[0]]!r}", features[:, wrong[0]])
        return result

    def transform_target(self, target: npt.NDArray[Any]) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
        """(n,) as read to (n,) int64 codes, or to (n,) float32 standardised values for regression.

        Raises DataError as :meth:`transform` does.
        """
        if self.task == "classification":
            return target.astype(np.int64)
        with np.errstate(over="ignore"):
            result = ((target - self.target_mean) / self.target_sd).astype(np.float32)
        if not np.isfinite(result).all():
            _refuse_far(f"target {self.target_name!r}", target)
        return result


def _mean_sd(
    columns: npt.NDArray[np.float64], called: Sequence[str]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(D,) means and standard deviations of (n, D); exactly 0 for a column that is constant up to rounding."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaler = StandardScaler().fit(columns)
    sd = np.sqrt(scaler.var_)
    sd[scaler.scale_ != sd] = 0.0  # scikit-learn found the column constant and put 1 for its scale
    wrong = np.flatnonzero(~np.isfinite(scaler.mean_) | ~np.isfinite(scaler.var_))
    if wrong.size:
        _refuse_far(called[wrong[0]], columns[:, wrong[0]])
    return scaler.mean_, sd


def _refuse_far(called: str, values: npt.NDArray[Any]) -> None:
    largest = float(values[np.argmax(np.abs(values))])
    raise DataError(
        f"{called} cannot be standardised: {largest:g} is too large a number; rescale it, or take its logarithm"
    )
