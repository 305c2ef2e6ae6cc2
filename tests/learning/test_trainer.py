"""Lanes start, pause, resume, stop and diverge, each as if it were alone."""

import gc
import math
import weakref
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.learning.packs import METRIC, TOLERANCE, lane_of, make_config, make_data
from tuner.learning.device import DeviceData
from tuner.learning.lanes import Pack
from tuner.learning.mlp import MLP
from tuner.learning.parameters import Arrays
from tuner.learning.plain import train_alone
from tuner.learning.progress import Progress
from tuner.learning.trainer import LaneState, LaneTask, PackTrainer, kept_outputs, train_to_end
from tuner.trial import Optimizer, TrialConfig

UNLIKE = [
    {"batch_size": 8, "depth": 1, "dropout": 0.4},
    {"batch_size": 20, "width": 11, "depth": 3, "optimizer": "adamw", "weight_decay": 0.1},
    {"batch_size": 61, "width": 3},
]


def task_of(
    config: TrialConfig, number: int = 0, target: int | None = None, state: LaneState | None = None
) -> LaneTask:
    return LaneTask(lane=lane_of(config, number), target_epochs=target or config.max_epochs, state=state)


def assert_equal_states(found: LaneState, expected: LaneState, tolerance: float = TOLERANCE) -> None:
    assert found.progress.epoch == expected.progress.epoch
    assert found.progress.best_epoch == expected.progress.best_epoch
    assert found.progress.value == pytest.approx(expected.progress.value, abs=tolerance)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, vector in expected.arrays.items():
        assert np.abs(found.arrays[name] - vector).max() < tolerance


@pytest.mark.parametrize("change", UNLIKE)
def test_pausing_and_resuming_changes_nothing(change: dict[str, object]) -> None:
    data, config = make_data(), make_config(**change)
    straight = train_to_end([task_of(config)], data, "error")[0]
    paused = train_to_end([task_of(config, target=2)], data, "error")[0]
    assert paused.progress.epoch == 2
    stored = {name: array.copy() for name, array in paused.as_arrays().items()}
    neighbour = task_of(make_config(width=17, batch_size=5), number=9)
    resumed = train_to_end([neighbour, task_of(config, state=LaneState.from_arrays(stored))], data, "error")[0]
    assert_equal_states(resumed, straight)


# Whatever a lane keeps from step to step, for each way to train.
KEPT: list[dict[str, object]] = [
    *({"optimizer": name, "momentum": 0.8} for name in get_args(Optimizer)),
    *({"averaging": name, "averaging_start": 0.0, "keep": "best"} for name in ("swa", "ema")),
    {"norm": "batch", "keep": "best"},
    {"norm": "batch", "averaging": "swa", "averaging_start": 0.3, "keep": "best"},
    {"norm": "layer", "averaging": "ema", "averaging_start": 0.3},
]


@pytest.mark.parametrize("change", KEPT, ids=lambda change: "-".join(map(str, change.values())))
def test_all_that_a_lane_keeps_comes_back_from_a_checkpoint(change: dict[str, object]) -> None:
    data, config = make_data(), make_config(dropout=0.2, **change)
    straight = train_to_end([task_of(config)], data, "log_loss")[0]
    paused = train_to_end([task_of(config, target=3)], data, "log_loss")[0]
    neighbour = task_of(replace(config, width=17), number=9)

    def resumed(stored: Arrays) -> LaneState:
        state = LaneState.from_arrays({name: array.copy() for name, array in stored.items()})
        return train_to_end([neighbour, task_of(config, state=state)], data, "log_loss")[0]

    stored = paused.as_arrays()
    assert_equal_states(resumed(stored), straight)
    for name in stored.keys() - {"progress", "best", "best_running", "mean_running"}:  # each that training goes on from
        wrong = resumed({**stored, name: stored[name] * 1.01})
        assert any(np.abs(wrong.arrays[n] - a).max() > 1000 * TOLERANCE for n, a in straight.arrays.items()), name


def test_a_pack_that_shrinks_gives_its_memory_back_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Pack]] = []

    class Counted(Pack):
        def __init__(self, *given: Any) -> None:
            gc.collect()
            assert not any(pack() for pack in made), "one pack at a time"
            super().__init__(*given)
            made.append(weakref.ref(self))

    monkeypatch.setattr("tuner.learning.trainer.Pack", Counted)
    train_to_end([task_of(make_config(), n, target=1 + n) for n in range(4)], make_data(), "error")
    assert len(made) == 3


