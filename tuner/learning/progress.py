"""How far a trial is and how well it does: pure bookkeeping shared by the plain and the fused trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.trial import TrialConfig


class EpochInterruptedError(Exception):
    """Training was told to stop in the middle of an epoch, whose lanes are good for nothing now."""


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What one epoch of one trial measured. Losses are means over rows; ``value`` is the study's metric.

    train_loss: over the epoch's own training batches (dropout on, weights moving, label smoothing in).
    val_loss, value: on the validation rows with the weights after the epoch.
    """

    epoch: int
    train_loss: float
    val_loss: float
    value: float


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A trial's state besides its tensors. ``best_epoch`` 0 means that no epoch has been judged yet."""

    epoch: int = 0
    value: float = math.nan
    best_value: float = math.nan
    best_epoch: int = 0
    diverged: bool = False

    def advance(self, result: EpochResult, *, maximize: bool) -> Progress:
        """After one more epoch. A loss that is not finite means the trial has diverged, for good."""
        if not all(map(math.isfinite, (result.train_loss, result.val_loss, result.value))):
            return Progress(
                epoch=result.epoch,
                value=math.nan,
                best_value=self.best_value,
                best_epoch=self.best_epoch,
                diverged=True,
            )
        better = self.best_epoch == 0 or (
            result.value > self.best_value if maximize else result.value < self.best_value
        )
        return Progress(
            epoch=result.epoch,
            value=result.value,
            best_value=result.value if better else self.best_value,
            best_epoch=result.epoch if better else self.best_epoch,
        )

    def stopped(self, config: TrialConfig) -> bool:
        """Whether training is over for good: at the horizon, diverged, or out of patience."""
        out_of_patience = config.patience > 0 and self.epoch - self.best_epoch >= config.patience
        return self.epoch >= config.max_epochs or self.diverged or out_of_patience

    def judged_value(self, config: TrialConfig) -> float:
        """The metric of the weights that would be kept; NaN for a diverged trial, whichever weights it keeps."""
        if self.diverged:
            return math.nan
        return self.best_value if config.keep == "best" else self.value
