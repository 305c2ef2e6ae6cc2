"""The time budget of one study: ``[search] minutes``, over all its workers, by the database's clock.

What counts is the time during which at least one worker was at work (:func:`tuner.storage.crew.worked_s`): a study that
stands still over night keeps the rest of its budget, and two workers at once use it up no faster than one.

Every claim says how much is left. A worker stops its lanes at the end of the epoch in which that is over, gives them
back, and claims again; the claim that finds the budget used up ends what nobody trains any more. So whoever still
lives, or joins later, brings the study to its end; slots of a worker that was killed come when their lease is over.
"""

from __future__ import annotations

from sqlalchemy import Connection, and_, delete, or_, select

from tuner.spec import StudySpec
from tuner.storage import crew, records
from tuner.storage.database import now
from tuner.storage.rungs import Ending, Rungs, Tally
from tuner.storage.schema import slots
from tuner.words import minutes


class TimeBudget:
    """The budget of one study, if it has one."""

    def __init__(self, study_id: int, spec: StudySpec, rungs: Rungs) -> None:
        self.study_id = study_id
        self.spec = spec
        self._rungs = rungs

    def left_s(self, connection: Connection, worker_id: int) -> float | None:
        """Seconds that are left, with ``worker_id`` at work until now; None without a budget."""
        if self.spec.search.minutes is None:
            return None
        return 60 * self.spec.search.minutes - crew.worked_s(connection, self.study_id, worker_id)

    def close(self, connection: Connection) -> None:
        """End every slot that nobody trains: what has begun is pruned, with the value of its last epoch so far (with
        ``training.keep = "best"`` of its best one); what never began is deleted.
        """
        self._rungs.take_turns(connection)
        mine = slots.c.study_id == self.study_id
        lost = and_(slots.c.state == "leased", slots.c.lease_until < now())
        left = or_(slots.c.state.in_(("waiting", "paused")), lost)
        connection.execute(delete(slots).where(mine, left, slots.c.trial_id.is_(None)))
        rows = connection.execute(
            select(slots).where(mine, left).order_by(slots.c.number).with_for_update(skip_locked=True)
        ).all()
        best = self.spec.direction if self.spec.keep == "best" else None
        reached = records.reached(connection, [row.trial_id for row in rows], best)
        endings = []
        for row in rows:
            known = (row.epochs, records.loaded_value(row.value, row.value_type))
            epochs, value = reached.get(row.trial_id, known)
            endings.append(
                Ending(
                    number=row.number,
                    trial_id=row.trial_id,
                    state="pruned",
                    epochs=epochs,
                    bracket=row.bracket,
                    rung=row.rung,
                    worker_id=row.worker_id,
                    value=value,
                    reason=f"time budget of {minutes(self.spec.search.minutes or 0.0)} over",
                )
            )
        self._rungs.end(connection, endings, Tally())
