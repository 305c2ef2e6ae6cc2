"""Small data sets, random configurations and the plain runs that a pack must equal."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from tuner.data.dataset import Rows, View
from tuner.learning.device import DeviceData
from tuner.learning.lanes import Lane, Pack
from tuner.learning.layout import named_arrays
from tuner.learning.mlp import MLP
from tuner.learning.plain import train_alone
from tuner.learning.randomness import fold_key, lane_key
from tuner.spec import Metric
from tuner.trial import Activation, Averaging, Initialization, Norm, Optimizer, Scaling, Schedule, Task, TrialConfig

METRIC: dict[Task, Metric] = {"classification": "log_loss", "regression": "rmse"}
TOLERANCE = 1e-9  # float64, absolute, on losses, metrics and every weight


def make_data(
    task: Task = "classification",
    *,
    views: Sequence[tuple[Scaling, int]] = (("standard", 0),),
    n: int = 61,
    features: int = 5,
    classes: int = 3,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    budget: int | None = None,
) -> DeviceData:
    """Rows of a linear rule, always the same. Each further view has other rows, one fewer and one more; what is scaled
    piecewise has twice the features.
    """
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n + 23, features, generator=generator, dtype=torch.float64)
    scores = x @ torch.randn(features, classes, generator=generator, dtype=torch.float64)
    y = scores.argmax(1) if task == "classification" else scores[:, 0]
    found = {}
    for i, key in enumerate(views):
        order = torch.arange(len(x)).roll(17 * i)
        train, val = (
            Rows(x=(x[rows] * (1 + i)).numpy(), y=y[rows].numpy())  # type: ignore[arg-type]
            for rows in (order[: n - i], order[n - i :])
        )
        if key[0] == "piecewise":
            train, val = (Rows(x=np.hstack([part.x, np.tanh(part.x)]), y=part.y) for part in (train, val))
        found[key] = View(train=train, val=val, target_mean=0.0, target_sd=1.0 if task == "classification" else 2.5 + i)
    outputs = classes if task == "classification" else 1
    return DeviceData.of_views(found, task, outputs, torch.device(device), dtype, budget=budget)


def make_config(**changes: object) -> TrialConfig:
    """A sensible small configuration, with changes."""
    # RMSProp has no bias correction: its first steps are 1/√(1-α) times larger, and rounding errors grow with them.
    calm = 0.0003 if changes.get("optimizer") == "rmsprop" else 0.01
    values = {"learning_rate": calm, "batch_size": 16, "width": 8, "depth": 2, "max_epochs": 6, **changes}
    return TrialConfig(**values)  # type: ignore[arg-type]


VIEWS: tuple[tuple[Scaling, int], ...] = (("standard", 0), ("standard", 1), ("robust", 0), ("robust", 1))


def lane_of(config: TrialConfig, number: int = 0, seed: int = 3, fold: int = 0, order_key: int | None = None) -> Lane:
    key = fold_key(lane_key(seed, number), fold)
    return Lane(number=number, config=config, key=key, fold=fold, order_key=order_key)


ACTIVATIONS = get_args(Activation)
OPTIMIZERS = get_args(Optimizer)


def mixed_configs(task: Task) -> st.SearchStrategy[list[TrialConfig]]:
    """Packs that differ in everything that fuses, and agree in what does not."""
    lanes = st.fixed_dictionaries(
        {
            "learning_rate": st.floats(1e-4, 1e-2),
            "batch_size": st.integers(4, 80),
            "weight_decay": st.sampled_from([0.0, 1e-3, 0.3]),
            "dropout": st.sampled_from([0.0, 0.1, 0.5, 0.7]),
            "width": st.integers(1, 20),
            "depth": st.integers(1, 4),
            "initialization": st.sampled_from(get_args(Initialization)),
            "input_dropout": st.sampled_from([0.0, 0.2]),
            "momentum": st.sampled_from([0.1, 0.5, 0.9]),
            "beta2": st.sampled_from([0.9, 0.999]),
            "l2": st.sampled_from([0.0, 0.1]),
            "clip_norm": st.sampled_from([0.0, 0.05, 1.0]),
            "schedule": st.sampled_from(get_args(Schedule)),
            "warmup": st.sampled_from([0.0, 0.3]),
            "decay": st.sampled_from([0.5, 0.95]),
            "decay_epochs": st.integers(1, 2),
            "reference_batch_size": st.sampled_from([0, 16]),
            "label_smoothing": st.sampled_from([0.0, 0.1] if task == "classification" else [0.0]),
            "class_weight": st.sampled_from(["none", "balanced"] if task == "classification" else ["none"]),
            "averaging": st.sampled_from(get_args(Averaging)),
            "averaging_start": st.sampled_from([0.0, 0.5]),
            "ema_decay": st.sampled_from([0.5, 0.99]),
            "max_epochs": st.integers(3, 6),
        }
    )
    shared = st.fixed_dictionaries(
        {
            "activation": st.sampled_from(ACTIVATIONS),
            "loss": st.sampled_from(["auto", "square", "hinge"] if task == "classification" else ["auto"]),
            "norm": st.sampled_from(get_args(Norm)),
            "residual": st.booleans(),
            "optimizer": st.sampled_from(OPTIMIZERS),
            "decay_biases": st.booleans(),
        }
    )
    packs = st.tuples(shared, st.lists(lanes, min_size=1, max_size=5))
    return packs.map(lambda pack: [_fitting(TrialConfig(**pack[0], **lane), pack[1][0]) for lane in pack[1]])


def _fitting(config: TrialConfig, first: dict[str, Any]) -> TrialConfig:
    """Batch normalisation needs equal batches; label smoothing needs cross-entropy."""
    batch = first["batch_size"] if config.norm == "batch" else config.batch_size
    smoothing = config.label_smoothing if config.loss == "auto" else 0.0
    # Normalising one or two units leaves a constant: gradients of rounding noise, which Adam blows up to whole steps.
    width = max(config.width, 3) if config.norm == "layer" else config.width
    # Plain gradient steps through four residual layers diverge at rates that Adam takes well.
    rate = config.learning_rate * {"rmsprop": 0.03, "sgd": 0.03, "nesterov": 0.03}.get(config.optimizer, 1)
    # A unit that steps up in every row is such a constant, too.
    if config.norm == "batch" and config.activation == "step":
        config = replace(config, activation="sigmoid")
    return replace(config, batch_size=batch, label_smoothing=smoothing, learning_rate=rate, width=width)


def plain_arrays(model: MLP) -> dict[str, np.ndarray]:
    """The ordinary model's parameters under the names of :func:`tuner.learning.layout.named_shapes`."""
    named = {"head.weight": model.head.weight, "head.bias": model.head.bias}
    for layer, block in enumerate(model.hidden, start=1):
        named[f"hidden.{layer}.weight"] = block.linear.weight
        if block.linear.bias is not None:
            named[f"hidden.{layer}.bias"] = block.linear.bias
        if not isinstance(block.norm, nn.Identity):
            named |= {f"hidden.{layer}.gain": block.norm.weight, f"hidden.{layer}.shift": block.norm.bias}
    return {name: tensor.detach().cpu().numpy() for name, tensor in named.items()}


