"""Slurm: a job array with one task a worker.

A worker that is told of its time limit saves, leaves, and goes back into the queue; one whose machine fails or is taken
away is put there by Slurm itself (``--requeue``). Its words go where Slurm puts them, ``slurm-JOB_TASK.out`` in the
current folder unless ``--slurm output=…`` says otherwise.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import time
from pathlib import Path

from tuner.errors import BadInputError, DeviceError, EngineError
from tuner.launch.engine import LEAVE_S, Crew, Engine, WorkersLostError, call, label, last_line, require
from tuner.launch.local import GRACE_S, INTERRUPTED, LAST_WORDS, worker_environment
from tuner.words import count

NOTICE_S = 60  # seconds before the time limit at which a worker is told to save and leave
POLL_S = 0.5  # seconds between two looks at tasks that are leaving

_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
_IN_PEACE = {"COMPLETED", "CANCELLED", "PREEMPTED"}

_log = logging.getLogger(__name__)


class SlurmWorkers(Engine):
    """One task of a job array a worker.

    options: of sbatch, by their long names without dashes; an empty value is a flag. Raises BadInputError for one that
    would contradict the crew, or is more than a line.
    """

    name = "Slurm"
    look_s = 5.0

    def __init__(self, crew: Crew, options: dict[str, str]) -> None:
        super().__init__(crew)
        if mine := {"array", "a", "wrap"} & options.keys():
            raise BadInputError(f"--slurm {mine.pop()} is tuner's to say: --workers is the size of the job array")
        if broken := [key for key, value in options.items() if re.search(r"[\r\n]", value)]:
            raise BadInputError(f"--slurm {broken[0]} has a line break in it, and sbatch takes one line; leave it out")
        self._options = options
        self._job = ""
        self._told: set[str] = set()  # what was said of tasks already

    def submission(self, *, detach: bool = False) -> str:  # noqa: ARG002
        """A script for sbatch. Where the storage is comes with the environment, so no password is in it."""
        options = {
            "job-name": label(self.crew.study),
            "array": f"1-{self.crew.workers}",
            "ntasks": "1",
            "cpus-per-task": str(self.crew.cpus),
            **({"gres": f"gpu:{self.crew.gpus}"} if self.crew.gpus else {}),
            "requeue": "",
            "open-mode": "append",
            "signal": f"B:USR1@{NOTICE_S}",
            **self._options,
        }
        settings = "\n".join(f"#SBATCH {_option(key, value)}" for key, value in options.items())
        environment = "\n".join(f"#   {key}={value}" for key, value in self.crew.shown_environment.items())
        worker = shlex.join([sys.executable, "-P", "-m", "tuner", *self.crew.words])
        return f"""\
#!/bin/bash
{settings}

# sbatch hands its environment on:
{environment}
{worker} &
worker=$!
# The time limit is near (USR1), which Slurm tells this script alone: the worker saves and leaves. When it wants the
# machine back (TERM), it tells the worker itself, and a second time would be to leave at once.
trap 'again=yes; kill -TERM "$worker"' USR1
trap : TERM
while kill -0 "$worker" 2> /dev/null; do wait "$worker"; done  # a trap ends a wait early
wait "$worker"
code=$?
if [[ $again && $code == {INTERRUPTED} ]]; then  # the study goes on, and so does this task
    exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"  # SLURM_JOB_ID may name the whole array
