"""The law of large numbers: the empirical risk of a fixed predictor converges to its expected risk as 1/√n, and that of
a network on its own training rows does not, since those rows chose the network.

Two predictors of a synthetic source: the best linear f(x) = θᵀx, whose R(θ) is exact, and the study's winner, whose
risk a million fresh rows say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from plotly.subplots import make_subplots

from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Floats, Lab
from tuner.drawing import BLUE, GREY, ORANGE, RED, Figure, band, decades, styled
from tuner.learning.device import DeviceData
from tuner.theory.risk import convergence, rate
from tuner.theory.runs import outputs, train

TITLE = "The empirical risk converges to the expected risk"
SLIDE = "Statistical Learning Theory (SLT)"

SIZES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
SAMPLES = 200
FRESH = 1_000_000  # rows that the network's expected risk is measured on
DEVIATIONS = 4.0  # standard errors; a mean further away than that is none of chance's


def measure(lab: Lab) -> Data:
    """Empirical risks of both predictors on samples of every size."""
    truth = lab.truth
    theta, _ = truth.best_linear()
    rng = np.random.default_rng([lab.spec.study.seed, 0x11])

    def of_linear(m: int) -> Floats:
        x, y = truth.sample(m, rng)
        losses: Floats = (x @ theta - y) ** 2
        return losses

    placed = DeviceData.place(lab.data, lab.device)
    (run,) = train([lab.lane(0, lab.config(), seed=0)], placed, lab.spec.study.metric, say=lab.say)

    def of_rows(x: Floats, y: Floats) -> Floats:
        answers = outputs([run], placed, torch.from_numpy(lab.ready(x)).to(lab.device))
        losses: Floats = (lab.values(answers)[0] - y) ** 2
        return losses

    def of_network(m: int) -> Floats:
        return of_rows(*truth.sample(m, rng))

    lab.say(f"drawing {SAMPLES} samples of each size")
    fresh = np.concatenate([of_network(FRESH // 10) for _ in range(10)])
    train_rows, train_y = lab.view.train, torch.from_numpy(lab.view.train.y)
    own = lab.values(outputs([run], placed, torch.from_numpy(train_rows.x).to(lab.device)))[0]
    targets = lab.values(train_y[:, None]) if lab.spec.task == "regression" else train_y.double().numpy()
    return {
        "source": lab.spec.data.source,
        "samples": SAMPLES,
        "theta": theta.tolist(),
        "irreducible": truth.irreducible,
        "linear": _risks(of_linear, truth.expected_risk(theta.tolist()), 0.0),
        "network": _risks(of_network, float(fresh.mean()), float(fresh.std() / math.sqrt(len(fresh)))),
        "train_rows": len(train_rows),
        "training_risk": float(((own - targets) ** 2).mean()),
    }


def _risks(losses: Callable[[int], Floats], expected: float, standard_error: float) -> Data:
    rows = [asdict(row) for row in convergence(losses, SIZES, SAMPLES)]
    return {"expected": expected, "standard_error": standard_error, "sizes": rows}


def claim(data: Mapping[str, Any]) -> Claim:
    """Means at the expected risk, and a spread that falls as n^-½, for both predictors."""
    found = []
    for name in ("linear", "network"):
        part, samples = data[name], data["samples"]
        rows = part["sizes"]
        slope, error = rate([row["n"] for row in rows], [row["sd"] for row in rows], samples)
        worst = max(
            abs(row["mean"] - part["expected"]) / math.hypot(row["sd"] / math.sqrt(samples), part["standard_error"])
            for row in rows
        )
        # Squared losses have heavier tails than the normal risks that the slope's standard error supposes: twice it.
        found.append((worst <= DEVIATIONS and abs(slope + 0.5) <= 2 * DEVIATIONS * error, slope, error, worst))
    (_, slope, error, worst), linear = found[0], data["linear"]
    first, last = linear["sizes"][0], linear["sizes"][-1]
    gap = data["network"]["expected"] - data["training_risk"]
    numbers = (
        f"over {data['samples']} samples of each size the empirical risk of f(x) = θᵀx is {linear['expected']:.4g} = "
        f"R(θ) on average, within {worst:.1f} standard errors everywhere, and spreads as n^{slope:.2f} (± "
        f"{error:.2f}): "
        f"by {first['sd']:.2g} at n = {first['n']}, by {last['sd']:.2g} at n = {last['n']:,}. The network's expected "
        f"risk "
        f"is {data['network']['expected']:.4g}, and on the {data['train_rows']:,} rows that it was trained on "
        f"{data['training_risk']:.4g}, {abs(gap):.2g} {'less' if gap > 0 else 'more'}: they are no fresh sample"
    )
    if all(holds for holds, *_ in found):
        return Claim(holds=True, sentence=numbers)
    return Claim(
        holds=False,
        sentence=f"that empirical risks converge at the rate n^-0.5 did not appear, because {numbers}; the network's "
        f"spread as n^{found[1][1]:.2f}, and were {found[1][3]:.1f} standard errors away at worst",
    )


def draw(data: Mapping[str, Any]) -> Figure:
    """Risks over n with the middle 95 % of samples, and their spread over n beside the rate 1/√n."""
    drawing = make_subplots(
        rows=1, cols=3, subplot_titles=["f(x) = θᵀx", "the network", "spread of the empirical risk"],
        horizontal_spacing=0.07,
    )  # fmt: skip
    for column, name, colour in ((1, "linear", BLUE), (2, "network", ORANGE)):
        part = data[name]
        rows = part["sizes"]
        n = [row["n"] for row in rows]
        low, high = ([row[key] for row in rows] for key in ("low", "high"))
        drawing.add_trace(band(n, low, high, colour), row=1, col=column)
        drawing.add_scatter(
            x=n, y=[row["mean"] for row in rows], mode="lines+markers", line={"color": colour},
            name=f"empirical risk, {name}", row=1, col=column,
        )  # fmt: skip
        drawing.add_hline(
            y=part["expected"], line={"color": GREY, "dash": "dash"}, annotation_text="expected risk", row=1, col=column
        )
        drawing.add_scatter(
            x=n, y=[row["sd"] for row in rows], mode="markers", marker={"color": colour}, name=f"spread, {name}",
            row=1, col=3,
        )  # fmt: skip
        start = rows[0]["sd"] * math.sqrt(n[0])
        drawing.add_scatter(
            x=n, y=[start / math.sqrt(size) for size in n], mode="lines", line={"color": colour, "dash": "dot"},
            name="1/√n", showlegend=name == "linear", row=1, col=3,
        )  # fmt: skip
    drawing.add_scatter(
        x=[data["train_rows"]], y=[data["training_risk"]], mode="markers", name="on its training rows",
        marker={"color": RED, "symbol": "x", "size": 10}, row=1, col=2,
    )  # fmt: skip
    sizes = [row["n"] for row in data["linear"]["sizes"]]
    for column in (1, 2, 3):
        drawing.update_xaxes(title="rows n", **decades(sizes), row=1, col=column)
    drawing.update_yaxes(type="log", row=1, col=3)
    return styled("law_of_large_numbers", TITLE, claim(data).sentence, drawing, height=420, min_width=760)
