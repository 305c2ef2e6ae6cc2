"""Trials in training: packs of lanes run epoch by epoch until each lane reaches its target or stops for good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tuner.learning.device import DeviceData
from tuner.learning.lanes import Lane, Pack
from tuner.learning.parameters import Arrays
from tuner.learning.progress import EpochResult, Progress
from tuner.learning.randomness import fold_key
from tuner.spec import METRICS, Metric


@dataclass(frozen=True, kw_only=True)
class LaneState:
    """All of a trial that training needs to go on: exact, so that a resumed trial equals an uninterrupted one.

    ``arrays`` are as :meth:`Pack.export` gives them; those of fold f > 0 are named ``fold{f}.…``.
    """

    progress: Progress
    arrays: Arrays

    @property
    def bytes(self) -> int:
        """That its arrays take."""
        return sum(array.nbytes for array in self.arrays.values())

    def as_arrays(self) -> Arrays:
        """One mapping of named arrays, for a checkpoint file."""
        return {**self.arrays, "progress": np.array(astuple(self.progress), dtype=np.float64)}

    @classmethod
    def from_arrays(cls, stored: Arrays) -> LaneState:
        """The inverse of ``as_arrays``."""
        epoch, value, best_value, best_epoch, diverged = stored["progress"].tolist()
        progress = Progress(
            epoch=int(epoch),
            value=value,
            best_value=best_value,
            best_epoch=int(best_epoch),
            diverged=bool(diverged),
        )
        return cls(progress=progress, arrays={name: a for name, a in stored.items() if name != "progress"})

    @classmethod
    def of_folds(cls, progress: Progress, folds: Sequence[Arrays]) -> LaneState:
        """Of a trial whose lane on fold f has the arrays ``folds[f]``."""
        named = {_prefix(fold) + name: a for fold, arrays in enumerate(folds) for name, a in arrays.items()}
        return cls(progress=progress, arrays=named)

    def of_fold(self, fold: int) -> Arrays:
        """The arrays of the trial's lane on one fold."""
        prefix = _prefix(fold)
        own = {name: a for name, a in self.arrays.items() if name.startswith("fold") == bool(prefix)}
        return {name.removeprefix(prefix): a for name, a in own.items() if name.startswith(prefix)}

    def kept(self, fold: int = 0) -> Arrays:
        """The weights that the trial is judged by, as :meth:`Pack.restore` takes them: the best epoch's where they are
        kept, averaged ones where the trial averages.
        """
        arrays = self.of_fold(fold)
        theta = arrays.get("best", arrays.get("mean", arrays["theta"]))
        running = arrays.get("best_running", arrays.get("mean_running", arrays.get("running")))
        return {"theta": theta, "mean": theta} | ({} if running is None else {"running": running})


@dataclass(frozen=True, kw_only=True)
class LaneTask:
    """A trial to train: its lane, how many epochs it shall have in the end, and where it stands (None: nowhere yet).

    folds: on how many folds it trains, each a lane of its own in the same pack; ``lane`` is that of the first, and the
    others follow it. Its losses and its value are then means over folds, and it has diverged when one of them has.
    """

    lane: Lane
    target_epochs: int
    state: LaneState | None = None
    folds: int = 1

    @property
    def lanes(self) -> list[Lane]:
        """The lane of each fold."""
        lane = self.lane
        return [
            replace(
                lane,
                fold=lane.fold + fold,
                key=fold_key(lane.key, fold),
                order_key=None if lane.order_key is None else fold_key(lane.order_key, fold),
            )
            for fold in range(self.folds)
        ]