def test_each_lane_stops_at_its_own_target_and_the_pack_shrinks() -> None:
    data = make_data()
    tasks = [task_of(make_config(width=3 + n), n, target=1 + n) for n in range(4)]
    trainer = PackTrainer(tasks, data, "error")
    running = []
    while trainer.running:
        running.append(trainer.running)
        assert set(trainer.run_epoch()) == set(running[-1])
    assert running == [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3]]
    for n, task in enumerate(tasks):
        assert_equal_states(trainer.state(n), train_to_end([task], data, "error")[n])


def test_lanes_that_are_over_do_not_keep_the_others_from_sharing_batches() -> None:
    data = make_data()
    tasks = [
        LaneTask(lane=lane_of(make_config(dropout=0.2), n, order_key=5), target_epochs=target)
        for n, target in enumerate((1, 3, 3))
    ]
    trainer = PackTrainer(tasks, data, "error")
    for running in ([0, 1, 2], [1, 2], [1, 2]):
        assert trainer.running == running
        trainer.run_epoch()
        assert trainer._pack.shared
    for n, task in enumerate(tasks):
        assert_equal_states(trainer.state(n), train_to_end([task], data, "error")[n])


def test_a_lane_that_is_at_its_target_trains_no_epoch() -> None:
    data, config = make_data(), make_config()
    state = train_to_end([task_of(config, target=3)], data, "error")[0]
    trainer = PackTrainer([task_of(config, target=3, state=state)], data, "error")
    assert trainer.running == []
    assert trainer.state(0) is state


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_diverged_lane_loses_alone(task: str) -> None:
    data = make_data(task, dtype=torch.float32)  # type: ignore[arg-type]
    metric = METRIC[data.task]
    healthy, wild = make_config(optimizer="sgd"), make_config(optimizer="sgd", learning_rate=900.0, momentum=0.99)
    states = train_to_end([task_of(healthy, 0), task_of(wild, 1), task_of(healthy, 2)], data, metric)
    assert states[1].progress.diverged
    assert math.isnan(states[1].progress.judged_value(wild))
    assert states[1].progress.epoch < wild.max_epochs, "no more epochs are spent on it"
    for n in (0, 2):
        # float32: a matrix product may round otherwise beside more lanes
        assert_equal_states(states[n], train_to_end([task_of(healthy, n)], data, metric)[n], tolerance=1e-5)


def test_patience_stops_and_the_best_weights_are_kept() -> None:
    data = make_data(dtype=torch.float64)
    config = make_config(learning_rate=0.2, patience=3, keep="best", max_epochs=60, schedule="constant", dropout=0.5)
    state = train_to_end([task_of(config)], data, "log_loss")[0]
    progress = state.progress
    assert progress.epoch == progress.best_epoch + 3 < 60
    model = MLP(config, data.n_features, data.n_outputs, lane_of(config).key).double()
    curve = []
    for result in train_alone(model, config, data, lane_of(config).key, "log_loss"):
        curve.append(result.value)
        if result.epoch == progress.epoch:
            break
    assert progress.best_epoch == 1 + int(np.argmin(curve))
    assert progress.judged_value(config) == pytest.approx(min(curve), abs=TOLERANCE)
    kept = kept_outputs([task_of(config)], {0: state}, data, data.x_val)[0]
    log_loss = torch.nn.functional.cross_entropy(kept, data.y_val).item()
    assert log_loss == pytest.approx(min(curve), abs=TOLERANCE), "the kept weights are the best epoch's"


def test_patience_goes_on_after_a_pause() -> None:
    data = make_data()
    config = make_config(learning_rate=0.2, patience=3, keep="best", max_epochs=60, schedule="constant", dropout=0.5)
    straight = train_to_end([task_of(config)], data, "log_loss")[0]
    paused = train_to_end([task_of(config, target=straight.progress.best_epoch + 1)], data, "log_loss")[0]
    resumed = train_to_end([task_of(config, state=LaneState.from_arrays(paused.as_arrays()))], data, "log_loss")[0]
    assert_equal_states(resumed, straight)


