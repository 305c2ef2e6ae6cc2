"""Proposals: which parameters a study's slots get, and, from coarse to fine, which of them may begin.

With ``search.refine`` the slots of a round wait until all earlier ones are over. The claim that finds them so narrows
the space and stores it, as an attribute of Optuna's study; from then on the round is open.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, literal, select

from tuner.search import hyperband, refine
from tuner.search.history import Observation
from tuner.search.samplers import Sampler, make_sampler
from tuner.space import Space
from tuner.spec import StudySpec
from tuner.storage import records
from tuner.storage.database import Database
from tuner.storage.schema import UNFINISHED, slots
from tuner.trial import Value

_MANY = 5000  # values that one IN (…) may list; some databases take no more than 32,766


class Proposals:
    """One study's sampler, of each round. Threads may share it: they take turns."""

    def __init__(self, database: Database, study_id: int, spec: StudySpec) -> None:
        self.study_id = study_id
        self.spec = spec
        self._database = database
        self._space = spec.search_space
        self._rounds = hyperband.rounds(spec)
        self._samplers: dict[int, Sampler] = {0: make_sampler(spec)}  # by round
        self._drawing = threading.Lock()
        self._over: dict[int, Observation] = {}  # trials that will not change any more

    def draw(self, numbers: Sequence[int]) -> dict[int, dict[str, Value]]:
        """Parameters for slots, those of one round at once."""
        with self._drawing:
            return self._draw(numbers)

    def _draw(self, numbers: Sequence[int]) -> dict[int, dict[str, Value]]:
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

    def first_closed(self, connection: Connection) -> int:
        """The slots below this number may be claimed; opens the next round when all earlier slots are over."""
        return self._rounds[self._open_round(connection)].stop

    def _open_round(self, connection: Connection) -> int:
        place = max(self._samplers)
        while place + 1 < len(self._rounds):
            if self._stored_space(connection, place + 1) is None:
                first = self._rounds[place + 1].start
                earlier = (slots.c.study_id == self.study_id, slots.c.number < first)
                unfinished = select(literal(1)).where(*earlier, slots.c.state.in_(UNFINISHED)).limit(1)
                if connection.execute(unfinished).scalar() is not None:
                    break
                self.narrow(connection, place + 1)
            place += 1
        return place

    def narrow(self, connection: Connection, place: int) -> None:
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


def _space_key(place: int) -> str:
    """The attribute of Optuna's study that holds a round's space; people count rounds from one."""
    return f"space_of_round_{place + 1}"
