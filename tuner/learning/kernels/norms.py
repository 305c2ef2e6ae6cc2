"""Layer and batch normalisation of a pack, forward and backward, in torch operations for any device.

Shapes: z, normalised, dn (K, B, H); gain, shift (K, H); inside (K, 1, H) is 1 within each lane's width; live (K, B, 1)
is 1 for the rows of this micro-step. ``EPS`` and ``MOMENTUM`` are those of ``torch.nn``.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5
MOMENTUM = 0.1  # of batch normalisation's running statistics


def layer_forward(z: Tensor, width: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """(normalised, 1/σ (K, B, 1)) over each row's own units; width (K, 1, 1). As ``torch.nn.LayerNorm``."""
    mean = z.sum(-1, keepdim=True) / width
    centred = (z - mean) * inside
    inverse = torch.rsqrt((centred**2).sum(-1, keepdim=True) / width + EPS)
    return centred * inverse, inverse


def layer_backward(
    dn: Tensor, normalised: Tensor, inverse: Tensor, gain: Tensor, width: Tensor, inside: Tensor
) -> Tensor:
    """Gradient by z from the gradient by gain·normalised + shift."""
    d = dn * gain[:, None, :]
    mean = d.sum(-1, keepdim=True) / width
    along = (d * normalised).sum(-1, keepdim=True) / width
    return (d - mean - normalised * along) * inverse * inside


def batch_forward(z: Tensor, live: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(normalised, 1/σ (K, 1, H), mean (K, H), variance (K, H)) over each unit's live rows; rows (K, 1, 1).

    As ``torch.nn.BatchNorm1d`` in training: the biased variance normalises.
    """
    mean = (z * live).sum(1, keepdim=True) / rows
    centred = (z - mean) * live
    variance = (centred**2).sum(1, keepdim=True) / rows
    inverse = torch.rsqrt(variance + EPS)
    return centred * inverse, inverse, mean.squeeze(1), variance.squeeze(1)


def batch_backward(dn: Tensor, normalised: Tensor, inverse: Tensor, gain: Tensor, live: Tensor, rows: Tensor) -> Tensor:
    """Gradient by z from the gradient by gain·normalised + shift; dn is zero in rows that are not live."""
    d = dn * gain[:, None, :]
    mean = d.sum(1, keepdim=True) / rows
    along = (d * normalised).sum(1, keepdim=True) / rows
    return (d - mean - normalised * along) * inverse * live
