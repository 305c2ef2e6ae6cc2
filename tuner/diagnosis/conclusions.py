"""Conclusions: what follows from what the trained networks answer, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tuner.diagnosis.advice import Tip, diverging, effect_text, is_diverging, tips
from tuner.diagnosis.effects import Effect, difference_interval, effects, finite, half_width
from tuner.diagnosis.probes import Probes
from tuner.diagnosis.variants import Variant
from tuner.learning.metrics import score
from tuner.learning.resampling import Floats, interval
from tuner.refits import Member
from tuner.spec import METRICS, Metric, StudySpec
from tuner.words import points

LARGE = 0.5  # share of the validation loss that is gap, from which on the gap is called overfitting

Fit = Literal["overfitting", "underfitting", "gap", "balanced", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One variant and its effect. train: its mean score on its own training rows; better_train: whether that is better
    than the winner's by more than seeds explain. rows: it trains on.
    """

    variant: Variant
    effect: Effect
    train: float
    better_train: bool
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        variant = {key: getattr(self.variant, key) for key in ("name", "group", "title", "role", "fraction")}
        mean, half = self.effect.mean, self.effect.half_width
        told = {"low": mean - half, "high": mean + half, "seen": self.effect.seen}
        return {**variant, **asdict(self.effect), **told, "train": self.train, "rows": self.rows}


