"""Synthetic sources: distributions whose truth is known, so that a measured risk can be held against the exact one.

Each gives independent rows (x, y), and knows its Bayes-optimal predictor f*(x) = E[y|x] (lecture, slide "Optimal
Hypothesis f*"), the error that no model can go below, and the expected risk of any linear predictor. With a
classification metric y is a class, with a regression metric the same y is the number 0 or 1.

Shapes: ``n`` rows, ``D`` dimensions, ``G`` points of a quadrature.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg, special, stats

from tuner.spec import DataSection, SyntheticSection, Vector

Floats = npt.NDArray[np.float64]

_REACH = 9.0  # standard deviations of a Gaussian that a quadrature covers: what is left out is below 1e-18
_LINE = 1_000  # panels that a quadrature over a line has for each Gaussian, of its own width
_PLANE = (200, 60)  # and over a plane in either direction
_NODES = 4  # points of Gauss's rule in a panel
_GAUSS = (64, 40)  # points of Gauss's rules, along a moon's arc and across it in either direction
_ARC_SPACING = 0.25  # standard deviations between points of a moon's arc, over which its density is an integral
_ARC = (32, 4096)  # and how many points there are, at least and at most


@dataclass(frozen=True, kw_only=True)
class Moments:
    """First and second moments: of x (D,), of xxᵀ (D, D), of xy (D,), of y and of y²."""

    x: Floats
    xx: Floats
    xy: Floats
    y: float
    yy: float

    def risk(self, theta: Floats, intercept: float) -> float:
        """E[(θᵀx + b - y)²]."""
        quadratic = theta @ self.xx @ theta + 2 * intercept * (theta @ self.x) + intercept**2
        return float(quadratic - 2 * (theta @ self.xy) - 2 * intercept * self.y + self.yy)


class Truth(ABC):
    """A distribution of (x, y). Equal ones, with equal seeds, give equal rows."""

    classes: bool  # whether y is 0 or 1; else it is any number

    @property
    @abstractmethod
    def dimension(self) -> int:
        """D."""

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """n independent rows: x (n, D) and y (n,)."""

    @abstractmethod
    def optimal(self, x: Floats) -> Floats:
        """f*(x) = E[y|x], which for classes is P(y = 1|x): (n, D) -> (n,)."""

    @property
    @abstractmethod
    def moments(self) -> Moments:
        """In closed form."""

    @abstractmethod
    def variance(self, x: Floats) -> Floats:
        """Var(y|x): (n, D) -> (n,)."""

    @property
    @abstractmethod
    def irreducible(self) -> float:
        """R(f*) = E[Var(y|x)], the squared loss that no model goes below (slide "Optimal Hypothesis f*")."""

    @property
    def bayes_error(self) -> float:
        """E[min(f*, 1 - f*)], the zero-one error that no classifier goes below. Raises ValueError without classes."""
        raise ValueError("the target is a number: it has no zero-one error")

    def expected_risk(self, theta: Sequence[float], intercept: float = 0.0) -> float:
        """R(θ) = E[(θᵀx + b - y)²], exactly (slide "Example of Expected and Empirical Risk using GMM")."""
        return self.moments.risk(np.asarray(theta, dtype=np.float64), intercept)

    def best_linear(self, *, intercept: bool = False) -> tuple[Floats, float]:
        """θ and b of f_H, the linear predictor of the smallest expected risk: the normal equations. b = 0 without one.

        >>> theta, _ = GaussianMixture().best_linear()
        >>> theta.tolist()
        [0.2]
        """
        m = self.moments
        if not intercept:
            return _solution(m.xx, m.xy), 0.0
        theta = _solution(m.xx - np.outer(m.x, m.x), m.xy - m.y * m.x)
        return theta, float(m.y - theta @ m.x)


class Classes(Truth):
    """Of two classes, where all errors follow from the distribution of f*(x) = P(y = 1|x)."""

    classes = True

    @abstractmethod
    def quadrature(self) -> tuple[Floats, Floats]:
        """Values of f* (G,) and weights (G,) that add up to 1: E[g(f*(x))] is the sum of weight times g(value)."""

    def variance(self, x: Floats) -> Floats:
        """f*(1 - f*)."""
        p = self.optimal(x)
        return p * (1 - p)

    @cached_property
    def irreducible(self) -> float:
        p, weight = self.quadrature()
        return float(weight @ (p * (1 - p)))

    @cached_property
    def bayes_error(self) -> float:
        p, weight = self.quadrature()
        return float(weight @ np.minimum(p, 1 - p))


@dataclass(frozen=True, kw_only=True)
class GaussianMixture(Classes):
    """y = 1 with probability ``prior``; x|y = k is normal with mean ``means[k]`` and variance ``variances[k]`` in every
    direction; then y is flipped with probability ``label_noise`` (slide "Gaussian Mixture Model", whose numbers are the
    defaults). A mean of one number is that number in each of ``dimensions`` coordinates.

    The slide's example f(x) = θx has the expected risk R(θ) = ½θ²(μ₁² + σ₁²) + ½(θ²(μ₂² + σ₂²) - 2θμ₂ + 1), which is
    5θ² - 2θ + ½ for its numbers μ₁ = σ₁ = 1, μ₂ = σ₂ = 2 (its last line writes σ₁ for σ₂):

    >>> truth = GaussianMixture()
    >>> [round(truth.expected_risk([theta]), 12) for theta in (0.0, 0.2, 1.0)]
    [0.5, 0.3, 3.5]
    >>> round(truth.optimal(np.array([[1.0]])).item(), 4), round(truth.irreducible, 4)
    (0.3062, 0.1956)
    """

    means: tuple[Vector, Vector] = ((1.0,), (2.0,))
    variances: tuple[float, float] = (1.0, 4.0)
    prior: float = 0.5
    label_noise: float = 0.0
    dimensions: int = 1

    @property
    def dimension(self) -> int:
        return max(self.dimensions, *map(len, self.means))

    @cached_property
    def centers(self) -> Floats:
        """(2, D)."""
        return np.stack([np.broadcast_to(np.array(mean), self.dimension) for mean in self.means])

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        k = (rng.random(n) < self.prior).astype(np.int64)
        x = self.centers[k] + np.sqrt(self.variances)[k, None] * rng.standard_normal((n, self.dimension))
        return x, _flipped(k, self.label_noise, rng)

    def optimal(self, x: Floats) -> Floats:
        return self._optimal(np.stack([((x - center) ** 2).sum(1) for center in self.centers]))

    def _optimal(self, squares: Floats) -> Floats:
        """From the squared distances to both means, (2, n)."""
        log_odds = math.log(self.prior / (1 - self.prior))
        for sign, square, variance in zip((-1, 1), squares, self.variances, strict=True):
            log_odds = log_odds - sign * (square / variance + self.dimension * math.log(variance)) / 2
        return _with_noise(special.expit(log_odds), self.label_noise)

    @cached_property
    def moments(self) -> Moments:
        p = np.array([1 - self.prior, self.prior])
        second = [
            np.outer(c, c) + v * np.eye(self.dimension) for c, v in zip(self.centers, self.variances, strict=True)
        ]
        label = _with_noise(np.array([0.0, 1.0]), self.label_noise)  # E[y|k]
        return Moments(
            x=p @ self.centers,
            xx=p[0] * second[0] + p[1] * second[1],
            xy=(p * label) @ self.centers,
            y=float(p @ label),
            yy=float(p @ label),
        )

    def quadrature(self) -> tuple[Floats, Floats]:
        """f* depends on two things: where x lies along the line through both means, and how far off that line. Either
        is cut into panels as fine as each of the two Gaussians asks for where it lies.
        """
        ends = np.array([0.0, np.linalg.norm(self.centers[1] - self.centers[0])])
        deviations, degrees = np.sqrt(self.variances), self.dimension - 1
        along, across = _PLANE if degrees else (_LINE, 0)
        edges = np.linspace(-_REACH, _REACH, along + 1)
        t, width = _panels(np.concatenate([end + d * edges for end, d in zip(ends, deviations, strict=True)]))
        weights = [width * stats.norm.pdf(t, end, d) for end, d in zip(ends, deviations, strict=True)]
        r = np.zeros(1)
        if degrees:
            root = math.sqrt(degrees)
            edges = np.linspace(max(root - _REACH, 0.0), root + _REACH, across + 1)
            r, width = _panels(np.outer(deviations, edges).ravel())
            radial = [width * stats.chi.pdf(r / d, degrees) / d for d in deviations]
            weights = [np.outer(*both).ravel() for both in zip(weights, radial, strict=True)]
        squares = ((t[None, :] - ends[:, None]) ** 2)[:, :, None] + r**2
        zero, one = (weight / weight.sum() for weight in weights)
        return self._optimal(squares.reshape(2, -1)), (1 - self.prior) * zero + self.prior * one


@dataclass(frozen=True, kw_only=True)
class LinearNoise(Truth):
    """y = θᵀx + ε, x standard normal, ε normal with standard deviation ``noise`` (slide "Optimal Hypothesis f*").

    >>> truth = LinearNoise(theta=(3.0, 4.0), noise=0.5)
    >>> round(truth.irreducible, 12), truth.expected_risk([3.0, 4.0]), truth.expected_risk([0.0, 0.0])
    (0.25, 0.25, 25.25)
    """

    theta: Vector
    noise: float = 1.0
    classes = False

    @property
    def dimension(self) -> int:
        return len(self.theta)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        x = rng.standard_normal((n, self.dimension))
        return x, self.optimal(x) + self.noise * rng.standard_normal(n)

    def optimal(self, x: Floats) -> Floats:
        y: Floats = x @ np.array(self.theta)
        return y

    def variance(self, x: Floats) -> Floats:
        return np.full(len(x), self.noise**2)

    @cached_property
    def moments(self) -> Moments:
        theta = np.array(self.theta)
        yy = float(theta @ theta) + self.noise**2
        return Moments(x=np.zeros(self.dimension), xx=np.eye(self.dimension), xy=theta, y=0.0, yy=yy)

    @property
    def irreducible(self) -> float:
        return self.noise**2


@dataclass(frozen=True, kw_only=True)
class TwoMoons(Classes):
    """Two half circles of radius 1 in the plane: of class 0 the upper one around (0, 0), of class 1 the lower one
    around (1, ½); x lies on its arc uniformly, moved by normal noise of standard deviation ``noise`` in either
    direction; then y is flipped with probability ``label_noise``. The shape of scikit-learn's ``make_moons``, whose
    rows are spaced evenly along the arcs, so not independent.
    """

    noise: float = 0.2
    prior: float = 0.5
    label_noise: float = 0.0
    dimension = 2

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        k = (rng.random(n) < self.prior).astype(np.int64)
        arcs = _arcs(np.pi * rng.random(n))
        x = arcs[k, np.arange(n)] + self.noise * rng.standard_normal((n, 2))
        return x, _flipped(k, self.label_noise, rng)

    def optimal(self, x: Floats) -> Floats:
        """Of a noise of 0 that of the nearer arc."""
        p = np.concatenate([self._optimal(rows) for rows in _chunks(x)]) if len(x) else np.zeros(0)
        return _with_noise(p, self.label_noise)

    def _optimal(self, x: Floats) -> Floats:
        points = int(np.clip(np.pi / max(_ARC_SPACING * self.noise, 1e-9), *_ARC))
        arcs = _arcs(np.pi * (np.arange(points) + 0.5) / points)  # (2, arc, 2)
        squares = (
            (x**2).sum(1)[:, None] - 2 * np.einsum("nd,kad->kna", x, arcs) + (arcs**2).sum(2)[:, None, :]
        )  # (2, n, arc)
        if self.noise == 0:
            nearest = squares.min(2)
            return np.where(nearest[1] == nearest[0], self.prior, (nearest[1] < nearest[0]).astype(np.float64))
        log_density = special.logsumexp(-squares / (2 * self.noise**2), axis=2)
        p: Floats = special.expit(log_density[1] - log_density[0] + math.log(self.prior / (1 - self.prior)))
        return p

    @cached_property
    def moments(self) -> Moments:
        p = np.array([1 - self.prior, self.prior])
        label = _with_noise(np.array([0.0, 1.0]), self.label_noise)
        mean = np.array([[0.0, 2 / np.pi], [1.0, 0.5 - 2 / np.pi]])
        around = (0.5 - np.diag([0, (2 / np.pi) ** 2]) - 0.5 * (1 - np.eye(2))) + self.noise**2 * np.eye(2)
        second = [np.outer(m, m) + around for m in mean]
        return Moments(
            x=p @ mean,
            xx=p[0] * second[0] + p[1] * second[1],
            xy=(p * label) @ mean,
            y=float(p @ label),
            yy=float(p @ label),
        )

    def quadrature(self) -> tuple[Floats, Floats]:
        """Arc times Gaussian noise, as a product of Gauss's rules: of the noise Hermite's."""
        t, weight_t = np.polynomial.legendre.leggauss(_GAUSS[0])
        z, weight_z = np.polynomial.hermite_e.hermegauss(_GAUSS[1])
        arcs = _arcs(np.pi * (t + 1) / 2)
        moved = self.noise * np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)
        points = (arcs[:, :, None, :] + moved).reshape(-1, 2)
        each = np.einsum("t,a,b->tab", weight_t / 2, weight_z, weight_z).ravel() / weight_z.sum() ** 2
        return self.optimal(points), np.concatenate([(1 - self.prior) * each, self.prior * each])


def truth_of(name: str, section: SyntheticSection) -> Truth:
    """The distribution that ``synthetic:name`` and the keys of ``[data.synthetic]`` say. Raises KeyError when unknown.

    θ of ``linear_noise``, where nobody gave one, is drawn from the section's seed: of length 1 in a random direction.
    """
    given: dict[str, Any] = {
        key: getattr(section, key)
        for key in ("means", "variances", "prior", "label_noise", "noise", "theta")
        if getattr(section, key) is not None
    }
    if name == "gaussian_mixture":
        return GaussianMixture(**given, dimensions=section.dimension or 1)
    if name == "linear_noise":
        if "theta" not in given:
            direction = np.random.default_rng([section.seed, 1]).standard_normal(section.dimension or 1)
            given["theta"] = tuple((direction / np.linalg.norm(direction)).tolist())
        return LinearNoise(**given)
    if name == "two_moons":
        return TwoMoons(**given)
    raise KeyError(name)


def known_truth(data: DataSection) -> Truth | None:
    """The distribution that a study's rows come from; None where nobody knows it, as after a corruption."""
    scheme, _, name = data.source.partition(":")
    if scheme != "synthetic" or data.corrupt is not None:
        return None
    return truth_of(name, data.synthetic or SyntheticSection())


