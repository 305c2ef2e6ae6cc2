"""The crew of one study: its workers' rows, and how long they have been at work."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable

from sqlalchemy import Connection, String, insert, select, update

from tuner.errors import BadInputError
from tuner.storage.database import clock, now
from tuner.storage.schema import workers


def new_session() -> str:
    """A key for one registration."""
    return uuid.uuid4().hex


def check_names(host: str, device: str, version: str) -> None:
    """Raises BadInputError when a name is longer than its column."""
    for column, text in ((workers.c.host, host), (workers.c.device, device), (workers.c.version, version)):
        assert isinstance(column.type, String)
        if column.type.length is not None and len(text) > column.type.length:
            raise BadInputError(
                f"a worker's {column.name} has at most {column.type.length} characters, this one {len(text)}: "
                f"{text[:40]}…"
            )


def register(
    connection: Connection, study_id: int, session: str, *, host: str, pid: int, device: str, version: str
) -> int:
    """Write a worker down; returns its id. The same session again is the same worker."""
    known = connection.execute(select(workers.c.id).where(workers.c.session == session)).scalar()
    if known is not None:
        return int(known)
    row = insert(workers).values(
        study_id=study_id,
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


def beat(connection: Connection, worker_id: int, lanes: int, epochs_per_s: float) -> None:
    """A sign of life."""
    speed = epochs_per_s if math.isfinite(epochs_per_s) else 0.0
    mine = update(workers).where(workers.c.id == worker_id)
    connection.execute(mine.values(heartbeat_at=now(), ended_at=None, lost=False, lanes=lanes, epochs_per_s=speed))


def end(connection: Connection, worker_id: int) -> None:
    """The last sign of life."""
    mine = update(workers).where(workers.c.id == worker_id)
    connection.execute(mine.values(heartbeat_at=now(), ended_at=now(), lanes=0))


def bury(connection: Connection, study_id: int, host: str, pid: int) -> list[int]:
    """Write down that a process is dead; returns the ids of the workers it was."""
    there = (workers.c.study_id == study_id, workers.c.host == host, workers.c.pid == pid, workers.c.ended_at.is_(None))
    ids = connection.execute(select(workers.c.id).where(*there)).scalars().all()
    connection.execute(update(workers).where(workers.c.id.in_(ids)).values(lost=True, lanes=0))
    return list(ids)


def seen_dead(connection: Connection, ids: Iterable[int | None]) -> set[int]:
    """Those of some workers whose launcher saw them die."""
    wanted = sorted({i for i in ids if i is not None})
    lost = select(workers.c.id).where(workers.c.id.in_(wanted), workers.c.lost)
    return set(connection.execute(lost).scalars())


def hands(connection: Connection, ids: Iterable[int | None]) -> dict[int, tuple[str, str]]:
    """What people call some workers, and what they work with: (name, device) by id."""
    wanted = sorted({i for i in ids if i is not None})
    columns = (workers.c.id, workers.c.host, workers.c.pid, workers.c.device)
    rows = connection.execute(select(*columns).where(workers.c.id.in_(wanted)))
    return {row.id: (worker_name(row.host, row.pid), row.device) for row in rows}


def names(connection: Connection, ids: Iterable[int | None]) -> dict[int, str]:
    """What people call some workers, by id."""
    return {key: name for key, (name, _) in hands(connection, ids).items()}


def worker_name(host: str, pid: int) -> str:
    """What people call a worker."""
    return f"{host}:{pid}"


def worked_s(connection: Connection, study_id: int, worker_id: int) -> float:
    """Seconds during which at least one worker of the study was at work, by the database's clock.

    A worker is at work from its registration to its last sign of life; ``worker_id``, who asks, until now.
    """
    crew = select(workers.c.id, workers.c.started_at, workers.c.heartbeat_at).where(workers.c.study_id == study_id)
    rows = connection.execute(crew).all()
    at = clock(connection)
    return union_s((row.started_at, at if row.id == worker_id else row.heartbeat_at) for row in rows)


def union_s(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals, in their unit.

    >>> union_s([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    length, reached = 0.0, -math.inf
    for start, stop in sorted(intervals):
        length += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return length
