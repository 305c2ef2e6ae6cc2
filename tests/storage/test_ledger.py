"""The ledger's promises, on every database; each checker is shown to complain when it should."""

import math
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import Connection, event, select, update

from tests.storage import fleet
from tests.storage.fleet import check, create, make_spec
from tests.storage.servers import lay_tables
from tuner.errors import StorageError, StudyNotFoundError
from tuner.manager import StudyManager
from tuner.search.hyperband import Standing
from tuner.search.refine import narrow, read_written
from tuner.storage import records, schema
from tuner.storage.checkpoints import Checkpoint
from tuner.storage.ledger import Claim, EpochRow, Ledger, RungResult


@pytest.fixture(autouse=True)
def quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def local(sqlite_url: str, tmp_path: Path) -> Iterator[StudyManager]:
    """A manager on SQLite alone, for what does not depend on the kind of database."""
    lay_tables(sqlite_url)
    with StudyManager(sqlite_url, tmp_path / "artifacts", patience_s=5) as manager:
        yield manager


def expire(manager: StudyManager, *numbers: int) -> None:
    """Let leases run out, by the database's clock."""
    over = update(schema.slots).where(schema.slots.c.state == "leased")
    if numbers:
        over = over.where(schema.slots.c.number.in_(numbers))
    manager._database.write(lambda c: c.execute(over.values(lease_until=1.0)) and None)


def wait_for(condition: Callable[[], object]) -> None:
    """Look until it holds; fails after a while."""
    for _ in range(5000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it did not happen")


def slot(manager: StudyManager, number: int) -> Any:
    query = select(schema.slots).where(schema.slots.c.number == number)
    return manager._database.read(lambda c: c.execute(query).one())


class TestWholeStudies:
    def test_concurrent_workers_keep_every_promise(self, url: str, manager: StudyManager) -> None:
        spec = make_spec(43)
        create(manager, spec)
        log = fleet.Log()

        def one(pid: int) -> None:
            fleet.work(manager.ledger("fleet"), manager.checkpoints("fleet"), limit=5, log=log, pid=pid)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(4)))
        check(manager, spec, url, log)
        best = manager.best("fleet")
        assert best is not None
        theirs = fleet.read_optuna(url, "fleet").best
        assert theirs is not None
        assert (theirs.number, theirs.value) == (best.number, best.value)
        assert not list(manager.checkpoints("fleet").root.iterdir()), "no checkpoint outlives its use"

    @pytest.mark.parametrize(
        "search",
        [
            {"pruner": "none"},
            {"pruner": "successive_halving"},
            {"pruner": "hyperband", "eta": 2},
            {"pruner": "none", "sampler": "grid", "trials": None},
            {"pruner": "hyperband", "sampler": "tpe"},
            {"pruner": "asha"},
            {"pruner": "asha", "sampler": "tpe", "eta": 2},
            {"pruner": "asha", "trials": 1},
            {"pruner": "asha", "trials": 2},
            {"pruner": "hyperband", "refine": {"rounds": 2, "keep": 0.2}},
            {"pruner": "asha", "sampler": "qmc", "refine": {"rounds": 3, "keep": 0.5}},
            {"pruner": "none", "sampler": "tpe", "trials": 40, "refine": {"rounds": 2, "keep": 0.3}},
        ],
        ids=str,
    )
    def test_every_pruner_and_sampler_ends_as_dealt(
        self, local: StudyManager, sqlite_url: str, search: dict[str, Any]
    ) -> None:
        spec = make_spec(search.pop("trials", 23), **search)
        ledger = create(local, spec)
        fleet.work(ledger, local.checkpoints("fleet"), limit=7)
        check(local, spec, sqlite_url)
        if spec.search.sampler == "grid":
            drawn = [row.params for row in local.trials("fleet")]
            assert all(drawn.count(point) == 1 for point in spec.search_space.grid())

    def test_processes_share_an_sqlite_file_and_one_is_killed(self, local: StudyManager, sqlite_url: str) -> None:
        spec = make_spec(24)
        create(local, spec)
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        victim = context.Process(target=fleet.join_and_hang, args=(sqlite_url, str(local.artifacts), "fleet", ready))
        victim.start()
        others = [
            context.Process(target=fleet.join, args=(sqlite_url, str(local.artifacts), "fleet", pid)) for pid in (1, 2)
        ]
        assert ready.wait(60)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        for other in others:
            other.start()
        for process in (victim, *others):
            process.join(60)
        assert [other.exitcode for other in others] == [0, 0]
        check(local, spec, sqlite_url)
        rows = local.trials("fleet")
        assert [row.attempt for row in rows[:4]] == [2, 2, 2, 2]
        assert {row.attempt for row in rows[4:]} == {1}
        assert {row.worker for row in rows} <= {"host:1", "host:2"}