def test_training_learns() -> None:
    data = make_data(dtype=torch.float32)
    config = make_config(width=32, learning_rate=0.02, max_epochs=40)
    state = train_to_end([task_of(config)], data, "error")[0]
    first = train_to_end([task_of(config, target=1)], data, "error")[0]
    assert state.progress.value < 0.2 < first.progress.value


def test_state_survives_its_arrays() -> None:
    state = LaneState(
        progress=Progress(epoch=3, value=math.nan, best_value=0.25, best_epoch=2, diverged=True),
        arrays={"theta": np.arange(3.0)},
    )
    again = LaneState.from_arrays(state.as_arrays())
    assert repr(again.progress) == repr(state.progress)
    assert again.arrays["theta"] is state.arrays["theta"]


FOLDS = tuple(("standard", fold) for fold in range(3))


def test_a_trial_on_folds_is_their_mean() -> None:
    data = make_data(views=FOLDS)
    config = make_config(dropout=0.2)
    neighbour = LaneTask(lane=lane_of(make_config(width=5), 1), target_epochs=2, folds=3)
    trainer = PackTrainer([replace(task_of(config, target=2), folds=3), neighbour], data, "log_loss")
    results = [trainer.run_epoch()[0] for _ in range(2)]
    for epoch, result in enumerate(results):
        alone = []
        for fold in range(3):
            lane = lane_of(config, fold=fold)
            model = MLP(config, data.n_features, data.n_outputs, lane.key).double()
            alone.append(list(islice(train_alone(model, config, data, lane.key, "log_loss", fold=fold), 2))[epoch])
        for name in ("train_loss", "val_loss", "value"):
            expected = np.mean([getattr(result, name) for result in alone])
            assert getattr(result, name) == pytest.approx(expected, abs=TOLERANCE)


def test_pausing_and_resuming_folds_changes_nothing() -> None:
    data, config = make_data(views=FOLDS), make_config(dropout=0.3, keep="best", averaging="swa")
    task = replace(task_of(config), folds=3)
    straight = train_to_end([task], data, "log_loss")[0]
    assert {name.partition(".")[0] for name in straight.arrays} >= {"theta", "mean", "best", "fold1", "fold2"}
    paused = train_to_end([replace(task, target_epochs=2)], data, "log_loss")[0]
    again = replace(task, state=LaneState.from_arrays(paused.as_arrays()))
    assert_equal_states(train_to_end([again], data, "log_loss")[0], straight)
    thetas = [straight.kept(fold)["theta"] for fold in range(3)]
    assert all(np.abs(one - other).max() > 0.01 for one, other in pairwise(thetas)), "folds have streams of their own"


def test_a_trial_stops_when_the_mean_of_its_folds_is_no_better() -> None:
    data = make_data(views=FOLDS)
    config = make_config(learning_rate=0.2, patience=3, keep="best", max_epochs=60, schedule="constant", dropout=0.5)
    trainer = PackTrainer([replace(task_of(config), folds=3)], data, "log_loss")
    curve = []
    while trainer.running:
        curve.append(trainer.run_epoch()[0].value)
    progress = trainer.progress[0]
    assert progress.best_epoch == 1 + int(np.argmin(curve)) == len(curve) - 3 < 57
    assert progress.judged_value(config) == min(curve)


def test_a_trial_has_diverged_when_one_fold_has() -> None:
    data = make_data("regression", views=FOLDS)
    first, _ = data.spans["standard", 2].train
    data.x_train[first] = math.inf
    states = train_to_end([replace(task_of(make_config(), n), folds=3) for n in (0, 1)], data, "rmse")
    assert all(state.progress.diverged for state in states.values())
    healthy = make_data("regression", views=FOLDS[:2])
    assert not train_to_end([replace(task_of(make_config()), folds=2)], healthy, "rmse")[0].progress.diverged


@pytest.mark.gpu
def test_a_lane_moves_between_cpu_and_cuda() -> None:
    config = make_config(dropout=0.3)
    here, there = make_data(), make_data(device="cuda")
    straight = train_to_end([task_of(config)], here, "error")[0]
    paused = train_to_end([task_of(config, target=2)], there, "error")[0]
    moved = train_to_end([task_of(config, state=paused)], here, "error")[0]
    assert isinstance(here, DeviceData)
    for name, vector in straight.arrays.items():
        assert np.abs(moved.arrays[name] - vector).max() < TOLERANCE
