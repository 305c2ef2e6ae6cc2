"""Detached workers, on every engine: they outlive their launcher, and what it printed shows, stops and ends them."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import DEADLINE_S, TINY, start, strict_json, tuner, wait_until, write_study
from tests.launch.readme import launch_command
from tests.storage.servers import fresh_database
from tuner.launch import Place
from tuner.launch.ray import NAMESPACE
from tuner.manager import StudyManager

LONG = TINY.replace("trials = 3", "trials = 40").replace("epochs = 4", "epochs = 300")
SAID: dict[Place, str] = {
    "ray": rf"as actors (tuner-tiny-\w+)-0 … in Ray's namespace {NAMESPACE}",
    "slurm": r"as job (\d+): (squeue --job=\1) shows it, (scancel \1) ends it, their words go to slurm-\1_\*\.out",
    "kubernetes": r"as job (tuner-tiny-\w+): (kubectl get pods --selector=app\.kubernetes\.io/instance=\1) shows its "
    r"pods, (kubectl delete job \1) ends it and takes its Secret along",
}


def launched(place: Place, study: Path, *options: str) -> str:
    """Launch and let go; what was printed."""
    words = launch_command(place, study, "")
    process = start(*words[: words.index("--storage")], "--detach", *options)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return out


def traces(place: Place, text: str) -> re.Match[str]:
    """Where the workers are."""
    found = re.fullmatch(SAID[place], text)
    assert found, text
    return found


@pytest.mark.parametrize("place", SAID)
@pytest.mark.usefixtures("workdir")
def test_workers_outlive_their_launcher(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(place)
    study = write_study(LONG)
    with fresh_database("postgresql", tmp_path) as url, StudyManager(url) as manager:
        monkeypatch.setenv("TUNER_STORAGE", url)
        head, *following = launched(place, study).splitlines()
        where = traces(place, head.removeprefix("tiny: 1 worker started, "))
        show, stop = [line.removeprefix("next").split() for line in following]
        wait_until(lambda: manager.summary("tiny").trials["running"] > 0)
        assert show == ["tuner", "show", "tiny"]
        assert "40 trials" in tuner(*show[1:]).stdout
        assert stop == ["tuner", "stop", "tiny"]
        tuner(*stop[1:])
        wait_until(lambda: not left_over(place, engine, where))
        assert (manager.summary("tiny").state, manager.summary("tiny").trials["running"]) == ("stopped", 0)

        record = strict_json(launched(place, study, "-f", "json"))
        where = traces(place, record["traces"])
        assert (record["study"], record["workers"], record["next"]) == ("tiny", 1, [" ".join(show), " ".join(stop)])
        wait_until(lambda: manager.summary("tiny").state == "finished")
        wait_until(lambda: not left_over(place, engine, where))
        assert [row.number for row in manager.trials("tiny")] == list(range(40))
        assert [worker.state for worker in manager.workers("tiny")] == ["left", "left"]


def left_over(place: Place, engine: Any, where: re.Match[str]) -> object:
    """What there still is of workers that are done."""
    if place == "ray":
        import ray

        with ray.init(engine.address, namespace=NAMESPACE, log_to_driver=False):
            return [name for name in ray.util.list_named_actors() if name.startswith(where[1])]
    if place == "slurm":
        return engine.run(*shlex.split(where[2]), "--noheader")
    code = engine / "pod-0" / "code"
    if not code.exists():
        return "its pod"
    assert code.read_text() == "0\n", "it left in peace"
    subprocess.run(shlex.split(where[3]), check=True)  # or whoever tidies up finished jobs
    return [name for name in ("job.json", "secret.json") if (engine / name).exists()]
