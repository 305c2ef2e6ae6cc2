"""Bad input: one clear message on standard error, exit code 2 (or 1 for a database's trouble), nothing lost."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import TINY, refused, tuner, tuner_json, write_study
from tuner.manager import StudyManager

pytestmark = pytest.mark.usefixtures("workdir")

LEARNING_RATE = "learning_rate = { low = 1e-3, high = 1e-1, log = true }"
CLEAN = [f"{i},{i * i},{i % 2}" for i in range(20)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials = 3", "trails = 3", "search.trails: unknown key; did you mean trials?"),
        (LEARNING_RATE, "learning_rate = { low = 1.0, high = 0.1 }", "space.learning_rate: low 1.0 is above high 0.1"),
        ("depth = 1", "depth = 1\ndropout = { low = 0, high = 0.5, log = true }", "space.dropout: log needs low > 0"),
        ('sampler = "random"', 'sampler = "grid"', "space.learning_rate: a grid needs a step, or a list of choices"),
        ("sklearn:iris", "none.csv", "none.csv"),
        ("[study]", "[study", "not valid TOML"),
    ],
)
def test_study_file(old: str, new: str, message: str) -> None:
    assert message in refused("check", write_study(TINY.replace(old, new)))


def test_all_problems_at_once() -> None:
    study = write_study(TINY.replace("trials = 3", "trials = 0").replace("width = 8", "wide = 8"))
    message = refused("run", study)
    assert "3 problems" in message
    assert all(path in message for path in ("search.trials", "space.wide", "space.width"))


def test_overrides_are_checked() -> None:
    assert "search.trials: " in refused("check", write_study(), "--trials", "0")


def test_no_study_file() -> None:
    assert refused("run", "none.toml") == "error: none.toml: no such study file\n"


@pytest.mark.parametrize(
    ("target", "rows", "message"),
    [
        ("z", CLEAN, "'z'"),
        ("y", ["1,inf,0", *CLEAN], "'b'"),
        ("y", ["1,1,2", *CLEAN], "class '2' has 1 row"),
        ("y", CLEAN[:2], "x.csv: has 2 rows; a table needs at least 3, to train, validate and test on"),
        ("y", CLEAN[:3], "a class needs 3 rows to be in train, val, test; class '0' has 2 rows"),
    ],
    ids=["missing target", "infinity", "single member", "too few rows", "just enough rows, too few of a class"],
)
def test_data_file(target: str, rows: list[str], message: str) -> None:
    Path("x.csv").write_text("\n".join(["a,b,y", *rows, ""]))
    study = write_study(TINY.replace("sklearn:iris", "x.csv").replace("[training]", f'target = "{target}"\n[training]'))
    assert message in refused("check", study)
    assert message in refused("run", study, "--quiet")
    assert tuner_json("studies") == []


def test_empty_split() -> None:
    split = "split = { train = 0.998, val = 0.001, test = 0.001 }\n[training]"
    assert "every part needs a row; val = 0.001 of 150 rows is none" in refused(
        "check", write_study(TINY.replace("[training]", split))
    )


@pytest.mark.parametrize("verb", ["show", "trials", "best", "evaluate", "worker", "workers", "stop", "retry", "delete"])
def test_unknown_study(verb: str) -> None:
    tuner("create", write_study())
    assert "no study 'tinny' in sqlite:///tuner.db; did you mean tiny?" in refused(
        verb, "tinny", *(["--quiet"] if verb == "worker" else [])
    )


def test_unknown_device() -> None:
    tuner("create", write_study())
    assert "device 'abacus' is not known" in refused("worker", "tiny", "--device", "abacus", "--quiet")


def test_no_database_url() -> None:
    assert "storage: not a database URL" in refused("studies", "--storage", "tuner.db")


def test_database_that_is_not_ours() -> None:
    with sqlite3.connect("photos.db") as connection:
        connection.execute("CREATE TABLE photos (id)")
    connection.close()
    assert "none of Optuna's" in refused("create", write_study(), "--storage", "sqlite:///photos.db", code=1)
    connection = sqlite3.connect("photos.db")
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("photos",)]
    connection.close()


def test_file_that_is_no_database() -> None:
    Path("notes.txt").write_text("not a database\n" * 100)
    message = refused("studies", "--storage", "sqlite:///notes.txt", code=1)
    assert "not an SQLite database" in message
    assert Path("notes.txt").read_text() == "not a database\n" * 100


def test_locked_database(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner("create", write_study())
    _impatient(monkeypatch)
    connection = sqlite3.connect("tuner.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    assert "the database is locked by another process" in refused("stop", "tiny", code=1)
    connection.close()
    tuner("stop", "tiny")


def test_read_only_database() -> None:
    tuner("create", write_study())
    read_only = "sqlite:///file:tuner.db?mode=ro&uri=true"
    assert "the database is read-only" in refused("stop", "tiny", "--storage", read_only, code=1)
    assert tuner_json("show", "tiny", "--storage", read_only)["name"] == "tiny"


def test_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    _impatient(monkeypatch)
    url = "postgresql://me:secret-word@127.0.0.1:1/db"
    assert "secret-word" not in refused("studies", "--storage", url, code=1)


@pytest.mark.parametrize(
    "words",
    [
        "studies",
        *(f"{verb} x" for verb in ("show", "trials", "best", "workers", "worker", "evaluate", "stop", "retry")),
        "replay x 0",
        "delete x --yes",
    ],
)
def test_who_only_reads_makes_no_database(words: str) -> None:
    message = refused(*words.split(), "--storage", "sqlite:///typo.db", code=1)
    assert "sqlite:///typo.db: there is no file typo.db; create a study in it with tuner create" in message
    assert "or give another --storage" in message
    assert list(Path().iterdir()) == []


def test_who_only_reads_makes_no_tables() -> None:
    """A database of Optuna's alone is not ours to change before a study is created in it."""
    import optuna

    optuna.storages.RDBStorage("sqlite:///optuna.db").engine.dispose()
    before = Path("optuna.db").read_bytes()
    message = refused("studies", "--storage", "sqlite:///optuna.db", code=1)
    assert "sqlite:///optuna.db: it holds no studies of Tuner; create one with tuner create" in message
    assert Path("optuna.db").read_bytes() == before
    tuner("create", write_study(), "--storage", "sqlite:///optuna.db")
    assert "tiny" in tuner("studies", "--storage", "sqlite:///optuna.db").stdout


def test_evaluate_while_trials_are_missing() -> None:
    tuner("create", write_study())
    assert "study 'tiny' is created: the test set opens when the search is over" in refused("evaluate", "tiny", code=2)
    tuner("stop", "tiny")
    assert "has no completed trial" in refused("evaluate", "tiny", code=3)
    assert "has no completed trial" in refused("best", "tiny", code=3)


def test_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a part\nin two lines")

    tuner("create", write_study())
    monkeypatch.setattr(StudyManager, "summaries", fail)
    message = refused("studies", code=1)
    assert message.splitlines()[0] == "error: ZeroDivisionError: a part in two lines"
    assert "--debug" in message
    debugged = tuner("--debug", "studies", code=1).stderr
    assert "Traceback (most recent call last)" in debugged
    assert debugged.endswith("error: ZeroDivisionError: a part in two lines\n")


def test_debug_shows_where_an_error_is_from() -> None:
    assert "Traceback" in tuner("--debug", "show", "none", code=1).stderr


def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a database no longer than a moment."""
    monkeypatch.setattr(StudyManager.__init__, "__kwdefaults__", {"create": True, "patience_s": 0.1})
