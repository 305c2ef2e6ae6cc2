"""Databases to test on: SQLite always, PostgreSQL and MariaDB where they answer (with ``CI=true`` they have to).

Where no PostgreSQL answers and no URL names one, the tests start one themselves: the wheel of the test extra brings it.
"""

import atexit
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from tests.storage.private import PrivatePostgres, programs
from tuner.storage.database import open_database, parse_url, sqlite_file

DEFAULTS = {
    "postgresql": ("TUNER_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test"),
    "mysql": ("TUNER_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306/test"),
}
KINDS = ["sqlite", "postgresql", "mysql"]


@cache
def server_url(kind: str) -> str:
    variable, default = DEFAULTS[kind]
    if given := os.environ.get(variable):
        return given
    if kind == "postgresql" and refusal(default) is not None and programs() is not None:
        server = PrivatePostgres()
        atexit.register(server.close)
        return server.url()
    return default


@cache
def why_not(kind: str) -> str | None:
    """Why a server cannot be used; None when it answers."""
    reason = refusal(server_url(kind))
    return None if reason is None else f"no {kind} answers ({DEFAULTS[kind][0]}): {reason}"


def refusal(url: str) -> str | None:
    """What a server says instead of answering; None when it answers."""
    try:
        engine = create_engine(parse_url(url), poolclass=NullPool)
    except ImportError as error:
        return str(error)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
    except SQLAlchemyError as error:
        return str(error)
    return None


def require(kind: str) -> None:
    if kind in DEFAULTS:
        required(why_not(kind))


def required(reason: str | None) -> None:
    """Skip the test where something is missing that CI has to have."""
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@cache
def _sqlite_with_tables() -> bytes:
    with TemporaryDirectory() as folder:
        open_database(f"sqlite:///{folder}/tuner.db").close()
        return (Path(folder) / "tuner.db").read_bytes()


def lay_tables(url: str) -> None:
    """Give an empty SQLite database its tables; quicker than having each test create them."""
    if (file := sqlite_file(parse_url(url))) is not None:
        file.write_bytes(_sqlite_with_tables())


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database, dropped afterwards."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'tuner.db'}"
        return
    require(kind)
    name = f"tuner_test_{uuid.uuid4().hex[:16]}"
    engine = create_engine(parse_url(server_url(kind)), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield make_url(server_url(kind)).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            force = " WITH (FORCE)" if kind == "postgresql" else ""
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")
