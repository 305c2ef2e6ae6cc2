"""One trial trained alone: ``torch.nn`` and ``torch.optim``, nothing fused. The specification of the lanes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tuner.learning.device import DeviceData, DeviceView
from tuner.learning.metrics import Head, balanced_weights, batch_loss, head_of, row_loss, score
from tuner.learning.mlp import MLP
from tuner.learning.optimizers import make_optimizer, split_parameters
from tuner.learning.progress import EpochResult
from tuner.learning.randomness import epoch_order
from tuner.learning.schedules import averaging_rate, batches, factor
from tuner.spec import Metric
from tuner.trial import TrialConfig


def train_alone(
    model: MLP,
    config: TrialConfig,
    data: DeviceData,
    order_key: int,
    metric: Metric,
    kept: MLP | None = None,
    fold: int = 0,
) -> Iterator[EpochResult]:
    """Train ``model`` in place on its view, an epoch an iteration, for as long as the caller asks for the next one.

    order_key: of its data order. ``kept``, a model of the same form, gets the weights that the trial is judged by: the
    model's own, or their average.
    """
    kept = kept or copy.deepcopy(model)
    head = head_of(config.loss, data.task)
    optimizer = make_optimizer(config, model)
    decaying, _ = split_parameters(config, model)
    view = data.view(config.scaling, fold)
    weights = None
    if config.class_weight == "balanced":
        weights = balanced_weights(view.y_train, data.n_outputs).to(data.dtype)
    n = len(view.x_train)
    plan = batches(n, config)
    step = 0
    for epoch in range(1, config.max_epochs + 1):
        order = torch.from_numpy(epoch_order(order_key, epoch, n)).to(data.device)
        rates = averaging_rate(config, epoch, len(plan))
        train_loss = 0.0
        model.train()
        for (start, size), rate in zip(plan, rates, strict=True):
            rows = order[start : start + size]
            model.counter.epoch, model.counter.start = epoch, start
            for group in optimizer.param_groups:
                group["lr"] = config.peak_learning_rate(n) * float(factor(config, step, len(plan)))
            optimizer.zero_grad()
            loss = batch_loss(head, model(view.x_train[rows]), view.y_train[rows], config.label_smoothing, weights)
            penalty = config.l2 / 2 * sum(((p**2).sum() for p in decaying), torch.zeros((), device=data.device))
            (loss + penalty).backward()  # type: ignore[no-untyped-call]
            if config.clip_norm > 0:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            average(kept, model, float(rate))
            train_loss += loss.item() * size
            step += 1
        if config.norm == "batch":
            refresh_statistics(kept, model, config, view)
        val_loss, value = evaluate_alone(kept, head, view, metric)
        yield EpochResult(
            epoch=epoch, train_loss=train_loss / sum(size for _, size in plan), val_loss=val_loss, value=value
        )


@torch.no_grad()
def average(kept: MLP, model: MLP, rate: float) -> None:
    """kept ← (1 - rate)·kept + rate·model, parameter by parameter."""
    if rate == 0:
        return
    for mean, now in zip(kept.parameters(), model.parameters(), strict=True):
        mean.copy_(now if rate == 1 else mean + rate * (now - mean))


@torch.no_grad()
def refresh_statistics(kept: MLP, model: MLP, config: TrialConfig, view: DeviceView) -> None:
    """Batch normalisation's running statistics of the kept weights.

    Without averaging they are the model's own. Averaged weights have none, so they are computed anew: the mean over the
    training rows in order, in batches, of each batch's statistics, as ``torch.optim.swa_utils.update_bn`` computes
    them, with dropout off.
    """
    norms = [m for m in kept.modules() if isinstance(m, nn.BatchNorm1d)]
    if config.averaging == "none":
        for ours, theirs in zip(norms, (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)), strict=True):
            ours.load_state_dict(theirs.state_dict())
        return
    kept.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for start, size in batches(len(view.x_train), config):
        kept(view.x_train[start : start + size])


@torch.no_grad()
def evaluate_alone(model: MLP, head: Head, view: DeviceView, metric: Metric) -> tuple[float, float]:
    """Mean loss and metric on the validation rows."""
    model.eval()
    outputs: Tensor = model(view.x_val)
    loss = row_loss(head, outputs, view.y_val).mean().item()
    return loss, score(metric, outputs, view.y_val, view.target_sd).item()
