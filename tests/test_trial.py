"""The table of hyperparameters and the configuration built from it agree."""

from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest

from tuner.trial import (
    HYPERPARAMETERS,
    Activation,
    Averaging,
    ClassWeight,
    Initialization,
    Loss,
    Norm,
    Optimizer,
    Scaling,
    Schedule,
    TrialConfig,
)

REQUIRED = {"learning_rate": 0.1, "batch_size": 32, "width": 8, "depth": 2, "max_epochs": 9}


def test_every_hyperparameter_is_configured() -> None:
    assert set(HYPERPARAMETERS) == {f.name for f in fields(TrialConfig)} - {
        "max_epochs",
        "patience",
        "keep",
        "precision",
    }


def test_defaults_agree() -> None:
    config = TrialConfig.from_values(REQUIRED)
    defaults = {name: rule.default for name, rule in HYPERPARAMETERS.items() if rule.default is not None}
    assert {name: getattr(config, name) for name in defaults} == defaults
    assert {name for name, rule in HYPERPARAMETERS.items() if rule.default is None} == REQUIRED.keys() - {"max_epochs"}


def test_choices_agree() -> None:
    names = {
        "scaling": Scaling,
        "activation": Activation,
        "loss": Loss,
        "initialization": Initialization,
        "norm": Norm,
        "optimizer": Optimizer,
        "schedule": Schedule,
        "averaging": Averaging,
        "class_weight": ClassWeight,
    }
    assert {name: rule.choices for name, rule in HYPERPARAMETERS.items() if rule.kind == "categorical"} == {
        name: get_args(literal) for name, literal in names.items()
    }


def test_defaults_are_allowed_values() -> None:
    for rule in HYPERPARAMETERS.values():
        if isinstance(rule.default, str):
            assert rule.default in rule.choices
        elif rule.default is not None:
            assert rule.low <= rule.default <= rule.high


def test_round_trip() -> None:
    config = TrialConfig.from_values({**REQUIRED, "optimizer": "sgd", "keep": "best", "something_else": 1})
    assert config.keep == "best"
    assert TrialConfig.from_values(config.as_dict()) == config
    assert hash(TrialConfig.from_values(config.as_dict())) == hash(config)


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(TypeError, match="width"):
        TrialConfig.from_values({name: value for name, value in REQUIRED.items() if name != "width"})


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TrialConfig.from_values(REQUIRED).width = 9  # type: ignore[misc]


def test_the_signature_is_what_cannot_fuse() -> None:
    one = TrialConfig.from_values({**REQUIRED, "optimizer": "sgd"})
    assert one.signature == TrialConfig.from_values({**one.as_dict(), "width": 64, "batch_size": 1}).signature
    assert one.signature != TrialConfig.from_values({**one.as_dict(), "optimizer": "adam"}).signature
    assert one.signature != TrialConfig.from_values({**one.as_dict(), "activation": "tanh"}).signature
    normed = TrialConfig.from_values({**one.as_dict(), "norm": "batch"})
    smaller = TrialConfig.from_values({**normed.as_dict(), "batch_size": 1})
    assert normed.signature != smaller.signature, "batch normalisation needs equal batches"


def test_the_linear_scaling_rule() -> None:
    config = TrialConfig.from_values({**REQUIRED, "batch_size": 64, "reference_batch_size": 16})
    assert config.peak_learning_rate(100) == pytest.approx(0.4)
    assert config.peak_learning_rate(32) == pytest.approx(0.2), "no batch has more rows than there are"
    assert TrialConfig.from_values(REQUIRED).peak_learning_rate(1) == 0.1
