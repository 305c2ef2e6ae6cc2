"""Effects: intervals that cover and do not cry wolf, whichever of seeds and rows is the noisier."""

import numpy as np
import pytest
import torch

from tuner.diagnosis.effects import difference_interval, effects, half_width, rise, scored, verdict
from tuner.learning.metrics import score
from tuner.learning.resampling import resampled_scores, wilson
from tuner.spec import Metric


def answers(rng: np.random.Generator, right: np.ndarray) -> torch.Tensor:
    """Outputs (K, n, 2) of networks that are right where told; all rows are of class 0."""
    outputs = rng.random((*right.shape, 2)) / 10
    outputs[..., 0] += right
    outputs[..., 1] += ~right
    return torch.from_numpy(outputs)


def networks(
    rng: np.random.Generator, *, K: int, n: int, seeds: float, rows: float, shift: float = 0.0
) -> torch.Tensor:
    """K networks of about 80 % accuracy: rows and seeds move it, each as strongly as told; shift: how much better."""
    ease = 0.8 + shift + seeds * rng.standard_normal((K, 1)) + rows * rng.standard_normal((1, n))
    return answers(rng, rng.random((K, n)) < ease)


def false_alarms(*, K: int, n: int, seeds: float, rows: float, changes: int, repeats: int) -> int:
    """How many of ``repeats`` diagnoses of changes without any effect claim one."""
    rng, y, alarms = np.random.default_rng(1), torch.zeros(n, dtype=torch.int64), 0
    for _ in range(repeats):
        base = networks(rng, K=K, n=n, seeds=seeds, rows=rows)
        changed = {str(i): networks(rng, K=K, n=n, seeds=seeds, rows=rows) for i in range(changes)}
        found = effects("error", base, changed, y, level=0.05 / changes)
        alarms += any(effect.seen for effect in found.values())
    return alarms


@pytest.mark.parametrize(("seeds", "rows"), [(0.06, 0.0), (0.0, 0.3), (0.03, 0.1)], ids=["seeds", "rows", "both"])
def test_changes_without_effect_raise_few_alarms(seeds: float, rows: float) -> None:
    """At most 5 % of diagnoses, whatever the noise is: 33 of 400 are more than chance allows (p < 0.01)."""
    assert false_alarms(K=4, n=150, seeds=seeds, rows=rows, changes=3, repeats=400) < 33


def test_the_count_of_alarms_notices_intervals_that_are_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.diagnosis.effects.half_width", lambda *a, **b: half_width(*a, **b) / 2)
    assert false_alarms(K=4, n=150, seeds=0.06, rows=0.0, changes=3, repeats=400) > 50


def test_an_effect_is_seen_with_its_size_and_its_sign() -> None:
    rng, y = np.random.default_rng(0), torch.zeros(2000, dtype=torch.int64)
    base = networks(rng, K=8, n=2000, seeds=0.005, rows=0.0)
    better = networks(rng, K=8, n=2000, seeds=0.005, rows=0.0, shift=0.1)
    found = effects("error", base, {"up": better, "same": base.clone()}, y, level=0.01)
    assert found["up"].verdict == "better"
    assert found["up"].mean == pytest.approx(-0.1, abs=found["up"].half_width)
    assert found["up"].score == pytest.approx(0.1, abs=0.02)
    assert found["same"].verdict == "same"
    assert (found["same"].mean, found["same"].half_width) == (0, 0)
    assert effects("accuracy", base, {"up": better}, y, level=0.01)["up"].verdict == "better"
    assert effects("accuracy", better, {"down": base}, y, level=0.01)["down"].verdict == "worse"


def test_networks_that_diverge_are_left_out_with_their_partners() -> None:
    rng, y = np.random.default_rng(0), torch.zeros(300, dtype=torch.int64)
    base, other = (networks(rng, K=5, n=300, seeds=0.0, rows=0.0) for _ in range(2))
    whole = effects("error", base[1:4], {"x": other[1:4]}, y, level=0.05)["x"]
    base[0], other[4] = torch.nan, torch.inf
    found = effects("error", base, {"x": other, "gone": torch.full_like(other, torch.nan)}, y, level=0.05)
    assert found["x"].mean == pytest.approx(whole.mean)
    assert (found["x"].diverged, found["gone"].diverged) == (1, 5)
    assert found["gone"].verdict == "diverged"


def test_one_row_that_differs_is_no_effect() -> None:
    """Two paired networks, one row of thirty: no interval of such data may exclude 0, though seeds agree perfectly."""
    rng, y = np.random.default_rng(0), torch.zeros(30, dtype=torch.int64)
    right = np.ones((4, 30), dtype=bool)
    base = answers(rng, right)
    right[:, 7] = False
    assert effects("error", base, {"x": answers(rng, right)}, y, level=0.05)["x"].verdict == "unseen"