class PackTrainer:
    """Trains the trials of one pack side by side; each stops at its own target, and the others go on.

    interrupted: asked before each micro-step whether to stop in the middle of the epoch.
    """

    _pack: Pack

    def __init__(
        self,
        tasks: Sequence[LaneTask],
        data: DeviceData,
        metric: Metric,
        *,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.data, self.metric, self._interrupted = data, metric, interrupted
        self.tasks = {task.lane.number: task for task in tasks}
        self.progress = {n: t.state.progress if t.state else Progress() for n, t in self.tasks.items()}
        self._finished: dict[int, LaneState] = {}
        self._running: list[int] = []
        for number, task in self.tasks.items():
            if task.state is not None and self._is_over(number):
                self._finished[number] = task.state
            else:
                self._running.append(number)
        self._load({n: t.state for n, t in self.tasks.items()})

    @property
    def running(self) -> list[int]:
        """Numbers of the lanes that have epochs left to train."""
        return list(self._running)

    def run_epoch(self) -> dict[int, EpochResult]:
        """One more epoch of every running lane, validated.

        Raises EpochInterruptedError; only states that were taken before the epoch are good then.
        """
        results: dict[int, EpochResult] = {}
        improved: list[int] = []
        maximize = METRICS[self.metric].direction == "maximize"
        # Those that are over only fill their places: at the epoch of others they do not keep them from sharing batches.
        filling = self.progress[self._running[0]].epoch + 1
        epoch_of = {n: self.progress[n].epoch + 1 if n in self._running else filling for n in self._places}
        train_loss = self._pack.train_epoch([epoch_of[n] for n, lanes in self._places.items() for _ in lanes])
        val_loss, value = self._pack.validate(self.metric)
        for number, lanes in self._places.items():
            if number not in self._running:
                continue
            own = slice(lanes.start, lanes.stop)
            result = EpochResult(
                epoch=epoch_of[number],
                train_loss=float(train_loss[own].mean()),
                val_loss=float(val_loss[own].mean()),
                value=float(value[own].mean()),
            )
            results[number] = result
            self.progress[number] = self.progress[number].advance(result, maximize=maximize)
            if self.progress[number].best_epoch == result.epoch:
                improved += lanes
        self._pack.mark_best(improved)
        self._retire()
        return results

    def state(self, number: int) -> LaneState:
        """Where a trial stands now."""
        if number in self._finished:
            return self._finished[number]
        return LaneState.of_folds(self.progress[number], [self._pack.export(i) for i in self._places[number]])

    def _is_over(self, number: int) -> bool:
        task, progress = self.tasks[number], self.progress[number]
        return progress.epoch >= task.target_epochs or progress.stopped(task.lane.config)

    def _retire(self) -> None:
        """Take finished lanes out; once half of the pack is idle, pack the others anew."""
        over = [n for n in self._running if self._is_over(n)]
        for number in over:
            self._finished[number] = self.state(number)
        self._running = [n for n in self._running if n not in over]
        if self._running and 2 * len(self._running) <= len(self._places):
            self._load({n: self.state(n) for n in self._running})

    def _load(self, states: dict[int, LaneState | None]) -> None:
        if not self._running:
            return
        places: dict[int, range] = {}  # of each trial's lanes in the pack
        lanes: list[Lane] = []
        for number in self._running:
            own = self.tasks[number].lanes
            places[number] = range(len(lanes), len(lanes) + len(own))
            lanes += own
        if hasattr(self, "_pack"):
            del self._pack  # its memory is the next one's: the states have all that counts
        self._places, self._pack = places, Pack(lanes, self.data)
        for number, own_places in places.items():
            if (state := states[number]) is not None:
                for fold, i in enumerate(own_places):
                    self._pack.restore(i, state.of_fold(fold))
        self._pack.interrupted = self._interrupted


def _prefix(fold: int) -> str:
    return f"fold{fold}." if fold else ""


def single_thread() -> None:
    """Set torch up for training in this process: one thread, and denormal numbers flushed to zero.

    Packs are small enough that two processes of one thread beat one process of two; dropout and decay drive weights
    and moments into denormals, which cost up to half of the speed.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def train_to_end(
    tasks: Sequence[LaneTask], data: DeviceData, metric: Metric, *, interrupted: Callable[[], bool] = lambda: False
) -> dict[int, LaneState]:
    """Train the lanes of one pack to their targets. interrupted: as :class:`PackTrainer` takes it."""
    trainer = PackTrainer(tasks, data, metric, interrupted=interrupted)
    while trainer.running:
        trainer.run_epoch()
    return {number: trainer.state(number) for number in trainer.tasks}


def kept_outputs(tasks: Sequence[LaneTask], states: Mapping[int, LaneState], data: DeviceData, x: Tensor) -> Tensor:
    """Outputs of the weights each trial's lane (with folds, that of fold 0) keeps, dropout off.

    x (n, D) -> (K, n, C), in the order of ``tasks``.
    """
    outputs = []
    for task in tasks:  # one at a time: a pack of all would have memory for training them
        pack = Pack([task.lane], data)
        pack.restore(0, states[task.lane.number].kept())
        outputs.append(pack.outputs(x)[0])
    return torch.stack(outputs)
