"""Columns: what each feature column of a table is, told by the train rows alone.

A schema is inferred once, on train rows, and then reads any other frame of the same table: validation and test rows,
and the rows of a later prediction. A value that does not fit the column's kind reads as missing.

Shapes: ``n`` rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tuner.errors import DataError
from tuner.words import count

Kind = Literal["numeric", "boolean", "category", "date"]

NUMBERS_SHARE = 0.95  # of a text column's values that must be numbers for the column to be numeric
ROUNDING = 1e-13  # numbers that differ by less, relative to the largest, are one
NAMED_COLUMNS = 6  # in a note; the rest is counted
_DECLARED = (pl.Categorical, pl.Enum)  # the types of columns that their source calls categorical

_AN_IDENTIFIER = "looks like an identifier: if it only names the row, list it in data.drop"
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"
# Texts that mean something else than text, but are not written as it is read.
_ALMOST = (
    (r"^\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([ T]\d{1,2}:.*)?$", "dates", "2024-12-31"),
    (r"^[+-]?\d+(\.\d{3})*,\d+$", "numbers", "1234.5"),
)
_ID_NAME = re.compile(r"(^|[^a-z])(id|ids|uuid|guid|index|row|nr|no|number|key|pid|unnamed: 0)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A feature column. recurring: of a date, only the parts that come again (day of year, of week, time of day).

    values: of a category, what its values were, where that is not text: 7, 7.0 and '007' are one number, so one
        category, whatever file a later row comes from.
    """

    name: str
    kind: Kind
    recurring: bool = False
    values: Kind | None = None


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The feature columns that are used, in the order of the table, and notes on those that are not.

    notes: one line each: what was found in which columns, and what was done about it. identifiers: the columns that
        look as if they only named the row.
    """

    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()

    @classmethod
    def infer(
        cls,
        frame: pl.DataFrame,
        rows: npt.NDArray[np.int64] | None = None,
        *,
        categorical: Collection[str] = (),
        time: str | None = None,
    ) -> Schema:
        """From a table's feature columns, as read, and those of its rows that are numbered: the train rows.

        A column of numbers or booleans, or of texts that all say numbers, booleans or ISO dates, is what it says; a few
        other texts among numbers (up to 5 %) read as missing. Every other text is a category, and so is whatever
        ``categorical`` names and every Categorical or Enum. Columns that are constant, empty, or different in every row
        as text, are dropped.
        ``time`` is the column that ordered the rows: what only grows from train to test is not learnt from.

        Raises DataError when a column holds lists or the like, or no column is left.
        """
        columns: list[Column] = []
        found: dict[str, list[str]] = {}

        def note(what: str, name: str) -> None:
            found.setdefault(what, []).append(name)

        for whole in frame:
            series = whole if rows is None else whole[rows]
            name = series.name
            kind = "category" if name in categorical else _kind(series, note)
            if kind is None:
                continue
            as_read = _typed(series) if kind == "category" else None
            values = read_as(series, kind, as_read)
            if (dropped := _useless(values, kind)) is not None:
                note(dropped, name)
                continue
            if kind == "numeric" and _is_constant(values.drop_nulls(), kind):
                kind, as_read = "category", "numeric"  # one number or none: only whether it is there can be learnt from
            if name == time and kind != "date":
                note("dropped: it orders the rows in time, and later values are never seen in training", name)
                continue
            if kind == "numeric" and _looks_like_an_id(series):
                note(_AN_IDENTIFIER, name)
            columns.append(Column(name=name, kind=kind, recurring=name == time, values=as_read))
        if not columns:
            trained = count(frame.height if rows is None else len(rows), "train row")
            raise DataError(
                f"no feature column is left on {trained}: {'; '.join(_lines(found)) or 'there is none'}; a table needs "
                "at least one column that differs from row to row"
            )
        return cls(columns=tuple(columns), notes=tuple(_lines(found)), identifiers=tuple(found.get(_AN_IDENTIFIER, ())))

    def of_kind(self, kind: Kind) -> list[str]:
        """Names of the columns of one kind, in order."""
        return [column.name for column in self.columns if column.kind == kind]

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The schema's columns of any frame that has them, in order, as Float64, Boolean, String or Datetime.

        What cannot be read as its kind is null. Raises DataError when a column is missing.
        """
        self.check_names(frame.columns)
        return frame.select(read_as(frame[column.name], column.kind, column.values) for column in self.columns)

    def unreadable(self, frame: pl.DataFrame) -> dict[str, tuple[int, str]]:
        """Of each column that has any: how many of its values are there but read as missing, and the first of them."""
        found = {}
        for column in self.columns:
            series, kind = _uncoded(frame[column.name]), column.values or column.kind
            text, decimal = series.dtype == pl.String, series.dtype.is_float()
            if kind == "category" or not (text or decimal or (kind == "boolean" and series.dtype.is_integer())):
                continue
            given = _text(series) if text else series.fill_nan(None) if decimal else series
            read = read_as(series, column.kind, column.values)
            if read.null_count() > given.null_count():
                bad = given.filter(given.is_not_null() & read.is_null())
                found[column.name] = (len(bad), str(bad[0]))
        return found

    def check_names(self, names: Collection[str]) -> None:
        """Raises DataError naming the columns that are not there."""
        if missing := [column.name for column in self.columns if column.name not in names]:
            raise DataError(f"columns are missing: {listed(missing)}; give every column that the model was trained on")

    def as_json(self) -> list[dict[str, Any]]:
        """The columns as plain values; :meth:`from_json` is the inverse. Notes are left out."""
        return [asdict(column) for column in self.columns]

    @classmethod
    def from_json(cls, columns: Iterable[Mapping[str, Any]]) -> Schema:
        return cls(columns=tuple(Column(**column) for column in columns))


