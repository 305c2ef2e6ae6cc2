"""The search space: for each hyperparameter the domain its values come from, and nothing about who samples it.

A domain is a constant, a :class:`Range` or a list of :class:`Choices`. Every domain maps the unit interval onto its
values (``from_unit``), so that a sampler is a way to place points in a cube, and lists them (``grid``) where it can.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.trial import HYPERPARAMETERS, Hyperparameter, Value


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One value: not searched."""

    value: Value

    def as_written(self) -> Any:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A finite list of values, all equally likely."""

    choices: tuple[Value, ...]

    def from_unit(self, u: float) -> Value:
        """The value at ``u`` in [0, 1)."""
        return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]

    def contains(self, value: Value) -> bool:
        return value in self.choices

    def grid(self) -> tuple[Value, ...]:
        return self.choices

    def as_written(self) -> Any:
        return {"choices": list(self.choices)}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Values from ``low`` to ``high``, both included; bounds are values, never exponents.

    ``log``: uniform in the logarithm. ``step``: only ``low``, ``low + step``, … up to ``high``. ``integer``: whole
    numbers. ``or_zero``: exactly zero for one half of the draws, the range for the other (a regularizer that may be off).
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False
    or_zero: bool = False

    def from_unit(self, u: float) -> Value:
        """The value at ``u`` in [0, 1)."""
        if self.or_zero:
            if u < 0.5:
                return 0 if self.integer else 0.0
            u = 2 * u - 1
        if self.step is not None or (self.integer and not self.log):
            points = self._points()
            return points[min(int(u * len(points)), len(points) - 1)]
        if self.integer:  # log-uniform over whole numbers: each owns the half-unit on either side of it
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(max(round(math.exp(low + u * (high - low))), int(self.low)), int(self.high))
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return min(max(math.exp(low + u * (high - low)), self.low), self.high)
        return min(self.low + u * (self.high - self.low), self.high)

    def contains(self, value: Value) -> bool:
        if isinstance(value, str):
            return False
        if self.or_zero and value == 0:
            return True
        if not self.low <= value <= self.high or (self.integer and value != int(value)):
            return False
        return self.step is None or any(math.isclose(value, float(point)) for point in self._points())

    def grid(self) -> tuple[Value, ...]:
        """All values. Raises ValueError for a continuous range, and for a log range, which have no step."""
        if self.step is None and (self.log or not self.integer):
            raise ValueError("a grid needs a step, or a list of choices")
        zero: tuple[Value, ...] = ((0 if self.integer else 0.0),) if self.or_zero else ()
        return zero + self._points()

    def _points(self) -> tuple[Value, ...]:
        step = 1 if self.step is None else self.step
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        values = (self.low + i * step for i in range(count))
        return tuple(int(v) if self.integer else float(f"{v:.12g}") for v in values)

    def as_written(self) -> Any:
        bound = int if self.integer else float
        written: dict[str, Any] = {"low": bound(self.low), "high": bound(self.high)}
        if self.step is not None:
            written["step"] = bound(self.step)
        if self.log:
            written["log"] = True
        if self.or_zero:
            written["or_zero"] = True
        return written


Domain = Constant | Choices | Range


class Space(Mapping[str, Domain]):
    """The domain of every hyperparameter, in the order of :data:`tuner.trial.HYPERPARAMETERS`.

    >>> space = Space({"depth": Range(low=1, high=3, integer=True), "width": Constant(value=8)})
    >>> space.searched.keys(), space.grid_size
    (dict_keys(['depth']), 3)
    >>> space.from_unit([0.9])
    {'depth': 3, 'width': 8}
    """

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        self._domains = {name: domains[name] for name in HYPERPARAMETERS if name in domains}

    def __getitem__(self, name: str) -> Domain:
        return self._domains[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __len__(self) -> int:
        return len(self._domains)

    @property
    def searched(self) -> dict[str, Choices | Range]:
        """The domains that hold more than one value or are written as if they did."""
        return {name: d for name, d in self._domains.items() if not isinstance(d, Constant)}

    @property
    def constants(self) -> dict[str, Value]:
        return {name: d.value for name, d in self._domains.items() if isinstance(d, Constant)}

    def from_unit(self, point: Sequence[float]) -> dict[str, Value]:
        """All hyperparameters at a point of [0, 1)^d, one coordinate for each searched domain in order."""
        searched = self.searched
        if len(point) != len(searched):
            raise ValueError(f"a point needs {len(searched)} coordinates, got {len(point)}")
        drawn = {name: domain.from_unit(u) for (name, domain), u in zip(searched.items(), point, strict=True)}
        return self.complete(drawn)

    def complete(self, drawn: Mapping[str, Value]) -> dict[str, Value]:
        """All hyperparameters in order: the given values of the searched ones, and the constants."""
        values = {**self.constants, **drawn}
        return {name: values[name] for name in self._domains}

    @property
    def grid_size(self) -> int:
        """The number of points of the full grid. Raises ValueError as :meth:`Range.grid` does."""
        return math.prod(len(domain.grid()) for domain in self.searched.values())

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every point of the full grid once; the last hyperparameter moves fastest."""
        searched = self.searched
        for values in itertools.product(*(domain.grid() for domain in searched.values())):
            yield self.complete(dict(zip(searched, values, strict=True)))


