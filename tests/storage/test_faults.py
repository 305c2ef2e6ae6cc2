"""Trouble with databases: what passes is waited for and said, what stays is explained at once, and nothing is lost."""

import logging
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pymysql
import pytest
from sqlalchemy import make_url, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from tests.chaos.proxy import Proxy
from tests.storage import fleet
from tests.storage.private import PrivatePostgres, programs
from tests.storage.servers import fresh_database, require, server_url
from tuner.errors import StorageError
from tuner.manager import StudyManager
from tuner.storage import database as database_module
from tuner.storage import schema
from tuner.storage.database import Database, explained, open_database, parse_url, passing

ROW = {"study_id": 1, "number": 1, "epoch": 1, "train_loss": 0.0, "val_loss": 0.0}


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    """A PostgreSQL that may be crashed."""
    if programs() is None:
        require("postgresql")
        pytest.skip("a PostgreSQL to crash needs initdb on this machine")
    with PrivatePostgres() as server:
        yield server


@contextmanager
def opened(url: str, patience_s: float = 20.0) -> Iterator[Database]:
    database = open_database(url, patience_s=patience_s, open_patience_s=patience_s)
    try:
        yield database
    finally:
        database.close()


def add(database: Database, number: int) -> None:
    database.write(lambda c: c.execute(schema.curves.insert().values({**ROW, "number": number})) and None)


def numbers(database: Database) -> list[int]:
    query = select(schema.curves.c.number).order_by(schema.curves.c.number)
    return list(database.read(lambda c: c.execute(query).scalars().all()))


def later(seconds: float, call: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


def answer(text: str, invalidated: bool = False, sqlstate: str | None = None) -> DBAPIError:
    """What SQLAlchemy makes of an error of psycopg."""
    original = psycopg.OperationalError(text)
    original.sqlstate = sqlstate
    return OperationalError("SELECT 1", {}, original, connection_invalidated=invalidated)


class TestWhatPasses:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (answer("consuming input failed: SSL error: unexpected eof while reading", True), "connection lost"),
            (answer("SSL connection has been closed unexpectedly", True), "connection lost"),
            (answer("connection failed: SSL SYSCALL error: EOF detected"), "the server does not answer"),
            (answer('connection to server at "ssl.example.com" failed: timeout'), "the server does not answer"),
            (answer("FATAL: the database system is starting up"), "the server is starting up"),
            (answer("FATAL: the database system is not yet accepting connections"), "the server is starting up"),
            (answer("FATAL: the database system is in recovery mode"), "the server is starting up"),
            (answer("FATAL: sorry, too many clients already"), "too many connections"),
            (answer("failed to resolve host 'db': Temporary failure in name resolution"), "the server does not answer"),
            (answer("terminating connection", sqlstate="57P01"), "the server is shutting down"),
            (answer("could not serialize access", sqlstate="40001"), "serialization error"),
            (answer("deadlock detected", sqlstate="40P01"), "deadlock"),
            (answer("connection failure", sqlstate="08006"), "connection lost"),
            (answer('FATAL: password authentication failed for user "tuner"'), None),
            (answer("FATAL: no pg_hba.conf entry for host"), None),
            (answer('FATAL: role "x" does not exist'), None),
            (answer('FATAL: database "x" does not exist'), None),
            (answer("server does not support SSL, but SSL was required"), None),
            (answer("SSL error: certificate verify failed"), None),
            (answer("permission denied for table trials", sqlstate="42501"), None),
            (answer("No space left on device", sqlstate="53100"), None),
        ],
        ids=lambda value: str(value)[:60] if isinstance(value, DBAPIError) else "",
    )
    def test_postgresql(self, error: DBAPIError, reason: str | None) -> None:
        assert passing(error) == reason

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (1213, "deadlock"),
            (1205, "locked by another transaction"),
            (1020, "serialization error"),
            (2013, "connection lost"),
            (4031, "connection lost"),
            (1045, None),
            (1114, None),
            (1290, None),
        ],
    )
    def test_mysql(self, code: int, reason: str | None) -> None:
        assert (
            passing(OperationalError("SELECT 1", {}, pymysql.err.OperationalError(code, "said the server"))) == reason
        )

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (sqlite3.SQLITE_BUSY, "locked by another process"),
            (sqlite3.SQLITE_BUSY_SNAPSHOT, "locked by another process"),
            (sqlite3.SQLITE_PROTOCOL, "locked by another process"),
            (sqlite3.SQLITE_FULL, None),
            (sqlite3.SQLITE_READONLY, None),
            (sqlite3.SQLITE_IOERR, None),
        ],
    )
    def test_sqlite(self, code: int, reason: str | None) -> None:
        original = sqlite3.OperationalError("said SQLite")
        original.sqlite_errorcode = code
        assert passing(OperationalError("SELECT 1", {}, original)) == reason


