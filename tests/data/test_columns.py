from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import polars as pl
import pytest

from tuner.data import Schema
from tuner.data.columns import Kind, read_as, series_of
from tuner.errors import DataError

MANY = 30


def infer_one(values: Any, name: str = "c", **settings: Any) -> Schema:
    """The schema of one column beside one that is always kept."""
    column = series_of(values, name) if isinstance(values, pd.Series) else pl.Series(name, values)
    other = pl.Series("kept", [i % 2 + 0.5 for i in range(len(column))])
    return Schema.infer(pl.DataFrame([column, other]), **settings)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 3], "numeric"),
        ([1.5, None, 2.5], "numeric"),
        (["1", " 2.5 ", "-3e4", None], "numeric"),
        ([True, False, None], "boolean"),
        (["true", "False", " TRUE"], "boolean"),
        (["a", "b", "a"], "category"),
        (pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])), "category"),
        (pl.Series(["1", "2"], dtype=pl.Enum(["1", "2"])), "category"),
        (pl.Series(["1", "2"], dtype=pl.Categorical), "category"),
        (pd.Series([1, 2, 1], dtype="category"), "category"),
        ([date(2024, 1, 1), date(2024, 1, 2)], "date"),
        (["2024-01-01", "2024-02-30T12:00", "x"], "category"),
        (["2024-01-01", "2024-02-28 12:00:01.5", "2024-02-28T12:00Z", "2024-02-28T12:00:00+0130"], "date"),
        (["2024-01-01", "2024-02-30"], "category"),  # no such day
        ([7.5, None, 7.5], "category"),
    ],
)
def test_kinds(values: Any, kind: Kind) -> None:
    assert [column.kind for column in infer_one(values).columns] == [kind, "numeric"]


def test_a_few_texts_among_numbers_are_missing() -> None:
    values = [str(i) for i in range(MANY)] + ["unknown"]
    schema = infer_one(values)
    assert schema.of_kind("numeric") == ["c", "kept"]
    assert schema.notes == ("column 'c': numbers, with texts such as 'unknown' among them that read as missing",)
    assert schema.apply(pl.DataFrame({"c": ["7", "unknown"], "kept": [1, 2]}))["c"].to_list() == [7, None]


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (["31.12.2024", "1.1.2024"], "column 'c': read as text: dates are written as 2024-12-31, this column has"),
        (["12/31/2024 10:00", "1/1/2024 9:30"], "dates are written as 2024-12-31"),
        (["1,5", "-1.234,25"], "numbers are written as 1234.5, this column has '1,5'"),
        (["1,5", "x"], None),
        (["1.2.3.4", "1.2.3.5"], None),
    ],
)
def test_numbers_and_dates_in_a_way_that_is_not_read(values: list[str], note: str | None) -> None:
    schema = infer_one(values * 10)
    assert schema.columns[0].kind == "category"
    assert (note in schema.notes[0]) if note else not schema.notes


def test_infinity_among_numbers_and_texts_is_noted() -> None:
    schema = infer_one([str(i) for i in range(40)] + ["Infinity"])
    assert schema.notes == ("column 'c': numbers, with texts such as 'Infinity' among them that read as missing",)


def test_many_texts_among_numbers_make_a_category() -> None:
    schema = infer_one([str(i % 3) for i in range(MANY)] + ["a", "b", "a", "b"])
    assert schema.of_kind("category") == ["c"]
    assert schema.notes == ("column 'c': category: most values are numbers, but 'a' and others are not",)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([3, 3, 3], "dropped: constant on the train rows"),
        (["a", "a", "a"], "dropped: constant on the train rows"),
        ([None, None, None], "dropped: no value on the train rows"),
        ([" ", "", None], "dropped: no value on the train rows"),
        ([f"name {i}" for i in range(MANY)], "dropped: nearly every row has a text of its own"),
    ],
)
def test_useless_columns_are_dropped(values: Any, note: str) -> None:
    schema = infer_one(values)
    assert [column.name for column in schema.columns] == ["kept"]
    assert len(schema.notes) == 1
    assert schema.notes[0].startswith(f"column 'c': {note}")


