"""Predictions of files: every format in any batches gives what the model gives, and bad files give nothing."""

import errno
import gzip
import io
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.models import mixed_table, model
from tuner import predict as predict_module
from tuner.data.preprocessing import FarValueError
from tuner.data.sources import read_csv
from tuner.errors import DataError, StorageError
from tuner.model import TunedModel
from tuner.predict import answered, predict_file, read_rows


def written(table: pl.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.write_parquet(path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(table.write_csv().encode()))
    else:
        table.write_csv(path)
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet"])
def test_every_format_in_batches(name: str, tmp_path: Path) -> None:
    made, rows = model(mixed_table()), mixed_table(100, seed=3)
    data, out = written(rows, tmp_path / name), tmp_path / "p.csv"
    assert predict_file(made, data, out, batch_rows=7).rows == 100
    found = pl.read_csv(out)
    assert found.columns == ["prediction", "probability_no", "probability_yes", "probability_perhaps"]
    assert found["prediction"].to_list() == made.predict(rows).tolist()
    assert found.drop("prediction").to_numpy() == pytest.approx(made.predict_proba(rows), abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", name], "nothing else is left"


def test_arrays_in_an_npz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pl.DataFrame({f"x{i}": rng.normal(size=50) for i in range(3)})
    made = model(table, classes=())
    np.savez(tmp_path / "rows.npz", X=table.to_numpy())
    predict_file(made, tmp_path / "rows.npz", tmp_path / "p.csv", batch_rows=11)
    assert pl.read_csv(tmp_path / "p.csv")["prediction"].to_numpy() == pytest.approx(made.predict(table))


@pytest.mark.parametrize("columns", ["features", "features and target", "named"])
def test_the_array_of_an_npy(columns: str, tmp_path: Path) -> None:
    """Its columns are called as in training, where the target was among them."""
    table = pl.DataFrame({f"x{i}": np.random.default_rng(i).normal(size=50) for i in range(3)})
    made = replace(model(table, classes=()), target_name="x3")
    array = table.with_columns(x3=0.0).to_numpy(structured=columns == "named")
    np.save(tmp_path / "rows.npy", array[:, :3] if columns == "features" else array)
    done = predict_file(made, tmp_path / "rows.npy", tmp_path / "p.csv", batch_rows=11)
    assert pl.read_csv(tmp_path / "p.csv")["prediction"].to_numpy() == pytest.approx(made.predict(table))
    assert done.notes == (() if columns == "features" else ("ignored: column 'x3', the target",))


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet"])
def test_rows_are_read_as_they_are_predicted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "BATCH_ROWS", 7)
    made, rows = model(mixed_table()), mixed_table(100, seed=3)
    data = written(rows.with_columns(other=1), tmp_path / name)
    read = read_rows(made, str(data))
    assert read.columns == rows.columns
    assert np.array_equal(made.answers(read), made.answers(rows))
    with pytest.raises(DataError, match="columns are missing: 'shop'"):
        read_rows(made, written(rows.drop("shop"), data))
    with pytest.raises(DataError, match="has no rows"):
        read_rows(made, written(rows[:0], data))


def test_columns_in_another_order_and_others_beside_them(tmp_path: Path) -> None:
    made, rows = model(mixed_table()), mixed_table(20, seed=3)
    plain = predict_file(made, written(rows, tmp_path / "a.csv"), tmp_path / "a")
    turned = rows.select(reversed(rows.columns)).with_columns(more=1, target=pl.lit("yes"))
    done = predict_file(made, written(turned, tmp_path / "b.csv"), tmp_path / "b")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    assert plain.notes == ()
    assert done.notes == (
        "ignored: columns 'more', which the model does not know",
        "ignored: column 'target', the target",
    )


def test_what_cannot_be_read_counts_as_missing(tmp_path: Path) -> None:
    made, rows = model(mixed_table()), mixed_table(4, seed=3)
    odd = rows.with_columns(
        size=pl.Series(["many", "few", "more", "none"]), shop=pl.lit("a shop never seen"), day=pl.lit("someday")
    )
    done = predict_file(made, written(odd, tmp_path / "a.csv"), tmp_path / "p.csv", batch_rows=3)
    assert pl.read_csv(tmp_path / "p.csv").height == 4
    assert done.notes == (
        "column 'size': 4 values such as 'many' cannot be read as numbers, and count as missing",
        "column 'day': 4 values such as 'someday' cannot be read as dates, and count as missing",
    )


def test_what_is_missing_or_has_blanks_around_it_is_not_called_unreadable(tmp_path: Path) -> None:
    made, rows = model(mixed_table()), mixed_table(4, seed=3)
    given = rows.with_columns(size=pl.Series([" 1.5 ", "", " ", "2"]), gaps=pl.Series([None, float("nan"), 1.0, 2.0]))
    given.write_parquet(tmp_path / "a.parquet")
    assert not predict_file(made, tmp_path / "a.parquet", tmp_path / "p.csv").notes
    given.with_columns(gaps=float("inf")).write_parquet(tmp_path / "a.parquet")
    (note,) = predict_file(made, tmp_path / "a.parquet", tmp_path / "p.csv").notes
    assert note == "column 'gaps': 4 values such as 'inf' cannot be read as numbers, and count as missing"


@pytest.mark.parametrize("at", [0, 3, 250])
def test_a_number_that_is_none_counts_as_missing_wherever_it_is(at: int, tmp_path: Path) -> None:
    """Numbers are read as such up to there, and as text from there on: neither loses or repeats a row."""
    made, rows = model(mixed_table()), mixed_table(300, seed=3)
    texts = rows.with_columns(pl.col("size").cast(pl.String)).to_dict(as_series=False)
    texts["size"][at] = "n.a."
    texts["size"][299] = f" {texts['size'][299]} "
    done = predict_file(made, written(pl.DataFrame(texts), tmp_path / "a.csv"), tmp_path / "p.csv", batch_rows=40)
    assert done.rows == 300
    gone = rows.with_columns(size=rows["size"].set(pl.arange(0, 300, eager=True) == at, None))
    expected = made.predict_proba(gone)
    assert pl.read_csv(tmp_path / "p.csv").drop("prediction").to_numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spoilt", [False, True])
def test_batches_that_are_predicted_at_once_come_out_in_order(
    spoilt: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rows = model(mixed_table()), mixed_table(300, seed=3)
    meet, at_once = threading.Barrier(3), []

    def meeting(model: TunedModel, batch: pl.DataFrame) -> pl.DataFrame:
        """Goes on when three batches are being predicted."""
        meet.wait(timeout=30)
        at_once.append(torch.get_num_threads())
        if spoilt and len(at_once) > 3:
            raise FarValueError("column 'size'", 1e300, 1)
        return answered(model, batch)

    monkeypatch.setattr(predict_module, "answered", meeting)
    torch.set_num_threads(3)  # and so many batches at a time
    if spoilt:
        with pytest.raises(DataError, match="in row 152 is too large"):
            predict_file(made, written(rows, tmp_path / "a.csv"), tmp_path / "p.csv", batch_rows=50)
    else:
        predict_file(made, written(rows, tmp_path / "a.csv"), tmp_path / "p.csv", batch_rows=50)
        shown = pl.read_csv(tmp_path / "p.csv").drop("prediction").to_numpy()
        assert shown == pytest.approx(made.predict_proba(rows), abs=1e-6)
    assert set(at_once) == {1}
    assert torch.get_num_threads() == 3


def test_categories_that_look_like_numbers_and_one_number_or_none(tmp_path: Path) -> None:
    """What the table in training was read as, the CSV that is predicted is, too, though its fields come as text."""
    n = 200
    lines = [f"{i % 4:03d},{'2.50' if i % 3 else ''},{i * 37 % 101}" for i in range(n)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["code,fee,x", *lines]) + "\n")
    made = model(table := read_csv(path), categorical=("code",))
    predict_file(made, path, tmp_path / "p.csv")
    found = pl.read_csv(tmp_path / "p.csv").drop("prediction").to_numpy()
    assert found == pytest.approx(made.predict_proba(table), abs=1e-6)
    other = made.predict_proba(table.with_columns(code=pl.lit("none"), fee=None))
    assert np.abs(found - other).max() > 1e-3, "the network looks at both columns"


def test_names_in_digits_keep_their_zeros(tmp_path: Path) -> None:
    lines = [f"{i % 4:02d},{i * 37 % 101}" for i in range(80)] + [f"{i % 4},{i * 37 % 101}" for i in range(80)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["zip,x", *lines]) + "\n")
    made = model(table := read_csv(path, ("zip",)), categorical=("zip",))
    assert made.preprocessing["standard"].feature_names[-8:] == tuple(
        f"zip_{text}" for text in ("0", "00", "01", "02", "03", "1", "2", "3")
    )
    predict_file(made, path, tmp_path / "p.csv")
    found = pl.read_csv(tmp_path / "p.csv").drop("prediction").to_numpy()
    assert found == pytest.approx(made.predict_proba(table), abs=1e-6)


