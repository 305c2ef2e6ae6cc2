"""docker-compose.yml: valid, and each service's very command does its work, as a plain process on a real PostgreSQL."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from ruamel.yaml import YAML

from tests.cli.command import DEADLINE_S, ROOT, TINY
from tests.storage.servers import fresh_database
from tuner.manager import StudyManager

FILE = ROOT / "docker-compose.yml"


def compose() -> dict[str, Any]:
    """The file, with its anchors merged."""
    read: dict[str, Any] = YAML(typ="safe").load(FILE)
    return read


def invalid(text: str, folder: Path) -> str:
    """What the Compose specification's schema has against a file; empty when nothing."""
    path = folder / "compose.yml"
    path.write_text(text)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode in (0, 1), done
    return done.stdout if done.returncode else ""


def test_the_file_follows_the_compose_specification(tmp_path: Path) -> None:
    text = FILE.read_text()
    assert invalid(text, tmp_path) == ""
    assert "retries" in invalid(text.replace("retries: 30", "retries: [30]"), tmp_path)


def test_the_services_are_kept_well() -> None:
    content = compose()
    services = content["services"]
    assert services.keys() == {"db", "create", "worker", "worker-gpu", "dashboard"}
    for name, service in services.items():
        tag = service["image"].partition(":")[2]
        assert tag not in ("", "latest"), name
        assert service["restart"] in ("no", "on-failure", "unless-stopped"), name
        assert "db_password" in service["secrets"], name
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source.startswith("./") or source in content["volumes"], volume
    assert re.search(r"^FROM python:[\d.]+-", services["worker"]["build"]["dockerfile_inline"], flags=re.MULTILINE)
    assert all(secret.keys() == {"file"} for secret in content["secrets"].values())
    assert services["db"]["healthcheck"]["test"][1] == "pg_isready"
    assert services["create"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    for name in ("worker", "worker-gpu", "dashboard"):
        assert services[name]["depends_on"] == {"create": {"condition": "service_completed_successfully"}}
    assert (services["worker"]["profiles"], services["worker-gpu"]["profiles"]) == (["cpu"], ["gpu"])
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert services["dashboard"]["ports"] == ["127.0.0.1:8080:8080"]


@contextmanager
def running(
    service: str, folder: Path, url: str, port: int = 0, *, words: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A service's entrypoint and command, with the container's places moved into ``folder``.

    words: what ``docker compose run`` puts in the command's place.
    """
    content = compose()["services"][service]
    places = {
        "$$": "$",
        "/run/secrets": f"{folder}/secrets",
        "/studies": f"{folder}/studies",
        "--host 0.0.0.0 --port 8080": f"--host 0.0.0.0 --port {port}",
    }
    command = [*content["entrypoint"], *(words or content["command"])]
    for theirs, ours in places.items():
        command = [part.replace(theirs, ours) for part in command]
    assert content["environment"].keys() == {"STUDY", "TUNER_STORAGE", "TUNER_ARTIFACTS"}
    environment = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "HOME": str(folder),
        "STUDY": "tiny",
        "TUNER_STORAGE": url,
        "TUNER_ARTIFACTS": f"{folder}/artifacts",
    }
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the containers have: secrets, a study and ``tuner`` on the path."""
    for name in ("secrets", "studies", "bin", "artifacts"):
        (tmp_path / name).mkdir()
    (tmp_path / "secrets" / "db_password").write_text("unused where the server trusts\n")
    (tmp_path / "secrets" / "dashboard_password").write_text("open sesame\n")
    (tmp_path / "studies" / "tiny.toml").write_text(TINY.replace("trials = 3", "trials = 40"))
    program = tmp_path / "bin" / "tuner"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tuner "$@"\n')
    program.chmod(0o755)
    return tmp_path


def cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def test_a_study_is_finished_by_the_services_own_commands(folder: Path) -> None:
    with fresh_database("postgresql", folder) as url:
        with running("create", folder, url) as create:
            out, err = create.communicate(timeout=DEADLINE_S)
            assert create.returncode == 0, err
            assert out.startswith("tiny: created, 40 trials")
        with running("worker-gpu", folder, url) as gpu:
            _, err = gpu.communicate(timeout=DEADLINE_S)
            if cuda_devices():
                assert (gpu.returncode, err.endswith("tiny: finished\n")) == (0, True), err
                return
            assert (gpu.returncode, "cuda" in err.lower()) == (2, True), (
                err
            )  # it asks for GPUs, and takes no CPU instead
        with running("worker", folder, url) as one, running("worker", folder, url) as two:
            for worker in (one, two):
                _, err = worker.communicate(timeout=DEADLINE_S)
                assert worker.returncode == 0, err
                assert err.endswith("tiny: finished\n")
        with StudyManager(url, folder / "artifacts") as manager:
            summary = manager.summary("tiny")
            assert (summary.state, summary.trials["complete"]) == ("finished", 40)
            assert len(manager.workers("tiny")) == 2
        said = next(line for line in (ROOT / "README.md").read_text().splitlines() if "docker compose run" in line)
        words = said.partition("#")[0].partition("worker ")[2].replace("digits", "tiny").split()
        with running("worker", folder, url, words=words) as run:
            out, err = run.communicate(timeout=DEADLINE_S)
            assert (run.returncode, "test error" in out) == (0, True), err
        assert (folder / "artifacts" / "attached").is_dir(), "the dashboard hands the report out"
        with running("dashboard", folder, url) as dashboard:
            assert dashboard.stderr is not None
            line = dashboard.stderr.readline()
            assert line.startswith("dashboard: http://0.0.0.0:"), line + dashboard.stderr.read()
            address = f"http://127.0.0.1:{line.split()[1].rpartition(':')[2]}/api/studies"
            with pytest.raises(HTTPError, match="401"):
                urlopen(address)
            secret = base64.b64encode(b"me:open sesame").decode()
            with urlopen(Request(address, headers={"Authorization": f"Basic {secret}"})) as answer:
                (study,) = json.load(answer)["study_summaries"]
            assert study["study_name"] == "tiny"
            dashboard.send_signal(signal.SIGTERM)
            assert dashboard.wait(DEADLINE_S) == 0
