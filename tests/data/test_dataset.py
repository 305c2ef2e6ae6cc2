import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.data.studies import study, write_npz
from tuner.data import Split, View, load_final_data, load_table, load_training_data, split_rows, summarize
from tuner.errors import DataError
from tuner.spec import StudySpec
from tuner.trial import Task


def split_of(spec: StudySpec, root: Path) -> dict[str, np.ndarray]:
    """Row numbers of each part."""
    target = load_table(spec.data, spec.task, root).target
    split = split_rows(target, spec.task, spec.data.split, spec.study.seed)
    return {"train": split.train, "val": split.val, "test": split.test}


def same(first: View, second: View, parts: tuple[str, ...] = ("train", "val")) -> bool:
    return all(
        np.array_equal(getattr(getattr(first, part), name), getattr(getattr(second, part), name))
        for part in parts
        for name in ("x", "y")
    )


def arrays(value: object) -> list[np.ndarray]:
    """Every array that can be reached through the fields of dataclasses, and the memory that each is a view of."""
    if isinstance(value, np.ndarray):
        return [value, *arrays(value.base)]
    if isinstance(value, Mapping):
        return [a for item in value.values() for a in arrays(item)]
    if dataclasses.is_dataclass(value):
        return [a for field in dataclasses.fields(value) for a in arrays(getattr(value, field.name))]
    return []


def test_classification() -> None:
    data = load_training_data(study("sklearn:wine"), Path())
    assert (len(data.only.train), len(data.only.val)) == (106, 36)
    assert data.task == "classification"
    assert data.n_features == 13
    assert data.n_outputs == 3
    assert data.classes == ("class_0", "class_1", "class_2")
    assert (data.only.target_mean, data.only.target_sd) == (0.0, 1.0)
    for rows in (data.only.train, data.only.val):
        assert rows.x.shape == (len(rows), 13)
        assert rows.x.dtype == np.float32
        assert rows.x.flags.c_contiguous
        assert rows.y.dtype == np.int64
        assert set(rows.y) == {0, 1, 2}
    np.testing.assert_allclose(data.only.train.x.mean(axis=0), 0, atol=1e-6)


def test_regression() -> None:
    spec = study("sklearn:diabetes", "rmse")
    data = load_training_data(spec, Path())
    assert data.n_outputs == 1
    assert data.classes == ()
    assert data.only.train.y.dtype == data.only.val.y.dtype == np.float32
    assert data.only.train.y.shape == (len(data.only.train),)
    table, split = load_table(spec.data, spec.task, Path()), split_of(spec, Path())
    for rows, part in ((data.only.train, "train"), (data.only.val, "val")):
        np.testing.assert_allclose(
            rows.y * data.only.target_sd + data.only.target_mean, table.target[split[part]], rtol=1e-5
        )