class TestClaims:
    def test_a_claim_is_complete_and_in_slot_order(self, manager: StudyManager) -> None:
        spec = make_spec(20)
        ledger = create(manager, spec)
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=6, lease_s=60)
        assert [claim.number for claim in claims] == [0, 1, 2, 3, 4, 5]
        assert {(c.bracket, c.rung, c.epochs, c.target_epochs, c.attempt, c.checkpoint) for c in claims} == {
            (0, 0, 0, 1, 1, None)
        }
        assert all(claim.params.keys() == spec.search_space.keys() for claim in claims)
        assert {row.number: row.params for row in manager.trials("fleet")[:6]} == {c.number: c.params for c in claims}
        others = ledger.claim(worker, limit=100, lease_s=60)
        assert not {claim.number for claim in claims} & {claim.number for claim in others}

    def test_promoted_slots_come_before_lost_ones_and_those_before_new_ones(self, local: StudyManager) -> None:
        spec = make_spec(30, pruner="successive_halving")
        ledger = create(local, spec)
        first, second = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        store = local.checkpoints("fleet")
        fleet.train(ledger, first, store, ledger.claim(first, limit=30, lease_s=60))
        lost = ledger.claim(first, limit=3, lease_s=60)
        expire(local)
        promoted = ledger.claim(second, limit=50, lease_s=60)
        assert len(promoted) == 7
        assert {claim.rung for claim in promoted} == {1}
        again = ledger.claim(second, limit=50, lease_s=60)
        assert [claim.number for claim in again] == [claim.number for claim in lost]
        assert ledger.claim(second, limit=50, lease_s=60) == []

    def test_a_pack_of_equal_form_fills_up_from_later_brackets(self, local: StudyManager) -> None:
        spec = make_spec(60)  # brackets of 9, 5 and 3, dealt again and again
        ledger = create(local, spec)
        claims = ledger.claim(ledger.register("h", 1, "cpu", "0"), limit=20, lease_s=60)
        assert len(claims) == 20
        assert [claim.bracket for claim in claims] == [0] * 9 + [3] * 9 + [6] * 2
        assert {(claim.rung, claim.target_epochs) for claim in claims} == {(0, 1)}

    def test_a_lost_lease_is_claimed_again_with_its_parameters_and_checkpoint(
        self, url: str, manager: StudyManager
    ) -> None:
        ledger = create(manager, make_spec(9))
        first, second = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        store = manager.checkpoints("fleet")
        fleet.train(ledger, first, store, ledger.claim(first, limit=9, lease_s=60))
        before = ledger.claim(first, limit=9, lease_s=60)
        assert {(claim.rung, claim.epochs, claim.target_epochs) for claim in before} == {(1, 1, 3)}
        ledger.record(first, [row for claim in before for row in fleet.curve(claim, 1, 2)])
        expire(manager)
        after = ledger.claim(second, limit=9, lease_s=60)
        for old, new in zip(before, after, strict=True):
            assert (new.number, new.params, new.checkpoint, new.epochs) == (
                old.number,
                old.params,
                old.checkpoint,
                old.epochs,
            )
            assert (new.token, new.attempt) == (old.token + 1, 2)
            assert new.checkpoint is not None
            assert int(store.read_pack(new.checkpoint, [new.number])[new.number]["epochs"]) == 1
        # The epoch that was recorded and lost is forgotten, so that the rerun writes it once.
        trials = fleet.read_optuna(url, "fleet").trials
        assert all(list(trials[claim.number].intermediate_values) == [1] for claim in after)
        epochs = select(schema.curves.c.epoch).where(schema.curves.c.number == after[0].number)
        assert manager._database.read(lambda c: c.execute(epochs).scalars().all()) == [1]

    @pytest.mark.parametrize(("seen", "bound"), [(True, 3), (False, 10)], ids=["dead", "silent"])
    def test_attempts_are_bounded(self, url: str, manager: StudyManager, seen: bool, bound: int) -> None:
        """A trial may kill its worker, which its launcher sees; machines are taken away, and nobody sees anything."""
        spec = make_spec(9)
        ledger = create(manager, spec)
        for attempt in range(1, bound + 1):
            worker = ledger.register("node", 7, "cpu", "0")
            claims = ledger.claim(worker, limit=2, lease_s=60)
            assert [(claim.number, claim.attempt) for claim in claims] == [(0, attempt), (1, attempt)]
            ledger.bury("node", 7) if seen else expire(manager)
        fleet.work(ledger, manager.checkpoints("fleet"))
        check(manager, spec, url)
        rows = manager.trials("fleet")
        assert [row.state for row in rows[:2]] == ["failed", "failed"]
        assert rows[0].reason == f"the lease ran out {bound} times, last on node:7"
        assert sum(row.state == "complete" for row in rows) == 1
        assert manager.summary("fleet").trials["failed"] == 2
        assert fleet.read_optuna(url, "fleet").trials[0].user_attrs["reason"] == rows[0].reason

    def test_attempts_begin_anew_where_something_was_saved(self, local: StudyManager) -> None:
        """However often its workers are taken away, a trial that gets on ends."""
        ledger = create(local, make_spec(9))
        store = local.checkpoints("fleet")
        for _ in range(12):
            worker = ledger.register("node", 7, "cpu", "0")
            (claim,) = ledger.claim(worker, limit=1, lease_s=60)
            assert (claim.number, claim.attempt) == (0, 1 if claim.checkpoint is None else 2)
            ledger.save(worker, [(0, claim.token, 0)], [], store.write(fleet.lanes([claim])))
            ledger.bury("node", 7)

    def test_failures_are_tried_again_and_then_fail_with_the_reason(self, local: StudyManager, sqlite_url: str) -> None:
        spec = make_spec(9)
        ledger = create(local, spec)
        worker = ledger.register("h", 1, "cpu", "0")
        for attempt in (1, 2, 3):
            (claim,) = ledger.claim(worker, limit=1, lease_s=60)
            assert (claim.number, claim.attempt) == (0, attempt)
            outcome = ledger.fail(worker, [(0, claim.token, f"out of memory {attempt}")])
            assert outcome.failed == ({0} if attempt == 3 else set())
        fleet.work(ledger, local.checkpoints("fleet"))
        check(local, spec, sqlite_url)
        assert (local.trials("fleet")[0].state, local.trials("fleet")[0].reason) == ("failed", "out of memory 3")

    def test_a_slot_that_fails_before_it_was_drawn_is_still_a_trial(self, local: StudyManager, sqlite_url: str) -> None:
        spec = make_spec(9)
        ledger = create(local, spec)
        ledger.max_losses = 3
        worker = ledger.register("h", 1, "cpu", "0")
        for _ in range(3):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ledger, "_store_drawn", _killed)
                patch.setattr(ledger, "release", lambda *_: None)  # killed at once: nobody cleans up
                with pytest.raises(KeyboardInterrupt):
                    ledger.claim(worker, limit=1, lease_s=60)
            expire(local)
        fleet.work(ledger, local.checkpoints("fleet"))
        check(local, spec, sqlite_url)
        assert local.trials("fleet")[0].params is None
        assert fleet.read_optuna(sqlite_url, "fleet").trials[0].state.name == "FAIL"

    def test_a_claim_whose_draw_breaks_gives_its_slots_back(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger._proposals, "draw", _killed)
            with pytest.raises(KeyboardInterrupt):
                ledger.claim(worker, limit=3, lease_s=60)
        assert ledger.outstanding().leased == 0
        assert [claim.attempt for claim in ledger.claim(worker, limit=3, lease_s=60)] == [1, 1, 1]

    def test_a_stopped_study_gives_nothing_until_it_is_resumed(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        assert not ledger.stopped()
        local.stop("fleet")
        assert ledger.stopped()
        assert ledger.claim(worker, limit=3, lease_s=60) == []
        local.resume("fleet")
        assert len(ledger.claim(worker, limit=3, lease_s=60)) == 3

    def test_a_heartbeat_renews_each_lease(self, manager: StudyManager) -> None:
        ledger = create(manager, make_spec(9))
        worker, other = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        claims = ledger.claim(worker, limit=3, lease_s=60)
        expire(manager)
        ledger.heartbeat(other, 0, 0.0)
        assert ledger.outstanding().expired == 3
        ledger.heartbeat(worker, 3, 12.5)
        state = ledger.outstanding()
        assert (state.leased, state.expired, state.claimable) == (3, 0, 6)
        (holder,) = state.holders
        assert (holder.name, holder.slots) == ("h:1", 3)
        assert 50 < holder.lease_s <= 60
        assert [claim.number for claim in ledger.claim(other, limit=9, lease_s=60)] == [3, 4, 5, 6, 7, 8]
        row = manager.workers("fleet")[0]
        assert (row.worker, row.live, row.lanes, row.epochs_per_s) == ("h:1", True, 3, 12.5)
        ledger.leave(worker)
        assert not manager.workers("fleet")[0].live
        again = ledger.claim(other, limit=9, lease_s=60)
        assert [(claim.number, claim.params) for claim in again] == [(claim.number, claim.params) for claim in claims]

    def test_the_clocks_of_the_workers_do_not_matter(
        self, url: str, manager: StudyManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = create(manager, make_spec(9, pruner="none"))
        honest = time.time
        for pid, skew_s in enumerate((-7200, 7200), start=1):
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda skew_s=skew_s: honest() + skew_s)
                worker = ledger.register("h", pid, "cpu", "0")
                claims = ledger.claim(worker, limit=3, lease_s=60)
                assert [claim.number for claim in claims] == list(range(3 * pid - 3, 3 * pid)), "none of the other's"
                assert all(holder.lease_s > 50 for holder in ledger.outstanding().holders)
                assert ledger.outstanding().leased == 3 * pid
                ledger.heartbeat(worker, 3, 1.0)
                assert not ledger.record(worker, fleet.curve(claims[0], 0, 1))
        state = ledger.outstanding()
        assert (state.leased, state.expired) == (6, 0)
        assert all(50 < holder.lease_s <= 60 for holder in state.holders)
        assert [row.state for row in manager.workers("fleet")] == ["live", "live"]
        for trial in fleet.read_optuna(url, "fleet").trials:
            assert trial.datetime_start is not None
            assert abs(trial.datetime_start.replace(tzinfo=UTC).timestamp() - honest()) < 600

    def test_the_leases_of_a_process_that_is_known_to_be_dead_end_at_once(
        self, url: str, manager: StudyManager
    ) -> None:
        spec = make_spec(9)
        ledger = create(manager, spec)
        dead, other = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        before = ledger.claim(dead, limit=3, lease_s=600)
        kept = ledger.claim(other, limit=2, lease_s=600)
        assert manager.bury("fleet", "h", 1) == 3
        assert manager.bury("fleet", "elsewhere", 2) == 0
        assert [row.state for row in manager.workers("fleet")] == ["lost", "live"]
        after: list[Claim] = []
        wait_for(lambda: after.extend(ledger.claim(other, limit=3, lease_s=60)) or after)
        assert [(c.number, c.params, c.attempt) for c in after] == [(c.number, c.params, 2) for c in before]
        # Should it not be dead after all, the fence holds.
        assert ledger.commit(dead, [fleet.result(claim) for claim in before]).lost == {0, 1, 2}
        for claims in (kept, after):
            fleet.train(ledger, other, manager.checkpoints("fleet"), claims)
        fleet.work(ledger, manager.checkpoints("fleet"))
        check(manager, spec, url)

    def test_a_trial_that_kills_its_workers_is_not_tried_for_ever(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(1, pruner="none"))
        for pid in (1, 2, 3):
            worker = ledger.register("h", pid, "cpu", "0")
            wait_for(lambda worker=worker: ledger.claim(worker, limit=1, lease_s=600))
            local.bury("fleet", "h", pid)
        last = ledger.register("h", 4, "cpu", "0")
        wait_for(lambda: not ledger.claim(last, limit=1, lease_s=600) and ledger.finished())
        assert [(row.state, row.attempt) for row in local.trials("fleet")] == [("failed", 3)]

    @pytest.mark.parametrize("url", ["postgresql", "mysql"], indirect=True)  # SQLite has one writer at a time
    def test_no_worker_waits_for_the_rows_of_another(self, manager: StudyManager) -> None:
        ledger = create(manager, make_spec(60, pruner="none"))
        claims = {pid: ledger.claim(ledger.register("h", pid, "cpu", "0"), limit=20, lease_s=600) for pid in (1, 2)}
        theirs, mine = (sorted(claims[pid], key=lambda claim: claim.number) for pid in (1, 2))
        (worker,) = {slot(manager, claim.number).worker_id for claim in mine}
        held = threading.Event()
        tokens = {claim.number: claim.token for claim in theirs}

        def another(connection: Connection) -> None:
            assert ledger._held(connection, slot(manager, theirs[0].number).worker_id, tokens).keys() == tokens.keys()
            held.set()
            assert done.wait(60), "the worker waited for the rows of another one"

        done = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            transaction = pool.submit(manager._database.write, another)
            try:
                assert held.wait(60)
                ledger.heartbeat(worker, lanes=20, epochs_per_s=1.0)
                assert not ledger.record(worker, fleet.curve(mine[0], 0, 1))
                assert not ledger.commit(worker, [fleet.result(claim) for claim in mine[:10]]).lost
                assert len(ledger.claim(worker, limit=60, lease_s=60)) == 20
                ledger.leave(worker)
            finally:
                done.set()
            transaction.result()

    def test_recording_renews_too(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        (claim,) = ledger.claim(worker, limit=1, lease_s=60)
        expire(local)
        assert ledger.record(worker, fleet.curve(claim, 0, 1)) == frozenset()
        assert ledger.outstanding().expired == 0

    def test_a_deleted_study_is_said_to_be_gone(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=1, lease_s=60)
        local.delete("fleet")
        with pytest.raises(StudyNotFoundError, match="deleted"):
            ledger.claim(worker, limit=1, lease_s=60)
        with pytest.raises(StudyNotFoundError, match="deleted"):
            ledger.finished()
        assert ledger.commit(worker, [fleet.result(claims[0])]).lost == {0}

    @pytest.mark.parametrize("url", ["postgresql", "mysql"], indirect=True)  # SQLite has one writer at a time
    def test_a_study_may_be_deleted_while_results_are_written(
        self, manager: StudyManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = create(manager, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=4, lease_s=60)
        rows = [row for claim in claims for row in fleet.curve(claim, 0, 1)]
        written, deleting = threading.Event(), threading.Event()
        write = ledger._write_curves

        def slow(*given: Any) -> None:
            write(*given)
            written.set()
            assert deleting.wait(60)

        def see(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith(("DELETE FROM tuner_slots", "DELETE FROM trials ")):  # whichever comes first
                deleting.set()

        monkeypatch.setattr(ledger, "_write_curves", slow)
        event.listen(manager._database.engine, "before_cursor_execute", see)
        with ThreadPoolExecutor(1) as pool:
            commit = pool.submit(ledger.commit, worker, [fleet.result(claim) for claim in claims], rows)
            assert written.wait(60)
            manager.delete("fleet")
            assert commit.result().lost in (set(), {0, 1, 2, 3})
        for table in (schema.slots, schema.rungs, schema.curves, records.trials, records.intermediate_values):
            assert manager._database.read(lambda c, table=table: c.execute(select(table)).all()) == []

    @pytest.mark.parametrize(("limit", "lease_s"), [(0, 60), (1, 0)])
    def test_a_claim_of_nothing_is_refused(self, local: StudyManager, limit: int, lease_s: float) -> None:
        with pytest.raises(ValueError, match="limit >= 1 and lease_s > 0"):
            create(local, make_spec(9)).claim(1, limit=limit, lease_s=lease_s)


def _killed(*_: Any) -> Any:
    raise KeyboardInterrupt


class TestFencing:
    def overtaken(self, manager: StudyManager, ledger: Ledger) -> tuple[int, Claim, int, Claim]:
        """A worker that is stopped past its lease, and the one that has its slot now."""
        slow, quick = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        (stale,) = ledger.claim(slow, limit=1, lease_s=60)
        expire(manager)
        (fresh,) = ledger.claim(quick, limit=1, lease_s=60)
        assert (fresh.number, fresh.token) == (stale.number, stale.token + 1)
        return slow, stale, quick, fresh

    def test_a_stale_token_writes_nothing(self, url: str, manager: StudyManager) -> None:
        spec = make_spec(3, pruner="none")
        ledger = create(manager, spec)
        slow, stale, quick, fresh = self.overtaken(manager, ledger)
        before = slot(manager, 0)
        wrong = fleet.result(stale, value=0.125)
        file = manager.checkpoints("fleet").write(fleet.lanes([stale]))
        outcome = ledger.commit(slow, [wrong], fleet.curve(stale, 0, 9), file)
        assert (outcome.lost, outcome.removed) == ({0}, (file.name,))
        assert ledger.record(slow, fleet.curve(stale, 0, 9)) == {0}
        assert ledger.release(slow, [(0, stale.token, 5)], fleet.curve(stale, 0, 5), file).lost == {0}
        assert ledger.fail(slow, [(0, stale.token, "no")]).lost == {0}
        ledger.heartbeat(slow, 1, 1.0)
        ledger.leave(slow)
        assert slot(manager, 0) == before
        assert fleet.read_optuna(url, "fleet").trials[0].intermediate_values == {}
        for table in (schema.rungs, schema.curves, schema.checkpoints):
            assert manager._database.read(lambda c, table=table: c.execute(select(table)).all()) == []
        assert ledger.commit(quick, [fleet.result(fresh)], fleet.curve(fresh, 0, 9)).completed == {0}
        assert ledger.commit(slow, [wrong]).lost == {0}  # after the end, too
        fleet.work(ledger, manager.checkpoints("fleet"))
        check(manager, spec, url)

    def test_without_the_fence_the_checker_complains(
        self, url: str, manager: StudyManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = make_spec(3, pruner="none")
        ledger = create(manager, spec)
        log = fleet.Log()
        slow, stale, quick, fresh = self.overtaken(manager, ledger)
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "_held", lambda connection, _, tokens: _anybodys(connection, tokens))
            outcome = ledger.commit(slow, [fleet.result(stale, value=0.125)], fleet.curve(stale, 0, 9))
            assert outcome.lost == set()
        ledger.commit(quick, [fleet.result(fresh)])
        fleet.work(ledger, manager.checkpoints("fleet"), log=log)
        with pytest.raises(AssertionError, match="not the value of its parameters"):
            check(manager, spec, url)

    def test_the_checker_sees_a_result_accepted_twice_and_one_lost(self, local: StudyManager, sqlite_url: str) -> None:
        spec = make_spec(3, pruner="none")
        log = fleet.Log()
        ledger = create(local, spec)
        fleet.work(ledger, local.checkpoints("fleet"), log=log)
        check(local, spec, sqlite_url, log)
        log.accepted[0, 0] += 1
        with pytest.raises(AssertionError, match="twice"):
            check(local, spec, sqlite_url, log)
        del log.accepted[0, 0]
        with pytest.raises(AssertionError, match="none lost"):
            check(local, spec, sqlite_url, log)

    @pytest.mark.parametrize("url", ["postgresql", "mysql"], indirect=True)  # SQLite has one writer at a time
    def test_whose_result_is_being_written_cannot_be_claimed(
        self, url: str, manager: StudyManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fence holds from the look at the token to the commit, however late it is for the lease."""
        spec = make_spec(3, pruner="none")
        ledger = create(manager, spec)
        slow, quick = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        (late,) = ledger.claim(slow, limit=1, lease_s=60)
        expire(manager)
        fenced, go_on = threading.Event(), threading.Event()
        fence = ledger._held

        def slowly(*given: Any) -> Any:
            held = fence(*given)
            fenced.set()
            assert go_on.wait(60)
            return held

        monkeypatch.setattr(ledger, "_held", slowly)
        with ThreadPoolExecutor(1) as pool:
            commit = pool.submit(ledger.commit, slow, [fleet.result(late)], fleet.curve(late, 0, 9))
            try:
                assert fenced.wait(60)
                others = manager.ledger("fleet")
                claims = others.claim(quick, limit=3, lease_s=60)
            finally:
                go_on.set()
            assert commit.result().completed == {0}
        assert [claim.number for claim in claims] == [1, 2]
        fleet.train(others, quick, manager.checkpoints("fleet"), claims)
        check(manager, spec, url)

    def test_only_the_lost_lanes_of_a_pack_are_dropped(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9, pruner="none"))
        slow, quick = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        pack = ledger.claim(slow, limit=4, lease_s=60)
        expire(local, 1, 2)
        ledger.claim(quick, limit=2, lease_s=60)
        outcome = ledger.commit(slow, [fleet.result(claim) for claim in pack])
        assert (outcome.lost, outcome.completed) == ({1, 2}, {0, 3})

    def test_a_worker_of_a_deleted_study_has_no_part_in_the_next_of_its_name(self, manager: StudyManager) -> None:
        """SQLite gives the number of the deleted study to the new one."""
        before = create(manager, make_spec(9, pruner="none"))
        late = before.register("h", 1, "cpu", "0")
        stale = before.claim(late, limit=2, lease_s=60)
        manager.delete("fleet")
        after = create(manager, make_spec(9, pruner="none", sampler="qmc"))
        worker = after.register("h", 2, "cpu", "0")
        claims = after.claim(worker, limit=2, lease_s=60)
        assert [(c.number, c.token) for c in claims] == [(c.number, c.token) for c in stale]
        held = [slot(manager, claim.number) for claim in claims]
        assert before.commit(late, [fleet.result(claim) for claim in stale]).lost == {0, 1}
        assert before.record(late, fleet.curve(stale[0], 0, 9)) == {0}
        assert before.fail(late, [(0, stale[0].token, "no")]).lost == {0}
        before.heartbeat(late, 1, 1.0)
        before.leave(late)
        for ask in (lambda: before.claim(late, limit=2, lease_s=60), before.finished, before.stopped):
            with pytest.raises(StudyNotFoundError, match="deleted"):
                ask()
        assert [slot(manager, claim.number) for claim in claims] == held
        assert after.commit(worker, [fleet.result(claim) for claim in claims]).completed == {0, 1}

    def test_a_lease_that_ran_out_but_was_not_claimed_is_still_ours(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9, pruner="none"))
        worker = ledger.register("h", 1, "cpu", "0")
        (claim,) = ledger.claim(worker, limit=1, lease_s=60)
        expire(local)
        assert ledger.commit(worker, [fleet.result(claim)]).completed == {0}


def _anybodys(connection: Any, tokens: dict[int, int]) -> dict[int, Any]:
    """The fence, switched off: whoever asks holds the slots, whatever token they show."""
    rows = connection.execute(select(schema.slots).where(schema.slots.c.number.in_(list(tokens)))).all()
    return {row.number: _Renamed(row, tokens) for row in rows}


class _Renamed:
    """A slot's row that shows the token it was asked for."""

    def __init__(self, row: Any, tokens: dict[int, int]) -> None:
        self._row = row
        self.token = tokens[row.number]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


class TestRungs:
    def test_decisions_and_their_reasons(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=9, lease_s=60)
        early = ledger.commit(worker, [fleet.result(claim, value=float(claim.number)) for claim in claims[:8]])
        assert (early.promoted, early.pruned) == (frozenset(), frozenset())
        assert [row.state for row in local.trials("fleet")[:8]] == ["waiting"] * 8
        last = ledger.commit(worker, [fleet.result(claims[8], value=math.nan)])
        assert (last.promoted, last.pruned) == ({0, 1, 2}, {3, 4, 5, 6, 7, 8})
        rows = local.trials("fleet")
        assert rows[3].reason == "rung 0 at 1 epoch: rank 4 of 9, 3 promoted"
        assert rows[8].reason == "diverged at epoch 1"
        assert [row.rung for row in rows] == [1, 1, 1, 0, 0, 0, 0, 0, 0]

    def test_maximized_metrics_keep_the_largest(self, local: StudyManager) -> None:
        spec = fleet.spaces_study(
            study={"name": "fleet", "metric": "accuracy"}, search={"trials": 9}, training={"max_epochs": 9}
        )
        ledger = create(local, spec)
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=9, lease_s=60)
        assert ledger.commit(worker, [fleet.result(c, value=c.number / 9) for c in claims]).promoted == {6, 7, 8}

    def test_a_rung_where_all_diverge_ends_its_bracket(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=9, lease_s=60)
        values = [math.nan, math.inf, -math.inf] * 3
        results = [fleet.result(claim, value) for claim, value in zip(claims, values, strict=True)]
        assert ledger.commit(worker, results).pruned == set(range(9))
        assert ledger.finished()
        assert local.best("fleet") is None
        assert local.summary("fleet").as_dict()["best"] is None

    def test_a_lane_that_diverges_at_the_top_is_pruned_at_once(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(2, pruner="none"))
        worker = ledger.register("h", 1, "cpu", "0")
        good, bad = ledger.claim(worker, limit=2, lease_s=60)
        outcome = ledger.commit(
            worker,
            [
                fleet.result(good),
                RungResult(number=1, token=bad.token, epochs=4, value=math.nan, seconds=1.0, reason="loss is NaN"),
            ],
        )
        assert (outcome.completed, outcome.pruned) == ({0}, {1})
        row = local.trials("fleet")[1]
        assert (row.state, row.value, row.epochs, row.reason) == ("pruned", None, 4, "loss is NaN")

    def test_a_failed_slot_is_a_loser_and_does_not_hold_up_its_rung(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        ledger.max_attempts = 1
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=9, lease_s=60)
        assert not ledger.commit(worker, [fleet.result(claim) for claim in claims[1:]]).promoted
        outcome = ledger.fail(worker, [(0, claims[0].token, "boom")])
        assert (outcome.failed, len(outcome.promoted), len(outcome.pruned)) == ({0}, 3, 5)

    def test_the_last_two_committers_at_once_make_one_decision(self, url: str, manager: StudyManager) -> None:
        spec = make_spec(9)
        ledger = create(manager, spec)
        packs = []
        for pid in range(3):
            worker = ledger.register("h", pid, "cpu", "0")
            packs.append((worker, ledger.claim(worker, limit=3, lease_s=60)))
        barrier = threading.Barrier(3)

        def one(pack: tuple[int, list[Claim]]) -> int:
            barrier.wait()
            rows = [row for claim in pack[1] for row in fleet.curve(claim, 0, 1)]
            return len(ledger.commit(pack[0], [fleet.result(claim) for claim in pack[1]], rows).promoted)

        with ThreadPoolExecutor(3) as pool:
            assert sorted(pool.map(one, packs)) == [0, 0, 3]
        fleet.work(ledger, manager.checkpoints("fleet"))
        check(manager, spec, url)


class TestAsha:
    """Algorithm 2 of Li et al. 2020, step by step, and by many at once."""

    @pytest.mark.parametrize("limit", [1, 4])
    def test_concurrent_workers_keep_every_promise(self, url: str, manager: StudyManager, limit: int) -> None:
        spec = make_spec(40, pruner="asha")
        create(manager, spec)
        log = fleet.Log()

        def one(pid: int) -> None:
            fleet.work(manager.ledger("fleet"), manager.checkpoints("fleet"), limit=limit, log=log, pid=pid)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(one, range(3)))
        check(manager, spec, url, log)
        assert not list(manager.checkpoints("fleet").root.iterdir()), "no checkpoint outlives its use"

    def test_step_by_step(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(7, pruner="asha"))  # rungs at 1, 3 and 9 epochs
        worker = ledger.register("h", 1, "cpu", "0")

        def step(value: float) -> tuple[int, int]:
            (claim,) = ledger.claim(worker, limit=1, lease_s=60)
            ledger.commit(worker, [fleet.result(claim, value)])
            return claim.number, claim.rung

        assert [step(value) for value in (0.5, 0.4, 0.3)] == [(0, 0), (1, 0), (2, 0)]
        assert step(0.25) == (2, 1)  # the best of three goes on before anything new begins
        assert step(0.2) == (3, 0)
        assert step(0.15) == (3, 1)  # the best of four, although 2 has gone already
        # Six results, of which the best two are 3 and 2, and have gone; then seven.
        assert [step(value) for value in (0.9, 0.8, 0.7)] == [(4, 0), (5, 0), (6, 0)]
        # Rung 1 has two results, of which the best third is nobody. Nothing is left to begin: its best goes on.
        assert step(0.1) == (3, 2)
        rows = local.trials("fleet")
        assert ledger.finished()
        assert [(row.state, row.rung) for row in rows] == [
            ("pruned", 0),
            ("pruned", 0),
            ("pruned", 1),
            ("complete", 2),
            ("pruned", 0),
            ("pruned", 0),
            ("pruned", 0),
        ]
        assert [row.value for row in rows] == [0.5, 0.4, 0.25, 0.1, 0.9, 0.8, 0.7]
        assert rows[0].reason == "rung 0 at 1 epoch: rank 4 of 7, 2 promoted"
        assert rows[2].reason == "rung 1 at 3 epochs: rank 2 of 2, 1 promoted"

    def test_a_pack_is_promoted_from_one_rung(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(40, pruner="asha"))
        worker = ledger.register("h", 1, "cpu", "0")
        pack = ledger.claim(worker, limit=20, lease_s=60)
        ledger.commit(worker, [fleet.result(claim) for claim in pack])
        few = ledger.claim(worker, limit=2, lease_s=60)
        rest = ledger.claim(worker, limit=20, lease_s=60)
        assert (len(few), len(rest)) == (2, 4)
        assert {claim.rung for claim in (*few, *rest)} == {1}
        assert not {claim.number for claim in few} & {claim.number for claim in rest}
        assert {claim.rung for claim in ledger.claim(worker, limit=50, lease_s=60)} == {0}

    def test_all_diverge(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(4, pruner="asha"))
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=4, lease_s=60)
        outcome = ledger.commit(worker, [fleet.result(claim, math.nan) for claim in claims])
        assert outcome.pruned == {0, 1, 2, 3}
        assert ledger.finished()

    def test_a_failure_at_the_end_leaves_the_next_best_a_chance(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(2, pruner="asha"))
        ledger.max_attempts = 1
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=2, lease_s=60)
        ledger.commit(worker, [fleet.result(claim, float(claim.number)) for claim in claims])
        (first,) = ledger.claim(worker, limit=2, lease_s=60)
        assert (first.number, first.rung) == (0, 1)
        outcome = ledger.fail(worker, [(0, first.token, "boom")])
        assert (outcome.failed, outcome.promoted) == ({0}, {1})
        fleet.work(ledger, local.checkpoints("fleet"))
        assert [row.state for row in local.trials("fleet")] == ["failed", "complete"]

    def test_the_checker_notices_who_is_left_behind(
        self, local: StudyManager, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without the rule only the last hope of the end goes on."""
        spec = make_spec(20, pruner="asha")
        ledger = create(local, spec)
        with monkeypatch.context() as patch:
            patch.setattr(ledger._rungs, "_promotable", lambda _: [])
            patch.setattr(Standing, "promotable", lambda *_: [])
            fleet.work(ledger, local.checkpoints("fleet"))
        with pytest.raises(AssertionError, match="nobody is left behind"):
            check(local, spec, sqlite_url)

    def test_statements_depend_on_nothing(self, manager: StudyManager) -> None:
        def cost(trials: int, name: str) -> tuple[int, int]:
            spec = fleet.spaces_study(
                study={"name": name}, search={"trials": trials, "pruner": "asha"}, training={"max_epochs": 9}
            )
            manager.create(spec, data_root=Path("/"), data_digest="d", split_digest="s")
            ledger = manager.ledger(name)
            worker = ledger.register("h", 1, "cpu", "0")
            claims = ledger.claim(worker, limit=trials - 1, lease_s=60)
            _, commit = counted(manager, lambda: ledger.commit(worker, [fleet.result(c) for c in claims]))
            promoted, claim = counted(manager, lambda: ledger.claim(worker, limit=trials, lease_s=60))
            assert {c.rung for c in promoted} == {1}
            return claim, commit

        assert cost(7, "few") == cost(40, "many")


class TestRefinement:
    REFINE: dict[str, Any] = {"rounds": 2, "keep": 0.2}  # noqa: RUF012

    def drawn(self, manager: StudyManager, name: str, limit: int, crew: int, spec: Any) -> list[Any]:
        manager.create(spec, data_root=Path("/"), data_digest="d", split_digest="s")

        def one(pid: int) -> None:
            fleet.work(manager.ledger(name), manager.checkpoints(name), limit=limit, pid=pid)

        with ThreadPoolExecutor(crew) as pool:
            list(pool.map(one, range(crew)))
        return [row.params for row in manager.trials(name)]

    def test_any_number_of_workers_draws_the_same(self, url: str, manager: StudyManager) -> None:
        specs = [
            fleet.spaces_study(
                study={"name": name}, search={"trials": 30, "refine": self.REFINE}, training={"max_epochs": 9}
            )
            for name in ("one", "many")
        ]
        alone = self.drawn(manager, "one", 7, 1, specs[0])
        together = self.drawn(manager, "many", 3, 4, specs[1])
        assert alone == together
        check(manager, specs[1], url)

    def test_a_round_waits_for_all_before_it_and_draws_around_their_best(
        self, local: StudyManager, sqlite_url: str
    ) -> None:
        spec = make_spec(40, pruner="none", refine={"rounds": 2, "keep": 0.2})
        ledger = create(local, spec)
        worker, other = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        first = ledger.claim(worker, limit=40, lease_s=60)
        assert [claim.number for claim in first] == list(range(20))
        ledger.commit(worker, [fleet.result(claim) for claim in first[:-1]])
        assert ledger.claim(other, limit=40, lease_s=60) == []
        ledger.commit(worker, [fleet.result(first[-1])])
        second = ledger.claim(other, limit=40, lease_s=60)
        assert [claim.number for claim in second] == list(range(20, 40))
        best = sorted(first, key=lambda claim: fleet.truth(claim.params, 9))[:4]
        space = spec.search_space
        expected = narrow(space, [claim.params for claim in best], 0.2)
        for claim in second:
            assert all(domain.contains(claim.params[key]) for key, domain in expected.searched.items())
        rates = [float(claim.params["learning_rate"]) for claim in second]  # type: ignore[arg-type]
        assert max(rates) / min(rates) < 1e-1 / 1e-5 / 10  # narrower than the whole
        ledger.commit(other, [fleet.result(claim) for claim in second])
        assert ledger.finished()
        # Any Optuna tool reads the parameters under the study's own distributions, and the narrowed space beside them.
        trials = fleet.read_optuna(sqlite_url, "fleet").trials
        assert trials[0].distributions["learning_rate"] == trials[39].distributions["learning_rate"]
        storage = optuna.storages.RDBStorage(sqlite_url)
        written = optuna.load_study(study_name="fleet", storage=storage).user_attrs["space_of_round_2"]
        storage.remove_session()
        storage.engine.dispose()
        assert read_written(space, written) == expected

    def test_who_narrows_second_takes_what_is_there(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(10, pruner="none", refine={"rounds": 2, "keep": 0.5}))
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=5, lease_s=60)
        ledger.commit(worker, [fleet.result(claim) for claim in claims])
        key = "space_of_round_2"
        mine = {"learning_rate": {"low": 2e-3, "high": 3e-3, "log": True}}
        local._database.write(lambda c: records.keep_study_attr(c, ledger.study_id, key, mine))
        local._database.write(lambda c: ledger._proposals.narrow(c, 1))
        assert local._database.read(lambda c: records.study_attr(c, ledger.study_id, key)) == mine
        assert all(2e-3 <= float(c.params["learning_rate"]) <= 3e-3 for c in ledger.claim(worker, limit=5, lease_s=60))  # type: ignore[arg-type]


class TestRetry:
    def failed(self, ledger: Ledger, worker: int, *numbers: int) -> None:
        claims = {claim.number: claim for claim in ledger.claim(worker, limit=9, lease_s=60)}
        ledger.release(worker, [(n, c.token, 0) for n, c in claims.items() if n not in numbers])
        ledger.fail(worker, [(n, claims[n].token, "boom") for n in numbers])

    def test_failed_slots_come_again(self, url: str, manager: StudyManager) -> None:
        spec = make_spec(9, pruner="none")
        ledger = create(manager, spec)
        ledger.max_attempts = 1
        worker = ledger.register("h", 1, "cpu", "0")
        self.failed(ledger, worker, 2, 5)
        before = {row.number: row.params for row in manager.trials("fleet")}
        ledger.max_attempts = 3
        fleet.work(ledger, manager.checkpoints("fleet"))
        check(manager, spec, url)
        assert manager.summary("fleet").trials["failed"] == 2
        assert ledger.retry() == {2, 5}
        rows = manager.trials("fleet")
        assert [(rows[n].state, rows[n].attempt, rows[n].reason) for n in (2, 5)] == [("waiting", 0, None)] * 2
        assert fleet.read_optuna(url, "fleet").trials[2].state.name == "RUNNING"
        fleet.work(ledger, manager.checkpoints("fleet"))
        check(manager, spec, url)
        assert manager.summary("fleet").trials["complete"] == 9
        assert {row.number: row.params for row in manager.trials("fleet")} == before
        assert "reason" not in fleet.read_optuna(url, "fleet").trials[2].user_attrs
        assert ledger.retry() == set()

    @pytest.mark.parametrize(("value", "promoted"), [(-1.0, {4}), (100.0, set())], ids=["better", "worse"])
    def test_it_competes_with_those_before_it(self, local: StudyManager, value: float, promoted: set[int]) -> None:
        """A rung that was decided without it is not decided anew, but only who is good enough goes on."""
        ledger = create(local, make_spec(9))
        ledger.max_attempts = 1
        worker = ledger.register("h", 1, "cpu", "0")
        self.failed(ledger, worker, 4)
        fleet.work(ledger, local.checkpoints("fleet"))
        assert ledger.retry() == {4}
        (claim,) = ledger.claim(worker, limit=9, lease_s=60)
        outcome = ledger.commit(worker, [fleet.result(claim, value)])
        assert outcome.promoted == promoted
        assert outcome.pruned == {4} - promoted

    def test_a_slot_that_was_never_drawn(self, local: StudyManager, sqlite_url: str) -> None:
        spec = make_spec(3, pruner="none")
        ledger = create(local, spec)
        ledger.max_losses = 3
        worker = ledger.register("h", 1, "cpu", "0")
        for _ in range(3):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ledger, "_store_drawn", _killed)
                patch.setattr(ledger, "release", lambda *_: None)
                with pytest.raises(KeyboardInterrupt):
                    ledger.claim(worker, limit=1, lease_s=60)
            expire(local)
        fleet.work(ledger, local.checkpoints("fleet"))
        assert ledger.retry() == {0}
        fleet.work(ledger, local.checkpoints("fleet"))
        check(local, spec, sqlite_url)
        assert local.summary("fleet").trials["complete"] == 3


class TestRelease:
    def test_an_interrupted_lane_goes_on_from_where_it_was(self, url: str, manager: StudyManager) -> None:
        spec = make_spec(3, pruner="none")
        ledger = create(manager, spec)
        store = manager.checkpoints("fleet")
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=3, lease_s=60)
        halfway = store.write(
            {c.number: {"epochs": _array(4), "rate": _array(c.params["learning_rate"])} for c in claims}
        )
        rows = [row for claim in claims for row in fleet.curve(claim, 0, 4)]
        outcome = ledger.release(worker, [(claim.number, claim.token, 4) for claim in claims], rows, halfway)
        assert outcome.lost == set()
        assert manager.summary("fleet").epochs_trained == 12
        again = ledger.claim(worker, limit=3, lease_s=60)
        assert [(c.number, c.epochs, c.attempt, c.checkpoint) for c in again] == [
            (claim.number, 4, 1, halfway) for claim in claims
        ]
        fleet.train(ledger, worker, store, again)
        check(manager, spec, url)

    def test_a_checkpoint_on_the_way_is_what_a_lost_lane_goes_on_from(self, url: str, manager: StudyManager) -> None:
        spec = make_spec(3, pruner="none")
        ledger = create(manager, spec)
        store = manager.checkpoints("fleet")
        first, second = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        claims = ledger.claim(first, limit=3, lease_s=60)
        old = store.write({c.number: {"epochs": _array(2), "rate": _array(c.params["learning_rate"])} for c in claims})
        new = store.write({c.number: {"epochs": _array(4), "rate": _array(c.params["learning_rate"])} for c in claims})
        rows = [row for claim in claims for row in fleet.curve(claim, 0, 2)]
        expire(manager)
        ledger.save(first, [(claim.number, claim.token, 2) for claim in claims], rows, old)
        assert ledger.outstanding().expired == 0  # renewed
        rows = [row for claim in claims for row in fleet.curve(claim, 2, 4)]
        outcome = ledger.save(first, [(claim.number, claim.token, 4) for claim in claims], rows, new)
        assert outcome.removed == (old.name,)
        ledger.record(first, [row for claim in claims for row in fleet.curve(claim, 4, 6)])
        expire(manager)
        again = ledger.claim(second, limit=3, lease_s=60)
        assert {(claim.epochs, claim.attempt, claim.checkpoint) for claim in again} == {(4, 2, new)}
        late = ledger.save(first, [(claim.number, claim.token, 2) for claim in claims], [], old)
        assert (late.lost, late.removed) == ({0, 1, 2}, (old.name,))
        fleet.train(ledger, second, store, again)
        check(manager, spec, url)

    def test_without_a_checkpoint_it_goes_on_from_the_last_one(self, local: StudyManager, sqlite_url: str) -> None:
        spec = make_spec(3, pruner="none")
        ledger = create(local, spec)
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=3, lease_s=60)
        rows = [row for claim in claims for row in fleet.curve(claim, 0, 4)]
        ledger.record(worker, rows)
        ledger.release(worker, [(claim.number, claim.token, 4) for claim in claims])
        again = ledger.claim(worker, limit=3, lease_s=60)
        assert {(claim.epochs, claim.checkpoint) for claim in again} == {(0, None)}
        fleet.train(ledger, worker, local.checkpoints("fleet"), again)
        check(local, spec, sqlite_url)

    def test_checkpoints_go_when_nothing_needs_them(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        store = local.checkpoints("fleet")
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=9, lease_s=60)
        first = store.write(fleet.lanes(claims[:5]))
        second = store.write(fleet.lanes(claims[5:]))
        # The best three are in the second file, so the first goes with the decision.
        ledger.commit(worker, [fleet.result(c, value=9.0 - c.number) for c in claims[:5]], checkpoint=first)
        outcome = ledger.commit(worker, [fleet.result(c, value=9.0 - c.number) for c in claims[5:]], checkpoint=second)
        assert outcome.promoted == {6, 7, 8}
        assert outcome.removed == (first.name,)
        assert [c.checkpoint for c in ledger.claim(worker, limit=9, lease_s=60)] == [second] * 3


def _array(value: Any) -> Any:
    import numpy as np

    return np.array([value]) if isinstance(value, float) else np.array(value)


class TestLostAnswers:
    """The connection breaks after COMMIT was done: the worker cannot know, tries again, and nothing happens twice."""

    @pytest.fixture
    def break_next_commit(self, local: StudyManager, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
        dialect = local._database.engine.dialect
        honest = dialect.do_commit

        def arm() -> list[int]:
            broken: list[int] = []

            def commit(connection: Any) -> None:
                honest(connection)
                if not broken:
                    broken.append(1)
                    raise sqlite3.OperationalError("database is locked")  # stands for any trouble that may pass

            monkeypatch.setattr(dialect, "do_commit", commit)
            return broken

        return arm

    def test_registration(self, local: StudyManager, break_next_commit: Callable[[], list[int]]) -> None:
        ledger = create(local, make_spec(9))
        assert break_next_commit() is not None
        worker = ledger.register("h", 1, "cpu", "0")
        assert [row.id for row in local.workers("fleet")] == [worker]

    def test_creation(self, local: StudyManager, break_next_commit: Callable[[], list[int]]) -> None:
        broken = break_next_commit()
        create(local, make_spec(9))
        assert broken
        assert len(local.trials("fleet")) == 9

    def test_claim(self, local: StudyManager, break_next_commit: Callable[[], list[int]]) -> None:
        ledger = create(local, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        broken = break_next_commit()
        claims = ledger.claim(worker, limit=3, lease_s=60)
        assert broken
        assert [(claim.number, claim.token) for claim in claims] == [(0, 1), (1, 1), (2, 1)]
        assert ledger.outstanding().leased == 3

    def test_commit_release_and_fail(
        self, local: StudyManager, sqlite_url: str, break_next_commit: Callable[[], list[int]]
    ) -> None:
        spec = make_spec(9)
        ledger = create(local, spec)
        store = local.checkpoints("fleet")
        worker = ledger.register("h", 1, "cpu", "0")
        log = fleet.Log()
        claims = ledger.claim(worker, limit=9, lease_s=60)
        broken = break_next_commit()
        file = store.write(fleet.lanes(claims))
        rows = [row for claim in claims for row in fleet.curve(claim, 0, 1)]
        outcome = ledger.commit(worker, [fleet.result(claim) for claim in claims], rows, file)
        assert broken
        assert (outcome.lost, outcome.removed) == (set(), ())
        log.accepted.update((claim.number, 0) for claim in claims)
        a, b, c = ledger.claim(worker, limit=3, lease_s=60)
        assert a.checkpoint == file
        broken = break_next_commit()
        assert ledger.release(worker, [(a.number, a.token, 1)]).lost == set()
        assert broken
        broken = break_next_commit()
        assert ledger.fail(worker, [(b.number, b.token, "x")]).lost == set()
        assert broken
        broken = break_next_commit()
        assert ledger.record(worker, fleet.curve(c, 1, 2)) == set()
        assert broken
        ledger.release(worker, [(c.number, c.token, 1)])
        assert slot(local, b.number).attempts == 2
        fleet.work(ledger, store, log=log)
        check(local, spec, sqlite_url, log)

    def test_a_slot_that_another_claims_before_the_second_try_keeps_its_checkpoint(
        self, local: StudyManager, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = create(local, make_spec(3, pruner="none"))
        worker, other = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        claims = ledger.claim(worker, limit=3, lease_s=60)
        file = local.checkpoints("fleet").write(fleet.lanes(claims))
        dialect = local._database.engine.dialect
        honest = dialect.do_commit
        taken: list[Claim] = []
        with StudyManager(sqlite_url, local.artifacts, patience_s=5) as elsewhere:

            def commit(connection: Any) -> None:
                honest(connection)
                if not taken:
                    taken.extend(elsewhere.ledger("fleet").claim(other, limit=3, lease_s=60))
                    raise sqlite3.OperationalError("database is locked")

            monkeypatch.setattr(dialect, "do_commit", commit)
            outcome = ledger.release(worker, [(claim.number, claim.token, 9) for claim in claims], (), file)
        assert [(claim.number, claim.checkpoint) for claim in taken] == [(n, file) for n in range(3)]
        assert outcome.removed == (), "the file is in use: nobody may delete it"

    def test_save(self, local: StudyManager, break_next_commit: Callable[[], list[int]]) -> None:
        ledger = create(local, make_spec(3, pruner="none"))
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=3, lease_s=60)
        file = local.checkpoints("fleet").write(fleet.lanes(claims))
        broken = break_next_commit()
        outcome = ledger.save(worker, [(claim.number, claim.token, 2) for claim in claims], (), file)
        assert broken
        assert (outcome.lost, outcome.removed) == (set(), ())  # the file is in use: nobody may delete it
        expire(local)
        assert {claim.checkpoint for claim in ledger.claim(worker, limit=3, lease_s=60)} == {file}

    def test_a_repeated_commit_of_its_own_results_is_not_lost(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=9, lease_s=60)
        results = [fleet.result(claim) for claim in claims]
        assert len(ledger.commit(worker, results).promoted) == 3
        ledger.claim(worker, limit=9, lease_s=60)
        again = ledger.commit(worker, results, checkpoint=Checkpoint(name="x", sha256="0", bytes=1))
        assert (again.lost, again.promoted, again.removed) == (set(), set(), ())


class TestCost:
    def test_statements_depend_neither_on_lanes_nor_on_epochs(self, manager: StudyManager) -> None:
        def cost(trials: int, name: str) -> tuple[int, int, int, int]:
            spec = fleet.spaces_study(study={"name": name}, search={"trials": trials}, training={"max_epochs": 9})
            manager.create(spec, data_root=Path("/"), data_digest="d", split_digest="s")
            ledger = manager.ledger(name)
            worker = ledger.register("h", 1, "cpu", "0")
            claims, claim = counted(manager, lambda: ledger.claim(worker, limit=trials, lease_s=60))
            rows = [row for c in claims for row in fleet.curve(c, 0, len(claims))]
            _, record = counted(manager, lambda: ledger.record(worker, rows))
            _, commit = counted(manager, lambda: ledger.commit(worker, [fleet.result(c) for c in claims], rows))
            _, report = counted(manager, lambda: manager.trials(name) and manager.summary(name))
            assert len(claims) == trials
            return claim, record, commit, report

        assert cost(3, "few") == cost(9, "many")

    def test_packs_of_one_form_are_claimed_in_equal_statements(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(170))
        worker = ledger.register("h", 1, "cpu", "0")
        few, cheap = counted(local, lambda: ledger.claim(worker, limit=2, lease_s=60))
        many, dear = counted(local, lambda: ledger.claim(worker, limit=64, lease_s=60))
        assert (len(few), len(many)) == (2, 64)
        assert cheap == dear

    def test_claims_stay_quick_in_a_large_study(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(20_000))
        worker = ledger.register("h", 1, "cpu", "0")
        done = update(schema.slots).where(schema.slots.c.number < 15_000).values(state="complete")
        local._database.write(lambda c: c.execute(done) and None)
        ledger.claim(worker, limit=64, lease_s=60)
        best = min(_seconds(lambda: ledger.claim(worker, limit=64, lease_s=60)) for _ in range(5))
        assert best < 0.25  # seconds; some 0.02 where it was written


def counted(manager: StudyManager, call: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and the number of statements the server got."""
    engine = manager._database.engine
    if engine.dialect.name == "mysql":  # PyMySQL may send more statements than SQLAlchemy knows of
        before = _questions(manager)
        answer = call()
        return answer, _questions(manager) - before
    statements: list[str] = []

    def count(_conn: Any, _cursor: Any, statement: str, _params: Any, _context: Any, executemany: bool) -> None:
        assert not (executemany and engine.dialect.name == "postgresql"), statement
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", count)
    try:
        return call(), len(statements)
    finally:
        event.remove(engine, "before_cursor_execute", count)


def _questions(manager: StudyManager) -> int:
    query = "SHOW SESSION STATUS LIKE 'Questions'"
    return int(manager._database.read(lambda c: c.exec_driver_sql(query).one())[1])


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def test_several_may_create_the_same_study_at_once(url: str, tmp_path: Path) -> None:
    barrier = threading.Barrier(4)
    spec = make_spec(50)

    def one(_: int) -> bool:
        barrier.wait()
        with StudyManager(url, tmp_path) as manager:  # the tables, too, are made by all at once
            barrier.wait()
            return manager.create(spec, data_root=Path("/"), data_digest="d", split_digest="s")

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(one, range(4))) == [False, False, False, True]
    with StudyManager(url, tmp_path) as manager:
        assert manager.names() == ["fleet"]
        assert manager.summary("fleet").trials["total"] == 50


def test_curves_take_nan_and_infinity(local: StudyManager, sqlite_url: str) -> None:
    ledger = create(local, make_spec(9))
    worker = ledger.register("h", 1, "cpu", "0")
    (claim,) = ledger.claim(worker, limit=1, lease_s=60)
    values = [math.nan, math.inf, -math.inf, 0.1]
    rows = [
        EpochRow(number=0, token=claim.token, epoch=e, value=v, train_loss=v, val_loss=v)
        for e, v in enumerate(values, start=1)
    ]
    ledger.record(worker, rows)
    stored = fleet.read_optuna(sqlite_url, "fleet").trials[0].intermediate_values
    assert math.isnan(stored.pop(1))
    assert stored == {2: math.inf, 3: -math.inf, 4: 0.1}
    losses = select(schema.curves.c.train_loss).order_by(schema.curves.c.epoch)
    assert local._database.read(lambda c: c.execute(losses).scalars().all()) == [None, None, None, 0.1]


def test_a_database_that_is_full_loses_nothing(local: StudyManager, sqlite_url: str) -> None:
    spec = make_spec(200, pruner="none")
    ledger = create(local, spec)
    worker = ledger.register("h", 1, "cpu", "0")
    claims = ledger.claim(worker, limit=100, lease_s=60)
    rows = [row for claim in claims for row in fleet.curve(claim, 0, 9)]

    def limit(connection: Any, pages: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    pages = local._database.read(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar())
    local._database.read(lambda c: limit(c, pages))
    with pytest.raises(StorageError, match="the disk is full; nothing that was stored is lost: free some space"):
        ledger.commit(worker, [fleet.result(claim) for claim in claims], rows)
    local._database.read(lambda c: limit(c, 1_000_000))
    assert len(ledger.commit(worker, [fleet.result(claim) for claim in claims], rows).completed) == 100
    fleet.work(ledger, local.checkpoints("fleet"), limit=50)
    check(local, spec, sqlite_url)
