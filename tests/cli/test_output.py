"""The formats: JSON that any parser reads, CSV with one header, and nothing when the reader has gone."""

import json
import math
import sys

import pytest

from tests.cli.command import start, strict_json, tuner, write_study
from tuner.cli.output import as_csv, as_json
from tuner.manager import StudyManager


def test_json_has_no_nan() -> None:
    content = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5, None)}
    assert strict_json(as_json(content)) == {"a": None, "b": [None, {"c": None}], "d": [1.5, None]}


@pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, sys.float_info.max, 1e22, -0.0])
def test_json_floats_round_trip(value: float) -> None:
    (read,) = json.loads(as_json([value]))
    assert read == value
    assert math.copysign(1, read) == math.copysign(1, value)


def test_csv_of_nothing_is_empty() -> None:
    assert as_csv([]) == ""


def test_csv_quotes() -> None:
    assert as_csv([{"reason": 'a, "b"'}]) == 'reason\n"a, ""b"""\n'


@pytest.mark.usefixtures("workdir")
def test_reader_that_leaves() -> None:
    process = start("check", write_study(), "-f", "json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.usefixtures("workdir")
def test_no_studies() -> None:
    StudyManager("sqlite:///tuner.db").close()
    assert tuner("studies").stdout == "no studies\n"
    assert tuner("studies", "-f", "json").stdout == "[]\n"
    assert tuner("studies", "-f", "csv").stdout == ""
