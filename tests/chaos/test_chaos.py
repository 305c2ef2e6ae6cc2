"""The short chaos run; and what keeps it honest: a checker that complains, a proxy that cuts, a server that crashes."""

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import make_url, select, text, update

from tests.chaos import worker as chaos_worker
from tests.chaos.checker import PROMISES, BrokenPromiseError, Evidence, check, gather
from tests.chaos.proxy import Proxy
from tests.chaos.run import chaos, make_spec, report
from tests.chaos.worker import Journal, Lane, Orders, read_journals, truth
from tests.spaces import study as make_study
from tests.storage.private import PrivatePostgres, programs
from tests.storage.servers import fresh_database, lay_tables, require, server_url
from tuner.manager import StudyManager
from tuner.storage import schema
from tuner.storage.database import open_database
from tuner.storage.ledger import Ledger

SECONDS = 20
PRODUCED = "the stored parameters produced the stored value"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_promises_are_kept_under_faults(kind: str, tmp_path: Path) -> None:
    if kind == "postgresql" and programs() is None:
        require(kind)  # with CI=true this fails; else it skips, or there is a server elsewhere
        pytest.skip("a PostgreSQL to crash needs initdb on this machine")
    seed = random.SystemRandom().randrange(1000)
    print(f"seed {seed}")  # pytest shows it with a failure
    outcome = chaos(kind, tmp_path, seconds=SECONDS, seed=seed, workers=3)
    print("\n".join(report(kind, seed, outcome)))
    assert sum(outcome.injected.values()) >= SECONDS / 4
    assert outcome.results > 30  # of one study at least; a killed worker may not have written all down


def test_studies_of_a_run_differ() -> None:
    rng = random.Random(0)
    specs = [make_spec(str(i), rng, 100) for i in range(30)]
    assert {spec.search.sampler for spec in specs} == {"random", "grid", "qmc"}
    assert len({spec.search.pruner for spec in specs}) == 4


