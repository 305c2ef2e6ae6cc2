"""Preprocessing: what is learnt from the train rows alone and then applied to all (lecture, slide "Input
Normalization").

scikit-learn's estimators do it. They are fitted on a few columns at a time and applied to a run of rows at a time,
which one ``ColumnTransformer`` would not: it holds every column in float64 at once, several times over.

Shapes: ``n`` rows, ``D`` encoded features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer, RobustScaler, StandardScaler

from tuner.data.columns import Column, Schema, read_as
from tuner.errors import DataError
from tuner.trial import Scaling, Task

CHUNK_ROWS = 65_536  # preprocessed at a time
BLOCK_COLUMNS = 8  # fitted at a time
MAX_CATEGORIES = 64  # of a column; the rarest ones share one feature
BINS = 24  # of a number that is encoded piecewise linearly, at most
FEWEST_BINS = 4
BIN_FEATURES = 512  # of all numbers together, or each has fewer bins, down to the fewest
FAR = 1e150  # robustly scaled numbers beyond it differ in nothing
MIN_FREQUENCY = 5  # rows that a category needs for a feature of its own

Numbers = npt.NDArray[np.int64]
_DAY_US = 86_400_000_000
_CYCLES = ("year", "week", "day")  # that dates come again in


class SmoothClippedScaler(RobustScaler):  # type: ignore[misc]  # scikit-learn is untyped
    """Robust scaling with smooth clipping: s/√(1 + (s/3)²) with s = (x - median)/interquartile range, within ±3.

    Where the middle half of a column is one value, half of its range stands for the interquartile range (as in RealMLP,
    Holzmüller et al. 2024).
    """

    def fit(self, X: npt.NDArray[np.float64], y: object = None) -> Self:
        super().fit(X, y)
        for column in np.flatnonzero(self.scale_ == 1):  # what scikit-learn puts for zero
            values = X[:, column]
            low, high = np.percentile(values, [25, 75])
            if high == low and (spread := (values.max() - values.min()) / 2) > 0:
                self.scale_[column] = spread
        return self

    def transform(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        scaled: npt.NDArray[np.float64] = super().transform(X)
        np.clip(scaled, -FAR, FAR, out=scaled)  # whose square is still a number
        divisor = np.square(scaled)  # √(1 + (s/3)²), in place: with an array for each pass it takes three times as long
        divisor /= 9
        divisor += 1
        np.sqrt(divisor, out=divisor)
        scaled /= divisor
        return scaled


class PiecewiseLinearEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A number as how far it reaches into each of its bins, which hold equally many train rows: (x - a)/(b - a) for the
    bin from a to b, within 0 and 1 (Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep
    Learning", piecewise linear encoding, but that the first and the last bin end as the others do).

    bins: of each column; where values repeat they are fewer, and a column that would have one has none.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins

    def fit(self, X: npt.NDArray[np.float64], y: object = None) -> Self:  # noqa: ARG002 - scikit-learn's signature
        shares = np.linspace(0, 1, self.bins + 1)
        # Bins end at values that there are: between two that repeat nothing is to be told apart.
        edges = [np.unique(np.quantile(column, shares, method="inverted_cdf")) for column in X.T]
        self.edges_ = [found if len(found) > 2 else found[:1] for found in edges]
        return self

    def transform(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        parts = [
            np.clip((column[:, None] - edges[:-1]) / np.diff(edges), 0, 1)
            for column, edges in zip(X.T, self.edges_, strict=True)
        ]
        encoded: npt.NDArray[np.float64] = np.concatenate(parts, axis=1)
        return encoded

    def names_of(self, columns: Sequence[str]) -> tuple[str, ...]:
        """What its features are called."""
        edges = zip(columns, self.edges_, strict=True)
        return tuple(f"{column} bin {i}" for column, found in edges for i in range(1, len(found)))


class FarValueError(DataError):
    """A number too large to be standardised. called: the column or target it is in; row: counted from 0."""

    def __init__(self, called: str, value: float, row: int) -> None:
        self.called, self.value, self.row = called, value, row
        super().__init__(
            f"{called} cannot be standardised: {value:g} in row {row + 1:,} is too large a number; correct it, rescale "
            "the column, or take its logarithm"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Some plain columns and what turns them into features: ``transformer`` takes (n, len(columns)), float64 with NaN
    or text, and gives (n, len(features)).
    """

    columns: tuple[str, ...]
    transformer: BaseEstimator
    features: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Preprocessing:
    """Fitted by :meth:`fit`. Every feature is finite, whatever is missing, unseen or far away in later rows.

    - numbers: missing ones become the median; then scaled as ``scaling`` says: ``standard`` (x - mean)/sd, ``robust``
      see :class:`SmoothClippedScaler`, ``quantile`` to a normal distribution, ``piecewise`` as ``standard``, with the
      features of :class:`PiecewiseLinearEncoder` beside it. A column that misses values on the train rows also has a
      feature that says so.
    - booleans: 0 and 1; missing ones become the more frequent.
    - categories: one feature each for those with at least :data:`MIN_FREQUENCY` rows, up to :data:`MAX_CATEGORIES` a
      column, and one for the others together, which is also where unseen ones go; where there are no others, an unseen
      one is none of the features: all are 0. Missing is a category.
    - dates: days (a number), and sine and cosine of the time of year, of week and of day where these differ.

    target_mean, target_sd: a regression target y becomes (y - target_mean)/target_sd; 0 and 1 for classification.
    """

    schema: Schema
    scaling: Scaling
    blocks: tuple[Block, ...]
    task: Task
    target_name: str
    target_mean: float
    target_sd: float

    @classmethod
    def fit(
        cls,
        schema: Schema,
        frame: pl.DataFrame,
        target: npt.NDArray[Any],
        rows: Numbers,
        *,
        task: Task,
        target_name: str,
        scaling: Scaling = "standard",
    ) -> Preprocessing:
        """Fit on the rows ``rows`` of ``frame`` and ``target`` (n,), and on nothing else of them.

        schema: inferred on the same rows. Raises DataError when the regression target is constant, numbers are so large
        that their variance is not one, or a column is called as a part of a date.
        """
        _refuse_names_of_parts(schema)
        blocks = tuple(_fit_blocks(schema, frame, rows, scaling))
        target_mean, target_sd = 0.0, 1.0
        if task == "regression":
            target_mean, target_sd = _target_moments(np.asarray(target[rows], dtype=np.float64), target_name, rows)
        return cls(
            schema=schema,
            scaling=scaling,
            blocks=blocks,
            task=task,
            target_name=target_name,
            target_mean=target_mean,
            target_sd=target_sd,
        )

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """D names: the column, and what of it."""
        return tuple(name for block in self.blocks for name in block.features)

    def transform(self, frame: pl.DataFrame, rows: Numbers | None = None) -> npt.NDArray[np.float32]:
        """Rows of a frame that has the schema's columns, all or those numbered, as (n, D) float32, C-contiguous.

        Computed in float64. Raises DataError when a column is missing, FarValueError when a value is so far from the
        train rows that float32 cannot hold it.
        """
        self.schema.check_names(frame.columns)
        numbers = np.arange(frame.height) if rows is None else rows
        n = len(numbers)
        result = np.empty((n, len(self.feature_names)), dtype=np.float32)
        for first in range(0, n, CHUNK_ROWS):
            last = min(first + CHUNK_ROWS, n)
            plain = plain_columns(self.schema, frame[first:last] if rows is None else frame[rows[first:last]])
            place = 0
            for block in self.blocks:
                # Numbers are finite or NaN as they come, and what comes out is looked at below.
                with np.errstate(over="ignore"), config_context(assume_finite=True):
                    features = block.transformer.transform(_matrix(plain, block.columns))
                    result[first:last, place : place + len(block.features)] = features
                place += len(block.features)
            if not np.isfinite(result[first:last]).all():
                self._refuse_far(plain, result[first:last], numbers[first:last])
        return result

    def _refuse_far(self, plain: pl.DataFrame, result: npt.NDArray[np.float32], rows: Numbers) -> None:
        feature = int(np.flatnonzero(~np.isfinite(result).all(axis=0))[0])
        block = next(block for block in self.blocks if self.feature_names[feature] in block.features)
        column = block.columns[block.features.index(self.feature_names[feature]) % len(block.columns)]
        refuse_far(f"column {column!r}", plain[column].cast(pl.Float64).to_numpy(), rows)

    def transform_target(
        self, target: npt.NDArray[Any], rows: Numbers | None = None
    ) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
        """The target as read, of all rows or those numbered, as int64 codes, or as float32 standardised values for
        regression. Raises FarValueError as :meth:`transform` does.
        """
        rows = np.arange(len(target)) if rows is None else rows
        if self.task == "classification":
            return target[rows].astype(np.int64)
        with np.errstate(over="ignore"):
            result = ((target[rows] - self.target_mean) / self.target_sd).astype(np.float32)
        if not np.isfinite(result).all():
            refuse_far(f"target {self.target_name!r}", target[rows], rows)
        return result

    def refuse_far_rows(self, frame: pl.DataFrame, target: npt.NDArray[Any]) -> None:
        """Raises FarValueError when :meth:`transform` or :meth:`transform_target` would for some row; it looks at the
        smallest and largest numbers alone.
        """
        numbers = [read_as(frame[name], "numeric") for name in self.schema.of_kind("numeric")]
        ends = {place for column in numbers for place in (column.arg_min(), column.arg_max()) if place is not None}
        self.transform(frame, np.array(sorted(ends), dtype=np.int64))
        self.transform_target(target, np.array([target.argmin(), target.argmax()]))


