"""A source: where a table of rows comes from, read once as it is or refused with the reason.

Shapes: ``n`` rows, ``C`` classes. Rows are counted from 1 in messages, a CSV's header not included.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn import datasets

from tuner.data._digest import column_arrays, sha256_of
from tuner.data.columns import as_category
from tuner.data.synthetic import rows_of, truth_of
from tuner.errors import DataError
from tuner.spec import DataSection, Distribution, SyntheticSection, metrics_for
from tuner.trial import Task

MIN_ROWS = 3  # one each to train, to validate and to test on

NULL_VALUES = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "?")  # texts of a CSV that mean a missing value

_REGRESSION_METRICS = metrics_for("regression")
_CLASSIFICATION_METRICS = metrics_for("classification")
_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".npz", ".npy")
_KNOWN = f"a source is sklearn:NAME, openml:ID, synthetic:NAME or a file ending in {', '.join(_SUFFIXES)}"
_ROWS_TO_GUESS = 10_000  # of a CSV: if a later row does not fit the types of these, all rows decide
_INFINITY = r"(?i)^\s*[+-]?inf(inity)?\s*$"
_LARGEST_EXACT = 2.0**53  # above it a float cannot tell neighbouring whole numbers apart

# scikit-learn's diabetes comes standardised over all its rows, test rows included: scaled=False undoes that.
_SKLEARN: Mapping[str, tuple[Callable[[], Any], Task]] = {
    "digits": (datasets.load_digits, "classification"),
    "breast_cancer": (datasets.load_breast_cancer, "classification"),
    "wine": (datasets.load_wine, "classification"),
    "diabetes": (lambda: datasets.load_diabetes(scaled=False), "regression"),
    "iris": (datasets.load_iris, "classification"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """All rows of a source, before any split: at least one feature column and :data:`MIN_ROWS` rows.

    frame: the n rows of the feature columns, in the types they were read in; values may be missing, none is infinite.
    target: (n,) int64 codes 0..C-1 for classification, (n,) float64 for regression.
    classes: the C labels as text in code order; empty for regression.
    by: the column that the split is by (``data.split``'s group, time or column), or None.
    """

    frame: pl.DataFrame
    target: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    classes: tuple[str, ...]
    target_name: str
    by: pl.Series | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal: equal tables have equal digests, whatever file they came from."""
        apart = self.by is not None and self.by.name not in self.frame.columns
        columns = [*self.frame, self.by] if apart and self.by is not None else [*self.frame]
        return sha256_of(
            arrays=chain(chain.from_iterable(map(column_arrays, columns)), [self.target]),
            texts=(*(column.name for column in columns), self.classes, self.target_name),
        )


def load_table(section: DataSection, task: Task, root: Path) -> Table:
    """Read ``section.source``; a relative path starts at ``root``.

    ``sklearn:NAME`` is a table that comes with scikit-learn, ``openml:ID`` one of openml.org, which scikit-learn
    downloads once, ``synthetic:NAME`` one drawn from a distribution of :mod:`tuner.data.synthetic`. A CSV (gzipped or
    not) or Parquet file needs ``section.target``, the name of its target column; all columns but the target,
    ``section.drop`` and those that only split are features. In a CSV, :data:`NULL_VALUES` are missing values, and
    what ``section.categorical`` names is text. An NPZ file holds ``X`` (or ``x``, ``features``) of shape (n, D) and
    ``y`` (or ``target``, or the name in ``section.target``) of shape (n,); an NPY file what :func:`read_npy` reads.
    Classes that are whole numbers are coded in their numerical order, others in the order of their text.

    Raises DataError when the source is unknown or unreadable, or its rows break a rule above.
    """
    source = section.source
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", source)
    if scheme is not None:
        if scheme[1] == "openml":
            return _from_openml(section, task)
        if scheme[1] == "synthetic":
            return _from_synthetic(section, task)
        if scheme[1] != "sklearn":
            near = _near(scheme[1], ["sklearn", "openml", "synthetic"])
            raise DataError(f"data.source: unknown scheme {scheme[1]!r}{near}; {_KNOWN}")
        return _from_sklearn(section, task)
    suffix = next((s for s in reversed(_SUFFIXES) if source.lower().endswith(s)), None)
    if suffix is None:
        near = f" (did you mean 'sklearn:{source}'?)" if source in _SKLEARN else ""
        raise DataError(f"data.source: cannot tell what {source!r} is{near}; {_KNOWN}")
    path = root / Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"data.source: {path} is a folder, not a file")
    if not path.exists():
        raise DataError(f"data.source: no such file: {path} (a relative path starts at the study file's folder)")
    if suffix == ".npz":
        return _from_npz(path, section, task)
    if suffix == ".npy":
        return _from_frame(read_npy(path, source), section, task)
    return _from_frame(_read_frame(path, source, suffix, section.categorical), section, task)


