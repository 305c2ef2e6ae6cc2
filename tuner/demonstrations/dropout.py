"""Dropout: thinned networks, their ensemble, and the one scaled network that stands for it at test time.

Slides "Dropout Regularization" and "Interpretation: Implicit Ensemble Learning". The winner's network is trained with
and without dropout from the same seeds. Of each, thinned networks are drawn at random; held-out rows tell how well one
of them does, how well ensembles of more and more of them do, and how far these are from the scaled network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Lab
from tuner.demonstrations.seeds import CERTAIN, certain, percent
from tuner.drawing import BLUE, GREEN, ORANGE, Figure, styled
from tuner.model import module_of
from tuner.theory.dropout import ensemble_probabilities, geometric_mean, scaled, thinned
from tuner.theory.runs import Run, train

TITLE = "Dropout is an ensemble of thinned networks"
SLIDE = "Dropout Regularization; Interpretation: Implicit Ensemble Learning"

SEEDS = 4
DROPOUT = 0.5  # where the winner has none
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of ensembles


def measure(lab: Lab) -> Data:
    """Networks with and without dropout, seed by seed: errors and distances of ensembles of each size."""
    lab.classification_only()
    p = lab.winner.config.dropout or DROPOUT
    configs = {"with dropout": lab.unregularized(dropout=p), "without dropout": lab.unregularized()}
    lanes = [
        lab.lane(place * SEEDS + seed, config, seed=seed)
        for place, config in enumerate(configs.values())
        for seed in range(SEEDS)
    ]
    runs = train(lanes, lab.placed, "error", say=lab.say)
    return {
        "dropout": p,
        "train_rows": len(lab.view.train),
        "held_out_rows": len(lab.view.val),
        "width": lab.winner.config.width,
        "depth": lab.winner.config.depth,
        "sizes": list(SIZES),
        "networks": [
            {"name": name, "runs": [_measured(lab, run, p) for run in runs[place * SEEDS : (place + 1) * SEEDS]]}
            for place, name in enumerate(configs)
        ],
    }


def _measured(lab: Lab, run: Run, p: float) -> dict[str, Any]:
    """Errors; distance: of ensembles of each size from the scaled network, geometric_distance: of those that average
    log-probabilities; to_ensemble: of others from the largest.

    Distances are mean total variations between class probabilities.
    """
    config = lab.unregularized(dropout=p)  # the masks of a network that was trained without are drawn as well
    module = module_of({"theta": run.arrays["theta"]}, config, lab.n_features, lab.data.n_outputs)
    x, y = torch.from_numpy(lab.view.val.x), torch.from_numpy(lab.view.val.y)
    answers = thinned(module, x, max(SIZES))
    whole = scaled(module, x)
    reference = torch.softmax(whole, -1)
    ensembles = [ensemble_probabilities(answers[:size]) for size in SIZES]
    return {
        "train_error": float(run.value["train"][-1]),
        "scaled_error": _error(whole, y),
        "thinned_error": float(np.mean([_error(answer, y) for answer in answers])),
        "ensemble_error": [_error(ensemble, y) for ensemble in ensembles],
        "distance": [_distance(ensemble, reference) for ensemble in ensembles],
        "geometric_distance": [_distance(geometric_mean(answers[:size]), reference) for size in SIZES],
        "to_ensemble": {
            "scaled": _distance(reference, ensembles[-1]),
            "thinned": float(np.mean([_distance(torch.softmax(answer, -1), ensembles[-1]) for answer in answers])),
            "geometric": _distance(geometric_mean(answers), ensembles[-1]),
        },
    }


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().sum(1).mean()) / 2


def _error(outputs: Tensor, y: Tensor) -> float:
    return float((outputs.argmax(-1) != y).double().mean())


def claim(data: Mapping[str, Any]) -> Claim:
    """With dropout: the ensemble beats its members, the scaled network is near it and as good, and better than one that
    was trained without.
    """
    own, other = (network["runs"] for network in data["networks"])
    largest = data["sizes"][-1]
    single = np.array([run["thinned_error"] for run in own])
    ensemble = np.array([run["ensemble_error"][-1] for run in own])
    scaled_ = np.array([run["scaled_error"] for run in own])
    without = np.array([run["scaled_error"] for run in other])
    far, near = (np.array([run["to_ensemble"][key] for run in own]) for key in ("thinned", "scaled"))
    geometric = np.array([run["geometric_distance"][-1] for run in own])
    spoiled = float(np.mean([run["thinned_error"] for run in other]))
    numbers = (
        f"held out, one thinned network errs on {percent(single)}, an ensemble of {largest} of them on "
        f"{percent(ensemble)}, and the scaled network on {percent(scaled_)}; its probabilities are {near.mean():.2f} "
        f"from the ensemble's in total variation ({geometric.mean():.2f} from the geometric mean's), a thinned "
        f"network's {far.mean():.2f}; trained without dropout it errs on {percent(without)}, and on "
        f"{100 * spoiled:.1f} % when it is thinned all the same"
    )
    rows = data["held_out_rows"]
    apart = abs(float((scaled_ - ensemble).mean()))
    allowed = CERTAIN * math.sqrt(max(float(ensemble.mean()), 1 / rows) / rows)  # what as many other rows would change
    return Claim.unless(
        numbers,
        {
            "the ensemble is not better than its members by more than seeds differ": not certain(single - ensemble),
            "the scaled network's error is not the ensemble's": apart > allowed,
            "the scaled network is no nearer to the ensemble than its members are": not certain(far - near),
            "dropout does not lower held-out error by more than seeds differ": not certain(without - scaled_),
        },
    )


def draw(data: Mapping[str, Any]) -> Figure:
    """Error, and distance from the scaled network, over the size of the ensemble."""
    from plotly.subplots import make_subplots

    drawing = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.1,
        subplot_titles=["held-out error", "distance to the scaled network (total variation)"],
    )  # fmt: skip
    x = data["sizes"]
    for network, colour in zip(data["networks"], (GREEN, BLUE), strict=True):
        name = f"trained {network['name']}"
        for column, key in ((1, "ensemble_error"), (2, "distance")):
            drawing.add_scatter(
                x=x, y=np.mean([run[key] for run in network["runs"]], axis=0).tolist(), mode="lines+markers",
                name=f"ensemble, {name}", legendgroup=name, showlegend=column == 1, line={"color": colour},
                row=1, col=column,
            )  # fmt: skip
        level = float(np.mean([run["scaled_error"] for run in network["runs"]]))
        drawing.add_scatter(
            x=[x[0], x[-1]], y=[level, level], mode="lines", name=f"scaled network, {name}",
            line={"color": colour, "dash": "dash"}, row=1, col=1,
        )  # fmt: skip
    geometric = np.mean([run["geometric_distance"] for run in data["networks"][0]["runs"]], axis=0).tolist()
    drawing.add_scatter(
        x=x, y=geometric, mode="lines+markers", name="geometric mean, trained with dropout", row=1, col=2,
        line={"color": ORANGE},
    )  # fmt: skip
    drawing.update_xaxes(title="thinned networks", type="log", tickvals=x, ticktext=[str(size) for size in x])
    drawing.update_yaxes(rangemode="tozero", row=1, col=1)
    shown = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    drawing.update_yaxes(type="log", tickvals=shown, ticktext=[f"{tick:g}" for tick in shown], row=1, col=2)
    return styled("dropout", TITLE, claim(data).sentence, drawing, height=440, min_width=640)
