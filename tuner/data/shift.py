"""A shift check: do train, validation and test inputs come from one distribution? (lecture, slide "Validation Set")

It looks at inputs, never at targets: no comparison here is given one. Each pair of parts is compared column by column,
and as a whole by a classifier that tries to tell the two apart (Lopez-Paz and Oquab 2017). All p-values are corrected
together by Holm's method, so that parts dealt at random raise an alarm with a probability of at most ``LEVEL``.

Shapes: ``n`` and ``m`` rows of two parts, ``D`` columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from tuner.data._prepare import prepare
from tuner.data.columns import Kind
from tuner.spec import StudySpec

Numbers = npt.NDArray[np.int64]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")

LEVEL = 0.01  # probability of any alarm at all when the parts are dealt at random
MAX_ROWS = 20_000  # of a part; more are sampled
MAX_CELLS = 2_000_000  # rows times columns of a part, so that wide tables cost no more than long ones
CLASSIFIER_ROWS = 4_000  # of a part
CLASSIFIER_CELLS = 250_000
CLASSIFIER_MIN_ROWS = 20  # of the smaller part; with fewer no classifier learns anything
EXACT = 10_000  # rows of one part times rows of the other, up to which numbers are compared exactly
EXPECTED = 10  # rows of the smaller part that a category needs to be counted by itself
_CODES = 254  # categories that histogram gradient boosting takes; rarer ones are missing to it
_STREAM = 0x5817F7


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """Two parts and a p-value; adjusted: the same after Holm's correction over everything that was tested."""

    parts: tuple[Part, Part]
    p: float
    adjusted: float

    @property
    def shifted(self) -> bool:
        """Whether chance does not explain the difference."""
        return self.adjusted <= LEVEL

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        return {**asdict(self), "parts": list(self.parts), "shifted": self.shifted}


@dataclass(frozen=True, kw_only=True)
class ColumnShift(_Compared):
    """One column of two parts. test: what was compared; statistic: D of Kolmogorov-Smirnov, Cramér's V of counts."""

    column: str
    test: Literal["distribution", "categories", "missing"]
    statistic: float


@dataclass(frozen=True, kw_only=True)
class ClassifierShift(_Compared):
    """Whether a classifier tells rows of two parts apart. auc: on rows it was not trained on; 0.5 is guessing."""

    auc: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class ShiftReport:
    """What the check found. rows: how many of each part were looked at; sampled: whether those are fewer than all.

    by_time: the parts follow each other in time. group: the column that they were dealt by, of each value of which one
    row was looked at; or None.
    """

    columns: tuple[ColumnShift, ...]
    classifiers: tuple[ClassifierShift, ...]
    rows: Mapping[Part, int]
    sampled: bool
    by_time: bool
    group: str | None = None

    @property
    def _all(self) -> tuple[_Compared, ...]:
        return (*self.columns, *self.classifiers)

    @property
    def shifted(self) -> bool:
        """Whether anything differs by more than chance explains."""
        return any(found.shifted for found in self._all)

    @property
    def verdict(self) -> str:
        """The sentence, as a warning where the split does not make a shift likely."""
        return f"{'warning' if self.shifted and not self.by_time else 'shift'}: {self.sentence}"

    @property
    def sentence(self) -> str:
        """What was found, in plain words."""
        seen = f"; looked at {', '.join(f'{n:,} {part}' for part, n in self.rows.items())} rows" if self.sampled else ""
        if self.group is not None:
            seen += f", one of each {self.group!r}"
        if not self.shifted:
            return f"{_and(tuple(self.rows))} inputs look alike (a false alarm in at most {LEVEL:.0%} of splits){seen}"
        where = []
        for parts in combinations(PARTS, 2):
            names = list(dict.fromkeys(c.column for c in self.columns if c.parts == parts and c.shifted))
            told_apart = [c for c in self.classifiers if c.parts == parts and c.shifted]
            if names or told_apart:
                listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                where.append(f"{parts[0]} and {parts[1]} differ{f' in {listed}' if listed else ' as a whole'}")
        if self.by_time:
            meaning = "a split by time makes that likely: the test score then says how the model does on later rows"
        elif any(found.shifted and "test" in found.parts for found in self._all):
            meaning = "what is tuned on validation may not hold on test, so give both the same kind of rows"
        else:
            meaning = "what is learnt on train may not hold on validation, so give both the same kind of rows"
        return f"{'; '.join(where)}: {meaning}{seen}"

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        return {
            "shifted": self.shifted,
            "sentence": self.sentence,
            "level": LEVEL,
            "rows": dict(self.rows),
            "sampled": self.sampled,
            "by_time": self.by_time,
            "group": self.group,
            "columns": [found.as_dict() for found in self.columns],
            "classifiers": [found.as_dict() for found in self.classifiers],
        }


