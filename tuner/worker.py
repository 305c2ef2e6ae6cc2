"""The worker: claims slots, trains them as lanes, commits what they reached. The one place where the stems meet.

Everything a worker needs is in the database and the data source; everything it has learned is there again after each
commit. It may be killed at any moment: its leases run out, and another worker goes on from the last checkpoint, or
from the trials' seeds where there is none.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import tuner
from tuner.capacity import Table, check_capacity
from tuner.data.dataset import TrainingData, load_training_data
from tuner.errors import DataError, DeviceLostError, StorageError, StudyNotFoundError, TunerError
from tuner.learning.device import DeviceData, computes, resolve_device
from tuner.learning.lanes import trial_lane
from tuner.learning.memory import is_out_of_memory, memory_budget
from tuner.learning.packing import bytes_of, halved, plan_packs
from tuner.learning.progress import EpochInterruptedError
from tuner.learning.trainer import LaneState, LaneTask, PackTrainer, single_thread
from tuner.manager import StudyManager
from tuner.spec import StudySpec
from tuner.storage.checkpoints import Checkpoint, CheckpointError, CheckpointStore
from tuner.storage.ledger import Claim, CommitOutcome, EpochRow, Ledger, RungResult
from tuner.words import count

LEASE_S = 30.0  # a worker that is silent for so long loses its slots
HEARTBEAT_S = 5.0
RECORD_S = 2.0  # between two writes of learning curves
SAVE_S = 5.0  # between two checkpoints of a pack that trains for long, or SAVE_COST times as long as one takes
SAVE_COST = 50.0  # what is done to lose less after an interruption takes 2 % of the time at most
HURRY_S = 2.0  # seconds that an epoch gets to end in once the worker is told to leave: 30 later the machine is gone
ORPHAN_S = 3600.0  # age of a checkpoint file that nobody commits any more; a database is waited for two minutes
POLL_S = 0.25  # between two looks for work when there is none
_REMEMBERED = 512  # paused lanes kept in memory, the latest of them,
_ROOM = 0.25  # and the share of what packs may take of the machine's own memory that they may
CLAIM_LANES = {"cpu": 32, "cuda": 1024, "mps": 128}

_log = logging.getLogger(__name__)


def run_worker(manager: StudyManager, name: str, *, device: str = "auto", stop: threading.Event) -> None:
    """Work on a study until it is finished or stopped, or until ``stop`` is set.

    Setting ``stop`` lets the current epoch end, then saves the lanes and gives them back. Raises StudyNotFoundError,
    DataError when this machine's data are not the study's, DeviceError also when the device cannot train every model of
    the study, DeviceLostError when it fails during the work, StorageError when the database stays away.
    """
    # Both before the data, which may take a while: a study that takes the name meanwhile is another one.
    ledger, store = manager.ledger(name), manager.checkpoints(name)
    place = resolve_device(device, ledger.spec.training.precision)
    if place.type == "cpu":
        single_thread()
    data = _visible_data(ledger.spec, manager.data_root(name))
    check_digests(manager, name, data)
    rows = DeviceData.place(data, place)
    rows.check(ledger.spec.study.metric)
    check_capacity(ledger.spec, Table.of_device(rows), place)
    _Worker(ledger, store, rows, stop).run()


def _visible_data(spec: StudySpec, root: Path) -> TrainingData:
    """A study's data as this machine sees them. Raises DataError that names the machine where they are not here."""
    try:
        return load_training_data(spec, root)
    except DataError as error:
        source = spec.data.source
        if ":" in source or (root / Path(source).expanduser()).exists():
            raise
        raise DataError(
            f"{error}; {socket.gethostname()} does not see it, and workers read the data themselves: put it at the "
            "same path on every machine, or set TUNER_DATA_ROOT there to the folder that has it"
        ) from None


def check_digests(manager: StudyManager, name: str, data: TrainingData) -> None:
    """Raises DataError when the rows or their split are not those the study was created with."""
    manager.check_digests(name, data=data.data_digest, split=data.split_digest)


