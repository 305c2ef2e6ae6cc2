"""The ordinary MLP: ``torch.nn`` layers trained alone. It is the specification that the fused lanes must equal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tuner.learning import activations
from tuner.learning.randomness import keep_mask, uniform
from tuner.trial import TrialConfig


@dataclass
class DropoutCounter:
    """Where in its stream a model is: set before each training batch, read by every dropout layer."""

    epoch: int = 0
    start: int = 0  # the batch's first position in the epoch's order


class CounterDropout(nn.Module):
    """``torch.nn.Dropout`` whose mask comes from a lane's counter-based stream.

    Shape: (B, H) -> (B, H). p is the probability to drop; kept units are scaled by 1/(1-p), so that nothing changes at
    test time. The lecture's slide keeps with probability p and scales the weights at test time instead: the same
    expectation.
    """

    def __init__(self, key: int, layer: int, p: float, counter: DropoutCounter) -> None:
        super().__init__()
        self.key, self.layer, self.p, self.counter = key, layer, p, counter

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        rows = range(self.counter.start, self.counter.start + x.shape[0])
        mask = keep_mask(self.key, self.p, epoch=self.counter.epoch, layer=self.layer, rows=rows, units=x.shape[1])
        return x * torch.from_numpy(mask).to(x.device, x.dtype) / (1 - self.p)


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` units, each Linear, φ, dropout; then a linear head.

    Shape: (B, D) -> (B, C). Weights and biases start as ``nn.Linear`` starts them, uniform in ±1/√fan_in, drawn from
    the lane's own stream.
    """

    def __init__(self, config: TrialConfig, n_features: int, n_outputs: int, key: int) -> None:
        super().__init__()
        self.counter = DropoutCounter()
        layers: list[nn.Module] = []
        fan_in = n_features
        for layer in range(1, config.depth + 1):
            layers += [
                nn.Linear(fan_in, config.width),
                activations.module(config.activation),
                CounterDropout(key, layer, config.dropout, self.counter),
            ]
            fan_in = config.width
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(fan_in, n_outputs)
        for layer, linear in enumerate(self.linears()):
            initialize(linear, key, layer)

    def linears(self) -> list[nn.Linear]:
        """The head first (layer 0), then the hidden layers from the input on (layers 1, 2, …)."""
        return [self.head, *(m for m in self.hidden if isinstance(m, nn.Linear))]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.hidden(x))
        return out


def initialize(linear: nn.Linear, key: int, layer: int) -> None:
    """Fill one layer from a lane's stream. Row i of the draw holds input i's weights, the last row the bias."""
    drawn = uniform(key, layer, (linear.in_features + 1, linear.out_features), 1 / math.sqrt(linear.in_features))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(drawn[:-1].T))
        linear.bias.copy_(torch.from_numpy(drawn[-1]))
