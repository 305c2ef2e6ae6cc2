from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.data.test_dataset import mixed_rows
from tuner import recipe
from tuner.data import Schema, load_training_data, split_rows
from tuner.errors import DataError, SpecMismatchError
from tuner.learning.lanes import Pack
from tuner.manager import StudyManager
from tuner.plan import create_study
from tuner.recipe import epochs_a_second, name_of, study_of_table, write_recipe
from tuner.spec import parse_spec


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
        scaling = write_recipe("t.csv", "y", root=tmp_path).content["data"]["scaling"]
    assert scaling == ({"choices": ["robust", "piecewise"]} if encodes else "robust")


@pytest.mark.parametrize(
    ("far", "others", "standard"),
    [
        (40.0, 1.0, False),
        (6.0, 1.0, False),  # 36 / (299 + 36) of the column's squares
        (5.5, 1.0, True),  # 30 / (299 + 30)
        (1e300, 1.0, False),
        (1e300, 1e300, True),
    ],
)
def test_numbers_of_which_one_is_far_off_are_clipped(far: float, others: float, standard: bool, tmp_path: Path) -> None:
    """The far row is one of the train rows, and there are 300 of them."""
    rows = 500
    train = split_rows(np.arange(rows) % 2, "classification", None, 0).train
    values = np.where(np.arange(rows) % 4 < 2, others, -others)
    values[train[0]] = far
    frame = pl.DataFrame({"a\n": values, "b": np.arange(rows) % 7, "y": np.arange(rows) % 2})
    frame.write_parquet(tmp_path / "t.parquet")
    written = write_recipe("t.parquet", "y", root=tmp_path)
    assert written.content["data"]["scaling"] == ({"choices": ["robust", "standard"]} if standard else "robust")
    assert ('of the variance of "a\\n"' in written.text) == (not standard)


@pytest.mark.parametrize("drop", [True, False])
def test_a_far_number_in_a_column_that_is_left_out_clips_nothing(drop: bool, tmp_path: Path) -> None:
    train = split_rows(np.arange(500) % 2, "classification", None, 0).train
    identifiers = np.arange(500)
    identifiers[train[0]] = 1_000_000
    frame = pl.DataFrame({"row_id": identifiers, "b": np.arange(500) % 7, "y": np.arange(500) % 2})
    frame.write_parquet(tmp_path / "t.parquet")
    data = write_recipe("t.parquet", "y", root=tmp_path, drop=drop).content["data"]
    assert data.get("drop", []) == (["row_id"] if drop else [])
    assert data["scaling"] == ({"choices": ["robust", "standard"]} if drop else "robust")


def test_a_far_row_that_is_not_trained_on_is_not_looked_at(tmp_path: Path) -> None:
    values = np.where(np.arange(500) % 4 < 2, 1.0, -1.0)
    held_out = split_rows(np.arange(500) % 2, "classification", None, 0)
    values[held_out.val] = values[held_out.test] = 1e9
    pl.DataFrame({"a": values, "y": np.arange(500) % 2}).write_parquet(tmp_path / "t.parquet")
    scaling = write_recipe("t.parquet", "y", root=tmp_path).content["data"]["scaling"]
    assert scaling == {"choices": ["robust", "standard"]}


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


