"""A trial: one configuration of hyperparameters, and the table that says what each hyperparameter may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Activation = Literal["relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu"]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine"]
Keep = Literal["last", "best"]
Task = Literal["classification", "regression"]
Value = float | int | str


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """What values one hyperparameter may take, in which section of a study file it is written, and its default.

    ``low`` and ``high`` bound every value; ``low_open`` and ``high_open`` exclude the bound itself. ``choices`` are the
    names a categorical may take. ``default`` None means that a study file must say it.
    """

    section: Literal["model", "training", "space"]
    kind: Literal["float", "int", "categorical"]
    low: float = float("-inf")
    high: float = float("inf")
    low_open: bool = False
    high_open: bool = False
    choices: tuple[str, ...] = ()
    default: Value | None = None


HYPERPARAMETERS: Mapping[str, Hyperparameter] = {
    "learning_rate": Hyperparameter(section="space", kind="float", low=0, low_open=True, high=1e3),
    "batch_size": Hyperparameter(section="space", kind="int", low=1, high=2**20),
    "weight_decay": Hyperparameter(section="space", kind="float", low=0, high=1e3, default=0.0),
    "dropout": Hyperparameter(section="space", kind="float", low=0, high=1, high_open=True, default=0.0),
    "width": Hyperparameter(section="space", kind="int", low=1, high=2**16),
    "depth": Hyperparameter(section="space", kind="int", low=1, high=64),
    "activation": Hyperparameter(
        section="model",
        kind="categorical",
        choices=("relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu"),
        default="relu",
    ),
    "optimizer": Hyperparameter(
        section="training", kind="categorical", choices=("sgd", "adam", "adamw"), default="adamw"
    ),
    "momentum": Hyperparameter(section="training", kind="float", low=0, high=1, high_open=True, default=0.9),
    "schedule": Hyperparameter(
        section="training", kind="categorical", choices=("constant", "cosine"), default="cosine"
    ),
    "warmup": Hyperparameter(section="training", kind="float", low=0, high=1, high_open=True, default=0.0),
    "label_smoothing": Hyperparameter(section="training", kind="float", low=0, high=1, high_open=True, default=0.0),
}


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One trial's hyperparameters. Equal configurations with equal random streams train to equal weights.

    learning_rate: peak η of the schedule.
    batch_size: rows a step; larger than the training set means the whole set.
    weight_decay: λ. For ``adamw`` decoupled and scaled by η, as in ``torch.optim.AdamW``; for ``sgd`` and ``adam``
        added to the gradient as λθ, as in ``torch.optim``. Weights decay; biases do not.
    dropout: probability to drop a hidden unit, as in ``torch.nn.Dropout`` (the lecture's p is the probability to keep).
    width, depth: hidden units a layer; number of hidden layers.
    momentum: SGD's momentum, or β₁ of Adam and AdamW.
    schedule: how η moves over ``max_epochs``, step by step.
    warmup: share of all steps in which η rises linearly from 0 before the schedule starts.
    label_smoothing: share of the target's mass spread evenly over all classes (classification only).
    max_epochs: the horizon of the schedule; a trial stopped at a rung has only walked part of it.
    patience: epochs without improvement of the validation metric after which training stops; 0 never stops.
    keep: the weights a trial is judged by and that would be kept: the last epoch's, or the best epoch's.
    """

    learning_rate: float
    batch_size: int
    weight_decay: float = 0.0
    dropout: float = 0.0
    width: int
    depth: int
    activation: Activation = "relu"
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    max_epochs: int
    patience: int = 0
    keep: Keep = "last"

    @property
    def signature(self) -> tuple[str, ...]:
        """What cannot fuse: lanes of one pack have equal signatures."""
        return (self.activation, self.optimizer)

    def as_dict(self) -> dict[str, Value]:
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> TrialConfig:
        """Build from a mapping that may hold other keys as well. Raises TypeError when a required one is missing."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
