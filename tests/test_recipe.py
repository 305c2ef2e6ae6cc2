from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.data.test_dataset import mixed_rows
from tuner import recipe
from tuner.data import Schema, load_training_data
from tuner.errors import DataError, SpecMismatchError
from tuner.manager import StudyManager
from tuner.plan import create_study
from tuner.recipe import epochs_a_second, name_of, study_of_table, write_recipe


def write_table(path: Path, **more: Any) -> None:
    pl.DataFrame({**mixed_rows(), **more}).write_csv(path)


def test_a_recipe_is_a_study(tmp_path: Path) -> None:
    write_table(tmp_path / "my table.csv")
    written = write_recipe("my table.csv", "y", root=tmp_path)
    spec = written.spec
    assert spec.study.name == "my-table"
    assert spec.study.metric == "error"
    assert spec.search.trials == 200
    assert spec.fit_on == "train+val"
    assert load_training_data(spec, tmp_path).n_outputs == 2
    assert written.text.count("#") > 10  # it explains itself


@pytest.mark.parametrize(
    ("train", "rows", "encodes"), [(9_999, 20_000, False), (10_000, 20_000, True), (600_000, 1_000_000, False)]
)
def test_numbers_go_in_bins_where_there_are_rows_for_it_and_memory(
    train: int, rows: int, encodes: bool, tmp_path: Path
) -> None:
    schema = Schema.infer(pl.DataFrame(mixed_rows()).drop("y"), np.arange(60))
    assert recipe._encodes(schema, train, rows) == encodes
    text = Schema.infer(pl.DataFrame({"a": ["x", "y", "z"] * 20}), np.arange(60))
    assert not recipe._encodes(text, train, rows)
    write_table(tmp_path / "t.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "_encodes", lambda *_: encodes)
        choices = write_recipe("t.csv", "y", root=tmp_path).content["data"]["scaling"]["choices"]
    assert ("piecewise" in choices) == encodes


@pytest.mark.parametrize(
    ("values", "metric"),
    [
        (["a", "b"] * 60, "error"),
        ([True, False] * 60, "error"),
        ([0, 1, 2] * 40, "error"),
        (list(range(120)), "rmse"),
        ([0.5, 1.5] * 60, "rmse"),
        ([i // 2 for i in range(120)], "rmse"),  # 60 numbers of two rows each: hardly classes
        (["1", "2.5"] * 60, "error"),  # text that is no list of numbers in the file reads as one
    ],
)
def test_the_target_tells_the_task(values: list[Any], metric: str, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", y=values)
    expected = "rmse" if values[:2] == ["1", "2.5"] else metric
    assert write_recipe("t.csv", "y", root=tmp_path).spec.study.metric == expected


def test_a_metric_may_be_asked_for(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv")
    written = write_recipe("t.csv", "y", root=tmp_path, metric="log_loss")
    assert written.spec.study.metric == "log_loss"
    assert "label_smoothing" not in written.content["training"]  # it would spoil the probabilities


def test_what_only_names_rows_is_left_out(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", customer_id=list(range(120)))
    assert write_recipe("t.csv", "y", root=tmp_path).spec.data.drop == ("customer_id",)


def test_hints_for_dates_and_uneven_classes(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", y=["yes"] * 110 + ["no"] * 10)
    text = write_recipe("t.csv", "y", root=tmp_path).text
    assert '# split = { time = "day" }' in text
    assert "'no' in 8.3% of the rows: consider balanced_accuracy" in text


@pytest.mark.parametrize(("speed", "epochs"), [(0.01, 9), (20.0, 27), (1e6, 81)])
def test_trials_are_as_long_as_the_time_allows(
    speed: float, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(tmp_path / "t.csv")
    monkeypatch.setattr(recipe, "epochs_a_second", lambda *_, **__: speed)
    spec = write_recipe("t.csv", "y", root=tmp_path, minutes=1, workers=1).spec
    assert spec.training.max_epochs == epochs
    assert spec.search.minutes == 1
    assert spec.search.trials is None


def test_the_speed_is_measured(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv")
    spec = write_recipe("t.csv", "y", root=tmp_path).spec
    speed = epochs_a_second(spec, tmp_path, device="cpu")
    assert np.isfinite(speed)
    assert speed > 0


def test_no_table_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n1,x\n2,x\n3,x\n4,\n")
    with pytest.raises(DataError, match="target 'y' is missing in 1 of 4 rows"):
        write_recipe("t.csv", "y", root=tmp_path)


@pytest.mark.parametrize(
    ("source", "name"),
    [("a/b.csv.gz", "b"), ("sklearn:wine", "wine"), ("my data (2).csv", "my-data-2"), ("…", "study")],
)
def test_names(source: str, name: str) -> None:
    assert name_of(source) == name


def test_a_stored_study_goes_on_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured length of its trials may be another one each time; the stored study's counts."""
    write_table(tmp_path / "t.csv")
    monkeypatch.setattr(recipe, "epochs_a_second", lambda *_, **__: 20.0)
    with StudyManager(f"sqlite:///{tmp_path}/t.db") as manager:
        spec, root = study_of_table(manager, tmp_path / "t.csv", "y", minutes=1.0)
        create_study(manager, spec, root)
        monkeypatch.setattr(recipe, "epochs_a_second", lambda *_, **__: 1e6)
        assert study_of_table(manager, tmp_path / "t.csv", "y")[0] == spec
        assert study_of_table(manager, tmp_path / "t.csv", "y", minutes=1.0, seed=0)[0] == spec
        with pytest.raises(SpecMismatchError, match=r"search.minutes: 1.0 -> 2.0"):
            study_of_table(manager, tmp_path / "t.csv", "y", minutes=2.0)
        with pytest.raises(SpecMismatchError, match=r"data.target: y -> city"):
            study_of_table(manager, tmp_path / "t.csv", "city")
        other, _ = study_of_table(manager, tmp_path / "t.csv", "city", name="other", trials=7)
        assert (other.study.name, other.search.trials, other.search.minutes) == ("other", 7, None)


@pytest.mark.parametrize("target", ['say "yes"', "back\\slash", "🎯 ü", "a\x7fb", "tab\there", "='x' # no comment"])
def test_any_column_name_can_be_written_down(target: str, tmp_path: Path) -> None:
    n = 60
    pl.DataFrame({"x": np.arange(n) % 7, f"{target} id": np.arange(n), target: np.arange(n) % 2}).write_parquet(
        tmp_path / "t.parquet"
    )
    data = write_recipe("t.parquet", target, root=tmp_path).spec.data
    assert (data.target, data.drop) == (target, (f"{target} id",))
