"""Small studies and files for the tests of the data room."""

from pathlib import Path
from typing import Any

import numpy as np

from tuner.spec import StudySpec, parse_spec


def study(source: str, metric: str = "error", *, seed: int = 0, **data: Any) -> StudySpec:
    """A study on ``source``; ``data`` holds further keys of its data section."""
    return parse_spec(
        {
            "study": {"name": "s", "metric": metric, "seed": seed},
            "data": {"source": source, **data},
            "search": {"trials": 1},
            "space": {"learning_rate": {"low": 0.1, "high": 1.0}, "batch_size": 8, "width": 4, "depth": 1},
        }
    )


def write_npz(path: Path, task: str, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Write n random rows of 3 features, no two rows alike; their ``X`` and ``y``."""
    rng = np.random.default_rng(7)
    features = rng.normal(loc=[1.0, -20.0, 300.0], scale=[1.0, 5.0, 0.1], size=(n, 3))
    target = np.arange(n) % 3 if task == "classification" else rng.normal(50, 4, size=n)
    np.savez(path, X=features, y=target)
    return features, target
