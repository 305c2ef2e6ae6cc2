"""Double descent: held-out error against the number of parameters, through the interpolation threshold.

Belkin et al., "Reconciling modern machine-learning practice and the classical bias-variance trade-off", PNAS 2019: with
the square loss on n rows of C classes, a network can just fit every row where it has about n·C parameters. Its error on
held-out rows falls, rises towards that threshold, and falls again beyond it. Networks of one hidden layer are trained
until they fit what they can, from several draws of the label noise and of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Lab
from tuner.demonstrations.seeds import certain, percent
from tuner.drawing import BLUE, GREEN, GREY, ORANGE, Figure, band, styled
from tuner.learning.layout import parameter_count
from tuner.theory.runs import resampled, train

TITLE = "Double descent"
SLIDE = "Double Descent"

# Parameters in units of the threshold n·C, closer together around it.
SIZES = (0.03, 0.08, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0)
DRAWS = 6  # of the label noise and of the weights


def measure(lab: Lab) -> Data:
    """Train and held-out error and loss of every width, draw by draw."""
    lab.classification_only()
    spoiled, n_outputs = lab.spec.data.corrupt, lab.data.n_outputs
    views = [
        lab.view if spoiled is None else lab.corrupted(spoiled.kind, spoiled.fraction, spoiled.seed + draw)
        for draw in range(DRAWS)
    ]
    n, D = views[0].train.x.shape
    data = resampled(views, "classification", n_outputs, lab.device, lab.winner.config.scaling)
    widths = sorted({max(round(size * n * n_outputs / (D + 1 + n_outputs)), 1) for size in SIZES})
    configs = [lab.unregularized(width=width, depth=1, loss="square", norm="none") for width in widths]
    lanes = [
        lab.lane(place * DRAWS + draw, config, seed=draw, fold=draw)
        for place, config in enumerate(configs)
        for draw in range(DRAWS)
    ]
    runs = train(lanes, data, "error", say=lab.say)
    points = []
    for place, config in enumerate(configs):
        own = runs[place * DRAWS : (place + 1) * DRAWS]
        measured: dict[str, list[float]] = {}
        for part, name in (("train", "train"), ("val", "held_out")):
            measured[f"{name}_error"] = [float(run.value[part][-1]) for run in own]  # type: ignore[index]
            measured[f"{name}_loss"] = [float(run.loss[part][-1]) for run in own]  # type: ignore[index]
        points.append({"width": config.width, "parameters": parameter_count(config, D, n_outputs), **measured})
    return {
        "threshold": n * n_outputs,
        "train_rows": n,
        "held_out_rows": len(views[0].val),
        "classes": n_outputs,
        "label_noise": None if spoiled is None else (1.0 if spoiled.fraction is None else spoiled.fraction),
        "epochs": lab.winner.config.max_epochs,
        "points": points,
    }


def claim(data: Mapping[str, Any]) -> Claim:
    """A valley, a peak near the threshold, and beyond it networks that fit every row and do better than the valley."""
    points, threshold = data["points"], data["threshold"]
    errors = np.array([point["held_out_error"] for point in points])  # (widths, draws)
    valley, peak, last = turning_points(errors.mean(1).tolist())
    rise, fall = errors[peak] - errors[valley], errors[peak] - errors[last]
    better = errors[valley] - errors[last]
    at = {name: points[i]["parameters"] / threshold for name, i in (("peak", peak), ("valley", valley), ("last", last))}
    fits = max(points[last]["train_error"]) == 0
    numbers = (
        f"held-out error falls to {percent(errors[valley])} at {at['valley']:.2g} times as many parameters as the "
        f"threshold n·C = {threshold:,}, is {percent(errors[peak])} at {at['peak']:.2g} times, and falls to "
        f"{percent(errors[last])} at {at['last']:.2g} times"
    )
    missing = [
        reason
        for reason, lacks in (
            ("the error does not rise again before the threshold, by more than draws differ", not certain(rise)),
            ("it does not fall beyond it, by more than draws differ", not certain(fall)),
            (f"its peak is not near the threshold but at {at['peak']:.2g} times it", not 0.5 <= at["peak"] <= 2.5),
            ("the largest networks do not fit every row", not fits),
            ("they are not better than the best of the small ones", not certain(better)),
        )
        if lacks
    ]
    if missing:
        return Claim(
            holds=False,
            sentence=f"double descent did not appear as on the slide, because {missing[0]}: {numbers}; "
            "more label noise and longer training bring it out",
        )
    return Claim(holds=True, sentence=f"{numbers}, where the networks fit every training row")


def turning_points(means: Sequence[float]) -> tuple[int, int, int]:
    """(valley, peak, last): the peak that rises most from the lowest value before it and falls most after it, by the
    smaller of the two; that lowest value, and the lowest after it. At the ends where there is no peak.

    >>> turning_points([9, 4, 6, 7, 3, 2])
    (1, 3, 5)
    >>> turning_points([9, 4, 3])
    (0, 1, 2)
    """
    found = [(min(means[p] - min(means[:p]), means[p] - min(means[p + 1 :])), p) for p in range(1, len(means) - 1)]
    peak = max(found, key=lambda pair: pair[0])[1]
    return int(np.argmin(means[:peak])), peak, peak + 1 + int(np.argmin(means[peak + 1 :]))


def draw(data: Mapping[str, Any]) -> Figure:
    """Errors over parameters, the threshold marked; the band is from the lowest to the highest draw."""
    import plotly.graph_objects as go

    points = data["points"]
    x = [point["parameters"] for point in points]
    drawing = go.Figure()
    for key, name, colour in (
        ("held_out_error", "held-out error", ORANGE),
        ("train_error", "training error", BLUE),
    ):
        values = [point[key] for point in points]
        drawing.add_trace(band(x, [min(v) for v in values], [max(v) for v in values], colour))
        drawing.add_scatter(
            x=x, y=[float(np.mean(v)) for v in values], mode="lines+markers", name=name, line={"color": colour}
        )
    drawing.add_scatter(
        x=x, y=[float(np.mean(point["held_out_loss"])) for point in points], mode="lines+markers",
        name="held-out square loss", line={"color": GREEN, "dash": "dot"}, visible="legendonly",
    )  # fmt: skip
    drawing.add_vline(x=data["threshold"], line={"color": GREY, "dash": "dash"})
    # On a logarithmic axis an annotation is placed by the exponent.
    drawing.add_annotation(
        x=math.log10(data["threshold"]), y=1, yref="paper", text="n·C", showarrow=False, xanchor="left", xshift=4
    )
    drawing.update_xaxes(title="parameters", type="log", dtick=1)
    drawing.update_yaxes(title="error", rangemode="tozero")
    return styled("double_descent", TITLE, claim(data).sentence, drawing, height=440)