def plain_columns(schema: Schema, frame: pl.DataFrame) -> pl.DataFrame:
    """The schema's columns with every date taken apart into numbers, and with a word for missing categories.

    A date ``d`` becomes ``d`` in days (of one that recurs: nothing) and ``d sin year``, ``d cos year`` and so on.
    """
    columns: list[pl.Series] = []
    for column, values in zip(schema.columns, schema.apply(frame), strict=True):
        if column.kind == "category":
            columns.append(values.fill_null(""))
        elif column.kind == "date":
            columns += _date_parts(column, values)
        else:
            columns.append(values)
    return pl.DataFrame(columns)


def _date_parts(column: Column, moments: pl.Series) -> Iterator[pl.Series]:
    if not column.recurring:
        yield (moments.to_physical() / _DAY_US).alias(column.name)
    in_day = (moments.to_physical() % _DAY_US) / _DAY_US
    shares = ((moments.dt.ordinal_day() - 1 + in_day) / 366, (moments.dt.weekday() - 1 + in_day) / 7, in_day)
    for cycle, share in zip(_CYCLES, shares, strict=True):
        turned = 2 * math.pi * share
        yield turned.sin().alias(f"{column.name} sin {cycle}")
        yield turned.cos().alias(f"{column.name} cos {cycle}")


