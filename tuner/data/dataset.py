"""A dataset: the rows of a study that may be trained and validated on, and a summary of all of them.

Shapes: ``n`` rows of a part, ``D`` features, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuner.data._prepare import Prepared, prepare
from tuner.data.corruption import told
from tuner.data.preprocessing import Preprocessing
from tuner.data.splits import is_stratified
from tuner.space import Choices, Constant
from tuner.spec import StudySpec
from tuner.trial import Scaling, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows ready for a network.

    x: (n, D) float32, C-contiguous, preprocessed.
    y: (n,) int64 class codes, or (n,) float32 standardised target.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64] | npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """The table as one kind of trial sees it: train and validation rows, preprocessed as fitted on these train rows.

    target_mean, target_sd: a regression prediction z means z * target_sd + target_mean in the target's own unit; 0 and
        1 for classification.
    """

    train: Rows
    val: Rows
    target_mean: float
    target_sd: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Everything a worker may know of a study's data. It holds no test row.

    views: by scaling and fold, for every scaling that a trial may have; fold 0 is the only one without folds. Features
        that a fold's train rows do not have (a rare category) are zeros at the end. D may differ between scalings.
    folds: how many views a trial is trained on; 1 without folds.
    n_outputs: C, or 1 for regression. classes: C labels in code order, empty for regression.
    data_digest, split_digest: SHA-256 of the whole table and of the split, which all workers of a study agree on.
    """

    views: Mapping[tuple[Scaling, int], View]
    folds: int
    task: Task
    n_outputs: int
    classes: tuple[str, ...]
    data_digest: str
    split_digest: str

    @property
    def n_features(self) -> int:
        """D of the view that has most."""
        return max(int(view.train.x.shape[1]) for view in self.views.values())

    @property
    def only(self) -> View:
        """The single view of a study that has one scaling and no folds. Raises ValueError where there are more."""
        (view,) = self.views.values()
        return view


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalData:
    """What the winner is refitted on, and how any other row is made ready for it.

    data: of a single view: the study's own train and validation rows; or with ``fit_on`` train+val all of them as train
        rows, preprocessing included, and no new rows to validate on: the validation rows are among the train rows.
    preprocessing: fitted on the view's train rows.
    validation_rows: how many rows the value of a trial was measured on in the search.
    """

    data: TrainingData
    preprocessing: Preprocessing
    validation_rows: int


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What ``tuner check`` prints of a study's data; of the test rows it holds counts only.

    columns: how many there are of each kind. features: D, what they become, in the scaling that makes most of them.
    notes: one line for each thing that was found in the columns of the train rows and done about it.
    dealt: how the rows came to their parts, in words.
    n_train, n_val: of the first fold, where there are folds.
    class_counts: label -> rows in (train, validation, test), in code order; empty for regression.
    target_mean, target_sd, target_min, target_max: of the train rows' target in its own unit; None for classification.
    """

    source: str
    rows: int
    columns: Mapping[str, int]
    features: int
    notes: tuple[str, ...]
    task: Task
    target_name: str
    stratified: bool
    dealt: str
    folds: int
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
    """Train and validation rows of a study in every view that its trials may have.

    A relative path in the spec starts at ``root``. Equal specs and files give equal rows. Raises DataError.
    """
    prepared = prepare(spec, root)
    views = {
        (scaling, fold): _view(prepared, prepared.fit(train, scaling), train, val)
        for scaling in scalings(spec)
        for fold, (train, val) in enumerate(prepared.split.folds)
    }
    return _training_data(prepared, views)


def load_final_data(spec: StudySpec, root: Path, scaling: Scaling) -> FinalData:
    """What a winner of this scaling is refitted on. A relative path starts at ``root``. Raises DataError."""
    prepared = prepare(spec, root)
    split = prepared.split
    train = split.development if spec.fit_on == "train+val" else split.train
    preprocessing = prepared.fit(train, scaling)
    return FinalData(
        data=_training_data(prepared, {(scaling, 0): _view(prepared, preprocessing, train, split.val)}),
        preprocessing=preprocessing,
        validation_rows=len(split.val) if len(split.folds) == 1 else len(split.development),
    )


def scalings(spec: StudySpec) -> tuple[Scaling, ...]:
    """Every scaling that a trial of the study may have."""
    domain = spec.data.scaling
    assert isinstance(domain, Constant | Choices)  # names have no range
    return domain.choices if isinstance(domain, Choices) else (domain.value,)  # type: ignore[return-value]


def summarize(spec: StudySpec, root: Path) -> DataSummary:
    """Summarize a study's data. Reads, splits and fits as :func:`load_training_data` does; raises DataError."""
    prepared = prepare(spec, root)
    table, split = prepared.table, prepared.split
    every = [prepared.fit(split.train, scaling) for scaling in scalings(spec)]
    preprocessing = every[0]
    # A row that some trial could not take, or the evaluation after all of them, is refused before there is a study.
    for fitted in every:
        fitted.refuse_far_rows(table.frame, table.target)
    counts = {
        label: tuple(int(np.count_nonzero(table.target[part] == code)) for part in (split.train, split.val, split.test))
        for code, label in enumerate(table.classes)
    }
    regression = spec.task == "regression"
    target = table.target[split.train]
    kinds = [column.kind for column in preprocessing.schema.columns]
    return DataSummary(
        source=spec.data.source,
        rows=len(table.target),
        columns={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        features=max(len(fitted.feature_names) for fitted in every),
        notes=(*_spoiled(prepared), *preprocessing.schema.notes),
        task=spec.task,
        target_name=table.target_name,
        stratified=is_stratified(spec.task, spec.data.split),
        dealt=_dealt(spec),
        folds=len(split.folds),
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


def _spoiled(prepared: Prepared) -> tuple[str, ...]:
    corrupt = prepared.spec.data.corrupt
    return () if corrupt is None else (told(corrupt, prepared.table, len(prepared.split.trained)),)


def _dealt(spec: StudySpec) -> str:
    """How the rows came to their parts."""
    section = spec.data.split
    for key in ("group", "time", "column", "file"):
        if section is not None and (value := getattr(section, key)) is not None:
            return f"by {key} {value!r}"
    return "stratified" if is_stratified(spec.task, section) else "not stratified"


def _view(
    prepared: Prepared, preprocessing: Preprocessing, train: npt.NDArray[np.int64], val: npt.NDArray[np.int64]
) -> View:
    (train_x, train_y), (val_x, val_y) = prepared.rows(preprocessing, train), prepared.rows(preprocessing, val)
    return View(
        train=Rows(x=train_x, y=train_y),
        val=Rows(x=val_x, y=val_y),
        target_mean=preprocessing.target_mean,
        target_sd=preprocessing.target_sd,
    )


def _training_data(prepared: Prepared, views: Mapping[tuple[Scaling, int], View]) -> TrainingData:
    classes, widest = prepared.table.classes, dict[Scaling, int]()
    for (scaling, _), view in views.items():
        widest[scaling] = max(widest.get(scaling, 0), view.train.x.shape[1])
    return TrainingData(
        views={(scaling, fold): _padded(view, widest[scaling]) for (scaling, fold), view in views.items()},
        folds=1 + max(fold for _, fold in views),
        task=prepared.spec.task,
        n_outputs=len(classes) if prepared.spec.task == "classification" else 1,
        classes=classes,
        data_digest=prepared.table.digest,
        split_digest=prepared.split.digest,
    )


def _padded(view: View, n_features: int) -> View:
    """The view with zeros for the features that it lacks."""

    def wide(rows: Rows) -> Rows:
        lacking = n_features - rows.x.shape[1]
        return Rows(x=np.pad(rows.x, ((0, 0), (0, lacking))), y=rows.y) if lacking else rows

    return View(train=wide(view.train), val=wide(view.val), target_mean=view.target_mean, target_sd=view.target_sd)
