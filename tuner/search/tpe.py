"""The tree-structured Parzen estimator: one fit for a whole pack of proposals.

Bergstra, Bardenet, Bengio, Kégl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, as Optuna 5 does it with
all hyperparameters modelled jointly, and with its defaults: the best γ(n) = min(⌈n/10⌉, 25) trials give the density
ℓ(x) of good configurations, the others g(x), and of 24 draws from ℓ the one of largest ℓ(x) / g(x) is proposed. Trials
that still run count as bad ones ("constant liar"). ``tests/search/test_tpe.py`` compares the densities with Optuna's.

Two differences. A study in Optuna is asked, and its densities fitted, once a trial; here one fit serves a pack: every
slot has its own 24 candidates, and each draw joins g as one more kernel before the next slot chooses. And a range with
``or_zero`` is modelled as the choice that it is, jointly with the rest, where Optuna samples it apart.

A configuration is a row of features, a kernel is a row of weights, and the logarithm of a kernel at a point is their
product, so that all kernels at all candidates are one matrix product:

==============  =================================  ==================================================================
coordinate      features of a point                weights of a kernel
==============  =================================  ==================================================================
choice          one-hot, C of them                 log-probabilities: (1[c is its own] + 1/n) / norm
range, at u     1, u, u² (0, 0, 0 where off)       those of a normal at μ with σ, cut to [0, 1] (0, 0, 0 where off)
==============  =================================  ==================================================================

``u`` is the place in the range on its own scale (:meth:`tuner.space.Range.to_unit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri

from tuner.space import Choices, Range, Space
from tuner.trial import Value

CANDIDATES = 24  # draws from ℓ of which one is proposed
MOST_GOOD = 25  # trials that make up ℓ at most, and the latest trials that g counts in full
_BLOCK = 100_000  # kernel values at once: they stay in the processor's cache

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """One coordinate with ``size`` values; a point holds the index."""

    size: int

    @property
    def features(self) -> int:
        return self.size


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One coordinate in [0, 1]. ``optional``: a point holds NaN where the choice before it says that it is off."""

    optional: bool = False

    @property
    def features(self) -> int:
        return 3


