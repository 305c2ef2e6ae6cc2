"""Kubernetes: an indexed Job with one pod a worker, and a Secret that holds where the storage is.

Evictions, preemptions and drained nodes cost a pod none of its tries; a worker that refuses its input fails for good.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import shlex
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.errors import BadInputError, DeviceError, EngineError
from tuner.launch.engine import LEAVE_S, Crew, Engine, WorkersLostError, call, label, last_line, require
from tuner.launch.local import GRACE_S, INTERRUPTED, LAST_WORDS, RESTARTS
from tuner.words import count

POLL_S = 0.5  # seconds between two looks at pods that are leaving
KEEP_S = 3600  # seconds that Kubernetes keeps a job which nobody deleted after its end
DATA = "/data"  # where a claim is mounted
GPU = "nvidia.com/gpu"
_OPTIONS = {
    "image": "the container image that has tuner",
    "namespace": "kubectl's, by default",
    "context": "kubectl's, by default",
    "memory": "of each worker, such as 4Gi",
    "claim": f"a persistent volume claim, mounted at {DATA}: data and checkpoints",
}

_log = logging.getLogger(__name__)


class KubernetesWorkers(Engine):
    """One index of a Job a worker. options: see ``_OPTIONS``; raises BadInputError for others, or without an image."""

    name = "Kubernetes"
    look_s = 5.0

    def __init__(self, crew: Crew, options: Mapping[str, str]) -> None:
        super().__init__(crew)
        known = "; ".join(f"{key} ({meaning})" for key, meaning in _OPTIONS.items())
        if unknown := [key for key in options if key not in _OPTIONS]:
            raise BadInputError(f"--kubernetes {unknown[0]} is no option; known: {known}")
        if not options.get("image"):
            raise BadInputError(
                "--kubernetes image=IMAGE is missing: the container image that has tuner, such as the one that "
                "docker-compose.yml builds, pushed to a registry of the cluster"
            )
        if crew.artifacts is None and not options.get("claim"):
            _log.warning(
                "each pod keeps its checkpoints to itself, so what a lost one trained begins anew; give --kubernetes "
                "claim=VOLUME, or --artifacts s3://bucket/path"
            )
        self._options = options
        self._id = f"{label(crew.study)}-{uuid.uuid4().hex[:6]}"
        self._started = False
        self._told: set[str] = set()  # what was said of pods already

    def submission(self, *, detach: bool = False) -> str:  # noqa: ARG002
        """YAML for ``kubectl apply``. The Secret holds the storage's URL with its password, encoded, not encrypted."""
        end = self._command("delete", "job,secret", f"--selector={self._selector}")
        return (
            "# tuner launch makes the Job the owner of the Secret once it has a UID, so that they go together.\n"
            f"# Where you apply this yourself, both go with: {end}\n{_yaml(self._documents())}"
        )

    def _documents(self) -> list[dict[str, Any]]:
        crew, claim = self.crew, self._options.get("claim")
        labels = {"app.kubernetes.io/name": "tuner", "app.kubernetes.io/instance": self._id}
        environment = dict(crew.environment)
        if claim:
            environment.setdefault("TUNER_ARTIFACTS", f"{DATA}/tuner-artifacts")
            environment["TUNER_DATA_ROOT"] = DATA
        memory = {"memory": self._options["memory"]} if self._options.get("memory") else {}
        gpus = {GPU: str(crew.gpus)} if crew.gpus else {}
        worker: dict[str, Any] = {
            "name": "worker",
            "image": self._options["image"],
            "command": ["tuner", *crew.words],
            "envFrom": [{"secretRef": {"name": self._id}}],
            "resources": {"requests": {"cpu": str(crew.cpus), **memory, **gpus}, "limits": {**memory, **gpus}},
        }
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": int(GRACE_S),
            "containers": [worker],
        }
        if claim:
            worker["volumeMounts"] = [{"name": "data", "mountPath": DATA}]
            pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self._id, "labels": dict(labels)},
            "type": "Opaque",
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in environment.items()},
        }
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": self._id, "labels": dict(labels)},
            "spec": {
                "completionMode": "Indexed",
                "completions": crew.workers,
                "parallelism": crew.workers,
                "backoffLimitPerIndex": RESTARTS,
                "podFailurePolicy": {
                    "rules": [
                        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                        {"action": "Ignore", "onExitCodes": _exit_code(INTERRUPTED)},  # told to leave: it has saved
                        {"action": "FailIndex", "onExitCodes": _exit_code(2)},  # it would refuse again
                    ]
                },
                "ttlSecondsAfterFinished": KEEP_S,
                "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
            },
        }
        return [secret, job]

    def check(self) -> None:
        require("kubectl", advice="install it, or apply what --dry-run prints where it is")
        _yaml([])
        nodes = self._kubectl("get", "nodes", "--output=json", check=False)
        if nodes.returncode == 0:
            self._check_gpus(json.loads(nodes.stdout)["items"])
        elif "forbidden" not in nodes.stderr.lower():
            raise EngineError(f"no Kubernetes cluster can be reached (kubectl: {last_line(nodes.stderr)})")
        self._kubectl("apply", "--dry-run=server", "--filename=-", stdin=self.submission())

    def _check_gpus(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        if not self.crew.gpus:
            return
        here = [int(node["status"]["allocatable"].get(GPU, 0)) for node in nodes]
        if (largest := max(here, default=0)) < self.crew.gpus:
            raise DeviceError(
                f"a worker of {self.crew.needs} fits on no node of this cluster, whose largest has {largest}; ask "
                "for fewer, or, where nodes are added on demand, apply what --dry-run prints"
            )
        room = sum(gpus // self.crew.gpus for gpus in here)
        if room < self.crew.workers:
            _log.warning("room for %d of %s; the others wait for nodes", room, count(self.crew.workers, "worker"))

    def start(self, *, detach: bool = False) -> None:  # noqa: ARG002
        self._started = True  # whatever comes of it is there to be deleted
        try:
            self._kubectl("apply", "--filename=-", stdin=self.submission())
            self._own_secret()
        except EngineError:
            with contextlib.suppress(EngineError):
                self.stop()
            raise

    def _own_secret(self) -> None:
        """Let the Secret go when the Job goes: deleted by anybody, or some time after its end."""
        job, _ = self._look()
        if job is None:
            raise EngineError(f"Kubernetes has no job {self._id} any more; somebody deleted it")
        secret, _ = self._documents()
        secret["metadata"]["ownerReferences"] = [
            {"apiVersion": "batch/v1", "kind": "Job", "name": self._id, "uid": job["metadata"]["uid"]}
        ]
        self._kubectl("apply", "--filename=-", stdin=_yaml([secret]))

    @property
    def traces(self) -> str:
        show = self._command("get", "pods", f"--selector={self._selector}")
        end = self._command("delete", "job", self._id)
        return f"as job {self._id}: {show} shows its pods, {end} ends it and takes its Secret along"

    def alive(self) -> int:
        job, pods = self._look()
        if job is None:
            return 0
        for pod in pods:
            self._say(_obstacle(pod))
        failed = [pod for pod in pods if pod["status"].get("phase") == "Failed" and _code(pod) != INTERRUPTED]
        status = job.get("status", {})
        ended = any(
            condition["type"] in ("Complete", "Failed") and condition["status"] == "True"
            for condition in status.get("conditions", [])
        )
        gone = int(status.get("succeeded", 0)) + len(_indexes(status.get("failedIndexes", "")))
        alive = 0 if ended else max(self.crew.workers - gone, 0)
        if failed and not alive:
            code = _code(failed[-1])
            raise WorkersLostError(f"no worker is left: {self._obituary(failed[-1])}", code if code in (2, 3) else 1)
        for pod in failed:
            self._say(self._obituary(pod))
        return alive

    def stop(self) -> None:
        if not self._started:
            return
        deadline = time.monotonic() + LEAVE_S
        while self.over and time.monotonic() < deadline:  # who is at work ends by itself
            if any(pod["status"].get("phase") == "Running" for pod in self._look()[1]):
                time.sleep(POLL_S)
            else:
                break
        wait = ["--cascade=foreground", "--wait", f"--timeout={1.5 * GRACE_S:.0f}s", "--ignore-not-found"]
        self._kubectl("delete", "job,secret", f"--selector={self._selector}", *wait, patience_s=2 * GRACE_S)

    @property
    def _selector(self) -> str:
        return f"app.kubernetes.io/instance={self._id}"

    @property
    def _scope(self) -> list[str]:
        return [f"--{key}={self._options[key]}" for key in ("context", "namespace") if self._options.get(key)]

    def _command(self, *words: str) -> str:
        """A command of kubectl, to be typed."""
        return shlex.join(["kubectl", *self._scope, *words])

    def _look(self) -> tuple[Mapping[str, Any] | None, list[Mapping[str, Any]]]:
        """The job, None once it is deleted, and its pods."""
        found = json.loads(self._kubectl("get", "job,pods", f"--selector={self._selector}", "--output=json").stdout)
        job = next((item for item in found["items"] if item["kind"] == "Job"), None)
        return job, [item for item in found["items"] if item["kind"] == "Pod"]

    def _obituary(self, pod: Mapping[str, Any]) -> str:
        """How it ended and its last words, for the user."""
        name = pod["metadata"]["name"]
        log = self._kubectl("logs", name, f"--tail={LAST_WORDS}", check=False)
        where = f" on {node}" if (node := pod.get("spec", {}).get("nodeName")) else ""
        reason = pod["status"].get("reason") or f"exited with code {_code(pod)}"
        words = (log.stdout if log.returncode == 0 else log.stderr).strip().splitlines()
        return "\n".join([f"pod {name}{where}: {reason}", *(f"  {line}" for line in words)])

    def _kubectl(
        self, *words: str, stdin: str | None = None, check: bool = True, patience_s: float | None = None
    ) -> Any:
        done = call(["kubectl", *self._scope, *words], stdin=stdin, patience_s=patience_s)
        if check and done.returncode:
            raise EngineError(f"Kubernetes refuses (kubectl {words[0]}: {last_line(done.stderr)})")
        return done

    def _say(self, text: str | None) -> None:
        if text and text not in self._told:
            self._told.add(text)
            _log.warning("%s", text)


def _yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    try:
        from yaml import safe_dump_all
    except ImportError:
        raise EngineError("YAML cannot be written without PyYAML; pip install 'tuner[kubernetes]'") from None
    text: str = safe_dump_all(documents, sort_keys=False)
    return text


def _exit_code(code: int) -> dict[str, Any]:
    return {"containerName": "worker", "operator": "In", "values": [code]}


def _code(pod: Mapping[str, Any]) -> int:
    """A pod's exit code; 1 where it ended without one."""
    for container in pod["status"].get("containerStatuses", []):
        if (ended := container.get("state", {}).get("terminated")) is not None:
            return int(ended["exitCode"])
    return 1


def _obstacle(pod: Mapping[str, Any]) -> str | None:
    """What a pod waits for."""
    if pod["status"].get("phase") != "Pending":
        return None
    for container in pod["status"].get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"pods are waiting: {waiting['reason']}: {waiting.get('message', 'see kubectl describe')}"
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"pods are waiting: {condition.get('message') or condition.get('reason')}"
    return None


def _indexes(text: str) -> list[int]:
    """Kubernetes' short form of index numbers.

    >>> _indexes("1,3-5"), _indexes("")
    ([1, 3, 4, 5], [])
    """
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
