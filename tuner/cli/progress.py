"""Progress on standard error: a live view on a terminal, a plain line every few seconds elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol, Self

import click

from tuner.report.layout import count, duration, number

if TYPE_CHECKING:
    from types import TracebackType

    from tuner.manager import StudySummary

PLAIN_S = 5.0  # seconds between two plain lines
WINDOW_S = 10.0  # seconds that the speed is averaged over


class Progress(Protocol):
    """A context that is told what happens. ``say``: a new phase begins. ``show``: this is where the study stands."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None: ...

    def show(self, summary: StudySummary, total_epochs: int) -> None: ...


def progress(*, quiet: bool) -> Progress:
    """The right kind for where standard error leads."""
    if quiet:
        return Silent()
    return Live() if sys.stderr.isatty() else Plain()


class Silent:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def show(self, summary: StudySummary, total_epochs: int) -> None:
        pass


class Plain(Silent):
    """A line for each phase, and one every few seconds while a study runs."""

    def __init__(self) -> None:
        self._speed = Speed()
        self._start = time.monotonic()
        self._next = 0.0

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def show(self, summary: StudySummary, total_epochs: int) -> None:
        speed = self._speed.update(summary.epochs_trained)
        now = time.monotonic()
        if now >= self._next and summary.epochs_trained:
            self._next = now + PLAIN_S
            of = f"{summary.epochs_trained:,} of {count(total_epochs, 'epoch')}"
            if summary.minutes is not None:
                of = f"{count(summary.epochs_trained, 'epoch')}, {100 * share(summary, total_epochs):.0f} %"
            click.echo(f"{summary.name}: {duration(now - self._start)}, {of}, {status(summary, speed)}", err=True)


class Live(Silent):
    """A bar over all epochs, and a line with the state of the study."""

    def __init__(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live as RichLive
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        self._speed = Speed()
        console = Console(stderr=True)
        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", total=None)
        self._line = Text(no_wrap=True, overflow="ellipsis", style="dim")
        self._live = RichLive(Group(self._bar, self._line), console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        self._bar.update(self._task, description=text, total=None)
        self._line.plain = ""

    def show(self, summary: StudySummary, total_epochs: int) -> None:
        speed = self._speed.update(summary.epochs_trained)
        if summary.epochs_trained:
            self._bar.update(self._task, description=summary.name, total=1.0, completed=share(summary, total_epochs))
            self._line.plain = f"  {status(summary, speed)}"


class Speed:
    """Epochs a second over the last few seconds, from the moment on that they move."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def update(self, epochs: int, now: float | None = None) -> float | None:
        """The speed with one more look at the count; None while it stands still.

        >>> speed = Speed()
        >>> [speed.update(epochs, now=now) for now, epochs in enumerate((7, 7, 17, 37))]
        [None, None, 10.0, 15.0]
        """
        now = time.monotonic() if now is None else now
        if self._looks and self._looks[0][1] == epochs:
            self._looks.clear()
        self._looks.append((now, epochs))
        while len(self._looks) > 2 and self._looks[1][0] < now - WINDOW_S:
            self._looks.popleft()
        (start, before) = self._looks[0]
        return (epochs - before) / (now - start) if now > start else None


def share(summary: StudySummary, total_epochs: int) -> float:
    """How much of a study is done, from 0 to 1: of its epochs, or of its time, whichever ends it first."""
    if summary.state == "finished":
        return 1.0
    of_time = 0.0 if summary.minutes is None else summary.seconds / (60 * summary.minutes)
    return min(1.0, max(summary.epochs_trained / max(total_epochs, 1), of_time))


def status(summary: StudySummary, speed: float | None) -> str:
    """One line: trials that are over, the speed, the best value so far."""
    trials = summary.trials
    failed = f", {trials['failed']:,} failed" if trials["failed"] else ""
    pace = "" if speed is None else f", {speed:,.0f} epochs/s"
    best = "" if summary.best is None else f", best {summary.metric} {number(summary.best.value)}"
    most = "" if summary.minutes is None else "at most "
    of = f"{most}{count(trials['total'], 'trial')}"
    done = f"{trials['complete']:,} complete, {trials['pruned']:,} pruned{failed} of {of}"
    return f"{done}{pace}{best}"
