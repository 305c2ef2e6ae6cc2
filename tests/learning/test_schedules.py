"""Schedules against torch's own and against their formulas."""

import math

import pytest
import torch

from tests.learning.packs import make_config
from tuner.learning.schedules import averaging_rate, batches, factor


def torchs(scheduler_of: type, epochs: int, **options: object) -> list[float]:
    """The learning rates of one of torch's schedulers, starting from 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_of(optimizer, **options)
    rates = []
    for _ in range(epochs):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_equals_torchs_annealing_step_by_step() -> None:
    config = make_config(schedule="cosine", max_epochs=5)
    expected = torchs(torch.optim.lr_scheduler.CosineAnnealingLR, 20, T_max=20)
    assert factor(config, range(20), 4).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "scheduler_of", "options"),
    [
        ("exponential", torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.8}),
        ("step", torch.optim.lr_scheduler.StepLR, {"step_size": 3, "gamma": 0.8}),
    ],
)
def test_decay_equals_torchs_epoch_by_epoch(schedule: str, scheduler_of: type, options: dict[str, float]) -> None:
    config = make_config(schedule=schedule, decay=0.8, decay_epochs=3, max_epochs=8)
    expected = [rate for rate in torchs(scheduler_of, 8, **options) for _ in range(5)]
    assert factor(config, range(40), 5).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("schedule", "power"), [("inverse", 1.0), ("inverse_sqrt", 0.5), ("constant", 0.0)])
def test_inverse_powers_of_the_epoch(schedule: str, power: float) -> None:
    curve = factor(make_config(schedule=schedule, max_epochs=4), range(8), 2)
    assert curve.tolist() == pytest.approx([k**-power for k in (1, 1, 2, 2, 3, 3, 4, 4)])


def test_warmup_rises_linearly_then_the_schedule_starts() -> None:
    curve = factor(make_config(schedule="cosine", warmup=0.1, max_epochs=10), range(100), 10)
    assert curve[:10].tolist() == pytest.approx([(t + 1) / 10 for t in range(10)])
    assert curve[10] == 1
    assert curve[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert (curve[10:-1] > curve[11:]).all()
    assert 0 < curve[-1] < 0.001
    late = factor(make_config(schedule="inverse", warmup=0.5, max_epochs=4), range(8), 2)
    assert late.tolist() == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.5, 0.5])


@pytest.mark.parametrize(
    ("rows", "batch", "norm", "sizes"),
    [
        (10, 3, "none", [3, 3, 3, 1]),
        (10, 3, "batch", [3, 3, 3]),
        (10, 4, "batch", [4, 4, 2]),
        (10, 99, "none", [10]),
        (1, 1, "batch", [1]),
    ],
)
def test_batches(rows: int, batch: int, norm: str, sizes: list[int]) -> None:
    found = batches(rows, make_config(batch_size=batch, norm=norm))
    assert [size for _, size in found] == sizes
    assert [first for first, _ in found] == [sum(sizes[:i]) for i in range(len(sizes))]


def test_swa_is_the_running_mean_of_the_epochs_from_its_start_on() -> None:
    config = make_config(averaging="swa", averaging_start=0.5, max_epochs=6)
    mean = 0.0
    for epoch, weights in enumerate([5.0, 9.0, 2.0, 1.0, 4.0, 7.0], start=1):
        rates = averaging_rate(config, epoch, 3)
        assert rates[:-1].tolist() == [0, 0]
        mean += rates[-1] * (weights - mean)
        assert mean == pytest.approx(weights if epoch <= 3 else sum([1.0, 4.0, 7.0][: epoch - 3]) / (epoch - 3))


def test_ema_averages_every_step() -> None:
    config = make_config(averaging="ema", averaging_start=0.5, ema_decay=0.9, max_epochs=4)
    assert averaging_rate(config, 2, 3).tolist() == [0, 0, 1]
    assert averaging_rate(config, 3, 3).tolist() == pytest.approx([0.1, 0.1, 0.1])
    at_once = make_config(averaging="ema", averaging_start=0.0, max_epochs=4)
    assert averaging_rate(at_once, 1, 3)[0] == 1


def test_without_averaging_the_judged_weights_follow() -> None:
    assert averaging_rate(make_config(), 1, 3).tolist() == [0, 0, 1]