def _refuse_names_of_parts(schema: Schema) -> None:
    names = [column.name for column in schema.columns]
    for date in schema.of_kind("date"):
        for part in (f"{date} {turned} {cycle}" for cycle in _CYCLES for turned in ("sin", "cos")):
            if part in names:
                raise DataError(
                    f"column {part!r} is called as a part of the date {date!r}; rename it, or list it in data.drop"
                )


def _fit_blocks(schema: Schema, frame: pl.DataFrame, rows: Numbers, scaling: Scaling) -> Iterator[Block]:
    recurring = {column.name for column in schema.columns if column.recurring}
    numeric = [c.name for c in schema.columns if c.kind in ("numeric", "date") and c.name not in recurring]
    for names in _batches(numeric):
        values = _matrix(_fitted(schema, frame, rows, names), names)
        _refuse_wide(values, names, rows)
        scaler = _scaler(scaling, len(values), len(numeric))
        scaled = Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", scaler)])
        yield _with_missing(names, values, scaled)
    dates = schema.of_kind("date")
    if dates:
        parts = _fitted(schema, frame, rows, dates)
        turning = tuple(part.name for part in parts if part.name not in dates and part.drop_nulls().n_unique() > 1)
        if turning:
            cycles = SimpleImputer(strategy="constant", fill_value=0.0).fit(_matrix(parts, turning))
            yield Block(columns=turning, transformer=cycles, features=turning)
    for names in _batches(schema.of_kind("boolean")):
        values = _matrix(_fitted(schema, frame, rows, names), names)
        yield _with_missing(names, values, SimpleImputer(strategy="most_frequent"))
    for names in _batches(schema.of_kind("category")):
        encoder = OneHotEncoder(
            handle_unknown="infrequent_if_exist",
            min_frequency=MIN_FREQUENCY,
            max_categories=MAX_CATEGORIES,
            sparse_output=False,
            dtype=np.float32,
        )
        encoder.fit(_matrix(_fitted(schema, frame, rows, names), names))
        yield Block(columns=names, transformer=encoder, features=tuple(encoder.get_feature_names_out(names)))


