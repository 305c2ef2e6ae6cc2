"""A trial: one configuration of hyperparameters, and the table that says what each hyperparameter may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "step"]
Loss = Literal["auto", "cross_entropy", "square", "hinge"]
Initialization = Literal["torch", "xavier", "he"]
Norm = Literal["none", "layer", "batch"]
Optimizer = Literal["sgd", "nesterov", "rmsprop", "adam", "adamw", "adamw_decoupled"]
Schedule = Literal["constant", "cosine", "inverse", "inverse_sqrt", "exponential", "step"]
Averaging = Literal["none", "swa", "ema"]
ClassWeight = Literal["none", "balanced"]
Scaling = Literal["standard", "robust", "quantile", "piecewise"]
Keep = Literal["last", "best"]
Precision = Literal["float32", "tf32", "bf16"]
Task = Literal["classification", "regression"]
Value = float | int | str
Section = Literal["data", "model", "training", "space"]


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """What values one hyperparameter may take, in which section of a study file it is written, and its default.

    ``low`` and ``high`` bound every value; ``low_open`` and ``high_open`` exclude the bound itself. ``choices`` are the
    names a categorical may take. ``default`` None means that a study file must say it.
    """

    section: Section
    kind: Literal["float", "int", "bool", "categorical"]
    low: float = float("-inf")
    high: float = float("inf")
    low_open: bool = False
    high_open: bool = False
    choices: tuple[str, ...] = ()
    default: Value | None = None


def _share(section: Section, default: float) -> Hyperparameter:
    """A number in [0, 1)."""
    return Hyperparameter(section=section, kind="float", low=0, high=1, high_open=True, default=default)


def _name_of(section: Section, literal: Any, default: str) -> Hyperparameter:
    """One of the names of a Literal type."""
    return Hyperparameter(section=section, kind="categorical", choices=get_args(literal), default=default)


HYPERPARAMETERS: Mapping[str, Hyperparameter] = {
    "learning_rate": Hyperparameter(section="space", kind="float", low=0, low_open=True, high=1e3),
    "batch_size": Hyperparameter(section="space", kind="int", low=1, high=2**20),
    "weight_decay": Hyperparameter(section="space", kind="float", low=0, high=1e3, default=0.0),
    "dropout": _share("space", 0.0),
    "width": Hyperparameter(section="space", kind="int", low=1, high=2**16),
    "depth": Hyperparameter(section="space", kind="int", low=1, high=64),
    "scaling": _name_of("data", Scaling, "standard"),
    "activation": _name_of("model", Activation, "relu"),
    "loss": _name_of("model", Loss, "auto"),
    "initialization": _name_of("model", Initialization, "torch"),
    "norm": _name_of("model", Norm, "none"),
    "residual": Hyperparameter(section="model", kind="bool", default=False),
    "input_dropout": _share("model", 0.0),
    "optimizer": _name_of("training", Optimizer, "adamw"),
    "momentum": _share("training", 0.9),
    "beta2": _share("training", 0.999),
    "l2": Hyperparameter(section="training", kind="float", low=0, high=1e3, default=0.0),
    "decay_biases": Hyperparameter(section="training", kind="bool", default=False),
    "clip_norm": Hyperparameter(section="training", kind="float", low=0, high=1e6, default=0.0),
    "schedule": _name_of("training", Schedule, "cosine"),
    "warmup": _share("training", 0.0),
    "decay": Hyperparameter(section="training", kind="float", low=0, low_open=True, high=1, default=0.95),
    "decay_epochs": Hyperparameter(section="training", kind="int", low=1, high=10**6, default=10),
    "reference_batch_size": Hyperparameter(section="training", kind="int", low=0, high=2**20, default=0),
    "label_smoothing": _share("training", 0.0),
    "class_weight": _name_of("training", ClassWeight, "none"),
    "averaging": _name_of("training", Averaging, "none"),
    "averaging_start": _share("training", 0.5),
    "ema_decay": _share("training", 0.99),
}


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One trial's hyperparameters. Equal configurations with equal random streams train to equal weights.

    learning_rate: peak η of the schedule.
    batch_size: rows a step; larger than the training set means the whole set.
    weight_decay: λ. For ``adamw`` decoupled and scaled by η, as in ``torch.optim.AdamW``; for ``adamw_decoupled`` not
        scaled by η (slide "Bag of Tips": w ← w - ηv/√(s+ε) - λw); for the others added to the gradient as λθ after
        clipping, as in ``torch.optim``. Weights decay; biases and norms do so only with ``decay_biases``.
    dropout, input_dropout: probability to drop a hidden unit, an input, as in ``torch.nn.Dropout`` (the lecture's p is
        the probability to keep).
    width, depth: hidden units a layer; number of hidden layers.
    scaling: how numeric columns are scaled, see :mod:`tuner.data.preprocessing`.
    loss: ``auto`` is cross-entropy for classes, square loss for numbers. Square loss of classes is against one-hot
        targets, hinge is the multi-class margin loss of ``torch.nn.MultiMarginLoss``.
    initialization: weights uniform in ±1/√fan_in as ``torch.nn.Linear``; or Xavier's ±√(6/(fan_in+fan_out)) or He's
        ±√(6/fan_in), both with zero biases.
    norm: layer or batch normalisation between each hidden layer's linear map and its activation.
    residual: hidden layers from the second on add their input to their output.
    momentum: momentum of SGD, Nesterov and RMSProp; β₁ of the Adam family. beta2: its β₂, and RMSProp's α.
    l2: λ of the penalty λ/2‖θ‖² in the loss; its gradient is clipped with the rest; no reported loss includes it.
    clip_norm: the gradient's norm is scaled down to this; 0 never clips.
    schedule: how η moves, see :func:`tuner.learning.schedules.factor`. warmup: share of all steps in which η rises
        linearly before the schedule starts. decay, decay_epochs: of the exponential and the step schedule.
    reference_batch_size: the linear scaling rule η′ = η·b/reference_batch_size; 0 leaves η alone.
    label_smoothing: share of the target's mass spread evenly over all classes (cross-entropy only).
    class_weight: ``balanced`` multiplies the training loss of each row by n/(C·n_c), see
        :func:`tuner.learning.metrics.balanced_weights`.
    averaging: the weights that a trial is judged by are the mean over epochs (``swa``) or an exponential moving average
        over steps (``ema``, of decay ``ema_decay``), both after the share ``averaging_start`` of ``max_epochs``.
    max_epochs: the horizon of the schedule; a trial stopped at a rung has only walked part of it.
    patience: epochs without improvement of the validation metric after which training stops; 0 never stops.
    keep: the weights a trial is judged by and that would be kept: the last epoch's, or the best epoch's.
    precision: of the matrix products, see :mod:`tuner.learning.products`.
    """

    learning_rate: float
    batch_size: int
    weight_decay: float = 0.0
    dropout: float = 0.0
    width: int
    depth: int
    scaling: Scaling = "standard"
    activation: Activation = "relu"
    loss: Loss = "auto"
    initialization: Initialization = "torch"
    norm: Norm = "none"
    residual: bool = False
    input_dropout: float = 0.0
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    beta2: float = 0.999
    l2: float = 0.0
    decay_biases: bool = False
    clip_norm: float = 0.0
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    decay: float = 0.95
    decay_epochs: int = 10
    reference_batch_size: int = 0
    label_smoothing: float = 0.0
    class_weight: ClassWeight = "none"
    averaging: Averaging = "none"
    averaging_start: float = 0.5
    ema_decay: float = 0.99
    max_epochs: int
    patience: int = 0
    keep: Keep = "last"
    precision: Precision = "float32"

    @property
    def signature(self) -> tuple[Value, ...]:
        """What cannot fuse: lanes of one pack have equal signatures. Batch normalisation needs whole, equal batches."""
        batch = self.batch_size if self.norm == "batch" else 0
        form = (self.activation, self.loss, self.optimizer, self.norm, self.residual, self.decay_biases)
        return (*form, self.precision, batch)

    def peak_learning_rate(self, rows: int) -> float:
        """η after the linear scaling rule (slide "Bag of Tips": η′ = η·b′/b); no batch has more than ``rows``."""
        batch = min(self.batch_size, rows)
        return self.learning_rate * (batch / self.reference_batch_size if self.reference_batch_size else 1.0)

    def as_dict(self) -> dict[str, Value]:
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> TrialConfig:
        """Build from a mapping that may hold other keys as well. Raises TypeError when a required one is missing."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
