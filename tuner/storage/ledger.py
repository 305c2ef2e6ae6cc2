"""The ledger of one study: who trains which slot, and what came out. Exact and fenced, in whole transactions.

A slot is one of the study's N trials. Its life::

    waiting ──claim──▶ leased ──commit──▶ paused ──rung decision──▶ waiting, one rung higher
       ▲                 │  │                └──────────────────────▶ pruned
       │   release, fail │  └─commit at the top rung──▶ complete (pruned, if it diverged)
       └─────────────────┘     attempts used up ─────▶ failed ──retry──▶ waiting

**Rungs.** Synchronous pruners decide on a rung as a whole, in the commit that fills it. ``asha`` decides in a claim:
who is among the best of its rung by then goes on before anything new is begun. Who is left in the end is pruned.

**Rounds.** With ``search.refine`` the slots of a round wait until all earlier ones are over. The claim that finds them
so narrows the space and stores it, as an attribute of Optuna's study; from then on the round is open.

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
import threading
import uuid
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    String,
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

from tuner.errors import BadInputError, StudyNotFoundError
from tuner.search import hyperband, refine
from tuner.search.distributions import distributions_for, encode
from tuner.search.history import Observation
from tuner.search.samplers import Sampler, make_sampler
from tuner.space import Space
from tuner.spec import StudySpec
from tuner.storage import bulk, records
from tuner.storage.checkpoints import Checkpoint
from tuner.storage.database import Database, now
from tuner.storage.schema import UNFINISHED, State, checkpoints, curves, rungs, slots, studies, workers
from tuner.trial import Value

MAX_REASON = 2000  # characters of a reason that are stored
MAX_ATTEMPTS = 3  # times a slot is tried before it fails


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A slot that a worker holds the lease of.

    params: every hyperparameter. epochs: trained already, which is what ``checkpoint`` holds (0 without one).
    target_epochs: how far the slot's rung goes, in total. attempt: 1, and one more after each loss or failure.
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
class RungResult:
    """A lane that has reached its rung (or diverged, or stopped early on the way).

    epochs: trained in total. value: the metric of the weights that would be kept; NaN or infinite loses.
    seconds: of this lease. reason: why it ended before the rung, if it did.
    """

    number: int
    token: int
    epochs: int
    value: float
    seconds: float
    reason: str | None = None


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
class Outstanding:
    """How many slots are in which state now, and when the next lease ends (seconds; None without leases)."""

    waiting: int
    leased: int
    expired: int  # leased, but the lease is over: may be claimed
    paused: int
    finished: int
    next_expiry_s: float | None

    @property
    def claimable(self) -> int:
        return self.waiting + self.expired


@dataclass
class _Tally:
    """What a running transaction has decided so far."""

    completed: set[int]
    pruned: set[int]
    promoted: set[int]
    failed: set[int]

    @classmethod
    def empty(cls) -> _Tally:
        return cls(set(), set(), set(), set())

    def outcome(self, lost: Iterable[int], removed: Sequence[str]) -> CommitOutcome:
        return CommitOutcome(
            lost=frozenset(lost),
            completed=frozenset(self.completed),
            pruned=frozenset(self.pruned),
            promoted=frozenset(self.promoted),
            failed=frozenset(self.failed),
            removed=tuple(removed),
        )


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """A slot that reaches its last state."""

    number: int
    trial_id: int
    state: State
    epochs: int
    bracket: int
    rung: int
    worker_id: int | None
    value: float | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class _Results:
    """One rung of one bracket: the value of every slot that reached it, and which of them are not paused there now."""

    values: dict[int, float]
    gone: set[int]


_MANY = 5000  # values that one IN (…) may list; some databases take no more than 32,766
_OPTUNA_STATE = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_Rows = dict[int, Row[Any]]


class Ledger:
    """One study's slots. Threads may share it; draws from the sampler take turns.

    Every method raises StorageError when the database stays out of reach, StudyNotFoundError when the study is gone.
    """

    def __init__(self, database: Database, study_id: int, spec: StudySpec, *, max_attempts: int = MAX_ATTEMPTS) -> None:
        self.study_id = study_id
        self.spec = spec
        self.max_attempts = max_attempts
        self._database = database
        self._dealt = hyperband.plan(spec)
        self._space = spec.search_space
        self._rounds = hyperband.rounds(spec)
        self._samplers: dict[int, Sampler] = {0: make_sampler(spec)}  # by round
        self._drawing = threading.Lock()
        self._over: dict[int, Observation] = {}  # trials that will not change any more

    # Workers

    def register(self, host: str, pid: int, device: str, version: str) -> int:
        """Write a worker down; returns its id. Raises BadInputError when a name is longer than its column."""
        for column, text in ((workers.c.host, host), (workers.c.device, device), (workers.c.version, version)):
            assert isinstance(column.type, String)
            if column.type.length is not None and len(text) > column.type.length:
                raise BadInputError(
                    f"a worker's {column.name} has at most {column.type.length} characters, this one {len(text)}: "
                    f"{text[:40]}…"
                )
        session = uuid.uuid4().hex

        def work(connection: Connection) -> int:
            self._study(connection)
            known = connection.execute(select(workers.c.id).where(workers.c.session == session)).scalar()
            if known is not None:
                return int(known)
            row = insert(workers).values(
                study_id=self.study_id,
                session=session,
                host=host,
                pid=pid,
                device=device,
                version=version,
                started_at=now(),
                heartbeat_at=now(),
                lanes=0,
                epochs_per_s=0.0,
            )
            key = connection.execute(row).inserted_primary_key
            assert key is not None
            return int(key[0])

        return self._database.write(work)

    def heartbeat(self, worker_id: int, lanes: int, epochs_per_s: float) -> None:
        """Say that a worker lives, and renew its leases, each for its own duration."""

        def work(connection: Connection) -> None:
            speed = epochs_per_s if math.isfinite(epochs_per_s) else 0.0
            beat = update(workers).where(workers.c.id == worker_id)
            connection.execute(beat.values(heartbeat_at=now(), ended_at=None, lanes=lanes, epochs_per_s=speed))
            self._renew(connection, self._mine(worker_id))

        self._database.write(work)

    def leave(self, worker_id: int) -> None:
        """Say that a worker ends. Slots it still holds wait for another one, from their last checkpoint."""

        def work(connection: Connection) -> None:
            connection.execute(update(slots).where(*self._mine(worker_id)).values(_unleased("waiting")))
            end = update(workers).where(workers.c.id == worker_id)
            connection.execute(end.values(heartbeat_at=now(), ended_at=now(), lanes=0))

        self._database.write(work)

    # Claims

    def claim(self, worker_id: int, *, limit: int, lease_s: float) -> list[Claim]:
        """Lease up to ``limit`` slots for ``lease_s`` seconds, all of one rung and target, the oldest bracket's first.

        Promoted slots come first, then those whose lease is over, then new ones. Slots of other brackets of the same
        form fill a pack that one bracket does not fill. Slots without parameters get them drawn, all from one fit of
        the sampler. Nothing when nothing can be claimed now, or the study is stopped.
        """
        if limit < 1 or lease_s <= 0:
            raise ValueError(f"a claim needs limit >= 1 and lease_s > 0, got {limit} and {lease_s}")
        key = uuid.uuid4().hex
        leased = self._database.write(lambda connection: self._lease(connection, worker_id, key, limit, lease_s))
        undrawn = [row.number for row in leased if row.params is None]
        if undrawn:
            try:
                with self._drawing:
                    drawn = self._draw(undrawn)
                leased = self._database.write(lambda connection: self._store_drawn(connection, worker_id, key, drawn))
            except BaseException:
                self.release(worker_id, [(row.number, row.token, 0) for row in leased], (), None)
                raise
        return [self._claim_of(row) for row in leased]

    def _lease(
        self, connection: Connection, worker_id: int, key: str, limit: int, lease_s: float
    ) -> Sequence[Row[Any]]:
        if self._study(connection).stopped:
            return []
        if mine := self._claimed(connection, worker_id, key):
            return mine  # committed before, only the answer was lost
        if self.spec.search.pruner == "asha":
            self._promote(connection, limit)
        open_ = slots.c.number < self._rounds[self._open_round(connection)].stop
        waiting, over = slots.c.state == "waiting", and_(slots.c.state == "leased", slots.c.lease_until < now())
        fresh = and_(waiting, slots.c.rung == 0)  # an equality: then the index has them in order, however many wait
        for group, lost in ((and_(waiting, slots.c.rung > 0), False), (over, True), (fresh, False)):
            found = self._lock_group(connection, and_(group, open_), limit)
            if lost and found:
                spent = [row for row in found if row.attempts >= self.max_attempts]
                self._give_up(connection, spent)
                found = [row for row in found if row.attempts < self.max_attempts]
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
            return self._claimed(connection, worker_id, key)
        return []

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
                .with_for_update(skip_locked=True)
            ).all()
            if locked:
                return list(locked)
            skipped.append((place.rung, place.target))  # all in other claims' hands at this moment

    def _give_up(self, connection: Connection, spent: Sequence[Row[Any]]) -> None:
        """Fail slots whose lease ran out on the last attempt."""
        if not spent:
            return
        names = self._worker_names(connection, [row.worker_id for row in spent])
        reasons = {
            row.number: f"the lease ran out {row.attempts} times, last on {names.get(row.worker_id, 'a worker')}"
            for row in spent
        }
        tally = _Tally.empty()
        self._fail(connection, spent, reasons, tally)

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
        starts = [
            records.Start(
                number=row.number,
                params=encode(drawn[row.number], self._space),
                distributions=distributions_for(drawn[row.number], self._space),
            )
            for row in fresh
        ]
        ids = records.start_trials(connection, self.study_id, starts, _clock(connection))
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
        )
        if lock:
            mine = select(slots.c.number).where(*self._mine(worker_id), slots.c.claim == key)
            connection.execute(mine.order_by(slots.c.number).with_for_update()).all()
        return connection.execute(query).all()

    def _claim_of(self, row: Row[Any]) -> Claim:
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
        )

    # Proposals

    def _draw(self, numbers: Sequence[int]) -> dict[int, dict[str, Value]]:
        """Parameters for slots, those of one round at once."""
        by_round: dict[int, list[int]] = {}
        for number in numbers:
            by_round.setdefault(self._round_of(number), []).append(number)
        drawn: dict[int, dict[str, Value]] = {}
        for place, members in by_round.items():
            drawn |= zip(members, self._sampler(place).draw(members, self._history), strict=True)
        return drawn

    def _sampler(self, place: int) -> Sampler:
        if place not in self._samplers:
            space = self._database.read(lambda connection: self._stored_space(connection, place))
            assert space is not None, "a slot was leased, so its round is open"
            self._samplers[place] = make_sampler(self.spec, space)
        return self._samplers[place]

    def _round_of(self, number: int) -> int:
        return bisect_right([part.start for part in self._rounds], number) - 1

    def _open_round(self, connection: Connection) -> int:
        """The last round that slots may be claimed of; opens the next one when all earlier slots are over."""
        place = max(self._samplers)
        while place + 1 < len(self._rounds):
            if self._stored_space(connection, place + 1) is None:
                first = self._rounds[place + 1].start
                earlier = (slots.c.study_id == self.study_id, slots.c.number < first)
                unfinished = select(literal(1)).where(*earlier, slots.c.state.in_(UNFINISHED)).limit(1)
                if connection.execute(unfinished).scalar() is not None:
                    break
                self._narrow(connection, place + 1)
            place += 1
        return place

    def _narrow(self, connection: Connection, place: int) -> None:
        """Store the space of a round. Who comes second leaves what is there, so that all draw from one."""
        rules, before = self.spec.search.refine, self._rounds[place - 1]
        assert rules is not None, "a study without refine has one round"
        space = self._space if place == 1 else self._stored_space(connection, place - 1)
        assert space is not None, "rounds open one after the other"
        members = (slots.c.number >= before.start, slots.c.number < before.stop)
        finished = self._observations(connection, *members, slots.c.state.in_(("complete", "pruned")))
        narrowed = refine.refine(space, finished, rules.keep, self.spec.direction)
        records.keep_study_attr(connection, self.study_id, _space_key(place), refine.as_written(narrowed))

    def _stored_space(self, connection: Connection, place: int) -> Space | None:
        written = records.study_attr(connection, self.study_id, _space_key(place))
        return None if written is None else refine.read_written(self._space, written)

    def _history(self) -> list[Observation]:
        """Every trial that has its parameters, by number. Those that are over are read once."""

        def work(connection: Connection) -> list[Observation]:
            over = slots.c.state.in_(("complete", "pruned"))
            numbers = connection.execute(select(slots.c.number).where(slots.c.study_id == self.study_id, over))
            fresh = [number for number in numbers.scalars() if number not in self._over]
            if fresh:
                some = () if len(fresh) > _MANY else (slots.c.number.in_(fresh),)
                self._over |= {trial.number: trial for trial in self._observations(connection, over, *some)}
            running = self._observations(connection, slots.c.state.in_(UNFINISHED), slots.c.params.is_not(None))
            return sorted([*self._over.values(), *running], key=lambda trial: trial.number)

        return self._database.read(work)

    def _observations(self, connection: Connection, *where: ColumnElement[bool]) -> list[Observation]:
        found = connection.execute(
            select(slots.c.number, slots.c.state, slots.c.params, slots.c.epochs, slots.c.value, slots.c.value_type)
            .where(slots.c.study_id == self.study_id, *where)
            .order_by(slots.c.number)
        )
        return [
            Observation(
                number=row.number,
                params=json.loads(row.params),
                value=records.loaded_value(row.value, row.value_type),
                epochs=row.epochs,
                complete=row.state == "complete",
            )
            for row in found
        ]

    # Results

    def record(self, worker_id: int, rows: Sequence[EpochRow]) -> frozenset[int]:
        """Write epochs of lanes that go on, and renew their leases. Returns the slots that were lost."""

        def work(connection: Connection) -> frozenset[int]:
            tokens = {row.number: row.token for row in rows}
            held = self._held(connection, worker_id, tokens)
            self._write_curves(connection, held, rows)
            if held:
                self._renew(connection, (slots.c.study_id == self.study_id, slots.c.number.in_(list(held))))
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
            tally = _Tally.empty()
            self._end_top(connection, held, fresh, tally)
            self._decide(connection, {(held[r.number].bracket, held[r.number].rung) for r in fresh}, tally)
            return tally.outcome(lost, self._sweep(connection))

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
        return self._keep(worker_id, states, epochs, checkpoint, _unleased("waiting"))

    def save(
        self,
        worker_id: int,
        states: Sequence[tuple[int, int, int]],
        epochs: Sequence[EpochRow],
        checkpoint: Checkpoint,
    ) -> CommitOutcome:
        """Store a checkpoint of slots that train on: (number, token, epochs that it holds). Renews their leases."""
        return self._keep(worker_id, states, epochs, checkpoint, {"lease_until": now() + slots.c.lease_s})

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
                unused = checkpoint is not None and not given_back
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
            tally = _Tally.empty()
            again = [row for row in held.values() if row.attempts < self.max_attempts]
            if again:
                rows = [
                    {
                        "study_id": self.study_id,
                        "number": row.number,
                        "attempts": row.attempts + 1,
                        "reason": reasons[row.number],
                        **_unleased("waiting"),
                    }
                    for row in again
                ]
                bulk.insert(connection, slots, rows, conflict="update")
            spent = [row for row in held.values() if row.attempts >= self.max_attempts]
            self._fail(connection, spent, reasons, tally)
            gone = tokens.keys() - held.keys()
            lost = gone - self._given_back(connection, gone, tokens)
            return tally.outcome(lost, self._sweep(connection))

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
                    **_unleased("waiting"),
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

    def outstanding(self) -> Outstanding:
        """What is left to do: an idle worker may sleep until the next lease ends."""

        def work(connection: Connection) -> Outstanding:
            self._study(connection)
            over = case((slots.c.lease_until < now(), 1), else_=0)
            rows = connection.execute(
                select(
                    slots.c.state,
                    func.count().label("count"),
                    func.sum(over).label("over"),
                    (func.min(slots.c.lease_until) - now()).label("next"),
                )
                .where(slots.c.study_id == self.study_id)
                .group_by(slots.c.state)
            )
            by_state = {row.state: row for row in rows}
            count = {state: by_state[state][1] if state in by_state else 0 for state in UNFINISHED}
            leases = by_state.get("leased")
            return Outstanding(
                waiting=count["waiting"],
                leased=count["leased"] - int(leases.over if leases else 0),
                expired=int(leases.over if leases else 0),
                paused=count["paused"],
                finished=sum(row[1] for row in by_state.values()) - sum(count.values()),
                next_expiry_s=max(0.0, float(leases.next)) if leases else None,
            )

        return self._database.read(work)

    # Parts of a transaction

    def _study(self, connection: Connection) -> Row[Any]:
        row = connection.execute(select(studies.c.stopped).where(studies.c.study_id == self.study_id)).one_or_none()
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

    def _renew(self, connection: Connection, where: Iterable[ColumnElement[bool]]) -> None:
        connection.execute(update(slots).where(*where).values(lease_until=now() + slots.c.lease_s))

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

    def _store_checkpoint(self, connection: Connection, checkpoint: Checkpoint | None) -> int | None:
        if checkpoint is None:
            return None
        mine = (checkpoints.c.study_id == self.study_id, checkpoints.c.path == checkpoint.name)
        if (known := connection.execute(select(checkpoints.c.id).where(*mine)).scalar()) is not None:
            return int(known)  # by an earlier run of the same transaction
        row = insert(checkpoints).values(
            study_id=self.study_id, path=checkpoint.name, sha256=checkpoint.sha256, bytes=float(checkpoint.bytes)
        )
        key = connection.execute(row).inserted_primary_key
        assert key is not None
        return int(key[0])

    def _write_results(
        self, connection: Connection, held: _Rows, results: Sequence[RungResult], checkpoint_id: int | None
    ) -> None:
        rung_rows, slot_rows = [], []
        for result in results:
            row = held[result.number]
            value, kind = records.stored_value(result.value)
            place = {"study_id": self.study_id, "number": result.number}
            rung_rows.append(
                {**place, "rung": row.rung, "epochs": result.epochs, "value": value, "token": result.token}
            )
            slot_rows.append(
                {
                    **place,
                    **_unleased("paused"),
                    "epochs": result.epochs,
                    "seconds": row.seconds + result.seconds,
                    "value": value,
                    "value_type": kind,
                    "reason": result.reason,
                    "checkpoint_id": checkpoint_id,
                }
            )
        bulk.insert(connection, rungs, rung_rows)
        bulk.insert(connection, slots, slot_rows, conflict="update")

    def _end_top(self, connection: Connection, held: _Rows, results: Sequence[RungResult], tally: _Tally) -> None:
        """At the top rung nobody waits for anybody: a trial is complete, or it diverged."""
        endings = []
        for result in results:
            row = held[result.number]
            if row.rung == len(self._dealt[row.bracket].rungs) - 1:
                good = math.isfinite(result.value)
                endings.append(
                    _Ending(
                        number=row.number,
                        trial_id=row.trial_id,
                        state="complete" if good else "pruned",
                        epochs=result.epochs,
                        bracket=row.bracket,
                        rung=row.rung,
                        worker_id=row.worker_id,
                        value=result.value,
                        reason=result.reason if good else result.reason or _diverged(result.epochs),
                    )
                )
        self._end(connection, endings, tally)

    def _decide(self, connection: Connection, touched: set[tuple[int, int]], tally: _Tally) -> None:
        """Decide every touched rung that is full: all its slots have a result, or have failed."""
        if self.spec.search.pruner == "asha":
            self._finish(connection, {bracket for bracket, _ in touched}, tally)
            return
        open_rungs = {place for place in touched if place[1] < len(self._dealt[place[0]].rungs) - 1}
        if not open_rungs:
            return
        self._take_turns(connection)
        at = or_(*(and_(slots.c.bracket == bracket, slots.c.rung == rung) for bracket, rung in open_rungs))
        here = and_(slots.c.study_id == self.study_id, at)
        training = connection.execute(
            select(slots.c.bracket, slots.c.rung).distinct().where(here, slots.c.state.in_(("waiting", "leased")))
        )
        full = open_rungs - {(row.bracket, row.rung) for row in training}
        if not full:
            return
        at = or_(*(and_(slots.c.bracket == bracket, slots.c.rung == rung) for bracket, rung in full))
        rows = connection.execute(
            select(slots).where(slots.c.study_id == self.study_id, at, slots.c.state == "paused")
        ).all()
        table = self._table(connection, {bracket for bracket, _ in full})
        endings: list[_Ending] = []
        promoted: list[tuple[int, int, int]] = []
        for bracket, rung in sorted(full):
            members = {row.number: row for row in rows if (row.bracket, row.rung) == (bracket, rung)}
            # The best of all that ever reached the rung: a slot that was retried competes with those before it.
            best = hyperband.survivors(
                table[bracket, rung].values, self._dealt[bracket].rungs[rung + 1].size, self.spec.direction
            )
            kept = [number for number in best if number in members]
            promoted += [(number, bracket, rung) for number in kept]
            losers = [members[number] for number in sorted(members.keys() - set(kept))]
            endings += self._losers(bracket, rung, losers, table[bracket, rung], len(best))
        self._raise(connection, promoted, tally)
        self._end(connection, endings, tally)

    def _promote(self, connection: Connection, limit: int) -> None:
        """The asynchronous rule: let up to ``limit`` paused slots go on, all from the highest rung that has any."""
        paused = select(slots.c.bracket).distinct().where(slots.c.study_id == self.study_id, slots.c.state == "paused")
        if connection.execute(paused.limit(1)).scalar() is None:
            return
        self._take_turns(connection)
        brackets = set(connection.execute(paused).scalars())
        found = self._promotable(self._table(connection, brackets))
        if found:
            highest = max(rung for _, _, rung in found)
            self._raise(connection, [place for place in found if place[2] == highest][:limit], _Tally.empty())

    def _promotable(self, table: Mapping[tuple[int, int], _Results]) -> list[tuple[int, int, int]]:
        """(number, bracket, rung) of every slot that may go on by the asynchronous rule."""
        return [
            (number, bracket, rung)
            for (bracket, rung), results in sorted(table.items())
            if rung < len(self._dealt[bracket].rungs) - 1
            for number in hyperband.promotable(results.values, results.gone, self.spec.search.eta, self.spec.direction)
        ]

    def _finish(self, connection: Connection, touched: set[int], tally: _Tally) -> None:
        """The end of asynchronous brackets where nothing trains, nothing waits and nothing may go on.

        The paused slots are pruned. First the best of the highest rung goes on all the same, if none is complete: few
        slots promote nobody, since the best ⌊n/η⌋ of fewer than η are none.
        """
        self._take_turns(connection)
        here = (slots.c.study_id == self.study_id, slots.c.bracket.in_(touched))
        states = connection.execute(
            select(slots.c.bracket, slots.c.state).distinct().where(*here, slots.c.state != "pruned")
        ).all()
        busy = {row.bracket for row in states if row.state in ("waiting", "leased")}
        idle = {row.bracket for row in states if row.state == "paused"} - busy
        if not idle:
            return
        table = self._table(connection, idle)
        idle -= {bracket for _, bracket, _ in self._promotable(table)}
        complete = {row.bracket for row in states if row.state == "complete"}
        rows = connection.execute(
            select(slots).where(slots.c.study_id == self.study_id, slots.c.bracket.in_(idle), slots.c.state == "paused")
        ).all()
        endings: list[_Ending] = []
        for bracket in sorted(idle):
            places = sorted({row.rung for row in rows if row.bracket == bracket}, reverse=True)
            if bracket not in complete and (last := self._last_hope(table, bracket, places)) is not None:
                self._raise(connection, [last], tally)
                continue
            for rung in places:
                results = table[bracket, rung]
                losers = [row for row in rows if (row.bracket, row.rung) == (bracket, rung)]
                promoted = len(results.values) - len(losers)
                endings += self._losers(bracket, rung, losers, results, promoted)
        self._end(connection, endings, tally)

    def _last_hope(
        self, table: Mapping[tuple[int, int], _Results], bracket: int, places: Sequence[int]
    ) -> tuple[int, int, int] | None:
        """The best paused slot of the highest rung that has a finite one."""
        for rung in places:
            results = table[bracket, rung]
            paused = {number: value for number, value in results.values.items() if number not in results.gone}
            if best := hyperband.survivors(paused, 1, self.spec.direction):
                return best[0], bracket, rung
        return None

    def _take_turns(self, connection: Connection) -> None:
        """One decision at a time in a study: who comes second sees the first one's result."""
        connection.execute(select(studies.c.study_id).where(studies.c.study_id == self.study_id).with_for_update())

    def _table(self, connection: Connection, brackets: Iterable[int]) -> dict[tuple[int, int], _Results]:
        """The results of all rungs of some brackets, by (bracket, rung): all that a decision sees."""
        found = connection.execute(
            select(
                slots.c.bracket, rungs.c.rung, rungs.c.number, rungs.c.value, slots.c.rung.label("place"), slots.c.state
            )
            .select_from(
                rungs.join(slots, and_(slots.c.study_id == rungs.c.study_id, slots.c.number == rungs.c.number))
            )
            .where(rungs.c.study_id == self.study_id, slots.c.bracket.in_(list(brackets)))
            .order_by(rungs.c.number)
        )
        # A rung whose every slot failed has no result, and is a table all the same.
        table: dict[tuple[int, int], _Results] = defaultdict(lambda: _Results(values={}, gone=set()))
        for row in found:
            results = table[row.bracket, row.rung]
            results.values[row.number] = math.nan if row.value is None else row.value
            if row.state != "paused" or row.place != row.rung:
                results.gone.add(row.number)
        return table

    def _raise(self, connection: Connection, promoted: Sequence[tuple[int, int, int]], tally: _Tally) -> None:
        """Let slots, each (number, bracket, rung), wait for the next rung."""
        rows = []
        for number, bracket, rung in promoted:
            place = {"rung": rung + 1, "target": self._dealt[bracket].rungs[rung + 1].epochs}
            rows.append({"study_id": self.study_id, "number": number, "state": "waiting", "reason": None, **place})
        bulk.insert(connection, slots, rows, conflict="update")
        tally.promoted.update(number for number, _, _ in promoted)

    def _losers(
        self, bracket: int, rung: int, losers: Sequence[Row[Any]], results: _Results, promoted: int
    ) -> list[_Ending]:
        """How slots end that do not go on from a rung."""
        ranked = hyperband.survivors(results.values, len(results.values), self.spec.direction)
        rank = {number: place for place, number in enumerate(ranked, start=1)}
        epochs = self._dealt[bracket].rungs[rung].epochs
        return [
            _Ending(
                number=row.number,
                trial_id=row.trial_id,
                state="pruned",
                epochs=row.epochs,
                bracket=bracket,
                rung=rung,
                worker_id=row.worker_id,
                value=records.loaded_value(row.value, row.value_type),
                reason=f"rung {rung} at {epochs} epochs: rank {rank[row.number]} of {len(results.values)}, "
                f"{promoted} promoted"
                if row.number in rank
                else row.reason or _diverged(row.epochs),
            )
            for row in losers
        ]

    def _fail(
        self, connection: Connection, spent: Sequence[Row[Any]], reasons: Mapping[int, str], tally: _Tally
    ) -> None:
        """End slots as failed; a failed slot is a loser of its rung, which may be full now."""
        if not spent:
            return
        blank = [records.Start(number=row.number) for row in spent if row.trial_id is None]
        ids = records.start_trials(connection, self.study_id, blank, _clock(connection)) if blank else {}
        endings = [
            _Ending(
                number=row.number,
                trial_id=ids.get(row.number, row.trial_id),
                state="failed",
                epochs=row.epochs,
                bracket=row.bracket,
                rung=row.rung,
                worker_id=row.worker_id,
                value=None,
                reason=reasons[row.number],
            )
            for row in spent
        ]
        self._end(connection, endings, tally)
        self._decide(connection, {(row.bracket, row.rung) for row in spent}, tally)

    def _end(self, connection: Connection, endings: Sequence[_Ending], tally: _Tally) -> None:
        """Bring slots, and Optuna's trials with them, to their last state."""
        if not endings:
            return
        names = self._worker_names(connection, [ending.worker_id for ending in endings])
        rows = [
            {
                "study_id": self.study_id,
                "number": ending.number,
                **_unleased(ending.state),
                "trial_id": ending.trial_id,
                "reason": ending.reason,
                "checkpoint_id": None,
            }
            for ending in endings
        ]
        bulk.insert(connection, slots, rows, conflict="update")
        finishes = []
        for ending in endings:
            attrs = {
                "epochs": ending.epochs,
                "bracket": ending.bracket,
                "rung": ending.rung,
                "reason": ending.reason,
                "worker": names.get(ending.worker_id) if ending.worker_id is not None else None,
            }
            finishes.append(
                records.Finish(
                    trial_id=ending.trial_id,
                    state=_OPTUNA_STATE[ending.state],
                    value=ending.value,
                    user_attrs={key: value for key, value in attrs.items() if value is not None},
                )
            )
            {"complete": tally.completed, "pruned": tally.pruned}.get(ending.state, tally.failed).add(ending.number)
        records.finish_trials(connection, finishes, _clock(connection))

    def _worker_names(self, connection: Connection, ids: Iterable[int | None]) -> dict[int, str]:
        wanted = sorted({i for i in ids if i is not None})
        rows = connection.execute(select(workers.c.id, workers.c.host, workers.c.pid).where(workers.c.id.in_(wanted)))
        return {row.id: worker_name(row.host, row.pid) for row in rows}

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


def worker_name(host: str, pid: int) -> str:
    """What people call a worker."""
    return f"{host}:{pid}"


def _space_key(place: int) -> str:
    """The attribute of Optuna's study that holds a round's space; people count rounds from one."""
    return f"space_of_round_{place + 1}"


def _unleased(state: State) -> dict[str, Any]:
    return {"state": state, "claim": None, "lease_until": None}


def _diverged(epochs: int) -> str:
    return f"diverged at epoch {epochs}"


def _shortened(reason: str) -> str:
    """A reason that fits: an exception may quote whatever it met, and PostgreSQL stores no NUL."""
    reason = reason.replace("\0", "\\0")
    return reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 1]}…"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _clock(connection: Connection) -> float:
    return float(connection.execute(select(now())).scalar_one())
