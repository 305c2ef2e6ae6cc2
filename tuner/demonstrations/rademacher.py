"""Rademacher complexity: how well the networks of each width fit random signs, and the bound that follows, beside the
gap that is measured.

For each width M networks are trained on as many draws of random ±1 labels of the study's train rows: what they reach is
the supremum over the class, from below. The linear class beside it has its supremum in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from plotly.subplots import make_subplots

from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Lab
from tuner.drawing import BLUE, GREEN, GREY, ORANGE, RED, Figure, decades, styled
from tuner.errors import BadInputError
from tuner.theory.rademacher import Estimate, gap_bound, linear_bound, linear_class, of_signs_fitted, signs
from tuner.theory.risk import rate
from tuner.theory.runs import resampled, train

TITLE = "The complexity of a class is how well it fits random signs"
SLIDE = "Bounding the Generalization Error; Example: Complexity of Linear Models"

DRAWS = 6  # M: of σ, for each width
SEEDS = 4  # networks on the true labels, for each width
SIGMAS = 2000  # draws of σ for the linear class
SIZES = (0.05, 0.1, 0.2, 0.5, 1.0)  # shares of the train rows on which the linear class is looked at
RADIUS = 1.0  # Λ
DEVIATIONS = 3.0


def measure(lab: Lab) -> Data:
    """Complexity, bound and measured gap of every width; complexity and bound of the linear class over n."""
    lab.classification_only()
    if lab.data.n_outputs != 2:
        raise BadInputError(
            f"study {lab.spec.study.name!r}: the bound is for two classes, and its target has {lab.data.n_outputs}"
        )
    view, widths, seed = lab.view, lab.widths(), lab.spec.study.seed
    n = len(view.train)
    sigma = (signs(n, DRAWS, seed) > 0).astype(np.int64)
    views = [view, *(replace(view, train=replace(view.train, y=labels)) for labels in sigma)]
    data = resampled(views, "classification", 2, lab.device, lab.winner.config.scaling)
    each = SEEDS + DRAWS
    lanes = [
        lab.lane(place * each + i, lab.unregularized(width=width), seed=i, fold=0 if i < SEEDS else i - SEEDS + 1)
        for place, width in enumerate(widths)
        for i in range(each)
    ]
    runs = train(lanes, data, "error", say=lab.say)
    found = []
    for place, width in enumerate(widths):
        own = runs[place * each : (place + 1) * each]
        true, fitted = own[:SEEDS], own[SEEDS:]
        complexity = of_signs_fitted(np.array([run.value["train"][-1] for run in fitted]))
        gaps = [float(run.value["val"][-1] - run.value["train"][-1]) for run in true]
        found.append(
            {
                "width": width,
                "complexity": complexity.value,
                "standard_error": complexity.standard_error,
                "bound": gap_bound(complexity.value, n),
                "training_error": float(np.mean([run.value["train"][-1] for run in true])),
                "held_out_error": float(np.mean([run.value["val"][-1] for run in true])),
                "gaps": gaps,
            }
        )
    x = view.train.x.astype(np.float64)
    order = np.random.default_rng([seed, 0x52]).permutation(n)
    linear = []
    for size in sorted({max(round(share * n), 4) for share in SIZES}):
        rows = x[order[:size]]
        estimate: Estimate = linear_class(rows, RADIUS, draws=SIGMAS, seed=size)
        linear.append(
            {
                "n": size,
                "complexity": estimate.value,
                "standard_error": estimate.standard_error,
                "bound": linear_bound(rows, RADIUS),
            }
        )
    return {
        "train_rows": n,
        "held_out_rows": len(view.val),
        "draws": DRAWS,
        "radius": RADIUS,
        "widths": found,
        "linear": linear,
    }


def claim(data: Mapping[str, Any]) -> Claim:
    """Complexity grows with width, bounds hold, and the linear class's falls as the slide says."""
    rows, linear = data["widths"], data["linear"]
    first, last = rows[0], rows[-1]
    error = float(np.hypot(first["standard_error"], last["standard_error"]))
    slope, _ = rate([row["n"] for row in linear], [row["complexity"] for row in linear], 100)
    gap = float(np.mean(last["gaps"]))
    vacuous = "says nothing, since no error is above 1" if last["bound"] >= 1 else "may say something"
    numbers = (
        f"networks of width {first['width']} fit random signs to ℜ = {first['complexity']:.2f} ± "
        f"{first['standard_error']:.2f}, of width {last['width']} to {last['complexity']:.3f}; the bound on the gap "
        f"is then {last['bound']:.2f} at least and {vacuous}, where the gap on the true labels is {gap:.3f}. Of linear "
        f"functions with ‖w‖ ≤ {data['radius']:g} it is {linear[-1]['complexity']:.3f} at n = {linear[-1]['n']:,}, "
        f"below √(R²Λ²/n) = {linear[-1]['bound']:.3f}, and falls as n^{slope:.2f}"
    )
    missing = []
    if last["complexity"] - first["complexity"] <= DEVIATIONS * error:
        missing.append("wider networks are not seen to fit random signs better")
    if any(np.mean(row["gaps"]) > row["bound"] for row in rows):
        missing.append("a measured gap is above its bound")
    if any(row["complexity"] - DEVIATIONS * row["standard_error"] > row["bound"] for row in linear):
        missing.append("the linear class is above its bound")
    if not -0.65 < slope < -0.35:
        missing.append("the linear class does not fall as the root of n")
    if missing:
        return Claim(
            holds=False, sentence=f"the slide's picture did not appear, because {', and '.join(missing)}: {numbers}"
        )
    return Claim(holds=True, sentence=numbers)


