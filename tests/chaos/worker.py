"""A worker process that pretends to train: each epoch's value follows from the one before, so resuming is checked too.

It drives the real ledger and the real checkpoints, and writes down what the database acknowledged: one line a claim and
one a committed result, on disk before it goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuner.cli.signals import leave_on_signal
from tuner.errors import TunerError
from tuner.manager import StudyManager
from tuner.storage.checkpoints import CheckpointError, CheckpointStore
from tuner.storage.ledger import Claim, EpochRow, Ledger, RungResult
from tuner.trial import Value

EPOCH_S = 0.06  # seconds an epoch of a pack seems to take, at most
NEVER = 10**6  # attempts: here a slot never fails, so that rungs end as dealt


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What one worker process is told."""

    url: str
    artifacts: str
    study: str
    journal: str  # file of acknowledged claims and results
    seed: int
    lease_s: float
    patience_s: float = 90.0


def digest(params: Mapping[str, Value]) -> str:
    return hashlib.sha256(json.dumps(dict(params), sort_keys=True).encode()).hexdigest()


def step(params: Mapping[str, Value], epoch: int, value: float) -> float:
    """Train one epoch more: the value after ``epoch``, from the one before."""
    noise = hashlib.sha256(f"{digest(params)}/{epoch}".encode()).digest()
    return 0.8 * value + 0.2 * int.from_bytes(noise[:6]) / 2**48


def truth(params: Mapping[str, Value], epochs: int) -> float:
    """What training for so many epochs gives."""
    value = 1.0
    for epoch in range(1, epochs + 1):
        value = step(params, epoch, value)
    return value


class Journal:
    """What was acknowledged to one process. A line is complete and handed to the system before ``write`` returns."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, **line: Any) -> None:
        os.write(self._file, (json.dumps(line) + "\n").encode())


def read_journals(folder: Path) -> list[dict[str, Any]]:
    """The lines of all processes; a process that was killed has written its last one whole or not at all."""
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


@dataclass
class Lane:
    """A slot in training."""

    claim: Claim
    epoch: int
    value: float


def run(orders: Orders) -> None:
    """The process. Exit code 0 when the study is finished or it was asked to leave, 1 when it had to give up."""
    logging.basicConfig(filename=f"{orders.journal}.log", level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        with (
            leave_on_signal(lambda: None) as stop,
            StudyManager(orders.url, orders.artifacts, patience_s=orders.patience_s) as manager,
        ):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            ledger = manager.ledger(orders.study)
            ledger.max_attempts = NEVER
            work(ledger, manager.checkpoints(orders.study), orders, stop)
    except TunerError as error:
        logging.exception("gave up")
        sys.exit(f"gave up: {error}")


def work(ledger: Ledger, store: CheckpointStore, orders: Orders, stop: threading.Event) -> None:
    """Join the study until it is finished."""
    rng = random.Random(orders.seed)
    journal = Journal(f"{orders.journal}.jsonl")
    worker = ledger.register("chaos", os.getpid(), "cpu", "0")
    while not stop.is_set() and not ledger.finished():
        claims = ledger.claim(worker, limit=rng.randint(1, 8), lease_s=orders.lease_s)
        for claim in claims:
            journal.write(
                what="claim", number=claim.number, rung=claim.rung, token=claim.token, params=digest(claim.params)
            )
        if claims:
            train(ledger, worker, store, claims, journal, rng, stop)
        else:
            stop.wait(0.05)
    ledger.leave(worker)


def load(store: CheckpointStore, claim: Claim) -> Lane:
    """Where a lane goes on: from its checkpoint, or from its seed where that is missing or corrupt."""
    if claim.checkpoint is not None:
        try:
            state = store.read_pack(claim.checkpoint, [claim.number])[claim.number]
        except CheckpointError as error:
            logging.info("%s: trained again from the seed", error)
        else:
            return Lane(claim, int(state["epoch"]), float(state["value"]))
    return Lane(claim, 0, 1.0)


def train(
    ledger: Ledger,
    worker: int,
    store: CheckpointStore,
    claims: Sequence[Claim],
    journal: Journal,
    rng: random.Random,
    stop: threading.Event,
) -> None:
    """Train a pack to its rung, recording and saving on the way, as a worker does."""
    lanes = {claim.number: load(store, claim) for claim in claims}
    rows: list[EpochRow] = []
    target = claims[0].target_epochs
    while lanes and any(lane.epoch < target for lane in lanes.values()):
        time.sleep(rng.uniform(0, EPOCH_S))
        for number, lane in lanes.items():
            if lane.epoch == target:
                continue
            lane.epoch += 1
            lane.value = step(lane.claim.params, lane.epoch, lane.value)
            if lane.epoch > lane.claim.epochs:
                rows.append(
                    EpochRow(
                        number=number,
                        token=lane.claim.token,
                        epoch=lane.epoch,
                        value=lane.value,
                        train_loss=1 / lane.epoch,
                        val_loss=lane.value,
                    )
                )
        if stop.is_set():
            break
        lost: frozenset[int] = frozenset()
        fate = rng.random()
        if fate < 0.1:
            states = [(number, lane.claim.token, lane.epoch) for number, lane in lanes.items()]
            outcome = ledger.save(worker, states, rows, store.write(_arrays(lanes)))
            store.remove(outcome.removed)
            lost, rows = outcome.lost, []
        elif fate < 0.4 and rows:
            lost, rows = ledger.record(worker, rows), []
        for number in lost:
            del lanes[number]
        rows = [row for row in rows if row.number in lanes]
    if not lanes:
        return
    file = store.write(_arrays(lanes))
    if any(lane.epoch < target for lane in lanes.values()):
        states = [(number, lane.claim.token, lane.epoch) for number, lane in lanes.items()]
        store.remove(ledger.release(worker, states, rows, file).removed)
        return
    results = [
        RungResult(number=number, token=lane.claim.token, epochs=lane.epoch, value=lane.value, seconds=0.1)
        for number, lane in lanes.items()
    ]
    outcome = ledger.commit(worker, results, rows, file)
    for number, lane in lanes.items():
        if number not in outcome.lost:
            place = {"number": number, "rung": lane.claim.rung, "token": lane.claim.token}
            journal.write(what="result", **place, epochs=lane.epoch, value=lane.value)
    store.remove(outcome.removed)


def _arrays(lanes: Mapping[int, Lane]) -> dict[int, dict[str, Any]]:
    return {
        number: {"epoch": np.array(lane.epoch), "value": np.array(lane.value, dtype=np.float64)}
        for number, lane in lanes.items()
    }
