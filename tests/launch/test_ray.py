"""Ray: a real cluster of two nodes on this machine, one of which goes away in the middle of a study."""

import ipaddress
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import DEADLINE_S, ROOT, TINY, start, strict_json, tuner, wait_until, write_study
from tests.launch.lost import until_lost
from tests.launch.readme import launch_command
from tests.launch.test_engines import SERVER, stand_in
from tests.storage.servers import fresh_database
from tuner import __version__
from tuner.errors import BadInputError, DeviceError, EngineError
from tuner.launch.engine import Crew
from tuner.launch.ray import RayWorkers, read_runtime_env
from tuner.manager import StudyManager


def crew(**changes: Any) -> Crew:
    return Crew(**{"study": "study", "workers": 2, "storage": SERVER, **changes})


def test_what_is_submitted_is_json() -> None:
    engine = RayWorkers(crew(cpus=4, gpus=1), address="head:6379", runtime_env={"pip": ["x"]})
    content = json.loads(engine.submission())
    assert content["address"] == "head:6379"
    assert (len(content["actors"]), content["options"]["num_cpus"], content["options"]["num_gpus"]) == (2, 4, 1)
    assert content["options"]["max_restarts"] == content["options"]["max_task_retries"] == -1
    assert content["command"] == ["tuner", "worker", "study", "--quiet", "--device", "cuda"]
    assert content["runtime_env"]["pip"] == ["x"]
    assert "se-cret" not in json.dumps(content)
    detached = json.loads(engine.submission(detach=True))["options"]
    assert detached == {**content["options"], "lifetime": "detached", "namespace": "tuner"}


def test_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"no Ray cluster can be reached at 127.0.0.1:1 \(.*refused\); ray start"):
        RayWorkers(crew(), address="127.0.0.1:1").check()
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:2")
        with pytest.raises(EngineError, match=r"at 127.0.0.1:2 \(.*refused\)"):
            RayWorkers(crew()).check()
    monkeypatch.setattr("ray.init", lambda **_: ipaddress.ip_address("none"))  # any ValueError, as Ray raises them
    with pytest.raises(EngineError, match=r"no Ray cluster can be reached at RAY_ADDRESS, or on this machine"):
        RayWorkers(crew()).check()


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"--on ray needs Ray; pip install 'tuner\[ray\]'"):
        RayWorkers(crew()).check()


@pytest.mark.parametrize("text", ["pip", "[1]"])
def test_a_runtime_environment_is_a_json_object(text: str) -> None:
    with pytest.raises(BadInputError, match="--runtime-env takes"):
        read_runtime_env(text)


@pytest.mark.usefixtures("ray")
def test_room(caplog: pytest.LogCaptureFixture) -> None:
    """What no node has is refused at once; what is taken at the moment is waited for, and said."""
    asked = RayWorkers(crew(gpus=1))
    with pytest.raises(DeviceError, match="a worker of 1 GPU fits on no node of this Ray cluster, whose largest has 0"):
        asked.check()
    asked.stop()
    with pytest.raises(
        DeviceError, match="a worker of 3 CPUs fits on no node of this Ray cluster, whose largest has 2"
    ):
        RayWorkers(crew(cpus=3)).check()
    crowd = RayWorkers(crew(workers=5))
    crowd.check()
    crowd.stop()
    assert "room for 2 of 5 workers; the others start as nodes join" in caplog.text


@pytest.mark.usefixtures("ray")
def test_a_node_that_cannot_start_a_process_is_heard(tmp_path: Path) -> None:
    """No TunerError, and no worker that left in peace."""
    with RayWorkers(crew(workers=1), runtime_env=stand_in(tmp_path / "gone")) as engine:
        lost = until_lost(engine)
    assert re.fullmatch(r"a worker on \S+ is lost: FileNotFoundError: .*gone'", str(lost))
    assert lost.exit_code == 1


LONG = TINY.replace("trials = 3", "trials = 48").replace("epochs = 4", "epochs = 300")


@pytest.fixture
def two_nodes(ray: Any) -> Iterator[Any]:
    """The cluster with a node for each of two workers, in the place of its usual one."""

    def put(*cpus: int) -> None:
        for node in list(ray.worker_nodes):
            ray.remove_node(node)
        for number in cpus:
            ray.add_node(num_cpus=number, num_gpus=0)

    put(1, 1)
    yield ray
    put(2)


@pytest.mark.usefixtures("workdir")
def test_a_node_is_removed_in_the_middle_of_a_study(two_nodes: Any, tmp_path: Path) -> None:
    """Exactly N trials all the same: one worker goes on, and Ray starts the other one again as a node joins."""
    with fresh_database("postgresql", tmp_path) as url:
        words = [*launch_command("ray", write_study(LONG), url), "--workers", "2", "--format", "json"]
        process = start(*words)
        with StudyManager(url) as manager:

            def holders() -> list[int]:
                there = "tiny" in manager.names()
                return [holder.pid for holder in manager.ledger("tiny").outstanding().holders] if there else []

            # However fast this machine is, there is work left for whoever is still being started.
            wait_until(lambda: bool(holders()), process=process)
            with asleep(*holders()):
                wait_until(lambda: len(holders()) == 2, process=process)
            crew = holders()
            two_nodes.remove_node(next(iter(two_nodes.worker_nodes)), allow_graceful=False)
            with asleep(*crew):
                two_nodes.add_node(num_cpus=1, num_gpus=0)
                wait_until(lambda: len(manager.workers("tiny")) == 3, process=process)
            out, err = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, err
            trials = strict_json(out)["trials"]
            assert (trials["total"], trials["complete"]) == (48, 48)
            assert [row.number for row in manager.trials("tiny")] == list(range(48))


@contextmanager
def asleep(*pids: int) -> Iterator[None]:
    """Processes that do nothing for a while, where they still are."""

    def tell(number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    tell(signal.SIGSTOP)
    try:
        yield
    finally:
        tell(signal.SIGCONT)


@pytest.mark.usefixtures("workdir", "ray")
def test_other_versions_are_refused(tmp_path: Path) -> None:
    """The version of the launcher and that of the worker, from wherever it was."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text("import tuner; tuner.__version__ = '99.1.0'")
    runtime_env = {"env_vars": {"PYTHONPATH": f"{tmp_path}/other:{ROOT}"}, "py_modules": []}
    with fresh_database("postgresql", tmp_path) as url:
        options = ["--on", "ray", "--workers", "1", "--storage", url, "--runtime-env", json.dumps(runtime_env)]
        message = tuner("launch", write_study(), *options, "--quiet", code=2).stderr
    assert f"was created by Tuner {__version__}, this is Tuner 99.1.0; all workers of a study run" in message
