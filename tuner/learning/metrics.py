"""Losses and metrics, row by row, so that means, intervals and paired comparisons all start from the same numbers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tuner.spec import Metric
from tuner.trial import Loss, Task

Head = Literal["cross_entropy", "hinge", "square_of_classes", "square"]  # what the last layer and the loss are


def head_of(loss: Loss, task: Task) -> Head:
    """Which head trains a loss on a task. Raises ValueError when the loss is not for the task."""
    heads: dict[tuple[Loss, Task], Head] = {
        ("auto", "classification"): "cross_entropy",
        ("cross_entropy", "classification"): "cross_entropy",
        ("square", "classification"): "square_of_classes",
        ("hinge", "classification"): "hinge",
        ("auto", "regression"): "square",
        ("square", "regression"): "square",
    }
    if (loss, task) not in heads:
        raise ValueError(f"loss {loss} is not for {task}")
    return heads[loss, task]


def row_loss(head: Head, outputs: Tensor, y: Tensor) -> Tensor:
    """The training loss of each row, label smoothing left out: outputs (…, B, C), y (B,) or (…, B) -> (…, B)."""
    y = y.expand(outputs.shape[:-1])
    if head == "square":
        return (outputs.squeeze(-1) - y) ** 2
    C = outputs.shape[-1]
    if head == "cross_entropy":
        return -torch.log_softmax(outputs, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
    if head == "square_of_classes":
        return ((outputs - functional.one_hot(y, C)) ** 2).mean(-1)
    margins = (1 - outputs.gather(-1, y.unsqueeze(-1)) + outputs).clamp_min(0)
    return (margins.sum(-1) - 1) / C  # the label's own term is always 1


def row_metric(metric: Metric, outputs: Tensor, y: Tensor, target_sd: float) -> Tensor:
    """Each row's part of the metric, shape (…, B), in the target's own unit; ``finish`` of its mean is the metric."""
    if metric in ("error", "accuracy"):
        right = (outputs.argmax(-1) == y).to(outputs.dtype)
        # A diverged network's argmax of NaN is arbitrary: let it be NaN, never a lucky hit.
        right = torch.where(torch.isfinite(outputs).all(-1), right, torch.nan)
        return right if metric == "accuracy" else 1 - right
    if metric == "log_loss":
        return row_loss("cross_entropy", outputs, y)
    difference = (outputs.squeeze(-1) - y) * target_sd
    return difference.abs() if metric == "mae" else difference**2


def finish(metric: Metric, mean: float) -> float:
    """From the mean of ``row_metric`` to the metric itself."""
    return math.sqrt(mean) if metric == "rmse" else mean


def batch_loss(head: Head, outputs: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    """The mean training loss of a batch as torch computes it: the specification of the fused head."""
    if head == "cross_entropy":
        return functional.cross_entropy(outputs, y, label_smoothing=label_smoothing)
    if head == "hinge":
        return functional.multi_margin_loss(outputs, y)
    if head == "square_of_classes":
        return functional.mse_loss(outputs, functional.one_hot(y, outputs.shape[-1]).to(outputs.dtype))
    return functional.mse_loss(outputs.squeeze(-1), y)
