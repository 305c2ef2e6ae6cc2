"""``tuner diagnose``: under- or overfitting, what would help, what each regularizer does, and the lecture's tips.

Everything is measured on the study's own train and validation rows, with trainings from seeds that no trial had. The
validation rows are those that picked the winner, so what it was tuned to has a small head start over every change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tuner.data.dataset import load_training_data
from tuner.data.shift import check_shift
from tuner.diagnosis.conclusions import conclude
from tuner.diagnosis.probes import Lab
from tuner.diagnosis.variants import variants
from tuner.errors import BadInputError, StorageError
from tuner.learning.device import resolve_device
from tuner.learning.trainer import single_thread
from tuner.manager import StudyManager
from tuner.refits import winner
from tuner.worker import check_digests

SEEDS = 10
FEWEST_SEEDS = 4  # with fewer, intervals miss more often than they say

_log = logging.getLogger(__name__)


def diagnose(
    manager: StudyManager,
    name: str,
    *,
    seeds: int = SEEDS,
    device: str = "auto",
    begin: Callable[[int, int], None] = lambda _trainings, _epochs: None,
    step: Callable[[int], None] = lambda _epochs: None,
) -> dict[str, Any]:
    """Diagnose the study's winner, keep the result beside the study's checkpoints, and return it.

    seeds: of each variant, at least 4. begin: told how many trainings and epochs there will be at most; step: told how
    many epochs were trained. The test set stays sealed; of an evaluation that is there its stored numbers are shown.

    Raises StudyNotFoundError; NothingCompletedError when there is no winner; DataError when the data are not what the
    study was created with.
    """
    if seeds < FEWEST_SEEDS:
        raise BadInputError(f"seeds: a spread needs {FEWEST_SEEDS} or more, got {seeds}")
    began = time.perf_counter()
    best, spec, root = winner(manager, name), manager.spec(name), manager.data_root(name)
    place = resolve_device(device, spec.training.precision, double=True)
    if place.type == "cpu":
        single_thread()
    data = load_training_data(spec, root)
    check_digests(manager, name, data)
    rows = len(data.views[best.config.scaling, 0].train)
    tried = variants(best.config, rows=rows, classes=spec.task == "classification")
    lab = Lab(spec, data, tried, seeds, place, step)
    begin(len(tried) * seeds * data.folds, lab.lane_epochs)
    shift, evaluation = check_shift(spec, root).as_dict(), manager.evaluation(name)
    record = {
        "study": name,
        **conclude(spec, best, tried, lab.run(), shift=shift, evaluation=evaluation),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - began,
    }
    try:
        return manager.store_diagnosis(name, record)
    except StorageError as error:  # it is whole all the same; only the report cannot show it
        _log.warning("the diagnosis is not kept for the report: %s", error)
        return record
