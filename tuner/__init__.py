"""Tuner: tunes regularized multilayer perceptrons, honestly and very fast.

``TunedMLPClassifier`` and ``TunedMLPRegressor`` load on first use: torch takes a second to import.
"""

from importlib import import_module
from typing import Any

__all__ = ["TunedMLPClassifier", "TunedMLPRegressor"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("tuner.estimators"), name)
