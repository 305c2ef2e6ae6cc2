"""The ledger of one study: who trains which slot, and what came out. Exact and fenced, in whole transactions.

A slot is one of the study's N trials. Its life::

    waiting ──claim──▶ leased ──commit──▶ paused ──rung decision──▶ waiting, one rung higher
       ▲                 │  │                └──────────────────────▶ pruned
       │   release, fail │  └─commit at the top rung──▶ complete (pruned, if it diverged)
       └─────────────────┘     attempts used up ─────▶ failed ──retry──▶ waiting

A study whose time budget is over ends what nobody trains any more (:mod:`tuner.storage.budget`).
Who goes on from a rung is decided in :mod:`tuner.storage.rungs`, what a slot's parameters are, and from coarse to fine
when it may begin, in :mod:`tuner.storage.proposals`.

**Fencing.** Each lease has a token, one higher than the last. A worker shows it with everything it writes; a worker
that was thought dead, whose slots another has claimed since, shows a stale one, and nothing of it is written.

**Answers that get lost.** A connection may break after COMMIT was sent. Every transaction here may therefore run twice:
a claim finds its leases by its own key, a result is known by (slot, rung, token), curves that are there stay.

**Locks.** First the worker's own slots, last and briefly the study's row, which makes rung decisions one after the
other. Claims skip locked slots and never wait.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    update,
)

from tuner.errors import StudyNotFoundError
from tuner.search.distributions import distributions_for, encode
from tuner.spec import StudySpec
from tuner.storage import bulk, crew, records
from tuner.storage.budget import TimeBudget
from tuner.storage.checkpoints import Checkpoint
from tuner.storage.database import Database, clock, now
from tuner.storage.proposals import Proposals
from tuner.storage.rungs import RungResult, Rungs, Tally, unleased
from tuner.storage.schema import UNFINISHED, checkpoints, curves, rungs, slots, studies, workers
from tuner.trial import Value
from tuner.words import count

__all__ = ["Claim", "CommitOutcome", "EpochRow", "Holder", "Ledger", "Outstanding", "RungResult"]

MAX_REASON = 2000  # characters of a reason that are stored
MAX_ATTEMPTS = 3  # times a slot is tried before it fails
MAX_LOSSES = 10  # times where nobody saw its worker die: machines are taken away, and that is hardly the trial's fault


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A slot that a worker holds the lease of.

    params: every hyperparameter. epochs: trained already, which is what ``checkpoint`` holds (0 without one).
    target_epochs: how far the slot's rung goes, in total. attempt: 1, and one more after each loss or failure.
    left_s: seconds until the study's time budget is over, when it was claimed; None without a budget.
    """

    number: int
    token: int
    params: dict[str, Value]
    bracket: int
    rung: int
    epochs: int
    target_epochs: int
    attempt: int
    checkpoint: Checkpoint | None
    left_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch of one lane: the validation metric, and the losses of the learning curve. All may be NaN."""

    number: int
    token: int
    epoch: int  # the first is 1
    value: float
    train_loss: float
    val_loss: float


@dataclass(frozen=True, kw_only=True)
class CommitOutcome:
    """What a transaction did. The sets hold slot numbers.

    lost: the token was stale, nothing of these was written. completed, pruned, promoted, failed: what was decided,
    slots of other workers included. removed: names of checkpoint files that nothing needs any more.
    """

    lost: frozenset[int] = frozenset()
    completed: frozenset[int] = frozenset()
    pruned: frozenset[int] = frozenset()
    promoted: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A worker that holds leases which are not over: how many, and when the last of them ends unless it is renewed."""

    host: str
    pid: int
    slots: int
    lease_s: float  # seconds from now

    @property
    def name(self) -> str:
        return crew.worker_name(self.host, self.pid)