def parse_domain(name: str, written: Any) -> Domain:
    """Read one domain as a study file writes it.

    Raises ValueError with the rule, the fact and the fix.

    >>> parse_domain("dropout", {"low": 0.0, "high": 0.5})
    Range(low=0.0, high=0.5, log=False, step=None, integer=False, or_zero=False)
    """
    rule = HYPERPARAMETERS[name]
    if not isinstance(written, dict):
        return Constant(value=_value(rule, written))
    keys = set(written)
    if "choices" in keys:
        _refuse_unknown(keys, {"choices"})
        return _choices(rule, written["choices"])
    if rule.kind == "categorical":
        raise ValueError(f"needs one of {', '.join(rule.choices)}, or a list of them as {{ choices = [...] }}")
    _refuse_unknown(keys, {"low", "high", "log", "step", "or_zero"})
    missing = [key for key in ("low", "high") if key not in keys]
    if missing:
        raise ValueError(f"a range needs low and high; {' and '.join(missing)} missing")
    return _range(rule, written)


def _refuse_unknown(keys: set[str], known: set[str]) -> None:
    if unknown := sorted(keys - known):
        raise ValueError(f"unknown key {', '.join(unknown)}; known here: {', '.join(sorted(known))}")


def _choices(rule: Hyperparameter, written: Any) -> Choices:
    if not isinstance(written, list) or not written:
        raise ValueError("choices needs a list of at least one value")
    values = tuple(_value(rule, item) for item in written)
    repeated = sorted({str(v) for v in values if values.count(v) > 1})
    if repeated:
        raise ValueError(f"choices repeats {', '.join(repeated)}; list each value once")
    return Choices(choices=values)


def _range(rule: Hyperparameter, written: Mapping[str, Any]) -> Range:
    for key in ("log", "or_zero"):
        if not isinstance(written.get(key, False), bool):
            raise ValueError(f"{key} is true or false, not {written[key]!r}")
    log, or_zero = written.get("log", False), written.get("or_zero", False)
    low, high = _value(rule, written["low"], "low"), _value(rule, written["high"], "high")
    step = written.get("step")
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if low > high:
        raise ValueError(f"low {low} is above high {high}; swap them")
    if log and low <= 0:
        raise ValueError(f"log needs low > 0, got {low}; give a small positive low, or or_zero = true for zero as well")
    if or_zero and rule.low > 0:
        raise ValueError("or_zero is for a hyperparameter that may be zero")
    if or_zero and low <= 0:
        raise ValueError(f"or_zero needs low > 0, got {low}; zero is in the range already")
    if step is not None:
        if log:
            raise ValueError("step does not go with log; list the values as choices instead")
        wanted = "a whole number" if rule.kind == "int" else "a number"
        if isinstance(step, bool) or not isinstance(step, (int, float)) or not math.isfinite(step) or step <= 0:
            raise ValueError(f"step needs {wanted} above 0, got {step!r}")
        if rule.kind == "int" and step != int(step):
            raise ValueError(f"step needs {wanted} above 0, got {step!r}")
    return Range(low=low, high=high, log=log, step=step, integer=rule.kind == "int", or_zero=or_zero)


def _value(rule: Hyperparameter, written: Any, what: str = "value") -> Value:
    """One value of a hyperparameter, checked against its table row."""
    if rule.kind == "categorical":
        if written not in rule.choices:
            raise ValueError(f"{written!r} is not one of {', '.join(rule.choices)}")
        return str(written)
    wanted = "a whole number" if rule.kind == "int" else "a number"
    if isinstance(written, bool) or not isinstance(written, (int, float)) or not math.isfinite(written):
        raise ValueError(f"{what} needs {wanted}, got {written!r}")
    if rule.kind == "int" and written != int(written):
        raise ValueError(f"{what} needs {wanted}, got {written!r}")
    if written < rule.low or (rule.low_open and written == rule.low):
        raise ValueError(f"{what} needs to be {'above' if rule.low_open else 'at least'} {rule.low:g}, got {written!r}")
    if written > rule.high or (rule.high_open and written == rule.high):
        raise ValueError(
            f"{what} needs to be {'below' if rule.high_open else 'at most'} {rule.high:g}, got {written!r}"
        )
    return int(written) if rule.kind == "int" else float(written)
