"""One contract for every sampler; then what each promises beyond it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from tests.spaces import study
from tuner.search.distributions import distributions_for, encode
from tuner.search.samplers import (
    STARTUP_TRIALS,
    GridSampler,
    QmcSampler,
    RandomSampler,
    Sampler,
    TpeSampler,
    make_sampler,
)
from tuner.space import Space
from tuner.spec import Sampler as SamplerName
from tuner.spec import StudySpec
from tuner.trial import HYPERPARAMETERS, TrialConfig, Value

SAMPLERS: list[SamplerName] = ["grid", "random", "tpe", "qmc"]
STATELESS: list[SamplerName] = ["grid", "random", "qmc"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def goodness(params: dict[str, Value]) -> float:
    """A planted optimum at η = 0.01 and dropout 0.2, without weight decay; 0 is best."""
    rate, dropout = float(params["learning_rate"]), float(params.get("dropout", 0.0))
    return (math.log10(rate) + 2) ** 2 + (5 * (dropout - 0.2)) ** 2 + (params["weight_decay"] != 0)


def finished_study(spec: StudySpec, count: int, *, state: TrialState = TrialState.COMPLETE) -> optuna.Study:
    """A study whose first trials are random and have finished with their :func:`goodness`."""
    space = spec.search_space
    filled = optuna.create_study(direction=spec.direction)
    random = RandomSampler(space, seed=99)
    for number in range(count):
        add(filled, space, random.at(number), state)
    return filled


def add(filled: optuna.Study, space: Space, params: dict[str, Value], state: TrialState) -> None:
    value = goodness(params) if filled.direction.name == "MINIMIZE" else -goodness(params)
    filled.add_trial(
        optuna.trial.create_trial(
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            intermediate_values={1: value + 1, 3: value} if state == TrialState.PRUNED else None,
            params=encode(params, space),
            distributions=distributions_for(params, space),
        )
    )


def never() -> optuna.Study:
    raise AssertionError("this sampler does not learn: it has no business in the storage")


@pytest.mark.parametrize("name", SAMPLERS)
class TestContract:
    """Holds for every sampler, before and after there is something to learn from."""

    @pytest.fixture(params=[0, 30])
    def history(self, request: pytest.FixtureRequest, name: SamplerName) -> optuna.Study:
        return finished_study(study(name), request.param)

    def draw(self, name: SamplerName, history: optuna.Study, numbers: Sequence[int], seed: int = 5) -> list[Any]:
        return make_sampler(study(name, study={"seed": seed})).draw(numbers, lambda: history)

    def test_one_for_each_slot(self, name: SamplerName, history: optuna.Study) -> None:
        assert len(self.draw(name, history, range(8, 24))) == 16
        assert self.draw(name, history, []) == []

    def test_every_hyperparameter_inside_its_domain(self, name: SamplerName, history: optuna.Study) -> None:
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

    def test_repeatable(self, name: SamplerName, history: optuna.Study) -> None:
        assert self.draw(name, history, range(20, 40)) == self.draw(name, history, range(20, 40))

    def test_history_is_left_alone(self, name: SamplerName, history: optuna.Study) -> None:
        before = history.get_trials()
        self.draw(name, history, range(20, 40))
        assert history.get_trials() == before

    def test_nothing_is_logged(
        self, name: SamplerName, history: optuna.Study, capfd: pytest.CaptureFixture[str]
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        self.draw(name, history, range(20, 24))
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", STATELESS)
class TestStateless:
    """A configuration depends on nothing but the study seed and the slot number."""

    def test_never_reads_the_storage(self, name: SamplerName) -> None:
        make_sampler(study(name)).draw(range(4), never)

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
        few = finished_study(spec, STARTUP_TRIALS - 1)
        assert make_sampler(spec).draw(range(50, 60), lambda: few) == RandomSampler(spec.search_space, 0).draw(
            range(50, 60), never
        )
        enough = finished_study(spec, STARTUP_TRIALS)
        assert make_sampler(spec).draw(range(50, 60), lambda: enough) != RandomSampler(spec.search_space, 0).draw(
            range(50, 60), never
        )

    @pytest.mark.parametrize("metric", ["error", "accuracy"])
    @pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
    def test_gathers_at_the_optimum(self, state: TrialState, metric: str) -> None:
        """Whichever way the metric points, and from pruned trials alone as well."""
        spec = study("tpe", study={"metric": metric})
        history = finished_study(spec, 60, state=state)
        proposed = make_sampler(spec).draw(range(100, 120), lambda: history)
        random = RandomSampler(spec.search_space, 0).draw(range(100, 120), never)
        assert np.mean([goodness(p) for p in proposed]) < 0.7 * np.mean([goodness(p) for p in random])

    def test_learns_over_a_study(self) -> None:
        """Ten packs of eight: the last ones are much better than random, and so is the best found."""
        spec = study("tpe")
        space = spec.search_space
        sampler = TpeSampler(space, 0, "minimize")
        history = optuna.create_study()
        for first in range(0, 80, 8):
            for params in sampler.draw(range(first, first + 8), lambda: history):
                add(history, space, params, TrialState.COMPLETE)
        learned = [trial.value or 0.0 for trial in history.trials]
        random = [goodness(params) for params in RandomSampler(space, 0).draw(range(80), never)]
        assert np.mean(learned[40:]) < 0.5 * np.mean(random[40:])
        assert min(learned) < min(random)

    def test_a_pack_is_not_one_point(self) -> None:
        spec = study("tpe")
        history = finished_study(spec, 40)
        pack = make_sampler(spec).draw(range(50, 66), lambda: history)
        assert len({params["learning_rate"] for params in pack}) == 16

    def test_slots_draw_from_different_streams(self) -> None:
        spec = study("tpe")
        history = finished_study(spec, 40)
        sampler = make_sampler(spec)
        assert sampler.draw([50], lambda: history) != sampler.draw([51], lambda: history)

    def test_running_trials_are_avoided(self) -> None:
        """Other workers' unfinished trials count as bad: with many of them at the optimum, proposals move away."""
        spec = study("tpe")
        space = spec.search_space
        free, crowded = finished_study(spec, 40), finished_study(spec, 40)
        best = {**RandomSampler(space, 0).at(0), "learning_rate": 0.01, "dropout": 0.2, "weight_decay": 0.0}
        for _ in range(60):
            add(crowded, space, best, TrialState.RUNNING)
        distances = [
            np.mean([goodness(p) for p in make_sampler(spec).draw(range(50, 66), lambda h=history: h)])  # type: ignore[misc]
            for history in (free, crowded)
        ]
        assert distances[1] > distances[0]

    def test_failed_trials_and_empty_ones_are_ignored(self) -> None:
        spec = study("tpe")
        history = finished_study(spec, 20)
        before = make_sampler(spec).draw([50], lambda: history)
        for state in (TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING):
            history.add_trial(optuna.trial.create_trial(state=state))
        assert make_sampler(spec).draw([50], lambda: history) == before

    def test_a_restarted_startup_slot_keeps_its_configuration(self) -> None:
        """Slot 3 is random's slot 3 even when it is drawn late, beside slots that TPE proposes."""
        spec = study("tpe")
        history = finished_study(spec, 20)
        drawn = make_sampler(spec).draw([50, 3], lambda: history)
        assert drawn[1] == RandomSampler(spec.search_space, 0).at(3)