def draw(data: Mapping[str, Any]) -> Figure:
    """Complexity, bound and gap over width; the linear class over n."""
    titles = ["networks, over their width", f"linear functions, ‖w‖ ≤ {data['radius']:g}, over n"]
    drawing = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.09)
    rows = data["widths"]
    widths = [row["width"] for row in rows]
    drawing.add_scatter(
        x=widths, y=[row["complexity"] for row in rows], mode="lines+markers", line={"color": BLUE},
        name="complexity ℜ", error_y={"type": "data", "array": [row["standard_error"] for row in rows]}, row=1, col=1,
    )  # fmt: skip
    drawing.add_scatter(
        x=widths, y=[row["bound"] for row in rows], mode="lines", line={"color": RED, "dash": "dash"},
        name="bound on the gap", row=1, col=1,
    )  # fmt: skip
    means = [float(np.mean(row["gaps"])) for row in rows]
    drawing.add_scatter(
        x=widths, y=means, mode="lines+markers", line={"color": GREEN}, name="measured gap", row=1, col=1,
        error_y={"type": "data", "array": [max(row["gaps"]) - m for row, m in zip(rows, means, strict=True)],
                 "arrayminus": [m - min(row["gaps"]) for row, m in zip(rows, means, strict=True)]},
    )  # fmt: skip
    drawing.add_hline(y=1, line={"color": GREY, "dash": "dot"}, annotation_text="no error is larger", row=1, col=1)
    linear = data["linear"]
    n = [row["n"] for row in linear]
    drawing.add_scatter(
        x=n, y=[row["complexity"] for row in linear], mode="lines+markers", line={"color": ORANGE},
        name="linear class, supremum", row=1, col=2,
    )  # fmt: skip
    drawing.add_scatter(
        x=n, y=[row["bound"] for row in linear], mode="lines", line={"color": RED, "dash": "dot"}, name="√(R²Λ²/n)",
        row=1, col=2,
    )  # fmt: skip
    drawing.update_xaxes(title="width", **decades(widths), row=1, col=1)
    drawing.update_xaxes(tickvals=widths, ticktext=[str(width) for width in widths], row=1, col=1)
    drawing.update_yaxes(rangemode="tozero", row=1, col=1)
    drawing.update_xaxes(title="rows n", **decades(n), row=1, col=2)
    drawing.update_yaxes(type="log", row=1, col=2)
    return styled("rademacher", TITLE, claim(data).sentence, drawing, height=440, min_width=640)
