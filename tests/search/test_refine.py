"""Narrowing: on the range's own scale, never empty, always inside, and read back as it was."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spaces import points, spaces, study
from tuner.search.distributions import distributions_for, encode
from tuner.search.history import Observation
from tuner.search.refine import as_written, narrow, read_written, refine
from tuner.space import Choices, Constant, Range, Space, parse_domain
from tuner.trial import Value


def narrowed(name: str, written: Any, values: list[Value], least: float = 0.1) -> Any:
    """One domain around some values, as a study file writes it."""
    space = Space({name: parse_domain(name, written)})
    return narrow(space, [{name: value} for value in values], least)[name].as_written()


class TestRange:
    def test_log(self) -> None:
        """One decade between neighbours: one decade more on either side."""
        written = {"low": 1e-8, "high": 1.0, "log": True}
        assert narrowed("learning_rate", written, [1e-4, 1e-3, 1e-5]) == {"low": 1e-6, "high": 1e-2, "log": True}

    def test_linear(self) -> None:
        assert narrowed("dropout", {"low": 0.0, "high": 0.8}, [0.2, 0.4]) == {"low": 0.0, "high": pytest.approx(0.6)}

    def test_never_outside(self) -> None:
        written = {"low": 1e-4, "high": 1.0, "log": True}
        assert narrowed("learning_rate", written, [1e-4, 1e-2]) == written
        assert narrowed("learning_rate", written, [1.0], 0.5) == {"low": 1e-2, "high": 1.0, "log": True}

    @pytest.mark.parametrize("value", [1e-4, 1e-2, 1.0])
    def test_one_point_keeps_the_least_share(self, value: float) -> None:
        written = narrowed("learning_rate", {"low": 1e-4, "high": 1.0, "log": True}, [value, value], 0.25)
        assert written["low"] <= value <= written["high"]
        assert math.log10(written["high"] / written["low"]) == pytest.approx(0.25 * 4)

    def test_whole_numbers(self) -> None:
        assert narrowed("depth", {"low": 1, "high": 9}, [4, 5]) == {"low": 3, "high": 6}
        assert narrowed("width", {"low": 16, "high": 512, "log": True}, [64, 128], 0.2)["log"] is True

    def test_steps_stay_on_the_grid(self) -> None:
        written = {"low": 0.1, "high": 0.9, "step": 0.1}
        assert narrowed("momentum", written, [0.4, 0.5]) == {"low": 0.3, "high": 0.6, "step": 0.1}
        assert narrowed("momentum", written, [0.4]) == {"choices": [0.4]}

    def test_two_steps_that_rounding_pulls_together(self) -> None:
        """0.3 - 0.1 is less than 0.2 in floating point, and yet one step."""
        written = {"low": 0.1, "high": 0.9, "step": 0.2}
        assert narrowed("momentum", written, [0.1], 0.4) == {"low": 0.1, "high": 0.3, "step": 0.2}
        assert parse_domain("momentum", {"low": 0.1, "high": 0.3, "step": 0.2}).as_written()["high"] == 0.3

    def test_or_zero_narrows_like_a_choice(self) -> None:
        written = {"low": 1e-6, "high": 1e-2, "log": True, "or_zero": True}
        inside = {"low": 1e-5, "high": 1e-3, "log": True}
        assert narrowed("weight_decay", written, [1e-4, 1e-4], 0.5) == inside
        assert narrowed("weight_decay", written, [1e-4, 0.0], 0.5) == {**inside, "or_zero": True}
        assert narrowed("weight_decay", written, [0.0, 0.0]) == {"choices": [0.0]}


def test_choices_are_those_that_occur() -> None:
    assert narrowed("batch_size", {"choices": [16, 32, 64, 128]}, [64, 16, 64]) == {"choices": [16, 64]}


def test_constants_stay() -> None:
    space = Space({"width": Constant(value=8)})
    assert narrow(space, [{"width": 8}], 0.1)["width"] == Constant(value=8)


def test_without_points_nothing_narrows() -> None:
    space = study().search_space
    assert narrow(space, [], 0.1) == space


def test_uniform_points_keep_their_interval() -> None:
    """The margin makes up for what the extremes of a sample fall short of: no drift inwards, round after round."""
    space = Space({"dropout": Range(low=0.0, high=0.8)})
    for count in (3, 10, 50):
        values = [0.2 + 0.4 * (i + 1) / (count + 1) for i in range(count)]
        domain = narrow(space, [{"dropout": value} for value in values], 0.01)["dropout"]
        assert isinstance(domain, Range)
        assert (domain.low, domain.high) == (pytest.approx(0.2), pytest.approx(0.6))


@given(st.data())
def test_promises(data: st.DataObject) -> None:
    """Every point kept is inside; every value of the narrow space is one of the whole; it is stored and read back."""
    space = data.draw(spaces())
    best = [space.from_unit(point) for point in data.draw(st.lists(points(space), min_size=1, max_size=4))]
    least = data.draw(st.sampled_from([0.05, 0.3, 0.9]))
    inside = narrow(space, best, least)
    assert list(inside) == list(space)
    assert inside.searched.keys() == space.searched.keys()
    for params in best:
        assert all(domain.contains(params[name]) for name, domain in inside.searched.items())
    for point in data.draw(st.lists(points(inside), min_size=1, max_size=4)):
        params = inside.from_unit(point)
        encoded, distributions = encode(params, space), distributions_for(params, space)
        assert all(d._contains(d.to_internal_repr(encoded[name])) for name, d in distributions.items())
    assert read_written(space, as_written(inside)) == inside
    assert narrow(inside, best, least).keys() == inside.keys()


class TestRefine:
    space = Space({"learning_rate": Range(low=1e-4, high=1.0, log=True), "batch_size": Choices(choices=(8, 16))})

    def trial(self, number: int, rate: float, value: float, size: int = 8) -> Observation:
        return Observation(
            number=number, params={"learning_rate": rate, "batch_size": size}, value=value, epochs=9, complete=True
        )

    def test_the_best_share(self) -> None:
        history = [self.trial(i, 10.0 ** -(i % 4), i / 10) for i in range(8)]
        some = refine(self.space, history, 0.25, "minimize")["learning_rate"]
        assert isinstance(some, Range)
        assert (some.low, some.high) == (0.01, 1.0)  # around 1.0 and 0.1
        other = refine(self.space, history, 0.25, "maximize")["learning_rate"]
        assert isinstance(other, Range)
        assert (other.low, other.high) == (1e-4, 0.1)  # around 0.001 and 0.01

    def test_diverged_trials_are_never_kept(self) -> None:
        history = [self.trial(0, 1.0, math.nan, 16), self.trial(1, 1e-3, 0.5), self.trial(2, 1.0, math.inf, 16)]
        assert refine(self.space, history, 0.99, "minimize")["batch_size"].as_written() == {"choices": [8]}
        diverged = [replace(trial, value=math.nan) for trial in history]
        assert refine(self.space, diverged, 0.5, "minimize") == self.space

    def test_order_of_the_trials_does_not_matter(self) -> None:
        history = [self.trial(i, 10.0 ** -(i % 4), (i * 7 % 5) / 10, 8 + 8 * (i % 2)) for i in range(12)]
        assert refine(self.space, history, 0.3, "minimize") == refine(self.space, history[::-1], 0.3, "minimize")