def _from_sklearn(section: DataSection, task: Task) -> Table:
    source, target = section.source, section.target
    name = source.partition(":")[2]
    if name not in _SKLEARN:
        known = ", ".join(_SKLEARN)
        raise DataError(f"data.source: unknown table {source!r}{_near(name, _SKLEARN)}; known after sklearn: {known}")
    if target is not None:
        raise DataError(
            f"data.target: is for files; {source} has its own target, leave data.target out (it is {target!r})"
        )
    load, own_task = _SKLEARN[name]
    if task == "classification" and own_task == "regression":
        raise DataError(
            f"{source}: the target is a quantity, not a class; use a regression metric: {_REGRESSION_METRICS}"
        )
    bunch = load()
    features = pl.DataFrame(bunch.data.astype(np.float64), schema=[str(name) for name in bunch.feature_names])
    codes = bunch.target.astype(np.float64 if task == "regression" else np.int64)
    classes = () if task == "regression" else tuple(str(label) for label in bunch.target_names)
    return _table(features, codes, classes, "target", section)


def _from_synthetic(section: DataSection, task: Task) -> Table:
    """Features x0, x1, … and the target y."""
    source, keys = section.source, section.synthetic or SyntheticSection()
    name = source.partition(":")[2]
    if name not in get_args(Distribution):
        known = ", ".join(get_args(Distribution))
        near = _near(name, get_args(Distribution))
        raise DataError(f"data.source: unknown table {source!r}{near}; known after synthetic: {known}")
    if section.target is not None:
        raise DataError(f"data.target: is for files; the target of {source} is y: leave data.target out")
    truth = truth_of(name, keys)
    if task == "classification" and not truth.classes:
        raise DataError(
            f"{source}: the target is a quantity, not a class; use a regression metric: {_REGRESSION_METRICS}"
        )
    x, y = rows_of(truth, keys)
    features = pl.DataFrame({f"x{i}": column for i, column in enumerate(np.ascontiguousarray(x.T))})
    if task == "regression":
        return _table(features, y, (), "y", section)
    if len(np.unique(y)) < 2:
        raise DataError(f"{source}: all {len(y)} rows drawn are of class {y[0]:g}; draw more rows, or another prior")
    return _table(features, y.astype(np.int64), ("0", "1"), "y", section)


def _from_openml(section: DataSection, task: Task) -> Table:
    """scikit-learn downloads, keeps and checks the table; pandas holds it on the way."""
    source = section.source
    number = source.partition(":")[2]
    if not re.fullmatch(r"[0-9]+", number):
        raise DataError(f"data.source: {source!r} needs the data set's number on openml.org, as in openml:31")
    try:
        # The slower of scikit-learn's parsers: the other one stumbles over nominal true and false.
        bunch = datasets.fetch_openml(data_id=int(number), as_frame=True, parser="liac-arff")
    except ImportError:
        raise DataError(f"{source}: needs pandas; install it with: pip install 'tuner[openml]'") from None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{source}: cannot be had from openml.org {_first_line(error)}") from None
    frame = pl.DataFrame([_from_pandas(bunch.frame[name], str(name)) for name in bunch.frame.columns])
    default = bunch.target_names[0] if section.target is None and bunch.target_names else None
    return _from_frame(frame, section, task, target=default)


