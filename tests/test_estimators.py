"""The estimators in scikit-learn's own company."""

import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, make_classification
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import tuner
from tests.data.test_dataset import mixed_rows
from tuner import TunedMLPClassifier, TunedMLPRegressor

SMALL: dict[str, Any] = {"trials": 3, "max_epochs": 27}
IRIS = load_iris(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)


@pytest.mark.parametrize("estimator", [TunedMLPClassifier(**SMALL), TunedMLPRegressor(**SMALL)])
def test_scikit_learn_accepts_it(estimator: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks themselves try deprecated input
        results = check_estimator(estimator, on_skip=None, on_fail=None)
    assert len(results) > 40
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] != "passed"}
    assert set(failed) <= {"check_array_api_input"}, failed  # skipped where SCIPY_ARRAY_API is not set


def test_classes_may_be_text() -> None:
    names = np.array(["setosa", "versicolor", "virginica"])[IRIS[1]]
    model = TunedMLPClassifier(trials=9, max_epochs=27).fit(IRIS[0], names)
    assert model.score(IRIS[0], names) > 0.9
    assert model.predict_proba(IRIS[0]).shape == (150, 3)
    assert model.best_params_["learning_rate"] > 0
    assert 0 <= model.best_score_ < 0.2


def test_a_regression() -> None:
    model = TunedMLPRegressor(trials=9, max_epochs=27).fit(*DIABETES)
    assert 0.3 < model.score(*DIABETES) < 1


def test_in_a_pipeline_and_cross_validated() -> None:
    pipeline = make_pipeline(StandardScaler(), TunedMLPClassifier(**SMALL))
    scores = cross_val_score(pipeline, *IRIS, cv=3)
    assert scores.shape == (3,)
    assert scores.mean() > 0.6


@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_frames_of_any_columns(library: str) -> None:
    rows = mixed_rows()
    y = np.array([city == "Rome" for city in rows["city"]])
    frame = pl.DataFrame(rows).drop("y")
    if library == "pandas":
        import pandas as pd

        frame = pd.DataFrame({name: values for name, values in rows.items() if name != "y"})
    model = TunedMLPClassifier(trials=9, max_epochs=27).fit(frame, y)
    assert model.score(frame, y) > 0.9
    assert list(model.feature_names_in_) == ["number", "heavy", "flag", "city", "day"]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["heavy", "number", "flag", "city", "day"]])


def test_categories_that_pandas_calls_so() -> None:
    """1, 2, 3 and so on, where odd ones are of one class: as a quantity it is hard to learn."""
    codes = np.arange(240) % 8
    frame = pd.DataFrame({"kind": pd.Series(codes).astype("category"), "more": np.arange(240) * 37 % 101})
    model = TunedMLPClassifier(trials=9, max_epochs=27).fit(frame, codes % 2)
    assert model.model_.schema.of_kind("category") == ["kind"]
    assert model.score(frame, codes % 2) > 0.9
    np.testing.assert_array_equal(model.predict(frame.astype({"kind": float})), model.predict(frame))


def test_missing_values_of_pandas_types() -> None:
    y = np.arange(60) % 2
    texts = pd.Series(np.where(y, "yes", "no"), dtype="string").mask(np.arange(60) % 7 == 0)
    flags = pd.Series(y == 1, dtype="boolean").mask(np.arange(60) % 5 == 0)
    frame = pd.DataFrame({"text": texts, "flag": flags})
    model = TunedMLPClassifier(trials=9, max_epochs=27).fit(frame, y)
    assert [column.kind for column in model.model_.schema.columns] == ["category", "boolean"]
    assert model.score(frame, y) > 0.9


def test_missing_values() -> None:
    X = IRIS[0].copy()
    X[::7, 2] = np.nan
    assert TunedMLPClassifier(trials=9, max_epochs=27).fit(X, IRIS[1]).score(X, IRIS[1]) > 0.8


def test_uneven_classes() -> None:
    y = np.zeros(60, dtype=int)
    y[0] = 1
    X = np.random.default_rng(0).normal(size=(60, 2))
    model = TunedMLPClassifier(**SMALL).fit(X, y)
    assert set(model.predict(X)) <= {0, 1}
    assert model.predict_proba(X).shape == (60, 2)


def test_the_seed_decides() -> None:
    X, y = make_classification(60, random_state=0)
    first, again, other = (TunedMLPClassifier(**SMALL, random_state=s).fit(X, y) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.predict_proba(X), again.predict_proba(X))
    assert not np.array_equal(first.predict_proba(X), other.predict_proba(X))


def test_copied_and_pickled() -> None:
    model = TunedMLPClassifier(**SMALL).fit(*IRIS)
    assert clone(model).get_params() == model.get_params()
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_proba(IRIS[0]), model.predict_proba(IRIS[0]))


def test_torch_is_left_as_it_was() -> None:
    torch.set_num_threads(2)
    TunedMLPClassifier(**SMALL).fit(*IRIS)
    assert torch.get_num_threads() == 2


def test_a_time_budget_and_an_ensemble() -> None:
    model = TunedMLPClassifier(minutes=0.05, max_epochs=9, ensemble=True).fit(*IRIS)
    assert len(model.model_.networks) >= 1
    assert model.score(*IRIS) > 0.6


def test_several_workers() -> None:
    model = TunedMLPClassifier(**SMALL, workers=2).fit(*IRIS)
    alone = TunedMLPClassifier(**SMALL).fit(*IRIS)
    np.testing.assert_allclose(model.predict_proba(IRIS[0]), alone.predict_proba(IRIS[0]), atol=1e-3)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.ones((3, 2)), [0, 1, 0], "n_samples=3: a search needs at least 4 rows"),
        (np.ones((20, 2)), [0, 1] * 10, "no feature column is left"),
        (np.full((20, 2), np.inf), [0, 1] * 10, "infinity"),
        (np.random.default_rng(0).normal(size=(20, 2)), [0] * 20, "only one class"),
    ],
)
def test_bad_input(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TunedMLPClassifier(**SMALL).fit(X, y)


@pytest.mark.parametrize(
    ("columns", "y", "message"),
    [
        ({"a": pd.period_range("2020-01", periods=20, freq="M")}, [0, 1] * 10, r"column 'a' holds period\[M\]"),
        ({"a": [np.inf, 1.0] * 10}, [0, 1] * 10, "^X: column 'a' has 10 infinite of 20 values"),
        ({"a": range(20)}, [None, "yes"] * 10, "y holds missing values"),
        ({"a": range(20)}, pd.Series([pd.NA, "yes"] * 10, dtype=object), "y holds missing values"),
        ({"a": range(20), "b": range(20)}, [0, 1] * 10, "several columns named 'a'"),
    ],
)
def test_bad_frames(columns: dict[str, Any], y: Any, message: str) -> None:
    frame = pd.DataFrame(columns).rename(columns={"b": "a"})
    with pytest.raises(ValueError, match=message):
        TunedMLPClassifier(**SMALL).fit(frame, pd.Series(y))


@pytest.mark.parametrize(("estimator", "metric"), [(TunedMLPClassifier, "rmse"), (TunedMLPRegressor, "wrongness")])
def test_a_metric_of_another_kind_of_target(estimator: Any, metric: str) -> None:
    with pytest.raises(ValueError, match=f"metric: '{metric}' is none for"):
        estimator(**SMALL, metric=metric).fit(*IRIS)


def test_nothing_else_is_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TunedMLP'"):
        _ = tuner.TunedMLP