def _fitted(schema: Schema, frame: pl.DataFrame, rows: Numbers, names: Sequence[str]) -> pl.DataFrame:
    """The plain columns that come from some columns, of the rows that are fitted on."""
    part = Schema(columns=tuple(column for column in schema.columns if column.name in names))
    return plain_columns(part, frame.select(names)[rows])


def _with_missing(names: tuple[str, ...], values: npt.NDArray[np.float64], filled: BaseEstimator) -> Block:
    """The values filled in, and one feature for each column that misses some."""
    missing: tuple[str, ...] = ()
    transformer = filled
    if np.isnan(values).any():
        marks = MissingIndicator(error_on_new=False)
        transformer = FeatureUnion([("value", filled), ("missing", marks)]).fit(values)
        missing = tuple(f"{names[i]} missing" for i in marks.features_)
    else:
        filled.fit(values)
    bins = encoder_of(filled)
    encoded = bins.names_of(names) if bins is not None else ()
    return Block(columns=names, transformer=transformer, features=(*names, *encoded, *missing))


def encoder_of(filled: BaseEstimator) -> PiecewiseLinearEncoder | None:
    """The encoder of a fitted pipeline of numbers, where it has one."""
    last = filled.steps[-1][1] if isinstance(filled, Pipeline) else None
    return dict(last.transformer_list)["bins"] if isinstance(last, FeatureUnion) else None


def _batches(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for first in range(0, len(names), BLOCK_COLUMNS):
        yield tuple(names[first : first + BLOCK_COLUMNS])


def _scaler(scaling: Scaling, n: int, columns: int) -> BaseEstimator:
    """For ``n`` rows, and so many columns of numbers in all."""
    if scaling == "robust":
        return SmoothClippedScaler()
    if scaling == "piecewise":
        return FeatureUnion([("scaled", StandardScaler()), ("bins", PiecewiseLinearEncoder(bins_of(columns)))])
    if scaling == "quantile":
        return QuantileTransformer(n_quantiles=min(1000, n), output_distribution="normal", random_state=0)
    return StandardScaler()


def bins_of(columns: int) -> int:
    """How many bins each of so many columns of numbers is encoded in."""
    return min(BINS, max(FEWEST_BINS, BIN_FEATURES // columns))


def _matrix(plain: pl.DataFrame, names: Sequence[str]) -> npt.NDArray[Any]:
    """(n, len(names)): float64 with NaN for missing, or object for text."""
    part = plain.select(names)
    if part.dtypes[0] == pl.String:
        return part.to_numpy()
    matrix: npt.NDArray[np.float64] = part.select(pl.all().cast(pl.Float64)).to_numpy()
    return matrix


def _target_moments(values: npt.NDArray[np.float64], name: str, rows: Numbers) -> tuple[float, float]:
    """Mean and standard deviation (the population's) of the train rows' target. Raises DataError if it is constant."""
    called = f"target {name!r}"
    _refuse_wide(values[:, None], [called], rows, called=str)
    scaler = StandardScaler().fit(values[:, None])
    mean, sd = float(scaler.mean_[0]), float(np.sqrt(scaler.var_[0]))
    if float(scaler.scale_[0]) != sd or sd == 0:  # scikit-learn found it constant up to rounding, and put 1
        raise DataError(
            f"{called} is constant on the train rows ({mean:g} in all {len(values)}), "
            f"so there is nothing to learn; choose another target, or give more rows"
        )
    return mean, sd


def _refuse_wide(
    values: npt.NDArray[np.float64],
    names: Sequence[str],
    rows: Numbers,
    *,
    called: Any = lambda name: f"column {name!r}",
) -> None:
    """Raises FarValueError when numbers are so large that their variance is not one. rows: what theirs are called."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.nanmax(np.abs(values), axis=0) ** 2 * len(values)
    wrong = np.flatnonzero(~np.isfinite(squares))
    if wrong.size:
        refuse_far(called(names[wrong[0]]), values[:, wrong[0]], rows)


def refuse_far(called: str, values: npt.NDArray[Any], rows: Numbers) -> None:
    """Raises FarValueError: the largest of these numbers is too large. rows: the row of each."""
    largest = int(np.nanargmax(np.abs(values)))
    raise FarValueError(called, float(values[largest]), int(rows[largest]))
