"""A split: which rows train, which validate, and which stay sealed until the end.

Shapes: ``n`` rows, ``C`` classes, ``F`` folds.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

from tuner.data._digest import sha256_of
from tuner.data.columns import Kind, read_as
from tuner.errors import DataError
from tuner.spec import SplitSection
from tuner.trial import Task
from tuner.words import count

LARGE = 1_000_000  # rows; above it 1 % is enough to validate or to test on

_STREAM = 0x5B117  # sets the split's random numbers apart from all others that come from the study's seed
_PARTS = ("train", "val", "test")
_PART_NAMES = {"train": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2}

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Row numbers, int64 and ascending. Every row of the table is in ``test`` or in each fold's train or validation.

    folds: (train, validation) of each fold; a single pair where there are no folds.
    """

    folds: tuple[tuple[Numbers, Numbers], ...]
    test: Numbers

    @classmethod
    def of(cls, train: npt.ArrayLike, val: npt.ArrayLike, test: npt.ArrayLike) -> Split:
        """A split without folds; row numbers in any order."""
        parts = [np.sort(np.asarray(part, dtype=np.int64)) for part in (train, val, test)]
        return cls(folds=((parts[0], parts[1]),), test=parts[2])

    @property
    def train(self) -> Numbers:
        """Of the first fold."""
        return self.folds[0][0]

    @property
    def val(self) -> Numbers:
        """Of the first fold."""
        return self.folds[0][1]

    @property
    def trained(self) -> Numbers:
        """Rows that some trial trains on: with folds, each of them in all folds but one."""
        return self.train if len(self.folds) == 1 else self.development

    @cached_property
    def development(self) -> Numbers:
        """All rows but the test rows."""
        return np.sort(np.concatenate(self.folds[0]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the parts, hexadecimal."""
        return sha256_of(arrays=(*(part for fold in self.folds for part in fold), self.test))


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
    goes up, in decimal arithmetic), and train is all the rest. Of folds, the sizes of one.

    Raises DataError when a part would be empty that should not.

    >>> part_sizes(1797, None)
    (1079, 359, 359)
    """
    fractions = _fractions(n, section)
    n_val, n_test = (int((Decimal(repr(f)) * n).to_integral_value(ROUND_HALF_UP)) for f in fractions[1:])
    sizes = (n - n_val - n_test, n_val, n_test)
    for part, size, fraction in zip(_PARTS, sizes, fractions, strict=True):
        if size < 1 and fraction > 0:
            raise DataError(
                f"data.split: every part needs a row; {part} = {fraction:g} of {n} rows is none; "
                f"give more rows, or {part} a larger share"
            )
    return sizes


def _fractions(n: int, section: SplitSection | None) -> tuple[float, float, float]:
    fractions = default_fractions(n) if section is None else section.fractions or default_fractions(n)
    if section is not None and section.folds:
        test = fractions[2] if section.test is None else section.test
        return (1 - test) * (1 - 1 / section.folds), (1 - test) / section.folds, test
    return fractions


def is_stratified(task: Task, section: SplitSection | None) -> bool:
    """Classification is stratified unless the study file says otherwise, or splits by something else.

    Raises DataError for stratified regression.
    """
    wanted = None if section is None else section.stratify
    if wanted and task == "regression":
        raise DataError("data.split.stratify: is for classes, the target is a quantity; drop stratify = true")
    return task == "classification" and wanted is not False and not (section is not None and _is_ordered(section))


def _is_ordered(section: SplitSection) -> bool:
    """Whether something else than chance says where a row belongs."""
    return any((section.group, section.time, section.column, section.file))


def split_rows(
    target: npt.NDArray[Any],
    task: Task,
    section: SplitSection | None,
    seed: int,
    *,
    classes: Sequence[str] = (),
    by: pl.Series | None = None,
    root: Path = Path(),
) -> Split:
    """Deal n rows to train, validation and test, by the rule of ``section``. Equal arguments give equal splits.

    - At random, the sizes being those of :func:`part_sizes`. Stratified, every class is in every part; in validation
      and test within one row of its share (more only for a class whose share is below one row, and for those that make
      room for it).
    - By group: groups in random order fill test, then validation, each to the nearest of its size; train is the rest.
    - By time: train before validation before test; rows of one moment stay together, so sizes may differ by them.
    - By a column or a file that says where each row belongs.
    - In folds: test as above, and what is left is validated on once, in F parts of (nearly) equal size or number of
      groups.

    target: (n,), codes 0..C-1 for classification. classes: the C labels that a message calls the classes by. by: the
    column that ``section`` names as group, time or column. A relative ``section.file`` starts at ``root``.

    Raises DataError when a part would be empty, or without a class that it needs; when the given parts do not make a
    split; when a group or a time is missing.
    """
    stratified = is_stratified(task, section)
    if section is None or not (section.column or section.file):
        sizes = part_sizes(len(target), section)
    rng = np.random.default_rng([_STREAM, seed])
    if section is not None and section.file is not None:
        split = _given_in_file(root / Path(section.file).expanduser(), section.file, len(target))
    elif section is not None and section.column is not None:
        split = _given_in_column(_present(by, section.column), section.column)
    elif section is not None and section.time is not None:
        split = _by_time(_present(by, section.time), section.time, sizes)
    elif section is not None and section.group is not None:
        groups = _codes(_present(by, section.group))
        split = _by_group(groups, section.group, sizes, rng)
        if section.folds:
            split = _folded(split, section.folds, lambda rows: _group_folds(groups[rows], section, seed))
    else:
        split = _at_random(target, sizes, classes if stratified else None, rng)
        if section is not None and section.folds:
            split = _folded(split, section.folds, lambda rows: _folds(target[rows], stratified, classes, section, seed))
    if task == "classification" and section is not None and _is_ordered(section):
        _check_classes(split, target, classes)
    return split


def _at_random(
    target: npt.NDArray[Any], sizes: tuple[int, int, int], classes: Sequence[str] | None, rng: np.random.Generator
) -> Split:
    """classes: None for a split that is not stratified."""
    if classes is None:
        order = rng.permutation(len(target))
        return Split.of(*np.split(order, np.cumsum(sizes)[:2]))
    counts = np.bincount(target)
    shares = _class_shares(counts, sizes, classes)
    dealt: tuple[list[Numbers], ...] = ([], [], [])
    members = np.split(np.argsort(target, kind="stable"), np.cumsum(counts)[:-1])
    for rows, share in zip(members, shares, strict=True):
        for part, chosen in zip(dealt, np.split(rng.permutation(rows), np.cumsum(share)[:2]), strict=True):
            part.append(chosen)
    return Split.of(*(np.concatenate(part) for part in dealt))


def _by_group(groups: Numbers, name: str, sizes: tuple[int, int, int], rng: np.random.Generator) -> Split:
    """groups: (n,) codes 0..G-1."""
    counts = np.bincount(groups)
    if len(counts) < sum(size > 0 for size in sizes):
        raise DataError(
            f"data.split.group: column {name!r} has {len(counts)} different values; train, val and test need one each"
        )
    part_of = np.zeros(len(counts), dtype=np.int64)
    filled = {2: 0, 1: 0}
    waiting = rng.permutation(len(counts)).tolist()
    for part in (2, 1) if sizes[2] else (1,):
        for group in list(waiting):
            more = filled[part] + counts[group]
            enough = len(waiting) <= part  # the parts that come need a group each
            if enough or (filled[part] and abs(more - sizes[part]) > abs(filled[part] - sizes[part])):
                continue
            part_of[group], filled[part] = part, more
            waiting.remove(group)
            if filled[part] >= sizes[part]:
                break
    parts = part_of[groups]
    return Split.of(*(np.flatnonzero(parts == part) for part in range(3)))


def _by_time(column: pl.Series, name: str, sizes: tuple[int, int, int]) -> Split:
    kinds: tuple[Kind, ...] = ("numeric",) if column.dtype.is_numeric() else ("date", "numeric")
    moments = min((read_as(column, kind) for kind in kinds), key=pl.Series.null_count)
    if moments.null_count():
        row = int(np.argmax(moments.is_null().to_numpy()))
        raise DataError(
            f"data.split.time: column {name!r} is no date and no number in row {row + 1} ({column[row]!r}); "
            f"write ISO dates (2024-12-31, 2024-12-31T23:59) or numbers"
        )
    values = moments.to_physical().to_numpy()
    order = np.argsort(values, kind="stable")
    cuts = []
    for wanted in (sizes[0], sizes[0] + sizes[1]):
        if wanted == len(values):
            cuts.append(wanted)
            continue
        moment = values[order[wanted]]
        first = int(np.searchsorted(values, moment, side="left", sorter=order))
        last = int(np.searchsorted(values, moment, side="right", sorter=order))
        cuts.append(first if wanted - first <= last - wanted else last)
    train, val, test = np.split(order, cuts)
    for part, rows, size in zip(_PARTS, (train, val, test), sizes, strict=True):
        if not len(rows) and size:
            raise DataError(
                f"data.split.time: column {name!r} has {moments.n_unique()} different moments, and rows of one stay "
                f"together, so {part} would be empty; give other shares, or split by something else"
            )
    return Split.of(train, val, test)


def _given_in_column(column: pl.Series, name: str) -> Split:
    said = column.cast(pl.String).str.strip_chars().str.to_lowercase()
    part = said.replace_strict(_PART_NAMES, default=None, return_dtype=pl.Int64)
    if part.null_count():
        row = int(np.argmax(part.is_null().to_numpy()))
        raise DataError(
            f"data.split.column: column {name!r} says {column[row]!r} in row {row + 1}; "
            f"every row needs train, val or test"
        )
    numbers = part.to_numpy()
    parts = [np.flatnonzero(numbers == i) for i in range(3)]
    _check_parts(parts, f"data.split.column: column {name!r}")
    return Split.of(*parts)


def _given_in_file(path: Path, written: str, n: int) -> Split:
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                given: Mapping[str, Any] = {name: archive[name] for name in archive.files}
        else:
            given = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"data.split.file: no such file: {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"data.split.file: {written} is neither JSON nor NPZ ({error})") from None
    if not isinstance(given, Mapping) or set(given) != set(_PARTS):
        raise DataError(f"data.split.file: {written} needs the row numbers of train, val and test, and nothing else")
    parts = []
    for name in _PARTS:
        try:
            rows = np.asarray(given[name])
        except ValueError:  # lists of different lengths
            rows = np.empty((0, 0))
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise DataError(f"data.split.file: {name} in {written} is no list of row numbers")
        parts.append(rows.astype(np.int64))
    every = np.concatenate(parts)
    if len(every) != n or not np.array_equal(np.sort(every), np.arange(n)):
        outside = every[(every < 0) | (every >= n)]
        fact = (
            f"row {outside[0]} is none of the table's {n} (the first is 0)"
            if outside.size
            else f"it names {len(np.unique(every))} of the table's {n} rows, {len(every)} times in all"
        )
        raise DataError(f"data.split.file: {written} must name every row once; {fact}")
    _check_parts(parts, f"data.split.file: {written}")
    return Split.of(*parts)


def _check_parts(parts: Sequence[Numbers], source: str) -> None:
    for name, rows in zip(_PARTS, parts, strict=True):
        if not len(rows):
            raise DataError(f"{source} gives no row to {name}; each part needs one")


def _check_classes(split: Split, target: Numbers, classes: Sequence[str]) -> None:
    """A class that no train row has cannot be learnt: whoever splits by something else may not notice."""
    for train, _ in split.folds:
        absent = np.setdiff1d(target, target[train])
        if absent.size:
            label = classes[absent[0]] if classes else str(absent[0])
            raise DataError(
                f"data.split: no train row is of class {label!r}; merge or drop the class, or split another way"
            )


def _folded(split: Split, folds: int, deal: Callable[[Numbers], list[tuple[Numbers, Numbers]]]) -> Split:
    """The split with its development rows dealt to folds anew."""
    rows = split.development
    if len(rows) < 2 * folds:
        raise DataError(
            f"data.split.folds: {folds} folds need {2 * folds} rows beside the test rows, {len(rows)} are left"
        )
    return Split(folds=tuple((rows[train], rows[val]) for train, val in deal(rows)), test=split.test)


def _folds(
    target: npt.NDArray[Any], stratified: bool, classes: Sequence[str], section: SplitSection, seed: int
) -> list[tuple[Numbers, Numbers]]:
    state = int(np.random.default_rng([_STREAM, seed, 1]).integers(2**31))
    if not stratified:
        return list(KFold(section.folds, shuffle=True, random_state=state).split(target))
    counts = np.bincount(target)
    few = np.flatnonzero(counts < section.folds)
    if few.size:
        label = classes[few[0]] if classes else str(few[0])
        raise DataError(
            f"data.split.folds: stratified, a class needs a row in each of the {section.folds} folds; class {label!r} "
            f"has {counts[few[0]]} beside the test rows; take fewer folds, or set data.split.stratify = false"
        )
    return list(StratifiedKFold(section.folds, shuffle=True, random_state=state).split(target, target))


def _group_folds(groups: Numbers, section: SplitSection, seed: int) -> list[tuple[Numbers, Numbers]]:
    different = len(np.unique(groups))
    if different < section.folds:
        raise DataError(
            f"data.split.folds: {section.folds} folds need as many groups beside the test rows, {different} are left"
        )
    state = int(np.random.default_rng([_STREAM, seed, 1]).integers(2**31))
    return list(GroupKFold(section.folds, shuffle=True, random_state=state).split(groups, groups=groups))


def _present(by: pl.Series | None, name: str) -> pl.Series:
    """The column that a split is by, every value being there."""
    if by is None:
        raise ValueError(f"the split needs column {name!r}")
    if by.dtype.is_nested() or by.dtype in (pl.Time, pl.Binary, pl.Object):
        raise DataError(
            f"data.split: column {name!r} holds {by.dtype}; a split is by numbers, booleans, dates or text; convert it"
        )
    if by.dtype.is_float():
        by = by.fill_nan(None)
    if by.null_count():
        row = int(np.argmax(by.is_null().to_numpy())) + 1
        missing = count(by.null_count(), "row")
        raise DataError(f"data.split: column {name!r} is missing in {missing} (first in row {row}); fill it in")
    return by


def _codes(column: pl.Series) -> Numbers:
    """(n,) 0..G-1 in the order of first appearance."""
    codes: Numbers = column.cast(pl.String).rank("dense").to_numpy().astype(np.int64) - 1
    return codes


def _class_shares(
    counts: npt.NDArray[np.int64], sizes: tuple[int, int, int], classes: Sequence[str]
) -> npt.NDArray[np.int64]:
    """(C, 3): how many rows of each class go to each part; rows add up to ``counts``, columns to ``sizes``.

    scikit-learn's stratified split takes classes proportionally but may leave a rare one out of a part; a class that
    validation or test never sees has no error rate, so here every cell holds at least one row.
    """
    needed = sum(size > 0 for size in sizes)
    few = np.flatnonzero(counts < needed)
    if few.size:
        label = classes[few[0]] if classes else str(few[0])
        counted = "1 row" if counts[few[0]] == 1 else f"{counts[few[0]]} rows"
        others = f", and {few.size - 1} more classes have too few" if few.size > 1 else ""
        raise DataError(
            f"data.split: stratified, a class needs {needed} rows to be in {', '.join(_PARTS[:needed])}; "
            f"class {label!r} has {counted}{others}; merge or drop the class, or set data.split.stratify = false"
        )
    for part, size in zip(("train", "val", "test"), sizes, strict=True):
        if 0 < size < len(counts):
            raise DataError(
                f"data.split: stratified, every part needs a row of each of the {len(counts)} classes; "
                f"{part} has {size} rows; give {part} a larger share, or set data.split.stratify = false"
            )
    quota = counts / counts.sum()
    one = np.ones_like(counts)
    test = _apportion(quota * sizes[2], one, counts - 2) if sizes[2] else np.zeros_like(counts)
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
