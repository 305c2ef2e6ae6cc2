"""The figures of a report: Plotly, drawn from the record of :func:`tuner.report.analysis.analyse` alone.

How they look: :mod:`tuner.drawing`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tuner.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Figure, decades, styled
from tuner.report.layout import count, duration, number
from tuner.spec import METRICS, Shown

_OF_STATE = {
    "promoted": BLUE,
    "complete": GREEN,
    "pruned": GREY,
    "failed": RED,
    "running": ORANGE,
    "waiting": PURPLE,
}
_OF_VERDICT = {"better": GREEN, "worse": RED, "unseen": GREY, "same": GREY}
_OF_WORKER = {"live": GREEN, "left": BLUE, "lost": RED}
_SCALE = "Viridis"

Record = Mapping[str, Any]


def figures(analysis: Record) -> list[Figure]:
    """Every figure that the study has something to show for, in the order of the page."""
    makers = [scores, effects, learning_curve, curves, brackets, history, importance, slices, contours, timeline]
    drawn = [figure for make in makers if (figure := make(analysis)) is not None]
    return [*demonstrations(analysis), *drawn]


def demonstrations(analysis: Record) -> list[Figure]:
    """What the study was asked to show of the lecture."""
    shown = [analysis["demonstrations"][name] for name in get_args(Shown) if name in analysis["demonstrations"]]
    if not shown:
        return []
    from tuner.demonstrations import Demonstration  # torch: most reports do without

    return [Demonstration(**found).figure() for found in shown]


def scores(analysis: Record) -> Figure | None:
    """The winner on train, validation and test rows, and simpler models on the same test rows."""
    study = analysis["study"]
    evaluation = study["evaluation"]
    if evaluation is None:
        return None
    metric = study["metric"]
    rows: list[tuple[str, float | None, Record | None, str]] = [
        ("train", evaluation["train"]["mean"], None, GREY),
        ("validation", evaluation["validation"], None, ORANGE),
        ("test", evaluation["test"]["mean"], evaluation["test"], GREEN),
    ]
    if ensemble := evaluation.get("ensemble"):
        rows.append(("test, ensemble", ensemble["test"]["mean"], ensemble["test"], GREEN))
    rows += [
        (f"test, {baseline['title']}", baseline["test"]["mean"], baseline["test"], BLUE)
        for baseline in evaluation.get("baselines") or []
    ]
    rows = [row for row in rows if row[1] is not None]
    drawing = go.Figure()
    for label, mean, test, colour in rows:
        spread = None
        if test is not None and test["low"] is not None and test["high"] is not None and mean is not None:
            spread = {
                "type": "data",
                "symmetric": False,
                "array": [test["high"] - mean],
                "arrayminus": [mean - test["low"]],
            }
        drawing.add_scatter(
            x=[mean], y=[label], error_x=spread, mode="markers", marker={"color": colour, "size": 11}, showlegend=False
        )
    drawing.update_yaxes(autorange="reversed", type="category")
    drawing.update_xaxes(title=metric)
    test = evaluation["test"]
    told = (
        f"{metric}: train {number(evaluation['train']['mean'])}, validation {number(evaluation['validation'])} "
        f"(optimistic), test {number(test['mean'])}, {100 * test['confidence']:g} % interval {number(test['low'])} to "
        f"{number(test['high'])}."
    )
    return styled("scores", "Validation against test", told, drawing, height=120 + 44 * len(rows))


def effects(analysis: Record) -> Figure | None:
    """What each change to the winner does, with its interval: the diagnosis."""
    found = analysis["diagnosis"]
    if found is None:
        return None
    shown = [effect for effect in found["effects"] if effect["group"] != "data" and effect["half_width"] is not None]
    if not shown:
        return None
    drawing = go.Figure()
    for verdict, colour in _OF_VERDICT.items():
        some = [effect for effect in shown if effect["verdict"] == verdict]
        if some:
            drawing.add_scatter(
                x=[effect["mean"] for effect in some], y=[_change(effect) for effect in some], mode="markers",
                error_x={"type": "data", "array": [effect["half_width"] for effect in some]}, name=verdict,
                marker={"color": colour, "size": 9},
            )  # fmt: skip
    drawing.add_vline(x=0, line={"color": GREY, "dash": "dot"})
    drawing.update_yaxes(
        autorange="reversed", type="category", categoryorder="array", categoryarray=[_change(e) for e in shown]
    )
    drawing.update_xaxes(title=f"validation {found['metric']}, minus the winner's")
    seen = [f"{_change(e)} {e['verdict']} ({e['mean']:+.3g} ± {e['half_width']:.2g})" for e in shown if e["seen"]]
    told = (
        f"The {found['metric']} of the winner with one thing changed, minus its own, over {found['seeds']} paired "
        f"seeds; all intervals hold together with {100 * found['confidence']:g} %. "
        + (f"Seen: {'; '.join(seen)}." if seen else "No effect was seen.")
    )
    return styled("effects", "What each change does", told, drawing, height=140 + 24 * len(shown), min_width=560)


def _change(effect: Record) -> str:
    return f"without {effect['title']}" if effect["group"] == "without" else str(effect["title"])


def learning_curve(analysis: Record) -> Figure | None:
    """Train and validation score against the number of training rows: the diagnosis."""
    found = analysis["diagnosis"]
    if found is None or len(found["learning_curve"]) < 2:
        return None
    points = found["learning_curve"]
    drawing = go.Figure()
    rows = [point["rows"] for point in points]
    for key, colour in (("train", BLUE), ("validation", ORANGE)):
        spread = [point["half_width"] or 0.0 for point in points] if key == "validation" else None
        drawing.add_scatter(
            x=rows, y=[point[key] for point in points], mode="lines+markers", name=key, line={"color": colour},
            error_y=None if spread is None else {"type": "data", "array": spread},
        )  # fmt: skip
    drawing.update_xaxes(title="training rows", type="log", tickvals=rows, ticktext=[f"{n:,}" for n in rows])
    drawing.update_yaxes(title=found["metric"])
    told = "; ".join(
        f"{point['rows']:,} rows: train {number(point['train'])}, validation {number(point['validation'])}"
        for point in points
    )
    told += "; the intervals are those of the difference to all rows. As many steps for each."
    return styled("learning_curve", "More data", told, drawing, height=360)


def curves(analysis: Record) -> Figure | None:
    """Learning curves on train and validation rows, the winner highlighted."""
    shown = analysis["curves"]["shown"]
    if not shown:
        return None
    metric = analysis["study"]["metric"]
    panels = [("train_loss", "training loss"), ("val_loss", "validation loss"), ("value", f"validation {metric}")]
    drawing = make_subplots(rows=1, cols=3, subplot_titles=[title for _, title in panels], horizontal_spacing=0.07)
    for column, (key, _) in enumerate(panels, start=1):
        x: list[Any] = []
        y: list[Any] = []
        for curve in shown:
            if not curve["winner"]:
                x += [*curve["epoch"], None]
                y += [*curve[key], None]
        if x:
            drawing.add_scatter(
                x=x, y=y, mode="lines+markers" if len(x) < 20 else "lines", line={"color": GREY, "width": 1},
                opacity=0.45, name="other trials", legendgroup="others", showlegend=column == 1, hoverinfo="skip",
                row=1, col=column,
            )  # fmt: skip
        for curve in shown:
            if curve["winner"]:
                drawing.add_scatter(
                    x=curve["epoch"], y=curve[key], mode="lines+markers" if len(curve["epoch"]) < 20 else "lines",
                    line={"color": ORANGE, "width": 3}, name=f"trial {curve['number']}, the winner",
                    legendgroup="winner", showlegend=column == 1, row=1, col=column,
                )  # fmt: skip
        values = [v for v in y if v is not None and v > 0]
        values += [v for curve in shown if curve["winner"] for v in curve[key] if v is not None and v > 0]
        if values and max(values) > 30 * min(values) and key != "value":
            drawing.update_yaxes(**decades(values), row=1, col=column)
        drawing.update_xaxes(title="epoch", row=1, col=column)
    told = (
        f"Learning curves of {count(len(shown), 'trial')} of {analysis['curves']['of']:,}, from the best to the worst."
    )
    winner = next((curve for curve in shown if curve["winner"]), None)
    if winner is not None:
        ends = {key: next((v for v in reversed(winner[key]) if v is not None), None) for key, _ in panels}
        told += (
            f" The winner, trial {winner['number']}, ends at training loss {number(ends['train_loss'])} and validation "
            f"loss {number(ends['val_loss'])}."
        )
    return styled("curves", "Learning curves", told, drawing, height=380, min_width=680)


def brackets(analysis: Record) -> Figure | None:
    """What became of the trials at each rung."""
    rows = [row for row in analysis["rungs"] if row["planned"]]
    if not rows:
        return None
    several = len({row["bracket"] for row in rows}) > 1
    labels = [(f"bracket {row['bracket']}, " if several else "") + f"{count(row['epochs'], 'epoch')}" for row in rows]
    drawing = go.Figure()
    for state, colour in _OF_STATE.items():
        values = [row[state] for row in rows]
        if any(values):
            drawing.add_bar(y=labels, x=values, orientation="h", name=state, marker={"color": colour})
    drawing.add_scatter(
        y=labels, x=[row["planned"] for row in rows], mode="markers", name="planned",
        marker={"symbol": "line-ns-open", "size": 14, "color": ORANGE, "line": {"width": 2}},
    )  # fmt: skip
    drawing.update_layout(barmode="stack")
    drawing.update_yaxes(autorange="reversed", type="category")
    drawing.update_xaxes(title="trials")
    had = [sum(row[state] for state in _OF_STATE) for row in rows]
    told = "Trials at each rung: " + "; ".join(
        f"{label}: {n} of {row['planned']} planned, {row['promoted']} promoted"
        for label, n, row in zip(labels, had, rows, strict=True)
    )
    return styled("brackets", "Brackets and rungs", told + ".", drawing, height=140 + 26 * len(rows))


def history(analysis: Record) -> Figure | None:
    """Every trial's value, and the best so far, over trials and over seconds."""
    trials = [trial for trial in analysis["trials"] if trial["value"] is not None]
    if not trials:
        return None
    study = analysis["study"]
    drawing = make_subplots(
        rows=1, cols=2, shared_yaxes=True, subplot_titles=["over trials", "over seconds"], horizontal_spacing=0.04
    )
    for state in ("pruned", "complete"):
        some = [trial for trial in trials if trial["state"] == state]
        for column, key in ((1, "number"), (2, "ended_s")):
            at = [trial for trial in some if trial[key] is not None]
            if at:
                drawing.add_scatter(
                    x=[trial[key] for trial in at], y=[trial["value"] for trial in at], mode="markers", name=state,
                    legendgroup=state, showlegend=column == 1, row=1, col=column, opacity=0.7,
                    marker={"color": _OF_STATE[state], "size": 5}, customdata=[trial["number"] for trial in at],
                    hovertemplate="trial %{customdata}<br>%{y:.5g}<extra></extra>",
                )  # fmt: skip
    last = {1: max(trial["number"] for trial in trials), 2: max((t["ended_s"] or 0.0) for t in trials)}
    for column, key in ((1, "by_trial"), (2, "by_second")):
        steps = analysis["history"][key]
        if steps:
            ends = [*steps, [max(last[column], steps[-1][0]), steps[-1][1]]]
            drawing.add_scatter(
                x=[step[0] for step in ends], y=[step[1] for step in ends], mode="lines", name="best so far",
                line={"color": ORANGE, "width": 2, "shape": "hv"}, legendgroup="best", showlegend=column == 1,
                row=1, col=column,
            )  # fmt: skip
    drawing.update_xaxes(title="trial", row=1, col=1)
    drawing.update_xaxes(title="seconds", row=1, col=2)
    _log_values(drawing, [trial["value"] for trial in trials])
    drawing.update_yaxes(title=study["metric"], row=1, col=1)
    steps = analysis["history"]["by_second"]
    told = f"{count(len(trials), 'trial')} with a value."
    if steps:
        told += (
            f" The best of those that completed fell to {number(steps[-1][1])} after {duration(steps[-1][0])}."
            if METRICS[study["metric"]].direction == "minimize"
            else f" The best of those that completed rose to {number(steps[-1][1])} after {duration(steps[-1][0])}."
        )
    return styled("history", "Optimization history", told, drawing, height=380, min_width=560)


