"""A split: which rows train, which validate, and which stay sealed until the end.

Shapes: ``n`` rows, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tuner.data._digest import sha256_of
from tuner.errors import DataError
from tuner.spec import SplitSection
from tuner.trial import Task

LARGE = 1_000_000  # rows; above it 1 % is enough to validate or to test on

_STREAM = 0x5B117  # sets the split's random numbers apart from all others that come from the study's seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Row numbers of the three parts, int64 and ascending; every row of the table is in exactly one part."""

    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the three parts, hexadecimal."""
        return sha256_of(arrays=(self.train, self.val, self.test))


def default_fractions(n: int) -> tuple[float, float, float]:
    """Shares of train, validation and test rows by the number of rows (lecture, slide "Validation Set").

    >>> default_fractions(1_000_000)
    (0.6, 0.2, 0.2)
    >>> default_fractions(1_000_001)
    (0.98, 0.01, 0.01)
    """
    return (0.98, 0.01, 0.01) if n > LARGE else (0.6, 0.2, 0.2)


def part_sizes(n: int, section: SplitSection | None) -> tuple[int, int, int]:
    """Rows to train, validate and test on: the shares of validation and test are rounded to the nearest row (a half
    goes up, in decimal arithmetic), and train is all the rest.

    Raises DataError when a part would be empty.

    >>> part_sizes(1797, None)
    (1079, 359, 359)
    """
    fractions = default_fractions(n) if section is None else (section.train, section.val, section.test)
    n_val, n_test = (int((Decimal(repr(f)) * n).to_integral_value(ROUND_HALF_UP)) for f in fractions[1:])
    sizes = (n - n_val - n_test, n_val, n_test)
    for part, size, fraction in zip(("train", "val", "test"), sizes, fractions, strict=True):
        if size < 1:
            raise DataError(
                f"data.split: every part needs a row; {part} = {fraction:g} of {n} rows is none; "
                f"give more rows, or {part} a larger share"
            )
    return sizes


def is_stratified(task: Task, section: SplitSection | None) -> bool:
    """Classification is stratified unless the study file says otherwise.

    Raises DataError for stratified regression.
    """
    wanted = None if section is None else section.stratify
    if wanted and task == "regression":
        raise DataError("data.split.stratify: is for classes, the target is a quantity; drop stratify = true")
    return task == "classification" and wanted is not False


def split_rows(
    target: npt.NDArray[Any], task: Task, section: SplitSection | None, seed: int, *, classes: Sequence[str] = ()
) -> Split:
    """Deal n rows to train, validation and test at random; the sizes are those of :func:`part_sizes`.

    Stratified, every class is in every part; in validation and test within one row of its share (more only for a class
    whose share is below one row, and for those that make room for it). Equal arguments give equal splits, and nothing
    but the number of rows and, stratified, the codes matters.

    target: (n,), codes 0..C-1 for classification. classes: the C labels that a message calls the classes by.

    Raises DataError when a part would be empty, when a class has too few rows to be in all three parts, or when a part
    has fewer rows than there are classes.
    """
    stratified = is_stratified(task, section)
    sizes = part_sizes(len(target), section)
    rng = np.random.default_rng([_STREAM, seed])
    if not stratified:
        order = rng.permutation(len(target))
        train, val, test = np.split(order, np.cumsum(sizes)[:2])
        return Split(train=np.sort(train), val=np.sort(val), test=np.sort(test))
    counts = np.bincount(target)
    shares = _class_shares(counts, sizes, classes)
    dealt: tuple[list[npt.NDArray[np.int64]], ...] = ([], [], [])
    members = np.split(np.argsort(target, kind="stable"), np.cumsum(counts)[:-1])
    for rows, share in zip(members, shares, strict=True):
        for part, chosen in zip(dealt, np.split(rng.permutation(rows), np.cumsum(share)[:2]), strict=True):
            part.append(chosen)
    train, val, test = (np.sort(np.concatenate(part)) for part in dealt)
    return Split(train=train, val=val, test=test)


def _class_shares(
    counts: npt.NDArray[np.int64], sizes: tuple[int, int, int], classes: Sequence[str]
) -> npt.NDArray[np.int64]:
    """(C, 3): how many rows of each class go to each part; rows add up to ``counts``, columns to ``sizes``.

    scikit-learn's stratified split takes classes proportionally but may leave a rare one out of a part; a class that
    validation or test never sees has no error rate, so here every cell holds at least one row.
    """
    few = np.flatnonzero(counts < 3)
    if few.size:
        label = classes[few[0]] if classes else str(few[0])
        counted = "1 row" if counts[few[0]] == 1 else f"{counts[few[0]]} rows"
        others = f", and {few.size - 1} more classes have too few" if few.size > 1 else ""
        raise DataError(
            f"data.split: stratified, a class needs 3 rows to be in train, validation and test; class {label!r} has "
            f"{counted}{others}; merge or drop the class, or set data.split.stratify = false"
        )
    for part, size in zip(("train", "val", "test"), sizes, strict=True):
        if size < len(counts):
            raise DataError(
                f"data.split: stratified, every part needs a row of each of the {len(counts)} classes; "
                f"{part} has {size} rows; give {part} a larger share, or set data.split.stratify = false"
            )
    quota = counts / counts.sum()
    one = np.ones_like(counts)
    test = _apportion(quota * sizes[2], one, counts - 2)
    val = _apportion(quota * sizes[1], one, counts - test - 1)
    return np.stack([counts - val - test, val, test], axis=1)


def _apportion(
    quota: npt.NDArray[np.float64], low: npt.NDArray[np.int64], high: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Whole numbers near ``quota`` within ``low`` and ``high`` that add up to the sum of ``quota``: the largest
    remainders are rounded up. Needs sum(low) <= sum(quota) <= sum(high).

    >>> _apportion(np.array([3.6, 1.2, 0.2]), np.ones(3, int), np.array([9, 9, 9]))
    array([3, 1, 1])
    """
    total = round(float(quota.sum()))
    dealt = np.clip(np.floor(quota).astype(np.int64), low, high)
    while (missing := total - int(dealt.sum())) != 0:
        step = 1 if missing > 0 else -1
        room = dealt < high if step > 0 else dealt > low
        gain = np.where(room, (quota - dealt) * step, -np.inf)
        dealt[int(np.argmax(gain))] += step
    return dealt