fi
exit "$code"
"""

    def check(self) -> None:
        require("sbatch", advice="run this on a machine that submits to Slurm, or choose another engine with --on")
        self._submit("--test-only")

    def start(self, *, detach: bool = False) -> None:  # noqa: ARG002
        self._job = self._submit("--parsable").partition(";")[0].strip()

    @property
    def traces(self) -> str:
        log = self._options.get("output") or self._options.get("o") or f"slurm-{self._job}_*.out"
        show, end = f"squeue --job={self._job}", f"scancel {self._job}"
        return f"as job {self._job}: {show} shows it, {end} ends it, their words go to {log}"

    def alive(self) -> int:
        tasks = self._tasks()
        for task in tasks:
            if task.waits_for is not None:
                self._say(f"{self.crew.study}: {count(task.size, 'worker')} waiting in Slurm's queue: {task.waits_for}")
        alive = sum(task.size for task in tasks if not task.ended)
        failed = [task for task in tasks if task.failed]
        if failed and not alive:
            raise WorkersLostError(f"no worker is left: {failed[-1].obituary}", failed[-1].exit_code)
        for task in failed:
            self._say(task.obituary)
        return alive

    def stop(self) -> None:
        if not self._job:
            return
        if self.over:  # then who is at work ends by itself, and Slurm calls it completed instead of cancelled
            call(["scancel", "--state=PENDING", self._job])
            if self._ended(LEAVE_S):
                return
        call(["scancel", self._job])
        if not self._ended(GRACE_S):
            _log.warning("job %s is still leaving; Slurm ends it", self._job)

    def _ended(self, within_s: float) -> bool:
        """Wait until all tasks have ended; whether they have."""
        deadline = time.monotonic() + within_s
        while any(not task.ended for task in self._tasks()):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _submit(self, *options: str) -> str:
        """Hand the script to sbatch; what it answers."""
        done = call(["sbatch", *options], stdin=self.submission(), environment=worker_environment(self.crew))
        if done.returncode == 0:
            return done.stdout
        said = last_line(done.stderr).removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
        said = said.removeprefix("Batch job submission failed: ")
        if self.crew.gpus and re.search(r"generic resource|node configuration", said):
            raise DeviceError(
                f"no machine of this cluster has {self.crew.needs} and {count(self.crew.cpus, 'CPU')} for a worker "
                f"(Slurm: {said}); ask for fewer, or for another --slurm partition"
            )
        raise EngineError(f"Slurm does not take the job: {said}")

    def _tasks(self) -> list[_Task]:
        done = call(["scontrol", "show", "job", "--oneliner", self._job])
        if done.returncode and "Invalid job id" not in done.stderr:  # which means: forgotten, long after its end
            raise EngineError(f"Slurm does not say how job {self._job} is: {last_line(done.stderr)}")
        return [_Task(line) for line in done.stdout.splitlines() if line.startswith("JobId=")]

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            _log.warning("%s", text)


class _Task:
    """One line of ``scontrol show job``: a task of the array, or all those that have not been looked at yet."""

    def __init__(self, line: str) -> None:
        self._fields = dict(re.findall(r"(\S+?)=(.*?)(?=\s+\S+?=|\s*$)", line))
        self.state = self._fields.get("JobState", "")
        self.size = _size(self._fields.get("ArrayTaskId", "1"))
        self.ended = self.state in _ENDED
        self.code = int(self._fields.get("ExitCode", "0:0").partition(":")[0])
        self.failed = self.ended and self.state not in _IN_PEACE and self.code != INTERRUPTED
        self.exit_code = self.code if self.code in (2, 3) else 1

    @property
    def waits_for(self) -> str | None:
        reason = self._fields.get("Reason", "None")
        return reason.replace("_", " ") if self.state == "PENDING" and reason not in ("None", "BeginTime") else None

    @property
    def obituary(self) -> str:
        """How it ended and its last words, for the user."""
        log = Path(self._fields.get("StdOut", os.devnull))
        try:
            words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_WORDS:]
        except OSError as error:
            words = [f"its words, in {log}, cannot be read here: {error.strerror}"]
        where = f" on {node}" if (node := self._fields.get("NodeList", "")) not in ("", "(null)") else ""
        how = f"exited with code {self.code}" if self.state == "FAILED" else f"ended as {self.state}"
        head = f"task {self._fields.get('ArrayTaskId')}{where} {how}"
        return "\n".join([head, *(f"  {line}" for line in words)])


def _option(key: str, value: str) -> str:
    """An option as sbatch reads it in a script.

    >>> _option("partition", "gpu"), _option("exclusive", ""), _option("p", "gpu")
    ('--partition=gpu', '--exclusive', '-p gpu')
    >>> print(_option("comment", 'a "b"'))
    --comment="a \\"b\\""
    """
    # Not by the shell's rules: in any quotes \ escapes, and without them # begins a comment.
    if re.search(r"[^\w@%+=:,./\[\]-]", value, flags=re.ASCII):
        value = '"' + re.sub(r'["\\]', r"\\\g<0>", value) + '"'
    if len(key) == 1:
        return f"-{key} {value}".rstrip()
    return f"--{key}={value}" if value else f"--{key}"


def _size(numbers: str) -> int:
    """How many tasks an array's numbers are.

    >>> _size("7"), _size("1-8"), _size("1,3-5%2")
    (1, 8, 4)
    """
    spans = [span.split("-") for span in numbers.partition("%")[0].split(",")]
    return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)
