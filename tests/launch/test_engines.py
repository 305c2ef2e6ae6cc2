"""The contract of all engines: workers are started, counted, stopped in peace, and heard when they refuse."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT, wait_until
from tests.launch.lost import until_lost
from tuner.errors import BadInputError, EngineError
from tuner.launch import Place, engine, kubernetes, slurm
from tuner.launch.engine import Crew, Engine, make_engine

SERVER = "postgresql://me:se-cret@db.example.com/tuner"
# What stands in for a worker: told to leave by a signal or by the end of its input, it takes its time, says so, leaves.
PATIENT = """
import select, time
log = os.path.join(os.path.dirname(__file__), "left")
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
while not told:
    if "--leashed" in sys.argv and select.select([sys.stdin], [], [], 0.05)[0]:
        break
    time.sleep(0.05)
time.sleep(0.5)  # a second signal would be to leave at once, with nothing saved
with open(log, "a") as file:
    print("left" if len(told) < 2 else "thrown out", file=file)
sys.exit(130)
"""
REFUSING = "print('error: data.source: no such file: /data/x.csv', file=sys.stderr); sys.exit(2)"
PLACES: list[Place] = ["local", "slurm", "kubernetes", "ray"]


@pytest.fixture(params=PLACES)
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Makes an engine of each kind, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    place: Place = request.param
    if place != "local":
        request.getfixturevalue(place)
    monkeypatch.setattr(slurm, "POLL_S", 0.1)
    monkeypatch.setattr(kubernetes, "POLL_S", 0.1)

    options: dict[str, Any] = {
        "kubernetes": {"kubernetes": ["image=tuner:1"]},
        "ray": {"runtime_env": json.dumps(stand_in(tmp_path / "interpreter"))},
    }

    def engine(**crew: Any) -> Engine:
        given = Crew(study="study", storage=SERVER, **{"workers": 2, **crew})
        return make_engine(place, given, **options.get(place, {}))

    return engine


def stand_in(interpreter: Path) -> dict[str, Any]:
    """Ray's runtime environment in which a program stands in for Python, and so for ``tuner worker``."""
    return {
        "py_modules": [],
        "worker_process_setup_hook": "tests.launch.standin.take_over",
        "env_vars": {"TUNER_TEST_INTERPRETER": str(interpreter), "PYTHONPATH": str(ROOT)},
    }


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_workers_are_started_and_leave_in_peace(make: Any, interpreter: Any, tmp_path: Path) -> None:
    starts = interpreter(PATIENT)
    engine = make()
    engine.check()
    with engine:
        wait_until(lambda: len(lines(starts)) == 2)
        assert engine.alive() == 2
        assert all("-m tuner worker study" in line and "--device cpu" in line for line in lines(starts))
    assert lines(tmp_path / "left") == ["left", "left"], "stop waits until they have saved"
    assert engine.alive() == 0
    engine.stop()


def test_workers_that_are_done_are_not_started_again(make: Any, interpreter: Any) -> None:
    starts = interpreter("")
    with make() as engine:
        wait_until(lambda: engine.alive() == 0)
    assert len(lines(starts)) == 2


def test_the_storage_reaches_the_workers_and_shows_nowhere(make: Any, interpreter: Any, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    starts = interpreter(f"open({str(seen)!r}, 'a').write(os.environ['TUNER_STORAGE'] + os.environ['TUNER_ARTIFACTS'])")
    with make(workers=1, artifacts="s3://bucket/place") as engine:
        wait_until(lambda: engine.alive() == 0)
        shown = engine.submission()
    assert seen.read_text() == f"{SERVER}s3://bucket/place"
    assert "se-cret" not in shown + starts.read_text()
    assert "db.example.com/tuner" in shown or "kind: Secret" in shown


def test_a_worker_that_refuses_is_heard(make: Any, interpreter: Any) -> None:
    """Its own words, and its own exit code: the launcher shows them."""
    interpreter(REFUSING)
    with make() as engine:
        lost = until_lost(engine)
    assert "data.source: no such file: /data/x.csv" in str(lost)
    assert lost.exit_code == 2


def test_others_go_on_without_it(make: Any, interpreter: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interpreter(
        f"first = {str(tmp_path / 'first')!r}\n"
        "try:\n    os.close(os.open(first, os.O_CREAT | os.O_EXCL))\nexcept FileExistsError:\n    pass\n"
        f"else:\n    {REFUSING}\n{PATIENT}"
    )
    caplog.set_level("INFO")
    with make() as engine:
        wait_until(lambda: engine.alive() == 1 and "/data/x.csv" in caplog.text)
        assert engine.alive() == 1
        assert caplog.text.count("/data/x.csv") == 1


def test_a_file_is_refused_where_machines_would_share_it() -> None:
    crew = Crew(study="s", workers=2, storage="sqlite:///tuner.db")
    with pytest.raises(BadInputError, match=r"tuner\.db is a file.*use PostgreSQL: .*postgresql://USER@HOST/tuner"):
        make_engine("slurm", crew)
    make_engine("local", crew)


def test_checkpoints_are_in_one_place_whatever_folder_a_worker_starts_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, wanted in ((None, f"{tmp_path}/tuner-artifacts"), ("a", f"{tmp_path}/a"), ("s3://b/p", "s3://b/p")):
        crew = Crew(study="s", workers=2, storage=SERVER, artifacts=given)
        assert [make_engine(place, crew).crew.artifacts for place in ("slurm", "ray")] == [wanted, wanted]
    assert caplog.text == ""
    make_engine("kubernetes", Crew(study="s", workers=2, storage=SERVER), kubernetes=["image=tuner:1"])
    assert "each pod keeps its checkpoints to itself" in caplog.text


def test_a_server_of_this_machine_alone_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    make_engine("slurm", Crew(study="s", workers=2, storage="postgresql://me@localhost/tuner"))
    assert "on other machines localhost is another database, if any" in caplog.text


def test_options_are_for_their_engine() -> None:
    crew = Crew(study="s", workers=2, storage=SERVER)
    with pytest.raises(BadInputError, match="--slurm is for --on slurm, and this is --on local"):
        make_engine("local", crew, slurm=["partition=gpu"])
    with pytest.raises(BadInputError, match="--slurm takes KEY=VALUE, as in partition=gpu, not '=gpu'"):
        make_engine("slurm", crew, slurm=["=gpu"])


def test_a_program_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "hangs"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(engine, "CALL_S", 0.1)
    with pytest.raises(EngineError, match="did not answer within"):
        engine.call([str(program)])
    assert engine.call(["/bin/sh", "-c", "echo $A"], environment={**os.environ, "A": "b"}).stdout == "b\n"
