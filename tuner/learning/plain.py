"""One trial trained alone: ``torch.nn`` and ``torch.optim``, nothing fused. The specification of the lanes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tuner.learning.device import DeviceData
from tuner.learning.metrics import finish, row_loss, row_metric, smoothed_loss
from tuner.learning.mlp import MLP
from tuner.learning.progress import EpochResult
from tuner.learning.randomness import epoch_order
from tuner.learning.schedules import factor, steps_per_epoch
from tuner.spec import Metric
from tuner.trial import TrialConfig


def make_optimizer(config: TrialConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of torch that a configuration names. Weights decay; biases do not."""
    parameters = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in parameters if name.endswith("weight")], "weight_decay": config.weight_decay},
        {"params": [p for name, p in parameters if name.endswith("bias")], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    family = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return family(groups, lr=config.learning_rate, betas=(config.momentum, 0.999))


def train_alone(model: MLP, config: TrialConfig, data: DeviceData, key: int, metric: Metric) -> Iterator[EpochResult]:
    """Train ``model`` in place, an epoch an iteration, for as long as the caller asks for the next one."""
    optimizer = make_optimizer(config, model)
    n = len(data.x_train)
    batch = min(config.batch_size, n)
    steps = steps_per_epoch(n, batch)
    step = 0
    for epoch in range(1, config.max_epochs + 1):
        order = torch.from_numpy(epoch_order(key, epoch, n)).to(data.device)
        train_loss = 0.0
        model.train()
        for start in range(0, n, batch):
            rows = order[start : start + batch]
            model.counter.epoch, model.counter.start = epoch, start
            share = factor(config.schedule, step, config.max_epochs * steps, config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * float(share)
            optimizer.zero_grad()
            loss = smoothed_loss(data.task, model(data.x_train[rows]), data.y_train[rows], config.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            train_loss += loss.item() * len(rows)
            step += 1
        val_loss, value = evaluate_alone(model, data, metric)
        yield EpochResult(epoch=epoch, train_loss=train_loss / n, val_loss=val_loss, value=value)


@torch.no_grad()
def evaluate_alone(model: MLP, data: DeviceData, metric: Metric) -> tuple[float, float]:
    """Mean loss and metric on the validation rows."""
    model.eval()
    outputs = model(data.x_val)
    value = row_metric(metric, outputs, data.y_val, data.target_sd).mean().item()
    return row_loss(data.task, outputs, data.y_val).mean().item(), finish(metric, value)
