"""MLflow: an experiment named after the study, a run for each trial.

A run that is not ended is one whose writer died: it is written as a whole, and ended last. MLflow has no run that is
named by its writer, so the study and the trial are tags, by which a later process finds it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow.entities
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tuner.errors import StorageError
from tuner.manager import TrialHistory
from tuner.storage.artifacts import shown
from tuner.tracking.tracker import timed

STUDY, TRIAL, STATE = "tuner.study", "tuner.trial", "tuner.state"
_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
_PAGE = 1000  # runs in one answer
_METRICS = 900  # in one request, which takes 1,000 entities
_PARAMS = 90  # of 100
_TEXT = 5000  # characters of a tag
_OPEN = "RUNNING"

for _name in ("mlflow", "alembic"):  # that a database is made is no news
    logging.getLogger(_name).setLevel(logging.WARNING)


class MlflowTracker:
    """The runs of one study.

    place: a tracking URI; or a folder, where an SQLite file ``mlflow.db`` holds them: ``mlflow ui
    --backend-store-uri sqlite:///FOLDER/mlflow.db``. identity: tells the study from others that had its name.
    """

    title = "MLflow"

    def __init__(self, place: str | Path, name: str, identity: str, metric: str) -> None:
        self._place, self._study, self._metric = str(place), identity, metric
        self._runs: dict[int, str] = {}  # the run of each trial
        with self._explained():
            uri, artifacts = self._place, None
            if isinstance(place, Path):
                place.mkdir(parents=True, exist_ok=True)
                uri, artifacts = f"sqlite:///{place.absolute()}/mlflow.db", (place.absolute() / "artifacts").as_uri()
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = _experiment(self._client, name, artifacts)

    def known(self) -> Mapping[int, str]:
        """See :class:`tuner.tracking.tracker.Tracker`."""
        states: dict[int, str] = {}
        self._runs.clear()
        with self._explained():
            for run in self._all_runs():
                tags, status, run_id = run.data.tags, run.info.status, run.info.run_id
                number = int(tags[TRIAL])
                if status == _OPEN or number in states:  # half-written, or written twice: by a process that slept
                    self._client.delete_run(run_id)
                else:
                    states[number], self._runs[number] = tags[STATE], run_id
        return states

    def log(self, history: TrialHistory) -> None:
        """See :class:`tuner.tracking.tracker.Tracker`."""
        trial = history.trial
        start, end = (round(1000 * seconds) for seconds in (history.started_at, history.ended_at))
        tags = {STUDY: self._study, TRIAL: str(trial.number), STATE: trial.state}
        tags |= {key: str(value)[:_TEXT] for key, value in _words(history).items()}
        params = [mlflow.entities.Param(key, str(value)) for key, value in (trial.params or {}).items()]
        metrics = list(_metrics(history, self._metric))
        with self._explained():
            if (before := self._runs.pop(trial.number, None)) is not None:
                self._client.delete_run(before)
            run = self._client.create_run(
                self._experiment, run_name=f"trial {trial.number}", start_time=start, tags=tags
            ).info.run_id
            for first in range(0, len(params), _PARAMS):
                self._client.log_batch(run, params=params[first : first + _PARAMS])
            for first in range(0, len(metrics), _METRICS):
                self._client.log_batch(run, metrics=metrics[first : first + _METRICS])
            self._client.set_terminated(run, _STATUS[trial.state], end)
        self._runs[trial.number] = run

    def describe(self, text: str) -> None:
        """See :class:`tuner.tracking.tracker.Tracker`."""
        with self._explained():
            self._client.set_experiment_tag(self._experiment, "mlflow.note.content", text[:_TEXT])

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _all_runs(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                f"tags.`{STUDY}` = '{self._study}'",
                max_results=_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            if not (token := page.token):
                return

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """MLflow's many errors as one."""
        try:
            yield
        except (MlflowException, OSError, ValueError) as error:
            told = " ".join(str(error).split())
            raise StorageError(f"MLflow at {shown(self._place)}: {told[:300]}; see [log] mlflow") from error


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """The id of the experiment of a name, which is made where it is not there."""
    find: Callable[[], Any] = lambda: client.get_experiment_by_name(name)  # noqa: E731
    experiment = find()
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            experiment = find()  # another process made it between our look and our word
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _metrics(history: TrialHistory, metric: str) -> Iterator[mlflow.entities.Metric]:
    """The curves, epoch by epoch, and what the trial was judged by."""
    for point, at in timed(history):
        for key, value in ((metric, point.value), ("train_loss", point.train_loss), ("val_loss", point.val_loss)):
            if value is not None:
                yield mlflow.entities.Metric(key, value, round(1000 * at), point.epoch)
    numbers = {"value": history.trial.value, "generalization_gap": history.attributes.get("generalization_gap")}
    for key, value in numbers.items():
        if value is not None:
            yield mlflow.entities.Metric(key, value, round(1000 * history.ended_at), history.trial.epochs)


def _words(history: TrialHistory) -> dict[str, Any]:
    """The trial's attributes that are no curves."""
    losses = ("train_loss", "val_loss", "generalization_gap")
    return {key: value for key, value in history.attributes.items() if key not in losses}