def importance(analysis: Record) -> Figure | None:
    """Which hyperparameters made the difference."""
    found = analysis["importance"]["share"]
    if not found:
        return None
    names = list(found)
    drawing = go.Figure(go.Bar(y=names, x=[found[name] for name in names], orientation="h", marker={"color": BLUE}))
    drawing.update_yaxes(autorange="reversed", type="category")
    drawing.update_xaxes(title="share of importance", rangemode="tozero")
    told = (
        f"PED-ANOVA over {count(analysis['importance']['trials'], 'trial')} at "
        f"{count(analysis['importance']['epochs'], 'epoch')}: "
        + ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.items())
        + "."
    )
    return styled("importance", "Importance of the hyperparameters", told, drawing, height=120 + 30 * len(names))


def slices(analysis: Record) -> Figure | None:
    """The value against each hyperparameter, on its scale; the colour is how far the trial got."""
    axes = analysis["space"]
    trials = [trial for trial in analysis["trials"] if trial["value"] is not None and trial["params"]]
    if not axes or not trials:
        return None
    columns = min(3, len(axes))
    rows = -(-len(axes) // columns)
    drawing = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, subplot_titles=[axis["name"] for axis in axes],
        horizontal_spacing=0.03, vertical_spacing=min(0.22, 0.5 / rows),
    )  # fmt: skip
    epochs = [trial["epochs"] for trial in trials]
    for i, axis in enumerate(axes):
        row, column = divmod(i, columns)
        x = [trial["params"].get(axis["name"]) for trial in trials]
        zero = axis["kind"] == "log" and any(value == 0 for value in x)
        if axis["kind"] == "choices":
            x = [str(value) for value in x]
        elif zero:  # or_zero on a log scale: what is off stands apart, left of the smallest
            least = min((value for value in x if value), default=1e-3)
            x = [value or least / 10 for value in x]
        drawing.add_scatter(
            x=x, y=[trial["value"] for trial in trials], mode="markers", showlegend=False, row=row + 1, col=column + 1,
            marker={"color": epochs, "colorscale": _SCALE, "size": 5, "opacity": 0.75, "coloraxis": "coloraxis"},
            customdata=[trial["number"] for trial in trials],
            hovertemplate="trial %{customdata}<br>%{x}<br>%{y:.5g}<extra></extra>",
        )  # fmt: skip
        if axis["kind"] == "choices":
            order = [text for _, text in axis["ticks"]]
            drawing.update_xaxes(
                type="category", categoryorder="array", categoryarray=order, row=row + 1, col=column + 1
            )
        elif axis["kind"] == "log":
            above = [value for value in x if value]
            drawing.update_xaxes(**decades(above), row=row + 1, col=column + 1)
            if zero:
                exponents = range(math.ceil(math.log10(least)), math.floor(math.log10(max(x))) + 1)
                values = [least / 10, *(10.0**e for e in exponents)]
                drawing.update_xaxes(
                    tickvals=values, ticktext=["0", *(f"{v:g}" for v in values[1:])], row=row + 1, col=column + 1
                )
    drawing.update_layout(coloraxis={"colorscale": _SCALE, "colorbar": {"title": "epochs", "thickness": 12}})
    _log_values(drawing, [trial["value"] for trial in trials])
    told = (
        f"The {analysis['study']['metric']} of {count(len(trials), 'trial')} against each of "
        f"{', '.join(axis['name'] for axis in axes)}; brighter points were trained for more epochs."
    )
    return styled("slices", "Slices", told, drawing, height=90 + 240 * rows, min_width=640)


