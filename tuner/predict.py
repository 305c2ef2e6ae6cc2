"""Predictions for a file, a batch at a time: read, predict, write, without ever holding the whole of it."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
import torch

from tuner.data.columns import Kind, listed
from tuner.data.preprocessing import FarValueError
from tuner.data.sources import NULL_VALUES, read_npy, repeated_names, trouble_of_csv, unquoted
from tuner.errors import DataError, StorageError
from tuner.files import whole_file
from tuner.model import TunedModel
from tuner.words import count

BATCH_ROWS = 65_536
WANTED: Mapping[Kind, str] = {"numeric": "numbers", "boolean": "true or false", "date": "dates"}
Unreadable = Mapping[str, tuple[int, str]]  # of a column: how many values, and the first
SUFFIXES = (".csv", ".csv.gz", ".parquet", ".npz", ".npy")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What was done. notes: one line for each thing about the columns that the user may want to know."""

    rows: int
    notes: tuple[str, ...]


def predict_file(model: TunedModel, data: Path, out: Path | None, *, batch_rows: int = BATCH_ROWS) -> Predicted:
    """Write a CSV with one line for each row of ``data``: ``prediction``, and ``probability_LABEL`` of each class where
    the model gives probabilities.

    data: CSV (gzipped or not), Parquet, NPZ or NPY, whose columns are called as in training: in an NPY file without
    names x0, x1, … by their places, the target's among them. out: a file, which appears when it is whole; None:
    standard output. Raises DataError when the file cannot be read or columns are missing, StorageError when there is no
    room for the answers; then no file is left. BrokenPipeError when whoever read the standard output has gone.
    """
    batches, names = _batches(data, model, batch_rows)
    wanted = [column.name for column in model.schema.columns]
    extra = [name for name in names if name not in wanted and name != model.target_name]
    notes = [f"ignored: columns {listed(extra)}, which the model does not know"] if extra else []
    if model.target_name in names and model.target_name not in wanted:
        notes.append(f"ignored: column {model.target_name!r}, the target")
    rows, unreadable = 0, Counter[str]()
    first: dict[str, str] = {}
    with _written(out) as file, closing(_parts(model, batches)) as parts:
        try:
            for answers, odd in parts:
                _write(answers, file, out, header=rows == 0)
                rows += answers.height
                for name, (number, value) in odd.items():
                    unreadable[name] += number
                    first.setdefault(name, value)
        except FarValueError as error:
            raise DataError(f"{data}: {FarValueError(error.called, error.value, error.row + rows)}") from None
        if not rows:
            raise DataError(f"{data}: has no rows to predict")
    kinds = {column.name: column.values or column.kind for column in model.schema.columns}
    for name, number in unreadable.items():
        told = f"{count(number, 'value')} such as {first[name]!r}"
        notes.append(f"column {name!r}: {told} cannot be read as {WANTED[kinds[name]]}, and count as missing")
    return Predicted(rows=rows, notes=tuple(notes))


def read_rows(model: TunedModel, data: str | Path) -> pl.DataFrame:
    """The model's columns of a file that :func:`predict_file` takes, as it reads them, for :meth:`TunedModel.predict`.

    Raises DataError as it does.
    """
    batches, _ = _batches(Path(data), model, BATCH_ROWS)
    read = [model.schema.apply(batch) for batch in batches]
    if not read:
        raise DataError(f"{data}: has no rows to predict")
    return pl.concat(read)


