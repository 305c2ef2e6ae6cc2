"""Advice: the lecture's tips (slides "Bag of Tips", "Validation Set"), each checked against the study at hand.

A tip that applies says so with its evidence, and gives advice only as far as what was tried bears it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.diagnosis.effects import Effect, half_width, rise
from tuner.learning.progress import EpochResult
from tuner.space import Range, Space
from tuner.spec import Metric
from tuner.trial import TrialConfig, Value
from tuner.words import points

EDGE = 0.1  # of a range, on its own scale: how near its end a value is at the edge
# What is tried below and above a hyperparameter's value.
_TRIED: Mapping[str, tuple[str, str]] = {
    "learning_rate": ("rate_/3", "rate_x3"),
    "width": ("width_/2", "width_x2"),
    "depth": ("depth_-1", "depth_+1"),
    "weight_decay": ("without_weight_decay", "decay_up"),
    "dropout": ("without_dropout", "dropout_up"),
    "batch_size": ("batch_/2", "batch_x2"),
}


@dataclass(frozen=True, kw_only=True)
class Tip:
    """One tip of the lecture. applies: whether the data show what it warns of; advice: what to do then, if anything."""

    name: str
    tip: str
    applies: bool
    evidence: str
    advice: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        return dict(vars(self))


def tips(
    metric: Metric,
    config: TrialConfig,
    space: Space,
    params: Mapping[str, Value],
    found: Mapping[str, Effect],
    curves: Sequence[Sequence[EpochResult]],
    shift: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
    *,
    level: float,
) -> list[Tip]:
    """Every tip that has something to be checked on in this study."""
    told = _Told(metric, found)
    tips = [_diverging(told, curves, level), *_edges(told, space, params), *_batch_size(told, config)]
    if config.norm == "batch" and config.dropout:
        tips.append(_dropout_with_batch_norm(told))
    if config.optimizer == "adam" and config.weight_decay:
        tips.append(_adamw(told))
    if shift is not None:
        tips.append(_mismatch(metric, shift, evaluation))
    return tips


class _Told:
    """What was tried, in words."""

    def __init__(self, metric: Metric, found: Mapping[str, Effect]) -> None:
        self.metric, self.found = metric, found

    def __call__(self, name: str, what: str) -> str:
        if name not in self.found:
            return f"{what}: not tried"
        return f"{what}: {effect_text(self.metric, self.found[name])}"

    def better(self, name: str) -> bool:
        return name in self.found and self.found[name].verdict == "better"


def effect_text(metric: Metric, effect: Effect) -> str:
    """An effect in one phrase, never more certain than it is.

    >>> effect_text("error", Effect(mean=-0.0031, half_width=0.0009, verdict="better", score=0.02, diverged=0))
    '-0.31 ± 0.09 points, better'
    """
    if effect.verdict == "same":
        return "no effect seen: every answer stays the same"
    if effect.verdict == "diverged":
        return f"cannot be said: {effect.diverged} of its trainings diverged" if effect.diverged else "cannot be said"
    size = points(metric, effect.mean, effect.half_width)
    lost = f" ({effect.diverged} of its trainings diverged)" if effect.diverged else ""
    return f"{'no effect seen, ' if effect.verdict == 'unseen' else ''}{size}" + (
        f"{lost}" if effect.verdict == "unseen" else f", {effect.verdict}{lost}"
    )


def diverging(curves: Sequence[Sequence[EpochResult]], level: float) -> tuple[float, float, int, float] | None:
    """(rise of the validation loss from its lowest epoch to the end, its half-width, that epoch (1-based), fall of the
    training loss meanwhile), over seeds; None with fewer than two.
    """
    kept = [curve for curve in curves if curve and all(map(math.isfinite, (curve[-1].val_loss, curve[-1].train_loss)))]
    if len(kept) < 2:
        return None
    mean, lowest, each = rise([[point.val_loss for point in curve] for curve in kept])
    half = half_width(np.array(each), None, level)
    last = min(map(len, kept)) - 1
    fall = float(np.mean([curve[lowest].train_loss - curve[last].train_loss for curve in kept]))
    return mean, half, lowest + 1, fall


def is_diverging(found: tuple[float, float, int, float] | None) -> bool:
    """Whether the validation loss was seen to rise while the training loss fell."""
    return found is not None and found[0] > found[1] and found[3] > 0


def _diverging(told: _Told, curves: Sequence[Sequence[EpochResult]], level: float) -> Tip:
    tip = "if validation loss diverges while training loss improves, increase weight decay"
    found = diverging(curves, level)
    if found is None:
        return Tip(name="diverging", tip=tip, applies=False, evidence="fewer than two trainings to compare")
    mean, half, lowest, fall = found
    applies = is_diverging(found)
    if not applies:
        evidence = f"not seen: from its lowest epoch to the end validation loss moves by {mean:+.2g} ± {half:.1g}"
        return Tip(name="diverging", tip=tip, applies=False, evidence=evidence)
    evidence = (
        f"from epoch {lowest} to the end validation loss rises by {mean:.2g} ± {half:.1g} while training loss falls by "
        f"{fall:.2g}"
    )
    raised = [name for name in ("decay_up", "decay_up_more") if told.better(name)]
    if raised:
        best = min(raised, key=lambda name: -abs(told.found[name].mean))
        advice = f"raise weight decay; {told(best, 'tried')}"
    else:
        tried = "; ".join([told("decay_up", "a larger one"), told("decay_up_more", "a still larger one")])
        advice = f"the tip is to raise weight decay, which was not seen to help: {tried}"
    return Tip(name="diverging", tip=tip, applies=True, evidence=evidence, advice=advice)


def _edges(told: _Told, space: Space, params: Mapping[str, Value]) -> Iterator[Tip]:
    """Every searched range that the winner lies at an end of, and of the learning rate in any case."""
    for name, domain in space.searched.items():
        value = params.get(name)
        if not isinstance(domain, Range) or value is None or (domain.or_zero and value == 0):
            continue
        try:
            u = domain.to_unit(value)
        except ValueError:  # the rounding of another library's arithmetic, at an end of the range
            u = 0.0 if float(value) <= domain.low else 1.0
        u = 2 * u - 1 if domain.or_zero else u
        low, high = u < EDGE, u > 1 - EDGE
        at = f"{name} {value:.3g} in [{domain.low:g}, {domain.high:g}]"
        tip = f"the best {name} should lie inside its range, on a log scale where that fits"
        if not (low or high):
            if name == "learning_rate":
                yield Tip(name="edge_learning_rate", tip=tip, applies=False, evidence=f"{at} lies inside")
            continue
        side, tried = ("lower", 0) if low else ("upper", 1)
        beyond = _TRIED.get(name, ("", ""))[tried]
        evidence = f"{at} lies at the {side} edge; {told(beyond, 'beyond it')}"
        verdict = told.found[beyond].verdict if beyond in told.found else None
        if verdict == "better":
            advice = f"widen the range of {name} {'downwards' if low else 'upwards'} and search on"
        elif verdict is None:
            advice = f"widen the range of {name} to see"
        else:
            advice = None
        yield Tip(name=f"edge_{name}", tip=tip, applies=True, evidence=evidence, advice=advice)


def _batch_size(told: _Told, config: TrialConfig) -> Iterator[Tip]:
    """η′ = η·b′/b: a batch of another size with the learning rate in step should do as well."""
    larger = told.found.get("batch_x2")
    if larger is None and "batch_/2" not in told.found:
        return
    tip = "use the largest batch size that does as well, with the learning rate in proportion: η′ = η·b′/b"
    b = config.batch_size
    evidence = "; ".join(
        told(name, f"batch size {size} with η in proportion")
        for name, size in (("batch_/2", b // 2), ("batch_x2", 2 * b))
        if name in told.found
    )
    advice = None
    if told.better("batch_/2"):
        advice = f"try batch sizes below {b}"
    elif told.better("batch_x2"):
        advice = f"try batch sizes above {b}, the learning rate in proportion"
    yield Tip(name="batch_size", tip=tip, applies=advice is not None, evidence=evidence, advice=advice)


def _dropout_with_batch_norm(told: _Told) -> Tip:
    evidence = f"{told('without_dropout', 'without dropout')}; {told('without_norm', 'without batch norm')}"
    parts = {"without_dropout": "dropout", "without_norm": "batch norm"}
    better = [part for name, part in parts.items() if told.better(name)]
    advice = f"drop {' or '.join(better)}" if better else None
    return Tip(
        name="dropout_with_batch_norm",
        tip="avoid using dropout with batch normalisation",
        applies=True,
        evidence=evidence,
        advice=advice,
    )


def _adamw(told: _Told) -> Tip:
    return Tip(
        name="adamw",
        tip="with Adam, use AdamW instead of standard weight decay",
        applies=True,
        evidence=told("adamw", "AdamW with the same η and λ"),
        advice="use optimizer = adamw" if told.better("adamw") else None,
    )


def _mismatch(metric: Metric, shift: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> Tip:
    evidence = str(shift["sentence"])
    if evaluation is not None and (test := evaluation["test"])["mean"] is not None:
        moved = evaluation["gap_test_validation"]
        evidence += (
            f"; test {metric} {test['mean']:.4g} ({test['low']:.4g} to {test['high']:.4g}) against the winner's "
            f"optimistic validation {evaluation['validation']:.4g} ({moved:+.2g})"
        )
    return Tip(
        name="mismatch",
        tip="validation and test sets should come from the same distribution",
        applies=bool(shift["shifted"]),
        evidence=evidence,
        advice="give both the same kind of rows" if shift["shifted"] and not shift["by_time"] else None,
    )
