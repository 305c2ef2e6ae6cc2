"""One contract for every sampler; then what each promises beyond it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from tests.spaces import study
from tuner.search.history import Observation, ranked
from tuner.search.samplers import (
    STARTUP_TRIALS,
    GridSampler,
    QmcSampler,
    RandomSampler,
    Sampler,
    TpeSampler,
    make_sampler,
)
from tuner.space import Range, Space
from tuner.spec import Direction, StudySpec
from tuner.spec import Sampler as SamplerName
from tuner.trial import HYPERPARAMETERS, TrialConfig, Value

SAMPLERS: list[SamplerName] = ["grid", "random", "tpe", "qmc"]
STATELESS: list[SamplerName] = ["grid", "random", "qmc"]


def goodness(params: dict[str, Value]) -> float:
    """A planted optimum at η = 0.01 and dropout 0.2, without weight decay; 0 is best."""
    rate, dropout = float(params["learning_rate"]), float(params.get("dropout", 0.0))
    return (math.log10(rate) + 2) ** 2 + (5 * (dropout - 0.2)) ** 2 + (params["weight_decay"] != 0)


State = Literal["complete", "pruned", "running"]


def finished(spec: StudySpec, count: int, *, state: State = "complete") -> list[Observation]:
    """The first trials of a study: random, and finished with their :func:`goodness`."""
    random = RandomSampler(spec.search_space, seed=99)
    return [observed(number, random.at(number), spec.direction, state) for number in range(count)]


def observed(number: int, params: dict[str, Value], direction: Direction, state: State = "complete") -> Observation:
    value = goodness(params) if direction == "minimize" else -goodness(params)
    return Observation(
        number=number,
        params=params,
        value=None if state == "running" else value,
        epochs=3,
        complete=state == "complete",
    )


def never() -> list[Observation]:
    raise AssertionError("this sampler does not learn: it has no business in the storage")


@pytest.mark.parametrize("name", SAMPLERS)
class TestContract:
    """Holds for every sampler, before and after there is something to learn from."""

    @pytest.fixture(params=[0, 30])
    def history(self, request: pytest.FixtureRequest, name: SamplerName) -> list[Observation]:
        return finished(study(name), request.param)

    def draw(self, name: SamplerName, history: list[Observation], numbers: Sequence[int], seed: int = 5) -> list[Any]:
        return make_sampler(study(name, study={"seed": seed})).draw(numbers, lambda: history)

    def test_one_for_each_slot(self, name: SamplerName, history: list[Observation]) -> None:
        assert len(self.draw(name, history, range(8, 24))) == 16
        assert self.draw(name, history, []) == []

    def test_every_hyperparameter_inside_its_domain(self, name: SamplerName, history: list[Observation]) -> None:
        spec = study(name)
        for params in self.draw(name, history, range(40)):
            assert list(params) == list(HYPERPARAMETERS)
            for key, domain in spec.search_space.searched.items():
                assert domain.contains(params[key])
                assert domain.exact(params[key]) == params[key]
            assert all(params[key] == value for key, value in spec.search_space.constants.items())
            types = {"float": float, "int": int, "bool": bool, "categorical": str}
            assert all(type(params[key]) is types[rule.kind] for key, rule in HYPERPARAMETERS.items())
            assert isinstance(spec.trial_config(params), TrialConfig)

    def test_repeatable(self, name: SamplerName, history: list[Observation]) -> None:
        assert self.draw(name, history, range(20, 40)) == self.draw(name, history, range(20, 40))

    def test_history_is_left_alone(self, name: SamplerName, history: list[Observation]) -> None:
        before = [replace(trial, params=dict(trial.params)) for trial in history]
        self.draw(name, history, range(20, 40))
        assert history == before

    def test_a_space_of_single_values(self, name: SamplerName, history: list[Observation]) -> None:
        """What refinement may leave: every domain there, none with a choice."""
        spec = study(name)
        point = RandomSampler(spec.search_space, 1).at(3)
        single = Space(
            {
                key: replace(domain, low=point[key], high=point[key], step=None, or_zero=False)  # type: ignore[arg-type]
                if isinstance(domain, Range) and point[key] != 0
                else type(spec.search_space["optimizer"])(value=point[key])  # type: ignore[call-arg]
                for key, domain in spec.search_space.items()
            }
        )
        if name != "grid":
            drawn = make_sampler(spec, single).draw([30, 31], lambda: history)
            assert drawn == [pytest.approx(point), pytest.approx(point)]


@pytest.mark.parametrize("name", STATELESS)
class TestStateless:
    """A configuration depends on nothing but the study seed and the slot number."""

    def test_never_reads_the_storage(self, name: SamplerName) -> None:
        assert len(make_sampler(study(name)).draw(range(4), never)) == 4, "and the history, which raises, was not asked"

    @pytest.mark.parametrize("size", [1, 3, 7])
    def test_packs_do_not_matter(self, name: SamplerName, size: int) -> None:
        sampler = make_sampler(study(name))
        packs = [range(first, min(first + size, 40)) for first in range(0, 40, size)]
        in_packs = {
            number: params for pack in packs for number, params in zip(pack, sampler.draw(pack, never), strict=True)
        }
        assert [in_packs[number] for number in range(40)] == make_sampler(study(name)).draw(range(40), never)

    def test_order_does_not_matter(self, name: SamplerName) -> None:
        numbers = np.random.default_rng(0).permutation(40).tolist()
        drawn = dict(zip(numbers, make_sampler(study(name)).draw(numbers, never), strict=True))
        assert [drawn[number] for number in range(40)] == make_sampler(study(name)).draw(range(40), never)

    def test_a_slot_drawn_twice_is_the_same(self, name: SamplerName) -> None:
        """A slot whose worker died is drawn again."""
        sampler = make_sampler(study(name))
        assert sampler.draw([5], never) == sampler.draw([5], never)


@pytest.mark.parametrize("name", ["random", "qmc"])
def test_seeds_give_different_studies(name: SamplerName) -> None:
    one, other = (make_sampler(study(name, study={"seed": seed})).draw(range(4), never) for seed in (0, 1))
    assert all(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["random", "qmc"])
def test_the_whole_space_is_covered(name: SamplerName) -> None:
    """Half of or_zero is zero, choices are equally likely, log ranges are uniform in the logarithm."""
    drawn = make_sampler(study(name)).draw(range(512), never)
    share_off = np.mean([params["weight_decay"] == 0 for params in drawn])
    assert share_off == pytest.approx(0.5, abs=0.08)
    for choice in (16, 32, 64):
        assert np.mean([params["batch_size"] == choice for params in drawn]) == pytest.approx(1 / 3, abs=0.08)
    exponents = np.log10([params["learning_rate"] for params in drawn])
    assert np.histogram(exponents, bins=4, range=(-5, -1))[0] / 512 == pytest.approx(np.full(4, 0.25), abs=0.08)


class TestGrid:
    def test_every_point_once(self) -> None:
        spec = study("grid")
        total = spec.total_trials
        drawn = GridSampler(spec.search_space).draw(range(total), never)
        assert total == 2 * 4 * 3 * 2
        assert len({tuple(params.values()) for params in drawn}) == total
        assert drawn == list(spec.search_space.grid())

    @pytest.mark.parametrize("number", [-1, 48])
    def test_no_such_point(self, number: int) -> None:
        with pytest.raises(IndexError, match="points 0 to 47"):
            GridSampler(study("grid").search_space).draw([number], never)


class TestQmc:
    def test_more_even_than_chance(self) -> None:
        """Each of 64 equal intervals of a coordinate gets exactly one of the first 64 points."""
        space = study("random").search_space
        samplers: list[tuple[Sampler, bool]] = [(QmcSampler(space, 3), True), (RandomSampler(space, 3), False)]
        for sampler, even in samplers:
            dropouts = [float(params["dropout"]) / 0.6 for params in sampler.draw(range(64), never)]
            assert (len({int(64 * u) for u in dropouts}) == 64) is even

    def test_far_slots(self) -> None:
        sampler = QmcSampler(study("qmc").search_space, 3)
        far = sampler.draw([1_000_000], never)
        assert sampler.draw([1_000_000, 7], never)[0] == far[0]


class TestTpe:
    def test_starts_at_random(self) -> None:
        spec = study("tpe")
        assert make_sampler(spec).draw(range(STARTUP_TRIALS), never) == RandomSampler(spec.search_space, 0).draw(
            range(STARTUP_TRIALS), never
        )

    def test_stays_random_until_enough_have_finished(self) -> None:
        spec = study("tpe")
        few = finished(spec, STARTUP_TRIALS - 1)
        assert make_sampler(spec).draw(range(50, 60), lambda: few) == RandomSampler(spec.search_space, 0).draw(
            range(50, 60), never
        )
        enough = finished(spec, STARTUP_TRIALS)
        assert make_sampler(spec).draw(range(50, 60), lambda: enough) != RandomSampler(spec.search_space, 0).draw(
            range(50, 60), never
        )

    @pytest.mark.parametrize("metric", ["error", "accuracy"])
    @pytest.mark.parametrize("state", ["complete", "pruned"])
    def test_gathers_at_the_optimum(self, state: State, metric: str) -> None:
        """Whichever way the metric points, and from pruned trials alone as well."""
        spec = study("tpe", study={"metric": metric})
        history = finished(spec, 60, state=state)
        proposed = make_sampler(spec).draw(range(100, 120), lambda: history)
        random = RandomSampler(spec.search_space, 0).draw(range(100, 120), never)
        assert np.mean([goodness(p) for p in proposed]) < 0.7 * np.mean([goodness(p) for p in random])

    def test_learns_over_a_study(self) -> None:
        """Ten packs of eight: the last ones are much better than random, and so is the best found."""
        spec = study("tpe")
        space = spec.search_space
        sampler = TpeSampler(space, 0, "minimize")
        history: list[Observation] = []
        for first in range(0, 80, 8):
            pack = sampler.draw(range(first, first + 8), history.copy)
            history += [observed(first + i, params, "minimize") for i, params in enumerate(pack)]
        learned = [trial.value or 0.0 for trial in history]
        random = [goodness(params) for params in RandomSampler(space, 0).draw(range(80), never)]
        assert np.mean(learned[40:]) < 0.5 * np.mean(random[40:])
        assert min(learned) < min(random)

    def test_a_pack_is_not_one_point(self) -> None:
        spec = study("tpe")
        history = finished(spec, 40)
        pack = make_sampler(spec).draw(range(50, 66), lambda: history)
        assert len({params["learning_rate"] for params in pack}) == 16

    def test_slots_draw_from_different_streams(self) -> None:
        spec = study("tpe")
        history = finished(spec, 40)
        sampler = make_sampler(spec)
        assert sampler.draw([50], lambda: history) != sampler.draw([51], lambda: history)

    def test_running_trials_are_avoided(self) -> None:
        """Other workers' unfinished trials count as bad: with many of them at the optimum, proposals move away."""
        spec = study("tpe")
        space = spec.search_space
        free, crowded = finished(spec, 40), finished(spec, 40)
        best = {**RandomSampler(space, 0).at(0), "learning_rate": 0.01, "dropout": 0.2, "weight_decay": 0.0}
        crowded += [observed(40 + i, best, "minimize", "running") for i in range(60)]
        distances = [
            np.mean([goodness(p) for p in make_sampler(spec).draw(range(50, 66), lambda h=history: h)])  # type: ignore[misc]
            for history in (free, crowded)
        ]
        assert distances[1] > distances[0]

    def test_trials_outside_a_narrowed_space_are_ignored(self) -> None:
        spec = study("tpe")
        history = finished(spec, 60)
        space = spec.search_space
        rate = Range(low=1e-3, high=1e-2, log=True)
        narrowed = Space({**space, "learning_rate": rate})
        inside = [trial for trial in history if rate.contains(trial.params["learning_rate"])]
        assert STARTUP_TRIALS <= len(inside) < 60
        numbers = range(70, 80)
        drawn = make_sampler(spec, narrowed).draw(numbers, lambda: history)
        assert all(rate.contains(params["learning_rate"]) for params in drawn)
        assert drawn == make_sampler(spec, narrowed).draw(numbers, lambda: inside)
        assert drawn != RandomSampler(narrowed, 0).draw(numbers, never)

    def test_diverged_trials_are_learned_from_as_the_worst(self) -> None:
        """Half of the space diverges; proposals stay away from it."""
        spec = study("tpe")
        history = [
            replace(trial, value=math.nan, complete=False) if float(trial.params["learning_rate"]) > 1e-3 else trial
            for trial in finished(spec, 60)
        ]
        drawn = make_sampler(spec).draw(range(70, 102), lambda: history)
        assert np.mean([float(params["learning_rate"]) > 1e-3 for params in drawn]) < 0.25

    def test_a_restarted_startup_slot_keeps_its_configuration(self) -> None:
        """Slot 3 is random's slot 3 even when it is drawn late, beside slots that TPE proposes."""
        spec = study("tpe")
        history = finished(spec, 20)
        drawn = make_sampler(spec).draw([50, 3], lambda: history)
        assert drawn[1] == RandomSampler(spec.search_space, 0).at(3)


class TestRanked:
    def trial(self, number: int, value: float | None, epochs: int = 9, *, complete: bool = False) -> Observation:
        return Observation(number=number, params={}, value=value, epochs=epochs, complete=complete)

    def test_complete_then_longest_then_diverged(self) -> None:
        trials = [
            self.trial(0, math.nan, 9),
            self.trial(1, 0.1, 1),
            self.trial(2, 0.4, 3),
            self.trial(3, 0.9, 9, complete=True),
            self.trial(4, None, 5),
            self.trial(5, 0.3, 3),
            self.trial(6, 0.8, 4, complete=True),
        ]
        assert [trial.number for trial in ranked(trials, "minimize")] == [6, 3, 5, 2, 1, 0]
        assert [trial.number for trial in ranked(trials, "maximize")] == [3, 6, 2, 5, 1, 0]

    def test_equal_values_go_by_number(self) -> None:
        trials = [self.trial(number, 0.5) for number in (2, 0, 1)]
        assert [trial.number for trial in ranked(trials, "maximize")] == [0, 1, 2]
