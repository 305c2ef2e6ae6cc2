"""Search spaces to test with: one of every kind of domain, and random ones."""

from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tuner.space import Constant, Domain, Space, parse_domain
from tuner.spec import StudySpec, parse_spec
from tuner.trial import HYPERPARAMETERS

# One of every kind: log, choices of whole numbers, or_zero, plain, log of whole numbers, whole numbers, steps of both,
# choices of names, a constant.
MIXED: dict[str, dict[str, Any]] = {
    "space": {
        "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
        "batch_size": {"choices": [16, 32, 64]},
        "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True, "or_zero": True},
        "dropout": {"low": 0.0, "high": 0.6},
        "width": {"low": 16, "high": 512, "log": True},
        "depth": {"low": 1, "high": 4},
    },
    "model": {"activation": {"choices": ["relu", "tanh"]}},
    "training": {
        "momentum": {"low": 0.1, "high": 0.95, "step": 0.1},
        "label_smoothing": {"low": 0.1, "high": 0.3, "step": 0.1, "or_zero": True},
        "optimizer": "sgd",
    },
}

GRID: dict[str, dict[str, Any]] = {
    "space": {
        "learning_rate": {"choices": [0.1, 0.01]},
        "batch_size": 32,
        "weight_decay": {"low": 0.1, "high": 0.3, "step": 0.1, "or_zero": True},
        "width": {"low": 8, "high": 24, "step": 8},
        "depth": {"low": 1, "high": 2},
    }
}


def written(sampler: str = "random", **sections: dict[str, Any]) -> dict[str, Any]:
    """The content of a study file over ``MIXED`` (``GRID`` for a grid); ``sections`` add keys or replace them."""
    content: dict[str, Any] = {
        "study": {"name": "study", "metric": "error"},
        "data": {"source": "sklearn:digits"},
        "search": {"sampler": sampler} if sampler == "grid" else {"sampler": sampler, "trials": 243},
        **(GRID if sampler == "grid" else MIXED),
    }
    return {key: {**content.get(key, {}), **sections.get(key, {})} for key in content | sections}


def study(sampler: str = "random", **sections: dict[str, Any]) -> StudySpec:
    """The study of :func:`written`."""
    return parse_spec(written(sampler, **sections))


@st.composite
def domains(draw: st.DrawFn, name: str) -> Domain:
    """Any domain that a study file may give this hyperparameter."""
    rule = HYPERPARAMETERS[name]
    if rule.kind in ("categorical", "bool"):
        values: Any = st.sampled_from(rule.choices or (False, True))
    elif rule.kind == "int":
        values = st.integers(int(rule.low), int(rule.high))
    else:
        values = st.floats(
            rule.low, rule.high, exclude_min=rule.low_open, exclude_max=rule.high_open, allow_subnormal=False
        )
    kinds = ["constant", "choices", *(["range"] if rule.kind in ("float", "int") else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "constant":
        return parse_domain(name, draw(values))
    if kind == "choices":
        return parse_domain(name, {"choices": draw(st.lists(values, min_size=1, max_size=4, unique=True))})
    low, high = sorted((draw(values), draw(values)))
    content: dict[str, Any] = {"low": low, "high": high}
    if draw(st.booleans()):
        # Steps: whole, or of few digits, as a person writes them.
        if rule.kind == "int":
            assume(high > low)
            content["step"] = draw(st.integers(1, high - low))
        else:
            places = draw(st.integers(1, 6))
            content["low"] = max(round(low, places), 10.0**-places if rule.low_open else 0.0)
            content["high"] = min(round(high, places), 1 - 10.0**-places if rule.high_open else high)
            most = round((content["high"] - content["low"]) * 10**places)
            assume(most >= 1)
            content["step"] = round(draw(st.integers(1, most)) * 10.0**-places, places)
            assume(content["step"] <= content["high"] - content["low"])
            assume(content["high"] / content["step"] <= 1e6)
    elif draw(st.booleans()) and low > 0:
        content["log"] = True
    if rule.low == 0 and not rule.low_open and content["low"] > 0 and draw(st.booleans()):
        content["or_zero"] = True
    return parse_domain(name, content)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Any search space: the required hyperparameters and a few others from any domain, the rest at their defaults."""
    defaults = {name: rule.default for name, rule in HYPERPARAMETERS.items() if rule.default is not None}
    others = draw(st.lists(st.sampled_from(sorted(defaults)), max_size=5, unique=True))
    drawn = [name for name in HYPERPARAMETERS if name not in defaults or name in others]
    fixed = {name: Constant(value=value) for name, value in defaults.items() if name not in others}
    return Space({**fixed, **{name: draw(domains(name)) for name in drawn}})


def points(space: Space) -> st.SearchStrategy[list[float]]:
    """Points of the unit cube that a space maps to its values."""
    size = len(space.searched)
    return st.lists(st.floats(0, 1, exclude_max=True), min_size=size, max_size=size)
