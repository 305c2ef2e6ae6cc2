"""Studies from their creation to their deletion, and the shapes that other tools read."""

import hashlib
import json
import math
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from sqlalchemy import event, update

from tests.storage import fleet
from tests.storage.fleet import create, make_spec
from tests.storage.servers import lay_tables
from tuner.errors import BadInputError, DataError, SpecError, SpecMismatchError, StudyNotFoundError, WorkerRefusedError
from tuner.manager import StudyManager
from tuner.storage import schema
from tuner.storage.crew import union_s

SUMMARY_KEYS = [
    "name",
    "state",
    "metric",
    "direction",
    "sampler",
    "pruner",
    "minutes",
    "trials",
    "epochs_trained",
    "seconds",
    "best",
    "evaluation",
]
TRIAL_KEYS = [
    "number",
    "state",
    "value",
    "params",
    "epochs",
    "bracket",
    "rung",
    "attempt",
    "worker",
    "seconds",
    "reason",
]

QUESTIONS = ["spec", "data_root", "digests", "ledger", "checkpoints", "summary", "trials", "best", "workers"]
QUESTIONS += ["admit", "retry", "stop", "resume", "delete", "evaluation", "count_peek"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'tuner.db'}"


@pytest.fixture
def manager(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StudyManager]:
    monkeypatch.delenv("TUNER_ARTIFACTS", raising=False)
    lay_tables(url)
    with StudyManager(url, patience_s=5) as manager:
        yield manager


def made(manager: StudyManager, spec: Any, data: str = "d", split: str = "s") -> bool:
    return manager.create(spec, data_root=Path("/data"), data_digest=data, split_digest=split)