def _from_pandas(column: Any, name: str) -> pl.Series:
    """One column of a pandas frame, without pyarrow; Categorical where it is nominal on openml.org."""
    if column.dtype.kind in "biuf":
        return pl.Series(name, column.to_numpy())
    missing = column.isna().to_numpy()
    texts = [None if gone else str(value) for value, gone in zip(column, missing, strict=True)]
    series = pl.Series(name, texts, dtype=pl.String)
    return series.cast(pl.Categorical) if column.dtype.name == "category" else series


def _read_parquet(path: Path) -> pl.DataFrame:
    """A Parquet file; what pandas called a category in it is Categorical. Raises polars' errors."""
    frame = pl.read_parquet(path, glob=False)
    try:
        of_pandas = json.loads(pl.read_parquet_metadata(path).get("pandas", "{}")).get("columns", ())
        declared = {column.get("name") for column in of_pandas if column.get("pandas_type") == "categorical"}
    except (ValueError, AttributeError):  # not what pandas writes: the columns are what Parquet says
        declared = set()
    # Those of text come as Categorical already, those of numbers as numbers.
    plain = [name for name in frame.columns if name in declared and frame[name].dtype != pl.Categorical]
    return frame.with_columns(as_category(frame[name]) for name in plain)


def read_csv(path: Path, text: Collection[str] = ()) -> pl.DataFrame:
    """A CSV as polars reads it, the columns that ``text`` names as text. Raises polars' errors."""
    settings: dict[str, Any] = {"null_values": list(NULL_VALUES), "glob": False}
    if text:
        names = pl.scan_csv(path, infer_schema=False, glob=False).collect_schema().names()
        chosen = [name for name, called in zip(names, unquoted(names), strict=True) if called in text]
        settings["schema_overrides"] = dict.fromkeys(chosen, pl.String)
    try:
        frame = pl.read_csv(path, infer_schema_length=_ROWS_TO_GUESS, **settings)
    except pl.exceptions.ComputeError:
        # A first text in row 50,000 makes a column text as well as one in row 1.
        frame = pl.read_csv(path, infer_schema_length=None, **settings)
    frame.columns = unquoted(frame.columns)
    return frame


def unquoted(names: Sequence[str]) -> list[str]:
    """A CSV's column names with each of their quotes once: polars takes them as they stand in the file, doubled.

    >>> unquoted(['width (6 ""inch"")', 'depth'])
    ['width (6 "inch")', 'depth']
    """
    return [name.replace('""', '"') for name in names]


def repeated_names(path: Path, names: Sequence[str]) -> list[str]:
    """What several columns of a CSV are called, in the file; names: as polars reads them, which numbers the copies."""
    if not any(re.search(r"_duplicated_\d+$", name) for name in names):
        return []
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
        header = next((record for record in csv.reader(file) if record), [])
    return [name for name, times in Counter(header).items() if times > 1]


def trouble_of_csv(path: Path, error: BaseException | None = None) -> str | None:
    """What is wrong with a CSV that polars cannot read (``error``), or of whose names something is strange (None): fact
    and fix, with the line where there is one; None if it is nothing known here.
    """
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin1"
    not_utf8 = f"is not UTF-8 text; convert it, as with: iconv -f {encoding} -t utf-8"
    if error is not None and "utf-8" in str(error).lower():
        return not_utf8
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            records = csv.reader(file, strict=True)
            names = next(records, [])
            if len(names) == 1 and (divider := re.search(r"[;\t|]", names[0])):
                return f"has one column, {names[0]!r}; separate the fields by commas, not by {divider[0]!r}"
            if error is None:
                return None
            began = records.line_num + 1
            for record in records:
                if len(record) > len(names):
                    return (
                        f"line {began} has {len(record)} fields, the line of column names has {len(names)}; put a "
                        "field that holds a comma into double quotes"
                    )
                began = records.line_num + 1
    except UnicodeDecodeError:
        return not_utf8
    except csv.Error as wrong:
        if error is not None:
            return f"cannot be read as CSV from line {began} on ({wrong}); is a double quote missing or one too many?"
    except (OSError, EOFError, zlib.error):
        pass
    return None