def read_as(series: pl.Series, kind: Kind, values: Kind | None = None) -> pl.Series:
    """A column as read, in the type of its kind; null where it does not fit.

    values: as :attr:`Column.values`.
    numeric: Float64, finite. boolean: Boolean, of numbers 0 and 1 alone. category: String without blanks around it.
    date: Datetime in UTC.
    """
    series = _uncoded(series)
    if kind == "numeric":
        return _numbers(series)
    if kind == "boolean":
        if series.dtype == pl.String:
            text = _text(series).str.to_lowercase()
            meant = {"true": True, "false": False, "1": True, "0": False}
            return text.replace_strict(meant, default=None, return_dtype=pl.Boolean)
        if series.dtype == pl.Boolean:
            return series
        numbers = series.cast(pl.Float64, strict=False)
        return numbers.set((numbers != 0) & (numbers != 1), None).cast(pl.Boolean)
    if kind == "date":
        return _moments(series)
    if values == "numeric":
        return _written_numbers(series)
    return _text(series if values is None else read_as(series, values))


def series_of(values: Any, name: str) -> pl.Series:
    """A column of a pandas frame (without pyarrow), an (n,) array or a list; Categorical where pandas says category.

    Raises DataError where the values are neither numbers, booleans, dates nor text.
    """
    array = values.to_numpy() if hasattr(values, "to_numpy") else values
    if isinstance(array, np.ndarray) and array.dtype.kind == "M":
        array = array.astype("datetime64[us]")  # polars does not take pandas' seconds
    if isinstance(array, np.ndarray) and array.dtype == object:
        array = [None if is_missing(value) else value for value in array.tolist()]
    series = pl.Series(name, array, strict=False)
    if series.dtype == pl.Object:
        held = getattr(values, "dtype", "objects")
        raise DataError(f"column {name!r} holds {held}; a feature is numbers, booleans, dates or text; convert it")
    declared = getattr(getattr(values, "dtype", None), "name", None) == "category"
    return as_category(series) if declared else series


def as_category(series: pl.Series) -> pl.Series:
    """As Categorical, whatever its values are: what a source declares to be categories is no number."""
    return read_as(series, "category", _typed(series)).cast(pl.Categorical)


def is_missing(value: Any) -> bool:
    """Whether a value among objects is None, NaN, NaT, or pandas' NA, whose comparisons are neither true nor false."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def listed(names: Sequence[str], most: int = NAMED_COLUMNS) -> str:
    """``a, b, c and 4 more``."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _kind(series: pl.Series, note: Any) -> Kind | None:
    """What the train rows say the column is; None for one that is empty there."""
    kind = series.dtype
    if series.null_count() == len(series):
        note("dropped: no value on the train rows", series.name)
        return None
    if kind.is_numeric() or kind == pl.Duration:
        return "numeric"
    if kind == pl.Boolean:
        return "boolean"
    if kind in (pl.Date, pl.Datetime):
        return "date"
    if kind in _DECLARED:
        return "category"
    if kind != pl.String:
        raise DataError(
            f"column {series.name!r} holds {kind}; a feature is numbers, booleans, dates or text; convert it, or list "
            "it in data.drop"
        )
    return _kind_of_text(series, note)


def _kind_of_text(series: pl.Series, note: Any) -> Kind | None:
    text = _text(series).drop_nulls()
    if text.is_empty():
        note("dropped: no value on the train rows", series.name)
        return None
    if text.str.to_lowercase().is_in(["true", "false"]).all():
        return "boolean"
    other = ~text.cast(pl.Float64, strict=False).is_finite().fill_null(False)
    share = 1 - other.sum() / len(text)
    if share >= NUMBERS_SHARE:
        if share < 1:
            note(f"numbers, with texts such as {text.filter(other)[0]!r} among them that read as missing", series.name)
        return "numeric"
    if text.str.contains(_ISO_DATE).all() and _moments(text).null_count() == 0:
        return "date"
    for pattern, what, written in _ALMOST:
        if text.str.contains(pattern).all():
            note(f"read as text: {what} are written as {written}, this column has {text[0]!r}", series.name)
            break
    if share > 0.5:
        note(f"category: most values are numbers, but {text.filter(other)[0]!r} and others are not", series.name)
    return "category"