def remove_orphans(ledger: Ledger, store: CheckpointStore) -> None:
    """Delete the checkpoint files that no slot refers to, left by workers that were killed before they could commit.

    While the study runs only old ones: a file is written before its row is committed, and within ORPHAN_S a worker has
    committed it or given up. Of a study that is finished all: nobody holds a lease that could commit one. The files are
    listed before either question is asked, so that one that comes meanwhile is out of it.
    """
    files, old = store.names(), store.names(ORPHAN_S)
    unneeded = files if files and ledger.finished() else old
    if unneeded:
        store.remove(set(unneeded) - ledger.checkpoint_names())


class _Worker:
    """One process, one device, one study."""

    def __init__(self, ledger: Ledger, store: CheckpointStore, data: DeviceData, stop: threading.Event) -> None:
        self.spec = ledger.spec
        self.ledger = ledger
        self.store = store
        self.data = data
        self.stop = stop
        self.id = self.ledger.register(socket.gethostname(), os.getpid(), str(data.device), tuner.__version__)
        self.memory = memory_budget(data.device)  # bytes that a model trained alone may take
        self.budget = self.memory  # and that a pack may take: less once that proved too much
        self._paused: dict[int, LaneState] = {}  # lanes that wait for their rung's decision, still in memory
        sharing = torch.cuda.device_count() if data.device.type == "cuda" else None  # workers of this machine
        self._room = int(_ROOM * memory_budget(torch.device("cpu"), sharing))  # bytes for them
        self._lanes = 0
        self._epochs_per_s = 0.0
        self._deadline = math.inf  # by time.monotonic: when the study's time budget is over
        self._hurry = math.inf  # by time.monotonic: when an epoch is given up, once the worker is told to leave
        self._gone = threading.Event()  # set when the work is over, for the heartbeat's thread

    def run(self) -> None:
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        heart.start()
        try:
            remove_orphans(self.ledger, self.store)
            while not self.stop.is_set():
                asked = time.monotonic()
                claims = self.ledger.claim(self.id, limit=CLAIM_LANES[self.data.device.type], lease_s=LEASE_S)
                if claims:
                    left_s = claims[0].left_s
                    self._deadline = math.inf if left_s is None else asked + left_s
                    self._train_all(claims)
                elif self.ledger.finished():
                    remove_orphans(self.ledger, self.store)
                    break
                elif self.ledger.stopped():
                    break
                else:
                    self.stop.wait(POLL_S)
        finally:
            self._gone.set()
            heart.join()
            self.ledger.leave(self.id)

    def _leaving(self) -> bool:
        """Whether to stop at the end of this epoch: somebody asked for it, or the study's time budget is over."""
        return self.stop.is_set() or time.monotonic() >= self._deadline

    def _interrupted(self) -> bool:
        """Whether to give up the epoch that is being trained: it is too long to wait for."""
        if not self.stop.is_set():
            return False
        self._hurry = min(self._hurry, time.monotonic() + HURRY_S)
        return time.monotonic() >= self._hurry

    def _beat(self) -> None:
        """Keep the leases alive while the main thread trains; notice when the study is stopped or deleted."""
        while not self._gone.wait(HEARTBEAT_S):
            try:
                self.ledger.heartbeat(self.id, self._lanes, self._epochs_per_s)
                if self.ledger.stopped():
                    self.stop.set()
            except StudyNotFoundError:
                self.stop.set()
            except StorageError as error:
                _log.warning("heartbeat missed: %s", error)

    # Training

    def _train_all(self, claims: Sequence[Claim]) -> None:
        """Train the claimed slots, pack after pack; those that are not begun when it has to leave are given back."""
        by_number = {claim.number: claim for claim in claims}
        states = self._states(claims)
        tasks = [
            LaneTask(
                lane=trial_lane(self.spec.study.seed, claim.number, self.spec.trial_config(claim.params)),
                target_epochs=claim.target_epochs,
                state=states.get(claim.number),
                folds=self.data.folds,
            )
            for claim in claims
        ]
        packs = plan_packs(tasks, self.data, self.budget)
        begun = False  # who was given a claim in time trains one epoch of it at least
        while packs and not (self._leaving() if begun else self.stop.is_set()):
            begun = True
            pack = packs.pop(0)
            held = [by_number[task.lane.number] for task in pack]
            if len(pack) == 1 and (needed := bytes_of(pack, self.data)) > self.memory:
                self._fail(held, f"needs {needed / 2**20:,.0f} MiB even alone, {self.memory / 2**20:,.0f} MiB are free")
                continue
            try:
                self._train_pack(held, pack)
            except TunerError:  # a database out of reach, a full disk, a study that is gone: not the trials' doing
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                if not computes(self.data.device):  # nothing else could be trained here: one attempt, and no more
                    self._fail(held, reason)
                    raise DeviceLostError(
                        f"device {self.data.device} does not compute any more ({reason}); start this worker again, and "
                        "if that does not help look at the machine"
                    ) from error
                if len(pack) > 1:  # only who fails alone fails: one trial's error is not its neighbours'
                    if is_out_of_memory(error):
                        self.budget = min(self.budget, bytes_of(pack, self.data) // 2)
                        reason = "out of memory"
                    _log.warning("%s with %d lanes; going on with half of them", reason, len(pack))
                    packs = [*halved(pack), *packs]
                    continue
                _log.exception("training failed; trial %d is tried again", held[0].number)
                self._fail(held, reason)
        rest = [by_number[task.lane.number] for pack in packs for task in pack]
        self._settle(self.ledger.release(self.id, [(c.number, c.token, c.epochs) for c in rest]))

    def _fail(self, claims: Sequence[Claim], reason: str) -> None:
        self._settle(self.ledger.fail(self.id, [(claim.number, claim.token, reason) for claim in claims]))

    def _states(self, claims: Sequence[Claim]) -> dict[int, LaneState]:
        """Where each slot stands: from memory, else from its checkpoint, else nowhere, and its seed has to do."""
        states = {}
        stored: dict[str, tuple[Checkpoint, list[int]]] = {}
        for claim in claims:
            kept = self._paused.pop(claim.number, None)
            if kept is not None and kept.progress.epoch == claim.epochs:
                states[claim.number] = kept
            elif claim.checkpoint is not None:
                stored.setdefault(claim.checkpoint.name, (claim.checkpoint, []))[1].append(claim.number)
        for checkpoint, numbers in stored.values():
            try:
                found = self.store.read_pack(checkpoint, numbers)
            except CheckpointError as error:
                _log.warning("%s; trials %s are trained again from their seeds", error, numbers)
            else:
                states |= {number: LaneState.from_arrays(arrays) for number, arrays in found.items()}
        return states

    def _train_pack(self, claims: Sequence[Claim], tasks: Sequence[LaneTask]) -> None:
        trainer = PackTrainer(tasks, self.data, self.spec.study.metric, interrupted=self._interrupted)
        held = {claim.number: claim for claim in claims}
        began = recorded = saved = time.monotonic()
        rows: list[EpochRow] = []
        trained = 0
        epoch_s = save_s = keep_s = 0.0  # what the last of each took
        kept: dict[int, LaneState] = {}  # from before an epoch that may have to be given up
        interrupted = False
        while trainer.running and held and not (self._leaving() if trained else self.stop.is_set()):
            self._lanes = len(trainer.running)
            before, kept = time.monotonic(), {}
            if epoch_s > max(HURRY_S, SAVE_COST * keep_s):
                kept = {number: trainer.state(number) for number in trainer.running}
                before, keep_s = time.monotonic(), time.monotonic() - before
            try:
                results = trainer.run_epoch()
            except EpochInterruptedError:
                interrupted = True
                break
            trained += len(results)
            rows += [
                EpochRow(
                    number=number,
                    token=held[number].token,
                    epoch=result.epoch,
                    value=result.value,
                    train_loss=result.train_loss,
                    val_loss=result.val_loss,
                )
                for number, result in results.items()
                if number in held and result.epoch > held[number].epochs
            ]
            now = time.monotonic()
            epoch_s = now - before
            self._epochs_per_s = trained / (now - began)
            lost: frozenset[int] = frozenset()
            if trainer.running and now - saved > max(SAVE_S, SAVE_COST * save_s):
                lost = self._save(trainer, held, rows)
                rows, recorded, saved = [], now, time.monotonic()
                save_s = saved - now
            elif trainer.running and now - recorded > RECORD_S:
                lost = self.ledger.record(self.id, rows)
                rows, recorded = [], now
            held = {number: claim for number, claim in held.items() if number not in lost}
        over = [number for number in held if number not in trainer.running]
        open_ = [number for number in held if number in trainer.running]
        self._commit(trainer, [held[n] for n in over], [r for r in rows if r.number in over], time.monotonic() - began)
        if open_:
            # Of an epoch that was given up there is what it began from, or nothing that is later than the last save.
            states = kept if interrupted else {number: trainer.state(number) for number in open_}
            states = {number: states[number] for number in open_ if number in states}
            in_time = time.monotonic() < self._deadline  # else nobody goes on with them
            outcome = self.ledger.release(
                self.id,
                [(n, held[n].token, trainer.progress[n].epoch) for n in open_],
                [row for row in rows if row.number in open_],
                self._checkpoint(states) if in_time else None,
            )
            self._settle(outcome)
        self._lanes = 0

    def _commit(self, trainer: PackTrainer, claims: Sequence[Claim], rows: Sequence[EpochRow], seconds: float) -> None:
        """Write the results of lanes that are at their rung, with a checkpoint for those that may go on."""
        if not claims:
            return
        results = []
        for claim in claims:
            progress, config = trainer.progress[claim.number], trainer.tasks[claim.number].lane.config
            stopped_early = not progress.diverged and progress.epoch < claim.target_epochs
            results.append(
                RungResult(
                    number=claim.number,
                    token=claim.token,
                    epochs=progress.epoch,
                    value=progress.judged_value(config),
                    seconds=seconds / len(claims),
                    reason=f"diverged at epoch {progress.epoch}"
                    if progress.diverged
                    else f"no better for {count(config.patience, 'epoch')}: stopped at epoch {progress.epoch}"
                    if stopped_early
                    else None,
                )
            )
        undecided = [c.number for c in claims if c.target_epochs < self.spec.training.max_epochs]
        may_go_on = [number for number in undecided if not trainer.progress[number].diverged]
        states = {number: trainer.state(number) for number in may_go_on}
        checkpoint = self._checkpoint(states)
        outcome = self.ledger.commit(self.id, results, rows, checkpoint)
        self._remember(states)
        self._settle(outcome)

    def _remember(self, states: Mapping[int, LaneState]) -> None:
        """Keep paused lanes in memory, and drop the oldest where there are too many: they have their checkpoints."""
        self._paused |= states
        taken = sum(state.bytes for state in self._paused.values())
        for number in list(self._paused):
            if len(self._paused) <= _REMEMBERED and taken <= self._room:
                break
            taken -= self._paused.pop(number).bytes

    def _save(self, trainer: PackTrainer, held: dict[int, Claim], rows: Sequence[EpochRow]) -> frozenset[int]:
        """Write a checkpoint of a pack that goes on. Returns the slots that were lost."""
        states = [(number, claim.token, trainer.progress[number].epoch) for number, claim in held.items()]
        checkpoint = self.store.write({number: trainer.state(number).as_arrays() for number in held})
        outcome = self.ledger.save(self.id, states, rows, checkpoint)
        self._settle(outcome)
        return outcome.lost

    def _checkpoint(self, states: Mapping[int, LaneState]) -> Checkpoint | None:
        if not states:
            return None
        return self.store.write({number: state.as_arrays() for number, state in states.items()})

    def _settle(self, outcome: CommitOutcome) -> None:
        """Forget what is decided or lost, here and in the checkpoint folder."""
        if outcome.lost:
            _log.warning("trials %s were taken over by another worker, or deleted; dropped here", sorted(outcome.lost))
        for number in outcome.lost | outcome.completed | outcome.pruned | outcome.failed:
            self._paused.pop(number, None)
        self.store.remove(outcome.removed)
