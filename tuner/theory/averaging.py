"""Weight averaging: where the iterates of SGD lie, and what lies between them (slides "Trajectories of SGD" and
"Averaging Weights for Better Performance").

Points in weight space are flat vectors (P,) as :meth:`Pack.export` gives them. Many of them are judged at once, as
lanes of one pack.

Shapes: ``M`` points, ``P`` parameters, ``n`` rows, ``C`` outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.learning.device import DeviceData
from tuner.learning.lanes import Lane, Pack
from tuner.theory.runs import check_finite

Points = npt.NDArray[np.float64]

AT_ONCE = 64  # points judged in one pack


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Iterates of one training: start (P,), and one after each epoch from ``first`` on, (M, P)."""

    start: Points
    iterates: Points
    first: int

    @property
    def mean(self) -> Points:
        """w̄, the SWA solution: (P,)."""
        average: Points = self.iterates.mean(0)
        return average

    @property
    def radii(self) -> Points:
        """How far each iterate lies from the mean: (M,). Of a thin shell they are all nearly the same."""
        distances: Points = np.linalg.norm(self.iterates - self.mean, axis=1)
        return distances

    @property
    def steps(self) -> Points:
        """How far apart iterates of epochs that follow each other lie: (M - 1,)."""
        distances: Points = np.linalg.norm(np.diff(self.iterates, axis=0), axis=1)
        return distances

    @property
    def displacement(self) -> float:
        """How far the last iterate lies from the start."""
        return float(np.linalg.norm(self.iterates[-1] - self.start))


def follow(lanes: Sequence[Lane], data: DeviceData, *, first: int) -> list[Trajectory]:
    """Train lanes side by side, without averaging, and keep their iterates after each epoch from ``first`` on.

    Raises ValueError when the horizons of the lanes differ; TunerError when networks diverge.
    """
    (horizon,) = {lane.config.max_epochs for lane in lanes}
    pack = Pack([_plain(lane) for lane in lanes], data)
    starts = [_theta(pack, i) for i in range(len(lanes))]
    kept: list[list[Points]] = [[] for _ in lanes]
    for epoch in range(1, horizon + 1):
        pack.train_epoch([epoch] * len(lanes))
        if epoch >= first:
            for i, own in enumerate(kept):
                own.append(_theta(pack, i))
    check_finite(lanes, data, np.isfinite([own[-1].sum() for own in kept]))
    return [
        Trajectory(start=start, iterates=np.array(own), first=first) for start, own in zip(starts, kept, strict=True)
    ]


def outputs_at(points: Points, lane: Lane, data: DeviceData, x: Tensor) -> Tensor:
    """What the lane's network answers with each point for its weights: (M, P), x (n, D) -> (M, n, C)."""
    found = []
    for first in range(0, len(points), AT_ONCE):
        some = points[first : first + AT_ONCE]
        pack = Pack([_plain(replace(lane, number=i)) for i in range(len(some))], data)
        for i, point in enumerate(some):
            pack.restore(i, {"theta": point})
        found.append(pack.outputs(x))
    return torch.cat(found)


def line(a: Points, b: Points, at: Sequence[float]) -> Points:
    """a + t(b - a) for each t: (M, P)."""
    t = np.asarray(at, dtype=np.float64)[:, None]
    points: Points = a + t * (b - a)
    return points


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The plane through three points, with an orthonormal basis u, v: p = origin + x·u + y·v.

    corners: (x, y) of the three points; the first is the origin (0, 0).
    """

    origin: Points
    u: Points
    v: Points
    corners: tuple[tuple[float, float], ...]

    @classmethod
    def through(cls, a: Points, b: Points, c: Points) -> Plane:
        """Gram and Schmidt, as Garipov et al. 2018 and Izmailov et al. 2018 draw theirs. Raises ValueError where the
        points lie on a line.
        """
        along = b - a
        length = float(np.linalg.norm(along))
        across = c - a
        u = along / length if length else along
        x = float(across @ u)
        across = across - x * u
        height = float(np.linalg.norm(across))
        if not length or height <= 1e-9 * length:
            raise ValueError("three points on a line span no plane")
        return cls(origin=a, u=u, v=across / height, corners=((0.0, 0.0), (length, 0.0), (x, height)))

    def coordinates(self, point: Points) -> tuple[float, float]:
        """(x, y) of a point's projection onto the plane."""
        return float((point - self.origin) @ self.u), float((point - self.origin) @ self.v)

    def grid(self, xs: Sequence[float], ys: Sequence[float]) -> Points:
        """The points of a grid, row by row of equal y: (len(ys) · len(xs), P)."""
        points: Points = np.array([self.origin + x * self.u + y * self.v for y in ys for x in xs])
        return points


def _plain(lane: Lane) -> Lane:
    config = replace(lane.config, averaging="none", patience=0, keep="last")
    return replace(lane, config=config)


def _theta(pack: Pack, i: int) -> Points:
    return pack.export(i)["theta"].astype(np.float64)