def test_columns_named_as_copies_are(tmp_path: Path) -> None:
    table = pl.DataFrame({"a": [i % 7 / 7 for i in range(60)], "a_duplicated_0": [i % 5 / 5 for i in range(60)]})
    made, data = model(table), written(table, tmp_path / "a.csv")
    predict_file(made, data, tmp_path / "p.csv")
    found = pl.read_csv(tmp_path / "p.csv").drop("prediction").to_numpy()
    assert found == pytest.approx(made.predict_proba(table), abs=1e-6)
    assert predict_file(model(table.select("a")), data, tmp_path / "p.csv").rows == 60, "only real copies are refused"


def test_quotes_in_names_and_booleans_as_digits(tmp_path: Path) -> None:
    """A CSV writes a quote in a name twice, and other programs write 1 for true."""
    table = pl.DataFrame({'a "1"': [i % 7 / 7 for i in range(60)], "open": [i % 3 == 0 for i in range(60)]})
    made = model(table)
    done = predict_file(made, written(table.cast({"open": pl.Int8}), tmp_path / "a.csv"), tmp_path / "p.csv")
    assert done.notes == ()
    found = pl.read_csv(tmp_path / "p.csv").drop("prediction").to_numpy()
    assert found == pytest.approx(made.predict_proba(table), abs=1e-6)


