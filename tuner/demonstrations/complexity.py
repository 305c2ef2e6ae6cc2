"""Measures of complexity: which of them know that a network has learnt noise.

One network form, the winner's without its regularizers, is trained on more and more random labels, until it fits them.
The number of parameters stays as it is while the gap grows; a measure that explains generalization has to grow with it.
The error of each network on fresh rows of its own distribution, labels spoiled alike, is that on the validation rows,
whose labels are true, made as wrong as theirs would be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from plotly.subplots import make_subplots

from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Lab
from tuner.drawing import COLOURS, GREY, Figure, styled
from tuner.errors import BadInputError
from tuner.learning.lanes import Pack
from tuner.learning.layout import named_arrays
from tuner.theory.complexity import DEVIATION, MEASURES, Network, kendall, margin_of, measured, pac_bayes
from tuner.theory.runs import resampled, train

TITLE = "Norms and margins know what the number of parameters does not"
SLIDE = "Model Complexity Trade-Off"

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of random labels
SEEDS = 4
AGREES = 0.5  # Kendall's τ from which a measure orders networks as their gaps do
SHARPNESS = ("sharpness", "pac_bayes_gap")  # those of noise on the weights
FORMULAS = {
    "sharpness": (
        "1/σ²",
        f"σ: weight noise that costs {100 * DEVIATION:g} % training error; Neyshabur et al., NeurIPS 2017",
    ),
    "pac_bayes_gap": ("√((‖θ - θ₀‖²/2σ² + ln(2√n·J/δ)) / 2n)", "McAllester 1999, Maurer 2004; prior around θ₀"),
}


def measure(lab: Lab) -> Data:
    """Every measure and the gap of every network."""
    lab.classification_only()
    config = lab.unregularized()
    if config.norm != "none" or config.residual:
        raise BadInputError(
            f"study {lab.spec.study.name!r}: these measures are of plain networks, and the winner has "
            f"{'residual layers' if config.norm == 'none' else f'{config.norm} normalisation'}"
        )
    C = lab.data.n_outputs
    views = [
        lab.corrupted("random_labels", fraction, draw) if fraction else lab.corrupted(None)
        for fraction in FRACTIONS
        for draw in range(SEEDS)
    ]
    data = resampled(views, "classification", C, lab.device, config.scaling)
    lanes = [lab.lane(fold, config, seed=fold % SEEDS, fold=fold) for fold in range(len(views))]
    runs = train(lanes, data, "error", say=lab.say)
    begun = Pack(lanes, data)
    networks = []
    for i, run in enumerate(runs):
        fraction = FRACTIONS[i // SEEDS]
        start = named_arrays(begun.export(i)["theta"], config, data.n_features, C)
        network = Network.of(run.weights(data), start, config)
        view = data.view(config.scaling, run.lane.fold)
        x, y = view.x_train, view.y_train
        with torch.no_grad():
            values = measured(network, margin_of(network.outputs(x), y))
            noisy = pac_bayes(network, x, y)
        held_out = float(run.value["val"][-1])
        expected = (1 - fraction) * held_out + fraction * (1 - 1 / C)
        training = float(run.value["train"][-1])
        networks.append(
            {
                "fraction": fraction,
                "training_error": training,
                "held_out_error": held_out,
                "gap": expected - training,
                "values": {**values, "sharpness": noisy.sharpness, "pac_bayes_gap": noisy.gap},
            }
        )
        lab.say(f"{i + 1} of {len(runs)} networks measured")
    table = {m.name: (m.formula, m.source) for m in MEASURES} | FORMULAS
    return {
        "train_rows": len(views[0].train),
        "classes": C,
        "measures": [{"name": name, "formula": formula, "source": source} for name, (formula, source) in table.items()],
        "networks": networks,
    }


def agreement(data: Mapping[str, Any], name: str) -> float | None:
    """Kendall's τ between a measure and the gap, over all networks; None where it is the same for all, or undefined."""
    networks = data["networks"]
    values = [network["values"][name] for network in networks]
    if any(value is None for value in values):
        return None
    found = kendall(values, [network["gap"] for network in networks])
    return None if math.isnan(found) else found


