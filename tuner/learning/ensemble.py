"""An ensemble: several networks that answer together, picked one by one by how much each adds.

Shapes: ``M`` networks, ``n`` rows, ``C`` outputs. A network's *votes* (n, C) are what an ensemble averages: its
probabilities where its loss trains any, see :func:`votes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tuner.learning.metrics import Head

AT_ONCE = 20_000_000  # numbers of candidate averages in memory at a time
LEAST = 1e-12  # the smallest probability, so that the log-loss of an average stays finite


def votes(head: Head, outputs: Tensor) -> Tensor:
    """What a network with this head adds to an average: (…, n, C) -> (…, n, C).

    Cross-entropy: its probabilities. Square loss of classes: its outputs, which estimate them. Hinge: 1 for the class
    it decides for, since its margins have no common scale. Square loss: the standardised prediction. A network that
    diverged votes NaN.
    """
    if head == "cross_entropy":
        return torch.softmax(outputs, -1)
    if head == "hinge":
        decided = functional.one_hot(outputs.argmax(-1), outputs.shape[-1]).to(outputs.dtype)
        return torch.where(torch.isfinite(outputs).all(-1, keepdim=True), decided, torch.nan)
    return outputs


def as_outputs(heads: Sequence[Head], mean_votes: Tensor) -> Tensor:
    """Averaged votes as a single network's outputs, so that every metric takes them.

    Where all votes are probabilities these are log-probabilities, whose softmax they are.
    """
    if all(head == "cross_entropy" for head in heads):
        return mean_votes.clamp_min(LEAST).log()
    return mean_votes


def greedy_selection(votes: Tensor, score: Callable[[Tensor], Tensor], *, size: int) -> list[int]:
    """How often each network is in the ensemble: (M,) whole numbers that add up to at most ``size``.

    Caruana et al. 2004: start from nothing, add the network whose votes make the average score best, as often as it
    does, and keep the best ensemble on the way; of equal ones the smaller, of equal networks the first.

    votes: (M, n, C). score: of averages (J, n, C) -> (J,), the lower the better; NaN never wins.
    """
    M = len(votes)
    at_once = max(1, AT_ONCE // votes[0].numel())
    total = torch.zeros_like(votes[0])
    picked: list[int] = []
    best, best_size = float("inf"), 0
    for taken in range(1, size + 1):
        scores = torch.cat([score((total + votes[i : i + at_once]) / taken) for i in range(0, M, at_once)])
        scores = torch.where(torch.isfinite(scores), scores, torch.inf)
        chosen = int(scores.argmin())
        picked.append(chosen)
        total = total + votes[chosen]
        if float(scores[chosen]) < best:
            best, best_size = float(scores[chosen]), taken
    kept = picked[:best_size]
    return [kept.count(i) for i in range(M)]
