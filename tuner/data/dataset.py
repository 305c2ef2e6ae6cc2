"""A dataset: the rows of a study that may be trained and validated on, and a summary of all of them.

Shapes: ``n`` rows of a part, ``D`` features, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuner.data._prepare import prepare
from tuner.data.splits import is_stratified
from tuner.spec import StudySpec
from tuner.trial import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows ready for a network.

    x: (n, D) float32, C-contiguous, standardised.
    y: (n,) int64 class codes, or (n,) float32 standardised target.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64] | npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Everything a worker may know of a study's data. It holds no test row.

    n_features: D. n_outputs: C, or 1 for regression. classes: C labels in code order, empty for regression.
    target_mean, target_sd: a regression prediction z means z * target_sd + target_mean in the target's own unit; 0 and
        1 for classification.
    data_digest, split_digest: SHA-256 of the whole table and of the split, which all workers of a study agree on.
    """

    train: Rows
    val: Rows
    task: Task
    n_features: int
    n_outputs: int
    classes: tuple[str, ...]
    feature_names: tuple[str, ...]
    target_mean: float
    target_sd: float
    data_digest: str
    split_digest: str


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What ``tuner check`` prints of a study's data; of the test rows it holds counts only.

    class_counts: label -> rows in (train, validation, test), in code order; empty for regression.
    target_mean, target_sd, target_min, target_max: of the train rows' target in its own unit; None for classification.
    """

    source: str
    rows: int
    features: int
    task: Task
    target_name: str
    stratified: bool
    n_train: int
    n_val: int
    n_test: int
    class_counts: Mapping[str, tuple[int, int, int]]
    target_mean: float | None
    target_sd: float | None
    target_min: float | None
    target_max: float | None
    data_digest: str
    split_digest: str


def load_training_data(spec: StudySpec, root: Path) -> TrainingData:
    """Train and validation rows of a study, preprocessed with statistics of its train rows.

    A relative path in the spec starts at ``root``. Equal specs and files give equal rows. Raises DataError.
    """
    prepared = prepare(spec, root)
    table, split, preprocessing = prepared.table, prepared.split, prepared.preprocessing
    (train_x, train_y), (val_x, val_y) = prepared.rows(split.train), prepared.rows(split.val)
    return TrainingData(
        train=Rows(x=train_x, y=train_y),
        val=Rows(x=val_x, y=val_y),
        task=spec.task,
        n_features=len(table.feature_names),
        n_outputs=len(table.classes) if spec.task == "classification" else 1,
        classes=table.classes,
        feature_names=table.feature_names,
        target_mean=preprocessing.target_mean,
        target_sd=preprocessing.target_sd,
        data_digest=table.digest,
        split_digest=split.digest,
    )


def summarize(spec: StudySpec, root: Path) -> DataSummary:
    """Summarize a study's data. Reads, splits and fits as :func:`load_training_data` does; raises DataError."""
    prepared = prepare(spec, root)
    table, split, preprocessing = prepared.table, prepared.split, prepared.preprocessing
    counts = {
        label: tuple(int(np.count_nonzero(table.target[part] == code)) for part in (split.train, split.val, split.test))
        for code, label in enumerate(table.classes)
    }
    regression = spec.task == "regression"
    target = table.target[split.train]
    return DataSummary(
        source=spec.data.source,
        rows=len(table.target),
        features=len(table.feature_names),
        task=spec.task,
        target_name=table.target_name,
        stratified=is_stratified(spec.task, spec.data.split),
        n_train=len(split.train),
        n_val=len(split.val),
        n_test=len(split.test),
        class_counts={label: (train, val, test) for label, (train, val, test) in counts.items()},
        target_mean=preprocessing.target_mean if regression else None,
        target_sd=preprocessing.target_sd if regression else None,
        target_min=float(target.min()) if regression else None,
        target_max=float(target.max()) if regression else None,
        data_digest=table.digest,
        split_digest=split.digest,
    )
