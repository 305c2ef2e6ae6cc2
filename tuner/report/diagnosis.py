"""The text of a diagnosis: what it found, with how sure it is, in the order an engineer asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.report.layout import count, duration, indented, number, pairs, table
from tuner.words import points

Record = Mapping[str, Any]

HEADS = {
    "overfitting": "It overfits.",
    "underfitting": "It underfits.",
    "gap": "It does better on train than on validation.",
    "balanced": "Neither under- nor overfitting was seen.",
    "unknown": "Nothing can be said about its fit.",
}
GROUPS = {
    "without": "what each regularizer does: the winner minus the winner without it",
    "capacity": "other capacity, minus the winner",
    "regularization": "more regularization, minus the winner",
    "training": "other training, minus the winner",
    "data": "fewer training rows for as many steps, minus the winner",
}
_WORDS = {"better": "helps", "worse": "hurts", "unseen": "no effect seen", "same": "no effect seen: nothing changes"}


def diagnosis_text(diagnosis: Record) -> str:
    """The whole diagnosis."""
    parts = [head(diagnosis), pairs(fit_lines(diagnosis), indent=""), pairs(question_lines(diagnosis), indent="")]
    for group, title in GROUPS.items():
        if rows := effect_rows(diagnosis, group):
            parts.append(f"{title}\n{indented(table(['', diagnosis['metric'], ''], rows))}")
    if tips := tip_lines(diagnosis):
        parts.append("the lecture's tips, checked\n" + indented("\n".join(tips)))
    advice = diagnosis["advice"] or ["nothing that was tried is seen to be better than the winner"]
    parts.append("do this\n" + indented("\n".join(f"- {line}" for line in advice)))
    return "\n\n".join([*parts, caution(diagnosis)])


def signed(value: float | None) -> str:
    """
    >>> signed(0.01234), signed(None)
    ('+0.01234', '-')
    """
    return "-" if value is None else f"{value:+.4g}"


def head(diagnosis: Record) -> str:
    """The verdict in a sentence or two."""
    fit = diagnosis["fit"]
    return f"{diagnosis['study']}: {HEADS[fit['verdict']]} {fit['why'][:1].upper()}{fit['why'][1:]}."


def fit_lines(diagnosis: Record) -> dict[str, str]:
    """Train, validation, the gap, and test where it was opened."""
    fit, metric = diagnosis["fit"], diagnosis["metric"]
    level = f"{100 * diagnosis['confidence']:g} % interval"
    lines = {}
    for part in ("train", "validation"):
        found = fit[part]
        told = f"{number(found['mean'])}, {level} {number(found['low'])} to {number(found['high'])}"
        lines[f"{part} {metric}"] = f"{told}, {count(found['rows'], 'row')}"
    if fit["gap"]["mean"] is not None:
        found = fit["gap"]
        seen = "" if found["seen"] else ": it may be none"
        told = f"{signed(found['mean'])}, {level} {signed(found['low'])} to {signed(found['high'])}"
        lines["gap"] = f"validation - train {told}{seen}"
    if fit["test"] is not None:
        test = fit["test"]
        told = f"{number(test['mean'])}, {level} {number(test['low'])} to {number(test['high'])}"
        lines[f"test {metric}"] = f"{told}, as evaluated before"
    return lines


def question_lines(diagnosis: Record) -> dict[str, str]:
    """Would more data, capacity, regularization or training help?"""
    told = {"yes": "yes", "no": "no", "unseen": "no effect seen", "unknown": "cannot be said"}
    return {f"{key}?": f"{told[found['answer']]}; {found['evidence']}" for key, found in diagnosis["questions"].items()}


def effect_rows(diagnosis: Record, group: str) -> list[list[str]]:
    """What, how much, and whether it helps: the rows of one group."""
    metric, rows = diagnosis["metric"], []
    for effect in diagnosis["effects"]:
        if effect["group"] != group:
            continue
        if effect["verdict"] == "diverged":
            rows.append([effect["title"], "-", f"{effect['diverged']} of {diagnosis['seeds']} trainings diverged"])
            continue
        mean, verdict = effect["mean"], effect["verdict"]
        if group == "without":  # what the regularizer does is the other way round
            mean, verdict = -mean, {"better": "worse", "worse": "better"}.get(verdict, verdict)
        word = _WORDS[verdict]
        if effect["diverged"]:
            word += f"; {effect['diverged']} of {diagnosis['seeds']} trainings diverged"
        rows.append([effect["title"], points(metric, mean, effect["half_width"]), word])
    return rows


def tip_lines(diagnosis: Record) -> list[str]:
    """Each tip with its evidence; those that apply first."""
    tips = sorted(diagnosis["tips"], key=lambda tip: not tip["applies"])
    return [
        f"{'!' if tip['applies'] else '·'} {tip['tip']}\n    {tip['evidence']}"
        + (f"\n    {tip['advice']}" if tip["advice"] else "")
        for tip in tips
    ]


def caution(diagnosis: Record) -> str:
    """How it was measured, and what it is worth."""
    seeds = count(diagnosis["seeds"], "seed")
    return (
        f"Trial {diagnosis['winner']['trial']} and each change trained from the same {seeds}, compared on the same "
        f"{count(diagnosis['validation_rows'], 'validation row')}.\n"
        f"All ± hold together with {100 * diagnosis['confidence']:g} %: where no change has an effect, at most "
        f"{100 * (1 - diagnosis['confidence']):.3g} % of diagnoses claim one.\n"
        "The winner was picked on these rows, so it has a small head start. The test set stayed sealed. "
        f"Took {duration(diagnosis['seconds'])}."
    )
