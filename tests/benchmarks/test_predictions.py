"""The benchmark of predictions runs, and both of its sides answer for every row."""

import json
from pathlib import Path

import polars as pl
import pytest

from tests.benchmarks import predictions
from tests.models import model


def test_both_sides_write_an_answer_for_every_row(tmp_path: Path) -> None:
    predictions.write_rows(tmp_path / "rows.csv", 300, 4)
    made = model(pl.read_csv(tmp_path / "rows.csv"), classes=("no", "yes"))
    predictions.bare(made, tmp_path / "rows.csv", tmp_path / "bare.csv")
    predictions.whole(made, tmp_path / "rows.csv", tmp_path / "whole.csv")
    one, other = pl.read_csv(tmp_path / "bare.csv"), pl.read_csv(tmp_path / "whole.csv")
    assert one.height == other.height == 300
    assert one.columns == other.columns


def test_it_prints_both_and_their_ratio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["predictions", "--rows", "200", "--columns", "3", "--times", "1", "-f", "json"])
    predictions.main()
    found = json.loads(capsys.readouterr().out)
    assert found["ratio"] == pytest.approx(found["predict_s"] / found["bare_s"])
