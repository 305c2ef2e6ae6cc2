"""The benchmark of quality: what it is asked, and how its repeats are summed up."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.quality import Result, asked, summarized


def result(mean: float) -> Result:
    return Result(mean=mean, sd=0.0, seconds=1.0)


def test_repeats_are_summed_up() -> None:
    rows = [
        {"tuner": result(1), "ensemble": result(0), "plain": result(2)},
        {"tuner": result(3), "ensemble": result(2), "plain": result(4)},
    ]
    assert summarized(rows) == {
        "tuner": (2, 1), "ensemble": (1, 1), "plain": (3, 1), "tuner - plain": (-1, 0), "ensemble - plain": (-2, 0)
    }  # fmt: skip
    mean, error = summarized(rows[:1])["tuner - plain"]
    assert (mean, np.isnan(error)) == (-1, True)


def test_targets_of_a_folder_that_says_them(tmp_path: Path) -> None:
    (tmp_path / "targets.json").write_text(json.dumps({"a.csv": "x", "b.csv": "y"}))
    options, tables = asked([str(tmp_path)])
    assert (options.data, options.minutes, tables) == (tmp_path, 1.0, {"a.csv": "x", "b.csv": "y"})
    assert asked([str(tmp_path), "--only", "b.csv"])[1] == {"b.csv": "y"}
    assert asked([str(tmp_path), "--target", "c.csv=z"])[1] == {"c.csv": "z"}


def test_targets_of_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    words = ["--target", "a.csv=x", "--target", "b.csv=1=2"]
    assert asked([str(tmp_path), *words])[1] == {"a.csv": "x", "b.csv": "1=2"}
    assert asked([str(tmp_path), *words, "--only", "a.csv"])[1] == {"a.csv": "x"}


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "targets.json: missing; write it"), (["--target", "a.csv"], "--target a.csv: names no column; write it as")],
)
def test_no_target(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        asked([str(tmp_path), *words])
    assert message in " ".join(capsys.readouterr().err.split())
