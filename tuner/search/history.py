"""History: what the trials of a study have come to so far, for those who learn from it (TPE, coarse to fine)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tuner.spec import Direction
from tuner.trial import Value


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One trial that has its parameters.

    params: every hyperparameter. value: of the last rung it reached, NaN or infinite when it diverged, None before
    there is one. epochs: trained when it was judged by that value. complete: it was trained to its end.
    """

    number: int
    params: Mapping[str, Value]
    value: float | None = None
    epochs: int = 0
    complete: bool = False

    @property
    def judged(self) -> bool:
        """Whether there is anything to learn: a value, or that it diverged."""
        return self.value is not None


def ranked(history: Iterable[Observation], direction: Direction) -> list[Observation]:
    """The judged trials, best first: complete ones, then the others by epochs, longest first, then the diverged ones.

    Values after different epochs do not compare, so a trial that went on ranks above one that did not, as in Optuna.

    >>> trials = [Observation(number=i, params={}, value=v, epochs=e) for i, (v, e) in enumerate([(0.1, 1), (0.5, 3)])]
    >>> [trial.number for trial in ranked(trials, "minimize")]
    [1, 0]
    """
    sign = 1 if direction == "minimize" else -1

    def key(trial: Observation) -> tuple[bool, bool, int, float, int]:
        assert trial.value is not None
        finite = math.isfinite(trial.value)
        longest = 0 if trial.complete else -trial.epochs
        return not finite, not trial.complete, longest, sign * trial.value if finite else 0.0, trial.number

    return sorted((trial for trial in history if trial.judged), key=key)