@pytest.mark.parametrize(
    ("name", "values", "warned"),
    [
        ("c", range(1000, 1000 + MANY), True),
        ("customer_id", range(0, 10**6 * MANY, 10**6), True),
        ("income", range(0, 10**6 * MANY, 10**6), False),
        ("c", [i // 2 for i in range(MANY)], False),
        ("c", [float(i) for i in range(MANY)], False),
        ("c", [f" {i}" for i in range(MANY)], True),  # as one row of another part makes them
        ("c", ["", *map(str, range(MANY))], False),
    ],
)
def test_identifiers_are_warned_about(name: str, values: Any, warned: bool) -> None:
    schema = infer_one(values, name)
    assert schema.of_kind("numeric") == [name, "kept"]
    assert [("looks like an identifier" in note) for note in schema.notes] == [True] * warned


def test_one_note_names_all_its_columns() -> None:
    frame = pl.DataFrame({**{f"c{i}": [0, 0] for i in range(9)}, "kept": [1, 2]})
    assert Schema.infer(frame).notes == (
        "columns 'c0', 'c1', 'c2', 'c3', 'c4', 'c5' and 3 more: dropped: constant on the train rows",
    )


def test_a_number_that_orders_the_rows_is_dropped() -> None:
    schema = infer_one([1, 2, 3], time="c")
    assert [column.name for column in schema.columns] == ["kept"]
    assert "orders the rows in time" in schema.notes[0]


def test_nothing_left() -> None:
    with pytest.raises(DataError, match="no feature column is left on 2 train rows: columns 'a', 'b'"):
        Schema.infer(pl.DataFrame({"a": [1, 1], "b": [2, 2]}))


def test_lists_are_no_feature() -> None:
    with pytest.raises(DataError, match=r"column 'c' holds List\(Int64\)"):
        infer_one([[1], [2]])


@pytest.mark.parametrize(
    ("learnt", "later", "same"),
    [
        ([7, 8, 9], ["007", "7.0", " 7 "], "7"),
        ([7, 8, 9], [7.0, 7.0, None], "7"),
        ([1.5, None, 1.5], ["1.50", "1.5", "+1.5"], "1.5"),
        (["1.50", None, "1.50"], [1.5, 1.5, 1.5], "1.5"),
        ([2**62 + 1, 5, 6], [str(2**62 + 1)] * 3, str(2**62 + 1)),
        (["7", "8", "9"], [7.0, 7.0, None], "7"),
        (pl.Series(["7", "8", "9"], dtype=pl.Categorical), [7.0, 7.0, None], "7"),
        (pd.Series([7, 8, None], dtype="category"), ["7", "7.0", " 7 "], "7"),
        (pd.Series([True, False, None], dtype="category"), ["True", "TRUE", "true"], "true"),
        ([True, False, True], ["True", "TRUE", "true"], "true"),
        ([date(2024, 1, 2), None, None], ["2024-01-02", "2024-01-02 00:00", "2024-01-02T00:00:00Z"], None),
    ],
)
def test_a_category_is_the_same_whatever_its_file_writes(learnt: Any, later: Any, same: str | None) -> None:
    """A CSV read for prediction is text, where the table in training was typed."""
    schema = infer_one(learnt, categorical=("c",))
    read = Schema.from_json(schema.as_json()).apply(pl.DataFrame({"c": later, "kept": 1}))["c"].drop_nulls()
    assert read.unique().to_list() == [same or schema.apply(pl.DataFrame({"c": learnt, "kept": 1}))["c"][0]]


def test_text_stays_as_it_is() -> None:
    schema = infer_one(["007", "7", "a"], categorical=("c",))
    assert schema.apply(pl.DataFrame({"c": ["007", "7", "7.0"], "kept": 1}))["c"].to_list() == ["007", "7", "7.0"]


def test_declared_categories_are_read_as_what_they_say() -> None:
    """Their codes, which polars would read, say nothing."""
    values = ["20", "10", "20", "x"]
    for dtype in (pl.Categorical, pl.Enum(["x", "10", "20"])):
        series = pl.Series("c", values, dtype=dtype)
        assert read_as(series, "numeric").to_list() == [20, 10, 20, None]
        assert infer_one([1, 2, 3]).unreadable(pl.DataFrame([series, pl.Series("kept", [0.5] * 4)])) == {"c": (1, "x")}


@pytest.mark.parametrize("dtype", ["string", "boolean", "Int64", "Float64", "category", object])
def test_missing_values_of_every_pandas_type(dtype: Any) -> None:
    kept = {"string": "a", "boolean": True, "Int64": 7, "Float64": 7.5, "category": "a", object: "a"}[dtype]
    series = series_of(pd.Series([kept, pd.NA, kept], dtype=dtype), "c")
    assert read_as(series, "category").is_null().to_list() == [False, True, False]
    assert series.null_count() + (series.is_nan().sum() if series.dtype.is_float() else 0) == 1


def test_json_and_back() -> None:
    schema = infer_one(["2024-01-01", "2024-01-02"], time="c")
    assert Schema.from_json(schema.as_json()) == schema


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "x", "inf", None, ""], "numeric", [1, None, None, None, None]),
        ([1, 0, None], "boolean", [True, False, None]),
        ([1.0, 0.0, float("nan"), 0.5, float("inf"), None], "boolean", [True, False, None, None, None, None]),
        ([True, None], "boolean", [True, None]),
        (["TRUE", "no", "false "], "boolean", [True, None, False]),
        ([1, None], "category", ["1", None]),
        ([1.5, float("nan")], "category", ["1.5", None]),
        ([" a", "", "a"], "category", ["a", None, "a"]),
        (["2024-01-01", "soon", None], "date", [datetime(2024, 1, 1), None, None]),
        (
            [datetime(2024, 1, 1, 12, tzinfo=UTC)],
            "date",
            [datetime(2024, 1, 1, 12)],
        ),
        (
            ["2024-01-01T12:00+02:00", "2024-01-01 12:00:00.25"],
            "date",
            [datetime(2024, 1, 1, 10), datetime(2024, 1, 1, 12, 0, 0, 250000)],
        ),
    ],
)
def test_reading_as_a_kind(values: Any, kind: Kind, expected: list[Any]) -> None:
    assert read_as(pl.Series("c", values), kind).to_list() == expected
