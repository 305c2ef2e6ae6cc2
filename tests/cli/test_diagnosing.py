"""``tuner diagnose``: text, JSON and CSV of the same diagnosis, the report that shows it, and what it refuses."""

import csv
import io
from pathlib import Path

import pytest

from tests.cli.command import TINY, refused, strict_json, tuner, tuner_json, write_study
from tuner.cli import main
from tuner.diagnosis.diagnose import FEWEST_SEEDS, SEEDS
from tuner.diagnosis.probes import Lab

pytestmark = pytest.mark.usefixtures("workdir")

STUDY = TINY.replace("width = 8", "width = 8\ndropout = 0.1")


def test_diagnose_and_report() -> None:
    tuner("run", write_study(STUDY), "--workers", "1", "-q")
    before = tuner_json("show", "tiny")
    done = tuner("diagnose", "tiny", "--seeds", "4")
    assert done.stdout.startswith("tiny: ")
    assert "dropout (0.1)" in done.stdout
    assert "compared on the same 30 validation rows" in done.stdout
    assert "tiny: " in done.stderr
    assert "trainings, at most" in done.stderr
    record = strict_json(tuner("diagnose", "tiny", "--seeds", "4", "-q", "-f", "json").stdout)
    assert record["winner"]["trial"] == before["best"]["number"]
    assert record["fit"]["test"]["mean"] == before["evaluation"]["test"]["mean"]
    rows = list(csv.DictReader(io.StringIO(tuner("diagnose", "tiny", "--seeds", "4", "-q", "-f", "csv").stdout)))
    assert [row["name"] for row in rows] == [effect["name"] for effect in record["effects"]]
    assert tuner_json("show", "tiny")["evaluation"]["peeks"] == 0, "the test set was not looked at"

    tuner("report", "tiny")
    page = Path("tiny.html").read_text()
    assert '<h2 id="diagnosis">Diagnosis</h2>' in page
    assert "What each change does" in page
    assert "More data" in page
    analysis = strict_json(tuner("report", "tiny", "--json").stdout)
    assert analysis["diagnosis"]["effects"] == record["effects"]
    tuner("delete", "tiny", "--yes")
    assert not list(Path("tuner-artifacts").rglob("diagnosis.json"))


def test_a_report_without_a_diagnosis_has_no_such_section() -> None:
    tuner("create", write_study())
    tuner("report", "tiny")
    assert "Diagnosis" not in Path("tiny.html").read_text()


def test_refusals() -> None:
    tuner("create", write_study())
    assert "did you mean tiny?" in refused("diagnose", "tinny")
    assert "no completed trial" in refused("diagnose", "tiny", code=3)
    assert "--seeds" in tuner("diagnose", "tiny", "--seeds", "3", code=2).stderr


def test_ctrl_c_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner("run", write_study(), "--workers", "1", "-q")

    def interrupted(_: Lab) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Lab, "run", interrupted)
    assert "nothing that was stored is lost" in tuner("diagnose", "tiny", "-q", code=130).stderr
    assert tuner_json("show", "tiny")["state"] == "finished"
    assert strict_json(tuner("report", "tiny", "--json").stdout)["diagnosis"] is None


def test_the_command_and_the_function_agree() -> None:
    """The command cannot import the function's module for its help: that is too slow."""
    (option,) = [parameter for parameter in main.commands["diagnose"].params if parameter.name == "seeds"]
    assert (option.default, option.type.min) == (SEEDS, FEWEST_SEEDS)  # type: ignore[attr-defined]
