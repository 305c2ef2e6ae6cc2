"""The search space: for each hyperparameter the domain its values come from, and nothing about who samples it.

A domain is a constant, a :class:`Range` or a list of :class:`Choices`. Every domain maps the unit interval onto its
values (``from_unit``), so that a sampler is a way to place points in a cube, and lists them (``grid``) where it can.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tuner.trial import HYPERPARAMETERS, Hyperparameter, Value

MAX_STEPS = 1_000_000  # high / step: finer than that, a step's values drown in the rounding of their distance from zero
MAX_DIGITS = 15  # decimal digits that a float keeps through text and back


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

    def to_unit(self, value: Value) -> float:
        """The middle of what :meth:`from_unit` maps to ``value``. Raises ValueError when it is not in the list."""
        return (self.choices.index(value) + 0.5) / len(self.choices)

    def contains(self, value: Value) -> bool:
        return value in self.choices

    def exact(self, value: Value) -> Value:
        """``value`` in the type the list holds it. Raises ValueError when it is not in the list."""
        if value not in self.choices:
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, self.choices))}")
        return self.choices[self.choices.index(value)]

    @property
    def grid_size(self) -> int:
        return len(self.choices)

    def grid_point(self, index: int) -> Value:
        return self.choices[index]

    def grid(self) -> tuple[Value, ...]:
        return self.choices

    def as_written(self) -> Any:
        return {"choices": list(self.choices)}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Values from ``low`` to ``high``, both included; bounds are values, never exponents.

    ``log``: uniform in the logarithm. ``step``: only ``low``, ``low + step``, … up to ``high``, added as the decimal
    numbers a study file writes (0.1 + 0.2 is 0.3 here). ``integer``: whole numbers. ``or_zero``: exactly zero for one
    half of the draws, the range for the other (a regularizer that may be off).
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False
    or_zero: bool = False

    @property
    def zero(self) -> Value:
        """What ``or_zero`` draws."""
        return 0 if self.integer else 0.0

    @property
    def stepped(self) -> bool:
        """Whether the values are ``low``, ``low + step``, …: the only ranges that can be listed."""
        return self.step is not None or (self.integer and not self.log)

    @property
    def top(self) -> Value:
        """The largest value: ``high``, or the last step at or below it."""
        if self.stepped:
            return self._point(self._steps - 1)
        return int(self.high) if self.integer else float(self.high)

    def from_unit(self, u: float) -> Value:
        """The value at ``u`` in [0, 1)."""
        if self.or_zero:
            if u < 0.5:
                return self.zero
            u = 2 * u - 1
        if self.stepped:
            return self._point(min(int(u * self._steps), self._steps - 1))
        if self.integer:  # log-uniform over whole numbers: each owns the half-unit on either side of it
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(max(round(math.exp(low + u * (high - low))), int(self.low)), int(self.high))
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return min(max(math.exp(low + u * (high - low)), self.low), self.high)
        return min(self.low + u * (self.high - self.low), self.high)

    def to_unit(self, value: Value) -> float:
        """A point that :meth:`from_unit` maps to ``value``: the middle of the interval of those that it does.

        Raises ValueError when the range does not contain it.
        """
        exact = self.exact(value)
        if self.or_zero and exact == 0:
            return 0.25
        number = float(exact)
        if self.stepped:
            u = (self._index(number) + 0.5) / self._steps
        elif self.integer:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            u = (math.log(number) - low) / (high - low)
        elif self.low == self.high:
            u = 0.5
        elif self.log:
            u = (math.log(number) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            u = (number - self.low) / (self.high - self.low)
        return (1 + u) / 2 if self.or_zero else u

    def contains(self, value: Value) -> bool:
        """Whether a draw can give ``value``; a step's value may carry the rounding of another library's arithmetic."""
        if isinstance(value, str) or not math.isfinite(value):
            return False
        if self.or_zero and value == 0:
            return True
        if self.stepped:
            index = self._index(value)
            if not 0 <= index < self._steps:
                return False
            point = float(self._point(index))
            return value == point if self.integer else math.isclose(value, point, abs_tol=1e-9 * (self.step or 1))
        return self.low <= value <= self.high and (not self.integer or value == int(value))

    def exact(self, value: Value) -> Value:
        """The domain's own form of ``value``: a whole number, or a step without rounding (0.30000000000000004 → 0.3).

        Raises ValueError when the range does not contain it.
        """
        if not self.contains(value):
            raise ValueError(f"{value!r} is not in {self.as_written()}")
        if self.or_zero and value == 0:
            return self.zero
        if self.stepped:
            return self._point(self._index(float(value)))
        return int(value) if self.integer else float(value)

    @property
    def grid_size(self) -> int:
        """How many values :meth:`grid` lists. Raises ValueError as it does."""
        if not self.stepped:
            raise ValueError("a grid needs a step, or a list of choices")
        return self._steps + self.or_zero

    def grid_point(self, index: int) -> Value:
        """``grid()[index]`` without listing the others."""
        if self.or_zero:
            return self.zero if index == 0 else self._point(index - 1)
        return self._point(index)

    def grid(self) -> tuple[Value, ...]:
        """All values. Raises ValueError for a continuous range, and for a log range, which have no step."""
        return tuple(self.grid_point(index) for index in range(self.grid_size))

    @property
    def _steps(self) -> int:
        """How many values a stepped range has, zero aside."""
        return int((_decimal(self.high) - _decimal(self.low)) // _decimal(self.step or 1)) + 1

    def _point(self, index: int) -> Value:
        value = _decimal(self.low) + index * _decimal(self.step or 1)
        return int(value) if self.integer else float(value)

    def _index(self, value: float) -> int:
        return round((value - self.low) / (self.step or 1))

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
    {'width': 8, 'depth': 3}
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
        return math.prod(domain.grid_size for domain in self.searched.values())

    def grid_point(self, index: int) -> dict[str, Value]:
        """All hyperparameters at one point of the full grid; the last hyperparameter moves fastest.

        Raises IndexError unless 0 <= index < :attr:`grid_size`.
        """
        if not 0 <= index < self.grid_size:
            raise IndexError(f"the grid has points 0 to {self.grid_size - 1}, not {index}")
        drawn: dict[str, Value] = {}
        for name, domain in reversed(self.searched.items()):
            index, digit = divmod(index, domain.grid_size)
            drawn[name] = domain.grid_point(digit)
        return self.complete(drawn)

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every point of the full grid once, in the order of :meth:`grid_point`."""
        return (self.grid_point(index) for index in range(self.grid_size))


