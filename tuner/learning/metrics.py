"""Losses, row by row, and metrics of whole sets of rows, for many lanes and many resamples at once.

Shapes: ``n`` rows, ``C`` outputs; … stands for any leading dimensions, such as lanes, or resamples and lanes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tuner.spec import Metric
from tuner.trial import Loss, Task

Head = Literal["cross_entropy", "hinge", "square_of_classes", "square"]  # what the last layer and the loss are
RANKED = 2**20  # rows of all lanes together that are ranked at a time


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


def score(metric: Metric, outputs: Tensor, y: Tensor, target_sd: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """The metric over the rows: outputs (…, n, C), y (n,) or (…, n), weights (…, n) -> (…) float64.

    weights: how much each row counts, at least 0, all alike by default; a whole number counts as so many copies of the
    row, so a bootstrap resample is a vector of counts. Their leading dimensions broadcast against those of ``outputs``:
    (R, 1, n) against (K, n, C) gives (R, K).
    target_sd: regression outputs and targets are in units of it; the metric is in the target's own unit.

    Outputs that are not all finite score NaN: the argmax of NaN is arbitrary, and must be no lucky hit.

    - ``error``, ``accuracy``: share of wrong, of right classes.
    - ``balanced_accuracy``: mean recall of the classes that the rows have.
    - ``f1``: mean over the classes that are in the rows or predicted of 2·TP / (2·TP + FP + FN) (macro F1).
    - ``roc_auc``: the chance that a row of the class ranks above one of another, ties counting half; of two classes the
      second's, of more the mean of each against the rest that the rows have (macro, one versus rest). Rows are ranked
      by softmax probability; NaN where all rows are of one class.
    - ``log_loss``: mean of -log(probability of the row's class).
    - ``rmse``, ``mse``, ``mae``; ``r2`` = 1 - mse / variance of the target (where that is 0: 1 for perfect outputs,
      else 0).

    >>> outputs, y = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])
    >>> round(score("error", outputs, y).item(), 3), score("balanced_accuracy", outputs, y).item()
    (0.333, 0.75)
    """
    if metric == "roc_auc" and weights is None and outputs.ndim == 3 and y.ndim == 1:
        # Ranking takes ten times the memory of the outputs: some lanes at a time.
        lanes = torch.split(outputs, max(RANKED // outputs.shape[1], 1))
        value = torch.cat([_roc_auc(some, y, None) for some in lanes])
    elif metric in ("error", "accuracy"):
        right = (outputs.argmax(-1) == y).to(outputs.dtype)
        value = _mean(right if metric == "accuracy" else 1 - right, weights)
    elif metric == "log_loss":
        value = _mean(row_loss("cross_entropy", outputs, y), weights)
    elif metric == "balanced_accuracy":
        value = _balanced_accuracy(outputs, y, weights)
    elif metric == "f1":
        value = _f1(outputs, y, weights)
    elif metric == "roc_auc":
        value = _roc_auc(outputs, y, weights)
    elif metric == "mae":
        value = _mean((outputs.squeeze(-1) - y).abs(), weights) * target_sd
    else:
        mse = _mean((outputs.squeeze(-1) - y) ** 2, weights)
        if metric == "r2":
            value = _r2(mse, y, weights)
        else:
            value = mse.sqrt() * target_sd if metric == "rmse" else mse * target_sd**2
    return torch.where(torch.isfinite(outputs).all(-1).all(-1), value, torch.nan)


def _mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    """(…, n) -> (…) float64."""
    if weights is None:
        return rows.mean(-1, dtype=torch.float64)
    heavy = weights.double()
    return torch.einsum("...n,...n->...", heavy, rows.double()) / heavy.sum(-1)


def _balanced_accuracy(outputs: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
    right = outputs.argmax(-1) == y
    recalls = []
    for c in range(outputs.shape[-1]):
        of_class = y == c
        hit = _mean((right & of_class).to(outputs.dtype), weights)
        recalls.append(hit / _mean(of_class.to(outputs.dtype), weights))
    return torch.stack(recalls).nanmean(0)


def _f1(outputs: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
    predicted = outputs.argmax(-1)
    scores = []
    for c in range(outputs.shape[-1]):
        said, of_class = predicted == c, y == c
        hit = _mean((said & of_class).to(outputs.dtype), weights)
        both = _mean(said.to(outputs.dtype), weights) + _mean(of_class.to(outputs.dtype), weights)
        scores.append(2 * hit / both)
    return torch.stack(scores).nanmean(0)


def _roc_auc(outputs: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
    """Ranks in float64: in float32 confident probabilities would tie at 1."""
    C = outputs.shape[-1]
    log_p = torch.log_softmax(outputs.double(), -1)
    areas = [_area(log_p[..., c], y == c, weights) for c in (range(C) if C > 2 else (1,))]
    return torch.stack(areas).nanmean(0)


def _area(ranking: Tensor, positive: Tensor, weights: Tensor | None) -> Tensor:
    """Area under the ROC curve: ranking (…, n), positive (n,) or (…, n) -> (…); NaN without rows of either kind."""
    ranked, order = ranking.sort(-1)
    first = torch.searchsorted(ranked, ranked)  # of the rows that tie with this one
    end = torch.searchsorted(ranked, ranked, right=True)
    of_class = positive.expand(ranking.shape).gather(-1, order).double()
    if weights is None:
        above, below = of_class, 1 - of_class
    else:
        shape = (weights[..., :1] + ranking[..., :1]).shape[:-1] + ranking.shape[-1:]
        order, first, end = order.expand(shape), first.expand(shape), end.expand(shape)
        heavy = weights.double().expand(shape).gather(-1, order)
        above, below = heavy * of_class, heavy * (1 - of_class)
    beaten = functional.pad(below.cumsum(-1), (1, 0))
    credit = (beaten.gather(-1, first) + beaten.gather(-1, end)) / 2
    return (above * credit).sum(-1) / (above.sum(-1) * below.sum(-1))


def _r2(mse: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
    centred = y - y.mean(-1, keepdim=True)
    variance = _mean(centred**2, weights) - _mean(centred, weights) ** 2
    constant = (mse == 0).double()
    return torch.where(variance > 0, 1 - mse / variance, constant)


def balanced_weights(y: Tensor, C: int) -> Tensor:
    """What each class's rows weigh so that all classes weigh alike: y (n,) -> (C,), n/(C′·n_c); 0 for an absent class.

    C′: the classes that y has. The mean weight of a row is 1, so losses and learning rates keep their size. As
    scikit-learn's ``class_weight="balanced"``. A batch's loss is the mean over its rows of weight times loss, as with
    scikit-learn's ``sample_weight``; torch's ``weight=`` divides by the sum of the batch's own weights instead, so that
    a rare class weighs less in the batches that have it.
    """
    counts = torch.bincount(y, minlength=C).double()
    present = (counts > 0).sum()
    return torch.where(counts > 0, len(y) / (present * counts), 0.0)


def batch_loss(
    head: Head, outputs: Tensor, y: Tensor, label_smoothing: float, class_weights: Tensor | None = None
) -> Tensor:
    """The mean training loss of a batch, the rows' losses as torch computes them: the specification of the fused head.

    class_weights (C,): what a row's loss is multiplied by, see :func:`balanced_weights`; None: 1.
    """
    if head == "cross_entropy":
        rows = functional.cross_entropy(outputs, y, label_smoothing=label_smoothing, reduction="none")
    elif head == "hinge":
        rows = functional.multi_margin_loss(outputs, y, reduction="none")
    elif head == "square_of_classes":
        onehot = functional.one_hot(y, outputs.shape[-1]).to(outputs.dtype)
        rows = functional.mse_loss(outputs, onehot, reduction="none").mean(-1)
    else:
        rows = functional.mse_loss(outputs.squeeze(-1), y, reduction="none")
    return (rows if class_weights is None else rows * class_weights[y]).mean()