def _and(parts: Sequence[str]) -> str:
    """``train, validation and test``."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def check_shift(spec: StudySpec, root: Path) -> ShiftReport:
    """Compare the inputs of a study's parts; with folds, those of the first one. A relative path in the spec starts at
    ``root``. Raises DataError.

    Of parts that were dealt by group one row of each group is compared, drawn by the study's seed: the groups are dealt
    at random, their rows are not, and a hundred rows of a customer are no hundred signs of a difference.
    """
    prepared = prepare(spec, root)
    split, frame, section = prepared.split, prepared.table.frame, spec.data.split
    schema = prepared.schema(split.train)
    rows: dict[Part, Numbers] = {"train": split.train, "validation": split.val, "test": split.test}
    group = None if section is None else section.group
    if group is not None and prepared.table.by is not None:
        rng = np.random.default_rng([_STREAM, spec.study.seed, 11])
        rows = {part: _one_of_each(prepared.table.by, chosen, rng) for part, chosen in rows.items()}
    return compare_inputs(
        {part: schema.apply(frame[chosen]) for part, chosen in rows.items() if len(chosen)},
        {column.name: column.kind for column in schema.columns},
        seed=spec.study.seed,
        by_time=section is not None and section.time is not None,
        group=group,
    )


def _one_of_each(groups: pl.Series, rows: Numbers, rng: np.random.Generator) -> Numbers:
    """One of ``rows``, at random, of each group that has any."""
    shuffled = rng.permutation(rows)
    return np.sort(shuffled[groups[shuffled].cast(pl.String).arg_unique().to_numpy()])


def compare_inputs(
    frames: Mapping[Part, pl.DataFrame],
    kinds: Mapping[str, Kind],
    *,
    seed: int = 0,
    by_time: bool = False,
    group: str | None = None,
) -> ShiftReport:
    """Compare the inputs of the parts, each pair of them.

    frames: one a part, with a column for each key of ``kinds``: numbers, booleans, text or dates, missing is null. More
        than ``MAX_ROWS`` rows are sampled, by ``seed``.
    by_time, group: as :class:`ShiftReport` has them.
    """
    most = max(1, min(MAX_ROWS, MAX_CELLS // max(len(kinds), 1)))
    seen = {
        part: _sample(frame.select(list(kinds)), most, [_STREAM, seed, i])
        for i, (part, frame) in enumerate(frames.items())
    }
    pairs = list(combinations(seen, 2))
    tested = [
        (name, (one, other), *result)
        for name, kind in kinds.items()
        for one, other in pairs
        for result in _column_tests(seen[one][name], seen[other][name], kind)
    ]
    apart = [(pair, *found) for pair in pairs if (found := _classifier_test(seen, pair, kinds, seed)) is not None]
    adjusted = holm([row[4] for row in tested] + [row[3] for row in apart])
    columns = tuple(
        ColumnShift(column=name, parts=pair, test=test, statistic=statistic, p=p, adjusted=after)
        for (name, pair, test, statistic, p), after in zip(tested, adjusted, strict=False)
    )
    classifiers = tuple(
        ClassifierShift(parts=pair, auc=auc, rows=rows, p=p, adjusted=after)
        for (pair, auc, rows, p), after in zip(apart, adjusted[len(tested) :], strict=True)
    )
    return ShiftReport(
        columns=columns,
        classifiers=classifiers,
        rows={part: frame.height for part, frame in seen.items()},
        sampled=group is not None or any(seen[part].height < frame.height for part, frame in frames.items()),
        by_time=by_time,
        group=group,
    )


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (1979): rejecting those up to α errs at all with probability at most α.

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    order = np.argsort(p, kind="stable")
    adjusted, largest = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = largest
    return adjusted


_Test = tuple[Literal["distribution", "categories", "missing"], float, float]


def _column_tests(one: pl.Series, other: pl.Series, kind: Kind) -> list[_Test]:
    """(what was compared, statistic, p-value) of one column of two parts."""
    if kind in ("boolean", "category"):
        return _categories(one, other)
    tests = []
    if one.null_count() or other.null_count():
        tests += _counts("missing", np.array([[s.null_count(), len(s) - s.null_count()] for s in (one, other)]))
    x, y = _numbers(one.drop_nulls()), _numbers(other.drop_nulls())
    if len(x) and len(y):
        # Of few rows the approximation is far too sure: of one and two, that any number is another's.
        method = "exact" if len(x) * len(y) <= EXACT else "asymp"
        with (
            warnings.catch_warnings()
        ):  # where rounding spoils the exact value, scipy says so and approximates after all
            warnings.simplefilter("ignore", RuntimeWarning)
            found = stats.ks_2samp(x, y, method=method)
        tests.append(("distribution", float(found.statistic), float(found.pvalue)))
    return tests


def _categories(one: pl.Series, other: pl.Series) -> list[_Test]:
    """Counts of each category, missing values and the rare ones together among them. Which are rare is decided by the
    counts of both parts together: a choice that looked at the difference would make the p-value too small.
    """
    codes = pl.concat([one.cast(pl.String), other.cast(pl.String)]).fill_null("\0").rank("dense").to_numpy() - 1
    table = np.stack([np.bincount(part, minlength=codes.max() + 1) for part in np.split(codes, [len(one)])])
    smaller = min(len(one), len(other)) / len(codes)
    common = table.sum(0) * smaller >= EXPECTED
    pooled = np.column_stack([table[:, common], table[:, ~common].sum(1)])
    return _counts("categories", pooled)


def _counts(test: Literal["categories", "missing"], table: npt.NDArray[Any]) -> list[_Test]:
    """Pearson's χ² of a (2, categories) table, Fisher's exact test where there are two categories and few rows."""
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2 or not table.sum(1).all():
        return []
    expected = stats.contingency.expected_freq(table)
    # A category below EXPECTED is the pool of the rare ones: it goes to the commonest rather than untested.
    if table.shape[1] > 2 and expected.min() < EXPECTED / 2:
        last, commonest = int(expected.min(0).argmin()), int(expected.min(0).argmax())
        table = table.copy()
        table[:, commonest] += table[:, last]
        table = np.delete(table, last, axis=1)
        expected = stats.contingency.expected_freq(table)
    chi2, p, _, _ = stats.chi2_contingency(table, correction=True)
    if table.shape[1] == 2 and expected.min() < EXPECTED:
        p = stats.fisher_exact(table).pvalue
    return [(test, float(np.sqrt(chi2 / table.sum())), float(p))]


def _classifier_test(
    frames: Mapping[Part, pl.DataFrame], pair: tuple[Part, Part], kinds: Mapping[str, Kind], seed: int
) -> tuple[float, int, float] | None:
    """(AUC, rows of each part, p-value) of a classifier between two parts; None where rows are too few.

    Trained on one half and judged on the other by Mann and Whitney's test, which needs no assumption about the
    classifier; then the other way round. The smaller of the two p-values counts twice (Bonferroni).
    """
    rows = min(CLASSIFIER_ROWS, CLASSIFIER_CELLS // max(len(kinds), 1), *(frames[part].height for part in pair))
    if rows < CLASSIFIER_MIN_ROWS:
        return None
    drawn = [_sample(frames[part], rows, [_STREAM, seed, 7, i]) for i, part in enumerate(pair)]
    x = _matrix(pl.concat(drawn), kinds)
    label = np.repeat([0, 1], rows)
    # Each part's halves are dealt by themselves: where the rows are in the order of a column, halves of the same places
    # in both parts would differ alike by chance, and the classifier be right about it.
    rng = np.random.default_rng([_STREAM, seed, 9])
    second = np.concatenate([rng.permutation(np.arange(rows) % 2) for _ in pair]) == 1
    categorical = [kind == "category" for kind in kinds.values()]
    areas, ps = [], []
    model = HistGradientBoostingClassifier(
        max_iter=40,
        max_leaf_nodes=8,
        min_samples_leaf=10,
        categorical_features=categorical,
        early_stopping=False,
        random_state=seed % 2**32,
    )
    for held in (second, ~second):
        with threadpool_limits(1):  # on so few rows threads wait more than they work
            score = model.fit(x[~held], label[~held]).decision_function(x[held])
        areas.append(float(roc_auc_score(label[held], score)))
        judged = stats.mannwhitneyu(score[label[held] == 1], score[label[held] == 0], alternative="greater")
        ps.append(float(judged.pvalue))
    return float(np.mean(areas)), rows, min(1.0, 2 * min(ps))


def _matrix(frame: pl.DataFrame, kinds: Mapping[str, Kind]) -> npt.NDArray[np.float64]:
    """(n, D) numbers, missing is NaN; categories as codes by frequency, rare ones missing."""
    columns = []
    for name, kind in kinds.items():
        column = frame[name]
        if kind == "category":
            text = column.cast(pl.String)
            common = text.drop_nulls().value_counts(sort=True)[name].head(_CODES).to_list()
            column = text.replace_strict(common, range(len(common)), default=None, return_dtype=pl.Float64)
        columns.append(_numbers(column))
    return np.stack(columns, axis=1)


def _numbers(column: pl.Series) -> npt.NDArray[np.float64]:
    """Numbers, booleans or dates as float64, missing is NaN."""
    if column.dtype.is_temporal():
        column = column.cast(pl.Datetime("us")).to_physical().set(column.is_null(), None)
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _sample(frame: pl.DataFrame, most: int, seed: Sequence[int]) -> pl.DataFrame:
    if frame.height <= most:
        return frame
    rows = np.random.default_rng(list(seed)).choice(frame.height, most, replace=False)
    return frame[np.sort(rows)]