@pytest.mark.parametrize("metric", ["error", "log_loss", "balanced_accuracy", "f1", "roc_auc"])
def test_influence_is_the_derivative_and_gives_the_bootstraps_variance(metric: Metric) -> None:
    rng, n = np.random.default_rng(3), 500
    y = torch.from_numpy(rng.integers(0, 2, n))
    outputs = torch.from_numpy(rng.standard_normal((1, n, 2)))
    outputs[0, torch.arange(n), y] += 1
    values, parts = scored(metric, outputs, y)
    assert values[0] == pytest.approx(float(score(metric, outputs, y)))
    assert parts.sum() == pytest.approx(0, abs=1e-8)
    weights = torch.ones(1, n, dtype=torch.float64)
    weights[0, 7] += 1e-3  # a little more of one row
    slope = (float(score(metric, outputs, y, 1.0, weights)) - values[0]) / 1e-3
    assert parts[0, 7] / n == pytest.approx(slope, rel=2e-2)
    (resamples,) = resampled_scores(metric, [outputs], y)
    assert parts.var() / n == pytest.approx(resamples.var(), rel=0.1)


@pytest.mark.parametrize("metric", ["rmse", "mse", "mae", "r2"])
def test_influence_in_regression(metric: Metric) -> None:
    rng, n = np.random.default_rng(3), 500
    y = torch.from_numpy(rng.standard_normal(n))
    outputs = (y + 0.7 * torch.from_numpy(rng.standard_normal(n)))[None, :, None]
    _, parts = scored(metric, outputs, y, 3.0)
    (resamples,) = resampled_scores(metric, [outputs], y, target_sd=3.0)
    assert parts.var() / n == pytest.approx(resamples.var(), rel=0.1)


def test_half_width_has_the_degrees_of_freedom_of_the_noisier_part() -> None:
    """Against a table whose variance is all of one kind."""
    seeds = np.array([-1.5, -0.5, 0.5, 1.5])
    of_seeds = (seeds.var(ddof=1) / 4) ** 0.5
    assert half_width(seeds, np.zeros((4, 500)), 0.05) == pytest.approx(3.182 * of_seeds, rel=1e-3)  # Student, 3
    rows = np.tile(np.resize([-1.0, 1.0], 100_000), (4, 1))
    assert half_width(np.zeros(4), rows, 0.05) == pytest.approx(1.96 / 100_000**0.5, rel=1e-3)  # normal


def test_half_width_of_both_is_the_variance_of_the_mean() -> None:
    """Simulated: seeds, rows and what is left of both, each as strong in the mean as the others."""
    rng, K, n = np.random.default_rng(0), 8, 50
    means, squares = [], []
    for _ in range(400):
        table = (
            rng.standard_normal((K, 1)) * K**0.5
            + rng.standard_normal((1, n)) * n**0.5
            + rng.standard_normal((K, n)) * (K * n) ** 0.5
        )
        means.append(table.mean())
        parts = table - table.mean(1, keepdims=True)
        squares.append(half_width(table.mean(1), parts, 0.3173) ** 2)  # one standard error, but for Student's tails
    assert np.var(means) == pytest.approx(3, rel=0.2)
    assert 3 < np.mean(squares) < 3 * 1.35


def test_difference_of_shares_is_newcombes() -> None:
    """Newcombe 1998, table II, method 10: 56/70 against 48/80, 0.2 with the interval 0.0524 to 0.3339."""
    first, second = ((a / n, *wilson(a / n, n, 0.95)) for a, n in ((56, 70), (48, 80)))
    assert difference_interval(first, second) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)  # type: ignore[arg-type]


def test_rise_gives_flat_noise_no_rise() -> None:
    """The lowest point of noise lies below its end, always; the lowest point of the other seeds does not."""
    rng = np.random.default_rng(0)
    naive, honest = [], []
    for _ in range(200):
        curves = rng.standard_normal((5, 20))
        naive.append(curves[:, -1].mean() - curves.mean(0).min())
        honest.append(rise(curves.tolist())[0])
    assert abs(np.mean(honest)) < 0.15
    assert np.mean(naive) > 0.5


def test_verdicts_follow_the_metrics_direction() -> None:
    assert verdict("rmse", 2.0, 1.0) == "worse"
    assert verdict("r2", 0.2, 0.1) == "better"
    assert verdict("r2", float("nan"), float("nan")) == "unseen"
