"""Domains and spaces: what a study file may say, what it is told otherwise, and what a draw can be."""

import itertools
import math
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spaces import domains, points, spaces
from tuner.space import Choices, Constant, Range, Space, parse_domain
from tuner.trial import HYPERPARAMETERS

RANGE = {"low": 0.1, "high": 0.5}


class TestReading:
    @pytest.mark.parametrize(
        ("name", "written", "domain"),
        [
            ("learning_rate", 0.1, Constant(value=0.1)),
            ("learning_rate", 1, Constant(value=1.0)),
            ("width", 8.0, Constant(value=8)),
            ("activation", "tanh", Constant(value="tanh")),
            ("batch_size", {"choices": [32, 16]}, Choices(choices=(32, 16))),
            ("optimizer", {"choices": ["sgd"]}, Choices(choices=("sgd",))),
            ("dropout", RANGE, Range(low=0.1, high=0.5)),
            ("dropout", {**RANGE, "step": 0.2}, Range(low=0.1, high=0.5, step=0.2)),
            ("depth", {"low": 1, "high": 4, "step": 2.0}, Range(low=1, high=4, step=2, integer=True)),
            ("width", {"low": 1, "high": 4, "log": True}, Range(low=1, high=4, log=True, integer=True)),
            ("weight_decay", {**RANGE, "log": True, "or_zero": True}, Range(low=0.1, high=0.5, log=True, or_zero=True)),
        ],
    )
    def test_domain(self, name: str, written: Any, domain: Any) -> None:
        assert parse_domain(name, written) == domain

    @pytest.mark.parametrize(
        ("name", "written", "message"),
        [
            ("dropout", {"low": 0.5, "high": 0.1}, "low 0.5 is above high 0.1; swap them"),
            (
                "dropout",
                {"low": 0, "high": 0.1, "log": True},
                "log needs low > 0, got 0; give a small positive low, or or_zero = true for zero as well",
            ),
            (
                "dropout",
                {"low": 0, "high": 0.1, "or_zero": True},
                "or_zero needs low > 0, got 0.0; zero is in the range",
            ),
            ("width", {"low": 1, "high": 9, "or_zero": True}, "or_zero is for a hyperparameter that may be zero"),
            (
                "learning_rate",
                {"low": 0.1, "high": 1, "or_zero": True},
                "or_zero is for a hyperparameter that may be zero",
            ),
            (
                "learning_rate",
                {"low": 0, "high": 1, "log": True},
                "log needs low > 0, got 0; give a small positive low",
            ),
            ("dropout", {**RANGE, "step": 0.1, "log": True}, "step does not go with log; list the values as choices"),
            ("dropout", {**RANGE, "step": 0}, "step needs a number above 0, got 0"),
            ("dropout", {**RANGE, "step": True}, "step needs a number above 0, got True"),
            ("dropout", {**RANGE, "step": math.nan}, "step needs a number above 0, got nan"),
            ("dropout", {**RANGE, "step": 0.5}, "step 0.5 leaves only low 0.1"),
            ("dropout", {**RANGE, "step": 10**400}, "leaves only low 0.1"),
            ("dropout", {**RANGE, "step": 1e-7}, "step 1e-07 is below a millionth of high 0.5; give a larger step, or"),
            ("dropout", {**RANGE, "step": 1 / 3}, "low 0.1 and step 0.3333333333333333 add up to 16 digits"),
            ("depth", {"low": 1, "high": 4, "step": 1.5}, "step needs a whole number above 0, got 1.5"),
            ("dropout", {**RANGE, "log": 1}, "log is true or false, not 1"),
            ("dropout", {"low": 0.1}, "a range needs low and high; high missing"),
            ("dropout", {}, "a range needs low and high; low and high missing"),
            ("dropout", {**RANGE, "base": 2}, "unknown key base; known here: high, log, low, or_zero, step"),
            ("dropout", {"choices": [0.1], "low": 0}, "unknown key low; known here: choices"),
            ("dropout", {"choices": []}, "choices needs a list of at least one value"),
            ("dropout", {"choices": 0.1}, "choices needs a list of at least one value"),
            ("dropout", {"choices": [0.1, 0.2, 0.1]}, "choices repeats 0.1; list each value once"),
            ("batch_size", {"choices": [1, 1.0]}, "choices repeats 1; list each value once"),
            ("dropout", "high", "value needs a number, got 'high'"),
            ("dropout", True, "value needs a number, got True"),
            ("dropout", math.inf, "value needs a number, got inf"),
            ("dropout", [0.1], r"value needs a number, got \[0.1\]"),
            ("dropout", 1.0, "value needs to be below 1, got 1.0"),
            ("dropout", -0.1, "value needs to be at least 0, got -0.1"),
            ("dropout", {"low": 0, "high": 1}, "high needs to be below 1, got 1"),
            ("learning_rate", 0, "value needs to be above 0, got 0"),
            ("learning_rate", 10**400, "value needs to be at most 1000, got 1000"),
            ("width", 1.5, "value needs a whole number, got 1.5"),
            ("width", {"low": 1, "high": math.nan}, "high needs a whole number, got nan"),
            ("activation", "rleu", "'rleu' is not one of relu, leaky_relu, gelu"),
            ("activation", 3, "3 is not one of relu"),
            ("activation", {"low": 1, "high": 2}, "needs one of relu, leaky_relu, .*, or a list of them"),
            ("residual", 1, "value needs true or false, got 1"),
            ("residual", {"low": 0, "high": 1}, "needs one of true, false, or a list of them"),
            ("optimizer", {"choices": ["sgd", "adagrad"]}, "'adagrad' is not one of sgd, nesterov, rmsprop"),
        ],
    )
    def test_refused(self, name: str, written: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_domain(name, written)

    @hypothesis.settings(max_examples=200)
    @given(st.sampled_from(list(HYPERPARAMETERS)), st.data())
    def test_written_again(self, name: str, data: st.DataObject) -> None:
        domain = data.draw(domains(name))
        assert parse_domain(name, domain.as_written()) == domain

    @given(
        st.sampled_from(list(HYPERPARAMETERS)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["low", "high", "log", "step", "or_zero", "choices", "x"]), inner, max_size=4
                )
            ),
        ),
    )
    def test_anything_is_read_or_refused(self, name: str, written: Any) -> None:
        """No other error escapes, whatever TOML may hold."""
        try:
            domain = parse_domain(name, written)
        except ValueError:
            return
        assert parse_domain(name, domain.as_written()) == domain


