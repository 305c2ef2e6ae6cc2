"""Samplers: who proposes the configuration of a slot.

A sampler fills slots, not requests: :meth:`Sampler.draw` gets slot numbers and gives one configuration for each. For
``random``, ``qmc`` and ``grid`` a configuration is a function of (study seed, slot number) alone, so the study is the
same for any number of workers, packs and crashes. ``tpe`` learns: what it proposes depends on what has finished.

In a space with few points, ``random``, ``qmc`` and ``tpe`` may propose a configuration twice; ``grid`` never does. A
repeated configuration is trained again from other random numbers, which a study of noise may want and a study of
choices may not: use ``grid`` for small discrete spaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from tuner.search.distributions import decode, distributions_for, encode, suggest
from tuner.space import Space
from tuner.spec import Direction, StudySpec
from tuner.trial import Value

STARTUP_TRIALS = 10  # finished trials that TPE learns from, and slots it leaves to random; Optuna's default
CANDIDATES = 24  # points of which TPE proposes the one of highest expected improvement; Optuna's default

# The first words of each random stream's path. The lanes' own streams (weights, order, masks) are hashed otherwise.
_RANDOM, _SOBOL, _TPE = 1, 2, 3


class Sampler(Protocol):
    """Fills slots with configurations. Not thread-safe; each worker has its own."""

    def draw(self, numbers: Sequence[int], finished: Callable[[], optuna.Study]) -> list[dict[str, Value]]:
        """One configuration (every hyperparameter, constants included) for each slot number, in their order.

        ``finished`` loads the study's trials, for samplers that learn; the others never call it. Trials it holds as
        COMPLETE or PRUNED are learned from, those it holds as RUNNING are avoided.
        """
        ...


class RandomSampler:
    """Slot k is drawn from its own generator, seeded with (study seed, k)."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._seed = seed

    def draw(self, numbers: Sequence[int], finished: Callable[[], optuna.Study]) -> list[dict[str, Value]]:  # noqa: ARG002
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

    def draw(self, numbers: Sequence[int], finished: Callable[[], optuna.Study]) -> list[dict[str, Value]]:  # noqa: ARG002
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

    def draw(self, numbers: Sequence[int], finished: Callable[[], optuna.Study]) -> list[dict[str, Value]]:  # noqa: ARG002
        """As :meth:`Sampler.draw`. Raises IndexError for a number outside the grid."""
        return [self._space.grid_point(number) for number in numbers]


class TpeSampler:
    """Tree-structured Parzen estimator: Optuna's, asked outside the study's storage.

    The finished trials are copied into a study in memory, and every slot is asked there, so that a proposal costs no
    storage call. All hyperparameters are modelled jointly (``multivariate``). A pack is drawn one slot after the other;
    its earlier draws, and the trials other workers are running, count as bad results until they finish ("constant
    liar"), which keeps a pack from being one point many times.

    The first STARTUP_TRIALS slots, and every slot drawn before as many trials have finished, are those of
    :class:`RandomSampler`. With a pruner, trials finish when their bracket ends, so TPE learns from bracket to bracket.
    Pruned trials are learned from as Optuna does: behind all complete ones, the longer trained first.
    """

    def __init__(self, space: Space, seed: int, direction: Direction) -> None:
        self._space = space
        self._seed = seed
        self._direction = direction
        self._random = RandomSampler(space, seed)

    def draw(self, numbers: Sequence[int], finished: Callable[[], optuna.Study]) -> list[dict[str, Value]]:
        """As :meth:`Sampler.draw`; repeatable for equal numbers and equal finished trials."""
        if all(number < STARTUP_TRIALS for number in numbers):
            return self._random.draw(numbers, finished)
        trials = finished().get_trials(deepcopy=False)
        if sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials) < STARTUP_TRIALS:
            return self._random.draw(numbers, finished)
        study = self._copy(trials, first=numbers[0])
        return [self._at(number, study) for number in numbers]

    def _at(self, number: int, study: optuna.Study) -> dict[str, Value]:
        if number >= STARTUP_TRIALS:
            return suggest(study.ask(), self._space)
        params = self._random.at(number)
        study.add_trial(self._trial(params, TrialState.RUNNING))
        return params

    def _copy(self, trials: Sequence[FrozenTrial], first: int) -> optuna.Study:
        """The trials that matter, and of each what matters, in a study of its own."""
        seed = int(_stream(self._seed, _TPE, first).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS,
            n_ei_candidates=CANDIDATES,
            multivariate=True,
            constant_liar=True,
            seed=seed,
        )
        with _quiet():
            study = optuna.create_study(
                storage=optuna.storages.InMemoryStorage(),
                sampler=sampler,
                pruner=optuna.pruners.NopPruner(),
                direction=self._direction,
            )
        for trial in trials:
            if trial.state == TrialState.COMPLETE:
                copied = self._trial(decode(trial.params, self._space), trial.state, value=trial.value)
            elif trial.state == TrialState.PRUNED:
                last = {} if trial.last_step is None else {trial.last_step: trial.intermediate_values[trial.last_step]}
                copied = self._trial(decode(trial.params, self._space), trial.state, intermediate_values=last)
            elif trial.state == TrialState.RUNNING and trial.params:
                copied = self._trial(decode(trial.params, self._space), trial.state)
            else:
                continue
            study.add_trial(copied)
        return study

    def _trial(
        self,
        params: dict[str, Value],
        state: TrialState,
        value: float | None = None,
        intermediate_values: dict[int, float] | None = None,
    ) -> FrozenTrial:
        return optuna.trial.create_trial(
            state=state,
            value=value,
            params=encode(params, self._space),
            distributions=distributions_for(params, self._space),
            intermediate_values=intermediate_values,
        )


def make_sampler(spec: StudySpec) -> Sampler:
    """The sampler a study's spec asks for."""
    space, seed = spec.search_space, spec.study.seed
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's line on stderr about each new study: this one is nobody's concern."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
