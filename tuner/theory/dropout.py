"""Dropout: the ensemble of thinned networks against the one network that stands for it at test time.

Slide "Interpretation: Implicit Ensemble Learning". The slide scales weights by the probability to keep at test time;
here kept units are scaled by its inverse in training instead (:class:`tuner.learning.mlp.CounterDropout`): the same
networks.

Shapes: ``S`` thinned networks, ``n`` rows, ``C`` outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.learning.mlp import MLP, CounterDropout


@torch.no_grad()
def thinned(module: MLP, x: Tensor, samples: int) -> Tensor:
    """What ``samples`` thinned networks answer: x (n, D) -> (S, n, C). One mask a network, the same for every row.

    Masks are those of epochs 1 to S of the module's own streams, at one position. Batch normalisation keeps its running
    statistics.
    """
    module.eval()
    layers = [layer for layer in module.modules() if isinstance(layer, CounterDropout)]
    hooks = [layer.register_forward_hook(_one_mask) for layer in layers]
    answers = []
    try:
        for sample in range(1, samples + 1):
            module.counter.epoch, module.counter.start = sample, 0
            answers.append(module(x))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(answers)


def _one_mask(layer: torch.nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
    """The layer's output with the mask of a batch of one row, for all rows."""
    assert isinstance(layer, CounterDropout)
    (x,) = inputs
    layer.train()
    try:
        mask = layer.forward(torch.ones_like(x[:1]))
    finally:
        layer.eval()
    return x * mask


@torch.no_grad()
def scaled(module: MLP, x: Tensor) -> Tensor:
    """What the network answers at test time: x (n, D) -> (n, C)."""
    module.eval()
    answer: Tensor = module(x)
    return answer


def ensemble_probabilities(answers: Tensor) -> Tensor:
    """The mean of networks' class probabilities: (S, n, C) -> (n, C)."""
    return torch.softmax(answers, -1).mean(0)


def geometric_mean(answers: Tensor) -> Tensor:
    """The normalised geometric mean of networks' class probabilities: (S, n, C) -> (n, C).

    It is the softmax of the mean of their outputs. With dropout below the head alone that mean over all masks is the
    scaled network's output, so there the scaled network is this ensemble exactly (Hinton et al. 2012; Goodfellow,
    Bengio and Courville, "Deep Learning", section 7.12).
    """
    return torch.softmax(answers.mean(0), -1)
