"""The training loss of an ordinary network as a function of its weights in one vector: what ``torch.func`` works on.

Shapes: ``n`` rows, ``D`` features, ``C`` outputs, ``P`` parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tuner.learning.metrics import Head, row_loss

Loss = Callable[[Tensor], Tensor]  # (P,) -> ()


def flat_loss(module: nn.Module, head: Head, x: Tensor, y: Tensor) -> tuple[Loss, Tensor]:
    """The mean loss over rows x (n, D), y (n,) as a function of the parameters, and where they are now: (P,).

    In float64, with dropout off and batch normalisation's statistics as they are; penalties and smoothing left out. The
    module itself is not changed.
    """
    buffers = {name: _double(tensor) for name, tensor in module.named_buffers()}
    named = {name: _double(parameter.detach()) for name, parameter in module.named_parameters()}
    x, y = _double(x), _double(y)

    def loss(theta: Tensor) -> Tensor:
        state = {**unflattened(theta, named), **buffers}
        return row_loss(head, functional_call(module, state, (x,)), y).mean()

    module.eval()
    return loss, flattened(named)


def flattened(named: Mapping[str, Tensor]) -> Tensor:
    """Named tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in named.values()])


def unflattened(theta: Tensor, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One vector as tensors of the names and shapes of ``named``."""
    pieces = torch.split(theta, [tensor.numel() for tensor in named.values()])
    return {name: piece.view(tensor.shape) for piece, (name, tensor) in zip(pieces, named.items(), strict=True)}


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
