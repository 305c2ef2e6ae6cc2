"""Models with random weights, and tables of every kind of column: what exporting and predicting are tested on."""

from typing import Any

import numpy as np
import polars as pl

from tuner.data.columns import Schema
from tuner.data.preprocessing import Preprocessing
from tuner.learning.mlp import MLP
from tuner.model import Network, TunedModel
from tuner.trial import Scaling, TrialConfig

CONFIG: dict[str, Any] = {"learning_rate": 0.1, "batch_size": 8, "width": 9, "depth": 2, "max_epochs": 3}


def mixed_table(n: int = 200, seed: int = 0) -> pl.DataFrame:
    """n rows with numbers, gaps, booleans, text and dates."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "size": rng.normal(50, 10, n).round(3),
            "gaps": pl.Series(np.where(rng.random(n) < 0.2, np.nan, rng.exponential(size=n).round(4))).fill_nan(None),
            "open": rng.random(n) < 0.4,
            "shop": pl.Series([None if k == 0 else f"k{k}" for k in rng.integers(0, 5, n)]),
            "day": pl.Series(rng.integers(18_000, 19_000, n).astype(np.int32)).cast(pl.Date),
        }
    )


def numeric_table(n: int = 200, seed: int = 0) -> pl.DataFrame:
    """n rows of numbers and booleans alone."""
    return mixed_table(n, seed).select("size", "gaps", "open")


def model(
    table: pl.DataFrame,
    *configs: dict[str, Any],
    classes: tuple[str, ...] = ("no", "yes", "perhaps"),
    weights: tuple[int, ...] = (),
    categorical: tuple[str, ...] = (),
) -> TunedModel:
    """A model fitted on the table, a network with random weights for each configuration; no classes: a regression."""
    rows = np.arange(table.height)
    chosen = [TrialConfig(**{**CONFIG, **config}) for config in configs or ({},)]
    fitted: dict[Scaling, Preprocessing] = {}
    for scaling in dict.fromkeys(config.scaling for config in chosen):
        fitted[scaling] = Preprocessing.fit(
            Schema.infer(table, categorical=categorical),
            table,
            np.linspace(100, 300, table.height) if not classes else rows % len(classes),
            rows,
            task="classification" if classes else "regression",
            target_name="target",
            scaling=scaling,
        )
    networks = []
    for i, config in enumerate(chosen):
        module = MLP(config, len(fitted[config.scaling].feature_names), len(classes) or 1, key=i + 1).eval()
        weight = weights[i] if weights else 1
        networks.append(Network(trial=i, config=config, weight=weight, module=module))
    return TunedModel(
        name="made-up",
        task="classification" if classes else "regression",
        target_name="target",
        classes=classes,
        preprocessing=fitted,
        networks=tuple(networks),
    )
