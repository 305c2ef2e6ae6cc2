"""Bulk inserts: any number of rows in one statement, in the way each database does it fastest.

PostgreSQL takes one array a column (``unnest``); SQLite runs one prepared statement over all rows; PyMySQL writes all
rows into one ``VALUES`` list.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ARRAY, Column, Connection, Enum, Table, Text, bindparam, cast, func, select
from sqlalchemy.dialects import mysql, postgresql, sqlite

Conflict = Literal["raise", "skip", "update"]


def insert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    conflict: Conflict = "raise",
    key: Sequence[str] | None = None,
) -> None:
    """Insert rows that all have the same columns. Nothing to do without rows.

    conflict: what a row does whose ``key`` (default: the primary key) is there already: fail, change nothing, or
        update the columns it names. With "update" every column it leaves out needs a server default.
    """
    if not rows:
        return
    names = list(rows[0])
    key = list(key) if key is not None else [column.name for column in table.primary_key]
    others = [name for name in names if name not in key]
    match connection.dialect.name:
        case "postgresql":
            _insert_arrays(connection, table, rows, names, key, others, conflict)
        case "mysql":
            into = mysql.insert(table).inline()
            if conflict == "skip":
                into = into.on_duplicate_key_update({key[0]: into.inserted[key[0]]})
            elif conflict == "update":
                into = into.on_duplicate_key_update({name: into.inserted[name] for name in others})
            connection.execute(into, [dict(row) for row in rows])
        case _:
            only = sqlite.insert(table).inline()
            if conflict == "skip":
                only = only.on_conflict_do_nothing(index_elements=key)
            elif conflict == "update":
                only = only.on_conflict_do_update(
                    index_elements=key, set_={name: only.excluded[name] for name in others}
                )
            connection.execute(only, [dict(row) for row in rows])


def _insert_arrays(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    names: list[str],
    key: list[str],
    others: list[str],
    conflict: Conflict,
) -> None:
    source = select(*(_unnested(table.c[name]) for name in names))
    into = postgresql.insert(table).from_select(names, source, include_defaults=False)
    if conflict == "skip":
        into = into.on_conflict_do_nothing(index_elements=key)
    elif conflict == "update":
        into = into.on_conflict_do_update(index_elements=key, set_={name: into.excluded[name] for name in others})
    arrays = {f"all_{name}": [_plain(row[name]) for row in rows] for name in names}
    connection.execute(into, arrays)


def _unnested(column: Column[Any]) -> Any:
    kind = Text() if isinstance(column.type, Enum) else column.type
    rows = func.unnest(cast(bindparam(f"all_{column.name}", type_=ARRAY(kind)), ARRAY(kind)))
    return cast(rows, column.type).label(column.name)


def _plain(value: Any) -> Any:
    """PostgreSQL's enums of Optuna hold the members' names."""
    return value.name if isinstance(value, enum.Enum) else value
