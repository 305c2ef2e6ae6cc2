"""A command on a terminal of its own: a pty, and an emulator that says what its screen shows."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pyte

from tests.cli.command import DEADLINE_S, ROOT


class Terminal:
    """A process whose standard streams are one terminal of ``columns`` by ``lines`` characters."""

    def __init__(self, *words: str | Path, columns: int = 100, lines: int = 30) -> None:
        self.raw = b""
        self._screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self._screen)
        self._end, theirs = pty.openpty()
        self._set_size(theirs, columns, lines)
        hidden = ("COLUMNS", "LINES", "NO_COLOR", "CI")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tuner", *map(str, words)],
            env={**environment, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def shows(self) -> str:
        """What is on the screen, and what has left it at the top."""
        above = ["".join(line[x].data for x in sorted(line)) for line in self._screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self._screen.display]).rstrip()

    def screen(self) -> list[str]:
        """The lines on the screen now."""
        return [line.rstrip() for line in self._screen.display]

    def styled(self) -> list[list[tuple[str, str]]]:
        """The lines on the screen down to the last one that is not empty, each as pieces of text with rich's styles."""
        lines = []
        for y in range(self._screen.lines):
            cells = [self._screen.buffer[y][x] for x in range(self._screen.columns)]
            styles = [f"{'bold ' if c.bold else ''}{'' if c.fg == 'default' else c.fg}".strip() for c in cells]
            lines.append([(cell.data, style) for cell, style in zip(cells, styles, strict=True)])
        while lines and not "".join(text for text, _ in lines[-1]).strip():
            lines.pop()
        return lines

    @property
    def cursor_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)

    def resize(self, columns: int, lines: int) -> None:
        """As a window manager does."""
        self._screen.resize(lines, columns)
        self._set_size(self._end, columns, lines)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_until(self, condition: Callable[[str], bool]) -> str:
        """Read on until the screen meets a condition; the screen then."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition(shown := self.shows()):
            assert time.monotonic() < deadline, f"it did not come:\n{shown}"
            assert self._read(), f"the process ended before:\n{self.shows()}"
        return shown

    def finish(self) -> tuple[int, str]:
        """Exit code and screen at the end."""
        while self._read():
            pass
        os.close(self._end)
        return self.process.wait(DEADLINE_S), self.shows()

    def _read(self) -> bool:
        """Take in what the process wrote; False once it has ended."""
        ready, _, _ = select.select([self._end], [], [], DEADLINE_S)
        assert ready, f"nothing was written for {DEADLINE_S:.0f} s:\n{self.shows()}"
        try:
            data = os.read(self._end, 65536)
        except OSError:  # Linux says so when the last process on the other end has gone
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    @staticmethod
    def _set_size(descriptor: int, columns: int, lines: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
