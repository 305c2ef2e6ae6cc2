"""The time budget: what counts, what becomes of trials when it is over, and that nobody runs afterwards."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.storage import fleet
from tests.storage.fleet import create, make_spec, read_optuna
from tests.storage.servers import lay_tables
from tuner.errors import BadInputError
from tuner.manager import StudyManager
from tuner.spec import StudySpec
from tuner.storage import budget, schema
from tuner.storage.ledger import Ledger

REASON = "time budget of 10 minutes over"


def in_time(trials: int | None = 20, **search: Any) -> StudySpec:
    return make_spec(trials, minutes=10.0, **search)


def spend(manager: StudyManager, minutes: float, *, worker: int | None = None) -> None:
    """Let workers have been at work for so long, by the database's clock."""
    change = update(schema.workers).values(started_at=schema.workers.c.heartbeat_at - 60 * minutes)
    if worker is not None:
        change = change.where(schema.workers.c.id == worker)
    manager._database.write(lambda c: c.execute(change) and None)


def expire(manager: StudyManager) -> None:
    """Let every lease run out."""
    over = update(schema.slots).where(schema.slots.c.state == "leased").values(lease_until=1.0)
    manager._database.write(lambda c: c.execute(over) and None)


def check_over(manager: StudyManager, url: str) -> None:
    """What holds of every study whose budget is over. Raises AssertionError where it does not."""
    rows = manager.trials("fleet")
    assert manager.summary("fleet").state == "finished", "the study is finished"
    assert {row.state for row in rows} <= {"complete", "pruned", "failed"}, "nothing waits and nothing runs"
    trials = {trial.number: trial for trial in read_optuna(url, "fleet").trials}
    assert trials.keys() == {row.number for row in rows}, "what never began leaves no trace"
    for row in rows:
        assert trials[row.number].state.name == row.state.upper(), "nobody is RUNNING"
        assert trials[row.number].value == row.value
        assert row.params is not None
        if row.value is not None:
            assert row.value == fleet.truth(row.params, row.epochs), "the value of its last epoch"


@pytest.fixture
def local(sqlite_url: str, tmp_path: Path) -> Iterator[StudyManager]:
    lay_tables(sqlite_url)
    with StudyManager(sqlite_url, tmp_path / "artifacts", patience_s=5) as manager:
        yield manager


def left(ledger: Ledger, worker: int) -> float:
    (claim,) = ledger.claim(worker, limit=1, lease_s=60)
    assert claim.left_s is not None
    return claim.left_s / 60


class TestWhatCounts:
    def test_claims_say_what_is_left(self, manager: StudyManager) -> None:
        ledger = create(manager, in_time())
        worker = ledger.register("h", 1, "cpu", "0")
        assert 9.9 < left(ledger, worker) <= 10
        spend(manager, 4)
        assert 5.9 < left(ledger, worker) <= 6

    def test_without_a_budget_there_is_no_end(self, local: StudyManager) -> None:
        ledger = create(local, make_spec(9))
        worker = ledger.register("h", 1, "cpu", "0")
        spend(local, 1e6)
        assert [claim.left_s for claim in ledger.claim(worker, limit=2, lease_s=60)] == [None, None]

    def test_workers_at_once_count_once_and_the_time_between_does_not(self, local: StudyManager) -> None:
        ledger = create(local, in_time())
        workers = [ledger.register("h", pid, "cpu", "0") for pid in range(4)]
        at = schema.workers.c.heartbeat_at
        # Two hours ago two workers, together from minute 0 to minute 3; an hour ago one for two minutes, killed.
        for worker, start, stop in ((workers[0], -7200, -7080), (workers[1], -7140, -7020), (workers[2], -3600, -3480)):
            times = {"started_at": at + start, "heartbeat_at": at + stop}
            change = update(schema.workers).where(schema.workers.c.id == worker).values(**times)
            local._database.write(lambda c, change=change: c.execute(change) and None)
        assert 4.9 < left(ledger, workers[3]) <= 5

    def test_who_asks_is_at_work_until_now(self, local: StudyManager) -> None:
        """Not only until its last heartbeat."""
        ledger = create(local, in_time())
        worker = ledger.register("h", 1, "cpu", "0")
        change = update(schema.workers).values(
            started_at=schema.workers.c.heartbeat_at - 240, heartbeat_at=schema.workers.c.heartbeat_at - 180
        )
        local._database.write(lambda c: c.execute(change) and None)
        assert 5.9 < left(ledger, worker) <= 6


