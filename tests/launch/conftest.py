"""What the tests of several engines share: stand-ins for ``tuner worker``, a Slurm, a kubectl."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT
from tests.launch.slurm import SlurmServer, why_no_slurm
from tests.storage.servers import required
from tuner.launch import local


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a few lines of Python in the place of ``tuner worker``; each start of it appends a line to ``starts``."""

    def replace(body: str) -> Path:
        starts = tmp_path / "starts"
        script = tmp_path / "interpreter"
        script.write_text(
            f"#!{sys.executable} -IS\nimport os, signal, sys\n"
            f"with open({str(starts)!r}, 'a') as file:\n    print(*sys.argv[1:], file=file)\n{body}\n"
        )
        script.chmod(0o755)
        monkeypatch.setattr(local.sys, "executable", str(script))
        return starts

    return replace


@pytest.fixture(scope="session")
def slurm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmServer]:
    """A Slurm of one node, which is this machine."""
    required(why_no_slurm())
    with SlurmServer(tmp_path_factory.mktemp("slurm")) as server:
        yield server


@pytest.fixture
def slurm(slurm_server: SlurmServer, monkeypatch: pytest.MonkeyPatch) -> SlurmServer:
    """The commands of Slurm find the server."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_server.configuration))
    return slurm_server


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cluster without GPUs that the kubectl of the tests, first on the path, talks to."""
    folder, source = tmp_path / "cluster", Path(__file__).with_name("kubectl.py")
    (folder / "bin").mkdir(parents=True)
    (folder / "nodes.json").write_text('{"items": [{"status": {"allocatable": {"cpu": "4"}}}]}')
    programs = {
        tmp_path / "kubectl": f'exec "{sys.executable}" "{source}" "$@"',
        # What runs in the pods: this tuner, or what a test put in its place.
        folder / "bin" / "tuner": f'[ -x "{tmp_path}/interpreter" ] && exec "{tmp_path}/interpreter" -m tuner "$@"\n'
        f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m tuner "$@"',
    }
    for path, line in programs.items():
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("KUBECTL_FOLDER", str(folder))
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes, which are processes of this machine: a head without CPUs, and one with two."""
    from ray.cluster_utils import Cluster

    impatient = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_failure_threshold": 5}
    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "_system_config": impatient}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=2, num_gpus=0)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def ray(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``RAY_ADDRESS`` is the cluster."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    return ray_cluster
