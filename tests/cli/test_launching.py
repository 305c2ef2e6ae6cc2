"""launch: from a study file to a test error, with workers that an engine starts."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import ROOT, refused, start, tuner, tuner_json, wait_until, write_study
from tests.launch.readme import launch_command
from tuner.manager import StudyManager

pytestmark = pytest.mark.usefixtures("workdir")

LOCAL = ["--on", "local", "--workers", "1"]


def test_dry_run_submits_nothing() -> None:
    out = tuner("launch", write_study(), *LOCAL, "--cpus-per-worker", "2", "--dry-run").stdout.splitlines()
    assert out[0] == "export TUNER_STORAGE=sqlite:///tuner.db"
    assert len(out) == 3
    assert all(line.endswith("-m tuner worker tiny --device cpu --quiet --leashed") for line in out[1:])
    assert not Path("tuner.db").exists()


def test_dry_run_of_a_detached_crew_is_what_outlives_the_shell() -> None:
    """Run by a shell that ends at once, it finishes the study."""
    study = write_study()
    tuner("create", study)
    script = tuner("launch", study, *LOCAL, "--detach", "--dry-run").stdout
    subprocess.run(["sh", "-euc", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    with StudyManager("sqlite:///tuner.db") as manager:
        wait_until(lambda: manager.summary("tiny").state == "finished")
    assert Path("tuner-tiny.log").read_text() == ""


def test_a_detached_crew_goes_on_alone_and_the_same_command_reports() -> None:
    study = write_study()
    launch = ["launch", study, *LOCAL, "--storage", "sqlite:///tuner.db", "--detach"]
    out, err = (process := start(*launch)).communicate(timeout=120)
    assert (process.returncode, err) == (0, "tiny: reading the data\ntiny: starting 1 worker on this machine\n")
    assert out.splitlines() == [
        "tiny: 1 worker started, their words go to tuner-tiny.log",
        "next  tuner show tiny --storage sqlite:///tuner.db",
        "      tuner stop tiny --storage sqlite:///tuner.db",
    ]
    with StudyManager("sqlite:///tuner.db") as manager:
        wait_until(lambda: manager.summary("tiny").state == "finished")
    done = tuner(*launch_command("local", study, "sqlite:///tuner.db"))
    assert "3 of 3 trials done" in done.stdout
    assert "test error" in done.stdout
    assert "starting" not in done.stderr, "a finished study needs no workers"
    assert Path("tuner-tiny.log").read_text() == ""


def test_bad_input() -> None:
    study = write_study()
    launch = ["launch", study, *LOCAL]
    assert "tuner.db is a file, and workers on several machines cannot share one; use PostgreSQL" in refused(
        "launch", study, "--on", "slurm", "--workers", "2"
    )
    assert "--slurm is for --on slurm" in refused(*launch, "--slurm", "mem=8G")
    assert "1 worker of 9 GPUs need 9 GPUs, this machine has" in refused(
        "launch", study, *LOCAL, "--gpus-per-worker", "9"
    )
    assert "--ensemble is for the end" in refused(*launch, "--detach", "--ensemble")
    assert "--to is for the end" in refused(*launch, "--detach", "--to", "figures")
    assert not Path("tuner.db").exists()
    assert "'cloud' is not one of" in refused("launch", study, "--on", "cloud", "--workers", "1")


def test_summary_of_a_launched_study_is_that_of_a_run() -> None:
    study = write_study()
    tuner("create", study)
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    record = tuner("launch", study, *LOCAL, "-f", "json").stdout
    assert '"state": "finished"' in record
    assert tuner_json("show", "tiny")["evaluation"] is not None
