"""Brackets: which slots train together, how far, and how many go on. Pure functions in integer arithmetic.

Hyperband (Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter
Optimization", JMLR 18, 2018, Algorithm 1). Its names here:

======  =============================  ============================================================================
paper   here                           meaning
======  =============================  ============================================================================
R       ``max_epochs``                 the most epochs one trial may get
η       ``search.eta``                 one of η configurations survives a rung
(1)     ``search.min_epochs``          the fewest epochs a trial is judged by; the paper's unit of resource
s       ``Bracket.index``              how aggressive the bracket is: it has s + 1 rungs
n_i     ``Rung.size``                  lanes trained in rung i
r_i     ``Rung.epochs``                epochs, in total, that they have been trained when rung i is decided
======  =============================  ============================================================================

Successive halving's asynchronous form (Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar, "A System
for Massively Parallel Hyperparameter Tuning", MLSys 2020, Algorithm 2) decides over the same table: :func:`promotable`.

Three departures, all in the study's favour. s_max is the largest s with min_epochs·η^s <= R, found with whole numbers:
⌊log_η R⌋ in floating point loses a bracket at R = 243, η = 3. The paper's r_i need not be whole; epochs are, so they
are rounded down. And a promoted trial continues from its weights, so a rung costs n_i (r_i - r_{i-1}), not n_i r_i.

The paper's Table 1 (R = 81, η = 3) starts its brackets with 81, 27, 9, 6 and 5 configurations; Algorithm 1, line 2,
gives 81, 34, 15, 8 and 5. The table floors B / (R (s + 1)) before it multiplies; this module follows the algorithm.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tuner.spec import SearchSection, StudySpec

_FEW = 1000  # results that are cheaper to insert one by one than to sort anew


@dataclass(frozen=True, kw_only=True)
class Rung:
    """``size`` lanes are trained up to ``epochs`` epochs in total, and then decided on together."""

    size: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """One run of successive halving.

    index: Hyperband's s; s_max for successive halving alone, 0 without pruning.
    rungs: sizes never rise and are at least 1; epochs strictly rise, the last is R.
    eta: η, by which a shorter copy of this bracket divides its own sizes (default: the study file's default).
    """

    index: int
    rungs: tuple[Rung, ...]
    eta: int = 3

    @property
    def size(self) -> int:
        """The slots it starts with: n_0."""
        return self.rungs[0].size

    @property
    def cost(self) -> int:
        """Epochs it trains when every promoted trial continues from its weights and no lane diverges."""
        reached = 0
        cost = 0
        for rung in self.rungs:
            cost += rung.size * (rung.epochs - reached)
            reached = rung.epochs
        return cost


def largest_bracket(max_epochs: int, eta: int, min_epochs: int = 1) -> int:
    """s_max: the largest s with min_epochs·η^s <= R, exactly.

    Raises ValueError unless 1 <= min_epochs <= max_epochs and eta >= 2.

    >>> largest_bracket(243, 3)
    5
    """
    if eta < 2:
        raise ValueError(f"eta needs to be at least 2, got {eta}")
    if not 1 <= min_epochs <= max_epochs:
        raise ValueError(f"min_epochs needs to be from 1 to max_epochs {max_epochs}, got {min_epochs}")
    s = 0
    while min_epochs * eta ** (s + 1) <= max_epochs:
        s += 1
    return s


def brackets(search: SearchSection, max_epochs: int, total: int | None = None) -> tuple[Bracket, ...]:
    """The brackets of one round, as Algorithm 1 runs them: s_max first, 0 last.

    ``total``, the study's slots (default: ``search.trials``), is the size of the one bracket that successive halving,
    asha and ``pruner = "none"`` have; Hyperband's sizes do not depend on it. Asha promotes at least as many as its
    bracket says, and a few more: those that were the best when they were looked at.

    Raises ValueError when neither says the total, and as :func:`largest_bracket` does.
    """
    if search.pruner == "hyperband":
        s_max = largest_bracket(max_epochs, search.eta, search.min_epochs)
        # Line 2: n = ⌈(B / R) η^s / (s + 1)⌉ with B = (s_max + 1) R.
        sizes = {s: -((s_max + 1) * search.eta**s // -(s + 1)) for s in range(s_max, -1, -1)}
        return tuple(_bracket(s, size, max_epochs, search.eta) for s, size in sizes.items())
    total = search.trials if total is None else total
    if total is None:
        raise ValueError(f"pruner {search.pruner!r} needs the number of trials: search.trials is not set")
    if search.pruner == "none":
        return (_bracket(0, total, max_epochs, search.eta),)
    s_max = largest_bracket(max_epochs, search.eta, search.min_epochs)
    return (_bracket(s_max, total, max_epochs, search.eta),)


def deal(total: int, brackets: Sequence[Bracket]) -> tuple[Bracket, ...]:
    """Deal the slots 0 to ``total - 1`` to the brackets in order, again and again until none is left.

    The last bracket may be short: then its rungs keep their epochs, and its sizes follow from its own n. A size never
    falls below one, so every bracket brings at least one trial to its top rung (if it does not diverge); the brackets
    of Algorithm 1 do so anyway.

    Raises ValueError when ``total`` is below 1 or there are no brackets.
    """
    if total < 1:
        raise ValueError(f"a study needs at least one trial, got {total}")
    if not brackets:
        raise ValueError("there are no brackets to deal to")
    dealt: list[Bracket] = []
    left = total
    while left:
        bracket = brackets[len(dealt) % len(brackets)]
        if bracket.size > left:
            bracket = replace(bracket, rungs=_rungs(left, [rung.epochs for rung in bracket.rungs], bracket.eta))
        dealt.append(bracket)
        left -= bracket.size
    return tuple(dealt)


def plan(spec: StudySpec) -> tuple[Bracket, ...]:
    """The dealt brackets of a study: what it will train, before anything runs. No bracket spans two rounds."""
    sizes = [len(part) for part in rounds(spec)]
    return tuple(b for n in sizes for b in deal(n, brackets(spec.search, spec.training.max_epochs, n)))


def rounds(spec: StudySpec) -> tuple[range, ...]:
    """The slots of each round of a search from coarse to fine, in order and as equal as can be; one round without."""
    total = spec.total_trials
    count = 1 if spec.search.refine is None else spec.search.refine.rounds
    starts = [-(-total * i // count) for i in range(count + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(starts))


def slots(dealt: Sequence[Bracket]) -> tuple[range, ...]:
    """The slot numbers of each dealt bracket.

    >>> one = Bracket(index=0, rungs=(Rung(size=2, epochs=9),))
    >>> slots(deal(5, [one]))
    (range(0, 2), range(2, 4), range(4, 5))
    """
    ends = list(accumulate(bracket.size for bracket in dealt))
    return tuple(range(end - bracket.size, end) for bracket, end in zip(dealt, ends, strict=True))


def slot_place(number: int, dealt: Sequence[Bracket]) -> int:
    """The position in ``dealt`` of the bracket that slot ``number`` belongs to. Raises IndexError when none has it."""
    ends = list(accumulate(bracket.size for bracket in dealt))
    if not ends or not 0 <= number < ends[-1]:
        raise IndexError(f"the brackets have {ends[-1] if ends else 0} slots, there is no slot {number}")
    return bisect_right(ends, number)


def survivors(values: Mapping[int, float], keep: int, direction: Literal["minimize", "maximize"]) -> list[int]:
    """The joint decision on a rung (Algorithm 1, line 8, top_k): the best ``keep`` slots, best first.

    ``values`` holds the value of each slot that was trained to the rung. NaN and infinities lose: a diverged lane is
    never promoted, so fewer than ``keep`` survive where fewer are finite. Equal values: the lower slot number wins,
    so every worker decides alike whatever the order of its rows.

    Raises ValueError when ``keep`` is negative.

    >>> survivors({0: 0.3, 1: float("nan"), 2: 0.1, 3: 0.3}, 2, "minimize")
    [2, 0]
    """
    if keep < 0:
        raise ValueError(f"cannot keep {keep} slots")
    sign = 1 if direction == "minimize" else -1
    ranked = sorted((sign * value, number) for number, value in values.items() if math.isfinite(value))
    return [number for _, number in ranked[:keep]]


def promotable(
    values: Mapping[int, float], promoted: Collection[int], eta: int, direction: Literal["minimize", "maximize"]
) -> list[int]:
    """The asynchronous decision on a rung (Li et al. 2020, Algorithm 2, lines 13 to 15), best first.

    ``values`` holds the value of every slot that has been trained to the rung so far, ``promoted`` those of them that
    went on already (or may not: a failed slot). Who is among the best 1/η of the values and did not go on, may.

    >>> promotable({0: 0.3, 1: 0.1, 2: 0.2, 3: 0.9, 4: 0.8, 5: float("nan")}, {2}, 3, "minimize")
    [1]
    """
    return [number for number in survivors(values, len(values) // eta, direction) if number not in promoted]


class Standing:
    """:func:`promotable` of a rung that results are added to one after the other, in a time that does not grow with it.

    >>> rung = Standing(3, "minimize")
    >>> rung.add({0: 0.3, 1: 0.1, 2: 0.2, 3: 0.9, 4: 0.8, 5: float("nan")})
    >>> rung.remove([2])
    >>> rung.promotable(10)
    [1]
    """

    def __init__(self, eta: int, direction: Literal["minimize", "maximize"]) -> None:
        self._eta = eta
        self._sign = 1 if direction == "minimize" else -1
        self._count = 0  # results, diverged ones included
        self._all: list[tuple[float, int]] = []  # finite results, best first
        self._left: list[tuple[float, int]] = []  # of these, who did not go on
        self._keys: dict[int, tuple[float, int]] = {}  # of who is left, by slot number

    def add(self, values: Mapping[int, float]) -> None:
        """More slots have been trained to the rung."""
        self._count += len(values)
        keys = {n: (self._sign * value, n) for n, value in values.items() if math.isfinite(value)}
        self._keys |= keys
        for ranking in (self._all, self._left):
            if len(keys) > _FEW:
                ranking += keys.values()
                ranking.sort()
            else:
                for key in keys.values():
                    insort(ranking, key)

    def remove(self, numbers: Iterable[int]) -> None:
        """Slots that went on, or may not any more."""
        for number in numbers:
            if (key := self._keys.pop(number, None)) is not None:
                del self._left[bisect_left(self._left, key)]

    def promotable(self, limit: int) -> list[int]:
        """At most ``limit`` slots that may go on, best first."""
        best = min(self._count // self._eta, len(self._all))
        if best == 0:
            return []
        among = bisect_right(self._left, self._all[best - 1])
        return [number for _, number in self._left[: min(among, limit)]]


def total_epochs(dealt: Sequence[Bracket]) -> int:
    """Epochs the study trains when no lane diverges or stops early."""
    return sum(bracket.cost for bracket in dealt)


def _bracket(s: int, size: int, max_epochs: int, eta: int) -> Bracket:
    """Bracket s started with ``size`` slots; rung i is at r_i = ⌊R η^i / η^s⌋ epochs.

    The r_i strictly rise: with x = R η^i / η^s >= 1 and η >= 2, ηx >= x + 1, so ⌊ηx⌋ >= ⌊x⌋ + 1. And x >= 1 because
    s <= s_max.
    """
    epochs = [max_epochs * eta**i // eta**s for i in range(s + 1)]
    return Bracket(index=s, rungs=_rungs(size, epochs, eta), eta=eta)


def _rungs(size: int, epochs: Sequence[int], eta: int) -> tuple[Rung, ...]:
    """n_i = ⌊n / η^i⌋, but at least one."""
    return tuple(Rung(size=max(1, size // eta**i), epochs=r) for i, r in enumerate(epochs))