class TestTheEnd:
    def test_everybody_ends(self, url: str, manager: StudyManager) -> None:
        """Complete, paused, promoted, halfway, drawn, and never begun: all at once."""
        ledger = create(manager, in_time(29))  # brackets of 9, 5, 3, 9 and 3
        worker = ledger.register("h", 1, "cpu", "0")
        store = manager.checkpoints("fleet")
        first = ledger.claim(worker, limit=9, lease_s=60)
        fleet.train(ledger, worker, store, first)  # three are promoted, six pruned
        promoted = ledger.claim(worker, limit=3, lease_s=60)
        fleet.train(ledger, worker, store, promoted[:2])  # paused beside the third
        halfway = ledger.claim(worker, limit=1, lease_s=60)[0]  # of the second bracket
        drawn = ledger.claim(worker, limit=2, lease_s=60)
        ledger.record(worker, fleet.curve(halfway, 0, 2))
        ledger.release(worker, [(claim.number, claim.token, 0) for claim in (promoted[2], halfway, *drawn)])
        spend(manager, 10)
        assert ledger.claim(worker, limit=9, lease_s=60) == []
        ledger.leave(worker)
        check_over(manager, url)
        rows = {row.number: row for row in manager.trials("fleet")}
        assert len(rows) == 12, "nine of the first bracket, three of others"
        over = {row.number: (row.epochs, row.reason) for row in rows.values() if row.reason == REASON}
        assert over == {
            promoted[0].number: (3, REASON),
            promoted[1].number: (3, REASON),
            promoted[2].number: (1, REASON),
            halfway.number: (2, REASON),
            drawn[0].number: (0, REASON),
            drawn[1].number: (0, REASON),
        }
        assert rows[drawn[0].number].value is None
        trial = read_optuna(url, "fleet").trials[0]
        assert trial.user_attrs["reason"] == rows[trial.number].reason
        files = select(schema.checkpoints.c.path)
        assert manager._database.read(lambda c: c.execute(files).scalars().all()) == []
        winner = manager.best("fleet")
        assert winner is not None
        assert (winner.complete, winner.epochs) == (False, 3)
        assert winner.number == min(promoted[:2], key=lambda claim: fleet.truth(claim.params, 3)).number

    @pytest.mark.parametrize("pruner", ["hyperband", "asha", "none"])
    def test_the_best_so_far_wins(self, local: StudyManager, sqlite_url: str, pruner: str) -> None:
        spec = in_time(200, pruner=pruner)
        ledger = create(local, spec)
        worker = ledger.register("h", 1, "cpu", "0")
        while not local.summary("fleet").trials["complete"]:
            fleet.train(ledger, worker, local.checkpoints("fleet"), ledger.claim(worker, limit=9, lease_s=60))
        completed = [row for row in local.trials("fleet") if row.state == "complete"]
        spend(local, 10)
        assert ledger.claim(worker, limit=9, lease_s=60) == []
        check_over(local, sqlite_url)
        winner = local.best("fleet")
        assert winner is not None
        assert winner.complete
        assert winner.value == min(row.value for row in completed if row.value is not None)

    def test_nothing_ever_began(self, local: StudyManager, sqlite_url: str) -> None:
        ledger = create(local, in_time(None))
        worker = ledger.register("h", 1, "cpu", "0")
        spend(local, 10)
        assert ledger.claim(worker, limit=9, lease_s=60) == []
        check_over(local, sqlite_url)
        assert local.summary("fleet").trials["total"] == 0
        assert local.best("fleet") is None

    def test_trials_may_end_it_first(self, local: StudyManager, sqlite_url: str) -> None:
        spec = in_time(9)
        fleet.work(create(local, spec), local.checkpoints("fleet"))
        fleet.check(local, spec, sqlite_url)

    def test_lanes_in_flight_are_left_to_their_worker(self, url: str, manager: StudyManager) -> None:
        """Who still trains its last epoch writes what came of it, a result at the top rung included."""
        ledger = create(manager, in_time(4, pruner="none"))
        busy, idle = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        done, halfway = ledger.claim(busy, limit=2, lease_s=60)
        spend(manager, 10)
        assert ledger.claim(idle, limit=9, lease_s=60) == []
        assert not ledger.finished()
        assert len(manager.trials("fleet")) == 2
        assert ledger.commit(busy, [fleet.result(done)], fleet.curve(done, 0, 9)).completed == {0}
        ledger.release(busy, [(1, halfway.token, 5)], fleet.curve(halfway, 0, 5))
        assert ledger.claim(idle, limit=9, lease_s=60) == []
        check_over(manager, url)
        assert [(row.state, row.epochs) for row in manager.trials("fleet")] == [("complete", 9), ("pruned", 5)]

    def test_a_worker_killed_at_the_deadline(self, url: str, manager: StudyManager) -> None:
        """It never comes back; what it had recorded is what its trials came to."""
        ledger = create(manager, in_time(9, pruner="none"))
        killed, other = (ledger.register("h", pid, "cpu", "0") for pid in (1, 2))
        claims = ledger.claim(killed, limit=3, lease_s=60)
        ledger.record(killed, [row for claim in claims for row in fleet.curve(claim, 0, 4)])
        spend(manager, 10)
        assert ledger.claim(other, limit=9, lease_s=60) == []
        assert not ledger.finished()
        expire(manager)
        assert ledger.claim(other, limit=9, lease_s=60) == []
        check_over(manager, url)
        assert [(row.state, row.epochs) for row in manager.trials("fleet")] == [("pruned", 4)] * 3
        late = ledger.commit(killed, [fleet.result(claim) for claim in claims])
        assert late.lost == {0, 1, 2}, "it was only stopped for long, and comes back too late"
        check_over(manager, url)

    def test_all_are_dead_and_a_new_one_joins(self, url: str, manager: StudyManager) -> None:
        ledger = create(manager, in_time(9))
        for pid in (1, 2):
            claims = ledger.claim(ledger.register("h", pid, "cpu", "0"), limit=3, lease_s=60)
            assert claims
        spend(manager, 10)
        expire(manager)
        assert manager.summary("fleet").state != "finished"
        fleet.work(manager.ledger("fleet"), manager.checkpoints("fleet"), pid=3)
        check_over(manager, url)

    def test_a_claim_that_was_killed_while_it_drew_leaves_no_trace(self, local: StudyManager, sqlite_url: str) -> None:
        ledger = create(local, in_time(9))
        worker = ledger.register("h", 1, "cpu", "0")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger._proposals, "draw", _killed)
            patch.setattr(ledger, "release", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                ledger.claim(worker, limit=3, lease_s=60)
        spend(local, 10)
        assert ledger.claim(worker, limit=9, lease_s=60) == []
        assert not ledger.finished()
        expire(local)
        assert ledger.claim(worker, limit=9, lease_s=60) == []
        check_over(local, sqlite_url)
        assert local.trials("fleet") == []

    def test_the_best_epoch_counts_where_it_is_kept(self, local: StudyManager) -> None:
        spec = fleet.spaces_study(
            study={"name": "fleet"},
            search={"trials": 2, "pruner": "none", "minutes": 10.0},
            training={"max_epochs": 9, "keep": "best"},
        )
        ledger = create(local, spec)
        worker = ledger.register("h", 1, "cpu", "0")
        claims = ledger.claim(worker, limit=2, lease_s=60)
        values = (0.5, 0.25, 0.75)
        rows = [
            fleet.EpochRow(number=c.number, token=c.token, epoch=e, value=value, train_loss=1.0, val_loss=1.0)
            for c in claims
            for e, value in enumerate(values if c.number == 0 else (math.nan,), start=1)
        ]
        ledger.record(worker, rows)
        ledger.release(worker, [(c.number, c.token, 0) for c in claims])
        spend(local, 10)
        ledger.claim(worker, limit=1, lease_s=60)
        assert [(row.epochs, row.value) for row in local.trials("fleet")] == [(3, 0.25), (1, None)]

    def test_failed_trials_are_not_tried_again(self, local: StudyManager) -> None:
        ledger = create(local, in_time(9))
        ledger.max_attempts = 1
        worker = ledger.register("h", 1, "cpu", "0")
        (claim,) = ledger.claim(worker, limit=1, lease_s=60)
        ledger.fail(worker, [(0, claim.token, "boom")])
        assert local.retry("fleet") == 1
        spend(local, 10)
        ledger.claim(worker, limit=1, lease_s=60)
        with pytest.raises(BadInputError, match="the time budget of study 'fleet' is over: 10 minutes; to search on"):
            local.retry("fleet")

    def test_the_checker_notices_who_is_left_running(
        self, local: StudyManager, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the end switched off, the claim gives nothing, and the trials would stay as they are."""
        ledger = create(local, in_time(9))
        worker = ledger.register("h", 1, "cpu", "0")
        (claim,) = ledger.claim(worker, limit=1, lease_s=60)
        ledger.release(worker, [(0, claim.token, 0)])
        spend(local, 10)
        with monkeypatch.context() as patch:
            patch.setattr(budget.TimeBudget, "close", lambda *_: None)
            assert ledger.claim(worker, limit=1, lease_s=60) == []
        with pytest.raises(AssertionError, match="finished"):
            check_over(local, sqlite_url)
        ledger.claim(worker, limit=1, lease_s=60)
        check_over(local, sqlite_url)


def _killed(*_: Any) -> Any:
    raise KeyboardInterrupt
