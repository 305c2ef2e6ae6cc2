"""A small TCP proxy on the loopback that cuts connections, also just after COMMIT was done and before its answer."""

from __future__ import annotations

import re
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self

_MOST = 2  # COMMITs in a row that may fail: more, and a lone caller would get nowhere
_COMMIT = re.compile(rb"COMMIT(?!TED)")  # BEGIN says READ COMMITTED
_ANSWER_S = 5.0  # how long the answer to a COMMIT is waited for before both sides are cut


class Proxy:
    """Passes bytes between its own port and a server's, until it is told to do worse. A context manager.

    It reads the client's bytes for the word COMMIT, so the connection must not be encrypted.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(0.1)
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._commits_to_cut = 0
        self._refusing_until = 0.0
        self._closed = threading.Event()
        self.cut_commits = 0  # COMMITs that were done, with no answer
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._acceptor.join()
        self._listener.close()
        self.cut()

    def cut(self) -> int:
        """Reset every connection; returns how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            _reset(*pair)
        return len(pairs)

    def cut_next_commits(self, count: int = 1) -> None:
        """Let the next COMMITs reach the server and be done, and cut their connections before the answer."""
        with self._lock:
            self._commits_to_cut = min(self._commits_to_cut + count, _MOST)

    def refuse(self, seconds: float) -> None:
        """Cut everything, and every new connection for so long."""
        self._refusing_until = time.monotonic() + seconds
        self.cut()

    def calm(self) -> None:
        """No more harm from now on."""
        with self._lock:
            self._commits_to_cut = 0
        self._refusing_until = 0.0

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            if time.monotonic() < self._refusing_until:
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._server, timeout=5)
            except OSError:
                _reset(client)
                continue
            for one in (client, server):
                one.settimeout(None)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.add((client, server))
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if server in ready:
                    if not (content := server.recv(65536)):
                        break
                    client.sendall(content)
                if client in ready:
                    if not (content := client.recv(65536)):
                        break
                    server.sendall(content)
                    if _COMMIT.search(content) and self._take_commit():
                        server.settimeout(_ANSWER_S)
                        if server.recv(65536):  # done
                            self.cut_commits += 1
                        break
        with self._lock:
            self._pairs.discard((client, server))
        _reset(client, server)

    def _take_commit(self) -> bool:
        with self._lock:
            if self._commits_to_cut == 0:
                return False
            self._commits_to_cut -= 1
            return True


def _reset(*ends: socket.socket) -> None:
    """Close at once, with RST: the other side sees a lost connection, not a farewell."""
    for end in ends:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for bytes
        end.close()
