"""A Slurm of one node in a temporary folder, which is this machine with four CPUs and no GPU: Debian's slurm-wlm.

Its credentials expire early: a task that goes back into the queue waits for that, two minutes by default.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

START_S = 60  # seconds that the node may take to be ready
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def why_no_slurm() -> str | None:
    """Why there can be no Slurm here; None where there can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
    return f"no {', '.join(missing)}: apt-get install slurm-wlm munge" if missing else None


class SlurmServer:
    """munged, slurmctld and slurmd of one's own. A context manager; leaving it ends them and all jobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.configuration = folder / "slurm.conf"

    def __enter__(self) -> Self:
        folder, user, host = self._folder, getpass.getuser(), socket.gethostname().partition(".")[0]
        for name in ("spool", "state"):
            (folder / name).mkdir()
        key = folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for place in (folder, *list(folder.parents)[:-2]):  # munged asks who may come past its files
            with suppress(PermissionError):
                place.chmod(0o755)
        control, node = _free_ports(2)
        self.configuration.write_text(
            f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
        )
        with ExitStack() as stack:
            stack.callback(self._end, "slurmctld", "slurmd", "munge")
            self._run(
                "munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
                f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/seed",
            )  # fmt: skip
            self._run("slurmctld")
            self._run("slurmd", "-N", host)
            self._wait()
            stack.callback(self._run, "scancel", "--full", "--signal=KILL", f"--user={user}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, *command: str) -> str:
        """What a command of Slurm prints."""
        return self._run(*command)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while "idle" not in (state := self._run("sinfo", "--noheader", "--format=%t")):
            assert time.monotonic() < deadline, f"the node is {state}: {self._log()}"
            time.sleep(0.1)

    def _run(self, *command: str) -> str:
        environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(self.configuration)}
        output = self._folder / "output"  # a server keeps the descriptors it was given: a pipe would never end
        with output.open("w+") as file:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False,
                timeout=START_S,
            )  # fmt: skip
        said = output.read_text()
        assert done.returncode == 0, f"{command}: {said} {self._log()}"
        return said

    def _end(self, *names: str) -> None:
        for name in names:
            with suppress(OSError, ValueError):
                pid = int((self._folder / f"{name}.pid").read_text())
                os.kill(pid, 15)
                deadline = time.monotonic() + 10
                while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                    time.sleep(0.02)

    def _log(self) -> str:
        logs = [self._folder / f"{name}.log" for name in ("munge", "slurmctld", "slurmd")]
        return "\n".join(log.read_text()[-1000:] for log in logs if log.exists())


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [int(each.getsockname()[1]) for each in sockets]