def contours(analysis: Record) -> Figure | None:
    """The value over each pair of hyperparameters, smoothed, each on its scale."""
    pairs = analysis["contours"]
    if not pairs:
        return None
    used = {name for pair in pairs for name in (pair["x"], pair["y"])}
    axes = [axis for axis in analysis["space"] if axis["name"] in used]
    names = [axis["name"] for axis in axes]
    labels = {axis["name"]: axis["ticks"] for axis in axes}
    side = len(names) - 1
    drawing = make_subplots(rows=side, cols=side, horizontal_spacing=0.02, vertical_spacing=0.02)
    for pair in pairs:
        row, column = names.index(pair["y"]), names.index(pair["x"]) + 1  # the lower triangle
        size = len(pair["z"])
        grid = [(i + 0.5) / size for i in range(size)]
        drawing.add_contour(
            x=grid, y=grid, z=pair["z"], coloraxis="coloraxis", row=row, col=column, ncontours=12,
            line={"width": 0.5}, connectgaps=False, hovertemplate="%{z:.4g}<extra></extra>",
        )  # fmt: skip
        for update, name, shown, title in (
            (drawing.update_xaxes, pair["x"], row == side, pair["x"]),
            (drawing.update_yaxes, pair["y"], column == 1, pair["y"]),
        ):
            update(
                range=[0, 1], tickvals=[tick for tick, _ in labels[name]], ticktext=[text for _, text in labels[name]],
                showticklabels=shown, title=title if shown else None, row=row, col=column,
            )  # fmt: skip
    for row in range(1, side + 1):
        for column in range(row + 1, side + 1):
            drawing.update_xaxes(visible=False, row=row, col=column)
            drawing.update_yaxes(visible=False, row=row, col=column)
    better = METRICS[analysis["study"]["metric"]].direction == "minimize"
    scale = f"{_SCALE}_r" if better else _SCALE
    heights = sorted(v for pair in pairs for line in pair["z"] for v in line if v is not None)
    tenth = len(heights) // 10
    # A few bad corners would take all the colours: the worst fifth shares the last one.
    ends = (heights[0], heights[-1 - 2 * tenth]) if better else (heights[2 * tenth], heights[-1])
    bar = {"title": analysis["study"]["metric"], "thickness": 12}
    drawing.update_layout(coloraxis={"colorscale": scale, "cmin": ends[0], "cmax": ends[1], "colorbar": bar})
    told = (
        f"The smoothed {analysis['study']['metric']} over {count(len(pairs), 'pair')} of hyperparameters, from "
        f"{count(analysis['importance']['trials'], 'trial')} at {count(analysis['importance']['epochs'], 'epoch')}; "
        "brighter is better, empty is where no trial was near."
    )
    return styled("contours", "Contours", told, drawing, height=140 + 150 * side, min_width=780)


