"""Secrets stay secret, values stay values, and nothing that is read can run."""

import ast
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, event, func, inspect, make_url, select

from tests.cli.command import DEADLINE_S, ROOT, TINY, start, tuner, wait_until
from tests.storage import fleet
from tests.storage.servers import fresh_database
from tuner.cli.secrets import hide_argument, password_of
from tuner.manager import StudyManager
from tuner.storage import schema
from tuner.storage.database import parse_url

SECRET = "s3cret-w0rd"
# Long enough for somebody to look at the processes while it runs.
LONG = TINY.replace("trials = 3", "trials = 40").replace("max_epochs = 4", "max_epochs = 40000")


@contextmanager
def with_password(kind: str, folder: Path) -> Iterator[str]:
    """A fresh database whose URL has the secret as its password, which the server may or may not ask for."""
    with fresh_database(kind, folder) as text:
        url = make_url(text)
        user = f"tuner_{uuid.uuid4().hex[:12]}"
        engine = create_engine(parse_url(text), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            if kind == "postgresql":
                connection.exec_driver_sql(f"CREATE ROLE {user} LOGIN PASSWORD '{SECRET}'")
                connection.exec_driver_sql(f"GRANT ALL ON SCHEMA public TO {user}")
            else:
                connection.exec_driver_sql(f"CREATE USER {user}@'%%' IDENTIFIED BY '{SECRET}'")
                connection.exec_driver_sql(f"GRANT ALL ON {url.database}.* TO {user}@'%%'")
        try:
            yield url.set(username=user, password=SECRET).render_as_string(hide_password=False)
        finally:
            with engine.connect() as connection:
                if kind == "postgresql":
                    connection.exec_driver_sql(f"DROP OWNED BY {user}")
                    connection.exec_driver_sql(f"DROP ROLE {user}")
                else:
                    connection.exec_driver_sql(f"DROP USER {user}@'%%'")


def places(words: str, url: str, folder: Path, output: str) -> set[str]:
    """Where a text is found: in the output, in which table, in which file."""
    found = {"output"} if words in output else set()
    engine = create_engine(parse_url(url), poolclass=NullPool)
    with engine.connect() as connection:
        for table in inspect(connection).get_table_names():
            rows = connection.exec_driver_sql(f"SELECT * FROM {table}").all()
            if words in repr([tuple(row) for row in rows]):
                found.add(f"table {table}")
    for path in folder.rglob("*"):
        if path.is_file() and words.encode() in path.read_bytes():
            found.add(f"file {path.relative_to(folder)}")
    return found


def arguments(pid: int) -> str:
    """What the list of processes shows of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return "\n".join(Path(f"/proc/{one}/cmdline").read_text().replace("\0", " ") for one in (pid, *children))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
@pytest.mark.usefixtures("workdir")
def test_a_password_is_nowhere(kind: str, tmp_path: Path) -> None:
    """Not in output with all that can be logged, the tables, the files, nor in the list of processes."""
    study = Path("tiny.toml")
    study.write_text(LONG)
    with with_password(kind, tmp_path) as url:
        options = ["--storage", url, "--artifacts", "artifacts"]
        created = tuner("-vv", "create", study, *options)
        process = start("-vv", "--debug", "worker", "tiny", "--workers", "2", "--device", "cpu", *options)
        with StudyManager(url) as manager:
            wait_until(lambda: len(manager.workers("tiny")) == 2, process=process)
            shown = arguments(process.pid)
            trained = select(func.count()).select_from(schema.curves)
            wait_until(lambda: manager._database.read(lambda c: c.execute(trained).scalar_one()) > 0, process=process)
            process.send_signal(signal.SIGINT)  # they save what they have
        out, err = process.communicate(timeout=DEADLINE_S)
        output = created.stdout + created.stderr + out + err
        assert shown.count("tuner worker tiny") >= 2  # the children are there to be seen
        assert SECRET not in shown
        assert "*" * len(SECRET) in shown
        assert places(SECRET, url, Path("artifacts"), output) == set()
        # The search finds what is there, and checkpoints are there to be searched.
        assert list(Path("artifacts").rglob("*.safetensors"))
        assert {"output", "table tuner_studies"} <= places("tiny", url, Path("artifacts"), output)
        Path("artifacts/leak").write_text(SECRET)
        assert places(SECRET, url, Path("artifacts"), f"cannot reach {url}") == {"output", "file leak"}


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:1/db",
        f"mysql://me:{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:{SECRET}@127.0.0.1:port/db",
        f"postgresql://me:{SECRET}/more@127.0.0.1/db",
        f"postgresql://me:{SECRET}{{0}}@127.0.0.1:1/db",
        f"oracle://me:{SECRET}@127.0.0.1/db",
        f"mysql://nobody-here:{SECRET}@127.0.0.1/db",
        f"postgresql://nobody-here:{SECRET}@127.0.0.1/no_such_database",
        f"postgresql://127.0.0.1:1/db?user=me&password={SECRET}",
    ],
)
def test_errors_do_not_tell(url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(StudyManager.__init__, "__kwdefaults__", {"patience_s": 0.1})
    for words in (["studies"], ["--debug", "-vv", "studies"]):
        result = tuner(*words, "--storage", url, code=2 if "oracle" in url or ":port" in url else 1)
        assert "error: " in result.stderr
        assert SECRET not in result.stdout + result.stderr + caplog.text


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://me:word@host:5432/db", "word"),
        ("postgresql://me:a@b:c@host/db", "a@b:c"),
        ("postgresql://me@host:5432/db", ""),
        ("sqlite:////tmp/a:b@c.db", ""),
        ("postgresql://h/db?user=me&password=word", "word"),
        ("postgresql://me@h/db?sslmode=require&sslpassword=word", "word"),
        ("not a url", ""),
    ],
)
def test_the_password_of_a_url(url: str, password: str) -> None:
    assert password_of(url) == password


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_an_argument_is_hidden_and_nothing_else() -> None:
    code = (
        "import sys; from pathlib import Path; from tuner.cli.secrets import hide_argument; "
        "print(hide_argument(sys.argv[2])); print(Path('/proc/self/cmdline').read_text()); print(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "before", SECRET, "äfter"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    told, shown, given = done.stdout.splitlines()
    assert told == "True"
    assert shown.split("\0")[-4:-1] == ["before", "*" * len(SECRET), "äfter"]
    assert given == str(["before", SECRET, "äfter"])  # the program itself still knows it


def test_where_it_cannot_be_hidden_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.cli.secrets.sys.platform", "darwin")
    monkeypatch.setattr(StudyManager.__init__, "__kwdefaults__", {"patience_s": 0.1})
    assert not hide_argument(SECRET)
    warning = "warning: the list of processes shows the password in --storage; set TUNER_STORAGE instead"
    assert warning in tuner("studies", "--storage", f"mysql://me:{SECRET}@127.0.0.1:1/db", code=1).stderr


class TestBinding:
    """Names and values are parameters of statements, never part of their text."""

    NAME = "Marker-7f3a"
    HOST = "h'; DROP TABLE tuner_slots; --"
    REASON = "%s {0} \" ' ; \\ it's :bound ? é"

    def texts(self, manager: StudyManager, artifacts: Path) -> list[str]:
        """Every statement of a study's whole life."""
        seen: list[str] = []
        engine = manager._database.engine
        event.listen(engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
        spec = fleet.spaces_study(
            study={"name": self.NAME}, search={"trials": 9, "sampler": "tpe"}, training={"max_epochs": 9}
        )
        manager.create(spec, data_root=artifacts, data_digest="d", split_digest="s")
        ledger = manager.ledger(self.NAME)
        ledger.max_attempts = 1
        worker = ledger.register(self.HOST, 1, "cpu", "0")
        (claim,) = ledger.claim(worker, limit=1, lease_s=60)
        ledger.fail(worker, [(claim.number, claim.token, self.REASON)])
        fleet.work(ledger, manager.checkpoints(self.NAME))
        assert manager.trials(self.NAME)[0].reason == self.REASON
        assert manager.retry(self.NAME) == 1
        manager.store_evaluation(self.NAME, {"note": self.REASON})
        assert manager.workers(self.NAME)[0].host == self.HOST
        assert (manager.evaluation(self.NAME) or {})["note"] == self.REASON
        manager.summary(self.NAME)
        manager.delete(self.NAME)
        return seen

    def test_no_statement_holds_a_value(self, manager: StudyManager, tmp_path: Path) -> None:
        texts = self.texts(manager, tmp_path)
        assert len(texts) > 50
        assert any("tuner_slots" in text for text in texts)  # they are the statements
        for value in (self.NAME, "DROP TABLE", "é", "learning_rate"):
            assert not [text for text in texts if value in text]

    def test_a_name_is_not_a_condition(self, manager: StudyManager) -> None:
        fleet.create(manager, fleet.make_spec(9))
        for name in ("x' OR '1'='1", "fleet'--", "%", "_leet"):
            with pytest.raises(LookupError):
                manager.delete(name)
        assert manager.names() == ["fleet"]


UNSAFE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}


def unsafe(source: str) -> list[str]:
    """Imports and calls that may run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in UNSAFE:
            found += [node.module for alias in node.names if (node.module, alias.name) != ("yaml", "safe_dump_all")]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            found.append(node.func.id)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            safe: Any = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if safe.get("weights_only") != "True" and safe.get("allow_pickle") != "False":
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Attribute) and node.attr == "CmaEsSampler":
            found.append(node.attr)  # it unpickles its state from the database
    return found


def test_nothing_that_is_read_can_run() -> None:
    assert {str(p.relative_to(ROOT)): u for p in (ROOT / "tuner").rglob("*.py") if (u := unsafe(p.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "optuna.samplers.CmaEsSampler()",
    ],
)
def test_what_can_run_is_noticed(source: str) -> None:
    assert unsafe(source)