def _parts(
    model: TunedModel, batches: Iterator[pl.DataFrame]
) -> Generator[tuple[pl.DataFrame, Unreadable], None, None]:
    """The answers to each batch, and what of it could not be read, in order.

    As many batches at a time as torch has threads, a thread each, while the next is read: one batch after another on
    all threads would leave them idle wherever the work is not torch's.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[tuple[pl.DataFrame, Unreadable]]] = deque()
    torch.set_num_threads(1)  # which those that begin now inherit
    try:
        with ThreadPoolExecutor(threads) as pool:
            for batch in batches:
                waiting.append(pool.submit(lambda part: (answered(model, part), model.schema.unreadable(part)), batch))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)


def _write(answers: pl.DataFrame, file: IO[bytes], out: Path | None, *, header: bool) -> None:
    try:
        answers.write_csv(file, include_header=header)
    except OSError as error:  # polars makes one kind of them all
        if out is None and "Broken pipe" in str(error):
            raise BrokenPipeError from None
        raise StorageError(f"{out or 'standard output'} cannot be written: {error}") from None


def answered(model: TunedModel, batch: pl.DataFrame) -> pl.DataFrame:
    """The predictions of one batch, and their probabilities."""
    answers = model.answers(batch)
    if model.task == "regression":
        return pl.DataFrame({"prediction": model.decide(answers)})
    codes = pl.Series(answers.argmax(-1).astype(np.uint32))
    predicted = pl.Series("prediction", model.classes).gather(codes)
    if not model.has_probabilities:
        return predicted.to_frame()
    shares = [pl.Series(f"probability_{label}", answers[:, i]) for i, label in enumerate(model.classes)]
    return pl.DataFrame([predicted, *shares])


def _batches(path: Path, model: TunedModel, rows: int) -> tuple[Iterator[pl.DataFrame], list[str]]:
    """The file's rows in batches, with the model's columns alone, and the names of all columns. Raises DataError."""
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise DataError(f"{path}: cannot tell what it is; predict reads files ending in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    wanted = [column.name for column in model.schema.columns]
    if suffix in (".npz", ".npy"):
        frame = _npz(path) if suffix == ".npz" else read_npy(path, str(path))
        _check_names(path, frame.columns, model)
        return iter(frame.select(wanted).iter_slices(rows)), frame.columns
    with _explained(path):
        scan = pl.scan_parquet(path, glob=False) if suffix == ".parquet" else _scan_csv(path)
        names = scan.collect_schema().names()
    _check_names(path, names, model)
    if suffix == ".parquet":
        return _collected(path, scan.select(wanted), rows), names
    return _collected_csv(path, wanted, model.schema.of_kind("numeric"), rows), names


def _check_names(path: Path, names: Sequence[str], model: TunedModel) -> None:
    """Raises DataError unless each of the model's columns is there, once."""
    wanted = [column.name for column in model.schema.columns]
    if path.name.lower().endswith((".csv", ".csv.gz")):
        if not set(wanted) <= set(names) and (trouble := trouble_of_csv(path)):
            raise DataError(f"{path}: {trouble}")
        for name in repeated_names(path, names):
            if name in wanted:
                raise DataError(f"{path}: two columns are named {name!r}; keep one of them")
    try:
        model.schema.check_names(names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _scan_csv(path: Path, numbers: Sequence[str] = ()) -> pl.LazyFrame:
    """Some columns as numbers, all others as text: what a text means is the model's business."""
    types = dict.fromkeys(numbers, pl.Float64())
    nothing = list(NULL_VALUES)
    return pl.scan_csv(
        path,
        infer_schema=False,
        schema_overrides=types,
        null_values=nothing,
        with_column_names=unquoted,
        glob=False,
    )


def _collected(path: Path, scan: pl.LazyFrame, rows: int) -> Iterator[pl.DataFrame]:
    with _explained(path):
        yield from (batch for batch in scan.collect_batches(chunk_size=rows, maintain_order=True) if batch.height)


def _collected_csv(path: Path, names: Sequence[str], numbers: Sequence[str], rows: int) -> Iterator[pl.DataFrame]:
    """Numbers are read as such, which is twice as fast as through text, up to where one of them is none."""
    done = 0
    try:
        for batch in _scan_csv(path, numbers).select(names).collect_batches(chunk_size=rows, maintain_order=True):
            if batch.height:
                yield batch
                done += batch.height
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        yield from _collected(path, _scan_csv(path).select(names).slice(done), rows)


def _npz(path: Path) -> pl.DataFrame:
    """The array of features, its columns named x0, x1, … as in training."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = [name for name in ("X", "x", "features") if name in archive.files]
            if len(found) != 1:
                raise DataError(f"{path}: needs one array X, x or features; its arrays: {', '.join(archive.files)}")
            features = archive[found[0]]
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen types on a damaged file
        raise DataError(f"{path}: cannot be read as NPZ, is it damaged or cut off? ({error})") from None
    if features.ndim != 2 or features.dtype.kind not in "biuf":
        raise DataError(f"{path}: {found[0]} needs numbers of the shape (rows, columns), it is {features.shape}")
    return pl.DataFrame({f"x{i}": column for i, column in enumerate(features.T)})


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """polars' errors as one line."""
    try:
        yield
    except pl.exceptions.NoDataError:
        raise DataError(f"{path}: the file is empty; it needs a line of column names, then rows") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if path.suffix.lower() != ".parquet" and (trouble := trouble_of_csv(path, error)):
            raise DataError(f"{path}: {trouble}") from None
        told = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: cannot be read, is it damaged or cut off? ({told})") from None


@contextmanager
def _written(out: Path | None) -> Iterator[IO[bytes]]:
    """A file that appears under its name when all is written, and not at all after an error; or standard output, a
    device or a pipe, which nothing takes the place of.
    """
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if out.is_dir():
        raise DataError(f"{out}: is a folder; -o needs a file's name")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(whole_file(out))
        except OSError as error:
            raise DataError(f"{out}: cannot be written: {error.strerror}") from None
        yield file
