"""From coarse to fine: narrowing a space around its best trials. Pure functions.

"Start with coarse tuning, then refine gradually", and on the range's own scale: the logarithm where the range is one.
A narrowed space lies inside the one it came from, so a value drawn from it is valid wherever that one's are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuner.search.history import Observation, ranked
from tuner.space import Choices, Constant, Domain, Range, Space, parse_domain
from tuner.spec import Direction
from tuner.trial import Value


def refine(space: Space, history: Sequence[Observation], keep: float, direction: Direction) -> Space:
    """The space narrowed around the best ``keep`` share of a finished round's trials.

    Of n trials ⌈keep·n⌉ are kept, diverged ones never; where all diverged, the space stays as it is.
    """
    finished = ranked(history, direction)
    best = [trial.params for trial in finished[: math.ceil(keep * len(finished))] if _finite(trial)]
    return narrow(space, best, keep)


def narrow(space: Space, best: Sequence[Mapping[str, Value]], least: float) -> Space:
    """The space around some of its points; each domain that is searched stays one, if of a single value.

    Choices narrow to those that occur. A range becomes the shortest interval with all points in it, on its own scale,
    and on either side the mean distance between two neighbours more: of uniform points, that is where the interval ends
    which they were drawn from. At least the share ``least`` of a range stays, so few points do not stop the search.
    ``or_zero`` narrows like a choice: off, on, or both.

    >>> space = Space({"learning_rate": Range(low=1e-4, high=1.0, log=True)})
    >>> narrow(space, [{"learning_rate": 1e-2}], 0.5)["learning_rate"].as_written()
    {'low': 0.001, 'high': 0.1, 'log': True}
    """
    if not best:
        return space
    return Space({name: _narrowed(domain, [point[name] for point in best], least) for name, domain in space.items()})


def as_written(space: Space) -> dict[str, Any]:
    """The searched domains as a study file writes them; :func:`read_written` gives them back to a space."""
    return {name: domain.as_written() for name, domain in space.searched.items()}


def read_written(space: Space, written: Mapping[str, Any]) -> Space:
    """``space`` with the domains that ``written`` holds. Raises ValueError where one is none."""
    return Space({**space, **{name: parse_domain(name, domain) for name, domain in written.items()}})


def _narrowed(domain: Domain, values: Sequence[Value], least: float) -> Domain:
    match domain:
        case Constant():
            return domain
        case Choices():
            return Choices(choices=tuple(choice for choice in domain.choices if choice in values))
        case Range():
            return _narrowed_range(domain, values, least)


def _narrowed_range(domain: Range, values: Sequence[Value], least: float) -> Choices | Range:
    if not domain.or_zero:
        return _interval(domain, values, least)
    on = [value for value in values if value != 0]
    if not on:
        return Choices(choices=(domain.zero,))
    inside = _interval(replace(domain, or_zero=False), on, least)
    if len(on) == len(values):
        return inside
    if isinstance(inside, Choices):
        return Choices(choices=(domain.zero, *inside.choices))
    return replace(inside, or_zero=True)


def _interval(domain: Range, values: Sequence[Value], least: float) -> Choices | Range:
    """The part of a range, without ``or_zero``, that surrounds some of its values."""
    places = [domain.to_unit(value) for value in values]
    start, stop = min(places), max(places)
    gap = (stop - start) / (len(places) - 1) if len(places) > 1 else 0.0
    start, stop = max(0.0, start - gap), min(1.0, stop + gap)
    if (short := least - (stop - start)) > 0:
        start, stop = start - short / 2, stop + short / 2
        start, stop = max(0.0, start - max(0.0, stop - 1)), min(1.0, stop - min(0.0, start))  # moved inside as a whole
    if domain.stepped:
        # The steps whose own interval the part overlaps; the tolerance is for the rounding of their borders.
        count = domain.grid_size
        first, last = math.floor(start * count + 1e-9), math.ceil(stop * count - 1e-9) - 1
        low, high = domain.grid_point(min(first, count - 1)), domain.grid_point(max(last, first))
        if low == high:
            return Choices(choices=(low,))
    else:
        low = _rounded(domain, start, domain.low)
        high = _rounded(domain, stop, domain.high)
        low, high = min(low, *values), max(high, *values)
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    return replace(domain, low=low, high=high)


def _rounded(domain: Range, place: float, end: float) -> float:
    """The value at a place of the unit interval, in ten digits; where it ends, the range's own ``end``."""
    if place in (0.0, 1.0):
        return end
    value = domain.from_unit(place)
    assert not isinstance(value, str)
    return value if domain.integer else min(max(float(f"{value:.10g}"), domain.low), domain.high)


def _finite(trial: Observation) -> bool:
    return trial.value is not None and math.isfinite(trial.value)
