"""Weight decay: what a larger λ makes of a network, on train rows and on others.

Slides "Weight Decay" and "Interpretation: Sparsity", "Linearity" and "Stability": smaller weights, more of them near
zero, more units in the linear region of tanh, smaller gradients by the input, rows further from the decision boundary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Lab
from tuner.demonstrations.seeds import certain
from tuner.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Figure, styled
from tuner.model import module_of
from tuner.theory.regularizers import input_gradient_norm, linear_share, near_zero_share, weight_norm
from tuner.theory.regularizers import median_margin as margin
from tuner.theory.runs import Run, train

TITLE = "What weight decay does"
SLIDE = "Weight Decay; Interpretation: Sparsity, Linearity, Stability"

SEEDS = 4
# λ as multiples of the one that shrinks weights by a factor of e over the training where no gradient holds them; those
# that a training of few steps could only reach by turning weights around, 1 - ηλ < 0, are left out.
STRENGTHS = (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
ROWS = 512  # that gradients by the input are taken at

# What is measured: title, and whether λ is to make it larger (+1) or smaller (-1).
MEASURES: Mapping[str, tuple[str, int]] = {
    "norm": ("size of the weights ‖θ‖", -1),
    "near_zero": ("share of weights near zero", +1),
    "linear": ("share of units in tanh's linear region", +1),
    "gradient": ("gradient by the input", -1),
    "margin": ("adversarial margin, held out", +1),
}


def measure(lab: Lab) -> Data:
    """Every λ, seed by seed."""
    lab.classification_only()
    rows, own = len(lab.view.train), lab.winner.config
    steps = own.max_epochs * math.ceil(rows / own.batch_size)
    peak = own.peak_learning_rate(rows)
    rate = peak * (0.5 if own.schedule == "cosine" else 1.0)  # on average
    unit = float(f"{1 / (rate * steps):.2g}")
    configs = [
        lab.unregularized(activation="tanh", norm="none", optimizer="adamw", weight_decay=unit * strength)
        for strength in STRENGTHS
        if peak * unit * strength <= 1
    ]
    lanes = [
        lab.lane(place * SEEDS + seed, config, seed=seed)
        for place, config in enumerate(configs)
        for seed in range(SEEDS)
    ]
    runs = train(lanes, lab.placed, "error", say=lab.say)
    return {
        "train_rows": rows,
        "held_out_rows": len(lab.view.val),
        "width": own.width,
        "depth": own.depth,
        "seeds": SEEDS,
        "decays": [
            {
                "weight_decay": config.weight_decay,
                "runs": [_measured(lab, run) for run in runs[place * SEEDS : (place + 1) * SEEDS]],
            }
            for place, config in enumerate(configs)
        ],
    }


def _measured(lab: Lab, run: Run) -> dict[str, float]:
    module = module_of({"theta": run.arrays["theta"]}, run.lane.config, lab.n_features, lab.data.n_outputs)
    x, y = (torch.from_numpy(a[:ROWS]) for a in (lab.view.val.x, lab.view.val.y))
    return {
        "train_error": float(run.value["train"][-1]),
        "held_out_error": float(run.value["val"][-1]),
        "norm": weight_norm(module),
        "near_zero": near_zero_share(module),
        "linear": linear_share(module, x),
        "gradient": input_gradient_norm(module, x),
        "margin": margin(module, x, y),
    }


def claim(data: Mapping[str, Any]) -> Claim:
    """At the best λ each interpretation of the slides holds against λ = 0, and held-out error is lower."""
    decays = data["decays"]
    errors = _table(data, "held_out_error")
    best = int(errors.mean(1).argmin())
    numbers = (
        f"a weight decay of {decays[best]['weight_decay']:.2g} instead of 0 moves held-out error from "
        f"{100 * errors[0].mean():.1f} to {100 * errors[best].mean():.1f} %"
    )
    told, failed = [], []
    for key, (title, sign) in MEASURES.items():
        table = _table(data, key)
        told.append(f"{title} {table[0].mean():.3g} → {table[best].mean():.3g}")
        if not certain(sign * (table[best] - table[0])):
            failed.append(title)
    sentence = f"{numbers}: {', '.join(told)}"
    if best == 0 or not certain(errors[0] - errors[best]):
        return Claim(
            holds=False,
            sentence=f"that weight decay helps did not appear, because no λ lowers held-out error by more than seeds "
            f"differ; {sentence}",
        )
    if failed:
        return Claim(
            holds=False,
            sentence=f"not all that the slides say of λ did appear, because of {', '.join(failed)}; {sentence}",
        )
    return Claim(holds=True, sentence=sentence)


def _table(data: Mapping[str, Any], key: str) -> np.ndarray[Any, Any]:
    """(λ, seeds)."""
    return np.array([[run[key] for run in decay["runs"]] for decay in data["decays"]])


def draw(data: Mapping[str, Any]) -> Figure:
    """Errors, and each measure relative to its value without weight decay, over λ."""
    from plotly.subplots import make_subplots

    drawing = make_subplots(rows=1, cols=2, subplot_titles=["errors", "relative to λ = 0"], horizontal_spacing=0.08)
    least = min(decay["weight_decay"] for decay in data["decays"] if decay["weight_decay"])
    x = [decay["weight_decay"] or least / 3 for decay in data["decays"]]
    for key, name, colour in (("train_error", "train", BLUE), ("held_out_error", "held out", ORANGE)):
        drawing.add_scatter(
            x=x, y=_table(data, key).mean(1).tolist(), mode="lines+markers", name=f"error, {name}",
            line={"color": colour}, row=1, col=1,
        )  # fmt: skip
    for (key, (title, _)), colour in zip(MEASURES.items(), (GREEN, RED, PURPLE, GREY, "#4d4d4d"), strict=True):
        means = _table(data, key).mean(1)
        drawing.add_scatter(
            x=x, y=(means / means[0]).tolist() if means[0] else means.tolist(), mode="lines+markers", name=title,
            line={"color": colour}, row=1, col=2,
        )  # fmt: skip
    ticks = {"tickvals": x, "ticktext": [f"{decay['weight_decay']:.2g}" for decay in data["decays"]]}
    drawing.update_xaxes(title="weight decay λ", type="log", **ticks)
    drawing.update_yaxes(rangemode="tozero", row=1, col=1)
    shown = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    drawing.update_yaxes(type="log", tickvals=shown, ticktext=[f"{tick:g}" for tick in shown], row=1, col=2)
    return styled("weight_decay", TITLE, claim(data).sentence, drawing, height=440, min_width=640)