def timeline(analysis: Record) -> Figure | None:
    """Who worked when, who was lost, when nobody did, and when trials were over."""
    found = analysis["timeline"]
    crew = found["workers"]
    if not crew:
        return None
    labels = [f"{row['worker']} ({row['device']})" for row in crew]
    of = dict(zip((row["worker"] for row in crew), labels, strict=True))
    drawing = go.Figure()
    for state, colour in _OF_WORKER.items():
        some = [(label, row) for label, row in zip(labels, crew, strict=True) if row["state"] == state]
        if some:
            drawing.add_bar(
                y=[label for label, _ in some], x=[max(row["until_s"] - row["began_s"], 0.0) for _, row in some],
                base=[row["began_s"] for _, row in some], orientation="h", name=f"worker {state}", opacity=0.5,
                marker={"color": colour}, hovertemplate="%{base:.1f} s to %{x:.1f} s<extra></extra>",
            )  # fmt: skip
    for state in ("complete", "pruned", "failed"):
        some_trials = [row for row in found["ended"] if row["state"] == state]
        if some_trials:
            drawing.add_scatter(
                x=[row["at_s"] for row in some_trials], y=[of[row["worker"]] for row in some_trials], mode="markers",
                name=f"trial {state}", customdata=[row["number"] for row in some_trials],
                marker={"color": _OF_STATE[state], "size": 7, "symbol": "line-ns-open", "line": {"width": 1.5}},
                hovertemplate="trial %{customdata}, %{x:.1f} s<extra></extra>",
            )  # fmt: skip
    for start, stop in found["pauses"]:
        drawing.add_vrect(x0=start, x1=stop, fillcolor=GREY, opacity=0.15, line_width=0, annotation_text="pause")
    drawing.update_layout(barmode="overlay")
    drawing.update_yaxes(autorange="reversed", type="category")
    drawing.update_xaxes(title="seconds since the study began")
    states = {state: sum(row["state"] == state for row in crew) for state in _OF_WORKER}
    told = (
        f"{count(len(crew), 'worker')}: "
        + ", ".join(f"{n} {state}" for state, n in states.items() if n)
        + f"; {count(len(found['pauses']), 'pause')}."
    )
    return styled("timeline", "Who did what, when", told, drawing, height=140 + 34 * len(set(labels)))


def _log_values(drawing: go.Figure, values: Sequence[float]) -> None:
    """A logarithmic axis of values where a linear one would show nothing but the worst."""
    if min(values) > 0 and max(values) > 30 * min(values):
        drawing.update_yaxes(type="log", dtick=1)