def claim(data: Mapping[str, Any]) -> Claim:
    """All networks fit their labels, the gap grows, the parameters stay, and most norms grow with the gap."""
    networks = data["networks"]
    agreements = {row["name"]: agreement(data, row["name"]) for row in data["measures"]}
    others = {name: tau for name, tau in agreements.items() if name != "parameters"}
    agreeing = [name for name, tau in others.items() if tau is not None and tau >= AGREES]
    ends = [
        float(np.mean([network["gap"] for network in networks if network["fraction"] == fraction]))
        for fraction in (networks[0]["fraction"], networks[-1]["fraction"])
    ]
    worst = max(network["training_error"] for network in networks)
    bounds = [network["values"]["pac_bayes_gap"] for network in networks]
    told = ", ".join(f"{name} {tau:+.2f}" if tau is not None else f"{name} undefined" for name, tau in others.items())
    numbers = (
        f"the same network of {networks[0]['values']['parameters']:,.0f} parameters fits true and random labels, and "
        f"its "
        f"gap is {ends[0]:.2f} on the one and {ends[1]:.2f} on the other; Kendall's τ between measure and gap: {told}. "
        f"The PAC-Bayes bound on the gap is {_least(bounds)} at least"
    )
    missing = []
    if worst > 0.01:
        missing.append(f"a network still errs on {100 * worst:.2g} % of its train rows: train longer")
    if agreements["parameters"] is not None:
        missing.append("the number of parameters differs")
    if ends[1] < ends[0] + 0.2:
        missing.append("the gap does not grow")
    if len(agreeing) < 0.75 * len(others):
        missing.append(f"only {len(agreeing)} of {len(others)} measures agree with the gap (τ ≥ {AGREES:g})")
    if missing:
        return Claim(
            holds=False,
            sentence=f"that measures grow with the gap did not appear, because {', and '.join(missing)}: {numbers}",
        )
    return Claim(holds=True, sentence=numbers)


def _least(bounds: list[float | None]) -> str:
    known = [bound for bound in bounds if bound is not None]
    return f"{min(known):.2g}" if known else "infinite"


def draw(data: Mapping[str, Any]) -> Figure:
    """Each measure, relative to what it is on true labels, over the share of random labels, the gap beside it; below, a
    table of formulas, sources and agreement.
    """
    networks = data["networks"]
    fractions = sorted({network["fraction"] for network in networks})
    drawing = make_subplots(
        rows=2, cols=1, specs=[[{"type": "xy"}], [{"type": "table"}]], row_heights=[0.45, 0.55], vertical_spacing=0.12
    )

    def means(of: Any) -> list[float | None]:
        found = []
        for fraction in fractions:
            values = [of(network) for network in networks if network["fraction"] == fraction]
            found.append(None if any(v is None for v in values) else float(np.exp(np.mean(np.log(values)))))
        return found

    for i, row in enumerate(data["measures"]):
        line = means(lambda network, name=row["name"]: network["values"][name])
        relative = [None if v is None or not line[0] else v / line[0] for v in line]
        drawing.add_scatter(
            x=fractions, y=relative, mode="lines+markers", name=row["name"], row=1, col=1,
            line={"color": COLOURS[i % len(COLOURS)], "dash": "solid" if i < len(COLOURS) else "dash"},
        )  # fmt: skip
    gap = means(lambda network: max(network["gap"], 1e-6))
    drawing.add_scatter(
        x=fractions, y=[None if v is None else v / (gap[0] or 1.0) for v in gap], mode="lines", name="the gap itself",
        line={"color": GREY, "width": 5}, opacity=0.5, row=1, col=1,
    )  # fmt: skip
    taus = [agreement(data, row["name"]) for row in data["measures"]]
    columns = [
        [row["name"] for row in data["measures"]],
        [row["formula"] for row in data["measures"]],
        [row["source"] for row in data["measures"]],
        ["the same for all" if tau is None else f"{tau:+.2f}" for tau in taus],
    ]
    plain = {"fill": {"color": "rgba(0,0,0,0)"}, "align": "left"}
    drawing.add_table(
        header={"values": ["measure", "formula", "source", "τ with the gap"], **plain},
        cells={"values": columns, **plain, "height": 24}, columnwidth=[2, 4.6, 4.6, 1.6], row=2, col=1,
    )  # fmt: skip
    drawing.update_xaxes(title="share of random labels", row=1, col=1)
    drawing.update_yaxes(title="relative to true labels", type="log", row=1, col=1)
    return styled("complexity", TITLE, claim(data).sentence, drawing, height=880, min_width=1000)
