"""Behind a PgBouncer that pools transactions: more workers than connections, and every promise is kept."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.cli.command import wait_until
from tests.storage import fleet
from tests.storage.pgbouncer import CONNECTIONS, pgbouncer, why_no_pgbouncer
from tests.storage.servers import fresh_database, required
from tuner.errors import StorageError
from tuner.manager import StudyManager
from tuner.storage import database as database_module
from tuner.storage.database import open_database

WORKERS = 8


@pytest.fixture
def pooled(tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database behind a PgBouncer."""
    required(why_no_pgbouncer())
    with fresh_database("postgresql", tmp_path) as url, pgbouncer(url) as behind:
        yield behind


def test_more_workers_than_connections(pooled: str, tmp_path: Path) -> None:
    url, spec, log = f"{pooled}?pgbouncer=true", fleet.make_spec(60), fleet.Log()
    with StudyManager(url, tmp_path) as manager:
        fleet.create(manager, spec)

        def join(pid: int) -> None:
            with StudyManager(url, tmp_path) as own:
                fleet.work(own.ledger("fleet"), own.checkpoints("fleet"), pid=pid, log=log)

        assert WORKERS > CONNECTIONS
        with ThreadPoolExecutor(WORKERS) as pool:
            for job in [pool.submit(join, pid) for pid in range(WORKERS)]:
                job.result()
        fleet.check(manager, spec, pooled, log)


def test_settings_are_those_of_each_transaction(pooled: str) -> None:
    """Two transactions may be on two sessions, and others use them in between."""
    database = open_database(f"{pooled}?pgbouncer=true")
    try:
        names = ("lock_timeout", "statement_timeout", "timezone", "transaction_isolation")
        for _ in range(3):
            found = database.read(lambda c: [c.execute(text(f"SHOW {name}")).scalar() for name in names])
            assert found == ["5s", "1min", "UTC", "read committed"]
    finally:
        database.close()


def test_it_says_what_to_do_where_nobody_said_so(pooled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"this is a PgBouncer, which has no sessions .*\?pgbouncer=true"):
        open_database(pooled)
    # The other half: without it, statements that one session has prepared are looked for in another.
    monkeypatch.setattr(database_module, "_pooled", lambda _: True)
    options = database_module._engine_options
    monkeypatch.setattr(
        database_module,
        "_engine_options",
        lambda *given: {**(made := options(*given)), "connect_args": {**made["connect_args"], "prepare_threshold": 0}},
    )
    with pytest.raises(StorageError, match=r"prepared statement.*\?pgbouncer=true"):
        _use_in_turn(pooled)


def _use_in_turn(url: str) -> None:
    databases = [open_database(url) for _ in range(4)]
    barrier = threading.Barrier(len(databases))

    def read(place: int) -> None:
        barrier.wait()
        for _ in range(20):
            databases[place].read(lambda c: c.execute(text("SELECT :a + 1, pg_sleep(0.002)"), {"a": 1}).all())

    try:
        with ThreadPoolExecutor(len(databases)) as pool:
            for job in [pool.submit(read, place) for place in range(len(databases))]:
                job.result()
    finally:
        for database in databases:
            database.close()


def test_a_process_keeps_one_connection(tmp_path: Path) -> None:
    """64 workers fit into the hundred connections that a PostgreSQL takes by default."""
    with fresh_database("postgresql", tmp_path) as url, StudyManager(url, tmp_path) as manager:
        spec = fleet.make_spec(20)
        fleet.create(manager, spec)
        ledger = manager.ledger("fleet")
        with ThreadPoolExecutor(3) as pool:
            for job in [pool.submit(ledger.outstanding) for _ in range(12)]:
                job.result()
        mine = "FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
        count = text(f"SELECT count(*) {mine}")
        wait_until(lambda: manager._database.read(lambda c: c.execute(count).scalar()) == database_module.POOL_SIZE)
