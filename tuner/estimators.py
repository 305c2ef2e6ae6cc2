"""Scikit-learn estimators: ``fit`` runs a whole study on the rows it is given, ``predict`` is the winner's.

>>> from sklearn.datasets import load_iris
>>> from tuner import TunedMLPClassifier
>>> X, y = load_iris(return_X_y=True)
>>> TunedMLPClassifier(trials=9, max_epochs=27).fit(X, y).score(X, y) > 0.9
True

There is no sealed test set here: whoever cross-validates an estimator keeps test rows of their own.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    check_consistent_length,
    check_is_fitted,
    check_random_state,
    column_or_1d,
    validate_data,
)

from tuner.data.columns import is_missing, series_of
from tuner.errors import BadInputError
from tuner.export import trained_model
from tuner.launch.engine import Crew, follow
from tuner.launch.local import LocalWorkers, devices_for
from tuner.manager import StudyManager
from tuner.model import TunedModel
from tuner.plan import create_study
from tuner.recipe import write_recipe
from tuner.spec import METRICS, Metric, StudySpec, metrics_for, parse_spec
from tuner.trial import Task
from tuner.worker import run_worker

VALIDATION_SHARE = 0.25
TRIALS = 100  # of a search that is given neither trials nor minutes
FEWEST_ROWS = 4
_NAME, _TARGET, _ROWS = "fit", "target", "rows.parquet"


class _TunedMLP(BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """What both estimators share. Parameters as :class:`TunedMLPClassifier` says."""

    def __init__(
        self,
        *,
        metric: Metric | None = None,
        minutes: float | None = None,
        trials: int | None = None,
        max_epochs: int | None = None,
        ensemble: bool = False,
        workers: int = 1,
        device: str = "auto",
        random_state: int | None = 0,
    ) -> None:
        self.metric = metric
        self.minutes = minutes
        self.trials = trials
        self.max_epochs = max_epochs
        self.ensemble = ensemble
        self.workers = workers
        self.device = device
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = False
        tags.target_tags.required = True
        return tags

    def _fit(self, frame: pl.DataFrame, target: npt.NDArray[Any], *, stratify: bool | None) -> None:
        """Run the study. Raises ValueError for input that no study can be made of."""
        if frame.height < FEWEST_ROWS:
            raise ValueError(f"n_samples={frame.height}: a search needs at least {FEWEST_ROWS} rows; give more")
        task: Task = "classification" if isinstance(self, ClassifierMixin) else "regression"
        if self.metric is not None and (self.metric not in METRICS or METRICS[self.metric].task != task):
            raise ValueError(f"metric: {self.metric!r} is none for {task}; known: {metrics_for(task)}")
        name = next(n for n in (_TARGET, *(f"{_TARGET}_{i}" for i in range(frame.width + 1))) if n not in frame.columns)
        with tempfile.TemporaryDirectory(prefix="tuner-") as folder, _torch_left_alone():
            root = Path(folder)
            frame.with_columns(pl.Series(name, target)).write_parquet(root / _ROWS)
            try:
                with StudyManager(f"sqlite:///{root}/study.db", root) as manager:
                    create_study(manager, self._spec(root, name, stratify), root)
                    self._search(manager, f"sqlite:///{root}/study.db")
                    trained = trained_model(manager, _NAME, ensemble=self.ensemble, device=self.device)
                    best = manager.best(_NAME)
            except BadInputError as error:
                raise ValueError(str(error).replace(f"{_ROWS}: ", "X: ")) from error
        assert best is not None
        # scikit-learn asks for the same answers whatever the size of the batch.
        self.model_: TunedModel = trained.model.double()
        self.best_params_: dict[str, Any] = dict(best.params)
        self.best_score_: float = best.value

    def _spec(self, root: Path, target: str, stratify: bool | None) -> StudySpec:
        seed = self.random_state
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31))
        metric = self.metric or ("error" if isinstance(self, ClassifierMixin) else "rmse")
        minutes = self.minutes
        trials = TRIALS if self.trials is None and minutes is None else self.trials
        recipe = write_recipe(
            _ROWS,
            target,
            root=root,
            name=_NAME,
            metric=metric,
            minutes=minutes,
            max_epochs=self.max_epochs,
            workers=self.workers,
            device=self.device,
            seed=seed,
            drop=False,
        )
        content = recipe.content
        split = {"train": 1 - VALIDATION_SHARE, "val": VALIDATION_SHARE, "test": 0.0}
        content["data"]["split"] = split if stratify is None else {**split, "stratify": stratify}
        content["final"] = {"seeds": 1, "fit_on": "train+val"}
        return parse_spec(content, trials=trials)

    def _search(self, manager: StudyManager, storage: str) -> None:
        if self.workers == 1:
            run_worker(manager, _NAME, device=self.device, stop=threading.Event())
            return
        devices = devices_for(self.device, self.workers, manager.spec(_NAME).total_trials)
        crew = Crew(study=_NAME, workers=len(devices), storage=storage)
        with LocalWorkers(crew, devices) as workers:
            follow(manager, _NAME, workers, stop=threading.Event(), show=lambda _: None)

    def _frame(self, X: Any, *, reset: bool) -> pl.DataFrame:
        """The rows as a frame: columns of a polars or pandas frame by their names, of anything else x0, x1, …"""
        if isinstance(X, pl.DataFrame) or hasattr(X, "iloc"):
            names = [str(name) for name in X.columns]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"X has several columns named {repeated[0]!r}; give every column its own name")
            _check_feature_names(self, X, reset=reset)
            _check_n_features(self, X, reset=reset)
            if isinstance(X, pl.DataFrame):
                return X
            return pl.DataFrame([series_of(X[column], name) for column, name in zip(X.columns, names, strict=True)])
        checked = validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite="allow-nan")
        return pl.DataFrame(checked, schema=[f"x{i}" for i in range(checked.shape[1])], orient="row")


class TunedMLPClassifier(ClassifierMixin, _TunedMLP):  # type: ignore[misc]
    """A multilayer perceptron whose hyperparameters are searched on ``fit``.

    metric: what is optimised on a quarter of the rows, kept for validation; error by default. minutes, trials: how long
    the search goes on, and how many configurations it tries; 100 where neither is given. max_epochs: the longest
    training. ensemble: several of the best trials vote. workers: processes that share the search. The final network is
    trained on all rows.

    Attributes after fitting: ``classes_``; ``model_``, a :class:`tuner.model.TunedModel`; ``best_params_`` and
    ``best_score_``, the winner's hyperparameters and its validation score, which is optimistic.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """X: (n, D) numbers, missing ones NaN, or a frame with columns of any kind; y: (n,) classes.

        Raises ValueError for fewer than four rows, a single class, infinite values, columns of other things or of one
        name, or a metric that is none for classes.
        """
        frame = self._frame(X, reset=True)
        y = _target(self, y, frame.height)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has only one class, {self.classes_[0]!r}; a classifier needs at least two")
        rare = np.bincount(codes).min() < 2 or int(VALIDATION_SHARE * len(codes)) < len(self.classes_)
        self._fit(frame, codes.astype(np.int64), stratify=False if rare else None)
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """(n,) classes."""
        check_is_fitted(self)
        answers = self.model_.answers(self._frame(X, reset=False))
        labels: npt.NDArray[Any] = self.classes_[self._codes[answers.argmax(1)]]
        return labels

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """(n, C) probabilities in the order of ``classes_``."""
        check_is_fitted(self)
        said = self.model_.predict_proba(self._frame(X, reset=False))
        probabilities = np.zeros((len(said), len(self.classes_)))
        probabilities[:, self._codes] = said
        return cast("npt.NDArray[np.float64]", probabilities / probabilities.sum(1, keepdims=True))

    @property
    def _codes(self) -> npt.NDArray[np.int64]:
        """Which of ``classes_`` each of the model's outputs is."""
        return np.array([int(label) for label in self.model_.classes])


