"""Small networks with drawn weights, and rows for them."""

from typing import Any

import torch
from torch import Tensor

from tuner.learning.mlp import MLP
from tuner.trial import TrialConfig


def network(features: int = 4, outputs: int = 3, key: int = 11, **changes: Any) -> MLP:
    """A network in float64."""
    values = {"learning_rate": 0.1, "batch_size": 8, "width": 5, "depth": 2, "max_epochs": 1, **changes}
    return MLP(TrialConfig(**values), features, outputs, key).double()


def rows(n: int = 40, features: int = 4, seed: int = 5) -> Tensor:
    """Rows of a normal distribution, in float64."""
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
