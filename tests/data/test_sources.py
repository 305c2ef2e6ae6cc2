import gzip
import json
import pickle
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn import datasets

from tuner.data import Table, load_table, sources
from tuner.errors import DataError
from tuner.spec import DataSection, SplitSection
from tuner.trial import Task

CSV = "a,b,y\n1,true,u\n2.5,false,v\n3,true,u\n"
X = np.arange(12.0).reshape(4, 3)


def load(root: Path, source: str, task: Task = "classification", target: str | None = "y", **data: Any) -> Table:
    return load_table(DataSection(source=source, target=target, **data), task, root)


def refusal(root: Path, source: str, task: Task = "classification", target: str | None = "y", **data: Any) -> str:
    """The message that refuses the source: one or two lines."""
    with pytest.raises(DataError) as caught:
        load(root, source, task, target, **data)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    return message


@pytest.mark.parametrize(
    ("name", "task", "shape", "classes"),
    [
        ("digits", "classification", (1797, 64), tuple("0123456789")),
        ("breast_cancer", "classification", (569, 30), ("malignant", "benign")),
        ("wine", "classification", (178, 13), ("class_0", "class_1", "class_2")),
        ("iris", "classification", (150, 4), ("setosa", "versicolor", "virginica")),
        ("diabetes", "regression", (442, 10), ()),
    ],
)
def test_sklearn_tables(
    name: str, task: Task, shape: tuple[int, int], classes: tuple[str, ...], tmp_path: Path
) -> None:
    table = load(tmp_path, f"sklearn:{name}", task, target=None)
    assert table.frame.shape == shape
    assert set(table.frame.dtypes) == {pl.Float64}
    assert table.classes == classes
    assert table.target.dtype == (np.int64 if classes else np.float64)
    np.testing.assert_array_equal(table.target, getattr(datasets, f"load_{name}")().target)


def test_diabetes_is_not_standardised_over_its_test_rows(tmp_path: Path) -> None:
    table = load(tmp_path, "sklearn:diabetes", "regression", target=None)
    age = table.frame["age"]
    assert age.min() == 19


def test_classes_as_a_quantity(tmp_path: Path) -> None:
    table = load(tmp_path, "sklearn:digits", "regression", target=None)
    assert table.target.dtype == np.float64
    assert table.classes == ()


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    table = load(tmp_path, "t.csv")
    assert table.frame.to_dict(as_series=False) == {"a": [1, 2.5, 3], "b": [True, False, True]}
    assert table.target_name == "y"
    assert table.classes == ("u", "v")
    np.testing.assert_array_equal(table.target, [0, 1, 0])
    assert table.target.dtype == np.int64


def test_all_formats_hold_the_same_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    (tmp_path / "T.CSV.GZ").write_bytes(gzip.compress(CSV.encode()))
    pl.read_csv(tmp_path / "t.csv").write_parquet(tmp_path / "t.parquet")
    digests = {load(tmp_path, source).digest for source in ("t.csv", "T.CSV.GZ", "t.parquet", str(tmp_path / "t.csv"))}
    assert len(digests) == 1


