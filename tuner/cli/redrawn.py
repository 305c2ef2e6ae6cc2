"""What the live view draws over: its own last picture, also where the terminal has wrapped its lines meanwhile.

A terminal that is made narrower wraps the lines that are there, and a picture takes more rows than when it was drawn.
Rich moves up by the number of lines; what is above would stay for good. And tmux wraps them a moment before it says so:
what is drawn in between is too wide, and must not wrap as well, or the picture would begin further down each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.live_render import LiveRender
from rich.segment import ControlType, Segment


class Redrawn(LiveRender):
    """Rich's picture, which knows how many rows it takes by now."""

    def __init__(self, console: Console, renderable: RenderableType) -> None:
        super().__init__(renderable, vertical_overflow="crop")
        self._console = console
        self._widths: list[int] = []  # of its lines, in cells

    def position_cursor(self) -> Control:
        """To its first row, with all of it erased."""
        if not self._widths:
            return Control()
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        count = rows(self._widths, self._console.width) if _wraps() else len(self._widths)
        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *(up * (count - 1)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        widths = [0]
        yield _control("\x1b[?7l")  # DECAWM: what is too wide is cut off
        for segment in super().__rich_console__(console, options):
            assert isinstance(segment, Segment)
            if segment.text == "\n":
                widths.append(0)
            else:
                widths[-1] += segment.cell_length
            yield segment
        yield _control("\x1b[?7h")
        self._widths = widths


def _control(code: str) -> Segment:
    return Segment(code, None, [(ControlType.HOME,)])  # of no width, written as it is


def rows(widths: list[int], columns: int) -> int:
    """How many rows of a terminal lines of some widths take.

    >>> rows([100, 30, 0, 50], 50)
    5
    """
    return sum(max(1, -(-width // columns)) for width in widths)


def _wraps() -> bool:
    """Whether the terminal wraps what is on it when it is resized. Of those in use xterm and Linux's console do not."""
    return "XTERM_VERSION" not in os.environ and os.environ.get("TERM") != "linux"
