from pathlib import Path

import numpy as np
import pytest

import tuner.data
from tests.data.studies import study, write_npz
from tuner.data import Rows, load_final_data, load_table, load_training_data, split_rows, summarize
from tuner.data.sealed import open_test
from tuner.errors import DataError
from tuner.spec import StudySpec


def rows_of_test(spec: StudySpec, root: Path) -> Rows:
    return open_test(spec, root, {"standard": load_final_data(spec, root, "standard").preprocessing})["standard"]


@pytest.mark.parametrize(("task", "metric"), [("classification", "error"), ("regression", "rmse")])
def test_test_rows_are_preprocessed_with_the_train_fit(task: str, metric: str, tmp_path: Path) -> None:
    features, target = write_npz(tmp_path / "t.npz", task)
    spec = study("t.npz", metric)
    data, test = load_training_data(spec, tmp_path), rows_of_test(spec, tmp_path)
    split = split_rows(load_table(spec.data, spec.task, tmp_path).target, spec.task, None, spec.study.seed)
    mean, sd = features[split.train].mean(axis=0), features[split.train].std(axis=0)
    assert len(test) == len(split.test) == 12
    assert test.x.dtype == np.float32
    assert test.x.flags.c_contiguous
    np.testing.assert_allclose(test.x, (features[split.test] - mean) / sd, rtol=1e-5, atol=1e-6)
    assert test.y.dtype == data.only.train.y.dtype
    np.testing.assert_allclose(test.y * data.only.target_sd + data.only.target_mean, target[split.test], rtol=1e-5)


def test_the_three_parts_are_the_whole_table(tmp_path: Path) -> None:
    features, _ = write_npz(tmp_path / "t.npz", "regression")
    spec = study("t.npz", "rmse")
    data, test = load_training_data(spec, tmp_path), rows_of_test(spec, tmp_path)
    pieces = np.concatenate([data.only.train.x, data.only.val.x, test.x])
    assert len(np.unique(pieces, axis=0)) == len(pieces) == len(features)


def test_opening_is_repeatable(tmp_path: Path) -> None:
    write_npz(tmp_path / "t.npz", "classification")
    first, again = (rows_of_test(study("t.npz"), tmp_path) for _ in range(2))
    np.testing.assert_array_equal(first.x, again.x)
    np.testing.assert_array_equal(first.y, again.y)


def test_the_room_does_not_hand_it_out() -> None:
    assert not {"open_test", "prepare", "Prepared"} & {*tuner.data.__all__, *vars(tuner.data)}


def test_bad_data_is_refused_as_elsewhere(tmp_path: Path) -> None:
    messages = set()
    for opens in (rows_of_test, load_training_data, summarize):
        with pytest.raises(DataError, match="no such file") as caught:
            opens(study("none.npz"), tmp_path)
        messages.add(str(caught.value))
    assert len(messages) == 1