def _digits(low: float, high: float, step: float) -> int:
    """Significant digits that ``low + i * step`` needs up to ``high``."""
    exponents = [number.as_tuple().exponent for number in (_decimal(low), _decimal(step))]
    places = max(-exponent for exponent in exponents if isinstance(exponent, int))
    return _decimal(high).adjusted() + 1 + places


def _decimal(number: float) -> Decimal:
    """The number as a study file writes it."""
    return Decimal(str(number))


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
    if rule.kind in ("categorical", "bool"):
        names = rule.choices or ("true", "false")
        raise ValueError(f"needs one of {', '.join(names)}, or a list of them as {{ choices = [...] }}")
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
    if log and _is_number(written["low"]) and written["low"] <= 0:
        zero = "" if rule.low > 0 or rule.low_open else ", or or_zero = true for zero as well"
        raise ValueError(f"log needs low > 0, got {written['low']}; give a small positive low{zero}")
    low, high = _value(rule, written["low"], "low"), _value(rule, written["high"], "high")
    step = written.get("step")
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if low > high:
        raise ValueError(f"low {low} is above high {high}; swap them")
    if or_zero and (rule.low > 0 or rule.low_open):
        raise ValueError("or_zero is for a hyperparameter that may be zero")
    if or_zero and low <= 0:
        raise ValueError(f"or_zero needs low > 0, got {low}; zero is in the range already")
    if step is not None:
        if log:
            raise ValueError("step does not go with log; list the values as choices instead")
        wanted = "a whole number" if rule.kind == "int" else "a number"
        if not _is_number(step) or step <= 0 or (rule.kind == "int" and step != int(step)):
            raise ValueError(f"step needs {wanted} above 0, got {step!r}")
        if _decimal(step) > _decimal(high) - _decimal(low):
            raise ValueError(
                f"step {step!r} leaves only low {low} below high {high}; give a smaller step, or one value"
            )
        if high / step > MAX_STEPS:
            raise ValueError(f"step {step!r} is below a millionth of high {high}; give a larger step, or leave it out")
        step = int(step) if rule.kind == "int" else float(step)
        if (digits := _digits(low, high, step)) > MAX_DIGITS:
            raise ValueError(
                f"low {low} and step {step} add up to {digits} digits, a float holds {MAX_DIGITS}; round them"
            )
    return Range(low=low, high=high, log=log, step=step, integer=rule.kind == "int", or_zero=or_zero)


def _is_number(written: Any) -> bool:
    """A finite float, or an integer; TOML's booleans are not numbers, and its integers have no limit."""
    return isinstance(written, int | float) and not isinstance(written, bool) and abs(written) < math.inf


def _value(rule: Hyperparameter, written: Any, what: str = "value") -> Value:
    """One value of a hyperparameter, checked against its table row."""
    if rule.kind == "bool":
        if not isinstance(written, bool):
            raise ValueError(f"{what} needs true or false, got {written!r}")
        return written
    if rule.kind == "categorical":
        if written not in rule.choices:
            raise ValueError(f"{written!r} is not one of {', '.join(rule.choices)}")
        return str(written)
    wanted = "a whole number" if rule.kind == "int" else "a number"
    if not _is_number(written) or (rule.kind == "int" and written != int(written)):
        raise ValueError(f"{what} needs {wanted}, got {written!r}")
    if written < rule.low or (rule.low_open and written == rule.low):
        raise ValueError(f"{what} needs to be {'above' if rule.low_open else 'at least'} {rule.low:g}, got {written!r}")
    if written > rule.high or (rule.high_open and written == rule.high):
        raise ValueError(
            f"{what} needs to be {'below' if rule.high_open else 'at most'} {rule.high:g}, got {written!r}"
        )
    return int(written) if rule.kind == "int" else float(written)
