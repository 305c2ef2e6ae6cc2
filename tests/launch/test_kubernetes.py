"""Kubernetes: what is applied follows the published schema, keeps its promises, and what a cluster refuses is said."""

import base64
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.cli.command import ROOT, tuner, write_study
from tests.launch.readme import launch_command
from tests.launch.test_engines import PATIENT, SERVER, lines
from tests.storage.servers import fresh_database
from tuner.errors import BadInputError, DeviceError, EngineError
from tuner.launch.engine import Crew
from tuner.launch.kubernetes import KubernetesWorkers

VERSIONS = ("1.31", "1.33", kubernetes_validate.latest_version())


def engine(options: dict[str, str] | None = None, **crew: Any) -> KubernetesWorkers:
    given = {"study": "study", "workers": 3, "storage": SERVER, **crew}
    return KubernetesWorkers(Crew(**given), {"image": "registry.example.com/tuner:1", **(options or {})})


def documents(given: KubernetesWorkers) -> tuple[Any, Any]:
    secret, job = yaml.safe_load_all(given.submission())
    return secret, job


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schema_is_kept(version: str) -> None:
    given = engine({"claim": "data", "memory": "4Gi"}, cpus=4, gpus=2, artifacts="s3://bucket/place")
    secret, job = documents(given)
    for document in (secret, job):
        kubernetes_validate.validate(document, version, strict=True)
    job["spec"]["completions"] = "three"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, version, strict=True)


def test_the_job() -> None:
    secret, job = documents(engine({"memory": "4Gi"}, study="My study!", gpus=1, cpus=4))
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    assert job["metadata"]["name"].startswith("tuner-my-study-")
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert worker["command"] == ["tuner", "worker", "My study!", "--quiet", "--device", "cuda"]
    assert worker["resources"] == {
        "requests": {"cpu": "4", "memory": "4Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"},
    }
    assert worker["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    assert {key: base64.b64decode(value).decode() for key, value in secret["data"].items()} == {"TUNER_STORAGE": SERVER}
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 60)
    assert (spec["backoffLimitPerIndex"], "backoffLimit" in spec) == (3, False), (
        "tries of a worker, none of which is shared"
    )
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["Ignore", "Ignore", "FailIndex"]
    assert spec["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"][1:]] == [[130], [2]]


def test_a_claim_holds_data_and_checkpoints() -> None:
    secret, job = documents(engine({"claim": "shared"}))
    pod = job["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "shared"}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    given = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    assert (given["TUNER_DATA_ROOT"], given["TUNER_ARTIFACTS"]) == ("/data", "/data/tuner-artifacts")


def test_the_command_prints_what_is_applied() -> None:
    given = ["--on", "kubernetes", "--workers", "2", "--storage", SERVER, "--kubernetes", "image=tuner:1"]
    done = tuner("launch", ROOT / "studies/digits.toml", *given, "--dry-run")
    secret, job = yaml.safe_load_all(done.stdout)
    assert (secret["kind"], job["kind"], job["spec"]["completions"]) == ("Secret", "Job", 2)
    assert "se-cret" not in done.stdout + done.stderr


def test_bad_options() -> None:
    with pytest.raises(BadInputError, match=r"--kubernetes image=IMAGE is missing: the container image that has tuner"):
        engine({"image": ""})
    with pytest.raises(BadInputError, match=r"--kubernetes pool is no option; known: image \("):
        engine({"pool": "gpu"})


def test_without_kubectl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineError, match="kubectl is not installed here; install it, or apply what --dry-run prints"):
        engine().check()


def test_without_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(EngineError, match=r"YAML cannot be written without PyYAML; pip install 'tuner\[kubernetes\]'"):
        engine().submission()