@pytest.mark.parametrize(
    ("rows", "widest", "batch_sizes"),
    [(120, 128, [32]), (4_000, 512, [32, 64, 128, 256]), (50_000, 512, [256, 512])],
)
def test_the_ranges_follow_the_number_of_rows(rows: int, widest: int, batch_sizes: list[int], tmp_path: Path) -> None:
    pl.DataFrame({"a": np.arange(rows) % 97, "y": np.arange(rows) % 2}).write_parquet(tmp_path / "t.parquet")
    space = write_recipe("t.parquet", "y", root=tmp_path).content["space"]
    assert space["batch_size"] == {"choices": batch_sizes}
    assert space["width"] == {"low": widest // 8, "high": widest, "log": True}


def test_where_a_factor_counts_the_scale_is_logarithmic(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv")
    space = write_recipe("t.csv", "y", root=tmp_path).content["space"]
    assert {name for name, domain in space.items() if domain.get("log")} == {"learning_rate", "weight_decay", "width"}


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


@pytest.mark.parametrize(("speed", "epochs"), [(0.01, 9), (9.5, 18), (20.0, 27), (1e6, 81)])
def test_trials_are_as_long_as_the_time_allows(
    speed: float, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(tmp_path / "t.csv")
    monkeypatch.setattr(recipe, "epochs_a_second", lambda *_, **__: speed)
    spec = write_recipe("t.csv", "y", root=tmp_path, minutes=1, workers=1).spec
    assert spec.training.max_epochs == epochs
    assert spec.search.min_epochs == epochs // 9
    assert spec.search.minutes == 1
    assert spec.search.trials is None


@pytest.mark.parametrize(("asked", "first"), [(1, 1), (20, 2), (90, 10)])
def test_trials_of_a_length_that_is_asked_for_are_judged_at_a_ninth_of_it(
    asked: int, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is measured."""
    write_table(tmp_path / "t.csv")
    monkeypatch.delattr(recipe, "epochs_a_second")
    with StudyManager(f"sqlite:///{tmp_path}/t.db") as manager:
        spec, _ = study_of_table(manager, tmp_path / "t.csv", "y", minutes=1.0, max_epochs=asked)
    assert (spec.training.max_epochs, spec.search.min_epochs) == (asked, first)


def test_the_speed_is_measured(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv")
    spec = write_recipe("t.csv", "y", root=tmp_path).spec
    speed = epochs_a_second(spec, tmp_path, device="cpu")
    assert np.isfinite(speed)
    assert speed > 0


OF_30_STEPS = parse_spec(
    {
        "study": {"name": "s", "metric": "error"},
        "data": {"source": "sklearn:iris"},
        "search": {"trials": 8},
        "space": {"learning_rate": {"low": 1e-3, "high": 1e-2}, "batch_size": 3, "width": 4, "depth": 1},
    }
)


class Clock:
    """A clock that only training moves: by a second in each micro-step, of which it counts all."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        original = Pack._train_step

        def step(pack: Pack, *words: Any) -> None:
            self.steps += 1
            original(pack, *words)

        patch.setattr(Pack, "_train_step", step)
        patch.setattr(recipe, "time", SimpleNamespace(perf_counter=lambda: float(self.steps)))


@pytest.mark.parametrize(("seconds", "steps"), [(1e6, 60), (40.0, 42), (0.0, 2)])
def test_measuring_gives_up_an_epoch_that_is_too_long(
    seconds: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight lanes in one pack, two epochs of 30 micro-steps: the speed is the same wherever they are given up."""
    monkeypatch.setattr(recipe, "MEASURED_S", seconds)
    monkeypatch.setattr(recipe, "plan_packs", lambda tasks, _: [tasks])
    clock = Clock(monkeypatch)
    assert epochs_a_second(OF_30_STEPS, Path(), device="cpu") == pytest.approx(8 / 30)
    assert clock.steps == steps


def test_measuring_all_packs_takes_three_times_as_long_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of packs that each end in time: here of a lane each, of 30 seconds an epoch."""
    monkeypatch.setattr(recipe, "MEASURED_S", 61.0)
    monkeypatch.setattr(recipe, "plan_packs", lambda tasks, _: [[task] for task in tasks])
    clock = Clock(monkeypatch)
    assert epochs_a_second(OF_30_STEPS, Path(), device="cpu") == pytest.approx(1 / 30)
    assert clock.steps == 180 <= 3 * 61


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


def test_a_file_of_the_same_name_in_another_folder_is_another_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    write_table(tmp_path / "a" / "t.csv")
    write_table(tmp_path / "b" / "t.csv", y=["yes", "no"] * 60)
    with StudyManager(f"sqlite:///{tmp_path}/t.db") as manager:
        spec, root = study_of_table(manager, tmp_path / "a" / "t.csv", "y", trials=3)
        create_study(manager, spec, root)
        with pytest.raises(SpecMismatchError, match=f"data.source: {tmp_path}/a/t.csv -> {tmp_path}/b/t.csv"):
            study_of_table(manager, tmp_path / "b" / "t.csv", "y")
        monkeypatch.chdir(tmp_path / "b")
        with pytest.raises(SpecMismatchError, match="'t' exists with another spec; use another name"):
            study_of_table(manager, Path("t.csv"), "y")
        (tmp_path / "link").symlink_to("a")
        for same in (Path("../a/t.csv"), tmp_path / "link" / "t.csv", tmp_path / "a" / "t.csv"):
            found, root = study_of_table(manager, same, "y")
            assert (found, create_study(manager, found, root)) == (spec, False)
        with monkeypatch.context() as patch:  # where workers find their copy
            patch.setenv("TUNER_DATA_ROOT", str(tmp_path / "b"))
            assert study_of_table(manager, tmp_path / "a" / "t.csv", "y")[0] == spec

        (tmp_path / "a").rename(tmp_path / "moved")
        with pytest.raises(DataError, match="changed since it was created"):
            create_study(manager, *study_of_table(manager, tmp_path / "b" / "t.csv", "y"))
        found, root = study_of_table(manager, tmp_path / "moved" / "t.csv", "y")
        assert (found, create_study(manager, found, root)) == (spec, False)
        assert manager.data_root("t") == tmp_path / "moved"


@pytest.mark.parametrize("target", ['say "yes"', "back\\slash", "🎯 ü", "a\x7fb", "tab\there", "='x' # no comment"])
def test_any_column_name_can_be_written_down(target: str, tmp_path: Path) -> None:
    n = 60
    pl.DataFrame({"x": np.arange(n) % 7, f"{target} id": np.arange(n), target: np.arange(n) % 2}).write_parquet(
        tmp_path / "t.parquet"
    )
    data = write_recipe("t.parquet", target, root=tmp_path).spec.data
    assert (data.target, data.drop) == (target, (f"{target} id",))
