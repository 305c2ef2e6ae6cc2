"""Variants: the winner with one thing changed. Each is a question that training it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuner.trial import TrialConfig

Group = Literal["winner", "without", "capacity", "regularization", "training", "data"]
Role = Literal["constrains", "frees", "other"]

FRACTIONS = (1 / 8, 1 / 4, 1 / 2)  # of the training rows, for the learning curve
FEWEST_ROWS = 16  # that a learning curve begins at
WIDEST = 512  # up to which four times the width is tried: beyond, it costs more than it tells
MORE_DROPOUT = 0.2
MOST_DROPOUT = 0.8


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One change to the winner.

    name: unique, for machines; title: for people. role: whether it constrains the network (to less capacity, more
    regularization, shorter training), frees it, or neither. fraction: of the training rows.
    """

    name: str
    group: Group
    title: str
    role: Role
    config: TrialConfig
    fraction: float = 1.0


def variants(winner: TrialConfig, *, rows: int, classes: bool) -> list[Variant]:
    """The winner itself first, then every change worth trying. rows: to train on; classes: of a classification."""
    found = [Variant(name="winner", group="winner", title="the winner", role="other", config=winner)]
    for part in (_without(winner), _capacity(winner), _regularization(winner, rows, classes), _training(winner, rows)):
        found += part
    found += [_on_fewer_rows(winner, fraction) for fraction in FRACTIONS if fraction * rows >= FEWEST_ROWS]
    return found


def _without(winner: TrialConfig) -> Iterator[Variant]:
    """Each regularizer that the winner has, left out."""

    def left_out(name: str, title: str, role: Role = "frees", **changes: Any) -> Variant:
        config = replace(winner, **changes)
        return Variant(name=f"without_{name}", group="without", title=title, role=role, config=config)

    if winner.dropout:
        yield left_out("dropout", f"dropout ({winner.dropout:.3g})", dropout=0.0)
    if winner.input_dropout:
        yield left_out("input_dropout", f"input dropout ({winner.input_dropout:.3g})", input_dropout=0.0)
    if winner.weight_decay:
        yield left_out("weight_decay", f"weight decay λ ({winner.weight_decay:.3g})", weight_decay=0.0)
    if winner.l2:
        yield left_out("l2", f"l2 penalty ({winner.l2:.3g})", l2=0.0)
    if winner.label_smoothing:
        yield left_out("label_smoothing", f"label smoothing ({winner.label_smoothing:.3g})", label_smoothing=0.0)
    if winner.averaging != "none":
        yield left_out("averaging", winner.averaging.upper(), "other", averaging="none")
    if winner.patience:
        title = f"early stopping (patience {winner.patience})"
        yield left_out("early_stopping", title, patience=0, keep="last")
    elif winner.keep == "best":
        yield left_out("early_stopping", "keeping the best epoch", keep="last")
    if winner.norm != "none":
        yield left_out("norm", f"{winner.norm} norm", "other", norm="none")
    if winner.clip_norm:
        yield left_out("clip_norm", f"gradient clipping ({winner.clip_norm:.3g})", "other", clip_norm=0.0)


def _capacity(winner: TrialConfig) -> Iterator[Variant]:
    """A sweep of the width around the winner, and one layer more and less."""

    def changed(name: str, role: Role, title: str, **changes: Any) -> Variant:
        return Variant(name=name, group="capacity", title=title, role=role, config=replace(winner, **changes))

    width, depth = winner.width, winner.depth
    for divisor in (4, 2):
        if width >= divisor:
            yield changed(
                f"width_/{divisor}", "constrains", f"width {width} → {width // divisor}", width=width // divisor
            )
    for factor in (2, 4):
        if factor == 2 or factor * width <= WIDEST:
            yield changed(f"width_x{factor}", "frees", f"width {width} → {factor * width}", width=factor * width)
    if depth > 1:
        yield changed("depth_-1", "constrains", f"depth {depth} → {depth - 1}", depth=depth - 1)
    yield changed("depth_+1", "frees", f"depth {depth} → {depth + 1}", depth=depth + 1)