def _useless(values: pl.Series, kind: Kind) -> str | None:
    """Why nothing can be learnt from a column, or None."""
    present = values.drop_nulls()
    if present.is_empty():
        return "dropped: no value on the train rows"
    if len(present) == len(values) and _is_constant(present, kind):
        return "dropped: constant on the train rows"
    if kind == "category" and len(present) >= 20 and present.n_unique() > 0.9 * len(present):
        return "dropped: nearly every row has a text of its own, so no category can be learnt"
    return None


def _is_constant(present: pl.Series, kind: Kind) -> bool:
    """Whether all values are one, numbers up to rounding."""
    low: Any = present.min()
    high: Any = present.max()
    if kind == "numeric":
        return bool(high - low <= ROUNDING * max(abs(low), abs(high)))
    return bool(low == high)


def _looks_like_an_id(series: pl.Series) -> bool:
    """Whole numbers, another in every row, that count rows or whose column is named like an identifier's.

    Also where a row of another part is no number, so that all are text.
    """
    if series.dtype == pl.String:
        series = _text(series).cast(pl.Int64, strict=False)
    if not series.dtype.is_integer() or len(series) < 20:
        return False
    if series.null_count() or not series.is_unique().all():
        return False
    span = int(series.max()) - int(series.min())  # type: ignore[arg-type]
    return span < 3 * len(series) or _ID_NAME.search(series.name) is not None


def _uncoded(series: pl.Series) -> pl.Series:
    """The texts of declared categories: polars would read their codes as numbers."""
    return series.cast(pl.String) if series.dtype in _DECLARED else series


def _text(series: pl.Series) -> pl.Series:
    """Text without the blanks around it; nothing left is missing, and so is NaN."""
    series = series.fill_nan(None) if series.dtype.is_float() else series
    text = series.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _numbers(series: pl.Series) -> pl.Series:
    if series.dtype == pl.Duration:
        series = series.dt.total_microseconds() / 1e6
    numbers = (_text(series) if series.dtype == pl.String else series).cast(pl.Float64, strict=False)
    if not numbers.is_finite().all():
        numbers = numbers.set(numbers.is_finite().not_(), None)
    return numbers


def _typed(series: pl.Series) -> Kind | None:
    """What the values of a category are by the type of their column, or by all of its texts; None for text.

    Texts say numbers only where each is written in the number's one way: 007 or 7.0 among them may be another than 7.
    """
    if series.dtype.is_numeric():
        return "numeric"
    if series.dtype == pl.Boolean:
        return "boolean"
    if series.dtype in (pl.Date, pl.Datetime):
        return "date"
    text = _text(series.unique()).drop_nulls()
    if text.str.to_lowercase().is_in(["true", "false"]).all():
        return "boolean"
    return "numeric" if _written_numbers(text).equals(text) else None


def _written_numbers(series: pl.Series) -> pl.Series:
    """Numbers as text, each in one way only: whole ones without a point, however large."""
    numbers = _numbers(series)
    whole = series if series.dtype.is_integer() else pl.Series(series.name, [None] * len(series), dtype=pl.Int64)
    if series.dtype == pl.String:
        whole = _text(series).cast(pl.Int64, strict=False)
    rounded = numbers.set(numbers != numbers.round(), None).cast(pl.Int64, strict=False)
    texts = [column.cast(pl.String).alias(name) for column, name in ((whole, "0"), (rounded, "1"), (numbers, "2"))]
    return pl.DataFrame(texts).select(pl.coalesce("0", "1", "2").alias(series.name)).to_series()


def _moments(series: pl.Series) -> pl.Series:
    """Dates and times, in UTC where a zone is known, as Datetime in microseconds without a zone."""
    if series.dtype == pl.Datetime and series.dtype.time_zone is not None:  # type: ignore[attr-defined]
        series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if series.dtype != pl.String:
        return series.cast(pl.Datetime("us"), strict=False)
    text = _text(series).str.replace(" ", "T", literal=True).str.replace("Z", "+00:00", literal=True)
    whole = text.str.replace(r"^(\d{4}-\d{2}-\d{2})$", "${1}T00:00").str.replace(r"(T\d{2}:\d{2})([+-]|$)", "${1}:00$2")
    zoned = whole.str.replace(r"([+-]\d{2}):?(\d{2})$", "$1$2").str.replace(r"(T[\d:.]+)$", "${1}+0000")
    parsed = zoned.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", time_zone="UTC", strict=False)
    return parsed.dt.replace_time_zone(None)


def _lines(found: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{'column' if len(names) == 1 else 'columns'} {listed(names)}: {what}" for what, names in found.items()]
