"""The search space in Optuna's words: the same names and distributions whoever samples, so any Optuna tool reads them.

=====================================  ============================================================================
domain                                 Optuna
=====================================  ============================================================================
constant                               not there: it is part of the study's spec
choices                                ``CategoricalDistribution``
range                                  ``FloatDistribution`` or ``IntDistribution``; ``high`` is the last step
range with ``or_zero``                 ``CategoricalDistribution((False, True))`` named ``<name>_is_zero``, and the
                                       range under its own name in those trials alone where it is not zero
=====================================  ============================================================================

*Effective* parameters are what a trial trains with: one value for every hyperparameter (``dict[str, Value]``).
*Encoded* parameters are what Optuna's tables hold of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from tuner.space import Choices, Range, Space
from tuner.trial import Value


def is_zero_name(name: str) -> str:
    """Optuna's name for the choice whether an ``or_zero`` hyperparameter is off."""
    return f"{name}_is_zero"


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Every distribution a trial of this space may have, in the order they are suggested."""
    return {key: distribution for name, domain in space.searched.items() for key, distribution in _named(name, domain)}


def encode(params: Mapping[str, Value], space: Space) -> dict[str, Any]:
    """Optuna's names and values for effective parameters: only the searched ones.

    Raises ValueError when a searched parameter is missing or is not in its domain.
    """
    encoded: dict[str, Any] = {}
    for name, domain in space.searched.items():
        value = _exact(name, domain, params)
        if isinstance(domain, Range) and domain.or_zero:
            encoded[is_zero_name(name)] = value == 0
            if value == 0:
                continue
        encoded[name] = value
    return encoded


def decode(optuna_params: Mapping[str, Any], space: Space) -> dict[str, Value]:
    """Effective parameters from Optuna's: constants completed, zero where ``<name>_is_zero``. Undoes :func:`encode`.

    A step's value loses the rounding of Optuna's arithmetic (0.30000000000000004 becomes 0.3).
    Raises ValueError when a searched parameter is missing or is not in its domain.
    """
    drawn: dict[str, Value] = {}
    for name, domain in space.searched.items():
        if isinstance(domain, Range) and domain.or_zero:
            if is_zero_name(name) not in optuna_params:
                raise ValueError(f"{is_zero_name(name)}: missing among {', '.join(optuna_params) or 'no parameters'}")
            if optuna_params[is_zero_name(name)]:
                drawn[name] = domain.zero
                continue
        drawn[name] = _exact(name, domain, optuna_params)
    return space.complete(drawn)


def distributions_for(params: Mapping[str, Value], space: Space) -> dict[str, BaseDistribution]:
    """The distributions of exactly the parameters that :func:`encode` gives, in its order. Raises as it does."""
    known = distributions(space)
    return {name: known[name] for name in encode(params, space)}


def suggest(trial: BaseTrial, space: Space) -> dict[str, Value]:
    """Effective parameters by way of ``trial.suggest_*``, under the names and distributions of this module."""
    suggested: dict[str, Any] = {}
    for name, domain in space.searched.items():
        for key, distribution in _named(name, domain):
            suggested[key] = _suggest(trial, key, distribution)
            if key == is_zero_name(name) and suggested[key]:
                break  # off: the range itself is not suggested
    return decode(suggested, space)


def _named(name: str, domain: Choices | Range) -> Iterator[tuple[str, BaseDistribution]]:
    """The names and distributions of one domain; of ``or_zero`` the switch first."""
    if isinstance(domain, Choices):
        yield name, CategoricalDistribution(domain.choices)
        return
    if domain.or_zero:
        yield is_zero_name(name), CategoricalDistribution((False, True))
    if domain.integer:
        yield name, IntDistribution(int(domain.low), int(domain.top), log=domain.log, step=int(domain.step or 1))
    else:
        yield name, FloatDistribution(float(domain.low), float(domain.top), log=domain.log, step=domain.step)


def _suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _exact(name: str, domain: Choices | Range, values: Mapping[str, Any]) -> Value:
    if name not in values:
        raise ValueError(f"{name}: missing among {', '.join(values) or 'no parameters'}")
    try:
        return domain.exact(values[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
