"""Corruptions: each spoils what it says, the same again and again, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.data.studies import study
from tuner.data import load_training_data, summarize
from tuner.data._prepare import Prepared, prepare
from tuner.errors import DataError

KINDS = ["random_labels", "shuffled_pixels", "random_pixels", "gaussian_inputs"]


def digits(corrupt: Any = None, **data: Any) -> Prepared:
    return prepare(study("sklearn:digits", **({"corrupt": corrupt} if corrupt else {}), **data), Path())


def features(prepared: Prepared) -> np.ndarray:
    return prepared.table.frame.to_numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_repeatable_and_seeded(kind: str) -> None:
    first, again, other = digits(kind), digits(kind), digits({"kind": kind, "seed": 1})
    assert first.table.digest == again.table.digest
    assert len({digits().table.digest, first.table.digest, other.table.digest}) == 3
    assert first.split.digest == digits().split.digest
    assert f"note: {summarize(first.spec, Path()).notes[0]}".startswith("note: corrupted on purpose: ")


def test_random_labels_are_random_where_trained_and_true_where_held_out() -> None:
    true, spoiled = digits(), digits("random_labels")
    held_out = np.concatenate([spoiled.split.val, spoiled.split.test])
    np.testing.assert_array_equal(spoiled.table.target[held_out], true.table.target[held_out])
    train = spoiled.split.train
    kept = (spoiled.table.target[train] == true.table.target[train]).mean()
    assert abs(kept - 0.1) < 4 * np.sqrt(0.09 / len(train)), "a random class is the true one as often as any other"
    counts = np.bincount(spoiled.table.target[train], minlength=10)
    assert counts.min() > 0.6 * len(train) / 10
    np.testing.assert_array_equal(features(spoiled), features(true))


def test_a_fraction_spoils_its_share_and_a_larger_one_more_of_the_same() -> None:
    true = digits().table.target
    changed = [
        np.flatnonzero(digits({"kind": "random_labels", "fraction": f}).table.target != true) for f in (0, 0.3, 0.7)
    ]
    assert len(changed[0]) == 0
    rows = len(digits().split.train)
    assert abs(len(changed[1]) / rows - 0.3 * 0.9) < 4 * np.sqrt(0.27 * 0.73 / rows)
    assert set(changed[1]) < set(changed[2])


def test_with_folds_every_row_that_is_trained_on_is_spoiled() -> None:
    split = {"folds": 3, "test": 0.2}
    true, spoiled = digits(split=split), digits("random_labels", split=split)
    changed = spoiled.table.target != true.table.target
    assert not changed[spoiled.split.test].any()
    assert all(changed[val].mean() > 0.8 for _, val in spoiled.split.folds)


def test_numbers_are_dealt_anew() -> None:
    true = prepare(study("sklearn:diabetes", "rmse"), Path())
    spoiled = prepare(study("sklearn:diabetes", "rmse", corrupt="random_labels"), Path())
    train = spoiled.split.train
    np.testing.assert_array_equal(np.sort(spoiled.table.target[train]), np.sort(true.table.target[train]))
    assert abs(np.corrcoef(spoiled.table.target[train], true.table.target[train])[0, 1]) < 0.25


def test_pixels_move_within_their_rows() -> None:
    true, one, each = (features(digits(kind)) for kind in (None, "shuffled_pixels", "random_pixels"))
    for moved in (one, each):
        np.testing.assert_array_equal(np.sort(moved, axis=1), np.sort(true, axis=1))
        assert (moved != true).any(1).all()
    columns = {tuple(column) for column in true.T}
    assert {tuple(column) for column in one.T} == columns, "one permutation keeps every column whole"
    assert {tuple(column) for column in each.T} != columns


def test_gaussian_inputs_keep_means_and_variances() -> None:
    true, noise = features(digits()), features(digits("gaussian_inputs"))
    sd = true.std(0)
    assert (np.abs(noise.mean(0) - true.mean(0)) <= 4.5 * sd / np.sqrt(len(true)) + 1e-12).all()
    assert (np.abs(noise.std(0) - sd) <= 0.15 * sd + 1e-12).all()
    varied = sd > 0
    correlation = np.corrcoef(noise[:, varied].T) - np.eye(varied.sum())
    assert np.abs(correlation).max() < 0.15 < np.abs(np.corrcoef(true[:, varied].T) - np.eye(varied.sum())).max()


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({f"x{i}": rng.normal(size=40) for i in range(3)} | {"y": ["a", "b"] * 20, "none": [None] * 40})
    frame = frame.with_columns(
        x0=pl.when(pl.int_range(40) < 5).then(None).otherwise("x0"), none=pl.lit(None, pl.Float64)
    )
    frame.write_parquet(tmp_path / "t.parquet")
    for kind, missing in (("random_pixels", 45), ("shuffled_pixels", 45), ("gaussian_inputs", 40)):
        spoiled = prepare(study("t.parquet", target="y", corrupt=kind), tmp_path).table.frame
        assert sum(column.null_count() for column in spoiled) == missing


def test_text_cannot_be_moved(tmp_path: Path) -> None:
    pl.DataFrame({"colour": ["red", "blue"] * 10, "x": range(20), "y": ["a", "b"] * 10}).write_csv(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"^data.corrupt: random_pixels is for numbers; column 'colour' holds String"):
        load_training_data(study("t.csv", target="y", corrupt="random_pixels"), tmp_path)
    assert load_training_data(study("t.csv", target="y", corrupt="random_labels"), tmp_path).n_outputs == 2
