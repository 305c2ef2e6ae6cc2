"""Losses and metrics against torch's and scikit-learn's own."""

import math
from typing import get_args

import pytest
import torch
from sklearn import metrics as sklearn_metrics

from tuner.learning.metrics import Head, batch_loss, finish, head_of, row_loss, row_metric

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [1.0, 1.5, 0.0], [0.0, 0.0, 0.1]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 2])


def test_classification_metrics() -> None:
    predicted, p = LOGITS.argmax(1), LOGITS.softmax(1)
    assert row_metric("accuracy", LOGITS, LABELS, 1.0).mean() == sklearn_metrics.accuracy_score(LABELS, predicted)
    assert row_metric("error", LOGITS, LABELS, 1.0).mean() == 0.25
    log_loss = sklearn_metrics.log_loss(LABELS, p, labels=[0, 1, 2])
    assert row_metric("log_loss", LOGITS, LABELS, 1.0).mean().item() == pytest.approx(log_loss)


def test_regression_metrics_are_in_the_targets_unit() -> None:
    outputs, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.5, 1.0, 1.0])
    assert finish("rmse", row_metric("rmse", outputs, y, 10.0).mean().item()) == pytest.approx(math.sqrt(125 / 3))
    assert row_metric("mse", outputs, y, 10.0).mean().item() == pytest.approx(125 / 3)
    assert row_metric("mae", outputs, y, 10.0).mean().item() == pytest.approx(5.0)


@pytest.mark.parametrize("head", get_args(Head))
def test_losses_equal_torchs(head: Head) -> None:
    if head == "square":
        outputs, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 3.0])
    else:
        outputs, y = LOGITS, LABELS
    assert row_loss(head, outputs, y).mean().item() == pytest.approx(batch_loss(head, outputs, y, 0.0).item())


def test_a_loss_belongs_to_a_task() -> None:
    assert head_of("auto", "classification") == "cross_entropy"
    assert head_of("auto", "regression") == head_of("square", "regression") == "square"
    assert head_of("square", "classification") == "square_of_classes"
    with pytest.raises(ValueError, match="hinge is not for regression"):
        head_of("hinge", "regression")


def test_lanes_broadcast_over_the_same_labels() -> None:
    both = row_metric("error", torch.stack([LOGITS, -LOGITS]), LABELS, 1.0)
    assert both.shape == (2, 4)
    assert torch.equal(both[1], row_metric("error", -LOGITS, LABELS, 1.0))


@pytest.mark.parametrize("metric", ["error", "accuracy", "log_loss"])
def test_outputs_that_are_not_finite_are_no_lucky_hit(metric: str) -> None:
    broken = torch.tensor([[math.nan, 1.0, 0.0]])
    assert torch.isnan(row_metric(metric, broken, torch.tensor([0]), 1.0)).all()  # type: ignore[arg-type]
