"""Implicit regularization: optimizers that fit the same rows equally well, and what they make of all others.

Each optimizer trains the winner's network, without regularizers and with the square loss, from the same initial weights
until the training loss falls to one and the same value, where every row is right. What differs then is which minimum it
came to: the error on held-out rows, and how sharp the minimum is (slide: a flat minimum typically generalizes better;
Keskar et al., ICLR 2017; Jiang et al., "Fantastic Generalization Measures", ICLR 2020, for stopping at equal loss).
Of the square loss the Hessian does not vanish where rows are fitted, as it does with the cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Lab
from tuner.demonstrations.seeds import certain, standard_error
from tuner.drawing import COLOURS, Figure, styled
from tuner.learning.device import DeviceData
from tuner.learning.lanes import Pack
from tuner.model import module_of
from tuner.theory.loss import flat_loss
from tuner.theory.sharpness import largest_eigenvalue, sam_sharpness, trace
from tuner.trial import Optimizer, TrialConfig

TITLE = "Equal training error, other minima"
SLIDE = "Implicit Regularization"

TARGET = 3e-4  # training loss at which every training ends
SEEDS = 5
SAMPLES = 32  # of Hutchinson's estimator
CHANCE = 0.05  # probability of the rank correlation by chance, at most


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train. batch 0: all rows. epochs: at most."""

    name: str
    optimizer: Optimizer
    momentum: float
    batch: int
    rate: float
    epochs: int


WAYS = (
    Way(name="SGD, batch 8", optimizer="sgd", momentum=0.0, batch=8, rate=0.3, epochs=600),
    Way(name="SGD, batch 8, large η", optimizer="sgd", momentum=0.0, batch=8, rate=0.8, epochs=600),
    Way(name="momentum, batch 8", optimizer="sgd", momentum=0.9, batch=8, rate=0.1, epochs=600),
    Way(name="momentum, all rows", optimizer="sgd", momentum=0.9, batch=0, rate=0.3, epochs=3000),
    Way(name="Adam, batch 8", optimizer="adam", momentum=0.9, batch=8, rate=1e-3, epochs=600),
    Way(name="Adam, all rows", optimizer="adam", momentum=0.9, batch=0, rate=1e-3, epochs=3000),
    Way(name="Adam, all rows, large η", optimizer="adam", momentum=0.9, batch=0, rate=1e-2, epochs=3000),
)


def measure(lab: Lab) -> Data:
    """Each way to train, seed by seed: when it got there, its errors, and how sharp the minimum is."""
    lab.classification_only()
    rows, data = len(lab.view.train), lab.placed
    found = []
    for way in WAYS:
        config = lab.unregularized(
            loss="square",
            norm="none",
            optimizer=way.optimizer,
            momentum=way.momentum,
            batch_size=way.batch or rows,
            learning_rate=way.rate,
            schedule="constant",
            warmup=0.0,
            reference_batch_size=0,
            clip_norm=0.0,
            max_epochs=way.epochs,
        )
        found.append({"name": way.name, "rate": way.rate, "runs": _runs(lab, config, data)})
        lab.say(f"{len(found)} of {len(WAYS)} ways to train done")
    return {
        "target": TARGET,
        "train_rows": rows,
        "held_out_rows": len(lab.view.val),
        "width": lab.winner.config.width,
        "depth": lab.winner.config.depth,
        "seeds": SEEDS,
        "ways": found,
    }


def _runs(lab: Lab, config: TrialConfig, data: DeviceData) -> list[dict[str, float] | None]:
    """One record a seed, None of one that did not get to the target."""
    pack = Pack([lab.lane(seed, config, seed=seed) for seed in range(SEEDS)], data)
    found: list[dict[str, float] | None] = [None] * SEEDS
    for epoch in range(1, config.max_epochs + 1):
        pack.train_epoch([epoch] * SEEDS)
        losses, errors = pack.validate("error", "train")
        there = [i for i in range(SEEDS) if found[i] is None and losses[i] <= TARGET]
        if there:
            _, held_out = pack.validate("error", "val")
        for i in there:
            found[i] = {
                "epochs": epoch,
                "train_loss": float(losses[i]),
                "train_error": float(errors[i]),
                "held_out_error": float(held_out[i]),
                **_sharpness(lab, config, pack.export(i)),
            }
        if all(run is not None for run in found) or not np.isfinite(losses).any():
            break
    return found