def test_standard_output(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    made, rows = model(mixed_table(), {"loss": "hinge"}), mixed_table(3, seed=3)
    predict_file(made, written(rows, tmp_path / "a.csv"), None)
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert lines == ["prediction", *made.predict(rows)], "a hinge loss gives no probabilities"


HEADER = "size,gaps,open,shop,day\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", HEADER.encode(), "has no rows to predict"),
        ("a.csv", b"size,gaps\n1,2\n", "a.csv: columns are missing: 'open', 'shop', 'day'"),
        ("a.csv", HEADER.replace(",", ";").encode() + b"1;2;true;k1;2020-01-01\n", "separate the fields by commas"),
        ("a.csv", (HEADER + "1,2,true,k1\n").encode() + b"\xff\xfe,1,true,k1,2020-01-01\n", "UTF-8|cannot be read"),
        ("a.csv", (HEADER + "1,2,true,k1,2020-01-01\n").encode("utf-16"), "is not UTF-8 text; .*-f utf-16"),
        ("a.csv", HEADER.replace("gaps", "size").encode() + b"1,2,true,k1,2020-01-01\n", "columns are named 'size'"),
        ("a.csv.gz", gzip.compress(HEADER.encode() * 5000)[:60], "cannot be read"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.npz", b"PK", "cannot be read as NPZ"),
        ("a.npy", b"\x93NUM", "cannot be read as NPY"),
        ("a.xlsx", b"", "cannot tell what it is"),
    ],
    ids=[
        "empty",
        "header",
        "missing",
        "semicolons",
        "latin",
        "utf16",
        "twice",
        "gzip",
        "parquet",
        "npz",
        "npy",
        "suffix",
    ],
)
def test_bad_files_leave_nothing_behind(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        predict_file(model(mixed_table()), tmp_path / name, tmp_path / "p.csv")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_breaks_off_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    rows = mixed_table(5000, seed=3)
    cut: Any = gzip.compress(rows.write_csv().encode())[:-2000]
    (tmp_path / "a.csv.gz").write_bytes(cut)
    (tmp_path / "p.csv").write_text("of yesterday\n")
    with pytest.raises(DataError, match="damaged or cut off"):
        predict_file(model(mixed_table()), tmp_path / "a.csv.gz", tmp_path / "p.csv", batch_rows=100)
    assert (tmp_path / "p.csv").read_text() == "of yesterday\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_number_too_large_is_named_with_its_row(tmp_path: Path) -> None:
    rows = mixed_table(30, seed=3)
    rows[17, "size"] = 1e300
    data = written(rows, tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv: column 'size' cannot be standardised: 1e\+300 in row 18 "):
        predict_file(model(mixed_table()), data, tmp_path / "p.csv", batch_rows=7)
    assert not (tmp_path / "p.csv").exists()


def test_a_pipe_is_written_into_and_a_link_stays_one(tmp_path: Path) -> None:
    made, data = model(mixed_table()), written(mixed_table(3), tmp_path / "a.csv")
    predict_file(made, data, tmp_path / "p.csv")
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    predict_file(made, data, tmp_path / "pipe")
    assert os.read(reading, 10_000) == (tmp_path / "p.csv").read_bytes()
    os.close(reading)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("q.csv")
    predict_file(made, data, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "q.csv").read_text() == (tmp_path / "p.csv").read_text()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    data = written(mixed_table(3), tmp_path / "a.csv")
    with pytest.raises(DataError, match="is a folder"):
        predict_file(model(mixed_table()), data, tmp_path)
    with pytest.raises(DataError, match="cannot be written"):
        predict_file(model(mixed_table()), data, tmp_path / "none" / "p.csv")
    with pytest.raises(DataError, match="no such file"):
        predict_file(model(mixed_table()), tmp_path / "b.csv", None)


@pytest.mark.parametrize(
    ("trouble", "raised", "message"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), BrokenPipeError, None),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            StorageError,
            "standard output cannot .*No space",
        ),
    ],
)
def test_whoever_reads_may_go_and_disks_may_be_full(
    trouble: OSError, raised: type[OSError], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Buffer(io.BytesIO):
        def write(self, _: object) -> int:
            raise trouble

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=Buffer()))
    with pytest.raises(raised, match=message):
        predict_file(model(mixed_table()), written(mixed_table(3), tmp_path / "a.csv"), None)
