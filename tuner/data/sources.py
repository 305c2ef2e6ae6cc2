"""A source: where a table of rows comes from, read once into numbers or refused with the reason.

Shapes: ``n`` rows, ``D`` features, ``C`` classes. Rows are counted from 1 in messages, a CSV's header not included.
"""

from __future__ import annotations

import difflib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn import datasets

from tuner.data._digest import sha256_of
from tuner.errors import DataError
from tuner.spec import DataSection, metrics_for
from tuner.trial import Task

MIN_ROWS = 3  # one each to train, to validate and to test on

_REGRESSION_METRICS = metrics_for("regression")
_CLASSIFICATION_METRICS = metrics_for("classification")
_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".npz")
_KNOWN = f"a source is sklearn:NAME or a file ending in {', '.join(_SUFFIXES)}"
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
    """All rows of a source, before any split: finite numbers, at least one feature and :data:`MIN_ROWS` rows.

    features: (n, D) float64, C-contiguous; feature_names: D of them.
    target: (n,) int64 codes 0..C-1 for classification, (n,) float64 for regression.
    classes: the C labels as text in code order; empty for regression.
    """

    features: npt.NDArray[np.float64]
    feature_names: tuple[str, ...]
    target: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    classes: tuple[str, ...]
    target_name: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal: equal tables have equal digests, whatever file they came from."""
        return sha256_of(
            arrays=(self.features, self.target), texts=(self.feature_names, self.classes, self.target_name)
        )


def load_table(section: DataSection, task: Task, root: Path) -> Table:
    """Read ``section.source``; a relative path starts at ``root``.

    ``sklearn:NAME`` is a table that comes with scikit-learn. A CSV (gzipped or not) or Parquet file needs
    ``section.target``, the name of its target column; all other columns are features, numbers or booleans. An NPZ file
    holds ``X`` (or ``x``, ``features``) of shape (n, D) and ``y`` (or ``target``, or the name in ``section.target``) of
    shape (n,). Classes that are whole numbers are coded in their numerical order, others in the order of their text.

    Raises DataError when the source is unknown or unreadable, or its rows break a rule above.
    """
    source = section.source
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", source)
    if scheme is not None:
        if scheme[1] != "sklearn":
            near = _near(scheme[1], ["sklearn"])
            raise DataError(f"data.source: unknown scheme {scheme[1]!r}{near}; {_KNOWN}")
        return _from_sklearn(source, section.target, task)
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
        return _from_npz(path, source, section.target, task)
    return _from_frame(_read_frame(path, source, suffix), source, section.target, task)


def _from_sklearn(source: str, target: str | None, task: Task) -> Table:
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
    features = np.ascontiguousarray(bunch.data, dtype=np.float64)
    names = tuple(str(name) for name in bunch.feature_names)
    if task == "regression":
        return Table(
            features=features,
            feature_names=names,
            target=bunch.target.astype(np.float64),
            classes=(),
            target_name="target",
        )
    return Table(
        features=features,
        feature_names=names,
        target=bunch.target.astype(np.int64),
        classes=tuple(str(label) for label in bunch.target_names),
        target_name="target",
    )


def _read_frame(path: Path, source: str, suffix: str) -> pl.DataFrame:
    try:
        if suffix == ".parquet":
            return pl.read_parquet(path, glob=False)
        # The whole file decides a column's type: a first text in row 5,000 is found as well as one in row 1.
        return pl.read_csv(path, infer_schema_length=None, glob=False)
    except pl.exceptions.NoDataError:
        raise DataError(f"{source}: the file is empty; it needs a line of column names, then rows") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        kind = "Parquet" if suffix == ".parquet" else "CSV"
        raise DataError(f"{source}: cannot be read as {kind}, is it damaged or cut off? {_first_line(error)}") from None


def _from_frame(frame: pl.DataFrame, source: str, target: str | None, task: Task) -> Table:
    names = frame.columns
    if target is None:
        raise DataError(f"data.target: missing; say which column of {source} is the target: {_listed(names)}")
    if target not in names:
        if len(names) == 1 and re.search(r"[;\t|]", names[0]):
            raise DataError(f"{source}: has one column, {names[0]!r}; separate the fields by commas")
        near = _near(target, names)
        raise DataError(f"data.target: no column {target!r} in {source}{near}; its columns: {_listed(names)}")
    # polars renames a repeated column, so that a second copy of the target would become a feature.
    for name in names:
        if (copy := re.fullmatch(r"(.*)_duplicated_\d+", name, re.DOTALL)) and copy[1] in names:
            raise DataError(f"{source}: two columns are named {copy[1]!r}; give every column its own name")
    _check_rows(frame.height, source)
    feature_names = tuple(name for name in names if name != target)
    if not feature_names:
        raise DataError(f"{source}: has no column beside the target {target!r}; a table needs at least one feature")
    codes, classes = _encode(frame[target], target, source, task)
    columns = []
    for name in feature_names:
        numbers = _numbers(frame[name])
        if numbers is None:
            example, row = _not_a_number(frame[name])
            raise DataError(
                f"{source}: column {name!r} is not numeric ({example!r} in row {row}); write it as numbers, or drop it"
            )
        columns.append(numbers)
    features = np.ascontiguousarray(pl.DataFrame(columns).to_numpy(), dtype=np.float64)
    _check_finite(features, feature_names, source)
    return Table(features=features, feature_names=feature_names, target=codes, classes=classes, target_name=target)


def _from_npz(path: Path, source: str, target: str | None, task: Task) -> Table:
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
    feature_names = tuple(f"x{column}" for column in range(features.shape[1]))
    features = np.ascontiguousarray(features, dtype=np.float64)
    _check_finite(features, feature_names, source)
    return Table(features=features, feature_names=feature_names, target=codes, classes=classes, target_name=target_name)


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


def _check_finite(features: npt.NDArray[np.float64], names: Sequence[str], source: str) -> None:
    finite = np.isfinite(features)
    bad = np.flatnonzero(~finite.all(axis=0))
    if not bad.size:
        return
    column = features[:, bad[0]]
    missing, infinite = int(np.isnan(column).sum()), int(np.isinf(column).sum())
    counts = [f"{missing} missing or NaN"] * (missing > 0) + [f"{infinite} infinite"] * (infinite > 0)
    others = f", and {bad.size - 1} more columns have some" if bad.size > 1 else ""
    raise DataError(
        f"{source}: column {names[bad[0]]!r} has {' and '.join(counts)} of {len(column)} values "
        f"(first in row {int(np.argmin(finite[:, bad[0]])) + 1}){others}; fill them in, or drop these rows or columns"
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
    if column.dtype == pl.String:
        column = column.set(_stripped(column).is_null(), None)
    if missing := column.null_count():
        row = int(np.argmax(column.is_null().to_numpy())) + 1
        raise DataError(
            f"{source}: target {name!r} is missing in {missing} of {len(column)} rows (first in row {row}); "
            f"drop these rows"
        )
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.String, pl.Categorical, pl.Enum)):
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