class TunedMLPRegressor(RegressorMixin, _TunedMLP):  # type: ignore[misc]
    """As :class:`TunedMLPClassifier`, for numbers; the metric is rmse by default."""

    def fit(self, X: Any, y: Any) -> Self:
        """X: as :meth:`TunedMLPClassifier.fit` takes it; y: (n,) numbers. Raises ValueError as it does."""
        frame = self._frame(X, reset=True)
        y = _target(self, y, frame.height)
        self._fit(frame, np.asarray(y, dtype=np.float64), stratify=None)
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """(n,) numbers in the unit of ``y``."""
        check_is_fitted(self)
        values: npt.NDArray[np.float64] = self.model_.predict(self._frame(X, reset=False))
        return values


def _target(estimator: BaseEstimator, y: Any, n: int) -> npt.NDArray[Any]:
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None."
        )
    column: npt.NDArray[Any] = column_or_1d(y, warn=True)
    check_consistent_length(np.empty(n), column)
    if column.dtype == object and any(map(is_missing, column)):
        raise ValueError("y holds missing values; drop these rows")
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        raise ValueError("y holds NaN or infinity; drop these rows")
    return column


@contextmanager
def _torch_left_alone() -> Iterator[None]:
    """Training sets torch to one thread and flushes denormal numbers: put back the caller's threads, and torch's own
    default for denormals, which cannot be asked for.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