def test_npz_names_its_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", X=X.astype(np.float32), y=[1, 0, 1, 0])
    table = load(tmp_path, "t.npz", target=None)
    assert table.frame.columns == ["x0", "x1", "x2"]
    np.testing.assert_array_equal(table.frame.to_numpy(), X)
    np.testing.assert_array_equal(table.target, [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("arrays", "target", "name"),
    [
        ({"x": X, "target": [0, 1, 0, 1]}, None, "target"),
        ({"features": X, "label": [0, 1, 0, 1], "y": [9, 9, 9, 9]}, "label", "label"),
        ({"X": X, "y": [[0], [1], [0], [1]]}, None, "y"),
    ],
)
def test_npz_array_names(arrays: dict[str, Any], target: str | None, name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    table = load(tmp_path, "t.npz", target=target)
    assert table.target_name == name
    np.testing.assert_array_equal(table.target, [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("values", "classes", "codes"),
    [
        ([10, 9, -1], ("-1", "9", "10"), [2, 1, 0]),
        (["10", "9", "1"], ("1", "9", "10"), [2, 1, 0]),
        (["10", "9", "x"], ("10", "9", "x"), [0, 1, 2]),
        (["B", "a", "B"], ("B", "a"), [0, 1, 0]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        ([2.0, 1.0, 10.0], ("1", "2", "10"), [1, 0, 2]),
        (np.array([b"v", b"u", b"v"]), ("u", "v"), [1, 0, 1]),
        (np.array([3, 2, 3], dtype=">i2"), ("2", "3"), [1, 0, 1]),
        (np.array([3, 2, 3], dtype=np.float16), ("2", "3"), [1, 0, 1]),
    ],
)
def test_class_order(values: Any, classes: tuple[str, ...], codes: list[int], tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", X=X[:3], y=values)
    table = load(tmp_path, "t.npz")
    assert table.classes == classes
    assert table.target.tolist() == codes


def test_parquet_types(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "a": pl.Series([1, 2, 3], dtype=pl.UInt8),
            "b": pl.Series(["0.5", "1.5", "2.5"]).cast(pl.Decimal(10, 2)),
            "c": pl.Series(["1", " 2 ", "3.5"]),
            "d": [date(2024, 1, 2), None, date(2024, 1, 3)],
            "e": pl.Series(["p", "q", None], dtype=pl.Enum(["p", "q"])),
            "y": pl.Series(["v", "u", "v"], dtype=pl.Categorical),
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    table = load(tmp_path, "t.parquet")
    assert_frame_equal(table.frame, frame.drop("y"))
    assert table.classes == ("u", "v")
    np.testing.assert_array_equal(table.target, [1, 0, 1])


@pytest.mark.parametrize("note", ["no JSON", "[]", '{"columns": ["a"]}', '{"columns": [{}]}'])
def test_a_note_that_pandas_does_not_write_changes_nothing(note: str, tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, 2, 3, 4] * 5, "y": ["b", "c"] * 10})
    frame.write_parquet(tmp_path / "t.parquet", metadata={"pandas": note})
    table = load_table(DataSection(source="t.parquet", target="y"), "classification", tmp_path)
    assert table.frame["a"].dtype == pl.Int64


def test_numbers_that_pandas_called_categories(tmp_path: Path) -> None:
    """As pandas writes them: plain numbers, and a note beside them."""
    frame = pl.DataFrame({"a": [1, 2, None], "b": [1, 2, 3], "y": [0, 1, 0]})
    kinds = {"a": "categorical", "b": "int64", "y": "categorical", "index": "categorical"}
    columns = [{"name": name, "pandas_type": kind} for name, kind in kinds.items()]
    frame.write_parquet(tmp_path / "t.parquet", metadata={"pandas": json.dumps({"columns": columns})})
    table = load(tmp_path, "t.parquet")
    assert table.frame.dtypes == [pl.Categorical, pl.Int64]
    assert table.frame["a"].to_list() == ["1", "2", None]
    assert table.classes == ("0", "1")


@pytest.mark.parametrize("looked_at", [10_000, 10])
def test_a_column_is_typed_by_all_its_rows(looked_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first text comes among the rows that types are guessed from, or after them."""
    monkeypatch.setattr(sources, "_ROWS_TO_GUESS", looked_at)
    lines = [f"{row},{row % 2}" for row in range(2000)]
    (tmp_path / "t.csv").write_text("\n".join(["a,y", *lines, "oops,1"]))
    frame = load(tmp_path, "t.csv").frame
    assert frame.schema == {"a": pl.String}
    assert frame["a"][0] == "0"


def test_missing_values_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n1,NA,u\n?,nan,v\nnull,x,u\n,N/A,v\n")
    frame = load(tmp_path, "t.csv").frame
    assert frame.to_dict(as_series=False) == {"a": [1, None, None, None], "b": [None, None, "x", None]}


def test_regression_target(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n1,2\n2,3\n3,5\n")
    table = load(tmp_path, "t.csv", "regression")
    assert table.target.dtype == np.float64
    assert table.target.tolist() == [2, 3, 5]
    assert table.classes == ()


@pytest.mark.parametrize(
    "changed",
    [
        CSV.replace("2.5", "2.25"),
        CSV.replace("b,y", "c,y"),
        CSV.replace("3,true,u", "3,true,v"),
        CSV.replace(",u", ",w"),
    ],
)
def test_digest_notices_a_change(changed: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    (tmp_path / "u.csv").write_text(changed)
    assert load(tmp_path, "t.csv").digest != load(tmp_path, "u.csv").digest


def test_digest_is_what_it_was() -> None:
    """Studies store the digest: it must not change between versions or machines."""
    table = Table(
        frame=pl.DataFrame({"a": [1.0], "b": [None], "c": ["é"], "d": [date(2024, 1, 1)], "e": [True]}),
        target=np.array([3], dtype=np.int64),
        classes=("u",),
        target_name="y",
    )
    assert table.digest == "62bf6dad6097f339b6a23b3cfed6ab8faf0c2a2d91adbf13d3825ee6175aa5cf"


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("sklearn:digit", ["unknown table 'sklearn:digit' (did you mean 'digits'?)", "breast_cancer"]),
        ("sklearn:", ["unknown table 'sklearn:'", "digits, breast_cancer, wine, diabetes, iris"]),
        ("openml:credit-g", ["needs the data set's number on openml.org"]),
        ("opennml:31", ["unknown scheme 'opennml' (did you mean 'openml'?)", ".csv, .csv.gz, .parquet, .npz, .npy"]),
        ("sklaern:digits", ["unknown scheme 'sklaern' (did you mean 'sklearn'?)"]),
        ("https://example.org/t.csv", ["unknown scheme 'https'"]),
        ("digits", ["cannot tell what 'digits' is (did you mean 'sklearn:digits'?)"]),
        ("t.xlsx", ["cannot tell what 't.xlsx' is", ".parquet"]),
        ("none.csv", ["no such file", "none.csv", "study file's folder"]),
        ("folder.csv", ["folder.csv is a folder"]),
    ],
)
def test_unknown_source(source: str, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    message = refusal(tmp_path, source, target=None)
    assert message.startswith("data.source: ")
    for part in parts:
        assert part in message


def test_sklearn_brings_its_own_target(tmp_path: Path) -> None:
    assert "leave data.target out" in refusal(tmp_path, "sklearn:digits", target="digit")


def test_blanks_around_a_label_make_no_other_class(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,y\n1,yes \n2, no\n3,yes\n4,no\n")
    table = load(tmp_path, "x.csv")
    assert (table.classes, table.target.tolist()) == (("no", "yes"), [1, 0, 1, 0])


def test_sklearn_quantity_is_not_a_class(tmp_path: Path) -> None:
    assert "use a regression metric: rmse, mse, mae" in refusal(tmp_path, "sklearn:diabetes", target=None)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (None, ["data.target: missing", "which column of t.csv", "a, b, y"]),
        ("Y", ["no column 'Y' in t.csv (did you mean 'y'?)", "its columns: a, b, y"]),
        ("churned", ["no column 'churned' in t.csv; its columns: a, b, y"]),
    ],
)
def test_target_column(target: str | None, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    message = refusal(tmp_path, "t.csv", target=target)
    for part in parts:
        assert part in message


def test_many_columns_are_not_all_listed(tmp_path: Path) -> None:
    pl.DataFrame({f"c{i}": [1, 2, 3] for i in range(100)}).write_csv(tmp_path / "t.csv")
    assert refusal(tmp_path, "t.csv", target="z").endswith("c18, c19, … (100 in all)")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["the file is empty"]),
        ("a,y\n", ["has no rows", "at least 3"]),
        ("a,y\n1,u\n", ["has 1 row;"]),
        ("a,y\n1,u\n2,v\n", ["has 2 rows;"]),
        ("y\nu\nv\nu\n", ["no column beside the target 'y'"]),
        ("a;y\n1;u\n2;v\n3;u\n", ["one column, 'a;y'", "by commas"]),
        ("y,a,y\n1,2,1\n2,2,2\n3,3,3\n", ["two columns are named 'y'"]),
        ('"a ""1""",y,"a ""1"""\n1,2,1\n2,2,2\n3,3,3\n', ["two columns are named 'a \"1\"'"]),
        ("a;b;y\n1,5;2,5;u\n2,5;3;v\n3;3;u\n", ["one column, 'a;b;y'", "by commas, not by ';'"]),
        ("a,y\n1,u\n2,v,9,9\n3,u\n", ["line 3 has 4 fields, the line of column names has 2", "into double quotes"]),
        ('a,y\n"1\n",u\n2,v,9\n3,u\n', ["line 4 has 3 fields"]),
        ('a,y\n1,u\n2,"v\n3,u\n', ["cannot be read as CSV from line 3 on", "a double quote"]),
        ("a,b,y\n1,,u\n2,nan,v\n3,inf,u\n", ["column 'b' has 1 infinite of 3 values (first in row 3)"]),
        ("a,y\n1,u\n-inf,v\n3,u\n", ["column 'a' has 1 infinite of 3 values (first in row 2)"]),
        ("a,y\n1,u\n-Infinity,v\nINF,u\n", ["column 'a' has 2 infinite of 3 values (first in row 2)"]),
        ("a,y\n1,u\n2,\n3,v\n", ["target 'y' is missing in 1 of 3 rows (first in row 2)"]),
        ("a,y\n1,1.0\n2,2.0\n3,NaN\n", ["target 'y' is missing in 1 of 3 rows (first in row 3)"]),
        ("a,y\n1,u\n2,u\n3,u\n", ["single class ('u' in all 3 rows)", "at least two"]),
        ("a,y\n1,1\n2,1.5\n3,2\n", ["not whole numbers (1.5 in row 2)", "use a regression metric: rmse, mse, mae"]),
        ("a,y\n1,1\n2,1e300\n3,2\n", ["not whole numbers (1e+300 in row 2)"]),
    ],
)
def test_bad_csv(text: str, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    message = refusal(tmp_path, "t.csv")
    assert message.startswith("t.csv: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "a,y\n1,1\n2,ten\n3,3\n",
            "target 'y' is not numeric ('ten' in row 2); for classes use a classification metric",
        ),
        ("a,y\n1,true\n2,false\n3,true\n", "target 'y' is not numeric (True in row 1)"),
        ("a,y\n1,1\n2,inf\n3,3\n", "target 'y' is NaN or infinite in 1 of 3 rows (first in row 2)"),
        ("a,y\n1,1.5\n2,\n3,3\n", "target 'y' is missing in 1 of 3 rows (first in row 2)"),
    ],
)
def test_bad_regression_target(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert part in refusal(tmp_path, "t.csv", "regression")


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"a": [[1], [2], [3]], "y": [0, 1, 0]}, "column 'a' holds List(Int64); a feature is numbers, booleans,"),
        ({"a": [b"1", b"2", b"3"], "y": [0, 1, 0]}, "column 'a' holds Binary"),
        ({"a": [1, 2, 3], "y": [[0], [1], [0]]}, "target 'y' holds List(Int64); a target is numbers, booleans or text"),
        ({"a": [1, 2, 3], "y": [date(2020, 1, 1)] * 3}, "target 'y' holds Date"),
    ],
)
def test_bad_parquet(columns: dict[str, Any], part: str, tmp_path: Path) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "t.parquet")
    assert part in refusal(tmp_path, "t.parquet")


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"X": X, "x": X, "y": X[:, 0]}, "X and x could both be the features"),
        ({"Z": X, "y": X[:, 0]}, "needs an array X or x or features for the features; its arrays: Z, y"),
        ({"X": X, "t": X[:, 0]}, "needs an array y or target for the target; or name it in data.target"),
        ({"X": X[:, 0], "y": X[:, 0]}, "X needs the shape (rows, features), it is (4,)"),
        ({"X": X, "y": X[:3, 0]}, "y needs one value for each of the 4 rows of X, its shape is (3,)"),
        ({"X": X, "y": X}, "its shape is (4, 3)"),
        ({"X": X[:0], "y": X[:0, 0]}, "has no rows"),
        ({"X": X[:2], "y": X[:2, 0]}, "has 2 rows"),
        ({"X": X[:, :0], "y": X[:, 0]}, "X has no columns"),
        ({"X": X.astype(str), "y": X[:, 0]}, "X is not numeric ('0.0' in row 1, its type is <U32)"),
        ({"X": X, "y": X[:, 0] * 1j}, "y holds complex128"),
        ({"X": np.where(X == 4, np.inf, X), "y": X[:, 0]}, "column 'x1' has 1 infinite of 4 values (first in row 2)"),
        (
            {"X": X, "y": np.array(["a", None, "b", "a"], dtype=object)},
            "holds Python objects, which are never unpickled",
        ),
    ],
)
def test_bad_npz(arrays: dict[str, Any], part: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    message = refusal(tmp_path, "t.npz", target=None)
    assert message.startswith("t.npz: ")
    assert part in message


def test_npz_target_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", X=X, label=X[:, 0])
    message = refusal(tmp_path, "t.npz", target="labels")
    assert "no array 'labels' in t.npz (did you mean 'label'?); its arrays: X, label" in message


def test_npz_never_unpickles(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(pickle.dumps({"X": [1]}))
    assert "cannot be read as NPZ" in refusal(tmp_path, "t.npz", target=None)


@pytest.mark.parametrize("suffix", ["parquet", "npz", "csv.gz"])
@pytest.mark.parametrize("damage", ["nothing left", "cut off", "overwritten"])
def test_damaged_file(suffix: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    frame = pl.DataFrame({"a": range(500), "b": range(500), "y": [0, 1] * 250})
    if suffix == "parquet":
        frame.write_parquet(path)
    elif suffix == "npz":
        np.savez(path, X=frame.select("a", "b").to_numpy(), y=frame["y"].to_numpy())
    else:
        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    assert load(tmp_path, path.name).frame.shape == (500, 2)
    whole = path.read_bytes()
    half = len(whole) // 2
    damaged = {
        "nothing left": b"",
        "cut off": whole[:half],
        "overwritten": whole[:half] + b"\xff" * (len(whole) - half),
    }
    path.write_bytes(damaged[damage])
    assert re.match(
        rf"t\.{suffix}: (cannot be read as (Parquet|NPZ|CSV)|the file is empty)", refusal(tmp_path, path.name)
    )


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,y\n1,caf\xe9\n2,x\n3,x\n")
    assert "t.csv: is not UTF-8 text; convert it" in refusal(tmp_path, "t.csv")


def test_column_names_that_are_not_utf8(tmp_path: Path) -> None:
    """polars itself would read them, each with signs that stand for what it could not read."""
    (tmp_path / "t.csv").write_bytes(b"gr\xf6\xdfe,y\n1,u\n2,v\n3,u\n")
    assert "t.csv: is not UTF-8 text; convert it, as with: iconv -f latin1" in refusal(tmp_path, "t.csv")
    (tmp_path / "u.csv").write_text(CSV, encoding="utf-16")
    assert "u.csv: is not UTF-8 text; convert it, as with: iconv -f utf-16" in refusal(tmp_path, "u.csv")
    (tmp_path / "v.csv").write_text("\ufffd,y\n1,u\n2,v\n3,u\n")
    assert load(tmp_path, "v.csv").frame.columns == ["\ufffd"]


def test_quotes_in_column_names(tmp_path: Path) -> None:
    frame = pl.DataFrame({'"a"': [1, 2, 3], 'b "x",\n': [1, 2, 4], 'the "y"': ["u", "v", "u"]})
    frame.write_csv(tmp_path / "t.csv")
    frame.write_parquet(tmp_path / "t.parquet")
    csv, parquet = (load(tmp_path, f"t.{suffix}", target='the "y"') for suffix in ("csv", "parquet"))
    assert csv.frame.columns == parquet.frame.columns == ['"a"', 'b "x",\n']
    assert csv.digest == parquet.digest


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_a_column_may_be_named_as_polars_names_a_copy(suffix: str, tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, 2, 3], "a_duplicated_0": [4, 5, 7], "y": ["u", "v", "u"]})
    if suffix == "parquet":
        frame.write_parquet(tmp_path / "t.parquet")
    else:
        csv = frame.write_csv().encode()
        (tmp_path / f"t.{suffix}").write_bytes(gzip.compress(csv) if suffix == "csv.gz" else csv)
    assert_frame_equal(load(tmp_path, f"t.{suffix}").frame, frame.drop("y"))


def test_names_in_digits_keep_their_zeros_whatever_the_other_rows_say(tmp_path: Path) -> None:
    content = 'zip,"a ""b""",c,y\n01234,1,1,u\nNA,02,2,v\n00501,3,3,u\n'
    for name, last in (("digits", "99950,4,4,v"), ("text", "K1A,x,4,v")):
        (tmp_path / f"{name}.csv").write_text(f"{content}{last}\n")
        frame = load(tmp_path, f"{name}.csv", categorical=("zip", 'a "b"')).frame
        assert frame.dtypes == [pl.String, pl.String, pl.Int64]
        assert frame["zip"].to_list()[:3] == ["01234", None, "00501"]
        assert frame['a "b"'].to_list()[:3] == ["1", "02", "3"]


def test_a_target_that_is_declared_categorical(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, 2, 3], "y": pl.Series(["10", "9 ", "10"], dtype=pl.Categorical)})
    frame.write_parquet(tmp_path / "t.parquet")
    assert load(tmp_path, "t.parquet").classes == ("9", "10")
    assert load(tmp_path, "t.parquet", "regression").target.tolist() == [10, 9, 10]


