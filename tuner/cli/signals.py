"""Ctrl-C and SIGTERM: the first asks to finish the epoch and save, the second leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def leave_on_signal(
    on_second: Callable[[], None], *, on_first: Callable[[], None] | None = None, notice: str = ""
) -> Iterator[threading.Event]:
    """An event that the first signal sets, writing ``notice`` to standard error; each later one calls ``on_second``.

    A signal that finds the event set already, because the input ended, say, is a first one all the same: Ctrl-C reaches
    every process of a terminal, a worker perhaps after its launcher has let it go.

    on_first: what the first signal calls before that. Only the main thread may enter. The handlers that were there come
    back on exit.

    A thread answers the first signal, a moment later. The handler itself may take no lock: it runs in the middle of
    whatever the main thread does, which may hold that very lock, the event's own while it waits for it.
    """
    stop, signalled = threading.Event(), False
    first: SimpleQueue[bool] = SimpleQueue()  # whose put a handler may call

    def handle(_signal: int, _frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled:
            on_second()
        else:
            signalled = True
            first.put(True)

    def answer() -> None:
        if not first.get():
            return
        if on_first is not None:
            on_first()
        stop.set()
        if notice:  # not through sys.stderr: others may be in the middle of a write to it
            os.write(2, f"{notice}\n".encode())

    answering = threading.Thread(target=answer, name="signals", daemon=True)
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    answering.start()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        first.put(False)
        answering.join()


def set_at_end_of_input(stop: threading.Event, *, on_end: Callable[[], None] | None = None) -> None:
    """Set ``stop`` when standard input ends, after calling ``on_end``: whoever started this process has gone, or lets
    it go.
    """

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin: a daemon thread that holds its lock stops the interpreter's exit
            pass
        if on_end is not None:
            on_end()
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
