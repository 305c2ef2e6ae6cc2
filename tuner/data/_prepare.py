"""The one way from a study to its rows: read, split, fit on train.

What it returns still holds the test rows, so only :mod:`tuner.data.dataset`, :mod:`tuner.data.sealed` and
:mod:`tuner.data.shift`, which looks at inputs alone, import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuner.data.columns import Schema
from tuner.data.corruption import corrupted
from tuner.data.preprocessing import Preprocessing
from tuner.data.sources import Table, load_table
from tuner.data.splits import Split, split_rows
from tuner.spec import StudySpec
from tuner.trial import Scaling

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A study's table and its split. Nothing is fitted yet."""

    spec: StudySpec
    table: Table
    split: Split

    def schema(self, rows: Numbers) -> Schema:
        """The columns as these rows tell them."""
        data = self.spec.data
        time = None if data.split is None else data.split.time
        return Schema.infer(self.table.frame, rows, categorical=data.categorical, time=time)

    def fit(self, rows: Numbers, scaling: Scaling) -> Preprocessing:
        """Preprocessing fitted on these rows of the table alone."""
        return Preprocessing.fit(
            self.schema(rows),
            self.table.frame,
            self.table.target,
            rows,
            task=self.spec.task,
            target_name=self.table.target_name,
            scaling=scaling,
        )

    def rows(
        self, preprocessing: Preprocessing, numbers: Numbers
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | npt.NDArray[np.float32]]:
        """Features (len(numbers), D) and target (len(numbers),) of these rows, preprocessed; copies, never views."""
        features = preprocessing.transform(self.table.frame, numbers)
        return features, preprocessing.transform_target(self.table.target, numbers)


def prepare(spec: StudySpec, root: Path) -> Prepared:
    """Read, split, and corrupt where that is asked for. A relative path starts at ``root``. Raises DataError."""
    table = load_table(spec.data, spec.task, root)
    split = split_rows(
        table.target,
        spec.task,
        spec.data.split,
        spec.study.seed,
        classes=table.classes,
        by=table.by,
        root=root,
    )
    if (corrupt := spec.data.corrupt) is not None:
        table = corrupted(table, corrupt, trained=split.trained)
    return Prepared(spec=spec, table=table, split=split)
