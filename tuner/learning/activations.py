"""Activation functions φ and their derivatives φ′, element by element (slide "Bag of Tips")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tuner.trial import Activation

LEAKY_SLOPE = 0.01  # the lecture's α


class Step(nn.Module):
    """1 where z > 0, else 0; any shape, kept.

    Its derivative is zero wherever it exists, so the backward pass takes the identity's: the straight-through estimator
    (Bengio, Léonard, Courville 2013).
    """

    def forward(self, z: Tensor) -> Tensor:
        hard = (z > 0).to(z.dtype)
        return z + (hard - z).detach()


def module(name: Activation) -> nn.Module:
    """The ordinary torch module: the specification of the fused kernels."""
    modules: dict[Activation, nn.Module] = {
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(LEAKY_SLOPE),
        "tanh": nn.Tanh(),
        "sigmoid": nn.Sigmoid(),
        "gelu": nn.GELU(),
        "silu": nn.SiLU(),
        "step": Step(),
    }
    return modules[name]


def value(name: Activation, z: Tensor) -> Tensor:
    """φ(z)."""
    if name == "relu":
        return torch.relu(z)
    if name == "leaky_relu":
        return functional.leaky_relu(z, LEAKY_SLOPE)
    if name == "tanh":
        return torch.tanh(z)
    if name == "sigmoid":
        return torch.sigmoid(z)
    if name == "gelu":
        return functional.gelu(z)
    if name == "step":
        return (z > 0).to(z.dtype)
    return functional.silu(z)


def value_and_derivative(name: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    """φ(z) and φ′(z), each of z's shape. At ReLU's kink the derivative is 0, as in torch."""
    if name == "relu":
        return torch.relu(z), (z > 0).to(z.dtype)
    if name == "leaky_relu":
        return functional.leaky_relu(z, LEAKY_SLOPE), (z > 0).to(z.dtype) * (1 - LEAKY_SLOPE) + LEAKY_SLOPE
    if name == "tanh":
        a = torch.tanh(z)
        return a, 1 - a * a
    if name == "sigmoid":
        a = torch.sigmoid(z)
        return a, a * (1 - a)
    if name == "gelu":
        cdf = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
        return z * cdf, cdf + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    if name == "step":
        return (z > 0).to(z.dtype), torch.ones_like(z)
    s = torch.sigmoid(z)
    return z * s, s * (1 + z * (1 - s))