def test_rows_keep_their_targets(tmp_path: Path) -> None:
    features, target = write_npz(tmp_path / "t.npz", "classification")
    spec = study("t.npz")
    data, split = load_training_data(spec, tmp_path), split_of(spec, tmp_path)
    mean, sd = features[split["train"]].mean(axis=0), features[split["train"]].std(axis=0)
    for rows, part in ((data.only.train, "train"), (data.only.val, "val")):
        np.testing.assert_allclose(rows.x, (features[split[part]] - mean) / sd, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(rows.y, target[split[part]])


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_equal_specs_give_equal_rows(task: Task, tmp_path: Path) -> None:
    write_npz(tmp_path / "t.npz", task)
    metric = "error" if task == "classification" else "rmse"
    first, again = (load_training_data(study("t.npz", metric, seed=5), tmp_path) for _ in range(2))
    assert same(first.only, again.only)
    assert (first.data_digest, first.split_digest) == (again.data_digest, again.split_digest)
    other = load_training_data(study("t.npz", metric, seed=6), tmp_path)
    assert not same(first.only, other.only)
    assert first.data_digest == other.data_digest
    assert first.split_digest != other.split_digest


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("changed", ["val", "test"])
def test_nothing_is_fitted_on_other_rows(changed: str, task: Task, tmp_path: Path) -> None:
    features, target = write_npz(tmp_path / "t.npz", task)
    spec = study("t.npz", "error" if task == "classification" else "rmse")
    before, split = load_training_data(spec, tmp_path), split_of(spec, tmp_path)
    features[split[changed]] += 1000
    if task == "regression":  # classes stay, or the stratified split would be another one
        target[split[changed]] -= 1000
    np.savez(tmp_path / "t.npz", X=features, y=target)
    after = load_training_data(spec, tmp_path)
    assert after.split_digest == before.split_digest
    assert after.data_digest != before.data_digest
    assert (after.only.target_mean, after.only.target_sd) == (before.only.target_mean, before.only.target_sd)
    assert same(before.only, after.only, ("train",))
    assert same(before.only, after.only, ("val",)) == (changed == "test")


def test_what_is_fitted_moves_with_the_train_rows(tmp_path: Path) -> None:
    """The negative control of the test above: it would notice."""
    features, target = write_npz(tmp_path / "t.npz", "regression")
    spec = study("t.npz", "rmse")
    before, split = load_training_data(spec, tmp_path), split_of(spec, tmp_path)
    features[split["train"][0]] += 1000
    target[split["train"][0]] -= 1000
    np.savez(tmp_path / "t.npz", X=features, y=target)
    after = load_training_data(spec, tmp_path)
    assert after.only.target_mean != before.only.target_mean
    assert not np.array_equal(after.only.val.x, before.only.val.x)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_no_test_row_is_within_reach(task: Task, tmp_path: Path) -> None:
    features, _ = write_npz(tmp_path / "t.npz", task)
    spec = study("t.npz", "error" if task == "classification" else "rmse")
    data, split = load_training_data(spec, tmp_path), split_of(spec, tmp_path)
    mean, sd = features[split["train"]].mean(axis=0), features[split["train"]].std(axis=0)
    found = arrays(data)
    assert len(found) >= 4
    assert {len(array) for array in found} == {len(split["train"]), len(split["val"])}

    def present(rows: np.ndarray) -> list[bool]:
        """Whether each of these rows, as read or standardised, is in any matrix of the data."""
        matrices = [a for a in found if a.ndim == 2]
        return [
            any(
                np.isclose(m, form, rtol=1e-4, atol=1e-5).all(axis=1).any()
                for m in matrices
                for form in (r, (r - mean) / sd)
            )
            for r in rows
        ]

    assert not any(present(features[split["test"]]))
    assert all(present(features[split["train"]]))
    assert all(present(features[split["val"]]))


def test_summary_of_classes() -> None:
    spec = study("sklearn:breast_cancer")
    summary, data = summarize(spec, Path()), load_training_data(spec, Path())
    assert (summary.source, summary.rows, summary.features, summary.task) == (
        "sklearn:breast_cancer",
        569,
        30,
        "classification",
    )
    assert summary.stratified
    assert (summary.n_train, summary.n_val, summary.n_test) == (341, 114, 114)
    assert list(summary.class_counts) == ["malignant", "benign"]
    totals = np.array(list(summary.class_counts.values())).sum(axis=0).tolist()
    assert totals == [341, 114, 114]
    assert sum(summary.class_counts["malignant"]) == 212
    assert summary.class_counts["malignant"][:2] == (
        int((data.only.train.y == 0).sum()),
        int((data.only.val.y == 0).sum()),
    )
    assert summary.target_mean is summary.target_sd is summary.target_min is summary.target_max is None
    assert (summary.data_digest, summary.split_digest) == (data.data_digest, data.split_digest)


def test_summary_of_a_quantity(tmp_path: Path) -> None:
    features, target = write_npz(tmp_path / "t.npz", "regression")
    spec = study("t.npz", "mae")
    split = split_of(spec, tmp_path)
    target[split["test"]] = 1e6  # no statistic may show it
    np.savez(tmp_path / "t.npz", X=features, y=target)
    summary, train = summarize(spec, tmp_path), target[split["train"]]
    assert summary.class_counts == {}
    assert not summary.stratified
    assert summary.target_name == "y"
    assert summary.target_mean == pytest.approx(train.mean())
    assert summary.target_sd == pytest.approx(train.std())
    assert (summary.target_min, summary.target_max) == (train.min(), train.max())


def test_the_message_names_the_class(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", X=np.arange(21.0)[:, None], y=["ham"] * 20 + ["spam"])
    with pytest.raises(DataError, match="class 'spam' has 1 row"):
        load_training_data(study("t.npz"), tmp_path)
    unstratified = {"train": 0.6, "val": 0.2, "test": 0.2, "stratify": False}
    assert load_training_data(study("t.npz", split=unstratified), tmp_path).n_outputs == 2


def mixed_rows(n: int = 120) -> dict[str, list[Any]]:
    """A table of every kind of column, with missing values."""
    rng = np.random.default_rng(3)
    missing = rng.random(n) < 0.2
    return {
        "number": [None if gone else float(v) for gone, v in zip(missing, rng.normal(size=n), strict=True)],
        "heavy": np.exp(rng.normal(size=n) * 3).tolist(),
        "flag": (rng.random(n) < 0.5).tolist(),
        "city": rng.choice(["Paris", "Rome", "Oslo"], size=n).tolist(),
        "day": [f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in rng.integers(0, 300, size=n)],
        "y": rng.choice(["yes", "no"], size=n).tolist(),
    }


@pytest.mark.parametrize("scaling", ["standard", "robust", "quantile", "piecewise"])
def test_nothing_is_fitted_on_other_rows_of_any_kind(scaling: str, tmp_path: Path) -> None:
    """Validation and test rows are replaced by rows that would change every kind of column, were they looked at."""
    rows = mixed_rows()
    path = tmp_path / "t.csv"
    pl.DataFrame(rows).write_csv(path)
    spec = study("t.csv", target="y", scaling=scaling)
    before, split = load_training_data(spec, tmp_path).only, split_of(spec, tmp_path)
    strange = {"number": "unknown", "heavy": "-1e9", "flag": "perhaps", "city": "Atlantis", "day": "never"}
    for part in ("val", "test"):
        changed = {name: [str(v) if v is not None else "" for v in values] for name, values in rows.items()}
        for row in split[part]:
            for name, value in strange.items():
                changed[name][row] = value
        pl.DataFrame(changed).write_csv(path)
        after = load_training_data(spec, tmp_path).only
        np.testing.assert_array_equal(after.train.x, before.train.x)
        np.testing.assert_array_equal(after.train.y, before.train.y)
        assert np.array_equal(after.val.x, before.val.x) == (part == "test")
        assert np.isfinite(after.val.x).all()
    changed["city"][split["train"][0]] = "Atlantis"  # and one train row does change it
    changed["heavy"][split["train"][0]] = "1e9"
    pl.DataFrame(changed).write_csv(path)
    assert not np.array_equal(load_training_data(spec, tmp_path).only.train.x, before.train.x)


def test_views(tmp_path: Path) -> None:
    """One view for each scaling and fold, each fitted on its own train rows and of the same width."""
    rows = mixed_rows()
    rows["city"] = ["Bern" if i % 24 == 0 else city for i, city in enumerate(rows["city"])]  # 5 rows: rare in a fold
    pl.DataFrame(rows).write_csv(tmp_path / "t.csv")
    spec = study("t.csv", target="y", scaling={"choices": ["robust", "quantile"]}, split={"folds": 3})
    data = load_training_data(spec, tmp_path)
    assert set(data.views) == {(scaling, fold) for scaling in ("robust", "quantile") for fold in range(3)}
    assert data.folds == 3
    for (scaling, _), view in data.views.items():
        assert view.train.x.shape[1] == view.val.x.shape[1] == data.n_features
        assert len(view.train) + len(view.val) == 96
        assert (np.abs(view.train.x).max() <= 3) == (scaling == "robust")
    assert not np.array_equal(data.views["robust", 0].train.x[:5], data.views["robust", 1].train.x[:5])


def test_views_of_unlike_features(tmp_path: Path) -> None:
    pl.DataFrame(mixed_rows()).write_csv(tmp_path / "t.csv")
    spec = study("t.csv", target="y", scaling={"choices": ["standard", "piecewise"]}, split={"folds": 3})
    data = load_training_data(spec, tmp_path)
    widths = {(scaling, fold): view.train.x.shape[1] for (scaling, fold), view in data.views.items()}
    assert len({widths["standard", fold] for fold in range(3)}) == len({widths["piecewise", f] for f in range(3)}) == 1
    assert widths["standard", 0] < widths["piecewise", 0] == data.n_features


def test_final_data_of_all_development_rows(tmp_path: Path) -> None:
    features, _ = write_npz(tmp_path / "t.npz", "regression")
    spec = study("t.npz", "rmse", split={"folds": 4})
    final = load_final_data(spec, tmp_path, "standard")
    split = split_of_folds(spec, tmp_path)
    assert final.validation_rows == len(final.data.only.train) == len(split.development) == 48
    mean, sd = features[split.development].mean(axis=0), features[split.development].std(axis=0)
    np.testing.assert_allclose(final.data.only.train.x, (features[split.development] - mean) / sd, rtol=1e-5, atol=1e-5)


def split_of_folds(spec: StudySpec, root: Path) -> Split:
    return split_rows(load_table(spec.data, spec.task, root).target, spec.task, spec.data.split, spec.study.seed)


def test_summary_of_any_table(tmp_path: Path) -> None:
    rows = {**mixed_rows(), "id": list(range(120)), "same": [1] * 120}
    pl.DataFrame(rows).write_csv(tmp_path / "t.csv")
    summary = summarize(study("t.csv", target="y", split={"time": "day"}), tmp_path)
    assert summary.columns == {"numeric": 3, "boolean": 1, "category": 1, "date": 1}
    assert summary.dealt == "by time 'day'"
    assert [note.split(":")[0] for note in summary.notes] == ["column 'id'", "column 'same'"]


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("name", ["X", "y"])
def test_a_row_too_far_out_is_refused_before_there_is_a_study(name: str, part: str, tmp_path: Path) -> None:
    """Where only a scaling that some trial has cannot take it, and where the evaluation alone would meet it, too."""
    features, target = write_npz(tmp_path / "t.npz", "regression")
    spec = study("t.npz", "rmse", scaling={"choices": ["robust", "standard"]})
    row = int(split_of(spec, tmp_path)[part][2])
    summarize(spec, tmp_path)
    (target if name == "y" else features[:, 1])[row] = 1e130
    np.savez(tmp_path / "t.npz", X=features, y=target)
    called = "target 'y'" if name == "y" else "column 'x1'"
    with pytest.raises(DataError, match=rf"^{called} cannot be standardised: 1e\+130 in row {row + 1} "):
        summarize(spec, tmp_path)
