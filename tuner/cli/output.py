"""Results on standard output: JSON whose floats round-trip, CSV of flat rows, or text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from tuner import strict_json
from tuner.cli.options import Format


def write(
    content: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    form: Format,
    text: Callable[[], str],
    *,
    rows: Callable[[], Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Write a result in one of the formats.

    content: the machine-readable form, one record or a list of them. text: for people. rows: what CSV holds, where
    that is not ``content``.
    """
    if form == "json":
        click.echo(as_json(content))
    elif form == "csv":
        records = rows() if rows is not None else [content] if isinstance(content, Mapping) else content
        click.echo(as_csv(records), nl=False)
    else:
        click.echo(text())


def as_json(content: Any) -> str:
    """JSON that any parser reads: NaN and infinity are null, floats read back equal.

    >>> print(as_json({"a": [0.1, float("nan")]}))
    {
      "a": [
        0.1,
        null
      ]
    }
    """
    return strict_json.dumps(content, indent=2, ensure_ascii=False)


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """CSV with one header; a table inside a record becomes dotted columns, None and NaN an empty field.

    >>> print(as_csv([{"a": 1, "b": {"x": 0.5, "y": None}}, {"a": 2, "b": None}]), end="")
    a,b.x,b.y
    1,0.5,
    2,,
    """
    if not records:
        return ""
    flat = [_flatten(record) for record in records]
    columns = list(dict.fromkeys(key for record in flat for key in record))
    columns = [c for c in columns if not any(other.startswith(f"{c}.") for other in columns)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = strict_json.finite(value)
    return flat