class TestRefusals:
    def test_no_cluster(self, kubernetes: Path) -> None:
        (kubernetes / "down").write_text("The connection to the server localhost:8080 was refused")
        with pytest.raises(EngineError, match=r"no Kubernetes cluster can be reached \(kubectl: .*was refused\)"):
            engine().check()

    def test_gpus_that_the_cluster_does_not_have(self, kubernetes: Path, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(DeviceError, match="a worker of 1 GPU fits on no node of this cluster, whose largest has 0"):
            engine(gpus=1).check()
        nodes = [{"status": {"allocatable": {"nvidia.com/gpu": gpus}}} for gpus in ("2", "1", "0")]
        (kubernetes / "nodes.json").write_text(json.dumps({"items": nodes}))
        engine(gpus=1).check()
        assert "room for" not in caplog.text
        engine(gpus=2).check()
        assert "room for 1 of 3 workers; the others wait for nodes" in caplog.text
        with pytest.raises(DeviceError, match="3 GPUs fits on no node of this cluster, whose largest has 2"):
            engine(gpus=3).check()

    def test_what_a_pod_waits_for_is_said(self, kubernetes: Path, caplog: pytest.LogCaptureFixture) -> None:
        unschedulable = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
        pod = {"kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Pending", "conditions": [unschedulable]}}
        (kubernetes / "pending.json").write_text(json.dumps(pod))
        (kubernetes / "job.json").write_text(json.dumps({"kind": "Job", "status": {}}))
        given = engine(artifacts="s3://bucket/place")
        assert (given.alive(), given.alive()) == (3, 3)
        pulling = {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}
        pod["status"] = {"phase": "Pending", "containerStatuses": [pulling]}
        (kubernetes / "pending.json").write_text(json.dumps(pod))
        assert given.alive() == 3
        said = [record.getMessage() for record in caplog.records]
        assert said == ["pods are waiting: 0/3 nodes are available", "pods are waiting: ErrImagePull: no such image"]


def test_kubectl_is_told_where(kubernetes: Path) -> None:
    engine({"namespace": "ml", "context": "prod"}).check()
    calls = (kubernetes / "calls").read_text().splitlines()
    assert len(calls) == 2
    assert all(call.startswith("--context=prod --namespace=ml ") for call in calls)


class TestTheSecretGoesWithTheJob:
    def test_of_a_detached_job(self, kubernetes: Path, interpreter: Any, tmp_path: Path) -> None:
        interpreter(PATIENT)
        given = engine(workers=1)
        given.start(detach=True)
        secret = json.loads((kubernetes / "secret.json").read_text())
        kubernetes_validate.validate(secret, VERSIONS[-1], strict=True)
        commands = [shlex.split(each) for each in re.findall(r"kubectl .*? (?=shows|ends)", given.traces)]
        pods = json.loads(subprocess.run(commands[0], check=True, capture_output=True).stdout)["items"]
        assert [pod["kind"] for pod in pods] == ["Job", "Pod"]
        subprocess.run(commands[1], check=True)
        assert lines(tmp_path / "left") == ["left"]
        assert not (kubernetes / "secret.json").exists()
        assert given.alive() == 0

    def test_of_what_dry_run_prints(self, kubernetes: Path, interpreter: Any) -> None:
        """Applied by hand nobody owns it: the text says what removes both."""
        interpreter(PATIENT)
        given = engine({"namespace": "ml"}, workers=1)
        text = given.submission()
        subprocess.run(["kubectl", "apply", "--filename=-"], input=text, text=True, check=True)
        (command,) = re.findall(r"^#.*(kubectl --namespace=ml delete .*)$", text, flags=re.MULTILINE)
        subprocess.run(shlex.split(command), check=True)
        assert not (kubernetes / "secret.json").exists()
        assert not (kubernetes / "job.json").exists()

    def test_of_a_job_that_is_refused(self, kubernetes: Path) -> None:
        (kubernetes / "refuses").write_text("exceeded quota")
        with pytest.raises(EngineError, match=r"Kubernetes refuses \(kubectl apply: error: exceeded quota\)"):
            engine().start()
        assert not (kubernetes / "secret.json").exists()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    with fresh_database("postgresql", tmp_path) as url:
        yield url


@pytest.mark.usefixtures("workdir")
def test_a_study_on_kubernetes(kubernetes: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KubernetesWorkers, "look_s", 0.2)
    done = tuner(*launch_command("kubernetes", write_study(), database))
    assert "3 of 3 trials done" in done.stdout
    assert "tiny: starting 1 worker on Kubernetes\n" in done.stderr
    assert (kubernetes / "pod-0" / "code").read_text() == "0\n", "it found out by itself that the study is finished"
    assert not (kubernetes / "job.json").exists()
    assert not (kubernetes / "secret.json").exists()