def _regularization(winner: TrialConfig, rows: int, classes: bool) -> Iterator[Variant]:
    """More of each regularizer that any network takes."""

    def more(name: str, title: str, **changes: Any) -> Variant:
        config = replace(winner, **changes)
        return Variant(name=name, group="regularization", title=title, role="constrains", config=config)

    now, first = winner.weight_decay, shrinking_decay(winner, rows)
    for name, decay in (("decay_up", max(3 * now, first)), ("decay_up_more", 10 * max(now, first))):
        yield more(name, f"weight decay λ {now:.3g} → {decay:.3g}", weight_decay=decay)
    if winner.dropout + MORE_DROPOUT <= MOST_DROPOUT:
        dropout = round(winner.dropout + MORE_DROPOUT, 4)
        yield more("dropout_up", f"dropout {winner.dropout:.3g} → {dropout:.3g}", dropout=dropout)
    if classes and winner.loss in ("auto", "cross_entropy") and not winner.label_smoothing:
        yield more("smoothing", "label smoothing 0 → 0.1", label_smoothing=0.1)


def shrinking_decay(config: TrialConfig, rows: int) -> float:
    """The λ, of one digit, that shrinks weights by a factor of about e over a training at a constant learning rate.

    Each step multiplies them by 1 - ηλ (slide "Weight Decay"), by 1 - λ where η does not scale it, and momentum makes
    1/(1 - momentum) as much of a gradient. Adam and RMSProp divide λθ by the size of the gradient: there what λ
    does is known less well.

    >>> config = TrialConfig(learning_rate=0.01, batch_size=10, width=1, depth=1, max_epochs=50)
    >>> shrinking_decay(config, rows=100)
    0.2
    """
    steps = config.max_epochs * -(-rows // config.batch_size)
    rate = 1.0 if config.optimizer == "adamw_decoupled" else config.peak_learning_rate(rows)
    if config.optimizer in ("sgd", "nesterov"):
        rate /= 1 - config.momentum
    return float(f"{1 / (rate * steps):.1g}")


def _training(winner: TrialConfig, rows: int) -> Iterator[Variant]:
    """The length of the training, the learning rate, and the batch size with the learning rate in step with it."""

    def changed(name: str, title: str, role: Role = "other", **changes: Any) -> Variant:
        return Variant(name=name, group="training", title=title, role=role, config=replace(winner, **changes))

    epochs, rate, batch = winner.max_epochs, winner.learning_rate, winner.batch_size
    if epochs > 1:
        yield changed("epochs_/2", f"epochs {epochs} → {epochs // 2}", "constrains", max_epochs=epochs // 2)
    yield changed("epochs_x2", f"epochs {epochs} → {2 * epochs}", "frees", max_epochs=2 * epochs)
    for name, other in (("rate_/3", rate / 3), ("rate_x3", rate * 3)):
        yield changed(name, f"learning rate {rate:.3g} → {other:.3g}", learning_rate=other)
    # η′ = η·b′/b (slide "Bag of Tips"); with a reference batch size the trial's own rule does the same.
    slower, faster = (rate, rate) if winner.reference_batch_size else (rate / 2, 2 * rate)
    if batch >= 2:
        title = f"batch size {batch} → {batch // 2}, η in proportion"
        yield changed("batch_/2", title, batch_size=batch // 2, learning_rate=slower)
    if 2 * batch <= rows:
        title = f"batch size {batch} → {2 * batch}, η in proportion"
        yield changed("batch_x2", title, batch_size=2 * batch, learning_rate=faster)
    if winner.optimizer == "adam" and winner.weight_decay:
        yield changed("adamw", "Adam → AdamW", optimizer="adamw")


def _on_fewer_rows(winner: TrialConfig, fraction: float) -> Variant:
    """The winner trained on a fraction of the rows, for as many steps: fewer rows, not less training."""
    times = round(1 / fraction)
    config = replace(
        winner,
        max_epochs=winner.max_epochs * times,
        patience=winner.patience * times,
        decay=winner.decay**fraction if winner.schedule == "exponential" else winner.decay,
        decay_epochs=winner.decay_epochs * times,
    )
    name = f"rows_/{times}"
    return Variant(
        name=name, group="data", title=f"1/{times} of the training rows", role="other", config=config, fraction=fraction
    )
