"""What all workers of a study agree on: spec, data, split and version, as its row of ``tuner_studies`` has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row

from tuner import __version__
from tuner.errors import DataError, SpecMismatchError, WorkerRefusedError
from tuner.spec import StudySpec, parse_spec

_MISSING = object()  # a key that is not there


def stored_spec(row: Row[Any]) -> StudySpec:
    """The spec that a study was created with."""
    return parse_spec(json.loads(row.spec), source=f"study {row.name}")


def must_match(row: Row[Any], spec: StudySpec, data_digest: str, split_digest: str) -> None:
    """Raises SpecMismatchError or DataError when a study that is there is not the one that is to be created."""
    name = spec.study.name
    if row.spec_digest != spec.digest and (differences := stored_spec(row).differences(spec)):
        raise SpecMismatchError(name, differences)
    check_digests(row, data_digest, split_digest)


def check_digests(row: Row[Any], data: str, split: str) -> None:
    """Raises DataError when the hash of the rows, or of their split, is not that of the study's creation."""
    for what, then, found in (("data", row.data_digest, data), ("split", row.split_digest, split)):
        if then != found:
            raise DataError(
                f"the {what} of study {row.name!r} changed since it was created: SHA-256 {then[:12]}… then, "
                f"{found[:12]}… now; restore the data, use another name, or: tuner delete {row.name}"
            )


def admit(row: Row[Any]) -> None:
    """Raises WorkerRefusedError, with the difference, when this Tuner may not work on a study."""
    name, stored = row.name, row.tuner_version
    series, mine = (".".join(version.split(".")[:2]) for version in (stored, __version__))
    if series != mine:
        raise WorkerRefusedError(
            f"study {name!r} was created by Tuner {stored}, this is Tuner {__version__}; all workers of a study run "
            f"the same major.minor version: install tuner {series}, or create a study of another name"
        )
    if (found := hashlib.sha256(row.spec.encode()).hexdigest()) != row.spec_digest:
        raise WorkerRefusedError(
            f"the spec of study {name!r} was changed in the database: SHA-256 {row.spec_digest[:12]}… when it was "
            f"created, {found[:12]}… now; restore it, or: tuner delete {name}"
        )
    read = stored_spec(row)
    if read.digest != row.spec_digest:
        head = (
            f"study {name!r} means something else to this Tuner {__version__} than to the {stored} that created it; "
            "use that version, or create a study of another name"
        )
        lines = _differences(json.loads(row.spec), json.loads(read.as_json()))
        raise WorkerRefusedError("\n".join([head, *(f"  {line}" for line in lines)]))


def _differences(stored: Mapping[str, Any], read: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: stored -> read``, dotted, for every key that differs.

    >>> _differences({"a": {"b": 1}}, {"a": {"b": 2, "c": None}})
    ['a.b: 1 -> 2', 'a.c: missing -> null']
    """
    lines = []
    for key in sorted(stored.keys() | read.keys()):
        one, other = stored.get(key, _MISSING), read.get(key, _MISSING)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            texts = ["missing" if value is _MISSING else json.dumps(value) for value in (one, other)]
            lines.append(f"{prefix}{key}: {' -> '.join(texts)}")
    return lines
