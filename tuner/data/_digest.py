"""A digest: the SHA-256 of arrays and names, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def sha256_of(*, arrays: Sequence[npt.NDArray[Any]], texts: Sequence[object] = ()) -> str:
    """Hexadecimal SHA-256 of the arrays' types, shapes and values (little-endian, C order) and of the texts' JSON.

    ``texts`` holds whatever ``json.dumps`` takes: strings, or tuples of strings.
    """
    header = [[np.dtype(a.dtype).newbyteorder("<").str, list(a.shape)] for a in arrays]
    digest = hashlib.sha256(json.dumps([header, list(texts)], separators=(",", ":")).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
