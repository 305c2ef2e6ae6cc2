"""A database: one URL, one engine that is set up right for its kind, and whole transactions that outlive trouble.

SQLite, PostgreSQL (psycopg) and MariaDB or MySQL (PyMySQL). The database's own clock, in UTC, is the only clock.
Passwords appear in no message.
"""

from __future__ import annotations

import logging
import os
import random
import re
import sqlite3
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import optuna
import sqlalchemy
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Double, Engine, NullPool, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from tuner.errors import BadInputError, StorageError
from tuner.storage import bulk, schema

OPTUNA_SCHEMA = "v3.2.0.a"  # the head of Optuna 5.0's schema: tuner/storage/records.py writes exactly these tables
OPEN_PATIENCE_S = 10.0  # seconds to wait at start-up for a database that has never answered
PATIENCE_S = 120.0  # seconds to wait for a database that was there a moment ago
LOCK_WAIT_S = 5.0  # seconds a statement waits for a lock before the transaction is rolled back and tried again
IDLE_S = 60.0  # seconds of silence in a transaction after which a server ends it: its client was stopped, or is gone
POOL_SIZE = 1  # connections that a process keeps: a worker has one transaction at a time, and now and then a heartbeat
MOST = 20  # connections that its threads may have for a moment
PGBOUNCER = "pgbouncer"  # key of a URL's query that says who is in front
_OPTUNA_TABLES = {"studies", "trials", "trial_params", "trial_values", "trial_intermediate_values", "version_info"}
_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
    "mariadb+pymysql": "mysql+pymysql",
}

_log = logging.getLogger(__name__)
T = TypeVar("T")


class now(FunctionElement[float]):  # noqa: N801
    """Seconds since the epoch in UTC by the database's clock, whatever the session's time zone. Named as in SQL."""

    type = Double()
    inherit_cache = True
    name = "now"


@compiles(now, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(now, "mysql")
def _now_mysql(*_: Any, **__: Any) -> str:
    # Not UNIX_TIMESTAMP(NOW()): it goes through the session's time zone, and an autumn hour comes twice.
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)"


def clock(connection: Connection) -> float:
    """:class:`now`, read."""
    return float(connection.execute(sqlalchemy.select(now())).scalar_one())


class Database:
    """One opened database. Threads may share it; a forked child gets connections of its own."""

    def __init__(self, url: URL, *, patience_s: float = PATIENCE_S) -> None:
        self.url = url
        self.patience_s = patience_s
        self.engine = _engine(url, patience_s)

    def __str__(self) -> str:
        return shown(self.url)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` as one transaction that may write; see :func:`transact`."""
        return transact(self.engine, work, patience_s=self.patience_s)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` as one transaction that only reads."""
        return transact(self.engine, work, write=False, patience_s=self.patience_s)

    def optuna_storage(
        self, *, kind: type[optuna.storages.RDBStorage] = optuna.storages.RDBStorage, **engine_options: Any
    ) -> optuna.storages.RDBStorage:
        """Optuna's own storage on this database, with connections of its own; the caller disposes its engine."""
        # Optuna calls str.format on the URL: braces must be doubled.
        text = _plain(self.url).render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        options = _engine_options(self.url, self.patience_s) | engine_options
        return kind(text, engine_kwargs=options)

    def close(self) -> None:
        self.engine.dispose()