class TestRange:
    @pytest.mark.parametrize(
        ("domain", "values"),
        [
            (Range(low=0.1, high=0.5, step=0.1), (0.1, 0.2, 0.3, 0.4, 0.5)),
            (Range(low=0.1, high=0.45, step=0.1), (0.1, 0.2, 0.3, 0.4)),
            (Range(low=0.2, high=0.3, step=0.1, or_zero=True), (0.0, 0.2, 0.3)),
            (Range(low=2, high=5, integer=True), (2, 3, 4, 5)),
            (Range(low=2, high=7, step=2, integer=True), (2, 4, 6)),
            (Choices(choices=("b", "a")), ("b", "a")),
        ],
    )
    def test_grid(self, domain: Range | Choices, values: tuple[Any, ...]) -> None:
        assert domain.grid() == values
        assert domain.grid_size == len(values)
        assert [type(value) for value in domain.grid()] == [type(value) for value in values]

    @pytest.mark.parametrize(
        "domain",
        [Range(low=0.1, high=0.5), Range(low=1, high=9, log=True, integer=True), Range(low=1, high=9, log=True)],
    )
    def test_no_grid(self, domain: Range) -> None:
        for ask in (lambda: domain.grid(), lambda: domain.grid_size):
            with pytest.raises(ValueError, match="a grid needs a step, or a list of choices"):
                ask()

    @pytest.mark.parametrize(
        ("domain", "top"),
        [
            (Range(low=0.1, high=0.45, step=0.1), 0.4),
            (Range(low=2, high=7, step=2, integer=True), 6),
            (Range(low=0.1, high=0.45), 0.45),
            (Range(low=2, high=7, log=True, integer=True), 7),
        ],
    )
    def test_top(self, domain: Range, top: float) -> None:
        assert domain.top == top

    @pytest.mark.parametrize(
        ("domain", "value", "inside"),
        [
            (Range(low=0.1, high=0.3, step=0.1), 0.1 + 0.2, True),
            (Range(low=0.1, high=0.3, step=0.1), 0.15, False),
            (Range(low=0.1, high=0.3, step=0.1), 0.4, False),
            (Range(low=0.1, high=0.3, step=0.1), 0.0, False),
            (Range(low=0.1, high=0.3), 0.0, False),
            (Range(low=0.1, high=0.3, or_zero=True), 0.0, True),
            (Range(low=0.1, high=0.3, or_zero=True), 0.05, False),
            (Range(low=1, high=9, integer=True), 2.5, False),
            (Range(low=1, high=9, integer=True), 10, False),
            (Range(low=1, high=9, integer=True, log=True), 2.5, False),
            (Range(low=1, high=9, integer=True, log=True), 9, True),
            (Range(low=1, high=9), math.nan, False),
            (Range(low=1, high=9, step=1), math.inf, False),
            (Range(low=1, high=9), "5", False),
        ],
    )
    def test_contains(self, domain: Range, value: Any, inside: bool) -> None:
        assert domain.contains(value) is inside
        if inside:
            assert domain.exact(value) == pytest.approx(value)
        else:
            with pytest.raises(ValueError, match="is not in"):
                domain.exact(value)

    @pytest.mark.parametrize(
        ("domain", "u", "value"),
        [
            (Range(low=0.0, high=2.0), 0.25, 0.5),
            (Range(low=0.01, high=1.0, log=True), 0.5, 0.1),
            (Range(low=1.0, high=2.0, or_zero=True), 0.49, 0.0),
            (Range(low=1.0, high=2.0, or_zero=True), 0.5, 1.0),
            (Range(low=1.0, high=2.0, or_zero=True), 0.75, 1.5),
            (Range(low=1, high=4, integer=True), 0.75, 4),
            (Range(low=0.1, high=0.3, step=0.1), 0.7, 0.3),
            (Range(low=1, high=1, integer=True), 0.99, 1),
            (Choices(choices=(7, 8, 9)), 0.34, 8),
        ],
    )
    def test_from_unit(self, domain: Range | Choices, u: float, value: Any) -> None:
        assert domain.from_unit(u) == pytest.approx(value)

    def test_wide_ranges_are_not_listed(self) -> None:
        """A million batch sizes cost a draw nothing."""
        wide = Range(low=1, high=2**20, integer=True)
        assert [wide.from_unit(1 - 2**-53), wide.from_unit(0), wide.grid_size] == [2**20, 1, 2**20]


