"""A kubectl for tests, with a cluster of its own: pods are processes of this machine.

It knows what tuner/launch/kubernetes.py asks for, and nothing else. The folder in ``KUBECTL_FOLDER`` is the cluster:
the programs of its containers are in ``bin``, its nodes in ``nodes.json``. ``down`` is there when it is out of reach.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import yaml

cluster = Path(os.environ["KUBECTL_FOLDER"])


def fail(text: str) -> None:
    sys.exit(f"error: {text}")


def apply() -> None:
    documents = list(yaml.safe_load_all(sys.stdin))
    dry = "--dry-run=server" in sys.argv
    secret = next(each for each in documents if each["kind"] == "Secret")
    if not dry:
        (cluster / "secret.json").write_text(json.dumps(secret))
    for job in documents:
        if job["kind"] == "Job":
            (container,) = job["spec"]["template"]["spec"]["containers"]
            assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
            if (cluster / "refuses").exists():
                fail((cluster / "refuses").read_text())
            if not dry:
                job["metadata"]["uid"] = str(uuid.uuid4())
                (cluster / "job.json").write_text(json.dumps(job))
                run(job, container, secret)


def run(job: dict[str, Any], container: dict[str, Any], secret: dict[str, Any]) -> None:
    given = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    for index in range(job["spec"]["completions"]):
        pod = cluster / f"pod-{index}"
        shutil.rmtree(pod, ignore_errors=True)  # of an earlier job
        pod.mkdir()
        script = f'cd {pod}; "$@" > log 2>&1 & echo $! > pid; wait $!; echo $? > code.new; mv code.new code'
        subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", *container["command"]],
            env={"PATH": f"{cluster}/bin:/usr/bin:/bin", "HOME": str(cluster), **given},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def codes() -> dict[int, int | None]:
    """The exit code of each index, None while it runs."""
    found = {}
    for pod in cluster.glob("pod-*"):
        code = pod / "code"
        found[int(pod.name.partition("-")[2])] = int(code.read_text()) if code.exists() else None
    return dict(sorted(found.items()))


def get(kinds: str) -> None:
    if kinds == "nodes":
        print((cluster / "nodes.json").read_text())
        return
    if not (cluster / "job.json").exists():
        print(json.dumps({"items": []}))
        return
    job, pods = json.loads((cluster / "job.json").read_text()), []
    ended = codes()
    failed = [str(index) for index, code in ended.items() if code]
    job["status"] = {
        "succeeded": sum(code == 0 for code in ended.values()),
        "failedIndexes": ",".join(failed),
        "conditions": [],
    }
    for index, code in ended.items():
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        status = {"phase": phase, "containerStatuses": [{"state": state}]}
        pods.append({"kind": "Pod", "metadata": {"name": f"pod-{index}"}, "spec": {"nodeName": "n1"}, "status": status})
    if (cluster / "pending.json").exists():
        pods.append(json.loads((cluster / "pending.json").read_text()))
    print(json.dumps({"items": [job, *pods]}))


def delete(kinds: str, which: str) -> None:
    """By name, or what a label selects; then, as its garbage collector does, what the deleted job owned."""
    job_file, secret_file = cluster / "job.json", cluster / "secret.json"
    job = json.loads(job_file.read_text()) if job_file.exists() else None
    label, _, value = which.removeprefix("--selector=").partition("=")
    if job is not None and job["metadata"]["name"] != which and job["metadata"]["labels"].get(label) != value:
        fail(f"nothing is called {which!r}")
    if job is None and not which.startswith("--selector="):
        fail(f'jobs.batch "{which}" not found')
    for pod in cluster.glob("pod-*"):
        while not (pod / "pid").exists():
            time.sleep(0.01)
        if not (pod / "code").exists():
            os.kill(int((pod / "pid").read_text()), signal.SIGTERM)
    while any(code is None for code in codes().values()):
        time.sleep(0.01)
    job_file.unlink(missing_ok=True)
    if secret_file.exists():
        owners = json.loads(secret_file.read_text())["metadata"].get("ownerReferences", [])
        owned = job is not None and job["metadata"]["uid"] in [owner["uid"] for owner in owners]
        if owned or "secret" in kinds.split(","):
            secret_file.unlink()


with (cluster / "calls").open("a") as calls:
    print(*sys.argv[1:], file=calls)
words = [word for word in sys.argv[1:] if not word.startswith(("--namespace", "--context"))]
if (cluster / "down").exists():
    fail((cluster / "down").read_text())
if words[0] == "apply":
    apply()
elif words[0] == "get":
    get(words[1])
elif words[0] == "logs":
    print((cluster / words[1] / "log").read_text(), end="")
elif words[0] == "delete":
    delete(words[1], words[2])
else:
    fail(f"unknown command {words[0]!r}")
