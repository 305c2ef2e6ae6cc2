"""Bias and variance: what the expected risk is made of as networks grow, over training sets that they might have had.

The winner's configuration without its regularizers, at every width of the search space, is trained on S training sets
of the study's size; all of these networks are lanes of a few packs. Of a synthetic source the training sets are drawn
afresh and the truth is known, so that squared bias, variance and noise are told apart; of other data they are random
halves of the train rows, judged on the validation rows, and the noise counts as bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from tuner.data.dataset import Rows, View
from tuner.data.synthetic import known_truth
from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Floats, Lab
from tuner.drawing import BLUE, GREEN, GREY, ORANGE, Figure, decades, styled
from tuner.learning.layout import parameter_count
from tuner.theory.bias_variance import squared_parts, zero_one_parts
from tuner.theory.runs import outputs, resampled, train

TITLE = "Bias falls and variance rises with capacity"
SLIDE = "Bias-Variance Trade-Off"

SETS = 32  # S
FRESH = 2000  # rows of a synthetic source that the networks are judged on
DEVIATIONS = 3.0  # standard errors by which the ends of a U lie above its lowest point


def measure(lab: Lab) -> Data:
    """The parts of the risk at every width."""
    widths = lab.widths()
    training, judged, optimal, variance = _training_sets(lab)
    views = [
        View(train=rows, val=judged, target_mean=lab.view.target_mean, target_sd=lab.view.target_sd)
        for rows in training
    ]
    data = resampled(views, lab.spec.task, lab.data.n_outputs, lab.device, lab.winner.config.scaling)
    configs = [lab.unregularized(width=width) for width in widths]
    lanes = [
        lab.lane(place * SETS + fold, config, seed=fold, fold=fold)
        for place, config in enumerate(configs)
        for fold in range(SETS)
    ]
    runs = train(lanes, data, lab.spec.study.metric, parts=["train"], say=lab.say)
    x = torch.from_numpy(judged.x).to(lab.device)
    found = []
    for place, config in enumerate(configs):
        own = runs[place * SETS : (place + 1) * SETS]
        answers = outputs(own, data, x)
        if lab.spec.task == "regression":
            f = lab.values(answers)
            parts: dict[str, float] = asdict(squared_parts(f, optimal, noise=variance))
            risks = ((f - optimal) ** 2 + variance).mean(1)
        else:
            votes = answers.argmax(-1).cpu().numpy()
            pieces = zero_one_parts(votes, optimal)
            parts = {**asdict(pieces), "variance": pieces.variance}
            risks = 1 - np.take_along_axis(optimal[None], votes[..., None], -1)[..., 0].mean(1)
        found.append(
            {
                "width": config.width,
                "parameters": parameter_count(config, data.n_features, data.n_outputs),
                "training": float(np.mean([run.value["train"][-1] for run in own])),
                **parts,
                "risks": risks.tolist(),
            }
        )
    return {
        "loss": "squared" if lab.spec.task == "regression" else "zero-one",
        "truth": known_truth(lab.spec.data) is not None,
        "sets": SETS,
        "train_rows": len(training[0]),
        "judged_rows": len(judged),
        "capacities": found,
    }


def _training_sets(lab: Lab) -> tuple[list[Rows], Rows, Floats, Floats]:
    """S training sets, the rows that are judged, and of these E[y|x] (n,), or P(y = c|x) (n, C), and Var(y|x) (n,)."""
    rng = np.random.default_rng([lab.spec.study.seed, 0xB1])
    truth, view, classes = known_truth(lab.spec.data), lab.view, lab.data.n_outputs
    if truth is None:
        n = len(view.train)
        picked = [np.sort(rng.permutation(n)[: n // 2]) for _ in range(SETS)]
        training = [Rows(x=view.train.x[rows], y=view.train.y[rows]) for rows in picked]
        if lab.spec.task == "regression":
            targets = lab.values(torch.from_numpy(view.val.y)[:, None])
            return training, view.val, targets, np.zeros(len(targets))
        return training, view.val, np.eye(classes)[view.val.y], np.zeros(len(view.val))
    drawn = [truth.sample(len(view.train), rng) for _ in range(SETS)]
    x, y = truth.sample(FRESH, rng)
    optimal = truth.optimal(x)
    if lab.spec.task == "classification":
        return [lab.rows(*rows) for rows in drawn], lab.rows(x, y), np.stack([1 - optimal, optimal], 1), np.zeros(FRESH)
    return [lab.rows(*rows) for rows in drawn], lab.rows(x, y), optimal, truth.variance(x)


def claim(data: Mapping[str, Any]) -> Claim:
    """A U: the risk is lowest between the ends, by more than its paired standard errors; bias falls, variance rises."""
    rows = data["capacities"]
    risks = [float(np.mean(row["risks"])) for row in rows]
    best = int(np.argmin(risks))
    first, last = rows[0], rows[-1]
    rises = [_rise(rows[best]["risks"], end["risks"]) for end in (first, last)]
    numbers = (
        f"over {data['sets']} training sets of {data['train_rows']:,} rows the {data['loss']} risk is "
        f"{risks[0]:.3g} at width {first['width']} (bias {first['bias']:.3g}, variance {first['variance']:.3g}), "
        f"{risks[best]:.3g} at width {rows[best]['width']} (bias {rows[best]['bias']:.3g}, variance "
        f"{rows[best]['variance']:.3g}) and {risks[-1]:.3g} at width {last['width']} (bias {last['bias']:.3g}, "
        f"variance "
        f"{last['variance']:.3g})" + (f"; the noise is {first['noise']:.3g}" if data["truth"] else "")
    )
    missing = []
    if rises[0] <= DEVIATIONS:
        missing.append("the smallest network is not seen to be worse than the best")
    if rises[1] <= DEVIATIONS:
        missing.append("the largest network is not seen to be worse than the best")
    if last["bias"] >= first["bias"]:
        missing.append("the bias does not fall")
    if last["variance"] <= first["variance"]:
        missing.append("the variance does not rise")
    if missing:
        return Claim(holds=False, sentence=f"the U-shape did not appear, because {', and '.join(missing)}: {numbers}")
    return Claim(holds=True, sentence=f"the risk is U-shaped: {numbers}")


def _rise(lowest: Sequence[float], other: Sequence[float]) -> float:
    """How many standard errors the other risk lies above the lowest, over the same training sets."""
    difference = np.array(other) - np.array(lowest)
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return float(difference.mean()) / error if error > 0 else 0.0


def draw(data: Mapping[str, Any]) -> Figure:
    """The parts and the risk over capacity."""
    rows = data["capacities"]
    widths = [row["width"] for row in rows]
    drawing = go.Figure()
    bias = "squared bias" if data["loss"] == "squared" else "bias"
    lines = [
        ("bias", bias if data["truth"] else f"{bias} + noise", BLUE, "solid"),
        ("variance", "variance", ORANGE, "solid"),
    ]
    lines += [("noise", "noise", GREY, "dash")] if data["truth"] else []
    lines += [("risk", "expected risk", GREEN, "solid"), ("training", "training risk", GREY, "dot")]
    for key, name, colour, dash in lines:
        drawing.add_scatter(
            x=widths, y=[row[key] for row in rows], mode="lines+markers", name=name,
            line={"color": colour, "dash": dash, "width": 3 if key == "risk" else 2},
            error_y={"type": "data", "array": [_error(row["risks"]) for row in rows]} if key == "risk" else None,
        )  # fmt: skip
    drawing.update_xaxes(title="width of the network", **decades(widths))
    drawing.update_xaxes(tickvals=widths, ticktext=[str(width) for width in widths])
    drawing.update_yaxes(title=f"{data['loss']} loss", rangemode="tozero")
    return styled("bias_variance", TITLE, claim(data).sentence, drawing, height=440)


def _error(risks: Sequence[float]) -> float:
    return float(np.std(risks, ddof=1)) / math.sqrt(len(risks))