def parse_url(text: str) -> URL:
    """The URL with the driver that Tuner uses. Raises BadInputError for another kind of database."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise BadInputError(
            "storage: not a database URL; give sqlite:///FILE, postgresql://USER@HOST/DB or mysql://USER@HOST/DB"
        ) from None
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.drivername not in {"sqlite", "sqlite+pysqlite", *_DRIVERS.values()}:
        raise BadInputError(
            f"storage: {url.drivername} is not supported; give a sqlite, postgresql or mysql URL (mariadb is mysql)"
        )
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise BadInputError(
            "storage: a database in memory cannot be shared or resumed; give a file, as in sqlite:///tuner.db"
        )
    return url


def sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite database (also where it is written as ``file:…``), else None."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    name = url.database
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").removeprefix("//"))
    return Path(name)


def shown(url: URL) -> str:
    """The URL as a message may show it: no password, and no query, which may hold secrets too."""
    return url.set(query={}).render_as_string(hide_password=True)


def open_database(
    text: str, *, create: bool = True, patience_s: float = PATIENCE_S, open_patience_s: float = OPEN_PATIENCE_S
) -> Database:
    """Open a database, and create Optuna's tables and Tuner's where they are missing (unless not to ``create``).

    Any number of processes may do so at once. A database that is not ours is refused: a file that is not SQLite's; an
    SQLite file that holds other tables only (most likely a mistyped path); on a server, which applications do share,
    tables of Optuna's names that are not Optuna's; and Optuna's or Tuner's tables of another version.

    Raises StorageError with the rule, the fact and the fix, BadInputError for a URL that cannot be used.
    """
    url = parse_url(text)
    if (file := sqlite_file(url)) is not None:
        if not file.absolute().parent.is_dir():
            raise StorageError(
                f"{shown(url)}: folder {file.absolute().parent} does not exist; create it, or give another --storage"
            )
        if not create and not file.exists():
            raise StorageError(
                f"{shown(url)}: there is no file {file}; create a study in it with tuner create or tuner run, or give "
                "another --storage"
            )
        if file.is_dir():
            raise StorageError(f"{shown(url)}: {file} is a folder; give a file in it, as in {file / 'tuner.db'}")
    try:
        database = Database(url, patience_s=patience_s)
    except ImportError as error:
        extra = "postgresql" if url.get_backend_name() == "postgresql" else "mysql"
        raise StorageError(
            f"{shown(url)}: its driver is not installed ({error}); pip install 'tuner[{extra}]'"
        ) from None
    try:
        _set_up(database, open_patience_s, create)
    except BaseException:
        database.close()
        raise
    return database


def transact(
    engine: Engine,
    work: Callable[[Connection], T],
    *,
    write: bool = True,
    patience_s: float = PATIENCE_S,
    open_patience_s: float | None = None,
) -> T:
    """Run ``work`` in one transaction and commit it, trying again as a whole while the trouble may pass.

    Trouble that may pass: locks, deadlocks, serialization errors, lost connections, a server that restarts. A
    connection lost in COMMIT leaves open whether it happened, so ``work`` must find its own traces when it runs again.

    Raises StorageError once ``patience_s`` seconds are over, and at once for trouble that stays.
    """

    def once() -> T:
        with engine.connect().execution_options(tuner_write=write) as connection, connection.begin():
            return work(connection)

    return patiently(once, engine.url, patience_s, open_patience_s)


def patiently(call: Callable[[], T], url: URL, patience_s: float, open_patience_s: float | None = None) -> T:
    """Call until it succeeds, with growing and jittered pauses, while its trouble may pass. Raises as transact.

    ``open_patience_s``, where given, is all the patience there is until the server shows that it exists.
    """
    started = told = time.monotonic()
    limit_s = patience_s if open_patience_s is None else open_patience_s
    attempt = 0
    while True:
        try:
            answer = call()
            if told > started:
                _log.warning("%s answers again (after %.0f s)", shown(url), time.monotonic() - started)
            return answer
        except (DBAPIError, PoolTimeoutError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
            waited_s = time.monotonic() - started
            reason = passing(cause) if isinstance(cause, SQLAlchemyError) else None
            if reason in _SIGNS_OF_LIFE:
                limit_s = patience_s
            if reason is None or waited_s >= limit_s:
                raise explained(cause or error, url, waited_s) from error
            if time.monotonic() - told > 1:
                told = time.monotonic() + 9  # the first line after a second, then one every ten
                _log.warning("waiting for %s: %s (%.0f s so far)", shown(url), reason, waited_s)
            time.sleep(min(0.02 * 2**attempt, 2.0) * random.uniform(0.5, 1.0))
            attempt += 1


_NO_ANSWER = "the server does not answer"
_SIGNS_OF_LIFE = {
    "connection lost",
    "the server crashed",
    "the server is shutting down",
    "the server is starting up",
    "too many connections",
}
_POSTGRES_PASSING = {
    "40001": "serialization error",
    "40P01": "deadlock",
    "55P03": "locked by another transaction",
    "57014": "a statement took too long",
    "57P01": "the server is shutting down",
    "57P02": "the server crashed",
    "57P03": "the server is starting up",
    "25P03": "the session was idle in a transaction",
    "53300": "too many connections",
    "40003": "connection lost",
    "53200": "the server is out of memory",
}
_MYSQL_PASSING = {
    0: "connection lost",
    1020: "serialization error",  # record has changed since last read
    1040: "too many connections",
    1047: "the server is starting up",  # a node of a Galera cluster that is not ready
    1053: "the server is shutting down",
    1158: "connection lost",
    1159: "connection lost",
    1160: "connection lost",
    1161: "connection lost",
    1203: "too many connections",
    1205: "locked by another transaction",
    1206: "locked by another transaction",
    1213: "deadlock",
    1317: "a statement was interrupted",
    1927: "connection lost",
    1969: "a statement took too long",
    2002: _NO_ANSWER,
    2003: _NO_ANSWER,
    2006: "connection lost",
    2013: "connection lost",
    2014: "connection lost",
    3024: "a statement took too long",
    4031: "connection lost",
}
_SQLITE_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
# What a PostgreSQL that can be reached refuses for good. Not every word of SSL: a connection that is cut says it, too.
_FINAL_REFUSALS = re.compile(
    r"unsupported startup parameter|"
    r'password|pg_hba\.conf|certificate|private key|does not support ssl|(role|database) ".*" (does not exist|is not)'
)


def passing(error: SQLAlchemyError) -> str | None:
    """What to wait for, where waiting may help; else None."""
    if isinstance(error, PoolTimeoutError):
        return "all connections of this process are in use"
    if not isinstance(error, DBAPIError):
        return None
    original = error.orig
    text = str(original).lower()
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", None)  # None where Python itself raised it
        busy = "locked" in text if code is None else code & 0xFF in _SQLITE_PASSING
        return "locked by another process" if busy else None
    code = original.args[0] if original is not None and original.args else None
    if isinstance(code, int):  # PyMySQL; its errors may have an SQLSTATE besides, which says less
        lost = "connection lost" if error.connection_invalidated else None
        return _MYSQL_PASSING.get(code, lost)
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return "connection lost" if state.startswith("08") else _POSTGRES_PASSING.get(state)
    if error.connection_invalidated or "packet sequence" in text:
        return "connection lost"
    if not isinstance(error, (sqlalchemy.exc.OperationalError, InterfaceError)) or _FINAL_REFUSALS.search(text):
        return None
    if any(words in text for words in ("starting up", "shutting down", "recovery mode", "not yet accepting")):
        return "the server is starting up"
    return "too many connections" if "too many clients" in text or "connection slots" in text else _NO_ANSWER


def explained(error: BaseException, url: URL, waited_s: float = 0.0) -> StorageError:
    """The trouble as a StorageError: rule, fact, fix."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    fact = " ".join(str(original).split()) or type(original).__name__
    if url.password is not None:
        fact = fact.replace(str(url.password), "***") if len(str(url.password)) > 3 else fact
    text = fact.lower()
    where = shown(url)
    reason = passing(error) if isinstance(error, SQLAlchemyError) else None
    if "readonly" in text or "read-only" in text or "read only" in text:
        return StorageError(
            f"{where}: the database is read-only, and Tuner writes its studies there; make the file and its folder "
            "writable, or give another --storage"
        )
    if "disk is full" in text or "no space left" in text or "is full" in text or "disk full" in text:
        return StorageError(
            f"{where}: the disk is full; nothing that was stored is lost: free some space, then run the same command"
        )
    if "not a database" in text or "malformed" in text:
        return StorageError(
            f"{where}: the file is not an SQLite database ({fact}), and it was left as it is; give another --storage"
        )
    if reason is not None and "locked" in reason:
        return StorageError(
            f"{where}: the database is locked by another process (waited {waited_s:.0f} s); "
            "end that process, or try again"
        )
    if "unsupported startup parameter" in text or ("prepared statement" in text and "exist" in text):
        return StorageError(
            f"{where}: this is a PgBouncer, which has no sessions ({fact}); say so in the URL: "
            f"postgresql://USER@HOST/DB?{PGBOUNCER}=true"
        )
    if "unable to open database file" in text:
        return StorageError(
            f"{where}: the file cannot be opened ({fact}); check that it and its folder may be read and written"
        )
    if "unknown database" in text or ("database" in text and "does not exist" in text):
        return StorageError(
            f"{where}: the server has no such database ({fact}); create it with: CREATE DATABASE {url.database}"
        )
    if "password" in text or "access denied" in text:
        return StorageError(f"{where}: the server refused the user or the password ({fact}); check the URL")
    if "illegal mix of collations" in text or "incorrect string value" in text:
        return StorageError(
            f"{where}: the database's character set does not have these letters ({fact}); give one that was made with: "
            "CREATE DATABASE … CHARACTER SET utf8mb4"
        )
    if reason is not None:
        return StorageError(
            f"{where}: cannot be reached: {reason} (waited {waited_s:.0f} s; {fact}); check that the server runs and "
            "that host and port are right"
        )
    return StorageError(f"{where}: the database refused: {fact}")


