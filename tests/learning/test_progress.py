"""The bookkeeping of one trial."""

import math

import pytest

from tests.learning.packs import make_config
from tuner.learning.progress import EpochResult, Progress


def walk(values: list[float], *, maximize: bool = False, train_loss: float = 1.0, val_loss: float = 1.0) -> Progress:
    progress = Progress()
    for epoch, value in enumerate(values, start=1):
        result = EpochResult(epoch=epoch, train_loss=train_loss, val_loss=val_loss, value=value)
        progress = progress.advance(result, maximize=maximize)
    return progress


def test_the_best_epoch_is_the_first_of_equals() -> None:
    assert walk([3.0, 1.0, 1.0, 2.0]).best_epoch == 2
    assert walk([3.0, 1.0, 4.0, 4.0], maximize=True).best_epoch == 3


def test_a_trial_is_judged_by_the_weights_it_keeps() -> None:
    progress = walk([3.0, 1.0, 2.0])
    assert progress.judged_value(make_config(keep="last")) == 2.0
    assert progress.judged_value(make_config(keep="best")) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_end_a_trial(bad: float) -> None:
    for progress in (walk([1.0, bad]), walk([1.0], train_loss=bad), walk([1.0], val_loss=bad)):
        assert progress.diverged
        assert progress.stopped(make_config())
        assert math.isnan(progress.judged_value(make_config(keep="best")))


def test_when_training_stops() -> None:
    patient, endless = make_config(patience=2, keep="best", max_epochs=5), make_config(max_epochs=5)
    assert not walk([1.0, 2.0]).stopped(patient)
    assert walk([1.0, 2.0, 2.0]).stopped(patient)
    assert not walk([1.0, 2.0, 2.0]).stopped(endless)
    assert walk([5.0, 4.0, 3.0, 2.0, 1.0]).stopped(patient)