class TestCreate:
    def test_millions_of_slots_are_inserted_a_few_at_a_time(
        self, manager: StudyManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        peaks: list[int] = []

        def enough(_: Any, table: Any, rows: Any, **__: Any) -> None:
            if table is schema.slots:
                peaks.append(tracemalloc.get_traced_memory()[1])
                raise InterruptedError(len(rows))

        monkeypatch.setattr("tuner.storage.bulk.insert", enough)
        tracemalloc.start()
        try:
            with pytest.raises(InterruptedError, match="50000"):
                made(manager, make_spec(500_000, pruner="none"))
        finally:
            tracemalloc.stop()
        assert peaks[0] < 50e6  # bytes; all of them at once are some 110 MB

    def test_a_study_is_all_there_at_once(self, manager: StudyManager) -> None:
        spec = make_spec(20)
        assert made(manager, spec) is True
        assert manager.names() == ["fleet"]
        assert manager.spec("fleet") == spec
        assert manager.data_root("fleet") == Path("/data")
        digests = manager.digests("fleet")
        assert (digests.spec, digests.data, digests.split) == (spec.digest, "d", "s")
        rows = manager.trials("fleet")
        assert [row.number for row in rows] == list(range(20))
        assert {row.state for row in rows} == {"waiting"}
        assert [row.bracket for row in rows] == [0] * 9 + [1] * 5 + [2] * 3 + [3] * 3

    def test_the_same_study_again_changes_nothing(self, manager: StudyManager) -> None:
        made(manager, make_spec(20))
        assert made(manager, make_spec(20)) is False
        assert len(manager.trials("fleet")) == 20

    def test_a_study_folder_may_move(self, manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
        made(manager, make_spec(20))
        manager.create(make_spec(20), data_root=Path("/moved"), data_digest="d", split_digest="s")
        assert manager.data_root("fleet") == Path("/moved")
        monkeypatch.setenv("TUNER_DATA_ROOT", "/mnt/data")
        assert manager.data_root("fleet") == Path("/mnt/data"), "and lie elsewhere on another machine"

    def test_another_spec_is_refused_with_its_differences(self, manager: StudyManager) -> None:
        made(manager, make_spec(20))
        with pytest.raises(SpecMismatchError) as caught:
            made(manager, make_spec(21, sampler="qmc"))
        assert caught.value.differences == ['search.sampler: "random" -> "qmc"', "search.trials: 20 -> 21"]

    def test_other_data_is_refused(self, manager: StudyManager) -> None:
        made(manager, make_spec(20))
        told = "of study 'fleet' changed since it was created: SHA-256"
        with pytest.raises(DataError, match=f"the data {told} d… then, e… now; restore the data, use another name, or"):
            made(manager, make_spec(20), data="e")
        with pytest.raises(DataError, match=f"the split {told} s… then, t… now"):
            made(manager, make_spec(20), split="t")

    def test_a_study_that_optuna_made_is_refused(self, manager: StudyManager, url: str) -> None:
        storage = optuna.storages.RDBStorage(url)
        optuna.create_study(study_name="fleet", storage=storage)
        storage.remove_session()
        storage.engine.dispose()
        with pytest.raises(BadInputError, match="is in this database already and was not made by Tuner; use another"):
            made(manager, make_spec(20))
        assert manager.names() == []

    def test_a_study_that_another_tool_deleted_is_gone_and_may_come_again(
        self, manager: StudyManager, url: str
    ) -> None:
        ledger = create(manager, make_spec(9))
        ledger.claim(ledger.register("h", 1, "cpu", "0"), limit=3, lease_s=60)
        storage = optuna.storages.RDBStorage(url)
        optuna.delete_study(study_name="fleet", storage=storage)
        storage.remove_session()
        storage.engine.dispose()
        assert manager.names() == []
        with pytest.raises(StudyNotFoundError):
            manager.summary("fleet")
        assert made(manager, make_spec(12)) is True
        assert manager.summary("fleet").trials == _counts(total=12, waiting=12)
        assert manager.workers("fleet") == []

    def test_studies_do_not_mix(self, manager: StudyManager, url: str) -> None:
        one, two = make_spec(9), fleet.spaces_study(study={"name": "other"}, search={"trials": 5, "pruner": "none"})
        create(manager, one)
        made(manager, two)
        fleet.work(manager.ledger("fleet"), manager.checkpoints("fleet"))
        fleet.check(manager, one, url)
        assert [summary.state for summary in manager.summaries()] == ["finished", "created"]
        assert manager.summaries() == [manager.summary("fleet"), manager.summary("other")]
        manager.delete("fleet")
        assert manager.names() == ["other"]
        assert len(manager.trials("other")) == 5


def _counts(**given: int) -> dict[str, int]:
    return {"total": 0, "complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0} | given


class TestSummary:
    def test_the_shape_that_other_tools_read(self, manager: StudyManager) -> None:
        create(manager, make_spec(9))
        empty = manager.summary("fleet").as_dict()
        assert list(empty) == SUMMARY_KEYS
        assert empty == {
            "name": "fleet",
            "state": "created",
            "metric": "error",
            "direction": "minimize",
            "sampler": "random",
            "pruner": "hyperband",
            "minutes": None,
            "trials": _counts(total=9, waiting=9),
            "epochs_trained": 0,
            "seconds": 0.0,
            "best": None,
            "evaluation": None,
        }
        fleet.work(manager.ledger("fleet"), manager.checkpoints("fleet"))
        full = manager.summary("fleet").as_dict()
        assert list(full) == SUMMARY_KEYS
        assert list(full["trials"]) == ["total", "complete", "pruned", "failed", "running", "waiting"]
        assert list(full["best"]) == ["number", "value", "epochs", "complete", "params"]
        assert full["state"] == "finished"
        assert full["trials"] == _counts(total=9, complete=1, pruned=8)
        assert full["epochs_trained"] == 6 * 1 + 2 * 3 + 1 * 9
        assert full["seconds"] > 0
        assert json.loads(json.dumps(full, allow_nan=False)) == full
        best = manager.best("fleet")
        assert best is not None
        assert full["best"] == best.as_dict()
        assert best.value == fleet.truth(best.params, best.epochs)
        assert best.params.keys() == make_spec(9).search_space.keys()

    def test_trials_have_the_shape_that_other_tools_read(self, manager: StudyManager) -> None:
        ledger = create(manager, make_spec(9))
        worker = ledger.register("node", 4, "cpu", "0")
        claims = ledger.claim(worker, limit=2, lease_s=60)
        ledger.commit(worker, [fleet.result(claims[0], value=math.inf)])
        rows = [row.as_dict() for row in manager.trials("fleet")]
        assert all(list(row) == TRIAL_KEYS for row in rows)
        assert [row["state"] for row in rows] == ["waiting", "running"] + ["waiting"] * 7
        assert (rows[0]["value"], rows[0]["epochs"], rows[0]["seconds"]) == (None, 1, 0.5)
        assert rows[1]["worker"] == "node:4"
        assert (rows[8]["params"], rows[8]["worker"], rows[8]["attempt"], rows[8]["reason"]) == (None, None, 0, None)
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows

    def test_states(self, manager: StudyManager) -> None:
        def state() -> str:
            return manager.summary("fleet").state

        ledger = create(manager, make_spec(9))
        assert state() == "created"  # nobody has ever worked on it
        manager.stop("fleet")
        assert state() == "stopped"
        manager.resume("fleet")
        worker = ledger.register("h", 1, "cpu", "0")
        assert state() == "running"
        claims = ledger.claim(worker, limit=2, lease_s=60)
        _change(manager, update(schema.workers).values(heartbeat_at=1.0))
        assert state() == "running"  # a live lease is enough
        assert manager.summary("fleet").trials == _counts(total=9, running=2, waiting=7)
        _change(manager, update(schema.slots).values(lease_until=1.0))
        assert state() == "interrupted"
        assert manager.summary("fleet").trials == _counts(total=9, waiting=9)
        assert not manager.workers("fleet")[0].live
        ledger.heartbeat(worker, 2, 1.0)
        assert state() == "running"
        ledger.release(worker, [(claim.number, claim.token, 0) for claim in claims])
        ledger.leave(worker)
        assert state() == "interrupted"
        manager.stop("fleet")
        assert state() == "stopped"
        manager.resume("fleet")
        fleet.work(ledger, manager.checkpoints("fleet"))
        manager.stop("fleet")
        assert state() == "finished"

    def test_seconds_count_overlapping_workers_once(self, manager: StudyManager) -> None:
        ledger = create(manager, make_spec(9))
        for start, beat in ((100.0, 130.0), (110.0, 140.0), (200.0, 205.0)):
            worker = ledger.register("h", 1, "cpu", "0")
            times = {"started_at": start, "heartbeat_at": beat}
            _change(manager, update(schema.workers).where(schema.workers.c.id == worker).values(**times))
        assert manager.summary("fleet").seconds == 45.0
        assert union_s([]) == 0.0

    def test_the_best_of_equal_trials_is_the_first_and_the_direction_counts(self, manager: StudyManager) -> None:
        for metric, number in (("error", 1), ("accuracy", 0)):
            spec = fleet.spaces_study(study={"name": metric, "metric": metric}, search={"trials": 3, "pruner": "none"})
            made(manager, spec)
            ledger = manager.ledger(metric)
            worker = ledger.register("h", 1, "cpu", "0")
            claims = ledger.claim(worker, limit=3, lease_s=60)
            values = (0.5, 0.25, 0.25) if metric == "error" else (0.5, 0.5, 0.25)
            ledger.commit(worker, [fleet.result(c, value) for c, value in zip(claims, values, strict=True)])
            best = manager.best(metric)
            assert best is not None
            assert best.number == number

    def test_statements_do_not_depend_on_the_number_of_trials(self, manager: StudyManager) -> None:
        def cost(trials: int) -> int:
            spec = fleet.spaces_study(study={"name": f"n{trials}"}, search={"trials": trials})
            made(manager, spec)
            seen: list[str] = []
            engine = manager._database.engine
            listen = (engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
            event.listen(*listen)
            manager.trials(spec.study.name)
            manager.summary(spec.study.name)
            event.remove(*listen)
            return len(seen)

        assert cost(3) == cost(300)

    def test_many_trials_are_listed_quickly(self, manager: StudyManager) -> None:
        started = time.perf_counter()
        made(manager, make_spec(20_000, pruner="none"))
        assert len(manager.trials("fleet")) == 20_000
        assert manager.summary("fleet").trials["waiting"] == 20_000
        assert time.perf_counter() - started < 10  # seconds; some 0.5 where it was written


def _change(manager: StudyManager, statement: Any) -> None:
    manager._database.write(lambda c: c.execute(statement) and None)


class TestNames:
    def test_an_unknown_name_shows_near_ones(self, manager: StudyManager) -> None:
        with pytest.raises(StudyNotFoundError, match="it has no studies; make one with: tuner create"):
            manager.summary("fleet")
        create(manager, make_spec(9))
        with pytest.raises(StudyNotFoundError, match=r"no study 'flete' in sqlite:.*; did you mean fleet\?"):
            manager.summary("flete")
        with pytest.raises(StudyNotFoundError, match="it has: fleet"):
            manager.delete("xyz")

    @pytest.mark.parametrize("call", QUESTIONS)
    def test_every_question_about_it_is_refused(self, manager: StudyManager, call: str) -> None:
        with pytest.raises(StudyNotFoundError, match="no study 'nobody'"):
            getattr(manager, call)("nobody")


def _first_claims(manager: StudyManager) -> list[Any]:
    """What a worker gets that is admitted."""
    ledger = manager.ledger("fleet")
    return ledger.claim(ledger.register("h", 1, "cpu", "0"), limit=1, lease_s=60)


class TestAdmission:
    """A worker that would train something else than was created is refused, and told the difference."""

    def test_the_same_tuner_is_admitted(self, manager: StudyManager) -> None:
        made(manager, make_spec(9))
        manager.admit("fleet")
        assert len(_first_claims(manager)) == 1

    @pytest.mark.parametrize("version", ["0.1.7", "0.1.0.dev3"])
    def test_another_patch_is_admitted(self, manager: StudyManager, version: str) -> None:
        made(manager, make_spec(9))
        _change(manager, update(schema.studies).values(tuner_version=version))
        assert len(_first_claims(manager)) == 1

    @pytest.mark.parametrize("version", ["0.2.0", "1.1.0", "0.11.0"])
    def test_another_version_is_refused(self, manager: StudyManager, version: str) -> None:
        made(manager, make_spec(9))
        _change(manager, update(schema.studies).values(tuner_version=version, spec="{"))  # it may not even be readable
        told = rf"study 'fleet' was created by Tuner {version}, this is Tuner 0.1.0; all workers .*: install tuner "
        for ask in (manager.admit, manager.ledger):
            with pytest.raises(WorkerRefusedError, match=told):
                ask("fleet")

    def test_another_reading_of_the_spec_is_refused_with_the_difference(self, manager: StudyManager) -> None:
        """As between two development versions: one knows a key, or a default, that the other does not."""
        made(manager, make_spec(9))
        stored = json.loads(make_spec(9).as_json())
        del stored["search"]["eta"]
        stored["final"]["seeds"] = 5
        text = json.dumps(stored)
        digest = hashlib.sha256(text.encode()).hexdigest()
        _change(manager, update(schema.studies).values(spec=text, spec_digest=digest))
        with pytest.raises(WorkerRefusedError, match="means something else to this Tuner") as caught:
            manager.admit("fleet")
        assert str(caught.value).splitlines()[1:] == ["  search.eta: missing -> 3"]

    def test_a_spec_that_somebody_changed_is_refused(self, manager: StudyManager) -> None:
        made(manager, make_spec(9))
        other = make_spec(9, eta=2).as_json()
        _change(manager, update(schema.studies).values(spec=other))
        with pytest.raises(WorkerRefusedError, match="spec of study 'fleet' was changed in the database: SHA-256"):
            manager.ledger("fleet")


class TestLengths:
    """What does not fit into a column of some database is refused on all of them, before anything is written."""

    def test_a_worker(self, manager: StudyManager) -> None:
        ledger = create(manager, make_spec(9))
        for names in (("h" * 256, "cpu", "0"), ("h", "c" * 256, "0"), ("h", "cpu", "0" * 65)):
            with pytest.raises(BadInputError, match=r"a worker's .* has at most"):
                ledger.register(names[0], 1, *names[1:])
        assert manager.workers("fleet") == []
        ledger.register("h" * 255, 1, "c" * 255, "0" * 64)

    def test_a_study(self, manager: StudyManager) -> None:
        many = {"choices": [i / 7 for i in range(1, 5000)]}
        spec = fleet.spaces_study(study={"name": "fleet"}, space={"dropout": {"choices": [0.1]}, "learning_rate": many})
        with pytest.raises(BadInputError, match=r"learning_rate: its choices take .* at most 65,535 fit; list fewer"):
            made(manager, spec)
        assert manager.names() == []
        with pytest.raises(SpecError, match="up to 200 letters"):
            fleet.spaces_study(study={"name": "a" * 201})

    def test_a_reason(self, manager: StudyManager) -> None:
        """Not refused, for it says what went wrong: cut, and said to be cut."""
        ledger = create(manager, make_spec(9))
        ledger.max_attempts = 1
        worker = ledger.register("h", 1, "cpu", "0")
        (claim,) = ledger.claim(worker, limit=1, lease_s=60)
        ledger.fail(worker, [(0, claim.token, "x\0" + "y" * 100_000)])
        reason = manager.trials("fleet")[0].reason
        assert reason is not None
        assert (reason[:4], reason[-1], len(reason)) == ("x\\0y", "…", 2000)


class TestFiles:
    def test_artifacts_lie_beside_the_sqlite_file(self, manager: StudyManager, tmp_path: Path) -> None:
        assert manager.artifacts == tmp_path / "tuner-artifacts"

    def test_artifacts_as_said(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TUNER_ARTIFACTS", str(tmp_path / "variable"))
        with StudyManager(url) as manager:
            assert manager.artifacts == tmp_path / "variable"
        with StudyManager(url, tmp_path / "given") as manager:
            assert manager.artifacts == tmp_path / "given"

    def test_artifacts_in_an_object_store(self, url: str, tmp_path: Path) -> None:
        """A whole study with its checkpoints in a place that is no folder; nothing of it is left there."""
        with StudyManager(url, f"memory://{tmp_path.name}") as manager:
            spec = make_spec(20)
            ledger = create(manager, spec)
            store = manager.checkpoints("fleet")
            worker = ledger.register("h", 1, "cpu", "0")
            fleet.train(ledger, worker, store, ledger.claim(worker, limit=9, lease_s=60))
            assert len(store.names()) == 1
            fleet.work(ledger, store)
            fleet.check(manager, spec, url)
            assert store.names() == []
        with pytest.raises(BadInputError, match="artifacts: gopher:// is no file system"):
            StudyManager(f"sqlite:///{tmp_path}/other.db", "gopher://x")
        assert not (tmp_path / "other.db").exists()

    @pytest.mark.parametrize("name", ["Übung", "a" * 200, "_..", "a:b=c+d@e-f"])
    def test_any_name_makes_a_harmless_folder(self, manager: StudyManager, name: str) -> None:
        made(manager, fleet.spaces_study(study={"name": name}, search={"trials": 3}))
        root = manager.checkpoints(name).root
        assert root.parent == manager.artifacts
        assert len(root.name) < 100
        manager.checkpoints(name).write({0: {"a": np.zeros(1)}})
        manager.delete(name)
        assert not root.exists()
        assert manager.artifacts.exists()

    def test_a_deleted_study_leaves_nothing(self, manager: StudyManager) -> None:
        ledger = create(manager, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        fleet.train(ledger, worker, manager.checkpoints("fleet"), ledger.claim(worker, limit=9, lease_s=60))
        manager.store_evaluation("fleet", {"trial": 1})
        root = manager.checkpoints("fleet").root
        assert list(root.iterdir())
        manager.delete("fleet")
        assert not root.exists()
        with manager._database.engine.connect() as connection:
            tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            names = [name for (name,) in connection.exec_driver_sql(tables)]
            kept = {"alembic_version", "version_info", "tuner_schema"}
            left = {
                name: count
                for name in names
                if (count := connection.exec_driver_sql(f"SELECT COUNT(*) FROM {name}").scalar())
            }
        assert left.keys() == kept
        assert made(manager, make_spec(9)) is True
        assert manager.checkpoints("fleet").root != root


class TestEvaluation:
    def test_it_is_stored_once_and_later_peeks_are_counted(self, manager: StudyManager) -> None:
        create(manager, make_spec(9))
        assert manager.evaluation("fleet") is None
        assert manager.count_peek("fleet") == 0
        first = manager.store_evaluation("fleet", {"trial": 3, "test": {"mean": 0.1, "sd": math.nan}, "seeds": (1, 2)})
        assert first == {"trial": 3, "test": {"mean": 0.1, "sd": None}, "seeds": [1, 2], "peeks": 0}
        assert manager.store_evaluation("fleet", {"trial": 4}) == first
        assert manager.count_peek("fleet") == 1
        assert manager.count_peek("fleet") == 2
        assert manager.evaluation("fleet") == {**first, "peeks": 2}
        assert manager.summary("fleet").evaluation == {**first, "peeks": 2}

    def test_what_is_added_later_replaces_nothing(self, manager: StudyManager) -> None:
        create(manager, make_spec(9))
        first = manager.store_evaluation("fleet", {"trial": 3, "ensemble": None})
        whole = manager.extend_evaluation("fleet", {"trial": 4, "ensemble": {"mean": 0.1, "sd": math.nan}})
        assert whole == {**first, "ensemble": {"mean": 0.1, "sd": None}}
        assert manager.extend_evaluation("fleet", {"ensemble": {"mean": 0.2}}) == whole
        assert manager.evaluation("fleet") == whole
