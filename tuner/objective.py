"""A study as a plain Optuna objective: the same trials under ``study.optimize``, with any sampler and pruner.

>>> import optuna
>>> from pathlib import Path
>>> from tuner.objective import Objective
>>> from tuner.spec import parse_spec
>>> optuna.logging.set_verbosity(optuna.logging.WARNING)
>>> spec = parse_spec({
...     "study": {"name": "iris", "metric": "error"},
...     "data": {"source": "sklearn:iris"},
...     "training": {"max_epochs": 2},
...     "search": {"trials": 2},
...     "space": {
...         "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}, "batch_size": 16, "width": 8, "depth": 1,
...     },
... })
>>> study = optuna.create_study(direction=spec.direction, pruner=optuna.pruners.HyperbandPruner())
>>> study.optimize(Objective(spec, Path()), n_trials=2)
>>> len(study.trials)
2
"""

from __future__ import annotations

from pathlib import Path

import optuna

from tuner.data.dataset import load_training_data
from tuner.learning.device import DeviceData, resolve_device
from tuner.learning.lanes import trial_lane
from tuner.learning.trainer import LaneTask, PackTrainer
from tuner.search.distributions import suggest
from tuner.spec import StudySpec


class Objective:
    """``trial -> float``: trains a trial, reports the metric after every epoch, and honours ``should_prune``.

    A trial of number k trains as trial k of the same study does under Tuner's own workers, given the same
    hyperparameters: from the same weights, in the same order, with the same masks, equal up to float32's rounding. A
    diverged trial is pruned. Thread safety: instances hold no state that a call changes.
    Raises DataError and DeviceError on construction.
    """

    def __init__(self, spec: StudySpec, root: Path, *, device: str = "cpu") -> None:
        self.spec = spec
        self.data = DeviceData.place(load_training_data(spec, root), resolve_device(device, spec.training.precision))
        self.data.check(spec.study.metric)

    def __call__(self, trial: optuna.Trial) -> float:
        config = self.spec.trial_config(suggest(trial, self.spec.search_space))
        lane = trial_lane(self.spec.study.seed, trial.number, config)
        task = LaneTask(lane=lane, target_epochs=config.max_epochs, folds=self.data.folds)
        trainer = PackTrainer([task], self.data, self.spec.study.metric)
        while trainer.running:
            result = trainer.run_epoch()[trial.number]
            trial.report(result.value, result.epoch)
            if trainer.progress[trial.number].diverged:
                raise optuna.TrialPruned(f"diverged at epoch {result.epoch}")
            if trial.should_prune():
                raise optuna.TrialPruned(f"pruned by {type(trial.study.pruner).__name__} at epoch {result.epoch}")
        return trainer.progress[trial.number].judged_value(config)