def test_a_category_may_be_called_inf(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\ninf,u\nsup,v\ninf,u\n")
    assert load(tmp_path, "t.csv").frame["a"].to_list() == ["inf", "sup", "inf"]


def test_glob_characters_are_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "t[1].csv").write_text(CSV)
    (tmp_path / "t1.csv").write_text("a,y\n1,u\n")
    assert len(load(tmp_path, "t[1].csv").target) == 3


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.column_stack([X, [0, 1, 0, 1]]))
    table = load(tmp_path, "t.npy", target="x3")
    assert table.frame.columns == ["x0", "x1", "x2"]
    np.testing.assert_array_equal(table.frame.to_numpy(), X)
    assert table.target.tolist() == [0, 1, 0, 1]


def test_npy_of_named_fields(tmp_path: Path) -> None:
    rows = np.array([(1.5, "p", True), (2.5, "q", False), (3.5, "p", True)], dtype="f8,U1,?")
    rows.dtype.names = ("a", "b", "y")
    np.save(tmp_path / "t.npy", rows)
    table = load(tmp_path, "t.npy")
    assert table.frame.to_dict(as_series=False) == {"a": [1.5, 2.5, 3.5], "b": ["p", "q", "p"]}
    assert table.classes == ("false", "true")


@pytest.mark.parametrize("array", [np.arange(4.0), X.astype(str), X[None]])
def test_bad_npy(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", array)
    assert "needs numbers of the shape (rows, columns)" in refusal(tmp_path, "t.npy")


def test_columns_that_are_not_features(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,a,who,y\n1,5,p,u\n2,6,q,v\n3,7,p,u\n")
    table = load(tmp_path, "t.csv", drop=("id",), split=SplitSection(group="who"))
    assert table.frame.columns == ["a"]
    assert table.by is not None
    assert table.by.to_list() == ["p", "q", "p"]
    assert load(tmp_path, "t.csv", split=SplitSection(time="id")).frame.columns == ["id", "a", "who"]


def test_the_digest_knows_the_dividing_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,who,y\n1,p,u\n2,q,v\n3,p,u\n")
    (tmp_path / "u.csv").write_text("a,who,y\n1,p,u\n2,q,v\n3,q,u\n")
    split = SplitSection(group="who")
    assert load(tmp_path, "t.csv", split=split).digest != load(tmp_path, "u.csv", split=split).digest


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"drop": ("A",)}, "data.drop: no column 'A' in t.csv (did you mean 'a'?); its columns: a, b"),
        ({"drop": ("y",)}, "data.drop: 'y' is the target"),
        ({"drop": ("a", "b")}, "no column beside the target 'y'"),
        ({"categorical": ("c",)}, "data.categorical: no column 'c'"),
        ({"split": SplitSection(group="g")}, "data.split: no column 'g'"),
        ({"split": SplitSection(time="y")}, "data.split: 'y' is the target"),
    ],
)
def test_bad_columns(data: dict[str, Any], part: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    assert part in refusal(tmp_path, "t.csv", **data)
