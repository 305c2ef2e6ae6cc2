"""The shift check: rare false alarms on parts dealt at random, planted shifts found, targets never looked at."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.data.studies import study
from tuner.data import shift, split_rows
from tuner.data.shift import ShiftReport, check_shift, compare_inputs, holm

KINDS: dict[str, shift.Kind] = {
    "normal": "numeric",
    "count": "numeric",
    "gaps": "numeric",
    "shop": "category",
    "open": "boolean",
    "day": "date",
}


def table(rng: np.random.Generator, n: int) -> pl.DataFrame:
    """n rows of every kind of column: with ties, missing values and categories from common to unique."""
    return pl.DataFrame(
        {
            "normal": rng.normal(size=n),
            "count": rng.integers(0, 3, n).astype(float),
            "gaps": pl.Series(np.where(rng.random(n) < 0.2, np.nan, rng.exponential(size=n))).fill_nan(None),
            "shop": pl.Series([None if k == 1 else f"k{k}" for k in rng.zipf(1.5, n).clip(0, 400)]),
            "open": rng.random(n) < 0.3,
            "day": pl.Series(rng.integers(0, 10**15, n)).cast(pl.Datetime("us")),
        }
    )


def compared(rng: np.random.Generator, n: int = 300, changed: pl.DataFrame | None = None, seed: int = 0) -> ShiftReport:
    """60/20/20 of n rows; ``changed`` replaces the test rows."""
    frame = table(rng, n)
    train, validation, test = frame[: 3 * n // 5], frame[3 * n // 5 : 4 * n // 5], frame[4 * n // 5 :]
    return compare_inputs(
        {"train": train, "validation": validation, "test": test if changed is None else changed}, KINDS, seed=seed
    )


def false_alarms(repeats: int) -> float:
    return float(np.mean([compared(np.random.default_rng(seed), seed=seed).shifted for seed in range(repeats)]))


def test_parts_dealt_at_random_rarely_raise_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert false_alarms(10) == 0
    monkeypatch.setattr(shift, "CLASSIFIER_MIN_ROWS", 10**9)  # the column tests alone: more repeats a second
    assert false_alarms(200) <= 0.024, "the level is 1 %, two standard errors are 1.4 %"


def test_without_the_correction_alarms_would_be_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above: raw p-values of some 20 tests at 1 % each alarm far more often."""
    monkeypatch.setattr(shift, "CLASSIFIER_MIN_ROWS", 10**9)
    monkeypatch.setattr(shift, "holm", list)
    assert false_alarms(100) > 0.05


def test_rows_in_the_order_of_a_column_raise_no_alarm() -> None:
    """Parts dealt at random from a sorted table lie together and apart by turns, as it happens; a classifier that is
    judged on rows that were chosen by their place, as those it was trained on were, would be right about where.
    """
    frame, ps = pl.DataFrame({"number": np.arange(4000.0), "kind": ["a", "b", "c", "d"] * 1000}), []
    for seed in range(20):
        train, test = np.split(np.random.default_rng(seed).permutation(4000), [2000])
        frames: dict[shift.Part, pl.DataFrame] = {"train": frame[np.sort(train)], "test": frame[np.sort(test)]}
        ps += [c.p for c in compare_inputs(frames, {"number": "numeric", "kind": "category"}).classifiers]
    assert sum(p < 0.05 for p in ps) <= 3, "of 20; one is to be expected, and four in one of 60 such tests"


@pytest.mark.parametrize(
    ("column", "change", "test"),
    [
        ("normal", lambda f: f.with_columns(pl.col("normal") + 1.0), "distribution"),
        ("normal", lambda f: f.with_columns(pl.col("normal") * 2.5), "distribution"),
        ("shop", lambda f: f.with_columns(shop=pl.lit("new")), "categories"),
        ("gaps", lambda f: f.with_columns(gaps=pl.lit(None, pl.Float64)), "missing"),
        ("open", lambda f: f.with_columns(open=~pl.col("open")), "categories"),
        ("day", lambda f: f.with_columns(pl.col("day").dt.offset_by("10y")), "distribution"),
    ],
    ids=["mean", "spread", "category", "missing", "boolean", "date"],
)
def test_a_planted_shift_is_found_where_it_was_planted(column: str, change: object, test: str) -> None:
    rng = np.random.default_rng(3)
    assert callable(change)
    report = compared(rng, 600, changed=change(table(rng, 120)))
    found = {(c.column, c.parts, c.test) for c in report.columns if c.shifted}
    assert found == {(column, ("train", "test"), test), (column, ("validation", "test"), test)}
    assert column in report.sentence
    assert "what is tuned on validation may not hold on test" in report.sentence


def test_a_shift_that_no_single_column_shows_is_found_by_the_classifier() -> None:
    """Test rows have the same two marginals, but the columns agree instead of being independent."""
    rng = np.random.default_rng(0)
    frames = {part: pl.DataFrame({"a": rng.normal(size=800), "b": rng.normal(size=800)}) for part in shift.PARTS}
    same = compare_inputs(frames, {"a": "numeric", "b": "numeric"})
    frames["test"] = frames["test"].with_columns(b=pl.col("a") + 0.0)
    report = compare_inputs(frames, {"a": "numeric", "b": "numeric"})
    assert not same.shifted
    assert not any(c.shifted for c in report.columns)
    assert [(c.parts, c.shifted, c.auc > 0.8) for c in report.classifiers] == [
        (("train", "validation"), False, False),
        (("train", "test"), True, True),
        (("validation", "test"), True, True),
    ]
    assert "validation and test differ as a whole" in report.sentence


