"""Opening a database, its clock, and what is said when it cannot be used."""

import logging
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, inspect, make_url, select, text
from sqlalchemy.exc import OperationalError

from tests.spaces import study
from tests.storage.servers import fresh_database, require, server_url
from tuner.errors import BadInputError, StorageError
from tuner.manager import StudyManager
from tuner.storage import bulk, schema
from tuner.storage.database import Database, explained, now, open_database, parse_url, shown


@contextmanager
def opened(url: str, patience_s: float = 5.0) -> Iterator[Database]:
    database = open_database(url, patience_s=patience_s, open_patience_s=patience_s)
    try:
        yield database
    finally:
        database.close()


def refusal(url: str, patience_s: float = 0.3) -> str:
    """The message of a database that cannot be opened."""
    with pytest.raises(StorageError) as caught:
        open_database(url, patience_s=patience_s, open_patience_s=patience_s)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgres://h/d", "postgresql+psycopg"),
        ("postgresql://h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg"),
        ("mysql://h/d", "mysql+pymysql"),
        ("mariadb://h/d", "mysql+pymysql"),
        ("sqlite:///x.db", "sqlite"),
    ],
)
def test_plain_urls_get_their_driver(given: str, driver: str) -> None:
    assert parse_url(given).drivername == driver


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("tuner.db", "not a database URL; give sqlite:///FILE"),
        ("oracle://h/d", "oracle is not supported; give a sqlite, postgresql or mysql URL"),
        ("sqlite://", "in memory cannot be shared"),
        ("sqlite:///:memory:", "in memory cannot be shared"),
    ],
)
def test_urls_that_cannot_be_used(given: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        parse_url(given)


def test_opening_makes_the_tables_once(url: str) -> None:
    for _ in range(2):
        with opened(url) as database:
            names = set(database.read(lambda c: inspect(c).get_table_names()))
            assert {"studies", "trials", "alembic_version", *schema.metadata.tables} <= names


def test_the_clock_ignores_the_sessions_time_zone(url: str) -> None:
    zones = {
        "sqlite": "SELECT 1",
        "postgresql": "SET TIME ZONE 'America/New_York'",
        "mysql": "SET time_zone = '-05:00'",
    }
    with opened(url) as database, database.engine.connect() as connection:
        connection.exec_driver_sql(zones[connection.dialect.name])
        first = connection.execute(select(now())).scalar_one()
        assert abs(first - time.time()) < 5  # seconds
        time.sleep(0.02)
        later = connection.execute(select(now())).scalar_one()
        assert 0.01 < later - first < 2


def test_isolation_is_pinned_on_servers(url: str) -> None:
    with opened(url) as database, database.engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            assert connection.get_isolation_level() == "READ COMMITTED"


def test_sqlite_is_set_up_for_many_processes(sqlite_url: str) -> None:
    with opened(sqlite_url, 60) as database, database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 5000


class TestBulk:
    def test_conflicts(self, url: str) -> None:
        row: dict[str, Any] = {"study_id": 1, "number": 2, "epoch": 3, "train_loss": 0.1, "val_loss": None}
        query = select(schema.curves.c.epoch, schema.curves.c.train_loss).order_by(schema.curves.c.epoch)
        with opened(url) as database:

            def insert(rows: list[dict[str, Any]], conflict: bulk.Conflict) -> list[tuple[Any, ...]]:
                database.write(lambda c: bulk.insert(c, schema.curves, rows, conflict=conflict))
                return [tuple(found) for found in database.read(lambda c: c.execute(query).all())]

            assert insert([], "raise") == []
            assert insert([row], "raise") == [(3, 0.1)]
            more = [{**row, "train_loss": 9.0}, {**row, "epoch": 4, "train_loss": None}]
            assert insert(more, "skip") == [(3, 0.1), (4, None)]
            assert insert(more, "update") == [(3, 9.0), (4, None)]
            with pytest.raises(StorageError):
                insert([row], "raise")

    @pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e22, 123456789.123456789])
    def test_doubles_are_exact(self, sqlite_url: str, value: float) -> None:
        assert _round_trip(sqlite_url, [value]) == [value]

    @pytest.mark.parametrize("kind", ["postgresql", "mysql"])
    def test_doubles_are_exact_on_servers(self, kind: str, tmp_path: Path) -> None:
        with fresh_database(kind, tmp_path) as url:
            values = [0.1, 1 / 3, 1.7976931348623157e308, 2.2250738585072014e-308, 1e22, 123456789.123456789]
            assert _round_trip(url, values) == values


