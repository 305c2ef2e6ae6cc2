"""Slurm: the script as a golden file, what a real Slurm refuses, and a task that comes back after its time limit."""

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import TINY, tuner, wait_until, write_study
from tests.launch.readme import launch_command
from tests.launch.slurm import SlurmServer
from tests.launch.test_engines import PATIENT, SERVER, lines
from tests.storage.servers import fresh_database
from tuner.errors import BadInputError, DeviceError, EngineError
from tuner.launch import slurm as slurm_engine
from tuner.launch.engine import Crew
from tuner.launch.slurm import SlurmWorkers

COMMENT = r"""it's "a" \b # c"""
GOLDEN = """\
#!/bin/bash
#SBATCH --job-name=tuner-digits
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --partition=gpu
#SBATCH --exclusive
#SBATCH --comment="it's \\"a\\" \\\\b # c"

# sbatch hands its environment on:
#   TUNER_STORAGE=postgresql+psycopg://me:***@db.example.com/tuner
/opt/venv/bin/python -P -m tuner worker digits --quiet --device cuda &
worker=$!
# The time limit is near (USR1), which Slurm tells this script alone: the worker saves and leaves. When it wants the
# machine back (TERM), it tells the worker itself, and a second time would be to leave at once.
trap 'again=yes; kill -TERM "$worker"' USR1
trap : TERM
while kill -0 "$worker" 2> /dev/null; do wait "$worker"; done  # a trap ends a wait early
wait "$worker"
code=$?
if [[ $again && $code == 130 ]]; then  # the study goes on, and so does this task
    exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"  # SLURM_JOB_ID may name the whole array
fi
exit "$code"
"""


def crew(**changes: Any) -> Crew:
    return Crew(**{"study": "study", "workers": 1, "storage": SERVER, **changes})


def test_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_engine.sys, "executable", "/opt/venv/bin/python")
    options = {"partition": "gpu", "signal": "B:USR1@120", "exclusive": "", "comment": COMMENT}
    assert SlurmWorkers(crew(study="digits", workers=8, cpus=4, gpus=1), options).submission() == GOLDEN


def test_a_studys_name_is_one_word() -> None:
    script = SlurmWorkers(crew(study="my; study $x"), {}).submission()
    assert "-m tuner worker 'my; study $x' --quiet" in script
    assert "--job-name=tuner-my-study-x\n" in script


def test_the_size_of_the_array_is_not_slurms_to_say() -> None:
    with pytest.raises(BadInputError, match="--slurm array is tuner's to say: --workers"):
        SlurmWorkers(crew(), {"array": "1-4"})


def test_an_option_is_one_line() -> None:
    with pytest.raises(BadInputError, match="--slurm comment has a line break in it, and sbatch takes one line"):
        SlurmWorkers(crew(), {"comment": "a\n#SBATCH --uid=0"})


def test_any_value_reaches_slurm_as_it_was_given(
    slurm: SlurmServer, interpreter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    interpreter(PATIENT)
    with SlurmWorkers(crew(), {"comment": COMMENT, "J": "two words"}) as engine:
        wait_until(lambda: engine.alive() == 1)
        (job,) = slurm.run("squeue", "--noheader", "--format=%k|%j").splitlines()
    assert job == f"{COMMENT}|two words"


def test_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineError, match="sbatch is not installed here; run this on a machine that submits"):
        SlurmWorkers(crew(), {}).check()


@pytest.mark.usefixtures("slurm")
class TestRefusals:
    """At once, and before anything is submitted."""

    def test_gpus_that_the_cluster_does_not_have(self) -> None:
        with pytest.raises(DeviceError, match=r"no machine of this cluster has 2 GPUs and 1 CPU.*ask for fewer"):
            SlurmWorkers(crew(gpus=2), {}).check()

    def test_no_such_partition(self) -> None:
        with pytest.raises(EngineError, match=r"Slurm does not take the job: .*partition"):
            SlurmWorkers(crew(), {"partition": "none"}).check()

    def test_no_controller(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: SlurmServer) -> None:
        lost = tmp_path / "slurm.conf"
        text = slurm.configuration.read_text().replace("SlurmctldPort=", "MessageTimeout=1\nSlurmctldPort=1\n#")
        lost.write_text(text)
        monkeypatch.setenv("SLURM_CONF", str(lost))
        with pytest.raises(EngineError, match=r"Slurm does not take the job: .*[Uu]nable to contact slurm controller"):
            SlurmWorkers(crew(), {}).check()


def test_who_waits_in_the_queue_is_said(
    slurm: SlurmServer, interpreter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    starts = interpreter(PATIENT)
    with SlurmWorkers(crew(workers=5), {}) as engine:  # one more than the node has CPUs
        wait_until(lambda: len(lines(starts)) == 4)
        wait_until(lambda: engine.alive() == 5 and "waiting in Slurm's queue" in caplog.text)
    assert "study: 1 worker waiting in Slurm's queue: Resources" in caplog.text
    assert len(lines(tmp_path / "left")) == 4
    assert slurm.run("squeue", "--noheader") == ""


def test_a_worker_comes_back_after_its_time_limit(
    slurm: SlurmServer, interpreter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's notice is a signal to the script; that a limit is a minute at least is all that is left out here."""
    monkeypatch.chdir(tmp_path)
    starts = interpreter(PATIENT)
    with SlurmWorkers(crew(workers=2), {}) as engine:
        wait_until(lambda: len(lines(starts)) == 2)
        tasks = [
            line.split() for line in slurm.run("squeue", "--noheader", "--array", "--format=%A %F %K").splitlines()
        ]
        (task,) = [task for job, array, task in tasks if job == array]  # whose job number is that of the whole array
        slurm.run("scancel", "--batch", "--signal=USR1", f"{tasks[0][1]}_{task}")
        wait_until(lambda: len(lines(starts)) == 3)
        assert lines(tmp_path / "left") == ["left"], "it left in peace, and it alone"
        assert engine.alive() == 2
    assert lines(tmp_path / "left") == ["left"] * 3
    assert len(lines(starts)) == 3, "scancel ends a task for good"
    assert engine.alive() == 0


@pytest.mark.usefixtures("slurm", "workdir")
def test_a_study_on_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlurmWorkers, "look_s", 0.2)
    study = write_study()
    with fresh_database("postgresql", tmp_path) as url:
        done = tuner(*launch_command("slurm", study, url))
        assert "3 of 3 trials done" in done.stdout
        assert "tiny: starting 1 worker on Slurm\n" in done.stderr
        (log,) = Path().glob("slurm-*_1.out")
        assert log.read_text() == ""

        # What a worker has to say reaches whoever launched it. Here the machines keep their data elsewhere.
        Path("x.csv").write_text("\n".join(["a,y", *(f"{i},{i % 2}" for i in range(60))]))
        content = TINY.replace("sklearn:iris", "x.csv").replace("[training]", 'target = "y"\n[training]')
        unseen = write_study(content.replace('"tiny"', '"unseen"'))
        message = tuner(
            *launch_command("slurm", unseen, url), "--slurm", "export=ALL,TUNER_DATA_ROOT=/nowhere", code=2
        ).stderr
    assert "no such file: /nowhere/x.csv" in message
    assert f"; {socket.gethostname()} does not see it, and workers read the data themselves: put it at the" in message
