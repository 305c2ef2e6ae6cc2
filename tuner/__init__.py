"""Tuner: tunes regularized multilayer perceptrons, honestly and very fast."""

__version__ = "0.1.0"
