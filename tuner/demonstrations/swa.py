"""Stochastic weight averaging: where the iterates of SGD lie, and what their average is worth.

Slides "Trajectories of SGD" and "Averaging Weights for Better Performance" (Izmailov et al., UAI 2018). The winner's
network is trained by SGD at a constant learning rate; iterates of the second half of the epochs are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner.demonstrations.demonstration import Claim, Data
from tuner.demonstrations.lab import Lab
from tuner.demonstrations.seeds import certain, percent
from tuner.drawing import BLUE, GREEN, ORANGE, RED, Figure, styled
from tuner.learning.metrics import head_of, row_loss
from tuner.theory.averaging import Plane, follow, line, outputs_at
from tuner.theory.dropout import ensemble_probabilities

TITLE = "The average of SGD's iterates"
SLIDE = "Trajectories of SGD; Averaging Weights for Better Performance"

SEEDS = 4
LINE = tuple(np.linspace(-0.5, 2.0, 26).tolist())  # 0 is the average, 1 an iterate
SIDE = 15  # points a side of the plane
MARGIN = 0.35  # of the plane beyond its corners, in units of its size
HOLLOW = 0.5  # of the mean radius: no iterate lies nearer to the average where they lie in a shell, not in a ball


def measure(lab: Lab) -> Data:
    """Seed by seed: radii, errors, the line from the average through an iterate; of the first seed also the plane."""
    lab.classification_only()
    config = lab.config(optimizer="sgd", schedule="constant", norm="none", averaging="none")
    lanes = [lab.lane(seed, config, seed=seed) for seed in range(SEEDS)]
    first = config.max_epochs // 2 + 1
    data, head = lab.placed, head_of(config.loss, lab.spec.task)
    rows = {"train": lab.view.train, "held_out": lab.view.val}
    parts = {
        part: (torch.from_numpy(r.x).to(lab.device), torch.from_numpy(r.y).to(lab.device)) for part, r in rows.items()
    }

    def judged(outputs: Tensor, part: str) -> tuple[list[float], list[float]]:
        """Loss and error of each point: (M, n, C)."""
        y = parts[part][1]
        errors = (outputs.argmax(-1) != y).double().mean(1)
        return row_loss(head, outputs, y).mean(1, dtype=torch.float64).tolist(), errors.tolist()

    runs = []
    lab.say(f"following {SEEDS} trainings for {config.max_epochs} epochs")
    trajectories = follow(lanes, data, first=first)
    for lane, found in zip(lanes, trajectories, strict=True):
        record: dict[str, Any] = {
            "radii": found.radii.tolist(),
            "steps": found.steps.tolist(),
            "displacement": found.displacement,
        }
        along = line(found.mean, found.iterates[-1], LINE)
        for part, (x, _) in parts.items():
            iterates = outputs_at(found.iterates, lane, data, x)
            mean = outputs_at(found.mean[None], lane, data, x)
            together = ensemble_probabilities(iterates)
            record[part] = {
                "iterate_loss": judged(iterates, part)[0],
                "iterate_error": judged(iterates, part)[1],
                "mean_loss": judged(mean, part)[0][0],
                "mean_error": judged(mean, part)[1][0],
                "ensemble_error": judged(together[None], part)[1][0],
                # Between the averaged network's probabilities and the ensemble's, and an iterate's and the ensemble's.
                "mean_distance": _distance(torch.softmax(mean[0], -1), together),
                "iterate_distance": float(np.mean([_distance(torch.softmax(o, -1), together) for o in iterates])),
                "line_loss": judged(outputs_at(along, lane, data, x), part)[0],
            }
        runs.append(record)
        lab.say(f"{len(runs)} of {SEEDS} trainings judged")
    return {
        "train_rows": len(lab.view.train),
        "held_out_rows": len(lab.view.val),
        "learning_rate": config.peak_learning_rate(len(lab.view.train)),
        "batch_size": config.batch_size,
        "first": first,
        "epochs": config.max_epochs,
        "line": list(LINE),
        "runs": runs,
        "plane": _plane(lab, trajectories[0], lanes[0], parts, judged),
    }


def _plane(lab: Lab, found: Any, lane: Any, parts: Any, judged: Any) -> dict[str, Any]:
    """The losses in the plane through the first, the middle and the last iterate, and where their average lies."""
    plane = Plane.through(found.iterates[0], found.iterates[len(found.iterates) // 2], found.iterates[-1])
    xs, ys = (sorted(corner[axis] for corner in plane.corners) for axis in (0, 1))
    grids = [
        np.linspace(v[0] - MARGIN * (v[-1] - v[0]), v[-1] + MARGIN * (v[-1] - v[0]), SIDE).tolist() for v in (xs, ys)
    ]
    points = plane.grid(*grids)
    losses = {
        part: np.reshape(judged(outputs_at(points, lane, lab.placed, x), part)[0], (SIDE, SIDE)).tolist()
        for part, (x, _) in parts.items()
    }
    corners, mean = [list(corner) for corner in plane.corners], list(plane.coordinates(found.mean))
    return {"x": grids[0], "y": grids[1], "corners": corners, "mean": mean, **losses}


def _distance(a: Tensor, b: Tensor) -> float:
    """Mean total variation between class probabilities (n, C)."""
    return float((a - b).abs().sum(1).mean()) / 2


def claim(data: Mapping[str, Any]) -> Claim:
    """Iterates in a thin shell around an average that has less loss and errs less, and stands for their ensemble."""
    runs = data["runs"]
    iterates = np.array([np.mean(run["held_out"]["iterate_error"]) for run in runs])
    mean = np.array([run["held_out"]["mean_error"] for run in runs])
    together = np.array([run["held_out"]["ensemble_error"] for run in runs])
    lower = np.array([np.mean(run["train"]["iterate_loss"]) - run["train"]["mean_loss"] for run in runs])
    spread = float(np.mean([np.std(run["radii"]) / np.mean(run["radii"]) for run in runs]))
    nearest = min(float(np.min(run["radii"]) / np.mean(run["radii"])) for run in runs)
    radius = float(np.mean([np.mean(run["radii"]) for run in runs]))
    ratio = float(np.mean([run["held_out"]["iterate_distance"] / run["held_out"]["mean_distance"] for run in runs]))
    numbers = (
        f"held out, the iterates err on {percent(iterates)} on average, their weights' average on {percent(mean)} "
        f"and their predictions' average on {percent(together)}; the average's predictions are {ratio:.1f} times as "
        f"near to the ensemble's as an iterate's; iterates lie {radius:.2g} from it, "
        f"{100 * spread:.0f} % more or less, none nearer than {100 * nearest:.0f} % of that"
    )
    return Claim.unless(
        numbers,
        {
            "the average does not err less than its iterates by more than seeds differ": not certain(iterates - mean),
            "the training loss at the average is not below that at the iterates": not certain(lower),
            "the average's predictions are no nearer to the ensemble's than an iterate's": ratio <= 1,
            "the iterates lie in no shell, but near the average as well": nearest < HOLLOW,
        },
    )


def draw(data: Mapping[str, Any]) -> Figure:
    """Errors over epochs, the loss along the line, the held-out loss in the plane."""
    from plotly.subplots import make_subplots

    drawing = make_subplots(
        rows=1, cols=3, horizontal_spacing=0.09,
        subplot_titles=["held-out error", "loss: average (0), iterate (1)", "held-out loss in a plane"],
    )  # fmt: skip
    runs, plane = data["runs"], data["plane"]
    epochs = list(range(data["first"], data["epochs"] + 1))
    errors = np.mean([run["held_out"]["iterate_error"] for run in runs], axis=0)
    drawing.add_scatter(
        x=epochs, y=errors.tolist(), mode="lines", name="iterates", line={"color": ORANGE}, row=1, col=1
    )
    for key, name, colour, dash in (
        ("mean_error", "average of weights", GREEN, "solid"),
        ("ensemble_error", "average of predictions", BLUE, "dash"),
    ):
        level = float(np.mean([run["held_out"][key] for run in runs]))
        drawing.add_scatter(
            x=[epochs[0], epochs[-1]], y=[level, level], mode="lines", name=name, line={"color": colour, "dash": dash},
            row=1, col=1,
        )  # fmt: skip
    for part, name, colour in (("train", "training loss", BLUE), ("held_out", "held-out loss", ORANGE)):
        losses = np.mean([run[part]["line_loss"] for run in runs], axis=0).tolist()
        drawing.add_scatter(x=data["line"], y=losses, mode="lines", name=name, line={"color": colour}, row=1, col=2)
    drawing.add_contour(
        x=plane["x"], y=plane["y"], z=np.log10(plane["held_out"]).tolist(), colorscale="Viridis_r", showscale=False,
        ncontours=16, line={"width": 0.5}, hovertemplate="10^%{z:.2f}<extra></extra>", row=1, col=3,
    )  # fmt: skip
    corners = plane["corners"]
    for xy, name, colour in ((corners, "iterates", ORANGE), ([plane["mean"]], "average of weights", RED)):
        drawing.add_scatter(
            x=[x for x, _ in xy], y=[y for _, y in xy], mode="markers", name=f"{name} (plane)", row=1, col=3,
            marker={"color": colour, "size": 10, "line": {"color": "white", "width": 1}},
        )  # fmt: skip
    drawing.update_xaxes(title="epoch", row=1, col=1)
    drawing.update_yaxes(rangemode="tozero", row=1, col=1)
    shown = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    drawing.update_yaxes(type="log", tickvals=shown, ticktext=[f"{tick:g}" for tick in shown], row=1, col=2)
    return styled("swa", TITLE, claim(data).sentence, drawing, height=440, min_width=860)