def _sharpness(lab: Lab, config: TrialConfig, arrays: Mapping[str, Any]) -> dict[str, float]:
    view = lab.view
    module = module_of({"theta": arrays["theta"]}, config, lab.n_features, lab.data.n_outputs)
    x, y = torch.from_numpy(view.train.x), torch.from_numpy(view.train.y)
    loss, theta = flat_loss(module, "square_of_classes", x, y)
    mean, error = trace(loss, theta, samples=SAMPLES)
    return {
        "eigenvalue": largest_eigenvalue(loss, theta).value,
        "trace": mean,
        "trace_error": error,
        "sam": sam_sharpness(loss, theta),
        "norm": float(theta.norm()),
    }


def claim(data: Mapping[str, Any]) -> Claim:
    """Equal on the training rows, different on others, and the flatter the better."""
    ways = [way for way in data["ways"] if all(run is not None for run in way["runs"])]
    lost = [way["name"] for way in data["ways"] if way not in ways]
    left_out = f" ({', '.join(lost)} did not get there from every seed and is left out)" if lost else ""
    if len(ways) < 4:
        return Claim(
            holds=False,
            sentence=f"that optimizers find different minima did not appear, because only {len(ways)} of "
            f"{len(data['ways'])} came to a training loss of {data['target']:g}: train longer{left_out}",
        )
    errors = np.array([[run["held_out_error"] for run in way["runs"]] for way in ways])  # (ways, seeds)
    wrong = max(run["train_error"] for way in ways for run in way["runs"])
    best, worst = int(errors.mean(1).argmin()), int(errors.mean(1).argmax())
    difference = errors[worst] - errors[best]
    error = standard_error(difference)
    sharp = {
        key: [float(np.mean([run[key] for run in way["runs"]])) for way in ways] for key in ("trace", "eigenvalue")
    }
    correlation, chance = rank_correlation(sharp["trace"], errors.mean(1).tolist())
    by_size = rank_correlation(sharp["eigenvalue"], errors.mean(1).tolist())[0]
    numbers = (
        f"at a training loss of {data['target']:g} held-out error is {100 * errors[best].mean():.1f} % with "
        f"{ways[best]['name']} and {100 * errors[worst].mean():.1f} % with {ways[worst]['name']}, "
        f"{100 * difference.mean():.1f} ± {100 * error:.1f} points apart{left_out}"
    )
    flat = (
        f"the rank correlation of the Hessian's trace with held-out error is {correlation:+.2f} over "
        f"{len(ways)} optimizers (by chance so high with p = {chance:.2g}; of its largest eigenvalue {by_size:+.2f})"
    )
    if wrong > 0:
        why = f"some err on up to {100 * wrong:.1f} % of the training rows at that loss"
    elif not certain(difference):
        why = "they differ by no more than seeds do"
    elif correlation <= 0 or chance > CHANCE:
        return Claim(holds=False, sentence=f"{numbers}; that flatter minima do better did not appear, because {flat}")
    else:
        return Claim(holds=True, sentence=f"{numbers}, though all fit every training row; flatter is better: {flat}")
    return Claim(
        holds=False, sentence=f"that optimizers find different minima did not appear, because {why}: {numbers}"
    )


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Spearman's rank correlation, and the probability of one at least so high among all orders of ``b``.

    >>> rank_correlation([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0])
    (1.0, 0.041666666666666664)
    """
    x, y = (np.asarray(rankdata(values)) - (len(values) + 1) / 2 for values in (a, b))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    if scale == 0:
        return 0.0, 1.0
    orders = np.array(list(permutations(y))) @ x / scale
    observed = float(x @ y) / scale
    return observed, float((orders >= observed - 1e-12).mean())


def draw(data: Mapping[str, Any]) -> Figure:
    """Held-out error against each measure of sharpness, a point a seed."""
    from plotly.subplots import make_subplots

    measures = {"trace": "trace of the Hessian", "eigenvalue": "largest eigenvalue", "sam": "rise within a ball (SAM)"}
    drawing = make_subplots(rows=1, cols=3, shared_yaxes=True, horizontal_spacing=0.03)
    colours = [*COLOURS, "#4d4d4d"]
    for way, colour in zip(data["ways"], colours, strict=False):
        runs = [run for run in way["runs"] if run is not None]
        for column, key in enumerate(measures, start=1):
            drawing.add_scatter(
                x=[run[key] for run in runs], y=[run["held_out_error"] for run in runs], mode="markers",
                name=way["name"], legendgroup=way["name"], showlegend=column == 1,
                marker={"color": colour, "size": 9}, row=1, col=column,
            )  # fmt: skip
    for column, title in enumerate(measures.values(), start=1):
        drawing.update_xaxes(title=title, type="log", row=1, col=column)
    drawing.update_yaxes(title="held-out error", row=1, col=1)
    return styled("implicit_regularization", TITLE, claim(data).sentence, drawing, height=460, min_width=720)