class TestSpace:
    SPACE = Space(
        {
            "depth": Range(low=1, high=2, integer=True),
            "learning_rate": Choices(choices=(0.1, 0.2, 0.3)),
            "width": Constant(value=8),
        }
    )

    def test_order_is_the_table_s(self) -> None:
        assert list(self.SPACE) == ["learning_rate", "width", "depth"]
        assert list(self.SPACE.searched) == ["learning_rate", "depth"]
        assert self.SPACE.constants == {"width": 8}
        assert len(self.SPACE) == 3
        assert self.SPACE["width"] == Constant(value=8)

    def test_complete(self) -> None:
        assert list(self.SPACE.complete({"depth": 2, "learning_rate": 0.1}).items()) == [
            ("learning_rate", 0.1),
            ("width", 8),
            ("depth", 2),
        ]

    def test_a_point_needs_every_coordinate(self) -> None:
        with pytest.raises(ValueError, match="a point needs 2 coordinates, got 1"):
            self.SPACE.from_unit([0.5])

    def test_grid(self) -> None:
        expected = [
            {"learning_rate": rate, "width": 8, "depth": depth}
            for rate, depth in itertools.product((0.1, 0.2, 0.3), (1, 2))
        ]
        assert list(self.SPACE.grid()) == expected
        assert self.SPACE.grid_size == 6
        assert [self.SPACE.grid_point(index) for index in range(6)] == expected

    @pytest.mark.parametrize("index", [-1, 6])
    def test_no_such_grid_point(self, index: int) -> None:
        with pytest.raises(IndexError, match="points 0 to 5"):
            self.SPACE.grid_point(index)

    @hypothesis.settings(max_examples=200)
    @given(st.data())
    def test_a_draw_is_in_its_domain(self, data: st.DataObject) -> None:
        """And exactly so: every draw is one of the values that the domain itself would write."""
        space = data.draw(spaces())
        params = space.from_unit(data.draw(points(space)))
        assert list(params) == list(HYPERPARAMETERS)
        for name, domain in space.searched.items():
            assert domain.contains(params[name])
            assert domain.exact(params[name]) == params[name]
            if not isinstance(domain, Range) or domain.stepped:
                assert domain.grid_size > 10_000 or params[name] in domain.grid()