def distance_from_plain(pack: Pack, lanes: list[Lane], data: DeviceData, epochs: int = 2) -> float:
    """Train the pack and every lane's ordinary model; the largest difference in any loss, metric or weight."""
    metric = METRIC[data.task] if lanes[0].config.loss == "auto" or data.task == "regression" else "error"
    fused = []
    for epoch in range(1, epochs + 1):
        train_loss = pack.train_epoch([epoch] * len(lanes))
        fused.append((train_loss, *pack.validate(metric)))
    worst = 0.0
    for i, lane in enumerate(lanes):
        features = data.view(lane.config.scaling, lane.fold).x_train.shape[1]
        model = MLP(lane.config, features, data.n_outputs, lane.key).to(data.device, data.dtype)
        kept = copy.deepcopy(model)
        plain = train_alone(model, lane.config, data, lane.ordered_by, metric, kept, lane.fold)
        for train_loss, val_loss, value in fused:
            result = next(plain)
            worst = max(
                worst,
                abs(result.train_loss - train_loss[i]),
                abs(result.val_loss - val_loss[i]),
                abs(result.value - value[i]),
            )
        exported = pack.export(i)
        pairs = [(exported["theta"], model)] + ([(exported["mean"], kept)] if "mean" in exported else [])
        for flat, ordinary in pairs:
            named = named_arrays(flat, lane.config, features, data.n_outputs)
            for name, array in plain_arrays(ordinary).items():
                worst = max(worst, float(np.abs(named[name] - array).max()))
    return worst
