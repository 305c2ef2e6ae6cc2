"""Schedules against torch's own and against their formulas."""

import math

import pytest
import torch

from tuner.learning.schedules import factor, steps_per_epoch


def test_cosine_equals_torchs_annealing() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert float(factor("cosine", step, 20)) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_warmup_rises_linearly_then_the_schedule_starts() -> None:
    curve = factor("cosine", range(100), 100, warmup=0.1)
    assert curve[:10].tolist() == pytest.approx([(t + 1) / 10 for t in range(10)])
    assert curve[10] == 1
    assert curve[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert (curve[10:-1] > curve[11:]).all()
    assert 0 < curve[-1] < 0.001


def test_constant_is_constant() -> None:
    assert factor("constant", range(7), 7).tolist() == [1.0] * 7


@pytest.mark.parametrize(("rows", "batch", "steps"), [(10, 3, 4), (10, 5, 2), (10, 10, 1), (10, 99, 1), (1, 1, 1)])
def test_steps_per_epoch(rows: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(rows, batch) == steps
