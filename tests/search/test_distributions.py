"""What trains and what Optuna's tables say is the same, whatever the space and whoever samples."""

from typing import Any

import hypothesis
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tests.spaces import points, spaces, study
from tuner.search.distributions import decode, distributions, distributions_for, encode, suggest
from tuner.space import Space, parse_domain

MIXED = study("random").search_space


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def space_of(**entries: Any) -> Space:
    return Space({name: parse_domain(name, entry) for name, entry in entries.items()})


def test_each_kind() -> None:
    assert distributions(MIXED) == {
        "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
        "batch_size": CategoricalDistribution((16, 32, 64)),
        "weight_decay_is_zero": CategoricalDistribution((False, True)),
        "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
        "dropout": FloatDistribution(0.0, 0.6),
        "width": IntDistribution(16, 512, log=True),
        "depth": IntDistribution(1, 4),
        "activation": CategoricalDistribution(("relu", "tanh")),
        "momentum": FloatDistribution(0.1, 0.9, step=0.1),  # 0.95 is not a step
        "label_smoothing_is_zero": CategoricalDistribution((False, True)),
        "label_smoothing": FloatDistribution(0.1, 0.3, step=0.1),
    }


def test_constants_are_not_encoded() -> None:
    params = MIXED.from_unit([0.7] * len(MIXED.searched))
    assert params["optimizer"] == "sgd"
    assert "optimizer" not in encode(params, MIXED)


def test_zero_is_a_switch() -> None:
    space = space_of(weight_decay={"low": 0.1, "high": 0.2, "or_zero": True})
    assert encode({"weight_decay": 0.0}, space) == {"weight_decay_is_zero": True}
    assert encode({"weight_decay": 0.15}, space) == {"weight_decay_is_zero": False, "weight_decay": 0.15}
    assert decode({"weight_decay_is_zero": True}, space) == {"weight_decay": 0.0}
    assert list(distributions_for({"weight_decay": 0.0}, space)) == ["weight_decay_is_zero"]


def test_steps_lose_the_rounding_of_floats() -> None:
    space = space_of(dropout={"low": 0.1, "high": 0.3, "step": 0.1})
    assert decode({"dropout": 0.1 + 0.2}, space) == {"dropout": 0.3}
    assert encode({"dropout": 0.1 + 0.2}, space) == {"dropout": 0.3}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dropout": 0.7, "depth": 1}, "dropout: 0.7 is not in"),
        ({"dropout": 0.1, "depth": 5}, "depth: 5 is not in"),
        ({"dropout": 0.1, "depth": 1.5}, "depth: 1.5 is not in"),
        ({"dropout": float("nan"), "depth": 1}, "dropout: nan is not in"),
        ({"dropout": "0.1", "depth": 1}, "dropout: '0.1' is not in"),
        ({"dropout": 0.1}, "depth: missing among dropout"),
        ({}, "dropout: missing among no parameters"),
    ],
)
def test_what_is_not_in_the_space_is_refused(params: dict[str, Any], message: str) -> None:
    space = space_of(dropout={"low": 0.0, "high": 0.6}, depth={"low": 1, "high": 4})
    for translate in (encode, decode, distributions_for):
        with pytest.raises(ValueError, match=message):
            translate(params, space)


def test_a_missing_switch_is_refused() -> None:
    space = space_of(weight_decay={"low": 0.1, "high": 0.2, "or_zero": True})
    with pytest.raises(ValueError, match="weight_decay_is_zero: missing among weight_decay"):
        decode({"weight_decay": 0.1}, space)


@hypothesis.settings(max_examples=200)
@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    """decode undoes encode, and Optuna's distributions contain and reproduce every encoded value exactly."""
    space = data.draw(spaces())
    params = space.from_unit(data.draw(points(space)))
    encoded = encode(params, space)
    assert decode(encoded, space) == params
    assert {name: type(value) for name, value in decode(encoded, space).items()} == {
        name: type(value) for name, value in params.items()
    }
    known = distributions(space)
    given_to_optuna = distributions_for(params, space)
    assert list(given_to_optuna) == list(encoded)
    assert all(known[name] == distribution for name, distribution in given_to_optuna.items())
    trial = optuna.trial.create_trial(value=0.0, params=encoded, distributions=given_to_optuna)  # checks containment
    for name, distribution in trial.distributions.items():
        stored = distribution.to_external_repr(distribution.to_internal_repr(trial.params[name]))
        assert stored == encoded[name]


@hypothesis.settings(max_examples=50)
@given(st.data(), st.integers(0, 2**31))
def test_suggest_is_the_same_space(data: st.DataObject, seed: int) -> None:
    """A plain Optuna objective writes the names and distributions that the ledger writes, in any space."""
    space = data.draw(spaces())
    drawn: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        drawn.append(suggest(trial, space))
        return 0.0

    plain = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    plain.optimize(objective, n_trials=3)
    for params, trial in zip(drawn, plain.trials, strict=True):
        assert trial.distributions == distributions_for(params, space)
        assert encode(params, space) == pytest.approx(trial.params)
        assert decode(trial.params, space) == params
        assert all(space[name].contains(params[name]) for name in space.searched)  # type: ignore[union-attr]


def test_suggest_reaches_both_sides_of_a_switch() -> None:
    plain = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(plain.ask(), MIXED) for _ in range(40)]
    assert {params["weight_decay"] == 0 for params in drawn} == {True, False}
    assert {params["label_smoothing"] for params in drawn} == {0.0, 0.1, 0.2, 0.3}


def test_a_negative_control() -> None:
    """Optuna refuses a value outside its distribution, so containment is really checked above."""
    with pytest.raises(ValueError, match="dropout"):
        optuna.trial.create_trial(
            value=0.0, params={"dropout": 0.7}, distributions={"dropout": FloatDistribution(0, 0.6)}
        )
