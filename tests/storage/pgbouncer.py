"""A PgBouncer that pools transactions, in a temporary folder, in front of the PostgreSQL of the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from sqlalchemy import make_url

START_S = 30
CONNECTIONS = 2  # to the server, for all clients together
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


def why_no_pgbouncer() -> str | None:
    """Why there can be none here; None where there can."""
    return None if shutil.which("pgbouncer", path=_PATH) else "no pgbouncer: apt-get install pgbouncer"


@contextmanager
def pgbouncer(url: str) -> Iterator[str]:
    """The URL of the same database behind a PgBouncer, as plain as any."""
    server = make_url(url)
    folder = Path(mkdtemp(prefix="tuner-pgbouncer-"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    password = f" password={server.password}" if server.password else ""
    (folder / "pgbouncer.ini").write_text(
        f"""\
[databases]
* = host={server.host} port={server.port or 5432} user={server.username}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {CONNECTIONS}
max_client_conn = 200
logfile = {folder}/log
"""
    )
    user = None
    if os.geteuid() == 0:  # which it refuses to run as
        user = next(name for name in ("postgres", "nobody") if _is_user(name))
        for path in (folder, folder / "pgbouncer.ini"):
            shutil.chown(path, user)
    process = subprocess.Popen(
        ["pgbouncer", str(folder / "pgbouncer.ini")],
        env={"PATH": _PATH},
        user=user,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_S
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield server.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    finally:
        process.terminate()
        process.wait(START_S)
        shutil.rmtree(folder, ignore_errors=True)


def _is_user(name: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False
