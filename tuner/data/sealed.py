"""The sealed test rows. Only :mod:`tuner.evaluation` may import this module; an import contract says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuner.data._prepare import prepare
from tuner.data.dataset import Rows
from tuner.data.preprocessing import Preprocessing
from tuner.spec import StudySpec
from tuner.trial import Scaling


def open_test(spec: StudySpec, root: Path, fitted: Mapping[Scaling, Preprocessing]) -> dict[Scaling, Rows]:
    """The test rows of a study, preprocessed in each way that was fitted on other rows.

    Opening them is what the evaluation ledger counts: call this once a study, after the last choice was made. A
    relative path in the spec starts at ``root``. Raises DataError, as :func:`tuner.data.load_training_data` does.
    """
    prepared = prepare(spec, root)
    opened = {}
    for scaling, preprocessing in fitted.items():
        x, y = prepared.rows(preprocessing, prepared.split.test)
        opened[scaling] = Rows(x=x, y=y)
    return opened
