"""Small data sets, random configurations and the plain runs that a pack must equal."""

import numpy as np
import torch
from hypothesis import strategies as st

from tuner.learning.device import DeviceData
from tuner.learning.lanes import Lane, Pack, tensors_of
from tuner.learning.metrics import finish
from tuner.learning.mlp import MLP
from tuner.learning.plain import train_alone
from tuner.learning.randomness import lane_key
from tuner.spec import Metric
from tuner.trial import Task, TrialConfig

METRIC: dict[Task, Metric] = {"classification": "log_loss", "regression": "rmse"}
TOLERANCE = 1e-9  # float64, absolute, on losses, metrics and every weight


def make_data(
    task: Task = "classification",
    *,
    n: int = 61,
    features: int = 5,
    classes: int = 3,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> DeviceData:
    """Rows of a linear rule, always the same."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n + 23, features, generator=generator, dtype=torch.float64)
    scores = x @ torch.randn(features, classes, generator=generator, dtype=torch.float64)
    y = scores.argmax(1) if task == "classification" else scores[:, 0]
    x, y = x.to(device, dtype), y.to(device) if task == "classification" else y.to(device, dtype)
    return DeviceData(
        x_train=x[:n],
        y_train=y[:n],
        x_val=x[n:],
        y_val=y[n:],
        task=task,
        n_outputs=classes if task == "classification" else 1,
        target_sd=1.0 if task == "classification" else 2.5,
    )


def make_config(**changes: object) -> TrialConfig:
    """A sensible small configuration, with changes."""
    values = {"learning_rate": 0.01, "batch_size": 16, "width": 8, "depth": 2, "max_epochs": 6, **changes}
    return TrialConfig(**values)  # type: ignore[arg-type]


def lane_of(config: TrialConfig, number: int = 0, seed: int = 3) -> Lane:
    return Lane(number=number, config=config, key=lane_key(seed, number))


def mixed_configs(task: Task) -> st.SearchStrategy[list[TrialConfig]]:
    """Packs that differ in everything that fuses, and agree in what does not."""
    lanes = st.fixed_dictionaries(
        {
            "learning_rate": st.floats(1e-4, 2e-2),
            "batch_size": st.integers(4, 80),
            "weight_decay": st.sampled_from([0.0, 1e-3, 0.3]),
            "dropout": st.sampled_from([0.0, 0.1, 0.5, 0.9]),
            "width": st.integers(1, 20),
            "depth": st.integers(1, 4),
            "momentum": st.sampled_from([0.0, 0.5, 0.9]),
            "schedule": st.sampled_from(["constant", "cosine"]),
            "warmup": st.sampled_from([0.0, 0.3]),
            "label_smoothing": st.sampled_from([0.0, 0.1] if task == "classification" else [0.0]),
            "max_epochs": st.integers(2, 6),
        }
    )
    shared = st.fixed_dictionaries(
        {
            "activation": st.sampled_from(["relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu"]),
            "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
        }
    )
    packs = st.tuples(shared, st.lists(lanes, min_size=1, max_size=5))
    return packs.map(lambda pack: [TrialConfig(**pack[0], **lane) for lane in pack[1]])


def distance_from_plain(pack: Pack, lanes: list[Lane], data: DeviceData, epochs: int = 2) -> float:
    """Train the pack and every lane's ordinary model; the largest difference in any loss, metric or weight."""
    metric = METRIC[data.task]
    fused = []
    for epoch in range(1, epochs + 1):
        train_loss = pack.train_epoch([epoch] * len(lanes))
        fused.append((train_loss, *pack.validate(metric)))
    worst = 0.0
    for i, lane in enumerate(lanes):
        model = MLP(lane.config, data.n_features, data.n_outputs, lane.key).to(data.device, data.dtype)
        plain = train_alone(model, lane.config, data, lane.key, metric)
        for train_loss, val_loss, value in fused:
            result = next(plain)
            worst = max(
                worst,
                abs(result.train_loss - train_loss[i]),
                abs(result.val_loss - val_loss[i]),
                abs(result.value - finish(metric, value[i])),
            )
        named = tensors_of(pack.export(i)["theta"], lane.config, data.n_features, data.n_outputs)
        for layer, linear in enumerate(model.linears()):
            name = "head" if layer == 0 else f"hidden.{layer}"
            worst = max(worst, float(np.abs(named[f"{name}.weight"] - linear.weight.detach().cpu().numpy()).max()))
            worst = max(worst, float(np.abs(named[f"{name}.bias"] - linear.bias.detach().cpu().numpy()).max()))
    return worst