def _read_frame(path: Path, source: str, suffix: str, text: Collection[str]) -> pl.DataFrame:
    """text: the columns of a CSV that are read as text."""
    try:
        frame = _read_parquet(path) if suffix == ".parquet" else read_csv(path, text)
    except pl.exceptions.NoDataError:
        raise DataError(f"{source}: the file is empty; it needs a line of column names, then rows") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if suffix != ".parquet" and (trouble := trouble_of_csv(path, error)):
            raise DataError(f"{source}: {trouble}") from None
        kind = "Parquet" if suffix == ".parquet" else "CSV"
        raise DataError(f"{source}: cannot be read as {kind}, is it damaged or cut off? {_first_line(error)}") from None
    # polars reads names that are no UTF-8 with signs in the place of what it cannot read.
    strange = frame.width == 1 or any("\ufffd" in name for name in frame.columns)
    if suffix != ".parquet" and strange and (trouble := trouble_of_csv(path)):
        raise DataError(f"{source}: {trouble}")
    # A second copy of the target would become a feature.
    if suffix != ".parquet" and (repeated := repeated_names(path, frame.columns)):
        raise DataError(f"{source}: two columns are named {repeated[0]!r}; give every column its own name")
    return frame


def _from_frame(frame: pl.DataFrame, section: DataSection, task: Task, *, target: str | None = None) -> Table:
    """``target``: of a source that names its own, where the section names none."""
    names, source = frame.columns, section.source
    target = section.target or target
    if target is None:
        raise DataError(f"data.target: missing; say which column of {source} is the target: {_listed(names)}")
    if target not in names:
        near = _near(target, names)
        raise DataError(f"data.target: no column {target!r} in {source}{near}; its columns: {_listed(names)}")
    _check_rows(frame.height, source)
    codes, classes = _encode(frame[target], target, source, task)
    return _table(frame.drop(target), codes, classes, target, section)


def _table(
    features: pl.DataFrame,
    target: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    classes: tuple[str, ...],
    target_name: str,
    section: DataSection,
) -> Table:
    """The table without what is dropped, and with the column that splits apart unless it is a time."""
    names, source = features.columns, section.source
    split = section.split
    divider = None if split is None else split.group or split.time or split.column
    for key, wanted in (
        ("data.drop", section.drop),
        ("data.categorical", section.categorical),
        ("data.split", () if divider is None else (divider,)),
    ):
        for name in wanted:
            if name == target_name:
                raise DataError(f"{key}: {name!r} is the target; name another column")
            if name not in names:
                near = _near(name, names)
                raise DataError(f"{key}: no column {name!r} in {source}{near}; its columns: {_listed(names)}")
    by = None if divider is None else features[divider]
    apart = [*section.drop, *([divider] if split is not None and divider is not None and not split.time else [])]
    features = features.drop(apart)
    if not features.width:
        raise DataError(
            f"{source}: has no column beside the target {target_name!r}; a table needs at least one feature"
        )
    with_nan = [column.name for column in features.select(pl.selectors.float()) if column.is_nan().any()]
    features = features.with_columns(pl.col(with_nan).fill_nan(None))
    for column in features:
        if column.dtype.is_nested() or column.dtype in (pl.Object, pl.Binary):
            raise DataError(
                f"{source}: column {column.name!r} holds {column.dtype}; a feature is numbers, booleans, dates or "
                f"text; take it apart, or list it in data.drop"
            )
    _check_finite(features, source)
    return Table(frame=features, target=target, classes=classes, target_name=target_name, by=by)


