"""Losses and metrics against torch's and scikit-learn's own."""

import math
import warnings
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from tuner.learning import metrics
from tuner.learning.metrics import Head, balanced_weights, batch_loss, head_of, row_loss, score
from tuner.spec import METRICS, Metric

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [1.0, 1.5, 0.0], [0.0, 0.0, 0.1]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 2])

CLASSIFYING = [name for name, rule in METRICS.items() if rule.task == "classification"]
REGRESSING = [name for name, rule in METRICS.items() if rule.task == "regression"]


def scikit_learns(metric: Metric, outputs: Tensor, y: Tensor, weights: np.ndarray | None = None) -> float:
    """The metric as scikit-learn computes it from predictions, probabilities or values."""
    labels = list(range(outputs.shape[-1]))
    if METRICS[metric].task == "regression":
        functions: dict[str, Callable[..., float]] = {
            "rmse": sklearn_metrics.root_mean_squared_error,
            "mse": sklearn_metrics.mean_squared_error,
            "mae": sklearn_metrics.mean_absolute_error,
            "r2": sklearn_metrics.r2_score,
        }
        return functions[metric](y, outputs[:, 0], sample_weight=weights)
    probabilities, predicted = outputs.softmax(-1).numpy(), outputs.argmax(-1).numpy()
    ranking = outputs.log_softmax(-1).numpy()  # as ours: the last bit of exp decides what ties
    if metric == "log_loss":
        return sklearn_metrics.log_loss(y, probabilities, labels=labels, sample_weight=weights)
    if metric == "roc_auc":
        if len(labels) == 2:
            return sklearn_metrics.roc_auc_score(y, ranking[:, 1], sample_weight=weights)
        present = np.unique(y if weights is None else y[torch.from_numpy(weights) > 0])
        areas = [sklearn_metrics.roc_auc_score(y == c, ranking[:, c], sample_weight=weights) for c in present]
        return float(np.mean(areas))
    if metric in ("error", "accuracy"):
        right = sklearn_metrics.accuracy_score(y, predicted, sample_weight=weights)
        return 1 - right if metric == "error" else right
    if metric == "f1":
        seen = np.union1d(y, predicted)
        return sklearn_metrics.f1_score(
            y, predicted, labels=seen, average="macro", sample_weight=weights, zero_division=0
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        return sklearn_metrics.balanced_accuracy_score(y, predicted, sample_weight=weights)


def rows_of(metric: Metric, seed: int, C: int = 4, n: int = 40) -> tuple[Tensor, Tensor]:
    """Outputs with ties and rows of all classes but the last, or numbers."""
    rng = np.random.default_rng(seed)
    if METRICS[metric].task == "regression":
        return torch.from_numpy(rng.normal(size=(n, 1))), torch.from_numpy(rng.normal(size=n))
    y = np.concatenate([np.arange(max(C - 1, 2)), rng.integers(0, max(C - 1, 2), n - max(C - 1, 2))])
    # Few different values: whole rows of outputs tie, as a network's do that has seen little.
    outputs = rng.integers(-1, 2, size=(n, C)).astype(float)
    outputs[np.arange(n), y] += rng.integers(0, 2, n)
    return torch.from_numpy(outputs), torch.from_numpy(y)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("C", [2, 4])
def test_metrics_equal_scikit_learns(metric: Metric, C: int) -> None:
    for seed in range(10):
        outputs, y = rows_of(metric, seed, C)
        assert score(metric, outputs, y).item() == pytest.approx(scikit_learns(metric, outputs, y), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_weighted_metrics_equal_scikit_learns(metric: Metric) -> None:
    for seed in range(10):
        outputs, y = rows_of(metric, seed)
        weights = np.random.default_rng(seed).uniform(0.1, 2, len(y))
        found = score(metric, outputs, y, 1.0, torch.from_numpy(weights)).item()
        assert found == pytest.approx(scikit_learns(metric, outputs, y, weights), abs=1e-12)


@given(st.data(), st.sampled_from(list(METRICS)), st.integers(0, 100))
def test_a_whole_weight_is_so_many_copies_of_the_row(data: st.DataObject, metric: Metric, seed: int) -> None:
    outputs, y = rows_of(metric, seed, n=12)
    counts = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=12, max_size=12).filter(any)))
    picked = torch.repeat_interleave(torch.arange(12), counts)
    repeated = score(metric, outputs[picked], y[picked]).item()
    assert score(metric, outputs, y, 1.0, counts).item() == pytest.approx(repeated, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("metric", METRICS)
def test_lanes_and_resamples_broadcast(metric: Metric) -> None:
    lanes, y = torch.stack([rows_of(metric, seed)[0] for seed in range(3)]), rows_of(metric, 0)[1]
    resamples = torch.from_numpy(np.random.default_rng(0).multinomial(len(y), np.full(len(y), 1 / len(y)), 5))
    alone = torch.stack([score(metric, outputs, y) for outputs in lanes])
    assert torch.equal(score(metric, lanes, y), alone)
    assert torch.equal(score(metric, lanes, y.expand(3, -1)), alone)
    crossed = score(metric, lanes, y, 1.0, resamples[:, None, :])
    assert crossed.shape == (5, 3)
    for r, counts in enumerate(resamples):
        for k, outputs in enumerate(lanes):
            assert crossed[r, k].item() == pytest.approx(score(metric, outputs, y, 1.0, counts).item(), abs=1e-12)


def test_negative_control_one_other_prediction_moves_every_metric() -> None:
    for metric in METRICS:
        outputs, y = rows_of(metric, 0)
        before = score(metric, outputs, y)
        if METRICS[metric].task == "classification":
            right = int((outputs.argmax(-1) == y).nonzero()[0])
            outputs[right, y[right]] -= 10
        else:
            outputs[3] *= 1.01
        assert score(metric, outputs, y) != before, metric


def test_regression_metrics_are_in_the_targets_unit() -> None:
    outputs, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.5, 1.0, 1.0])
    expected = {"rmse": math.sqrt(125 / 3), "mse": 125 / 3, "mae": 5.0}
    for metric, value in expected.items():
        assert score(metric, outputs, y, 10.0).item() == pytest.approx(value)  # type: ignore[arg-type]
    assert score("r2", outputs, y, 10.0) == score("r2", outputs, y)


