"""The rungs of one study: who goes on, who is pruned, and what becomes of a slot that ends.

Synchronous pruners decide on a rung as a whole, in the commit that fills it. ``asha`` decides in a claim: who is among
the best of its rung by then goes on before anything new is begun. Who is left in the end is pruned.

The rules are pure functions over a table of values (:mod:`tuner.search.hyperband`). A synchronous decision reads the
table of its bracket. The asynchronous one would read it in every claim, so each process keeps the table in memory
instead, as :class:`tuner.search.hyperband.Standing`, and reads what was added to it since.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, Connection, Row, and_, exists, or_, select, update

from tuner.search import hyperband
from tuner.spec import StudySpec
from tuner.storage import bulk, crew, records
from tuner.storage.database import clock
from tuner.storage.schema import State, curves, rungs, slots, studies
from tuner.words import count

_OPTUNA_STATE = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(kw_only=True)
class Tally:
    """What a running transaction has decided so far: slot numbers."""

    completed: set[int] = field(default_factory=set)
    pruned: set[int] = field(default_factory=set)
    promoted: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Ending:
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
class _Results:
    """One rung of one bracket: the value of every slot that reached it, and which of them are not paused there now."""

    values: dict[int, float]
    gone: set[int]


class Rungs:
    """The decisions of one study, each a part of somebody's transaction. Threads may share it."""

    def __init__(self, study_id: int, spec: StudySpec) -> None:
        self.study_id = study_id
        self.spec = spec
        self._dealt = hyperband.plan(spec)
        self._standings: dict[tuple[int, int], hyperband.Standing] = {}  # asha: by (bracket, rung)
        self._learned = 0  # the last position that the standings know
        self._learning = threading.Lock()

    @property
    def asynchronous(self) -> bool:
        """Whether claims decide, by the rule of ``asha``."""
        return self.spec.search.pruner == "asha"

    def take_turns(self, connection: Connection) -> int:
        """One decision at a time in a study: who comes second sees the first one's. Returns the results so far."""
        mine = select(studies.c.results).where(studies.c.study_id == self.study_id)
        return int(connection.execute(mine.with_for_update()).scalar() or 0)

    def write(self, connection: Connection, held: Mapping[int, Row[Any]], results: Sequence[RungResult]) -> None:
        """Write results into the table of rungs, under the asynchronous rule in their order for all to see."""
        position = self.take_turns(connection) if self.asynchronous else None
        rows = []
        for i, result in enumerate(results, start=1):
            row = {
                "study_id": self.study_id,
                "number": result.number,
                "rung": held[result.number].rung,
                "epochs": result.epochs,
                "value": records.stored_value(result.value)[0],
                "token": result.token,
                "position": None if position is None else position + i,
            }
            rows.append(row)
        bulk.insert(connection, rungs, rows)
        if position is not None:
            mine = update(studies).where(studies.c.study_id == self.study_id)
            connection.execute(mine.values(results=position + len(rows)))

    def end_top(
        self, connection: Connection, held: Mapping[int, Row[Any]], results: Sequence[RungResult], tally: Tally
    ) -> None:
        """At the top rung nobody waits for anybody: a trial is complete, or it diverged."""
        endings = []
        for result in results:
            row = held[result.number]
            if row.rung == len(self._dealt[row.bracket].rungs) - 1:
                good = math.isfinite(result.value)
                endings.append(
                    Ending(
                        number=row.number,
                        trial_id=row.trial_id,
                        state="complete" if good else "pruned",
                        epochs=result.epochs,
                        bracket=row.bracket,
                        rung=row.rung,
                        worker_id=row.worker_id,
                        value=result.value,
                        reason=result.reason if good else result.reason or diverged(result.epochs),
                    )
                )
        self.end(connection, endings, tally)

    def decide(self, connection: Connection, touched: set[tuple[int, int]], tally: Tally) -> None:
        """Decide every touched rung that is full: all its slots have a result, or have failed."""
        if self.spec.search.pruner == "asha":
            self._finish(connection, {bracket for bracket, _ in touched}, tally)
            return
        open_rungs = {place for place in touched if place[1] < len(self._dealt[place[0]].rungs) - 1}
        if not open_rungs:
            return
        self.take_turns(connection)
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
        endings: list[Ending] = []
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
        self.end(connection, endings, tally)

    def promote(self, connection: Connection, limit: int) -> None:
        """The asynchronous rule: let up to ``limit`` paused slots go on, all from the highest rung that has any.

        To be called before anything is written: what it learns here it remembers, also if the transaction fails.
        """
        with self._learning:
            self._learn(connection)
            if not any(standing.promotable(1) for standing in self._standings.values()):
                return
            self.take_turns(connection)
            self._learn(connection)  # what was decided while this one waited
            self._raise(connection, self._best_paused(connection, limit), Tally())

    def _learn(self, connection: Connection) -> None:
        """Bring the standings up to date. Results are committed in the order of ``position``, so none is missed."""
        fresh = connection.execute(
            select(rungs.c.number, rungs.c.rung, rungs.c.value, rungs.c.position)
            .where(rungs.c.study_id == self.study_id, rungs.c.position > self._learned)
            .order_by(rungs.c.position)
        ).all()
        found: dict[tuple[int, int], dict[int, float]] = {}
        for row in fresh:
            bracket = hyperband.slot_place(row.number, self._dealt)
            if row.rung < len(self._dealt[bracket].rungs) - 1:
                found.setdefault((bracket, row.rung), {})[row.number] = math.nan if row.value is None else row.value
        for place, values in found.items():
            if place not in self._standings:
                self._standings[place] = hyperband.Standing(self.spec.search.eta, self.spec.direction)
            self._standings[place].add(values)
        self._learned = fresh[-1].position if fresh else self._learned

    def _best_paused(self, connection: Connection, limit: int) -> list[tuple[int, int, int]]:
        """(number, bracket, rung) of slots that may go on, from the highest rung that has any."""
        for rung in sorted({rung for _, rung in self._standings}, reverse=True):
            found: list[tuple[int, int, int]] = []
            for bracket in sorted(bracket for bracket, place in self._standings if place == rung):
                standing = self._standings[bracket, rung]
                while candidates := standing.promotable(limit - len(found)):
                    paused = self._paused(connection, candidates, rung)
                    if gone := [number for number in candidates if number not in paused]:
                        standing.remove(gone)  # others let them go on
                    else:
                        found += [(number, bracket, rung) for number in candidates]
                        break
            if found:
                return found
        return []

    def _paused(self, connection: Connection, numbers: Sequence[int], rung: int) -> set[int]:
        """Which of some slots wait at a rung for its decision."""
        here = (slots.c.study_id == self.study_id, slots.c.number.in_(numbers))
        paused = select(slots.c.number).where(*here, slots.c.state == "paused", slots.c.rung == rung)
        return set(connection.execute(paused).scalars())

    def _promotable(self, table: Mapping[tuple[int, int], _Results]) -> list[tuple[int, int, int]]:
        """(number, bracket, rung) of every slot that may go on by the asynchronous rule."""
        return [
            (number, bracket, rung)
            for (bracket, rung), results in sorted(table.items())
            if rung < len(self._dealt[bracket].rungs) - 1
            for number in hyperband.promotable(results.values, results.gone, self.spec.search.eta, self.spec.direction)
        ]

    def _finish(self, connection: Connection, touched: set[int], tally: Tally) -> None:
        """The end of asynchronous brackets where nothing trains, nothing waits and nothing may go on.

        The paused slots are pruned. First the best of the highest rung goes on all the same, if none is complete: few
        slots promote nobody, since the best ⌊n/η⌋ of fewer than η are none.
        """
        self.take_turns(connection)
        idle = touched - self._busy(connection, touched)
        if not idle:
            return
        here = (slots.c.study_id == self.study_id, slots.c.bracket.in_(idle))
        states = connection.execute(select(slots.c.bracket, slots.c.state).distinct().where(*here)).all()
        idle = {row.bracket for row in states if row.state == "paused"}
        if not idle:
            return
        table = self._table(connection, idle)
        idle -= {bracket for _, bracket, _ in self._promotable(table)}
        complete = {row.bracket for row in states if row.state == "complete"}
        rows = connection.execute(
            select(slots).where(slots.c.study_id == self.study_id, slots.c.bracket.in_(idle), slots.c.state == "paused")
        ).all()
        endings: list[Ending] = []
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
        self.end(connection, endings, tally)

    def _busy(self, connection: Connection, brackets: Iterable[int]) -> set[int]:
        """Those brackets in which a slot trains or waits for a worker. By the index, however many slots they have."""
        wanted = sorted(brackets)

        def some(bracket: int) -> ColumnElement[bool]:
            every = range(len(self._dealt[bracket].rungs))
            here = (slots.c.study_id == self.study_id, slots.c.bracket == bracket, slots.c.rung.in_(every))
            return exists().where(*here, slots.c.state.in_(("waiting", "leased")))

        row = connection.execute(select(*(some(bracket) for bracket in wanted))).one()
        return {bracket for bracket, busy in zip(wanted, row, strict=True) if busy}

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

    def _raise(self, connection: Connection, promoted: Sequence[tuple[int, int, int]], tally: Tally) -> None:
        """Let slots, each (number, bracket, rung), wait for the next rung."""
        rows = []
        for number, bracket, rung in promoted:
            place = {"rung": rung + 1, "target": self._dealt[bracket].rungs[rung + 1].epochs}
            rows.append({"study_id": self.study_id, "number": number, "state": "waiting", "reason": None, **place})
        bulk.insert(connection, slots, rows, conflict="update")
        tally.promoted.update(number for number, _, _ in promoted)

    def _losers(
        self, bracket: int, rung: int, losers: Sequence[Row[Any]], results: _Results, promoted: int
    ) -> list[Ending]:
        """How slots end that do not go on from a rung."""
        ranked = hyperband.survivors(results.values, len(results.values), self.spec.direction)
        rank = {number: place for place, number in enumerate(ranked, start=1)}
        epochs = self._dealt[bracket].rungs[rung].epochs
        return [
            Ending(
                number=row.number,
                trial_id=row.trial_id,
                state="pruned",
                epochs=row.epochs,
                bracket=bracket,
                rung=rung,
                worker_id=row.worker_id,
                value=records.loaded_value(row.value, row.value_type),
                reason=f"rung {rung} at {count(epochs, 'epoch')}: rank {rank[row.number]} of {len(results.values)}, "
                f"{promoted} promoted"
                if row.number in rank
                else row.reason or diverged(row.epochs),
            )
            for row in losers
        ]

    def fail(self, connection: Connection, spent: Sequence[Row[Any]], reasons: Mapping[int, str], tally: Tally) -> None:
        """End slots as failed; a failed slot is a loser of its rung, which may be full now."""
        if not spent:
            return
        blank = [records.Start(number=row.number) for row in spent if row.trial_id is None]
        ids = records.start_trials(connection, self.study_id, blank, clock(connection)) if blank else {}
        endings = [
            Ending(
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
        self.end(connection, endings, tally)
        self.decide(connection, {(row.bracket, row.rung) for row in spent}, tally)

    def end(self, connection: Connection, endings: Sequence[Ending], tally: Tally) -> None:
        """Bring slots, and Optuna's trials with them, to their last state."""
        if not endings:
            return
        hands = crew.hands(connection, [ending.worker_id for ending in endings])
        rows = []
        for ending in endings:
            value, kind = (None, None) if ending.value is None else records.stored_value(ending.value)
            row = {
                "study_id": self.study_id,
                "number": ending.number,
                **unleased(ending.state),
                "trial_id": ending.trial_id,
                "epochs": ending.epochs,
                "value": value,
                "value_type": kind,
                "reason": ending.reason,
                "checkpoint_id": None,
            }
            rows.append(row)
        bulk.insert(connection, slots, rows, conflict="update")
        losses = self._last_losses(connection, [ending.number for ending in endings])
        finishes = []
        for ending in endings:
            worker, device = hands.get(ending.worker_id or 0, (None, None))
            train, val = losses.get(ending.number, (None, None))
            attrs = {  # what optuna-dashboard lists beside each trial
                "epochs": ending.epochs,
                "bracket": ending.bracket,
                "rung": ending.rung,
                "reason": ending.reason,
                "train_loss": train,
                "val_loss": val,
                "generalization_gap": None if train is None or val is None else val - train,
                "worker": worker,
                "device": device,
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
        records.finish_trials(connection, finishes, clock(connection))

    def _last_losses(
        self, connection: Connection, numbers: Sequence[int]
    ) -> dict[int, tuple[float | None, float | None]]:
        """(training loss, validation loss) of each slot's last epoch, None where it was not finite."""
        at = and_(
            curves.c.study_id == slots.c.study_id, curves.c.number == slots.c.number, curves.c.epoch == slots.c.epochs
        )
        found = select(curves.c.number, curves.c.train_loss, curves.c.val_loss).select_from(slots.join(curves, at))
        return {
            row.number: (row.train_loss, row.val_loss)
            for some in records.batched(numbers)
            for row in connection.execute(found.where(slots.c.study_id == self.study_id, slots.c.number.in_(some)))
        }


def unleased(state: State) -> dict[str, Any]:
    """The columns of a slot that nobody holds, in a state."""
    return {"state": state, "claim": None, "lease_until": None}


def diverged(epochs: int) -> str:
    """Why a trial ended whose loss was not finite any more."""
    return f"diverged at epoch {epochs}"
