"""Random labels: a network that fits labels without any rule, exactly, and so learns nothing of the held-out rows.

Zhang et al., "Understanding deep learning requires rethinking generalization", ICLR 2017, figure 1: the training curves
of one network on true and on corrupted data, and its error on held-out rows against the share of random labels. The
network is the study's winner without its regularizers; held out are the validation rows, whose labels are always true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from plotly.subplots import make_subplots

from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Lab
from tuner.drawing import COLOURS, GREY, Figure, styled
from tuner.spec import Corruption
from tuner.theory.runs import resampled, train

TITLE = "Random labels are fitted as well as true ones"
SLIDE = "DNNs Can Fit Random Labels and Random Data"

VERSIONS: Mapping[str, Corruption | None] = {
    "true labels": None,
    "random labels": "random_labels",
    "shuffled pixels": "shuffled_pixels",
    "random pixels": "random_pixels",
    "Gaussian inputs": "gaussian_inputs",
}
FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of random labels
DRAWS = 4  # of the corruption and of the network's weights, for each version and fraction
LOOKS = 40  # epochs at which the curves are drawn, close together at the beginning
DEVIATIONS = 3.0  # standard errors that the held-out error may be away from chance


def measure(lab: Lab) -> Data:
    """Curves of every version of the data, and what is left at the end for every share of random labels."""
    lab.classification_only()
    config = lab.unregularized()
    horizon = config.max_epochs
    spoiled: list[tuple[Corruption | None, float | None]] = [(kind, None) for kind in VERSIONS.values()]
    spoiled += [("random_labels", fraction) for fraction in FRACTIONS[1:-1]]
    views = [lab.corrupted(kind, fraction, draw) for kind, fraction in spoiled for draw in range(DRAWS)]
    data = resampled(views, "classification", lab.data.n_outputs, lab.device, config.scaling)
    lanes = [lab.lane(fold, config, seed=fold % DRAWS, fold=fold) for fold in range(len(views))]
    looks = np.unique(np.round(np.geomspace(1, horizon, LOOKS)).astype(int)).tolist()
    runs = train(lanes, data, "error", at=looks, say=lab.say)
    of_view = [runs[first : first + DRAWS] for first in range(0, len(runs), DRAWS)]
    versions = []
    for name, own in zip(VERSIONS, of_view, strict=False):
        error = np.array([run.value["train"] for run in own])
        fitted = np.flatnonzero((error == 0).all(0))
        versions.append(
            {
                "version": name,
                "train_loss": np.mean([run.loss["train"] for run in own], axis=0).tolist(),
                "train_error": error.mean(0).tolist(),
                "final_train_error": error[:, -1].tolist(),
                "held_out_error": [float(run.value["val"][-1]) for run in own],
                "fitted_at": int(own[0].epochs[fitted[0]]) if len(fitted) else None,
            }
        )
    by_fraction = dict(zip(FRACTIONS, [of_view[0], *of_view[len(VERSIONS) :], of_view[1]], strict=True))
    return {
        "epochs": runs[0].epochs.tolist(),
        "classes": lab.data.n_outputs,
        "chance": 1 - 1 / lab.data.n_outputs,
        "train_rows": len(views[0].train),
        "held_out_rows": len(views[0].val),
        "width": config.width,
        "depth": config.depth,
        "versions": versions,
        "fractions": [
            {
                "fraction": fraction,
                "train_error": [float(run.value["train"][-1]) for run in own],
                "held_out_error": [float(run.value["val"][-1]) for run in own],
            }
            for fraction, own in by_fraction.items()
        ],
    }


def claim(data: Mapping[str, Any]) -> Claim:
    """Training error exactly 0 on random labels and on noise, and a held-out error that chance would have."""
    of = {version["version"]: version for version in data["versions"]}
    chance, rows = data["chance"], data["held_out_rows"]
    unfitted = [name for name, version in of.items() if max(version["final_train_error"]) > 0]
    random, true = of["random labels"], of["true labels"]
    standard_error = _standard_error(random["held_out_error"], chance, rows)
    held_out, learnt = float(np.mean(random["held_out_error"])), float(np.mean(true["held_out_error"]))
    numbers = (
        f"held out it errs on {100 * held_out:.1f} % where chance errs on {100 * chance:.1f} ± "
        f"{100 * standard_error:.1f} %, and on {100 * learnt:.1f} % when it was trained on true labels"
    )
    if unfitted:
        worst = max(float(np.mean(of[name]["final_train_error"])) for name in unfitted)
        return Claim(
            holds=False,
            sentence=(
                f"that a network fits random data did not appear, because after {data['epochs'][-1]} epochs it still "
                f"errs on up to {100 * worst:.2g} % of the train rows of {', '.join(unfitted)}: train longer, or "
                f"wider; {numbers}"
            ),
        )
    if abs(held_out - chance) > DEVIATIONS * standard_error or learnt > chance - 10 * standard_error:
        return Claim(
            holds=False,
            sentence=f"the network fits every version of the data, but the rest did not appear, because {numbers}",
        )
    return Claim(
        holds=True,
        sentence=(
            f"the network fits all {data['train_rows']:,} random labels, its training error is exactly 0 from epoch "
            f"{random['fitted_at']} on (true labels: {true['fitted_at']}), and has learnt nothing from them: {numbers}"
        ),
    )


def _standard_error(errors: Sequence[float], chance: float, rows: int) -> float:
    """Of the mean over draws. Rows that resemble each other are guessed alike, so draws differ by more than rows alone
    would make them.
    """
    of_rows = math.sqrt(chance * (1 - chance) / rows)
    return max(of_rows, float(np.std(errors, ddof=1)) if len(errors) > 1 else 0.0) / math.sqrt(len(errors))


def draw(data: Mapping[str, Any]) -> Figure:
    """As in the paper: training loss and training error over epochs, held-out error over the share of random labels."""
    titles = ["training loss", "training error", "error at the end"]
    drawing = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.07)
    for version, colour in zip(data["versions"], COLOURS, strict=False):
        dash = "dash" if version["version"] == "shuffled pixels" else "solid"  # it lies on the true labels' line
        for column, key in ((1, "train_loss"), (2, "train_error")):
            drawing.add_scatter(
                x=data["epochs"], y=version[key], mode="lines", line={"color": colour, "width": 2, "dash": dash},
                name=version["version"], legendgroup=version["version"], showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    shares = [row["fraction"] for row in data["fractions"]]
    for key, name, colour in (
        ("held_out_error", "held-out rows", COLOURS[1]),
        ("train_error", "train rows", COLOURS[0]),
    ):
        values = [row[key] for row in data["fractions"]]
        means = [float(np.mean(of_seeds)) for of_seeds in values]
        drawing.add_scatter(
            x=shares, y=means, mode="lines+markers", line={"color": colour, "dash": "dot"}, name=f"error on {name}",
            error_y={"type": "data", "array": [max(v) - m for v, m in zip(values, means, strict=True)],
                     "arrayminus": [m - min(v) for v, m in zip(values, means, strict=True)]},
            row=1, col=3,
        )  # fmt: skip
    drawing.add_hline(y=data["chance"], line={"color": GREY, "dash": "dash"}, annotation_text="chance", row=1, col=3)
    drawing.update_xaxes(title="epoch", type="log", dtick=1, row=1, col=1)
    drawing.update_xaxes(title="epoch", type="log", dtick=1, row=1, col=2)
    drawing.update_xaxes(title="share of random labels", row=1, col=3)
    drawing.update_yaxes(rangemode="tozero")
    return styled("random_labels", TITLE, claim(data).sentence, drawing, height=420, min_width=760)
