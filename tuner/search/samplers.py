"""Samplers: who proposes the configuration of a slot.

A sampler fills slots, not requests: :meth:`Sampler.draw` gets slot numbers and gives one configuration for each. For
``random``, ``qmc`` and ``grid`` a configuration is a function of (study seed, slot number) alone, so the study is the
same for any number of workers, packs and crashes. ``tpe`` learns: what it proposes depends on what has finished.

In a space with few points, ``random``, ``qmc`` and ``tpe`` may propose a configuration twice; ``grid`` never does. A
repeated configuration is trained again from other random numbers, which a study of noise may want and a study of
choices may not: use ``grid`` for small discrete spaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from tuner.search import tpe
from tuner.search.history import Observation, ranked
from tuner.space import Space
from tuner.spec import Direction, StudySpec
from tuner.trial import Value

STARTUP_TRIALS = 10  # results that TPE learns from, and slots it leaves to random; Optuna's default

# The first words of each random stream's path. The lanes' own streams (weights, order, masks) are hashed otherwise.
_RANDOM, _SOBOL, _TPE = 1, 2, 3


class Sampler(Protocol):
    """Fills slots with configurations. Not thread-safe; each worker has its own."""

    def draw(self, numbers: Sequence[int], history: Callable[[], Sequence[Observation]]) -> list[dict[str, Value]]:
        """One configuration (every hyperparameter, constants included) for each slot number, in their order.

        ``history`` loads the trials that have parameters, in the order of their slots, for samplers that learn; the
        others never call it. Trials with a value are learned from, those without are avoided.
        """
        ...


class RandomSampler:
    """Slot k is drawn from its own generator, seeded with (study seed, k)."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._seed = seed

    def draw(self, numbers: Sequence[int], history: Callable[[], Sequence[Observation]]) -> list[dict[str, Value]]:  # noqa: ARG002
        return [self.at(number) for number in numbers]

    def at(self, number: int) -> dict[str, Value]:
        """The configuration of one slot."""
        point = np.random.default_rng(_stream(self._seed, _RANDOM, number)).random(len(self._space.searched))
        return self._space.from_unit(point.tolist())


class QmcSampler:
    """Slot k is point k of a scrambled Sobol sequence (Owen 1998), which covers the space more evenly than chance.

    The first 2^m slots are the most even; the scrambling depends on the study seed alone.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._sobol = qmc.Sobol(len(space.searched), rng=np.random.default_rng(_stream(seed, _SOBOL)))

    def draw(self, numbers: Sequence[int], history: Callable[[], Sequence[Observation]]) -> list[dict[str, Value]]:  # noqa: ARG002
        return [self._at(number) for number in numbers]

    def _at(self, number: int) -> dict[str, Value]:
        if number < self._sobol.num_generated:
            self._sobol.reset()
        if number > self._sobol.num_generated:
            self._sobol.fast_forward(number - self._sobol.num_generated)
        return self._space.from_unit(self._sobol.random(1)[0].tolist())


class GridSampler:
    """Slot k is point k of the full grid; the last hyperparameter moves fastest."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def draw(self, numbers: Sequence[int], history: Callable[[], Sequence[Observation]]) -> list[dict[str, Value]]:  # noqa: ARG002
        """As :meth:`Sampler.draw`. Raises IndexError for a number outside the grid."""
        return [self._space.grid_point(number) for number in numbers]


class TpeSampler:
    """Tree-structured Parzen estimator (:mod:`tuner.search.tpe`): a whole pack from one fit.

    The pack's earlier draws, and the trials that others are running, count as bad results until they finish ("constant
    liar"), which keeps a pack from being one point many times.

    The first STARTUP_TRIALS slots, and every slot drawn before as many trials have a result, are those of
    :class:`RandomSampler`. Trials that are pruned, or paused at a rung, are learned from as Optuna does from pruned
    ones: behind all complete ones, the longer trained first; diverged ones last of all.
    """

    def __init__(self, space: Space, seed: int, direction: Direction) -> None:
        self._seed = seed
        self._direction = direction
        self._random = RandomSampler(space, seed)
        self._coordinates = tpe.Coordinates(space)
        self._points: dict[int, list[float] | None] = {}  # by slot number: parameters never change once drawn

    def draw(self, numbers: Sequence[int], history: Callable[[], Sequence[Observation]]) -> list[dict[str, Value]]:
        """As :meth:`Sampler.draw`; repeatable for equal numbers and equal history."""
        learned = [number for number in numbers if number >= STARTUP_TRIALS]
        if not learned:
            return self._random.draw(numbers, history)
        trials = [trial for trial in history() if self._point(trial) is not None]
        if sum(trial.judged for trial in trials) < STARTUP_TRIALS:
            return self._random.draw(numbers, history)
        good = {trial.number for trial in self._good(trials)}
        bad = [trial for trial in trials if trial.number not in good]
        # Startup slots that are drawn late, beside others, are pending too.
        pending = [self._coordinates.point(self._random.at(n)) for n in numbers if n < STARTUP_TRIALS]
        proposed = tpe.propose(
            self._coordinates.axes,
            self._array([self._point(trial) for trial in trials if trial.number in good]),
            self._array([*(self._point(trial) for trial in bad), *pending]),
            len(learned),
            int(_stream(self._seed, _TPE, learned[0]).generate_state(1)[0]),
        )
        drawn = dict(zip(learned, proposed.tolist(), strict=True))
        return [self._coordinates.params(drawn[n]) if n in drawn else self._random.at(n) for n in numbers]

    def _good(self, trials: Sequence[Observation]) -> list[Observation]:
        order = ranked(trials, self._direction)
        return order[: min(math.ceil(0.1 * len(order)), tpe.MOST_GOOD)]

    def _point(self, trial: Observation) -> list[float] | None:
        if trial.number not in self._points:
            self._points[trial.number] = self._coordinates.point(trial.params)
        return self._points[trial.number]

    def _array(self, points: Sequence[list[float] | None]) -> NDArray[np.float64]:
        return np.array(points, dtype=np.float64).reshape(len(points), len(self._coordinates.axes))


def make_sampler(spec: StudySpec, space: Space | None = None) -> Sampler:
    """The sampler a study's spec asks for, over its space or a narrowed one (see :mod:`tuner.search.refine`)."""
    space, seed = spec.search_space if space is None else space, spec.study.seed
    match spec.search.sampler:
        case "random":
            return RandomSampler(space, seed)
        case "qmc":
            return QmcSampler(space, seed)
        case "grid":
            return GridSampler(space)
        case "tpe":
            return TpeSampler(space, seed, spec.direction)


def _stream(seed: int, *path: int) -> np.random.SeedSequence:
    """A random stream for a purpose (and a slot) of a study; streams of different paths are unrelated."""
    return np.random.SeedSequence(seed, spawn_key=path)