def test_confident_probabilities_still_rank() -> None:
    """In float32 the softmax of both is 1: they would tie, and the area be 1/2."""
    outputs, y = torch.tensor([[0.0, 20.0], [0.0, 25.0]]), torch.tensor([0, 1])
    assert outputs.softmax(-1)[:, 1].tolist() == [1.0, 1.0]
    assert score("roc_auc", outputs, y) == 1


def test_lanes_are_ranked_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, y = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3
    whole, asked = score("roc_auc", outputs, y), []
    assert whole.tolist() == [score("roc_auc", lane, y).item() for lane in outputs]
    ranked = metrics._roc_auc
    monkeypatch.setattr(metrics, "RANKED", 2 * 40)
    monkeypatch.setattr(metrics, "_roc_auc", lambda o, *rest: asked.append(len(o)) or ranked(o, *rest))
    assert torch.equal(score("roc_auc", outputs, y), whole)
    assert asked == [2, 2, 1]


def test_no_area_under_the_curve_of_a_single_class() -> None:
    assert math.isnan(score("roc_auc", LOGITS, torch.zeros(4, dtype=torch.int64)).item())


def test_r2_of_a_constant_target() -> None:
    y = torch.full((3,), 2.0)
    assert score("r2", y[:, None], y) == 1
    assert score("r2", y[:, None] + 1, y) == 0 == sklearn_metrics.r2_score(y, y + 1)


@pytest.mark.parametrize("head", get_args(Head))
def test_losses_equal_torchs(head: Head) -> None:
    if head == "square":
        outputs, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 3.0])
    else:
        outputs, y = LOGITS, LABELS
    assert row_loss(head, outputs, y).mean().item() == pytest.approx(batch_loss(head, outputs, y, 0.0).item())


def test_balanced_weights_are_scikit_learns() -> None:
    y = torch.tensor([0] * 7 + [2] * 2 + [3])
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=y.numpy())
    weights = balanced_weights(y, 5)
    assert weights.tolist() == pytest.approx([expected[0], 0, expected[1], expected[2], 0])
    assert weights[y].mean().item() == pytest.approx(1)


def test_a_weighted_loss_is_that_of_repeated_rows() -> None:
    weights = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    repeated = torch.tensor([0, 0, 1, 2])  # rows of class 0 twice, of class 2 never
    for head in ("cross_entropy", "hinge", "square_of_classes"):
        found = batch_loss(head, LOGITS, LABELS, 0.1, weights)  # type: ignore[arg-type]
        expected = batch_loss(head, LOGITS[repeated], LABELS[repeated], 0.1)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(expected.item())


def test_a_loss_belongs_to_a_task() -> None:
    assert head_of("auto", "classification") == "cross_entropy"
    assert head_of("auto", "regression") == head_of("square", "regression") == "square"
    assert head_of("square", "classification") == "square_of_classes"
    with pytest.raises(ValueError, match="hinge is not for regression"):
        head_of("hinge", "regression")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_outputs_that_are_not_finite_are_no_lucky_hit(metric: Metric, bad: float) -> None:
    lanes, y = torch.stack([rows_of(metric, 0)[0]] * 2), rows_of(metric, 0)[1]
    lanes[1, 5, 0] = bad
    for weights in (None, torch.ones(len(y))):
        healthy, broken = score(metric, lanes, y, 1.0, weights).tolist()
        assert math.isfinite(healthy)
        assert math.isnan(broken)


def test_the_table_covers_every_metric() -> None:
    assert set(METRICS) == set(get_args(Metric))
    perfect: dict[str, Any] = {"classification": (torch.eye(3) * 50, torch.arange(3))}
    perfect["regression"] = (torch.arange(3.0)[:, None], torch.arange(3.0))
    for metric, rule in METRICS.items():
        outputs, y = perfect[rule.task]
        best = 1 if rule.direction == "maximize" else 0
        assert score(metric, outputs, y).item() == pytest.approx(best, abs=1e-9), "the best value is at that end"