class TestChecker:
    """Every promise has something that breaks it, and the checker says which."""

    @pytest.fixture
    def seen(self, tmp_path: Path) -> Iterator[Evidence]:
        with _study(tmp_path) as (manager, url, spec):
            _finish(manager, tmp_path)
            yield gather(manager, url, spec, read_journals(tmp_path))

    def broken(self, seen: Evidence) -> set[str]:
        with pytest.raises(BrokenPromiseError) as caught:
            check(seen)
        return {line.split(":")[0] for line in str(caught.value).splitlines()}

    def test_a_good_study_passes(self, seen: Evidence) -> None:
        check(seen)
        assert seen.results
        assert seen.claims

    @pytest.mark.parametrize(
        ("promise", "harm"),
        [
            ("exactly N results", lambda e: replace(e, slots=e.slots[:-1])),
            ("exactly N results", lambda e: replace(e, trials=e.trials[:-1])),
            ("every grid point once", lambda e: replace(e, slots=_changed(e.slots, params=e.slots[1].params))),
            ("no acknowledged result lost", lambda e: replace(e, rungs=e.rungs[1:])),
            ("no acknowledged result lost", lambda e: replace(e, rungs=_changed(e.rungs, value=0.25))),
            ("no result accepted twice", lambda e: replace(e, journal=[*e.journal, e.results[0]])),
            ("no result of a stale lease", lambda e: replace(e, journal=[*e.journal, _later_lease(e)])),
            (PRODUCED, lambda e: replace(e, slots=_changed(e.slots, value=0.25))),
            (PRODUCED, lambda e: replace(e, rungs=_changed(e.rungs, value=0.25))),
            (PRODUCED, lambda e: replace(e, journal=[*e.journal, {**e.claims[0], "params": "other"}])),
            ("Optuna's tables tell the same", lambda e: replace(e, trials=_without_an_epoch(e.trials))),
            ("nothing runs after the end", lambda e: replace(e, slots=_changed(e.slots, state="leased"))),
            ("every rung as dealt", lambda e: replace(e, slots=_changed(e.slots, rung=7))),
        ],
    )  # fmt: skip
    def test_each_promise_can_break(self, seen: Evidence, promise: str, harm: Any) -> None:
        assert promise in self.broken(harm(seen))

    def test_who_is_left_behind_is_noticed(self, tmp_path: Path) -> None:
        with _study(tmp_path, pruner="asha") as (manager, url, spec):
            _finish(manager, tmp_path)
            seen = gather(manager, url, spec, read_journals(tmp_path))
        check(seen)
        best = min((row for row in seen.rungs if row.rung == 0), key=lambda row: row.value).number
        slots = [_Row(row, rung=0) if row.number == best else row for row in seen.slots]
        assert "every rung as dealt" in self.broken(replace(seen, slots=slots))

    def test_a_running_trial_is_noticed(self, tmp_path: Path) -> None:
        with _study(tmp_path) as (manager, url, spec):
            _finish(manager, tmp_path)
            manager._database.write(lambda c: c.execute(text("UPDATE trials SET state = 'RUNNING'")) and None)
            broken = self.broken(gather(manager, url, spec, read_journals(tmp_path)))
        assert {"nothing runs after the end", "Optuna's tables tell the same"} <= broken

    def test_there_is_a_case_for_every_promise(self) -> None:
        (mark,) = [m for m in TestChecker.test_each_promise_can_break.pytestmark if m.name == "parametrize"]
        assert {case[0] for case in mark.args[1]} == PROMISES.keys()

    @pytest.mark.parametrize("fenced", [True, False])
    def test_without_the_fence_it_complains(
        self, fenced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worker stands still past its lease, and commits after another one was given its slots."""
        with _study(tmp_path) as (manager, url, spec):
            ledger, store = manager.ledger(spec.study.name), manager.checkpoints(spec.study.name)
            slow, quick = (ledger.register("chaos", pid, "cpu", "0") for pid in (1, 2))
            journal, stop = Journal(str(tmp_path / "slow.jsonl")), threading.Event()
            stale = ledger.claim(slow, limit=3, lease_s=60)
            ended = update(schema.slots).where(schema.slots.c.state == "leased").values(lease_until=1.0)
            manager._database.write(lambda c: c.execute(ended) and None)
            for claim in ledger.claim(quick, limit=3, lease_s=0.1):
                place = {"number": claim.number, "rung": claim.rung, "token": claim.token}
                journal.write(what="claim", **place, params=chaos_worker.digest(claim.params))
            with monkeypatch.context() as patch:
                if not fenced:
                    patch.setattr(Ledger, "_held", _anybodys)
                chaos_worker.train(ledger, slow, store, stale, journal, random.Random(0), stop)
            _finish(manager, tmp_path)
            seen = gather(manager, url, spec, read_journals(tmp_path))
        if fenced:
            check(seen)
        else:
            assert "no result of a stale lease" in self.broken(seen)


def _study(folder: Path, pruner: str = "hyperband") -> Any:
    """A grid of few points on SQLite: a manager, the URL, the spec."""
    from contextlib import contextmanager

    @contextmanager
    def opened() -> Iterator[tuple[StudyManager, str, Any]]:
        url = f"sqlite:///{folder / 'tuner.db'}"
        lay_tables(url)
        spec = make_study(
            "grid", study={"name": "chaos"}, search={"pruner": pruner}, training={"max_epochs": 9},
            space={"weight_decay": 0.1},
        )  # fmt: skip
        with StudyManager(url, folder / "artifacts", patience_s=20) as manager:
            manager.create(spec, data_root=folder, data_digest="d", split_digest="s")
            yield manager, url, spec

    return opened()


def _finish(manager: StudyManager, folder: Path) -> None:
    orders = Orders(url="", artifacts="", study="chaos", journal=str(folder / "worker"), seed=1, lease_s=60)
    chaos_worker.work(manager.ledger("chaos"), manager.checkpoints("chaos"), orders, threading.Event())


class _Row:
    """A row with some columns changed."""

    def __init__(self, row: Any, **changes: Any) -> None:
        self._row = row
        self.__dict__ |= changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


def _changed(rows: Any, **changes: Any) -> list[Any]:
    return [_Row(rows[0], **changes), *rows[1:]]


def _later_lease(seen: Evidence) -> dict[str, Any]:
    return {**seen.claims[0], "token": seen.claims[0]["token"] + 100}


def _without_an_epoch(trials: Any) -> list[Any]:
    trials[0].intermediate_values.pop(1)
    return list(trials)


def _anybodys(self: Ledger, connection: Any, _worker: int, tokens: dict[int, int]) -> dict[int, Any]:
    """The fence, switched off: whoever asks holds the slots, whatever token they show."""
    mine = (schema.slots.c.study_id == self.study_id, schema.slots.c.number.in_(list(tokens)))
    return {
        row.number: _Row(row, token=tokens[row.number])
        for row in connection.execute(select(schema.slots).where(*mine)).all()
    }


class TestParts:
    @pytest.mark.parametrize("kind", ["postgresql", "mysql"])
    def test_the_proxy_cuts_after_commit_and_nothing_else_is_lost(self, kind: str, tmp_path: Path) -> None:
        require(kind)
        with fresh_database(kind, tmp_path) as url:
            server = make_url(server_url(kind))
            with Proxy(server.host or "127.0.0.1", server.port or 3306) as proxy:
                through = make_url(url).set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
                open_database(url).close()
                database = open_database(through, patience_s=10)
                runs = []

                def work(connection: sqlalchemy.Connection) -> int:
                    runs.append(1)
                    row = {"study_id": 1, "number": len(runs), "epoch": 1, "train_loss": 0.0, "val_loss": 0.0}
                    connection.execute(schema.curves.insert().values(row))
                    return len(connection.execute(select(schema.curves)).all())

                proxy.cut_next_commits()
                assert database.write(work) == 2  # the first run was committed, and could not know
                assert (len(runs), proxy.cut_commits) == (2, 1)
                proxy.cut()
                assert database.write(work) == 3
                database.close()

    def test_a_private_server_recovers_from_a_crash(self) -> None:
        if programs() is None:
            pytest.skip("no initdb on this machine")
        with PrivatePostgres() as server:
            database = open_database(server.url())
            row = {"study_id": 1, "number": 1, "epoch": 1, "train_loss": 0.0, "val_loss": 0.0}
            database.write(lambda c: c.execute(schema.curves.insert().values(row)) and None)
            server.restart()
            assert len(database.read(lambda c: c.execute(select(schema.curves)).all())) == 1
            database.close()

    def test_resumed_training_is_the_same_training(self) -> None:
        params = {"learning_rate": 0.1, "width": 8}
        value = truth(params, 4)
        for epoch in (5, 6, 7):
            value = chaos_worker.step(params, epoch, value)
        assert value == truth(params, 7)
        assert truth(params, 7) != truth({**params, "width": 9}, 7)

    def test_a_lane_starts_from_its_seed_where_its_checkpoint_is_gone(self, tmp_path: Path) -> None:
        with _study(tmp_path) as (manager, _, spec):
            ledger, store = manager.ledger(spec.study.name), manager.checkpoints(spec.study.name)
            worker = ledger.register("chaos", 1, "cpu", "0")
            (claim,) = ledger.claim(worker, limit=1, lease_s=60)
            file = store.write({claim.number: {"epoch": _number(3), "value": _number(0.5)}})
            claim = replace(claim, epochs=3, checkpoint=file)
            assert chaos_worker.load(store, claim) == Lane(claim, 3, 0.5)
            store.remove([file.name])
            assert chaos_worker.load(store, claim) == Lane(claim, 0, 1.0)


def _number(value: float) -> Any:
    import numpy as np

    return np.array(value)


def test_journals_are_read_line_by_line(tmp_path: Path) -> None:
    Journal(str(tmp_path / "a.jsonl")).write(what="claim", number=1)
    Journal(str(tmp_path / "a.jsonl")).write(what="result", number=1)
    assert [line["what"] for line in read_journals(tmp_path)] == ["claim", "result"]
    assert json.dumps(read_journals(tmp_path)[0]) == '{"what": "claim", "number": 1}'
