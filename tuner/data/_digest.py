"""A digest: the SHA-256 of arrays and names, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl


def sha256_of(*, arrays: Iterable[npt.NDArray[Any]], texts: Sequence[object] = ()) -> str:
    """Hexadecimal SHA-256 of the texts' JSON, and of the arrays' types, shapes and values (little-endian, C order).

    ``arrays`` may be an iterator: one array at a time is in memory. ``texts`` holds whatever ``json.dumps`` takes:
    strings, or tuples of strings.
    """
    digest = hashlib.sha256(json.dumps(list(texts), separators=(",", ":")).encode())
    for array in arrays:
        header = [np.dtype(array.dtype).newbyteorder("<").str, list(array.shape)]
        digest.update(json.dumps(header, separators=(",", ":")).encode())
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def column_arrays(series: pl.Series) -> list[npt.NDArray[Any]]:
    """A column's content as arrays for :func:`sha256_of`; equal content gives equal arrays, whatever file it came from.

    Numbers are float64, moments microseconds, everything else text; a second array tells missing values from zeros.
    """
    missing = series.is_null().to_numpy()
    if series.dtype.is_numeric():
        values = [series.cast(pl.Float64).fill_null(0).to_numpy()]
    elif series.dtype.is_temporal():
        in_us = series.cast(pl.Datetime("us")) if series.dtype in (pl.Date, pl.Datetime) else series
        values = [in_us.to_physical().cast(pl.Int64).fill_null(0).to_numpy()]
    else:
        text = series.cast(pl.String).fill_null("")
        joined = text.str.join("")[0].encode() if len(text) else b""
        values = [text.str.len_bytes().to_numpy(), np.frombuffer(joined, dtype=np.uint8)]
    return [*values, missing] if missing.any() else values
