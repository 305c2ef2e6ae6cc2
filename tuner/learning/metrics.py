"""Losses and metrics, row by row, so that means, intervals and paired comparisons all start from the same numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tuner.spec import Metric
from tuner.trial import Task


def row_loss(task: Task, outputs: Tensor, y: Tensor) -> Tensor:
    """The training loss of each row: cross-entropy of logits (…, B, C), or square loss of (…, B, 1). Shape (…, B)."""
    if task == "classification":
        labels = y.expand(outputs.shape[:-1])
        return -torch.log_softmax(outputs, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (outputs.squeeze(-1) - y) ** 2


def row_metric(metric: Metric, outputs: Tensor, y: Tensor, target_sd: float) -> Tensor:
    """Each row's part of the metric, shape (…, B), in the target's own unit; ``finish`` of its mean is the metric."""
    if metric in ("error", "accuracy"):
        right = (outputs.argmax(-1) == y).to(outputs.dtype)
        # A diverged network's argmax of NaN is arbitrary: let it be NaN, never a lucky hit.
        right = torch.where(torch.isfinite(outputs).all(-1), right, torch.nan)
        return right if metric == "accuracy" else 1 - right
    if metric == "log_loss":
        return row_loss("classification", outputs, y)
    difference = (outputs.squeeze(-1) - y) * target_sd
    return difference.abs() if metric == "mae" else difference**2


def finish(metric: Metric, mean: float) -> float:
    """From the mean of ``row_metric`` to the metric itself."""
    return math.sqrt(mean) if metric == "rmse" else mean


def smoothed_loss(task: Task, outputs: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    """The mean training loss of a batch as torch computes it: the specification of the fused head."""
    if task == "classification":
        return functional.cross_entropy(outputs, y, label_smoothing=label_smoothing)
    return functional.mse_loss(outputs.squeeze(-1), y)
