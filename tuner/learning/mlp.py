"""The ordinary MLP: ``torch.nn`` layers trained alone. It is the specification that the fused lanes must equal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tuner.learning import activations
from tuner.learning.randomness import keep_mask, uniform
from tuner.trial import Initialization, Norm, TrialConfig


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


class Block(nn.Module):
    """One hidden layer: Linear, normalisation, φ, dropout; added to its input where ``residual``. (B, in) -> (B, H)."""

    def __init__(self, config: TrialConfig, fan_in: int, layer: int, key: int, counter: DropoutCounter) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, config.width, bias=config.norm != "batch")  # it would take the bias away again
        norms: dict[Norm, nn.Module] = {
            "none": nn.Identity(),
            "layer": nn.LayerNorm(config.width),
            "batch": nn.BatchNorm1d(config.width),
        }
        self.norm = norms[config.norm]
        self.activation = activations.module(config.activation)
        self.dropout = CounterDropout(key, layer, config.dropout, counter)
        self.residual = config.residual and layer > 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.activation(self.norm(self.linear(x))))
        return x + out if self.residual else out


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` units, then a linear head; inputs may be dropped too.

    Shape: (B, D) -> (B, C). Weights and biases are drawn from the lane's own stream, see :func:`initialize`.
    """

    def __init__(self, config: TrialConfig, n_features: int, n_outputs: int, key: int) -> None:
        super().__init__()
        self.counter = DropoutCounter()
        self.input_dropout = CounterDropout(key, 0, config.input_dropout, self.counter)
        fan_ins = [n_features, *[config.width] * (config.depth - 1)]
        blocks = [Block(config, fan_in, layer, key, self.counter) for layer, fan_in in enumerate(fan_ins, start=1)]
        self.hidden = nn.Sequential(*blocks)
        self.head = nn.Linear(config.width, n_outputs)
        for layer, linear in enumerate([self.head, *(block.linear for block in blocks)]):
            initialize(linear, key, layer, config.initialization)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.hidden(self.input_dropout(x)))
        return out


def initialize(linear: nn.Linear, key: int, layer: int, initialization: Initialization = "torch") -> None:
    """Fill one layer from a lane's stream; the head is layer 0."""
    weight, bias = drawn_layer(key, layer, linear.in_features, linear.out_features, initialization)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight.T))
        if linear.bias is not None:
            linear.bias.copy_(torch.from_numpy(bias))


def drawn_layer(
    key: int, layer: int, fan_in: int, fan_out: int, initialization: Initialization
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Initial weights (fan_in, fan_out) and biases (fan_out,), uniform within :func:`initial_bounds`.

    Row i of the draw holds input i's weights, the last row the bias.
    """
    bound, bias_bound = initial_bounds(fan_in, fan_out, initialization)
    drawn = uniform(key, layer, (fan_in + 1, fan_out), bound)
    return drawn[:-1], drawn[-1] if bias_bound else np.zeros_like(drawn[-1])


def initial_bounds(fan_in: int, fan_out: int, initialization: Initialization) -> tuple[float, float]:
    """The largest initial weight and the largest initial bias of a layer.

    ``torch``: both 1/√fan_in. ``xavier``: weights √(6/(fan_in + fan_out)); ``he``: √(6/fan_in); both with zero biases.
    """
    bounds = {"torch": fan_in**-0.5, "xavier": math.sqrt(6 / (fan_in + fan_out)), "he": math.sqrt(6 / fan_in)}
    return bounds[initialization], bounds[initialization] if initialization == "torch" else 0.0
