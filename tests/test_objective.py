"""Any study as a plain Optuna objective, under Optuna's own samplers and pruners."""

import math
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest

from tuner.manager import StudyManager
from tuner.objective import Objective
from tuner.plan import create_study
from tuner.search.distributions import encode
from tuner.spec import StudySpec, parse_spec
from tuner.worker import run_worker


def study(**sections: dict[str, Any]) -> StudySpec:
    content: dict[str, dict[str, Any]] = {
        "study": {"name": "tiny", "metric": "error", "seed": 5},
        "data": {"source": "sklearn:iris"},
        "training": {"max_epochs": 9},
        "search": {"trials": 4, "pruner": "none"},
        "space": {
            "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
            "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True, "or_zero": True},
            "batch_size": {"choices": [16, 32]},
            "width": {"low": 4, "high": 40},
            "depth": {"low": 1, "high": 3},
        },
    }
    return parse_spec({key: {**content.get(key, {}), **sections.get(key, {})} for key in content | sections})


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(seed=1), optuna.samplers.TPESampler(seed=1)])
def test_it_runs_under_hyperband_and_prunes(sampler: optuna.samplers.BaseSampler) -> None:
    spec = study()
    optunas = optuna.create_study(
        direction=spec.direction,
        sampler=sampler,
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3),
    )
    optunas.optimize(Objective(spec, Path()), n_trials=15)
    states = [trial.state for trial in optunas.trials]
    assert states.count(optuna.trial.TrialState.PRUNED) > 0
    assert states.count(optuna.trial.TrialState.COMPLETE) > 0
    for trial in optunas.trials:
        epochs = sorted(trial.intermediate_values)
        assert epochs == list(range(1, len(epochs) + 1)), "every epoch is reported once"
        assert len(epochs) == 9 or trial.state == optuna.trial.TrialState.PRUNED
    assert optunas.best_value == optunas.best_trial.intermediate_values[9]


@pytest.mark.parametrize(
    "data", [{}, {"split": {"folds": 3}, "scaling": {"choices": ["standard", "robust"]}}], ids=["plain", "folds"]
)
def test_a_trial_is_the_same_under_optuna_and_under_our_workers(data: dict[str, Any], tmp_path: Path) -> None:
    spec = study(data=data)
    with StudyManager(f"sqlite:///{tmp_path}/study.db") as manager:
        create_study(manager, spec, Path())
        run_worker(manager, "tiny", device="cpu", stop=threading.Event())
        ours = manager.trials("tiny")
    theirs = optuna.create_study(direction=spec.direction)
    for trial in ours:
        assert trial.params is not None
        theirs.enqueue_trial(encode(trial.params, spec.search_space))
    theirs.optimize(Objective(spec, Path()), n_trials=len(ours))
    assert [trial.value for trial in theirs.trials] == [trial.value for trial in ours]


def test_a_diverged_trial_is_pruned() -> None:
    spec = study(
        study={"metric": "rmse"},
        data={"source": "sklearn:diabetes"},
        training={"optimizer": "sgd"},
        space={"learning_rate": {"choices": [900.0]}},
    )
    theirs = optuna.create_study(direction=spec.direction)
    theirs.optimize(Objective(spec, Path()), n_trials=1)
    (trial,) = theirs.trials
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert not math.isfinite(trial.intermediate_values[max(trial.intermediate_values)])