def _engine(url: URL, patience_s: float) -> Engine:
    pool = {} if url.get_backend_name() == "sqlite" else {"pool_size": POOL_SIZE, "max_overflow": MOST - POOL_SIZE}
    engine = sqlalchemy.create_engine(_plain(url), **_engine_options(url, patience_s), **pool)
    if _pooled(url):
        settings = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _settings(patience_s).items())
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(f"SELECT {settings}") and None)
    if url.get_backend_name() == "sqlite":
        wait_ms = int(1000 * _lock_wait_s(patience_s))
        event.listen(engine, "connect", lambda connection, _: _prepare_sqlite(connection, wait_ms))
        event.listen(engine, "begin", _begin_sqlite)
    # A child that inherits open connections would talk over its parent's: leave those to the parent.
    alive = weakref.ref(engine)
    os.register_at_fork(after_in_child=lambda: _forget(alive))
    return engine


def _pooled(url: URL) -> bool:
    """Whether a PgBouncer that pools transactions is in front of a PostgreSQL: then no session is anybody's."""
    return url.query.get(PGBOUNCER) in ("1", "true")


def _plain(url: URL) -> URL:
    """The URL without what is for Tuner alone."""
    return url.difference_update_query([PGBOUNCER])


def _settings(patience_s: float) -> dict[str, str]:
    """What every transaction on PostgreSQL relies on."""
    return {
        "lock_timeout": f"{int(1000 * _lock_wait_s(patience_s))}ms",
        "statement_timeout": "60s",
        "idle_in_transaction_session_timeout": f"{int(1000 * IDLE_S)}ms",
        "timezone": "UTC",
    }


