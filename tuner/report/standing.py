"""Where a running study stands, in figures small enough for a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.manager import PlaceRow
    from tuner.search import Bracket

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class RungStanding:
    """One rung of all brackets of one kind (Hyperband's s): ``planned`` trials, of which ``done`` have reached it and
    ``running`` are on their way.
    """

    bracket: int
    epochs: int
    planned: int
    done: int
    running: int


def standing(dealt: Sequence[Bracket], places: Sequence[PlaceRow], *, begun_only: bool = False) -> list[RungStanding]:
    """Every rung, the largest bracket first. Brackets of the same kind are added up.

    begun_only: leave out brackets in which nothing has begun, for a study that ends by its time.
    """
    begun = {place.bracket for place in places if place.rung > 0 or place.state != "waiting"}
    shown = begun if begun_only else {place.bracket for place in places}
    planned: Counter[tuple[int, int]] = Counter()
    done: Counter[tuple[int, int]] = Counter()
    running: Counter[tuple[int, int]] = Counter()
    for number in shown:
        for rung in dealt[number].rungs:
            planned[dealt[number].index, rung.epochs] += rung.size
    for place in places:
        if place.bracket not in shown:
            continue
        bracket = dealt[place.bracket]
        for rung in bracket.rungs[: place.rung]:
            done[bracket.index, rung.epochs] += place.slots
        here = (bracket.index, bracket.rungs[place.rung].epochs)
        running[here] += place.running
        if place.state not in ("waiting", "leased"):
            done[here] += place.slots
    return [
        RungStanding(bracket=s, epochs=epochs, planned=planned[key], done=done[key], running=running[key])
        for key in sorted(planned, key=lambda key: (-key[0], key[1]))
        for s, epochs in [key]
    ]


def sparkline(values: Sequence[float | None], width: int) -> str:
    """A curve in one line of text, at most ``width`` characters long; what is missing leaves a blank.

    >>> sparkline([3.0, 2.0, None, 1.0], 10), sparkline([float(i) for i in range(100)], 8), sparkline([], 8)
    ('█▅ ▁', '▁▂▃▄▅▆▇█', '')
    """
    count = min(len(values), max(width, 1))
    picked = [values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count)]
    finite = [value for value in picked if value is not None and math.isfinite(value)]
    if not finite:
        return " " * count
    low, span = min(finite), max(finite) - min(finite)

    def bar(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return " "
        return _BARS[round((value - low) / span * (len(_BARS) - 1)) if span else 0]

    return "".join(bar(value) for value in picked)


def progress_bar(planned: int, done: int, running: int, width: int) -> str:
    """What is done, what is being done and what is to come; anything at all shows.

    >>> progress_bar(10, 5, 2, 10), progress_bar(1000, 1, 0, 4), progress_bar(4, 9, 0, 4)
    ('█████▒▒···', '█···', '████')
    """
    total = max(planned, done + running, 1)
    full = min(width, max(math.floor(done / total * width), 1 if done else 0))
    going = min(width - full, max(math.floor(running / total * width), 1 if running else 0))
    return "█" * full + "▒" * going + "·" * (width - full - going)