class Coordinates:
    """A space as the coordinates that densities live on: one for choices or a range, two for ``or_zero``."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._domains = space.searched
        self._inside: dict[str, Range] = {}  # ranges with or_zero, without their zero
        self.axes: list[_Choice | _Place] = []
        for name, domain in self._domains.items():
            if isinstance(domain, Choices):
                self.axes.append(_Choice(size=len(domain.choices)))
                continue
            if domain.or_zero:
                self._inside[name] = replace(domain, or_zero=False)
                self.axes.append(_Choice(size=2))
            self.axes.append(_Place(optional=domain.or_zero))

    def point(self, params: Mapping[str, Value]) -> list[float] | None:
        """The coordinates of a configuration; None where the space does not contain it."""
        point: list[float] = []
        try:
            for name, domain in self._domains.items():
                value = params[name]
                if isinstance(domain, Choices):
                    point.append(domain.choices.index(value))
                elif name not in self._inside:
                    point.append(domain.to_unit(value))
                elif value == 0:
                    point += [1.0, math.nan]
                else:
                    point += [0.0, self._inside[name].to_unit(value)]
        except ValueError:
            return None
        return point

    def params(self, point: Sequence[float]) -> dict[str, Value]:
        """The configuration at a point, constants included."""
        drawn: dict[str, Value] = {}
        rest = iter(point)
        for name, domain in self._domains.items():
            first = next(rest)
            if isinstance(domain, Choices):
                drawn[name] = domain.choices[int(first)]
            elif name not in self._inside:
                drawn[name] = domain.from_unit(first)
            else:
                place = next(rest)
                drawn[name] = domain.zero if first == 1.0 else self._inside[name].from_unit(place)
        return self._space.complete(drawn)


class Density:
    """A mixture of one kernel for each point, and a wide one for what nobody has seen (the prior).

    points: n rows of coordinates, the oldest first.
    """

    def __init__(self, axes: Sequence[_Choice | _Place], points: Floats) -> None:
        self._axes = axes
        self._points = points
        self._count = count = len(points)
        self._weights = np.append(_weights(count), 1.0)  # the prior weighs as much as one of the latest points
        self._sigmas = {i: self._widths(points[:, i]) for i, axis in enumerate(axes) if isinstance(axis, _Place)}
        self._sorted = {i: np.sort(points[~np.isnan(points[:, i]), i]) for i in self._sigmas}
        self._kernels = self._rows(points, self._sigmas, count + 1)
        prior = np.zeros((1, self._kernels.shape[1]))
        start = 0
        for axis in axes:
            if isinstance(axis, _Choice):
                prior[0, start : start + axis.size] = -math.log(axis.size)
            else:
                prior[0, start : start + 3] = _normal(np.array([0.5]), np.array([1.0]))
            start += axis.features
        self._kernels = np.vstack([self._kernels, prior])

    @property
    def total(self) -> float:
        """The sum of the kernels' weights; a kernel of one more point has weight 1 beside it."""
        return float(self._weights.sum())

    def log(self, features: Floats) -> Floats:
        """The logarithm of the density at points, given their features."""
        shift = np.log(self._weights / self.total)
        size = max(1, _BLOCK // len(shift))
        logs = np.empty(len(features))
        for start in range(0, len(features), size):
            block = features[start : start + size] @ self._kernels.T
            block += shift
            largest = block.max(axis=1, keepdims=True)
            block -= largest
            np.exp(block, out=block)
            logs[start : start + size] = np.log(block.sum(axis=1)) + largest[:, 0]
        return logs

    def join(self, point: Floats) -> Floats:
        """One more point: the weights of its kernel, which :meth:`log` does not count. The others' stay as they are."""
        sigmas = {}
        for i, others in self._sorted.items():
            sigmas[i] = np.array([self._width(others, point[i])])
            if not math.isnan(point[i]):
                self._sorted[i] = np.insert(others, np.searchsorted(others, point[i]), point[i])
        self._count += 1
        row: Floats = self._rows(point[None, :], sigmas, self._count + 1)[0]
        return row

    def draw(self, count: int, random: np.random.Generator) -> Floats:
        """Points from the density."""
        chosen = random.choice(len(self._weights), size=count, p=self._weights / self.total)
        points = np.empty((count, len(self._axes)))
        start = 0
        for i, axis in enumerate(self._axes):
            u = random.random(count)
            if isinstance(axis, _Choice):
                edges = np.cumsum(np.exp(self._kernels[chosen, start : start + axis.size]), axis=1)
                points[:, i] = np.minimum((u[:, None] >= edges).sum(axis=1), axis.size - 1)
            else:
                mu = np.append(self._points[:, i], 0.5)[chosen]
                sigma = np.append(self._sigmas[i], 1.0)[chosen]
                low, high = ndtr(-mu / sigma), ndtr((1 - mu) / sigma)
                places = np.clip(mu + sigma * ndtri(low + u * (high - low)), 0.0, 1.0)
                points[:, i] = np.where(np.isnan(mu), u, places)  # a kernel of a point that is off says nothing here
            start += axis.features
        # Off is decided by the choice before a place, whatever was drawn for the place.
        for i, axis in enumerate(self._axes):
            if isinstance(axis, _Place) and axis.optional:
                points[points[:, i - 1] == 1.0, i] = math.nan
        return points

    def _rows(self, points: Floats, sigmas: Mapping[int, Floats], kernels: int) -> Floats:
        """A row of weights for each point."""
        columns: list[Floats] = []
        for i, axis in enumerate(self._axes):
            if isinstance(axis, _Choice):
                own = np.full((len(points), axis.size), 1 / kernels)
                own[np.arange(len(points)), points[:, i].astype(int)] += 1
                columns.append(np.log(own / own.sum(axis=1, keepdims=True)))
            else:
                off = np.isnan(points[:, i])
                columns.append(np.where(off[:, None], 0.0, _normal(np.where(off, 0.5, points[:, i]), sigmas[i])))
        return np.hstack(columns)

    def _width(self, others: Floats, place: float) -> float:
        """What :meth:`_widths` says of a place among others in order."""
        if math.isnan(place) or not len(others):
            return 1.0
        at = int(np.searchsorted(others, place))
        gaps = [place - others[at - 1]] if at > 0 else []
        gaps += [others[at] - place] if at < len(others) else []
        return float(min(max(*gaps, 1 / min(100, self._count + 3)), 1.0))

    @staticmethod
    def _widths(places: Floats) -> Floats:
        """σ of each kernel: the distance to the farther neighbour, neither tiny nor wider than the range."""
        sigmas = np.ones(len(places))
        on = np.flatnonzero(~np.isnan(places))
        order = on[np.argsort(places[on], kind="stable")]
        ends = np.concatenate([[0.0], places[order], [1.0]])
        gaps = np.diff(ends)
        widths = np.maximum(gaps[:-1], gaps[1:])
        if len(order) > 1:  # the ends of the range are no neighbours
            widths[0], widths[-1] = gaps[1], gaps[-2]
        sigmas[order] = np.clip(widths, 1 / min(100, len(places) + 2), 1.0)
        return sigmas


def features(axes: Sequence[_Choice | _Place], points: Floats) -> Floats:
    """The features of points: what a kernel's weights are multiplied with."""
    columns: list[Floats] = []
    for i, axis in enumerate(axes):
        if isinstance(axis, _Choice):
            columns.append(np.eye(axis.size)[points[:, i].astype(int)])
        else:
            off = np.isnan(points[:, i])
            u = np.where(off, 0.0, points[:, i])
            columns.append(np.stack([1.0 - off, u, u * u], axis=1))
    return np.hstack(columns)


def propose(axes: Sequence[_Choice | _Place], good: Floats, bad: Floats, count: int, seed: int) -> Floats:
    """``count`` points, one after the other: each the best of its own candidates, with the earlier ones among the bad.

    good, bad: rows of coordinates, the oldest first.
    """
    random = np.random.default_rng(seed)
    below, above = Density(axes, good), Density(axes, bad)
    candidates = below.draw(count * CANDIDATES, random)
    rows = features(axes, candidates)
    log_good, log_bad = below.log(rows), math.log(above.total) + above.log(rows)
    chosen = []
    for first in range(0, len(candidates), CANDIDATES):
        group = slice(first, first + CANDIDATES)
        best = first + int(np.argmax(log_good[group] - log_bad[group]))
        chosen.append(best)
        rest = slice(first + CANDIDATES, None)
        log_bad[rest] = np.logaddexp(log_bad[rest], rows[rest] @ above.join(candidates[best]))
    return candidates[chosen]


def _weights(count: int) -> Floats:
    """Of points in order of age: the latest in full, the older the less."""
    if count < MOST_GOOD:
        return np.ones(count)
    return np.concatenate([np.linspace(1 / count, 1, num=count - MOST_GOOD), np.ones(MOST_GOOD)])


def _normal(mu: Floats, sigma: Floats) -> Floats:
    """The weights of 1, u and u² in the logarithm of a normal density that is cut to [0, 1]."""
    low, high = -mu / sigma, (1 - mu) / sigma
    flip = low > 0  # the logarithm of a difference of normal tails, from the side where they are not 1
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    mass = log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))
    constant = -np.log(sigma) - 0.5 * math.log(2 * math.pi) - mass - 0.5 * (mu / sigma) ** 2
    return np.stack([constant, mu / sigma**2, -0.5 / sigma**2], axis=1)
