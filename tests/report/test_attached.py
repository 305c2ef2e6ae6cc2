"""What a study carries: run, report and export leave it there, and go on where they cannot."""

import io
import json
import zipfile
from pathlib import Path

import plotly.io
import pytest

from tests.cli.command import tuner, write_study
from tuner.manager import StudyManager
from tuner.model import TunedModel
from tuner.storage import records

pytestmark = pytest.mark.usefixtures("workdir")
PLACE = Path("tuner-artifacts/attached")


def carried() -> dict[str, bytes]:
    """The files of the study by name, after checking that no others are there."""
    with StudyManager("sqlite:///tuner.db") as manager, manager._database.engine.connect() as connection:
        ids = records.artifacts_of(connection, 1)
        attrs = records.study_system_attrs
        texts = connection.execute(attrs.select().where(attrs.c.key.in_([f"artifacts:{identity}" for identity in ids])))
        metas = [json.loads(json.loads(row.value_json)) for row in texts]
        assert {path.name for path in PLACE.iterdir()} == ids
        found = {}
        for meta in metas:
            with manager.attachments.open_reader(meta["artifact_id"]) as content:
                found[meta["filename"]] = content.read()
        return found


def test_run_report_and_export_leave_their_files_with_the_study(tmp_path: Path) -> None:
    study = write_study()
    tuner("run", study, "--workers", "1", "--device", "cpu")
    ran = carried()
    assert ran.keys() == {"tiny-report.html", "tiny-figures.zip"}
    assert "test error" in ran["tiny-report.html"].decode()
    with zipfile.ZipFile(io.BytesIO(ran["tiny-figures.zip"])) as figures:
        names = figures.namelist()
        assert {"tiny-figures/scores.json", "tiny-figures/curves.json"} <= set(names)
        for name in names:
            assert plotly.io.from_json(figures.read(name).decode()).data
    again = tuner("run", study, "--workers", "1", "--device", "cpu")
    assert "drawing" not in again.stderr, "a finished study reports at once"
    assert carried() == ran
    tuner("report", "tiny", "--json")
    assert carried() == ran
    tuner("report", "tiny")
    tuner("export", "tiny", "--to", "model")
    now = carried()
    assert now.keys() == {*ran, "tiny-model.zip"}
    assert now["tiny-report.html"] == Path("tiny.html").read_bytes()
    with zipfile.ZipFile(io.BytesIO(now["tiny-model.zip"])) as model:
        model.extractall(tmp_path)
    TunedModel.load(tmp_path / "tiny-model")
    tuner("delete", "tiny", "--yes")
    assert list(PLACE.iterdir()) == []


def test_where_they_cannot_be_stored_the_work_is_done_and_a_line_says_why() -> None:
    PLACE.parent.mkdir()
    PLACE.write_text("a file where a folder should be")
    study = write_study()
    done = tuner("run", study, "--workers", "1", "--device", "cpu")
    reason = "tuner-artifacts/attached: a file of"
    assert "test error" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if "its report" in line]
    assert line.startswith(f"tiny: the dashboard will not have its report: {reason}")
    assert "(Not a directory)" in line
    done = tuner("report", "tiny")
    assert (done.stdout, Path("tiny.html").exists(), reason in done.stderr) == ("tiny: tiny.html\n", True, True)
    done = tuner("export", "tiny", "--to", "model")
    assert (TunedModel.load(Path("model")).name, reason in done.stderr) == ("tiny", True)
    with StudyManager("sqlite:///tuner.db") as manager, manager._database.engine.connect() as connection:
        assert records.artifacts_of(connection, 1) == set()
