"""Baselines: what simpler models reach on the very rows a network was trained on.

Every baseline answers as a network does, in *outputs* (n, C): log-probabilities of C classes, or the standardised
target with C = 1; so the same metrics, intervals and comparisons hold for both.

Shapes: ``n`` rows, ``D`` features, ``C`` outputs.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from tuner.spec import Metric
from tuner.trial import Task, Value

X = npt.NDArray[np.float32]
Y = npt.NDArray[np.int64] | npt.NDArray[np.float32]
Outputs = npt.NDArray[np.float32]
BaselineName = Literal["constant", "linear", "boosting"]

INVERSE_REGULARIZATION = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of LogisticRegression
RIDGE = (0.1, 1.0, 10.0, 100.0, 1000.0)  # alpha
CELLS: Mapping[BaselineName, int] = {  # rows times features times outputs; more rows are sampled, and it is said
    "constant": 100_000_000,
    "linear": 5_000_000,
    "boosting": 10_000_000,
}
EARLY_STOPPING_ROWS = 50  # with fewer there is no tenth of them to stop the boosting on
CLASS_BALANCED: tuple[str, ...] = ("balanced_accuracy", "f1")  # metrics for which balanced class weights may pay
LEAST = 1e-12  # the smallest probability, so that the log-loss stays finite
_STREAM = 0xBA5E


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A fitted baseline. settings: what was picked on the validation rows; rows: how many it was fitted on.

    outputs: x (n, D) -> (n, C).
    """

    name: BaselineName
    title: str
    settings: Mapping[str, Value]
    rows: int
    seconds: float
    outputs: Callable[[X], Outputs]


def fit_baselines(
    train: tuple[X, Y],
    validation: tuple[X, Y],
    score: Callable[[Outputs, Y], float],
    *,
    task: Task,
    n_outputs: int,
    metric: Metric,
    refit_on: tuple[X, Y] | None = None,
    seed: int = 0,
) -> list[Baseline]:
    """The majority class or mean (the median for mae), a linear model, and histogram gradient boosting.

    score: of outputs and targets, the lower the better; settings are picked by it on the validation rows. Boosting
    stops early on a tenth of its own training rows, never on validation. The picked settings are then fitted on
    ``refit_on`` where that is given.
    """
    fitted = []
    for name, title, candidates in _recipes(task, metric, len(train[1]), seed):
        began = time.perf_counter()
        most = max(1000, CELLS[name] // (train[0].shape[1] * n_outputs))
        rows = _sample(*train, most, seed)
        models = [_fitted(model, *rows) for _, model in candidates]
        picked = 0
        if len(models) > 1:
            picked = int(
                np.argmin([score(_outputs(model, validation[0], n_outputs), validation[1]) for model in models])
            )
        settings, model = candidates[picked][0], models[picked]
        if refit_on is not None:
            rows = _sample(*refit_on, most, seed)
            model = _fitted(model, *rows)
        fitted.append(
            Baseline(
                name=name,
                title=title,
                settings=settings,
                rows=len(rows[1]),
                seconds=time.perf_counter() - began,
                outputs=lambda x, model=model: _outputs(model, x, n_outputs),  # type: ignore[misc]
            )
        )
    return fitted


_Candidates = Sequence[tuple[Mapping[str, Value], Any]]  # settings, and an estimator that has them


def _recipes(task: Task, metric: Metric, rows: int, seed: int) -> list[tuple[BaselineName, str, _Candidates]]:
    """(name, title, candidates) of every baseline of a task."""
    common = {"max_iter": 300, "early_stopping": rows >= EARLY_STOPPING_ROWS, "random_state": seed % 2**32}
    if task == "regression":
        absolute = metric == "mae"
        constant = DummyRegressor(strategy="median" if absolute else "mean")
        boosting = HistGradientBoostingRegressor(loss="absolute_error" if absolute else "squared_error", **common)
        return [
            ("constant", "the median" if absolute else "the mean", [({}, constant)]),
            ("linear", "ridge regression", [({"alpha": alpha}, Ridge(alpha=alpha)) for alpha in RIDGE]),
            ("boosting", "histogram gradient boosting", [({}, boosting)]),
        ]
    weights = (None, "balanced") if metric in CLASS_BALANCED else (None,)

    def written(weight: str | None) -> dict[str, Value]:
        return {} if weight is None else {"class_weight": weight}

    return [
        ("constant", "the majority class", [({}, DummyClassifier(strategy="prior"))]),
        (
            "linear",
            "logistic regression",
            [
                ({"C": c, **written(weight)}, LogisticRegression(C=c, class_weight=weight, max_iter=200))
                for weight in weights
                for c in INVERSE_REGULARIZATION
            ],
        ),
        (
            "boosting",
            "histogram gradient boosting",
            [(written(weight), HistGradientBoostingClassifier(class_weight=weight, **common)) for weight in weights],
        ),
    ]


def _fitted(model: Any, x: X, y: Y) -> Any:
    """A copy of ``model``, fitted."""
    if isinstance(model, LogisticRegression | HistGradientBoostingClassifier) and len(np.unique(y)) == 1:
        model = DummyClassifier(strategy="prior")  # rows of a single class leave nothing else to fit
    model = clone(model)
    if isinstance(model, HistGradientBoostingClassifier) and model.early_stopping:
        # Its held-out share is stratified, which needs two rows of each class.
        model.early_stopping = bool(np.unique(y, return_counts=True)[1].min() >= 2)
    # Threads that wait for each other at every small tree cost ten times the work where other processes are busy, too.
    with threadpool_limits(1), warnings.catch_warnings():
        # A linear model that has not converged after so many steps is one that was stopped early.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def _outputs(model: Any, x: X, n_outputs: int) -> Outputs:
    """(n, C) as a network gives them; a class that was not among the training rows has no probability."""
    if not hasattr(model, "predict_proba"):
        return np.asarray(model.predict(x), dtype=np.float32)[:, None]
    shares = np.zeros((len(x), n_outputs))
    shares[:, model.classes_] = model.predict_proba(x)
    return np.log(np.maximum(shares, LEAST)).astype(np.float32)


def _sample(x: X, y: Y, most: int, seed: int) -> tuple[X, Y]:
    if len(y) <= most:
        return x, y
    rows = np.sort(np.random.default_rng([_STREAM, seed]).choice(len(y), most, replace=False))
    return x[rows], y[rows]