def test_large_tables_are_sampled_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "MAX_ROWS", 100)
    report = compared(np.random.default_rng(0), 600)
    assert (report.rows, report.sampled) == ({"train": 100, "validation": 100, "test": 100}, True)
    assert report.sentence.endswith("looked at 100 train, 100 validation, 100 test rows")
    assert report.as_dict() == compared(np.random.default_rng(0), 600).as_dict(), "the sample is seeded"


def test_a_split_by_time_makes_a_shift_likely() -> None:
    frame = pl.DataFrame({"t": np.arange(300.0)})
    parts = {"train": frame[:180], "validation": frame[180:240], "test": frame[240:]}
    report = compare_inputs(parts, {"t": "numeric"}, by_time=True)
    assert report.shifted
    assert "a split by time makes that likely: the test score then says how the model does on later rows" in (
        report.sentence
    )


def customers(path: Path, seed: int) -> None:
    """100 rows of each of 60 customers, and what is the same in all rows of one: where it lives and how old it is."""
    rng = np.random.default_rng(seed)
    customer = np.repeat(np.arange(60), 100)
    columns = {
        "customer": [f"c{i}" for i in customer],
        "town": np.array(["a", "b", "c"])[rng.integers(0, 3, 60)][customer],
        "age": rng.normal(size=60)[customer],
        "spent": rng.normal(size=6000),
        "y": rng.normal(size=6000),
    }
    pl.DataFrame(columns).write_parquet(path)


def test_groups_that_are_dealt_at_random_raise_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred rows of a customer are one sign of where it lives, not a hundred."""
    reports = []
    for seed in range(60):
        customers(tmp_path / "t.parquet", seed)
        spec = study("t.parquet", "rmse", target="y", split={"group": "customer"}, seed=seed)
        reports.append(check_shift(spec, tmp_path))
    assert sum(report.shifted for report in reports) <= 2, "one per cent; three in one of 40 such tests"
    assert all(report.rows == {"train": 36, "validation": 12, "test": 12} for report in reports)
    assert reports[0].sentence.endswith("; looked at 36 train, 12 validation, 12 test rows, one of each 'customer'")
    assert (reports[0].as_dict()["group"], reports[0].sampled) == ("customer", True)
    assert check_shift(spec, tmp_path).as_dict() == reports[-1].as_dict(), "which row of each, the seed says"

    monkeypatch.setattr(shift, "_one_of_each", lambda _, rows, __: rows)
    assert check_shift(spec, tmp_path).shifted, "the negative control: with all rows it would be one"


def test_a_shift_between_groups_is_found(tmp_path: Path) -> None:
    """What was measured differently for the customers that validate: one row of each is enough to see it."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"customer": np.repeat(np.arange(400), 3), "x": rng.normal(size=1200), "y": np.arange(1200) % 7}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    spec = study("t.parquet", "rmse", target="y", split={"group": "customer"})
    assert not check_shift(spec, tmp_path).shifted
    target = frame["y"].cast(pl.Float64).to_numpy()
    val = split_rows(target, "regression", spec.data.split, 0, by=frame["customer"]).val
    moved = frame.with_columns(x=pl.when(pl.int_range(1200).is_in(val)).then(pl.col("x") + 2).otherwise("x"))
    moved.write_parquet(tmp_path / "t.parquet")
    report = check_shift(spec, tmp_path)
    assert report.verdict.startswith("warning: train and validation differ in x")
    assert {c.column for c in report.columns if c.shifted} == {"x"}


def test_of_folds_the_first_is_compared(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", X=np.arange(300.0)[:, None], y=np.arange(300.0))
    report = check_shift(study("t.npz", "rmse", split={"folds": 4, "test": 0.2}), tmp_path)
    assert report.rows == {"train": 180, "validation": 60, "test": 60}


def test_holm_against_its_definition() -> None:
    """Reject while p_(i) <= α / (m - i); the adjusted value is the smallest α that rejects."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(6) ** 3
        adjusted = np.array(holm(list(p)))
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for place, i in enumerate(np.argsort(p)):
                if p[i] > level / (6 - place):
                    break
                rejected.add(i)
            assert set(np.flatnonzero(adjusted <= level)) == rejected


def test_few_rows_and_columns_of_one_value_are_no_trouble() -> None:
    frame = pl.DataFrame({"a": [1.0, 1.0], "b": pl.Series([None, None], dtype=pl.String)})
    report = compare_inputs(dict.fromkeys(shift.PARTS, frame), {"a": "numeric", "b": "category"})
    assert not report.shifted
    assert report.classifiers == ()
    assert all(c.adjusted == 1 for c in report.columns)


def test_single_rows_say_nothing() -> None:
    frames = {
        part: pl.DataFrame({"a": rows}) for part, rows in zip(shift.PARTS, ([1.0, 2.0], [3.0], [9.0]), strict=True)
    }
    assert [round(c.p, 3) for c in compare_inputs(frames, {"a": "numeric"}).columns] == [0.667, 0.667, 1]


def test_test_targets_are_never_looked_at(tmp_path: Path) -> None:
    """Other targets, of every row: the same inputs in the same parts give the same report to the last digit."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)), rng.normal(size=300)
    np.savez(tmp_path / "one.npz", X=x, y=y)
    np.savez(tmp_path / "other.npz", X=x, y=rng.permutation(y) * 7)
    one, other = (check_shift(study(f"{name}.npz", "rmse"), tmp_path).as_dict() for name in ("one", "other"))
    assert one == other
    np.savez(tmp_path / "inputs.npz", X=x + (np.arange(300) % 2)[:, None], y=y)
    assert check_shift(study("inputs.npz", "rmse"), tmp_path).as_dict() != one, "other inputs do change it"