def read_npy(path: Path, source: str) -> pl.DataFrame:
    """The array of an NPY file, its columns named x0, x1, …, or as its type's fields. source: what a message calls it.

    Raises DataError.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{source}: cannot be read as NPY, is it damaged or cut off? {_first_line(error)}") from None
    if array.dtype.names is not None and array.ndim == 1:
        return pl.DataFrame([_as_series(array[name]).alias(name) for name in array.dtype.names])
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise DataError(
            f"{source}: needs numbers of the shape (rows, columns), or rows of named fields; it has the shape "
            f"{array.shape} and the type {array.dtype}"
        )
    return pl.DataFrame([_as_series(column).alias(f"x{i}") for i, column in enumerate(array.T)])


def _from_npz(path: Path, section: DataSection, task: Task) -> Table:
    source, target = section.source, section.target
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{source}: cannot be read as NPZ, is it damaged or cut off? numpy.savez writes one")
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            features_name = _array_name(names, ("X", "x", "features"), "features", source)
            if target is None:
                target_name = _array_name(names, ("y", "target"), "target", source)
            elif target in names:
                target_name = target
            else:
                near = _near(target, names)
                raise DataError(f"data.target: no array {target!r} in {source}{near}; its arrays: {_listed(names)}")
            features, values = archive[features_name], archive[target_name]
    except DataError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{source}: holds Python objects, which are never unpickled; save numbers, booleans or text arrays"
            ) from None
        raise DataError(f"{source}: cannot be read as NPZ, is it damaged or cut off? {_first_line(error)}") from None
    if features.ndim != 2:
        raise DataError(
            f"{source}: {features_name} needs the shape (rows, features), it is {features.shape}; reshape it"
        )
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != features.shape[:1]:
        raise DataError(
            f"{source}: {target_name} needs one value for each of the {len(features)} rows of {features_name}, "
            f"its shape is {values.shape}"
        )
    _check_rows(len(features), source)
    if features.shape[1] == 0:
        raise DataError(f"{source}: {features_name} has no columns; a table needs at least one feature")
    if features.dtype.kind not in "biuf":
        raise DataError(
            f"{source}: {features_name} is not numeric ({features.flat[0].item()!r} in row 1, its type is "
            f"{features.dtype}); write it as numbers"
        )
    if values.dtype.kind not in "biufUS":
        raise DataError(f"{source}: {target_name} holds {values.dtype}; a target is numbers, booleans or text")
    codes, classes = _encode(_as_series(values), target_name, source, task)
    frame = pl.DataFrame([_as_series(column).alias(f"x{i}") for i, column in enumerate(features.T)])
    return _table(frame, codes, classes, target_name, section)


def _array_name(names: Sequence[str], candidates: Sequence[str], what: str, source: str) -> str:
    """The one name of ``candidates`` that the archive holds."""
    found = [name for name in candidates if name in names]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{source}: {' and '.join(found)} could both be the {what}; keep one of these arrays")
    wanted = " or ".join(candidates)
    fix = "; or name it in data.target" if what == "target" else ""
    raise DataError(f"{source}: needs an array {wanted} for the {what}{fix}; its arrays: {_listed(names)}")


def _as_series(values: npt.NDArray[Any]) -> pl.Series:
    """An (n,) array of numbers, booleans or text, as polars types that every rule below knows."""
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
    elif values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    return pl.Series(values.tolist() if values.dtype.kind == "U" else values.astype(values.dtype.newbyteorder("=")))


def _check_rows(n: int, source: str) -> None:
    if n == 0:
        raise DataError(f"{source}: has no rows; a table needs at least {MIN_ROWS}, to train, validate and test on")
    if n < MIN_ROWS:
        counted = "1 row" if n == 1 else f"{n} rows"
        raise DataError(f"{source}: has {counted}; a table needs at least {MIN_ROWS}, to train, validate and test on")


def _check_finite(features: pl.DataFrame, source: str) -> None:
    for column in features.select(pl.selectors.float() | pl.selectors.string()):
        if column.dtype == pl.String:  # polars takes inf for a number, and Infinity for a text
            infinite = column.str.contains(_INFINITY).fill_null(False)
            if not infinite.any() or _numbers(column) is None:
                continue
        else:
            infinite = column.is_infinite().fill_null(False)
        if infinite.any():
            raise DataError(
                f"{source}: column {column.name!r} has {infinite.sum()} infinite of {len(column)} values "
                f"(first in row {infinite.arg_max() + 1}); write what is missing as an empty field, or drop these rows"  # type: ignore[operator]
            )


def _numbers(column: pl.Series) -> pl.Series | None:
    """The column as Float64, missing values as null; None when a value is no number."""
    if column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        return column.cast(pl.Float64)
    if column.dtype != pl.String:
        return None
    text = _stripped(column)
    numbers = text.cast(pl.Float64, strict=False)
    return None if (numbers.is_null() & text.is_not_null()).any() else numbers


def _stripped(column: pl.Series) -> pl.Series:
    """Text without the blanks around it; nothing left is missing."""
    text = column.str.strip_chars()
    return text.set(text == "", None)


def _not_a_number(column: pl.Series) -> tuple[object, int]:
    """The first value that is no number, and its row; of a column of lists or the like, the type."""
    if column.dtype.is_nested():
        return str(column.dtype), 1
    wrong = column.is_not_null()
    if column.dtype == pl.String:
        text = _stripped(column)
        wrong = text.is_not_null() & text.cast(pl.Float64, strict=False).is_null()
    at = int(np.argmax(wrong.to_numpy()))
    value = column[at]
    return (value if isinstance(value, str) else str(value)), at + 1


def _encode(
    column: pl.Series, name: str, source: str, task: Task
) -> tuple[npt.NDArray[np.int64] | npt.NDArray[np.float64], tuple[str, ...]]:
    """The target column as (n,) codes and their labels, or as (n,) numbers and no labels."""
    if column.dtype.is_float():
        column = column.fill_nan(None)
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        column = _stripped(column.cast(pl.String))
    if missing := column.null_count():
        row = int(np.argmax(column.is_null().to_numpy())) + 1
        raise DataError(
            f"{source}: target {name!r} is missing in {missing} of {len(column)} rows (first in row {row}); "
            f"drop these rows"
        )
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.String)):
        raise DataError(f"{source}: target {name!r} holds {column.dtype}; a target is numbers, booleans or text")
    if task == "regression":
        return _quantity(column, name, source), ()
    return _classes(column, name, source)


def _quantity(column: pl.Series, name: str, source: str) -> npt.NDArray[np.float64]:
    numbers = None if column.dtype == pl.Boolean else _numbers(column)
    if numbers is None:
        example, row = (column[0], 1) if column.dtype == pl.Boolean else _not_a_number(column)
        raise DataError(
            f"{source}: target {name!r} is not numeric ({example!r} in row {row}); "
            f"for classes use a classification metric: {_CLASSIFICATION_METRICS}"
        )
    values: npt.NDArray[np.float64] = numbers.to_numpy().astype(np.float64)
    wrong = ~np.isfinite(values)
    if wrong.any():
        row = int(np.argmax(wrong)) + 1
        raise DataError(
            f"{source}: target {name!r} is NaN or infinite in {int(wrong.sum())} of {len(values)} rows "
            f"(first in row {row}); drop these rows"
        )
    return values


def _classes(column: pl.Series, name: str, source: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    if column.dtype.is_float() or column.dtype.is_decimal():
        values = column.cast(pl.Float64).to_numpy()
        wrong = ~((np.abs(values) <= _LARGEST_EXACT) & (values == np.trunc(values)))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise DataError(
                f"{source}: target {name!r} is not whole numbers ({values[at].item()!r} in row {at + 1}), "
                f"so it looks like a quantity; use a regression metric: {_REGRESSION_METRICS}"
            )
        column = pl.Series(values.astype(np.int64))
    text = column.cast(pl.String)
    labels = sorted(text.unique().to_list())
    if all(re.fullmatch(r"[+-]?[0-9]+", label) for label in labels):
        labels.sort(key=int)  # stable: 1 and 01 are two labels, in the order of their text
    if len(labels) == 1:
        raise DataError(
            f"{source}: target {name!r} has a single class ({labels[0]!r} in all {len(text)} rows); "
            f"classification needs at least two"
        )
    codes: npt.NDArray[np.int64] = text.replace_strict(labels, range(len(labels)), return_dtype=pl.Int64).to_numpy()
    return codes.copy(), tuple(labels)


def _near(given: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` or nothing; case does not matter."""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(given.casefold(), list(folded), n=1)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""


def _listed(names: Sequence[str], most: int = 20) -> str:
    rest = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "none"


def _first_line(error: BaseException) -> str:
    """The first line of a library's message, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return f"({lines[0][:200]})" if lines else f"({type(error).__name__})"