def _forget(engine: weakref.ref[Engine]) -> None:
    if (inherited := engine()) is not None:
        inherited.dispose(close=False)


def _engine_options(url: URL, patience_s: float = PATIENCE_S) -> dict[str, Any]:
    wait_s = _lock_wait_s(patience_s)
    match url.get_backend_name():
        case "sqlite":
            return {"connect_args": {"timeout": wait_s}}
        case "postgresql":
            options = " ".join(f"-c {name}={value}" for name, value in _settings(patience_s).items())
            given = url.query.get("options", ())
            mine = options if not given else f"{options} {given if isinstance(given, str) else ' '.join(given)}"
            # A machine that is gone sends nothing, not even an end: noticed after some 30 seconds instead of two hours.
            silence = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4}
            # Settings and prepared statements belong to a session, which a pooled transaction has none of.
            session = {"prepare_threshold": None} if _pooled(url) else {"options": mine}
            arguments = {"connect_timeout": 10, "tcp_user_timeout": 30_000, **silence, **session}
        case _:
            # The first comment is for MariaDB, the second for MySQL, which only knows of silence at any time.
            idle = f"/*M!100300 , idle_transaction_timeout = {IDLE_S:.0f} */ /*!80000 , wait_timeout = {IDLE_S:.0f} */"
            wait = f"innodb_lock_wait_timeout = {max(1, round(wait_s))}"
            arguments = {
                "connect_timeout": 10,
                "read_timeout": 90,
                "write_timeout": 90,
                "init_command": f"SET SESSION {wait}, time_zone = '+00:00' {idle}",
                "charset": "utf8mb4",
            }
    return {
        "connect_args": arguments,
        "isolation_level": "READ COMMITTED",  # at REPEATABLE READ concurrent trials get equal numbers, with no error
        "pool_pre_ping": True,
        "pool_recycle": 1800,
    }


def _lock_wait_s(patience_s: float) -> float:
    """Short enough to say that it waits, and to try more than once."""
    return min(LOCK_WAIT_S, patience_s / 4)