def conclude(
    spec: StudySpec,
    best: Member,
    tried: Sequence[Variant],
    probes: Probes,
    *,
    shift: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The diagnosis as one record. tried: the winner first. shift: what :func:`check_shift` found."""
    metric, confidence = spec.study.metric, spec.final.confidence
    own, *changes = tried
    level = 1 - confidence
    found = effects(
        metric,
        probes.validation[own.name],
        {variant.name: probes.validation[variant.name] for variant in changes},
        probes.y,
        level=level / len(changes),
        target_sd=probes.target_sd,
    )
    trained = probes.train_scores
    findings = [
        Finding(
            variant=variant,
            effect=found[variant.name],
            train=_mean(trained[variant.name]),
            better_train=_better_train(metric, trained[variant.name], trained[own.name], level / len(changes)),
            rows=probes.rows[variant.name],
        )
        for variant in changes
    ]
    fit = _fit(spec, probes, findings)
    checked = tips(
        metric, best.config, spec.search_space, best.params, found, probes.curves, shift, evaluation, level=level
    )
    return {
        "winner": {"trial": best.trial, "params": dict(best.params), "validation": best.value},
        "metric": metric,
        "direction": spec.direction,
        "seeds": len(probes.curves),
        "validation_rows": len(probes.y),
        "confidence": confidence,
        "comparisons": len(changes),
        "fit": {**fit, "test": None if evaluation is None else dict(evaluation["test"])},
        "questions": _questions(metric, findings),
        "effects": [finding.as_dict() for finding in findings],
        "learning_curve": _learning_curve(findings, fit, probes.rows[own.name]),
        "curves": _mean_curves(probes),
        "tips": [tip.as_dict() for tip in checked],
        "advice": _advice(metric, findings, checked),
    }


def _mean(scores: Floats) -> float:
    """Over the seeds that did not diverge."""
    kept = scores[np.isfinite(scores)]
    return float(kept.mean()) if len(kept) else math.nan


def _better_train(metric: Metric, scores: Floats, own: Floats, level: float) -> bool:
    """Whether a change fits its training rows better than the winner fits its own, by more than seeds explain."""
    differences = scores - own
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return False
    mean = float(differences.mean()) * (1 if METRICS[metric].direction == "minimize" else -1)
    return mean < -half_width(differences, None, level)


def _fit(spec: StudySpec, probes: Probes, findings: Sequence[Finding]) -> dict[str, Any]:
    """Under- or overfitting (slide "Model Complexity Trade-Off").

    Underfitting: a change that frees the network fits train and validation better. Overfitting: validation is worse
    than train, and a change that constrains the network is better on validation, or its loss rises while that of train
    falls, or the gap is the larger part of the validation loss. A gap with none of these is just called that.
    """
    metric, confidence = spec.study.metric, spec.final.confidence
    minimize = METRICS[metric].direction == "minimize"
    measured = {"train": probes.train, "validation": (probes.validation["winner"], probes.y)}
    usable = finite(probes.train[0]) & finite(probes.validation["winner"])
    if not usable.any():
        nothing = {"mean": math.nan, "low": math.nan, "high": math.nan}
        parts = {part: {**nothing, "rows": len(y)} for part, (_, y) in measured.items()}
        why = "it diverges from every seed: its learning rate may be too high"
        return {"verdict": "unknown", "why": why, **parts, "gap": {**nothing, "seen": False}, "diverged": len(usable)}
    parts = {}
    for part, (outputs, y) in measured.items():
        mean = float(score(metric, outputs[usable], y, probes.target_sd).mean())
        low, high = interval(outputs[usable], y, metric, confidence, target_sd=probes.target_sd, seed=spec.study.seed)
        parts[part] = {"mean": mean, "low": low, "high": high, "rows": len(y)}
    on_val, on_train = ((parts[p]["mean"], parts[p]["low"], parts[p]["high"]) for p in ("validation", "train"))
    gap, low, high = difference_interval(on_val, on_train)
    worse, is_gap = (gap, low > 0) if minimize else (-gap, high < 0)
    verdict, why = _verdict(
        metric,
        findings,
        is_gap=is_gap,
        share=worse / max(on_val[0] if minimize else 1 - on_val[0], 1e-300),
        rising=is_diverging(diverging(probes.curves, 1 - confidence)),
    )
    told = {"mean": gap, "low": low, "high": high, "seen": is_gap}
    return {"verdict": verdict, "why": why, **parts, "gap": told, "diverged": int((~usable).sum())}


def _verdict(
    metric: Metric, findings: Sequence[Finding], *, is_gap: bool, share: float, rising: bool
) -> tuple[Fit, str]:
    """The verdict and its reason. share: of the validation loss that is gap."""
    better = [f for f in findings if f.effect.verdict == "better"]
    held = max((f for f in better if f.variant.role == "constrains"), key=_size, default=None)
    freed = max((f for f in better if f.variant.role == "frees" and f.better_train), key=_size, default=None)
    if freed is not None and (held is None or _size(freed) >= _size(held)):
        return "underfitting", (
            f"it could fit its training rows better, and would do better on validation: {_told(metric, freed)}"
        )
    if is_gap and (held is not None or rising or share > LARGE):
        reasons = [f"held back it does better: {_told(metric, held)}"] if held is not None else []
        if rising:
            reasons.append("its validation loss rises while its training loss falls")
        if share > LARGE:
            part = "all" if share > 0.995 else f"{100 * share:.0f} %"
            short = "" if METRICS[metric].direction == "minimize" else "what is missing to 1 in "
            reasons.append(f"the gap to train is {part} of {short}its validation {metric}")
        return "overfitting", "; ".join(reasons)
    if is_gap:
        return "gap", "nothing that was tried shows harm in that"
    return "balanced", "no gap between train and validation was seen, and freeing it was not seen to help"


def _size(finding: Finding) -> float:
    return abs(finding.effect.mean)


def _told(metric: Metric, finding: Finding) -> str:
    return f"{_title(finding)}: {effect_text(metric, finding.effect)}"


def _title(finding: Finding) -> str:
    return f"{'without ' if finding.variant.group == 'without' else ''}{finding.variant.title}"


def _harm(metric: Metric, finding: Finding) -> float:
    """How much worse a change is, by its estimate alone; infinite where there is none."""
    mean = finding.effect.mean if METRICS[metric].direction == "minimize" else -finding.effect.mean
    return math.inf if math.isnan(mean) else mean


def _questions(metric: Metric, findings: Sequence[Finding]) -> dict[str, dict[str, str]]:
    """Whether more data, capacity or regularization would help, or less of it: each with its best evidence."""
    answers = {}
    for finding in findings:
        if finding.variant.name == "rows_/2":
            answers["more data"] = _more_data(metric, finding.effect)
    asked = {
        "more capacity": [f for f in findings if f.variant.group == "capacity" and f.variant.role == "frees"],
        "less capacity": [f for f in findings if f.variant.group == "capacity" and f.variant.role == "constrains"],
        "more regularization": [f for f in findings if f.variant.group == "regularization"],
        "less regularization": [f for f in findings if f.variant.group == "without"],
        "longer training": [f for f in findings if f.variant.name == "epochs_x2"],
    }
    for question, some in asked.items():
        if not some:
            continue
        best = min(some, key=lambda f: (f.effect.verdict != "better", _harm(metric, f)))
        if best.effect.verdict == "better":
            answer = "yes"
        else:
            answer = "no" if all(f.effect.verdict == "worse" for f in some) else "unseen"
        told = _told(metric, best)
        if answer == "unseen" and best.effect.verdict == "unseen":
            told = f"at best {_title(best)}: {points(metric, best.effect.mean, best.effect.half_width)}"
        answers[question] = {"answer": answer, "evidence": told}
    return answers


def _more_data(metric: Metric, half: Effect) -> dict[str, str]:
    """From the effect of half of the training rows: what the other half brought."""
    if half.verdict == "diverged":
        return {"answer": "unknown", "evidence": "trained on half of the rows it diverges"}
    answer = {"worse": "yes", "better": "no"}.get(half.verdict, "unseen")
    return {"answer": answer, "evidence": f"the second half of the training rows brought {_brought(metric, half)}"}


def _brought(metric: Metric, half: Effect) -> str:
    return points(metric, -half.mean, half.half_width)


def _learning_curve(findings: Sequence[Finding], fit: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """Scores against training rows. half_width: of the difference to all rows; None for all of them."""
    parts = [
        {"rows": f.rows, "validation": f.effect.score, "train": f.train, "half_width": f.effect.half_width}
        for f in findings
        if f.variant.group == "data"
    ]
    whole = {"rows": rows, "validation": fit["validation"]["mean"], "train": fit["train"]["mean"], "half_width": None}
    return [*parts, whole]


def _mean_curves(probes: Probes) -> dict[str, list[float]]:
    """The winner's losses epoch by epoch, means over the seeds that did not diverge, as far as all of them trained."""
    kept = [curve for curve in probes.curves if curve and math.isfinite(curve[-1].val_loss + curve[-1].train_loss)]
    length = min(map(len, kept), default=0)
    table = np.array([[(p.train_loss, p.val_loss) for p in curve[:length]] for curve in kept]).reshape(-1, length, 2)
    means = table.mean(0).tolist() if length else []
    return {"train_loss": [train for train, _ in means], "val_loss": [val for _, val in means]}


def _advice(metric: Metric, findings: Sequence[Finding], checked: Sequence[Tip]) -> list[str]:
    """What to do: every change that was seen to help, the largest first; then what the tips add."""
    better = sorted((f for f in findings if f.effect.verdict == "better"), key=_size, reverse=True)
    lines = [_told(metric, f) for f in better]
    for f in findings:
        if f.variant.name == "rows_/2" and f.effect.verdict == "worse":
            lines.append(f"collect more rows: the second half of those there are brought {_brought(metric, f.effect)}")
    return lines + [f"{tip.advice} ({tip.tip})" for tip in checked if tip.advice and tip.name != "diverging"]
