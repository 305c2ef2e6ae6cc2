"""What regularizers do to a network: how large and how sparse its weights are, how linear it is, and how stable.

Slides "Interpretation: Sparsity", "Linearity" and "Stability". An ordinary module stands for a lane; x is (n, D).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from tuner.learning.mlp import MLP, Block

NEAR_ZERO = 0.01  # size of a weight below which it counts as near zero: inputs are of unit size
LINEAR = 0.05  # relative distance of tanh(z) from z up to which it counts as linear
ROWS_AT_ONCE = 512


def weights(module: nn.Module) -> Tensor:
    """All entries of its matrices in one vector, biases and norms left out: what weight decay shrinks."""
    return torch.cat([p.detach().reshape(-1) for p in module.parameters() if p.ndim == 2])


def weight_norm(module: nn.Module) -> float:
    """‖θ‖ over the weights."""
    return float(weights(module).norm())


def near_zero_share(module: nn.Module, threshold: float = NEAR_ZERO) -> float:
    """The share of weights of at most this size."""
    return float((weights(module).abs() <= threshold).double().mean())


def linear_limit(tolerance: float = LINEAR) -> float:
    """The z > 0 up to which tanh(z) is z but for a share ``tolerance`` of it: where tanh(z)/z = 1 - tolerance.

    >>> z = linear_limit(0.05)
    >>> round(z, 3), round(math.tanh(z) / z, 9)
    (0.399, 0.95)
    """
    low, high = 0.0, 1 / (1 - tolerance)  # as tanh(z) < 1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.tanh(middle) > (1 - tolerance) * middle else (low, middle)
    return low


@torch.no_grad()
def linear_share(module: MLP, x: Tensor, tolerance: float = LINEAR) -> float:
    """The share of hidden units, over all rows, whose pre-activation lies in tanh's linear region, dropout off.

    Raises ValueError for a network of another activation.
    """
    limit, inside, total = linear_limit(tolerance), 0, 0
    module.eval()
    for block, below in _blocks(module, x):
        if not isinstance(block.activation, nn.Tanh):
            raise ValueError("the linear region is that of tanh; use activation tanh")
        z = block.norm(block.linear(below))
        inside += int((z.abs() <= limit).sum())
        total += z.numel()
    return inside / total


def _blocks(module: MLP, x: Tensor) -> Iterator[tuple[Block, Tensor]]:
    for block in module.hidden:
        assert isinstance(block, Block)
        yield block, x
        x = block(x)


def input_jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """∂f/∂x of each row: (n, D) -> (n, C, D), dropout off."""
    module.eval()
    state = {name: tensor.detach() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}

    def answer(row: Tensor) -> Tensor:
        out: Tensor = functional_call(module, state, (row[None],))
        return out[0]

    pieces: list[Tensor] = [vmap(jacrev(answer))(rows) for rows in torch.split(x, ROWS_AT_ONCE)]
    return torch.cat(pieces)


def input_gradient_norm(module: nn.Module, x: Tensor) -> float:
    """The mean over rows of ‖∂f/∂x‖, the Frobenius norm of all outputs' gradients."""
    return float(input_jacobian(module, x).flatten(1).norm(dim=1).mean())


@torch.no_grad()
def adversarial_margins(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """How far each row may be moved before its class changes, to first order: (n,), below 0 for a row that is wrong.

    min over j ≠ y of (f_y - f_j) / ‖∂(f_y - f_j)/∂x‖, the distance to the nearest boundary of a linear network
    (Moosavi-Dezfooli et al., "DeepFool", CVPR 2016). Classes whose gradients are equal have no boundary: infinite, and
    0 where their outputs are equal as well.
    """
    module.eval()
    jacobian, outputs = input_jacobian(module, x), module(x)
    rows = torch.arange(len(x), device=x.device)
    gaps = outputs[rows, y][:, None] - outputs
    slopes = (jacobian[rows, y][:, None] - jacobian).norm(dim=2)
    distances = torch.where(slopes > 0, gaps / slopes, torch.where(gaps == 0, 0.0, gaps.sign() * torch.inf))
    distances[rows, y] = torch.inf
    nearest: Tensor = distances.amin(1)
    return nearest


def median_margin(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """The median of :func:`adversarial_margins`."""
    return float(np.median(adversarial_margins(module, x, y).cpu().numpy()))
