"""A drawing: a Plotly figure in the look that all figures of Tuner share, and what it says in words.

Colours are of medium lightness, so that they read on light and on dark paper; paper and letters are the page's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, RED, GREY, PURPLE = "#3b82c4", "#d9822b", "#2f9e6e", "#d1495b", "#8a93a0", "#8e6bbf"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)  # of lines that have no colour of their own, in order
FAINT = "rgba(138, 147, 160, 0.35)"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: its name in the page, its title, what it says in words (for those who do not see it), the drawing."""

    name: str
    title: str
    told: str
    drawing: go.Figure
    min_width: int = 0  # pixels: a narrower screen scrolls


def styled(name: str, title: str, told: str, drawing: go.Figure, *, height: int, min_width: int = 0) -> Figure:
    """The figure in the shared look; ``height`` in pixels."""
    drawing.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 8, "t": 32, "b": 76},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    drawing.update_xaxes(automargin=True, exponentformat="power", gridcolor=FAINT, zeroline=False, linecolor=GREY)
    drawing.update_yaxes(automargin=True, exponentformat="power", gridcolor=FAINT, zeroline=False, linecolor=GREY)
    return Figure(name=name, title=title, told=told, drawing=drawing, min_width=min_width)


def decades(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with labels at powers of ten alone, where there are enough of them."""
    wide = max(values) > 100 * min(values)
    return {"type": "log", "dtick": 1} if wide else {"type": "log", "dtick": "D2"}


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, **more: Any) -> go.Scatter:
    """The area between two lines, faint."""
    return go.Scatter(
        x=[*x, *reversed(x)], y=[*low, *reversed(high)], fill="toself", mode="none", fillcolor=colour, opacity=0.2,
        hoverinfo="skip", showlegend=False, **more,
    )  # fmt: skip
