"""Layout: numbers and tables as plain text that reads well and survives ``cut`` and ``grep``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.words import count, minutes

__all__ = ["count", "duration", "indented", "minutes", "number", "pairs", "table"]


def number(value: Any) -> str:
    """Up to four significant digits, all digits of a whole number, ``-`` for nothing.

    >>> number(0.0123456), number(12345), number(True), number(None), number(float("nan")), number("relu")
    ('0.01235', '12345', 'yes', '-', '-', 'relu')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """
    >>> duration(3.14), duration(75), duration(3720)
    ('3.1 s', '1:15 min', '1:02 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def bytes_text(size: int) -> str:
    """
    >>> bytes_text(700), bytes_text(34_567), bytes_text(2_500_000)
    ('700 B', '34.6 kB', '2.5 MB')
    """
    if size < 1000:
        return f"{size} B"
    return f"{size / 1e3:.3g} kB" if size < 1e6 else f"{size / 1e6:.3g} MB"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns two spaces apart; a column of numbers is flush right.

    >>> print(table(["name", "n"], [["a", 5], ["long", 0.25]]))
    name     n
    a        5
    long  0.25
    """
    cells = [list(header), *([number(value) for value in row] for row in rows)]
    right = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(header))]
    return _aligned(cells, right)


def pairs(values: Mapping[str, Any], indent: str = "  ") -> str:
    """One ``key  value`` a line."""
    return indented(_aligned([[key, number(value)] for key, value in values.items()], [False, False]), indent)


def indented(text: str, indent: str = "  ") -> str:
    """Every line of a text moved to the right."""
    return "\n".join(indent + line for line in text.splitlines())


def _aligned(cells: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(right))]
    lines = (
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