class TestWaiting:
    def test_pauses_grow_to_a_limit_and_jitter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slept: list[float] = []
        clock = SimpleNamespace(now=0.0)

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            clock.now += seconds

        monkeypatch.setattr(database_module.time, "sleep", sleep)
        monkeypatch.setattr(database_module.time, "monotonic", lambda: clock.now)
        url = parse_url("postgresql://h/d")
        with pytest.raises(StorageError, match="cannot be reached: connection lost"):
            database_module.patiently(_raises(answer("gone", True)), url, 60.0)
        bounds = [min(0.02 * 2**attempt, 2.0) for attempt in range(len(slept))]
        assert all(bound / 2 <= pause <= bound for pause, bound in zip(slept, bounds, strict=True))
        assert len({pause / bound for pause, bound in zip(slept, bounds, strict=True)}) == len(slept), "no two alike"
        assert 60 <= clock.now < 63

    def test_it_says_what_it_waits_for_without_flooding_and_when_it_is_over(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(database_module.time, "sleep", lambda s: setattr(clock, "now", clock.now + s))
        monkeypatch.setattr(database_module.time, "monotonic", lambda: clock.now)

        def call() -> str:
            if clock.now < 30:
                raise answer("FATAL: the database system is starting up")
            return "there"

        with caplog.at_level(logging.WARNING):
            said = database_module.patiently(call, parse_url("postgresql://me:Sekret99@h/d?x=Sekret99"), 60.0)
        assert said == "there"
        lines = [record.getMessage() for record in caplog.records]
        assert lines[0].startswith("waiting for postgresql+psycopg://me:***@h/d: the server is starting up (")
        assert lines[-1].startswith("postgresql+psycopg://me:***@h/d answers again (after 3")
        assert 4 <= len(lines) <= 5  # one after a second, one every ten seconds or so, and the end
        assert "Sekret99" not in caplog.text

    def test_short_trouble_is_not_worth_a_line(self, caplog: pytest.LogCaptureFixture) -> None:
        troubles = [answer("gone", True)] * 2

        def call() -> int:
            if troubles:
                raise troubles.pop()
            return 1

        assert database_module.patiently(call, parse_url("postgresql://h/d"), 5.0) == 1
        assert caplog.records == []

    @pytest.mark.parametrize(
        ("words", "waited_s"), [("Connection refused", 10), ("the database system is starting up", 60)]
    )
    def test_a_server_that_never_answered_is_waited_for_less(
        self, words: str, waited_s: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(database_module.time, "sleep", lambda s: setattr(clock, "now", clock.now + s))
        monkeypatch.setattr(database_module.time, "monotonic", lambda: clock.now)
        with pytest.raises(StorageError, match="cannot be reached"):
            database_module.patiently(_raises(answer(words)), parse_url("postgresql://h/d"), 60.0, 10.0)
        assert waited_s <= clock.now < waited_s + 3

    def test_a_machine_that_vanishes_is_noticed(self, server: PrivatePostgres) -> None:
        with opened(server.url()) as database, database.engine.connect() as connection:
            said = connection.connection.dbapi_connection.info.get_parameters()
        assert {key: said[key] for key in ("keepalives_idle", "keepalives_interval", "keepalives_count")} == {
            "keepalives_idle": "10",
            "keepalives_interval": "5",
            "keepalives_count": "4",
        }
        assert said["tcp_user_timeout"] == "30000"


def _raises(error: Exception) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


class TestRestarts:
    def test_in_the_middle_of_a_transaction(self, server: PrivatePostgres) -> None:
        with _database(server) as url, opened(url) as database:
            tries = []

            def work(connection: Any) -> None:
                tries.append(1)
                connection.execute(schema.curves.insert().values(ROW))
                if len(tries) == 1:
                    server.restart()
                connection.execute(schema.curves.insert().values({**ROW, "number": 2}))

            database.write(work)
            assert len(tries) == 2
            assert numbers(database) == [1, 2]

    def test_over_an_encrypted_connection(self, server: PrivatePostgres) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("a certificate needs openssl")
        with encrypted(server), _database(server) as url, opened(url) as database:
            assert database.read(lambda c: c.execute(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
                                 .scalar()) is True  # fmt: skip
            tries = []

            def work(connection: Any) -> None:
                tries.append(1)
                connection.execute(schema.curves.insert().values(ROW))
                if len(tries) == 1:
                    server.restart()
                connection.execute(schema.curves.insert().values({**ROW, "number": 2}))

            database.write(work)
            assert numbers(database) == [1, 2]

    def test_while_the_server_is_down(self, server: PrivatePostgres, caplog: pytest.LogCaptureFixture) -> None:
        with _database(server) as url, opened(url) as database:
            add(database, 1)
            server.stop()
            timer = later(3.0, server.start)
            try:
                with caplog.at_level(logging.WARNING):
                    add(database, 2)
            finally:
                timer.join()
            assert numbers(database) == [1, 2]
            assert "waiting for postgresql" in caplog.text
            assert "answers again" in caplog.text

    def test_at_start_up(self, server: PrivatePostgres, caplog: pytest.LogCaptureFixture) -> None:
        with _database(server) as url:
            server.stop()
            timer = later(3.0, server.start)
            try:
                with caplog.at_level(logging.WARNING), opened(url) as database:
                    add(database, 1)
                    assert numbers(database) == [1]
            finally:
                timer.join()
            assert "waiting for postgresql" in caplog.text

    def test_while_the_tables_are_made(self, server: PrivatePostgres) -> None:
        for moment in (0.05, 0.15, 0.3):
            with _database(server) as url:
                timer = later(moment, server.restart)
                try:
                    with opened(url) as database:
                        timer.join()
                        add(database, 1)
                        assert numbers(database) == [1]
                finally:
                    timer.join()

    def test_a_study_is_created_once_although_the_server_restarts(
        self, server: PrivatePostgres, tmp_path: Path
    ) -> None:
        spec = fleet.make_spec(2000, pruner="none")
        with _database(server) as url, StudyManager(url, tmp_path, patience_s=30) as manager:
            timer = later(0.03, server.restart)
            try:
                assert manager.create(spec, data_root=tmp_path, data_digest="d", split_digest="s") in (True, False)
            finally:
                timer.join()
            assert len(manager.trials("fleet")) == 2000
            assert len(fleet.read_optuna(url, "fleet").trials) == 0


@contextmanager
def _database(server: PrivatePostgres) -> Iterator[str]:
    name = f"t{os.urandom(6).hex()}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server.url(name)


@contextmanager
def encrypted(server: PrivatePostgres) -> Iterator[None]:
    """Let the server speak TLS."""
    folder = server._home / "data"
    key, certificate = folder / "server.key", folder / "server.crt"
    command = ["openssl", "req", "-new", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    key.chmod(0o600)
    if server._user is not None:
        shutil.chown(key, server._user)
        shutil.chown(certificate, server._user)
    before = server._options
    server._options += " -c ssl=on"
    server.restart()
    try:
        yield
    finally:
        server._options = before
        server.restart()


class TestCutConnections:
    @pytest.fixture(params=["postgresql", "mysql"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Proxy, str, str]]:
        """A proxy, the URL through it, and the URL past it."""
        require(request.param)
        parsed = make_url(server_url(request.param))
        default = {"postgresql": 5432, "mysql": 3306}[request.param]
        with fresh_database(request.param, tmp_path) as url, Proxy(parsed.host or "127.0.0.1",
                                                                   parsed.port or default) as proxy:  # fmt: skip
            through = make_url(url).set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
            yield proxy, through, url

    def test_every_step_of_a_study_survives_an_answer_that_is_lost(
        self, place: tuple[Proxy, str, str], tmp_path: Path
    ) -> None:
        proxy, through, url = place
        spec = fleet.make_spec(9)
        log = fleet.Log()
        with StudyManager(through, tmp_path, patience_s=20) as manager:

            def cut(call: Callable[[], Any]) -> Any:
                before = proxy.cut_commits
                proxy.cut_next_commits()
                said = call()
                assert proxy.cut_commits == before + 1, "the cut hit no commit"
                return said

            ledger = cut(lambda: fleet.create(manager, spec))
            worker = cut(lambda: ledger.register("host", 1, "cpu", "0"))
            assert len(manager.workers("fleet")) == 1
            claims = cut(lambda: ledger.claim(worker, limit=9, lease_s=60))
            assert [(claim.number, claim.token) for claim in claims] == [(n, 1) for n in range(9)]
            rows = [row for claim in claims for row in fleet.curve(claim, 0, 1)]
            assert cut(lambda: ledger.record(worker, rows)) == frozenset()
            store = manager.checkpoints("fleet")
            results = [fleet.result(claim) for claim in claims]
            outcome = cut(lambda: ledger.commit(worker, results, (), store.write(fleet.lanes(claims))))
            assert outcome.lost == frozenset()
            log.accepted.update((claim.number, 0) for claim in claims)
            again = ledger.claim(worker, limit=9, lease_s=60)
            states = [(claim.number, claim.token, claim.epochs) for claim in again]
            assert cut(lambda: ledger.release(worker, states)).lost == frozenset()
            fleet.work(ledger, store, log=log)
            fleet.check(manager, spec, url, log)

    def test_a_cut_at_any_moment(self, place: tuple[Proxy, str, str], tmp_path: Path) -> None:
        proxy, through, url = place
        spec = fleet.make_spec(20)
        with StudyManager(through, tmp_path, patience_s=20) as manager:
            ledger = fleet.create(manager, spec)
            over = threading.Event()

            def harm() -> None:
                while not over.wait(0.03):
                    proxy.cut()

            thread = threading.Thread(target=harm)
            thread.start()
            try:
                timer = later(3.0, over.set)  # then calm, so that it ends
                log = fleet.Log()
                fleet.work(ledger, manager.checkpoints("fleet"), log=log, limit=3)
            finally:
                over.set()
                thread.join()
                timer.join()
            fleet.check(manager, spec, url, log)


class TestStoppedInATransaction:
    @pytest.mark.parametrize("kind", ["postgresql", "mysql"])  # SQLite's lock is its process's until that ends
    def test_its_locks_are_released_and_the_others_go_on(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As by SIGSTOP: the transaction stays open, its client says nothing any more."""
        monkeypatch.setattr(database_module, "IDLE_S", 2.0)
        spec = fleet.make_spec(9)
        with fresh_database(kind, tmp_path) as url, StudyManager(url, tmp_path, patience_s=20) as manager:
            ledger = fleet.create(manager, spec)
            stopped = manager._database.engine.connect()
            try:
                ledger._rungs.take_turns(stopped)
                fleet.work(ledger, manager.checkpoints("fleet"))
            finally:
                stopped.invalidate()
                stopped.close()
            fleet.check(manager, spec, url)


class TestErrorsOfTheServer:
    @pytest.mark.parametrize(("sqlstate", "times"), [("40001", 3), ("40P01", 2), ("55P03", 1)])
    def test_what_it_may_recover_from_is_tried_again(self, sqlstate: str, times: int, tmp_path: Path) -> None:
        with fresh_database("postgresql", tmp_path) as url, opened(url) as database:
            _fail_inserts(database, sqlstate, "said the server", times)
            add(database, 1)
            assert numbers(database) == [1]

    @pytest.mark.parametrize(
        ("sqlstate", "words", "says"),
        [
            ("53100", "could not extend file: No space left on device", "the disk is full; nothing that was stored is"),
            ("25006", "cannot execute INSERT in a read-only transaction", "the database is read-only"),
        ],
    )
    def test_what_stays_is_said_at_once_and_nothing_is_lost(
        self, sqlstate: str, words: str, says: str, tmp_path: Path
    ) -> None:
        with fresh_database("postgresql", tmp_path) as url, opened(url) as database:
            add(database, 1)
            _fail_inserts(database, sqlstate, words, 1)
            began = time.monotonic()
            with pytest.raises(StorageError, match=says):
                add(database, 2)
            assert time.monotonic() - began < 5
            assert numbers(database) == [1]
            add(database, 3)  # once there is room again
            assert numbers(database) == [1, 3]

    def test_a_server_that_only_reads(self, server: PrivatePostgres) -> None:
        with _database(server) as url, opened(url) as database:
            add(database, 1)
            with psycopg.connect(server.url(), autocommit=True) as connection:
                name = make_url(url).database
                connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            database.close()
            with pytest.raises(StorageError, match=r"the database is read-only.*give another --storage"):
                add(database, 2)
            assert numbers(database) == [1]

    def test_a_full_disk_under_sqlite(self, sqlite_url: str, tmp_path: Path) -> None:
        spec = fleet.make_spec(2000, pruner="none")
        with StudyManager(sqlite_url, tmp_path, patience_s=5) as manager:
            database = manager._database
            pages = database.read(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar())
            limit: Callable[[int], Any] = lambda most: database.read(  # noqa: E731
                lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {most}").scalar()
            )
            limit(pages + 4)
            with pytest.raises(StorageError, match="the disk is full; nothing that was stored is lost: free some"):
                fleet.create(manager, spec)
            assert manager.names() == []
            limit(2**30)
            fleet.create(manager, spec)
            assert len(manager.trials("fleet")) == 2000

    def test_words_of_mysql(self) -> None:
        url = parse_url("mysql://h/d")
        for code, words, says in (
            (1290, "The MariaDB server is running with the --read-only option", "the database is read-only"),
            (1114, "The table 'trials' is full", "the disk is full"),
            (1021, "Disk full (/tmp); waiting for someone to free some space", "the disk is full"),
            (1030, 'Got error 28 "No space left on device" from storage engine InnoDB', "the disk is full"),
        ):
            error = OperationalError("INSERT", {}, pymysql.err.OperationalError(code, words))
            assert says in str(explained(error, url))


def _fail_inserts(database: Database, sqlstate: str, words: str, times: int) -> None:
    """The next inserts of learning curves fail so often; a sequence counts, for it is not rolled back."""

    def work(connection: Any) -> None:
        connection.exec_driver_sql("CREATE SEQUENCE failures")
        connection.exec_driver_sql(
            f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF nextval('failures') <= {times} THEN RAISE EXCEPTION '{words}' USING ERRCODE = '{sqlstate}'; END IF; "
            f"RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER f BEFORE INSERT ON tuner_curves FOR EACH ROW EXECUTE FUNCTION fail()"
        )

    database.write(work)