def _prepare_sqlite(connection: Any, wait_ms: int) -> None:
    connection.isolation_level = None  # sqlite3 would begin late, and deferred; _begin_sqlite begins instead
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {wait_ms}")
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a writer fails at once when another has written meanwhile.
    write = connection.get_execution_options().get("tuner_write", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _set_up(database: Database, open_patience_s: float, create: bool) -> None:
    """Check what is there, create what is missing, check again; then write-ahead logging for SQLite.

    Nothing is changed in a database that is refused.
    """
    patience = {"patience_s": database.patience_s, "open_patience_s": open_patience_s}
    started, delay_s = time.monotonic(), 0.05
    while not transact(database.engine, lambda c: _ready(c, database.url), write=False, **patience):
        if not create:
            raise StorageError(
                f"{database}: it holds no studies of Tuner; create one with tuner create or tuner run, or give another "
                "--storage"
            )
        try:
            database.optuna_storage(poolclass=NullPool)  # no pool: where this fails, nobody could close it
            with database.engine.connect() as connection, connection.begin():
                schema.metadata.create_all(connection)
                _inform_sqlite(connection)
                bulk.insert(connection, schema.schema_versions, [{"version": schema.SCHEMA_VERSION}], conflict="skip")
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            # Most likely another process creates the same tables at this moment: look again.
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
            reason = passing(cause) if isinstance(cause, SQLAlchemyError) else None
            races = isinstance(cause, DBAPIError) and (
                reason is not None or "exist" in str(cause.orig) or "uplicate" in str(cause.orig)
                or isinstance(cause, sqlalchemy.exc.IntegrityError)
            )  # fmt: skip
            waited_s = time.monotonic() - started
            if not races or waited_s > (database.patience_s if reason in _SIGNS_OF_LIFE else open_patience_s):
                raise explained(cause or error, database.url, waited_s) from error
            time.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, 1.0)
    if database.url.get_backend_name() == "sqlite":
        patiently(lambda: _log_ahead(database.engine), database.url, **patience)


def _log_ahead(engine: Engine) -> None:
    """Readers and a writer do not wait for each other any more; the file keeps it."""
    with engine.connect() as connection:
        cursor = connection.connection.cursor()  # the mode changes outside of transactions only
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):  # a read-only database may be read in whatever mode it has
                raise sqlalchemy.exc.OperationalError("PRAGMA journal_mode = WAL", None, error) from error
        finally:
            cursor.close()


def _inform_sqlite(connection: Connection) -> None:
    """Give SQLite's planner the statistics of :data:`tuner.storage.schema.SQLITE_STATISTICS`."""
    if connection.dialect.name != "sqlite":
        return
    connection.exec_driver_sql("ANALYZE tuner_schema")  # makes the table of statistics
    for (table, index), statistics in schema.SQLITE_STATISTICS.items():
        connection.exec_driver_sql("DELETE FROM sqlite_stat1 WHERE tbl = ? AND idx = ?", (table, index))
        connection.exec_driver_sql("INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", (table, index, statistics))
    connection.exec_driver_sql("ANALYZE sqlite_schema")  # analyzes nothing: this connection reads them again


def _ready(connection: Connection, url: URL) -> bool:
    """Whether all tables are there in the known versions. Raises StorageError when the database is not ours."""
    names = set(inspect(connection).get_table_names())
    where = shown(url)
    mine = set(schema.metadata.tables)
    if url.get_backend_name() == "sqlite" and names and not names & (_OPTUNA_TABLES | mine):
        raise StorageError(
            f"{where}: the file holds other tables ({', '.join(sorted(names)[:3])}) and none of Optuna's; "
            "Tuner writes into a file of its own or of Optuna's: give another --storage"
        )
    if "alembic_version" in names:
        head = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if head is not None and head != OPTUNA_SCHEMA:
            advice = (
                f"upgrade it with: optuna storage upgrade --storage {where}"
                if "version_info" in names and head in _optuna_versions()
                else "give a database of its own"
            )
            raise StorageError(f"{where}: its schema is {head}; Tuner knows Optuna's {OPTUNA_SCHEMA}: {advice}")
    elif names & _OPTUNA_TABLES and "version_info" not in names and "alembic_version" not in names:
        clash = ", ".join(sorted(names & _OPTUNA_TABLES))
        if not _being_created(connection, names):
            raise StorageError(f"{where}: its tables {clash} are not Optuna's; give a database of its own")
    if schema.schema_versions.name in names:
        version = connection.execute(sqlalchemy.select(schema.schema_versions.c.version)).scalar()
        if version is not None and version != schema.SCHEMA_VERSION:
            raise StorageError(
                f"{where}: its studies were made by a Tuner with schema {version}, this one has "
                f"{schema.SCHEMA_VERSION}; use that Tuner, or give another --storage"
            )
        return version is not None and mine <= names and "alembic_version" in names and head is not None
    return False


def _being_created(connection: Connection, names: set[str]) -> bool:
    """Whether tables of Optuna's names are Optuna's, caught while another process creates them one by one."""
    if "studies" not in names:
        return False
    columns = {column["name"] for column in inspect(connection).get_columns("studies")}
    return columns == {"study_id", "study_name"}


def _optuna_versions() -> set[str]:
    """Every schema version that the installed Optuna knows."""
    folder = Path(optuna.__file__).parent / "storages" / "_rdb" / "alembic"
    script = ScriptDirectory(str(folder))
    return {revision.revision for revision in script.walk_revisions()}
