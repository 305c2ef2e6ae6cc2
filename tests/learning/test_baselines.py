"""Baselines: scikit-learn's models on the given rows, answering as a network does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from tuner.learning import baselines
from tuner.learning.baselines import Baseline, fit_baselines
from tuner.learning.metrics import score
from tuner.spec import Metric


def lower_is_better(metric: Metric, sign: int = 1) -> Callable[..., float]:
    return lambda outputs, y: sign * float(score(metric, torch.from_numpy(outputs), torch.from_numpy(y)))


def classes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes, three quarters of them the first, apart along a curve that no line follows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return x, (x[:, 0] ** 2 + 0.3 * x[:, 1] > 1.4).astype(np.int64)


def fitted(**changes: Any) -> dict[str, Baseline]:
    arguments: dict[str, Any] = {"task": "classification", "n_outputs": 2, "metric": "error", **changes}
    metric = arguments["metric"]
    sign = -1 if metric == "balanced_accuracy" else 1
    found = fit_baselines(classes(600, 0), classes(200, 1), lower_is_better(metric, sign), **arguments)
    return {baseline.name: baseline for baseline in found}


def test_they_are_as_good_as_they_can_be() -> None:
    x, y = classes(2000, 2)
    error = {
        name: float(score("error", torch.from_numpy(b.outputs(x)), torch.from_numpy(y))) for name, b in fitted().items()
    }
    assert error["constant"] == pytest.approx(np.mean(y == 1))
    assert error["boosting"] < 0.08 < 0.15 < error["linear"] < error["constant"] + 0.02


def test_the_linear_model_is_scikit_learns_with_the_picked_setting() -> None:
    (train, val), linear = (classes(600, 0), classes(200, 1)), fitted(metric="log_loss")["linear"]
    losses = {}
    for c in baselines.INVERSE_REGULARIZATION:
        log_p = LogisticRegression(C=c, max_iter=200).fit(*train).predict_log_proba(val[0])
        losses[c] = -log_p[np.arange(200), val[1]].mean()
    assert linear.settings == {"C": min(losses, key=losses.__getitem__)}
    assert (linear.rows, linear.seconds > 0) == (600, True)
    expected = LogisticRegression(**linear.settings, max_iter=200).fit(*train).predict_proba(val[0])
    assert np.exp(linear.outputs(val[0])) == pytest.approx(expected, rel=1e-3)


def test_balanced_weights_are_tried_where_the_metric_asks_for_them() -> None:
    assert fitted(metric="balanced_accuracy")["linear"].settings["class_weight"] == "balanced"
    assert "class_weight" not in fitted(metric="error")["linear"].settings


def test_they_are_fitted_on_all_the_rows_that_the_network_gets() -> None:
    both = tuple(np.concatenate(parts) for parts in zip(classes(600, 0), classes(200, 1), strict=True))
    assert {b.rows for b in fitted(refit_on=both).values()} == {800}


def test_very_many_rows_are_sampled_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "CELLS", dict.fromkeys(baselines.CELLS, 1))
    x, y = classes(1500, 0)
    found = fit_baselines((x, y), (x, y), lower_is_better("error"), task="classification", n_outputs=2, metric="error")
    assert {b.rows for b in found} == {1000}


@pytest.mark.parametrize(("metric", "constant"), [("rmse", 2.0), ("mae", 1.0)])
def test_regression(metric: Metric, constant: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    y = (x[:, 0] - x[:, 1]).astype(np.float32)
    skewed = y.copy()
    skewed[:200] = 1.0
    skewed[200:] = 3.0
    skewed[399] = 1.0  # the median is 1, the mean 2
    task: dict[str, Any] = {"task": "regression", "n_outputs": 1, "metric": metric}
    found = fit_baselines((x, skewed), (x, skewed), lower_is_better(metric), **task)
    assert found[0].outputs(x[:5])[:, 0] == pytest.approx([constant] * 5, abs=0.01)
    linear = fit_baselines((x, y), (x, y), lower_is_better(metric), **task)[1]
    assert linear.settings == {"alpha": 0.1}
    assert linear.outputs(x)[:, 0] == pytest.approx(Ridge(alpha=0.1).fit(x, y).predict(x), rel=1e-4)


def test_a_class_without_training_rows_has_no_probability() -> None:
    x, y = classes(300, 0)
    found = fit_baselines((x, y), (x, y), lower_is_better("error"), task="classification", n_outputs=3, metric="error")
    for baseline in found:
        outputs = baseline.outputs(x)
        assert outputs.shape == (300, 3)
        assert np.all(np.exp(outputs[:, 2]) < 1e-10)
        assert np.exp(outputs).sum(1) == pytest.approx(1.0, rel=1e-5)


def test_rows_of_a_single_class_are_all_of_it() -> None:
    x = np.zeros((60, 2), dtype=np.float32)
    y = np.ones(60, dtype=np.int64)
    found = fit_baselines((x, y), (x, y), lower_is_better("error"), task="classification", n_outputs=2, metric="error")
    assert [baseline.outputs(x).argmax(1).tolist() for baseline in found] == [[1] * 60] * 3
