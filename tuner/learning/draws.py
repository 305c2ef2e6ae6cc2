"""The random draws of many lanes at once, on any device: bit for bit those of :mod:`tuner.learning.randomness`.

Shapes: ``K`` lanes. Keys and epochs are numpy vectors (K,); everything of the size of data or weights is made on the
device, where a thousand lanes take milliseconds instead of seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.learning.kernels.reference import dropout_bits
from tuner.learning.randomness import U64, Purpose, words

PIECE = 2**22  # numbers of an intermediate result at a time; each takes eight bytes


def orders(keys: U64, epochs: npt.ArrayLike, n: int, device: torch.device) -> Tensor:
    """Each lane's :func:`tuner.learning.randomness.epoch_order`: (K, n) int64, for n below 2³¹."""
    row = torch.arange(n, device=device)
    found = torch.empty(len(keys), n, dtype=torch.int64, device=device)
    drawn = _words(keys, Purpose.ORDER, device, epochs)
    for lanes in _pieces(len(keys), n):
        uniform = dropout_bits(drawn[:, lanes], row.expand(found[lanes].shape), 1)[:, :, 0]
        # 32 bits before 31 bits of row number: the sign bit stays free, so the signed order is the unsigned one.
        sorted_, _ = torch.sort((uniform << 31) | row, dim=1)
        found[lanes] = sorted_ & (2**31 - 1)
    return found


def fill_layer(
    weight: Tensor, bias: Tensor | None, keys: U64, layer: int, fans: npt.ArrayLike, bounds: npt.NDArray[np.float64]
) -> None:
    """Draw one layer of K lanes as :func:`tuner.learning.mlp.drawn_layer` does; padding becomes zero.

    weight (K, in, out), bias (K, out); fans (K, 2): each lane's own inputs and outputs; bounds (K, 2): the largest
    weight and the largest bias.
    """
    device = weight.device
    fan = torch.as_tensor(np.asarray(fans, dtype=np.int64), device=device)
    bound = torch.as_tensor(bounds, device=device)
    drawn = _words(keys, Purpose.WEIGHTS, device, layer=layer)
    _, rows, units = weight.shape
    row, unit = torch.arange(rows, device=device), torch.arange(units, device=device)
    for lanes in _pieces(len(keys), rows * units):
        inputs, outputs = fan[lanes, 0, None], fan[lanes, 1, None]
        own = unit < outputs  # (lanes, out)
        uniform = _uniform(drawn[:, lanes], row.expand(len(inputs), rows), units, bound[lanes, 0])
        weight[lanes] = torch.where((row < inputs)[:, :, None] & own[:, None, :], uniform, 0.0).to(weight)
        if bias is not None:
            # The row after a lane's last input holds its biases.
            uniform = _uniform(drawn[:, lanes], inputs, units, bound[lanes, 1])[:, 0]
            bias[lanes] = torch.where(own & (bound[lanes, 1, None] > 0), uniform, 0.0).to(bias)


def _uniform(drawn: Tensor, rows: Tensor, units: int, bound: Tensor) -> Tensor:
    """Each lane's :func:`tuner.learning.randomness.uniform`: words (2, K), rows (K, R), bound (K,) -> (K, R, units)."""
    steps = (dropout_bits(drawn, rows, units) >> 8).to(torch.float64)
    return ((2 * (steps + 0.5) / 2**24 - 1) * bound[:, None, None]).to(torch.float32)


def _words(keys: U64, purpose: Purpose, device: torch.device, epochs: npt.ArrayLike = 0, layer: int = 0) -> Tensor:
    """The lanes' words (2, K) as int64."""
    return torch.from_numpy(np.stack(words(keys, purpose, epochs, layer)).astype(np.int64)).to(device)


def _pieces(K: int, numbers: int) -> Iterator[slice]:
    """Runs of lanes whose ``numbers`` each make up a piece."""
    lanes = max(PIECE // numbers, 1)
    return (slice(first, first + lanes) for first in range(0, K, lanes))