@dataclass(frozen=True, kw_only=True)
class Outstanding:
    """How many slots are not finished, by what they are now, and who holds those that are leased."""

    waiting: int
    leased: int
    expired: int  # leased, but the lease is over: may be claimed
    paused: int
    holders: tuple[Holder, ...] = ()

    @property
    def claimable(self) -> int:
        return self.waiting + self.expired


# MariaDB goes by statistics that lag behind. It takes a study that was created a moment ago for one worker's, or all of
# its slots for waiting ones, and walks through all of it; it takes the leased slots for fewer than the numbers it was
# given, and so locks, and waits for, those of other workers.
_BY_NUMBER = ("FORCE INDEX (PRIMARY)", "mysql")
_BY_WORKER = ("FORCE INDEX (ix_tuner_slots_worker)", "mysql")
_BY_PLACE = ("FORCE INDEX (ix_tuner_slots_claim)", "mysql")
_Rows = dict[int, Row[Any]]


class Ledger:
    """One study's slots. Threads may share it; draws from the sampler take turns.

    folder: of its checkpoints, which no other study ever has. SQLite gives the number of a deleted study to the next.

    Every method raises StorageError when the database stays out of reach, StudyNotFoundError when the study is gone.
    """

    def __init__(
        self,
        database: Database,
        study_id: int,
        spec: StudySpec,
        folder: str,
        *,
        max_attempts: int = MAX_ATTEMPTS,
        max_losses: int = MAX_LOSSES,
    ) -> None:
        self.study_id = study_id
        self.spec = spec
        self.folder = folder
        self.max_attempts = max_attempts
        self.max_losses = max_losses
        self._database = database
        self._rungs = Rungs(study_id, spec)
        self._proposals = Proposals(database, study_id, spec)
        self._budget = TimeBudget(study_id, spec, self._rungs)

    # Workers

    def register(self, host: str, pid: int, device: str, version: str) -> int:
        """Write a worker down; returns its id. Raises BadInputError when a name is longer than its column."""
        crew.check_names(host, device, version)
        session = crew.new_session()

        def work(connection: Connection) -> int:
            self._study(connection)
            return crew.register(connection, self.study_id, session, host=host, pid=pid, device=device, version=version)

        return self._database.write(work)

    def heartbeat(self, worker_id: int, lanes: int, epochs_per_s: float) -> None:
        """Say that a worker lives, and renew its leases, each for its own duration."""

        def work(connection: Connection) -> None:
            crew.beat(connection, worker_id, lanes, epochs_per_s)
            self._renew(connection, self._mine(worker_id), _BY_WORKER)

        self._database.write(work)

    def leave(self, worker_id: int) -> None:
        """Say that a worker ends. Slots it still holds wait for another one, from their last checkpoint."""

        def work(connection: Connection) -> None:
            mine = update(slots).where(*self._mine(worker_id)).with_hint(_BY_WORKER[0], dialect_name=_BY_WORKER[1])
            connection.execute(mine.values(unleased("waiting")))
            crew.end(connection, worker_id)

        self._database.write(work)

    def bury(self, host: str, pid: int) -> int:
        """Let the leases of a process end at once that is known to be dead; returns how many it had.

        As leases that run out they count as attempts, so a trial that kills its worker is tried so often and no more.
        """

        def work(connection: Connection) -> int:
            dead = crew.bury(connection, self.study_id, host, pid)
            theirs = (slots.c.study_id == self.study_id, slots.c.state == "leased", slots.c.worker_id.in_(dead))
            held = connection.execute(select(func.count()).where(*theirs, slots.c.lease_until > now())).scalar_one()
            connection.execute(update(slots).where(*theirs).values(lease_until=now()))
            return int(held)

        return self._database.write(work)

    # Claims

    def claim(self, worker_id: int, *, limit: int, lease_s: float) -> list[Claim]:
        """Lease up to ``limit`` slots for ``lease_s`` seconds, all of one rung and target, the oldest bracket's first.

        Promoted slots come first, then those whose lease is over, then new ones. Slots of other brackets of the same
        form fill a pack that one bracket does not fill. Slots without parameters get them drawn, all from one fit of
        the sampler. Nothing when nothing can be claimed now, the study is stopped, or its time budget is over: then
        what nobody trains is ended here.
        """
        if limit < 1 or lease_s <= 0:
            raise ValueError(f"a claim needs limit >= 1 and lease_s > 0, got {limit} and {lease_s}")
        key = uuid.uuid4().hex
        leased, left_s = self._database.write(lambda c: self._lease(c, worker_id, key, limit, lease_s))
        undrawn = [row.number for row in leased if row.params is None]
        if undrawn:
            try:
                drawn = self._proposals.draw(undrawn)
                leased = self._database.write(lambda connection: self._store_drawn(connection, worker_id, key, drawn))
            except BaseException:
                self.release(worker_id, [(row.number, row.token, 0) for row in leased], (), None)
                raise
        return [self._claim_of(row, left_s) for row in leased]

    def _lease(
        self, connection: Connection, worker_id: int, key: str, limit: int, lease_s: float
    ) -> tuple[Sequence[Row[Any]], float | None]:
        """The leased slots, and how many seconds of the time budget are left."""
        if self._study(connection).stopped:
            return [], None
        left_s = self._budget.left_s(connection, worker_id)
        if mine := self._claimed(connection, worker_id, key):
            return mine, left_s  # committed before, only the answer was lost
        if left_s is not None and left_s <= 0:
            self._budget.close(connection)
            self._sweep(connection)
            return [], left_s
        if self._rungs.asynchronous:
            self._rungs.promote(connection, limit)
        open_ = slots.c.number < self._proposals.first_closed(connection)
        waiting, over = slots.c.state == "waiting", and_(slots.c.state == "leased", slots.c.lease_until < now())
        fresh = and_(waiting, slots.c.rung == 0)  # an equality: then the index has them in order, however many wait
        for group, lost in ((and_(waiting, slots.c.rung > 0), False), (over, True), (fresh, False)):
            found = self._lock_group(connection, and_(group, open_), limit)
            if lost and found:
                spent = self._spent(connection, found)
                self._give_up(connection, spent)
                found = [row for row in found if row not in spent]
            if not found:
                continue
            numbers = [row.number for row in found]
            tried = slots.c.attempts + 1 if lost else case((slots.c.attempts == 0, 1), else_=slots.c.attempts)
            connection.execute(
                update(slots)
                .where(slots.c.study_id == self.study_id, slots.c.number.in_(numbers))
                .values(
                    state="leased",
                    worker_id=worker_id,
                    claim=key,
                    token=slots.c.token + 1,
                    attempts=tried,
                    lease_s=lease_s,
                    lease_until=now() + lease_s,
                )
            )
            self._truncate(connection, [row for row in found if row.trial_id is not None])
            return self._claimed(connection, worker_id, key), left_s
        return [], left_s

    def _lock_group(self, connection: Connection, wanted: ColumnElement[bool], limit: int) -> list[Row[Any]]:
        """Lock slots of the first (rung, target) that has unlocked ones: the deepest rung, then the oldest bracket."""
        skipped: list[tuple[int, int]] = []
        while True:
            free = [not_(and_(slots.c.rung == rung, slots.c.target == target)) for rung, target in skipped]
            first = (
                select(slots.c.rung, slots.c.target)
                .where(slots.c.study_id == self.study_id, wanted, *free)
                .order_by(slots.c.rung.desc(), slots.c.bracket, slots.c.number)
                .limit(1)
                .with_hint(slots, *_BY_PLACE)
            )
            place = connection.execute(first).one_or_none()
            if place is None:
                return []
            locked = connection.execute(
                select(slots)
                .where(
                    slots.c.study_id == self.study_id,
                    wanted,
                    slots.c.rung == place.rung,
                    slots.c.target == place.target,
                )
                .order_by(slots.c.bracket, slots.c.number)
                .limit(limit)
                .with_hint(slots, *_BY_PLACE)
                .with_for_update(skip_locked=True)
            ).all()
            if locked:
                return list(locked)
            skipped.append((place.rung, place.target))  # all in other claims' hands at this moment

    def _spent(self, connection: Connection, rows: Sequence[Row[Any]]) -> list[Row[Any]]:
        """Those slots that were lost too often in a row, with nothing saved in between."""
        often = [row for row in rows if row.attempts >= self.max_attempts]
        if not often:
            return []
        dead = crew.seen_dead(connection, [row.worker_id for row in often])
        return [row for row in often if row.worker_id in dead or row.attempts >= self.max_losses]

    def _give_up(self, connection: Connection, spent: Sequence[Row[Any]]) -> None:
        """Fail slots whose lease ran out on the last attempt."""
        if not spent:
            return
        names = crew.names(connection, [row.worker_id for row in spent])
        reasons = {
            row.number: f"the lease ran out {count(row.attempts, 'time')}, "
            f"last on {names.get(row.worker_id, 'a worker')}"
            for row in spent
        }
        self._rungs.fail(connection, spent, reasons, Tally())

    def _truncate(self, connection: Connection, again: Sequence[Row[Any]]) -> None:
        """Forget the epochs after the last checkpoint: they will be trained, and written, again."""
        if not again:
            return
        records.truncate(connection, {row.trial_id: row.epochs for row in again})
        by_epochs: dict[int, list[int]] = {}
        for row in again:
            by_epochs.setdefault(row.epochs, []).append(row.number)
        beyond = [and_(curves.c.number.in_(numbers), curves.c.epoch > e) for e, numbers in by_epochs.items()]
        connection.execute(delete(curves).where(curves.c.study_id == self.study_id, or_(*beyond)))

    def _store_drawn(
        self, connection: Connection, worker_id: int, key: str, drawn: Mapping[int, dict[str, Value]]
    ) -> Sequence[Row[Any]]:
        mine = self._claimed(connection, worker_id, key, lock=True)
        fresh = [row for row in mine if row.params is None]
        if not fresh:
            return mine
        space = self.spec.search_space
        starts = [
            records.Start(
                number=row.number,
                params=encode(drawn[row.number], space),
                distributions=distributions_for(drawn[row.number], space),
            )
            for row in fresh
        ]
        ids = records.start_trials(connection, self.study_id, starts, clock(connection))
        rows = [
            {
                "study_id": self.study_id,
                "number": row.number,
                "trial_id": ids[row.number],
                "params": json.dumps(drawn[row.number], allow_nan=False),
            }
            for row in fresh
        ]
        bulk.insert(connection, slots, rows, conflict="update")
        return self._claimed(connection, worker_id, key)

    def _claimed(self, connection: Connection, worker_id: int, key: str, *, lock: bool = False) -> Sequence[Row[Any]]:
        """The slots that are leased under a claim's key, each with its checkpoint."""
        query = (
            select(slots, checkpoints.c.path, checkpoints.c.sha256, checkpoints.c.bytes)
            .select_from(slots.outerjoin(checkpoints, checkpoints.c.id == slots.c.checkpoint_id))
            .where(*self._mine(worker_id), slots.c.claim == key)
            .order_by(slots.c.number)
            .with_hint(slots, *_BY_WORKER)
        )
        if lock:
            mine = (
                select(slots.c.number).where(*self._mine(worker_id), slots.c.claim == key).with_hint(slots, *_BY_WORKER)
            )
            connection.execute(mine.order_by(slots.c.number).with_for_update()).all()
        return connection.execute(query).all()

    def _claim_of(self, row: Row[Any], left_s: float | None) -> Claim:
        kept = None
        if row.path is not None:
            kept = Checkpoint(name=row.path, sha256=row.sha256, bytes=int(row.bytes))
        return Claim(
            number=row.number,
            token=row.token,
            params=json.loads(row.params),
            bracket=row.bracket,
            rung=row.rung,
            epochs=row.epochs if kept is not None else 0,
            target_epochs=row.target,
            attempt=row.attempts,
            checkpoint=kept,
            left_s=left_s,
        )

    # Results

    def record(self, worker_id: int, rows: Sequence[EpochRow]) -> frozenset[int]:
        """Write epochs of lanes that go on, and renew their leases. Returns the slots that were lost."""

        def work(connection: Connection) -> frozenset[int]:
            tokens = {row.number: row.token for row in rows}
            held = self._held(connection, worker_id, tokens)
            self._write_curves(connection, held, rows)
            if held:
                these = (slots.c.study_id == self.study_id, slots.c.number.in_(list(held)))
                self._renew(connection, these, _BY_NUMBER)
            return frozenset(tokens.keys() - held.keys())

        return self._database.write(work) if rows else frozenset()

    def commit(
        self,
        worker_id: int,
        results: Sequence[RungResult],
        epochs: Sequence[EpochRow] = (),
        checkpoint: Checkpoint | None = None,
    ) -> CommitOutcome:
        """Write results of lanes that reached their rung (``checkpoint`` holds them), and give up their leases.

        Then every rung that is full is decided. A result whose token is stale is not written; one that was written
        before, by this same call, is not written again and is not lost.
        """

        def work(connection: Connection) -> CommitOutcome:
            tokens = {row.number: row.token for row in epochs} | {result.number: result.token for result in results}
            held = self._held(connection, worker_id, tokens)
            fresh = [result for result in results if result.number in held]
            known = self._already(connection, [result for result in results if result.number not in held])
            lost = tokens.keys() - held.keys() - known
            self._write_curves(connection, held, epochs)
            if not fresh:
                unused = checkpoint is not None and not known
                return CommitOutcome(
                    lost=frozenset(lost), removed=(checkpoint.name,) if checkpoint is not None and unused else ()
                )
            checkpoint_id = self._store_checkpoint(connection, checkpoint)
            self._write_results(connection, held, fresh, checkpoint_id)
            tally = Tally()
            self._rungs.end_top(connection, held, fresh, tally)
            self._rungs.decide(connection, {(held[r.number].bracket, held[r.number].rung) for r in fresh}, tally)
            return _outcome(tally, lost, self._sweep(connection))

        return self._database.write(work) if results or epochs else CommitOutcome()

    def release(
        self,
        worker_id: int,
        states: Sequence[tuple[int, int, int]],
        epochs: Sequence[EpochRow] = (),
        checkpoint: Checkpoint | None = None,
    ) -> CommitOutcome:
        """Give slots back unfinished: (number, token, epochs that ``checkpoint`` holds). No attempt is counted.

        Without a checkpoint they go on from the one they had.
        """
        return self._keep(worker_id, states, epochs, checkpoint, unleased("waiting"))

    def save(
        self,
        worker_id: int,
        states: Sequence[tuple[int, int, int]],
        epochs: Sequence[EpochRow],
        checkpoint: Checkpoint,
    ) -> CommitOutcome:
        """Store a checkpoint of slots that train on: (number, token, epochs that it holds). Renews their leases, and as
        they get on, their attempts begin anew.
        """
        return self._keep(
            worker_id, states, epochs, checkpoint, {"lease_until": now() + slots.c.lease_s, "attempts": 1}
        )

    def _keep(
        self,
        worker_id: int,
        states: Sequence[tuple[int, int, int]],
        epochs: Sequence[EpochRow],
        checkpoint: Checkpoint | None,
        lease: Mapping[str, Any],
    ) -> CommitOutcome:
        """Write how far unfinished slots are, and what becomes of their leases."""

        def work(connection: Connection) -> CommitOutcome:
            tokens = {number: token for number, token, _ in states}
            held = self._held(connection, worker_id, tokens)
            given_back = self._given_back(connection, tokens.keys() - held.keys(), tokens)
            lost = tokens.keys() - held.keys() - given_back
            if not held:
                # An earlier run of the same transaction may have stored it, for whoever has claimed the slots since.
                unused = checkpoint is not None and self._stored(connection, checkpoint) is None
                return CommitOutcome(
                    lost=frozenset(lost), removed=(checkpoint.name,) if checkpoint is not None and unused else ()
                )
            self._write_curves(connection, held, epochs)
            changes: dict[str, Any] = {}
            rows = [{"study_id": self.study_id, "number": n, "epochs": e} for n, _, e in states if n in held]
            if (checkpoint_id := self._store_checkpoint(connection, checkpoint)) is not None:
                bulk.insert(connection, slots, rows, conflict="update")
                changes["checkpoint_id"] = checkpoint_id
            these = (slots.c.study_id == self.study_id, slots.c.number.in_(list(held)))
            connection.execute(update(slots).where(*these).values(**lease, **changes))
            return CommitOutcome(lost=frozenset(lost), removed=tuple(self._sweep(connection)))

        return self._database.write(work) if states else CommitOutcome()

    def fail(self, worker_id: int, failures: Sequence[tuple[int, int, str]]) -> CommitOutcome:
        """Report slots that could not be trained: (number, token, reason). They are tried again, at most so often."""

        def work(connection: Connection) -> CommitOutcome:
            tokens = {number: token for number, token, _ in failures}
            reasons = {number: _shortened(reason) for number, _, reason in failures}
            held = self._held(connection, worker_id, tokens)
            tally = Tally()
            again = [row for row in held.values() if row.attempts < self.max_attempts]
            if again:
                rows = [
                    {
                        "study_id": self.study_id,
                        "number": row.number,
                        "attempts": row.attempts + 1,
                        "reason": reasons[row.number],
                        **unleased("waiting"),
                    }
                    for row in again
                ]
                bulk.insert(connection, slots, rows, conflict="update")
            spent = [row for row in held.values() if row.attempts >= self.max_attempts]
            self._rungs.fail(connection, spent, reasons, tally)
            gone = tokens.keys() - held.keys()
            lost = gone - self._given_back(connection, gone, tokens)
            return _outcome(tally, lost, self._sweep(connection))

        return self._database.write(work) if failures else CommitOutcome()

    def retry(self) -> frozenset[int]:
        """Re-open the failed slots: they wait at their rung again, with their parameters, as if never tried.

        What was decided about others without them stays; they go on if they are as good as those who did.
        """
        failed = (slots.c.study_id == self.study_id, slots.c.state == "failed")
        numbers = self._database.read(lambda c: c.execute(select(slots.c.number).where(*failed)).scalars().all())

        def work(connection: Connection) -> None:
            found = connection.execute(select(slots).where(*failed).order_by(slots.c.number).with_for_update()).all()
            # A slot that failed before it was drawn has a trial without parameters, which drawing makes anew.
            records.delete_trials(connection, [row.trial_id for row in found if row.params is None])
            records.reopen_trials(connection, [row.trial_id for row in found if row.params is not None])
            rows = [
                {
                    "study_id": self.study_id,
                    "number": row.number,
                    **unleased("waiting"),
                    "trial_id": None if row.params is None else row.trial_id,
                    "attempts": 0,
                    "epochs": 0,
                    "value": None,
                    "value_type": None,
                    "reason": None,
                }
                for row in found
            ]
            bulk.insert(connection, slots, rows, conflict="update")

        if numbers:
            self._database.write(work)
        return frozenset(numbers)

    # Questions

    def finished(self) -> bool:
        """Whether every slot has reached its last state."""

        def work(connection: Connection) -> bool:
            self._study(connection)
            one = select(literal(1)).where(slots.c.study_id == self.study_id, slots.c.state.in_(UNFINISHED)).limit(1)
            return connection.execute(one).scalar() is None

        return self._database.read(work)

    def stopped(self) -> bool:
        """Whether somebody asked all workers to stop."""
        return self._database.read(lambda connection: bool(self._study(connection).stopped))

    def checkpoint_names(self) -> frozenset[str]:
        """The checkpoint files that the study needs."""
        query = select(checkpoints.c.path).where(checkpoints.c.study_id == self.study_id)
        return frozenset(self._database.read(lambda connection: connection.execute(query).scalars().all()))

    def outstanding(self) -> Outstanding:
        """What is left to do, and whom it waits for."""

        def work(connection: Connection) -> Outstanding:
            self._study(connection)
            mine = slots.c.study_id == self.study_id
            over = case((slots.c.lease_until < now(), 1), else_=0)
            rows = connection.execute(
                select(slots.c.state, func.count().label("slots"), func.sum(over).label("over"))
                .where(mine, slots.c.state.in_(UNFINISHED))  # the index has these alone: what is done may be much more
                .group_by(slots.c.state)
            )
            by_state = {row.state: row for row in rows}
            count = {state: int(by_state[state].slots) if state in by_state else 0 for state in UNFINISHED}
            expired = int(by_state["leased"].over or 0) if "leased" in by_state else 0
            held = connection.execute(
                select(
                    workers.c.host,
                    workers.c.pid,
                    func.count().label("slots"),
                    (func.max(slots.c.lease_until) - now()).label("left"),
                )
                .select_from(slots.join(workers, workers.c.id == slots.c.worker_id))
                .where(mine, slots.c.state == "leased", slots.c.lease_until >= now())
                .group_by(workers.c.id, workers.c.host, workers.c.pid)
                .order_by(workers.c.id)
            )
            return Outstanding(
                waiting=count["waiting"],
                leased=count["leased"] - expired,
                expired=expired,
                paused=count["paused"],
                holders=tuple(
                    Holder(host=row.host, pid=row.pid, slots=int(row.slots), lease_s=max(0.0, float(row.left)))
                    for row in held
                ),
            )

        return self._database.read(work)

    # Parts of a transaction

    def _study(self, connection: Connection) -> Row[Any]:
        mine = (studies.c.study_id == self.study_id, studies.c.folder == self.folder)
        row = connection.execute(select(studies.c.stopped).where(*mine)).one_or_none()
        if row is None:
            raise StudyNotFoundError(f"study {self.spec.study.name!r} is gone: somebody deleted it")
        return row

    def _mine(self, worker_id: int) -> tuple[ColumnElement[bool], ...]:
        return (slots.c.study_id == self.study_id, slots.c.worker_id == worker_id, slots.c.state == "leased")

    def _held(self, connection: Connection, worker_id: int, tokens: Mapping[int, int]) -> _Rows:
        """The fence: lock and return those slots of ``tokens`` whose lease this worker still has."""
        rows = connection.execute(
            select(slots)
            .where(*self._mine(worker_id), slots.c.number.in_(list(tokens)))
            .order_by(slots.c.number)
            .with_hint(slots, *_BY_NUMBER)
            .with_for_update()
        )
        return {row.number: row for row in rows if row.token == tokens[row.number]}

    def _already(self, connection: Connection, results: Sequence[RungResult]) -> set[int]:
        """Those results that an earlier run of the same transaction has written."""
        if not results:
            return set()
        found = connection.execute(
            select(rungs.c.number, rungs.c.token).where(
                rungs.c.study_id == self.study_id, rungs.c.number.in_([result.number for result in results])
            )
        )
        written = {(row.number, row.token) for row in found}
        return {result.number for result in results if (result.number, result.token) in written}

    def _given_back(self, connection: Connection, numbers: Iterable[int], tokens: Mapping[int, int]) -> set[int]:
        """Those slots that an earlier run of the same transaction has given back."""
        if not (numbers := list(numbers)):
            return set()
        found = connection.execute(
            select(slots.c.number, slots.c.token).where(
                slots.c.study_id == self.study_id, slots.c.number.in_(numbers), slots.c.state.in_(("waiting", "failed"))
            )
        )
        return {row.number for row in found if row.token == tokens[row.number]}

    def _renew(self, connection: Connection, where: Iterable[ColumnElement[bool]], hint: tuple[str, str]) -> None:
        these = update(slots).where(*where).with_hint(hint[0], dialect_name=hint[1])
        connection.execute(these.values(lease_until=now() + slots.c.lease_s))

    def _write_curves(self, connection: Connection, held: _Rows, rows: Sequence[EpochRow]) -> None:
        mine = [row for row in rows if row.number in held and row.token == held[row.number].token]
        records.report(
            connection,
            [records.Report(trial_id=held[row.number].trial_id, step=row.epoch, value=row.value) for row in mine],
        )
        bulk.insert(
            connection,
            curves,
            [
                {
                    "study_id": self.study_id,
                    "number": row.number,
                    "epoch": row.epoch,
                    "train_loss": _finite(row.train_loss),
                    "val_loss": _finite(row.val_loss),
                }
                for row in mine
            ],
            conflict="skip",
        )

    def _stored(self, connection: Connection, checkpoint: Checkpoint) -> int | None:
        """The id of a checkpoint that the database knows."""
        mine = (checkpoints.c.study_id == self.study_id, checkpoints.c.path == checkpoint.name)
        known = connection.execute(select(checkpoints.c.id).where(*mine)).scalar()
        return None if known is None else int(known)

    def _store_checkpoint(self, connection: Connection, checkpoint: Checkpoint | None) -> int | None:
        if checkpoint is None:
            return None
        if (known := self._stored(connection, checkpoint)) is not None:
            return known  # by an earlier run of the same transaction
        row = insert(checkpoints).values(
            study_id=self.study_id, path=checkpoint.name, sha256=checkpoint.sha256, bytes=float(checkpoint.bytes)
        )
        key = connection.execute(row).inserted_primary_key
        assert key is not None
        return int(key[0])

    def _write_results(
        self, connection: Connection, held: _Rows, results: Sequence[RungResult], checkpoint_id: int | None
    ) -> None:
        slot_rows = []
        for result in results:
            value, kind = records.stored_value(result.value)
            slot_rows.append(
                {
                    "study_id": self.study_id,
                    "number": result.number,
                    **unleased("paused"),
                    "epochs": result.epochs,
                    "seconds": held[result.number].seconds + result.seconds,
                    "value": value,
                    "value_type": kind,
                    "reason": result.reason,
                    "checkpoint_id": checkpoint_id,
                }
            )
        self._rungs.write(connection, held, results)
        bulk.insert(connection, slots, slot_rows, conflict="update")

    def _sweep(self, connection: Connection) -> list[str]:
        """Delete the checkpoints that no slot refers to, leftovers of others included; returns their names.

        A checkpoint's row comes with the slots that refer to it, in one transaction, so none is swept too early.
        """
        used = exists().where(slots.c.study_id == self.study_id, slots.c.checkpoint_id == checkpoints.c.id)
        unused = connection.execute(
            select(checkpoints.c.id, checkpoints.c.path).where(checkpoints.c.study_id == self.study_id, not_(used))
        ).all()
        if unused:
            connection.execute(delete(checkpoints).where(checkpoints.c.id.in_([row.id for row in unused])))
        return [row.path for row in unused]


def _outcome(tally: Tally, lost: Iterable[int], removed: Sequence[str]) -> CommitOutcome:
    return CommitOutcome(
        lost=frozenset(lost),
        completed=frozenset(tally.completed),
        pruned=frozenset(tally.pruned),
        promoted=frozenset(tally.promoted),
        failed=frozenset(tally.failed),
        removed=tuple(removed),
    )


def _shortened(reason: str) -> str:
    """A reason that fits: an exception may quote whatever it met, and PostgreSQL stores no NUL."""
    reason = reason.replace("\0", "\\0")
    return reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 1]}…"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