def _round_trip(url: str, values: list[float]) -> list[float]:
    """What a database gives back of doubles."""
    rows = [{"study_id": 1, "number": 1, "epoch": e, "train_loss": v, "val_loss": v} for e, v in enumerate(values)]
    query = select(schema.curves.c.train_loss).order_by(schema.curves.c.epoch)
    with opened(url) as database:
        database.write(lambda c: bulk.insert(c, schema.curves, rows))
        return list(database.read(lambda c: c.execute(query).scalars().all()))


class TestRefusals:
    def test_a_missing_folder(self, tmp_path: Path) -> None:
        message = refusal(f"sqlite:///{tmp_path / 'no' / 'tuner.db'}")
        assert f"folder {tmp_path / 'no'} does not exist; create it, or give another --storage" in message

    def test_a_folder_instead_of_a_file(self, tmp_path: Path) -> None:
        assert f"{tmp_path} is a folder; give a file in it" in refusal(f"sqlite:///{tmp_path}")

    def test_a_file_that_is_not_a_database(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("not a database at all, " * 100)
        message = refusal(f"sqlite:///{path}")
        assert "is not an SQLite database" in message
        assert "left as it is; give another --storage" in message
        assert path.read_text().startswith("not a database")

    def test_a_file_with_other_tables_only(self, tmp_path: Path) -> None:
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE customers (id INTEGER)")
        connection.close()
        message = refusal(f"sqlite:///{path}")
        assert "holds other tables (customers) and none of Optuna's" in message
        assert "give another --storage" in message

    def test_a_refused_file_is_left_as_it_is(self, sqlite_url: str, tmp_path: Path) -> None:
        """Not even write-ahead logging is switched on."""
        _run(sqlite_url, "CREATE TABLE customers (id INTEGER)")
        before = (tmp_path / "tuner.db").read_bytes()
        refusal(sqlite_url)
        assert (tmp_path / "tuner.db").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["tuner.db"]

    def test_a_file_that_is_not_there_is_not_made_for_a_reader(self, sqlite_url: str, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"there is no file .*tuner\.db; create a study in it with"):
            open_database(sqlite_url, create=False)
        assert list(tmp_path.iterdir()) == []
        open_database(sqlite_url).close()
        open_database(sqlite_url, create=False).close()
        assert (tmp_path / "tuner.db").exists()

    @pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mysql"])
    def test_tables_of_optunas_names_that_are_not_optunas(self, kind: str, tmp_path: Path) -> None:
        with fresh_database(kind, tmp_path) as url:
            _run(url, "CREATE TABLE studies (title INTEGER)")
            assert "its tables studies are not Optuna's; give a database of its own" in refusal(url)

    def test_another_applications_migrations(self, sqlite_url: str) -> None:
        _run(sqlite_url, "CREATE TABLE alembic_version (version_num VARCHAR(32))")
        _run(sqlite_url, "CREATE TABLE studies (title INTEGER)")
        _run(sqlite_url, "INSERT INTO alembic_version VALUES ('abc123')")
        assert "its schema is abc123; Tuner knows Optuna's v3.2.0.a: give a database of its own" in refusal(sqlite_url)

    def test_an_older_optuna_schema(self, url: str) -> None:
        with opened(url):
            pass
        _run(url, "UPDATE alembic_version SET version_num = 'v2.6.0.a'")
        message = refusal(url)
        assert (
            "its schema is v2.6.0.a; Tuner knows Optuna's v3.2.0.a: upgrade it with: optuna storage upgrade" in message
        )

    def test_another_tuner_schema(self, sqlite_url: str) -> None:
        with opened(sqlite_url):
            pass
        _run(sqlite_url, "UPDATE tuner_schema SET version = 99")
        assert "made by a Tuner with schema 99, this one has 2; use that Tuner" in refusal(sqlite_url)

    def test_a_server_database_may_hold_other_tables(self, tmp_path: Path) -> None:
        with fresh_database("postgresql", tmp_path) as url:
            _run(url, "CREATE TABLE customers (id INTEGER)")
            with opened(url) as database:
                names = set(database.read(lambda c: inspect(c).get_table_names()))
            assert {"customers", "trials", "tuner_slots"} <= names

    def test_an_optuna_database_is_ours_too(self, url: str) -> None:
        import optuna

        optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False)).engine.dispose()
        with opened(url) as database:
            assert "tuner_slots" in database.read(lambda c: inspect(c).get_table_names())

    def test_a_read_only_database(self, tmp_path: Path) -> None:
        url = f"sqlite:///file:{tmp_path / 'tuner.db'}?mode=ro&uri=true"
        with opened(f"sqlite:///{tmp_path / 'tuner.db'}"), opened(url) as database:
            assert database.read(lambda c: c.execute(select(schema.slots)).all()) == []
            with pytest.raises(StorageError, match=r"the database is read-only.*make the file and its folder writable"):
                database.write(lambda c: c.execute(schema.slots.delete()) and None)

    def test_a_locked_database(self, sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with opened(sqlite_url, 1.5) as database:
            holder = sqlite3.connect(tmp_path / "tuner.db", isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            try:
                with caplog.at_level(logging.WARNING), pytest.raises(StorageError) as caught:
                    database.write(lambda c: c.execute(schema.slots.delete()) and None)
                assert "is locked by another process (waited " in str(caught.value)
                assert "end that process, or try again" in str(caught.value)
                assert "waiting for sqlite" in caplog.text
                assert database.read(lambda c: c.execute(select(schema.slots)).all()) == []  # readers are not held up
            finally:
                holder.close()
            database.write(lambda c: c.execute(schema.slots.delete()) and None)

    def test_a_new_database_that_is_locked(self, sqlite_url: str, tmp_path: Path) -> None:
        holder = sqlite3.connect(tmp_path / "tuner.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        try:
            assert "is locked by another process" in refusal(sqlite_url)
        finally:
            holder.close()

    def test_a_server_that_does_not_answer(self) -> None:
        for scheme in ("postgresql", "mysql"):
            message = refusal(f"{scheme}://tuner:Sekret99@127.0.0.1:1/db")
            assert "cannot be reached: the server does not answer (waited " in message
            assert "check that the server runs" in message
            assert "Sekret99" not in message

    @pytest.mark.parametrize("kind", ["postgresql", "mysql"])
    def test_a_server_without_this_database(self, kind: str) -> None:
        require(kind)
        url = make_url(server_url(kind)).set(database="tuner_nowhere").render_as_string(hide_password=False)
        started = time.monotonic()
        message = refusal(url, 20.0)
        assert "no such database" in message
        assert "CREATE DATABASE tuner_nowhere" in message
        assert time.monotonic() - started < 10  # seconds: waiting does not help, so nobody waits

    def test_letters_that_the_database_does_not_have(self, tmp_path: Path) -> None:
        with fresh_database("mysql", tmp_path) as url:
            engine = create_engine(parse_url(url), poolclass=NullPool)
            with engine.connect() as connection:
                connection.exec_driver_sql(f"ALTER DATABASE {make_url(url).database} CHARACTER SET latin1")
            spec = study(study={"name": "数字"})
            with StudyManager(url, tmp_path) as manager:
                with pytest.raises(StorageError, match=r"does not have these letters .* CHARACTER SET utf8mb4"):
                    manager.create(spec, data_root=tmp_path, data_digest="d", split_digest="s")
                assert manager.names() == []

    def test_a_wrong_password_is_not_shown(self) -> None:
        require("mysql")
        url = make_url(server_url("mysql")).set(username="nobody", password="Sekret99")
        message = refusal(url.render_as_string(hide_password=False), 20.0)
        assert "refused the user or the password" in message
        assert "Sekret99" not in message

    def test_a_driver_that_quotes_the_password_is_not_quoted(self) -> None:
        error = OperationalError("SELECT 1", {}, psycopg.OperationalError('invalid connection option "Sekret99"'))
        told = str(explained(error, parse_url("postgresql://me:Sekret99@h/d")))
        assert 'invalid connection option "***"' in told
        assert "Sekret99" not in told

    def test_shown_urls_hide_passwords_and_queries(self) -> None:
        assert shown(parse_url("postgresql://me:Sekret99@h/d?sslpassword=Sekret99")) == (
            "postgresql+psycopg://me:***@h/d"
        )


def test_passwords_may_hold_any_character(tmp_path: Path) -> None:
    with fresh_database("postgresql", tmp_path) as plain:
        url = make_url(plain).set(password="p{x}%:/@ é#?")  # this server trusts everybody, whatever they say
        with opened(url.render_as_string(hide_password=False)) as database:
            storage = database.optuna_storage()
            storage.engine.dispose()
            assert "p{x}" not in str(database)


class TestTransactions:
    def test_a_cut_connection_is_tried_again_as_a_whole(self, tmp_path: Path) -> None:
        with fresh_database("postgresql", tmp_path) as url, opened(url) as database:
            tries = []

            def work(connection: Any) -> int:
                tries.append(1)
                row = {"study_id": 1, "number": len(tries), "epoch": 1, "train_loss": 0.0, "val_loss": 0.0}
                bulk.insert(connection, schema.curves, [row])
                if len(tries) == 1:
                    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
                    _run(url, f"SELECT pg_terminate_backend({pid})")
                return len(connection.execute(select(schema.curves)).all())

            assert database.write(work) == 1
            assert len(tries) == 2
            numbers = database.read(lambda c: c.execute(select(schema.curves.c.number)).scalars().all())
            assert numbers == [2]

    @pytest.mark.parametrize("kind", ["postgresql", "mysql"])
    def test_a_deadlock_is_tried_again(self, kind: str, tmp_path: Path) -> None:
        with fresh_database(kind, tmp_path) as url, opened(url, 20) as database:
            rows = [{"study_id": 1, "number": n, "epoch": 1, "train_loss": 0.0, "val_loss": 0.0} for n in (1, 2)]
            database.write(lambda c: bulk.insert(c, schema.curves, rows))
            barrier, tries = threading.Barrier(2), []

            def one(order: tuple[int, int]) -> None:
                first = True

                def work(connection: Any) -> None:
                    nonlocal first
                    tries.append(order)
                    for number in order:
                        change = schema.curves.update().where(schema.curves.c.number == number)
                        connection.execute(change.values(train_loss=schema.curves.c.train_loss + 1))
                        if first:
                            first = False
                            barrier.wait(10)

                database.write(work)

            threads = [threading.Thread(target=one, args=(order,)) for order in ((1, 2), (2, 1))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert len(tries) == 3
            losses = database.read(lambda c: c.execute(select(schema.curves.c.train_loss)).scalars().all())
            assert losses == [2.0, 2.0]

    def test_a_held_lock_is_waited_for(self, tmp_path: Path) -> None:
        with fresh_database("postgresql", tmp_path) as url, opened(url, 1.0) as database:
            with database.engine.connect() as holder, holder.begin():
                holder.execute(text("LOCK TABLE tuner_slots IN ACCESS EXCLUSIVE MODE"))
                with pytest.raises(StorageError, match="locked by another process"):
                    database.write(lambda c: c.execute(schema.slots.delete()) and None)
            database.write(lambda c: c.execute(schema.slots.delete()) and None)

    def test_an_error_of_the_work_itself_rolls_back(self, sqlite_url: str) -> None:
        row = {"study_id": 1, "number": 1, "epoch": 1, "train_loss": 0.0, "val_loss": 0.0}
        with opened(sqlite_url) as database:

            def work(connection: Any) -> None:
                bulk.insert(connection, schema.curves, [row])
                raise KeyError("mine")

            with pytest.raises(KeyError, match="mine"):
                database.write(work)
            assert database.read(lambda c: c.execute(select(schema.curves)).all()) == []

    def test_a_forked_child_does_not_use_its_parents_connections(self, sqlite_url: str) -> None:
        with opened(sqlite_url) as database:
            database.read(lambda c: c.execute(select(schema.slots)).all())
            context = multiprocessing.get_context("fork")
            child = context.Process(target=_in_child, args=(database,))
            child.start()
            child.join(30)
            assert child.exitcode == 0
            assert database.read(lambda c: c.execute(select(schema.slots)).all()) == []


def _in_child(database: Database) -> None:
    assert database.engine.pool.status().startswith("Pool size: 5  Connections in pool: 0")
    database.write(lambda c: c.execute(schema.slots.delete()) and None)
    os._exit(0)


def _run(url: str, statement: str) -> None:
    from sqlalchemy import NullPool, create_engine

    engine = create_engine(parse_url(url), poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
