"""The faults: what is done to workers, databases, connections and files, drawn at random from a seed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import SQLAlchemyError

from tests.chaos.proxy import Proxy
from tests.storage.private import PrivatePostgres
from tuner.storage.database import parse_url

Database = Callable[[], sqlalchemy.Engine]


class Victims(Protocol):
    """The worker processes, some of which may have ended already."""

    def pids(self) -> list[int]: ...


class Injector:
    """Injects one fault after the other in a thread of its own until it is closed; ``counts`` says what and how often.

    url: the database itself, past the proxy. server: a PostgreSQL that may be crashed. proxy: what workers connect to.
    """

    def __init__(
        self,
        *,
        url: str,
        seed: int,
        lease_s: float,
        victims: Victims,
        checkpoints: Callable[[], Path | None],
        proxy: Proxy | None = None,
        server: PrivatePostgres | None = None,
        pause_s: tuple[float, float] = (0.3, 1.0),
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._url = parse_url(url)
        self._rng = random.Random(seed)
        self._lease_s = lease_s
        self._victims = victims
        self._checkpoints = checkpoints
        self._proxy = proxy
        self._server = server
        self._pause_s = pause_s
        self._engine = create_engine(self._url, poolclass=NullPool)
        self._over = threading.Event()
        self._helpers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="injector", daemon=True)
        self._faults: list[tuple[str, Callable[[], bool], float]] = [
            ("SIGKILL", self._kill, 2),
            ("SIGSTOP past the lease", self._stop_past_lease, 2),
            ("SIGTERM", self._terminate_worker, 1),
            ("held lock", self._hold_lock, 2),
            ("checkpoint corrupted", self._corrupt, 1),
            ("checkpoint deleted", self._delete, 1),
        ]
        if self._url.get_backend_name() != "sqlite":
            self._faults.append(("connections ended by the server", self._end_connections, 2))
        if proxy is not None:
            self._faults.append(("connection cut after COMMIT", self._cut_commit, 3))
            self._faults.append(("all connections cut", self._cut_all, 1))
            self._faults.append(("connections refused", self._refuse, 1))
        if server is not None:
            self._faults.append(("restart -m immediate", self._restart, 1))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """No more faults; those that take a while have ended."""
        self._over.set()
        self._thread.join()
        for helper in self._helpers:
            helper.join()
        if self._proxy is not None:
            self._proxy.calm()
        self._engine.dispose()

    def _run(self) -> None:
        names = [name for name, _, _ in self._faults]
        calls = {name: call for name, call, _ in self._faults}
        weights = [weight for _, _, weight in self._faults]
        while not self._over.wait(self._rng.uniform(*self._pause_s) * (1 if self._victims.pids() else 3)):
            (name,) = self._rng.choices(names, weights)
            with suppress(SQLAlchemyError, OSError):  # the victim, or the server, was not there at this moment
                if calls[name]():
                    self.counts[name] += 1

    def _later(self, call: Callable[[], None]) -> None:
        helper = threading.Thread(target=call, daemon=True)
        self._helpers.append(helper)
        helper.start()

    def _victim(self) -> int | None:
        pids = self._victims.pids()
        return self._rng.choice(pids) if pids else None

    # Workers

    def _signal(self, number: signal.Signals) -> int | None:
        if (pid := self._victim()) is not None:
            os.kill(pid, number)
        return pid

    def _kill(self) -> bool:
        return self._signal(signal.SIGKILL) is not None

    def _terminate_worker(self) -> bool:
        return self._signal(signal.SIGTERM) is not None

    def _stop_past_lease(self) -> bool:
        pid = self._signal(signal.SIGSTOP)
        if pid is None:
            return False
        still_s = self._lease_s * self._rng.uniform(1.2, 2.0)

        def go_on() -> None:
            time.sleep(still_s)
            with suppress(OSError):
                os.kill(pid, signal.SIGCONT)

        self._later(go_on)
        return True

    # The database

    def _hold_lock(self) -> bool:
        seconds = self._rng.uniform(0.2, 2.0)
        what = {
            "sqlite": ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"],
            "postgresql": [
                "SELECT * FROM tuner_slots FOR UPDATE",
                "SELECT * FROM tuner_studies FOR UPDATE",
                "SELECT * FROM studies FOR UPDATE",
                "LOCK TABLE tuner_slots IN ACCESS EXCLUSIVE MODE",
                "LOCK TABLE trials IN EXCLUSIVE MODE",
            ],
            "mysql": ["SELECT * FROM tuner_slots FOR UPDATE", "SELECT * FROM tuner_studies FOR UPDATE"],
        }[self._url.get_backend_name()]
        statement = self._rng.choice(what)

        def hold() -> None:
            with suppress(SQLAlchemyError), self._engine.connect() as connection:
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql("SET lock_timeout = '2s'")
                connection.exec_driver_sql(statement)
                self._over.wait(seconds)
                connection.rollback()

        self._later(hold)
        return True

    def _end_connections(self) -> bool:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if connection.dialect.name == "postgresql":
                query = (
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                end = "SELECT pg_terminate_backend({})"
            else:
                query = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
                end = "KILL {}"
            ids = sorted(connection.exec_driver_sql(query).scalars().all())
            chosen = self._rng.sample(ids, k=-(-len(ids) // 2))
            for one in chosen:
                with suppress(SQLAlchemyError):
                    connection.exec_driver_sql(end.format(int(one)))
        return bool(chosen)

    def _restart(self) -> bool:
        assert self._server is not None
        self._server.restart()
        return True

    # Connections

    def _cut_commit(self) -> bool:
        assert self._proxy is not None
        self._proxy.cut_next_commits(self._rng.randint(1, 2))
        return True

    def _cut_all(self) -> bool:
        assert self._proxy is not None
        return self._proxy.cut() > 0

    def _refuse(self) -> bool:
        assert self._proxy is not None
        self._proxy.refuse(self._rng.uniform(0.1, 1.5))
        return True

    # Files

    def _file(self) -> Path | None:
        folder = self._checkpoints()
        files = sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else []
        return self._rng.choice(files) if files else None

    def _corrupt(self) -> bool:
        if (path := self._file()) is None:
            return False
        content = bytearray(path.read_bytes())
        content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
        with path.open("r+b") as file:
            file.write(content)
        return True

    def _delete(self) -> bool:
        if (path := self._file()) is None:
            return False
        path.unlink()
        return True


def describe(counts: Counter[str] | dict[str, Any]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items())) or "nothing"
