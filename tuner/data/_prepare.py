"""The one way from a study to its rows: read, split, fit on train.

What it returns still holds the test rows, so only :mod:`tuner.data.dataset`, :mod:`tuner.data.sealed` and
:mod:`tuner.data.shift`, which looks at inputs alone, import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuner.data.preprocessing import Preprocessing
from tuner.data.sources import Table, load_table
from tuner.data.splits import Split, split_rows
from tuner.spec import StudySpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A study's table, its split, and the preprocessing fitted on the split's train rows."""

    table: Table
    split: Split
    preprocessing: Preprocessing

    def rows(
        self, numbers: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | npt.NDArray[np.float32]]:
        """Features (len(numbers), D) and target (len(numbers),) of these rows, preprocessed; copies, never views."""
        features = self.preprocessing.transform(self.table.features[numbers])
        return features, self.preprocessing.transform_target(self.table.target[numbers])


def prepare(spec: StudySpec, root: Path) -> Prepared:
    """Read, split and fit. A relative path in the spec starts at ``root``. Raises DataError."""
    table = load_table(spec.data, spec.task, root)
    split = split_rows(table.target, spec.task, spec.data.split, spec.study.seed, classes=table.classes)
    preprocessing = Preprocessing.fit(
        table.features[split.train],
        table.target[split.train],
        task=spec.task,
        feature_names=table.feature_names,
        target_name=table.target_name,
    )
    return Prepared(table=table, split=split, preprocessing=preprocessing)
