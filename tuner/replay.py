"""Replay: train one stored trial again, alone, and compare. Whoever doubts a number can ask for it a second time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tuner.data.dataset import load_training_data
from tuner.errors import BadInputError
from tuner.learning.device import DeviceData, resolve_device
from tuner.learning.lanes import trial_lane
from tuner.learning.progress import EpochResult
from tuner.learning.trainer import LaneTask, PackTrainer, single_thread
from tuner.manager import CurvePoint, StudyManager
from tuner.worker import check_digests

# float32 rounds otherwise beside more lanes, and training lets rounding grow: over whole trainings of the digits study
# losses stay within 3e-6 of each other. A wrong mask, order or coefficient moves them by more than a percent.
TOLERANCE = 1e-3  # relative, on every epoch's training and validation loss
SMALLEST = 1e-3  # what a loss counts as at least: float32 rounds a row's to steps of 1e-7, however small it is


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A stored trial beside the same trial trained alone.

    value: of the last epoch, as stored and as replayed. largest_difference: relative, over all
        epochs' losses, none counted as less than SMALLEST.
    """

    trial: int
    epochs: int
    stored: float | None
    replayed: float
    largest_difference: float
    matches: bool

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        return {
            "trial": self.trial,
            "epochs": self.epochs,
            "stored": self.stored,
            "replayed": self.replayed,
            "largest_difference": self.largest_difference,
            "tolerance": TOLERANCE,
            "matches": self.matches,
        }


def replay(manager: StudyManager, name: str, number: int, *, device: str = "auto") -> Replay:
    """Train trial ``number`` alone for as many epochs as are stored, from its seed and hyperparameters.

    Raises StudyNotFoundError; BadInputError for a trial that does not exist or has not been trained; DataError when the
    data are not what the study was created with.
    """
    trials = {trial.number: trial for trial in manager.trials(name)}
    if number not in trials:  # a time budget may leave gaps: slots that never began
        have = f"trials {min(trials)} to {max(trials)}" if trials else "no trials"
        raise BadInputError(f"study {name!r} has {have}, not {number}; tuner trials {name} lists them")
    params, curve = trials[number].params, manager.curve(name, number)
    if params is None or not curve:
        raise BadInputError(f"trial {number} of study {name!r} has not been trained yet: it is {trials[number].state}")
    spec = manager.spec(name)
    place = resolve_device(device, spec.training.precision)
    if place.type == "cpu":
        single_thread()
    data = load_training_data(spec, manager.data_root(name))
    check_digests(manager, name, data)
    lane = trial_lane(spec.study.seed, number, spec.trial_config(params))
    rows = DeviceData.place(data, place)
    task = LaneTask(lane=lane, target_epochs=curve[-1].epoch, folds=rows.folds)
    trainer = PackTrainer([task], rows, spec.study.metric)
    results: list[EpochResult] = []
    while trainer.running:
        results.append(trainer.run_epoch()[number])
    worst = max((_difference(then, now) for then, now in zip(curve, results, strict=False)), default=math.inf)
    return Replay(
        trial=number,
        epochs=len(results),
        stored=curve[-1].value,
        replayed=results[-1].value,
        largest_difference=worst,
        matches=len(results) == len(curve) and worst <= TOLERANCE,
    )


def _difference(then: CurvePoint, now: EpochResult) -> float:
    """The larger relative difference of an epoch's two losses; none where both are not finite."""
    found = 0.0
    for stored, again in ((then.train_loss, now.train_loss), (then.val_loss, now.val_loss)):
        if stored is None or not math.isfinite(again):
            found = max(found, 0.0 if stored is None and not math.isfinite(again) else math.inf)
        else:
            found = max(found, abs(again - stored) / max(abs(stored), SMALLEST))
    return found
