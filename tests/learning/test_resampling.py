"""Resampling: intervals that cover, and differences that are paired."""

import numpy as np
import pytest
import torch

from tuner.learning.metrics import score
from tuner.learning.resampling import interval, quantile_interval, resampled_scores, wilson
from tuner.spec import Metric


def test_wilsons_interval_covers_where_a_bootstrap_would_not() -> None:
    """Of 4,000 samples of 50 rows at a true error of 2 %, close to 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    shares = rng.binomial(50, 0.02, size=4000) / 50
    covered = np.mean([low <= 0.02 <= high for low, high in (wilson(s, 50, 0.95) for s in shares)])
    assert covered > 0.92
    degenerate = np.mean(shares > 0)  # a percentile bootstrap of no mistakes is [0, 0]
    assert degenerate < 0.7


def test_the_interval_of_an_error_grows_with_the_spread_of_the_seeds() -> None:
    """Refits that differ by far more than rows explain: rows alone would claim a tenth of the width."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.random(20_000) < share for share in (0.05, 0.08, 0.10, 0.12, 0.15)]).astype(float)
    # Outputs of refits that get these rows wrong.
    outputs = torch.stack([torch.from_numpy(1 - rows), torch.from_numpy(rows)], -1)
    low, high = interval(outputs, torch.zeros(20_000, dtype=torch.int64), "error", 0.95)
    assert low < 0.075
    assert high > 0.125
    alone = wilson(float(rows.mean()), 20_000, 0.95)
    assert high - low > 5 * (alone[1] - alone[0])


def test_wilson_against_published_values() -> None:
    low, high = wilson(0.1, 100, 0.95)
    assert (low, high) == (pytest.approx(0.0552, abs=1e-4), pytest.approx(0.1744, abs=1e-4))
    assert wilson(0.0, 30, 0.95)[0] == 0
    assert wilson(1.0, 30, 0.95)[1] == 1


def test_the_bootstrap_interval_covers_a_known_mean() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        misses = torch.from_numpy(rng.exponential(2.0, size=(1, 150, 1)))
        low, high = interval(misses, torch.zeros(150), "mae", 0.95, seed=seed)
        covered += low <= 2.0 <= high
    assert 50 <= covered <= 60


@pytest.mark.parametrize("metric", ["error", "accuracy", "log_loss", "balanced_accuracy", "f1", "roc_auc"])
def test_a_resample_is_the_metric_of_the_rows_it_drew(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts that a resample weighs rows with, taken from its own random stream, as copies of the rows."""
    monkeypatch.setattr("tuner.learning.resampling.RESAMPLES", 6)
    monkeypatch.setattr("tuner.learning.resampling.FEWEST_RESAMPLES", 6)
    torch.manual_seed(0)
    outputs, y = torch.randn(2, 40, 3), torch.arange(40) % 3
    (found,) = resampled_scores(metric, [outputs], y, seed=4)
    rng = np.random.default_rng([4, 2])
    refits, rows = rng.integers(0, 2, (6, 2)), rng.integers(0, 40, (6, 40))
    expected = [np.mean([score(metric, outputs[k][rows[r]], y[rows[r]]).item() for k in refits[r]]) for r in range(6)]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", ["rmse", "mse", "mae", "r2"])
def test_a_resample_of_numbers_is_in_the_targets_unit(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.learning.resampling.RESAMPLES", 6)
    monkeypatch.setattr("tuner.learning.resampling.FEWEST_RESAMPLES", 6)
    torch.manual_seed(0)
    outputs, y = torch.randn(1, 40, 1), torch.randn(40)
    (found,) = resampled_scores(metric, [outputs], y, target_sd=7.0, seed=4)
    rng = np.random.default_rng([4, 2])
    rng.integers(0, 1, (6, 1))
    rows = rng.integers(0, 40, (6, 40))
    expected = [score(metric, outputs[0][drawn], y[drawn], 7.0).item() for drawn in rows]
    assert found == pytest.approx(expected, rel=1e-6)


def test_differences_are_paired() -> None:
    """Two models that err on the same hard rows: their difference is known far better than either score."""
    rng = np.random.default_rng(0)
    y = torch.zeros(400, dtype=torch.int64)
    wrong = torch.from_numpy((rng.random(400) < 0.3).astype(np.float32))
    worse = wrong.clone()
    worse[torch.nonzero(wrong == 0)[:8]] = 1
    models = [torch.stack([1 - w, w], -1)[None] for w in (wrong, worse)]
    one, other = resampled_scores("error", models, y)
    low, high = quantile_interval(other - one, 0.95)
    assert 0 < low < 8 / 400 < high < 0.04
    alone = quantile_interval(one, 0.95)
    assert alone[1] - alone[0] > 2 * (high - low)


def test_very_many_rows_are_resampled_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.learning.resampling.WORK", 1)
    (few,) = resampled_scores("mae", [torch.randn(1, 10, 1)], torch.zeros(10))
    assert len(few) == 400