def rows_of(truth: Truth, section: SyntheticSection) -> tuple[Floats, Floats]:
    """The table's rows: x (n, D) and y (n,)."""
    return truth.sample(section.rows, np.random.default_rng([section.seed, 0]))


def _flipped(k: npt.NDArray[np.int64], probability: float, rng: np.random.Generator) -> Floats:
    """Labels, each the other class's with this probability."""
    flip = rng.random(len(k)) < probability
    return np.where(flip, 1 - k, k).astype(np.float64)


def _with_noise(p: Floats, label_noise: float) -> Floats:
    """P(y = 1|x) after the labels were flipped."""
    return label_noise + (1 - 2 * label_noise) * p


def _arcs(angle: Floats) -> Floats:
    """Points of both moons at these angles: (2, len(angle), 2)."""
    upper = np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.stack([upper, np.array([1.0, 0.5]) - upper])


def _panels(edges: Floats) -> tuple[Floats, Floats]:
    """Points and weights of Gauss's rule in every panel between edges, which come in any order."""
    z, weight = np.polynomial.legendre.leggauss(_NODES)
    edges = np.sort(edges)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (1 + z)).ravel(), (half * weight).ravel()


def _solution(matrix: Floats, vector: Floats) -> Floats:
    solution: Floats = linalg.solve(matrix, vector)
    return solution


def _chunks(x: Floats, rows: int = 4096) -> Iterator[Floats]:
    return (x[start : start + rows] for start in range(0, len(x), rows))
