"""Progress on standard error: a live view on a terminal, a plain line every few seconds elsewhere, or nothing."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

import click

from tuner.errors import TunerError
from tuner.report.layout import count, duration, number
from tuner.report.standing import progress_bar, sparkline, standing

if TYPE_CHECKING:
    from types import TracebackType

    from rich.text import Text

    from tuner.manager import StudyManager, StudySummary, WorkerRow
    from tuner.report.standing import RungStanding

POLL_S = 0.5  # seconds between two looks at a study
WIDTH = 100  # characters of the longest line of the live view
PLAIN_S = 5.0  # seconds between two plain lines
WINDOW_S = 10.0  # seconds that the speed is averaged over

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """A context that is told what happens.

    ``say``: a new phase begins. ``note``: a line that is to stay. ``show``: this is where the study stands.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def show(self, watch: Watch, summary: StudySummary) -> None: ...


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

    def note(self, text: str) -> None:
        pass

    def show(self, watch: Watch, summary: StudySummary) -> None:
        pass


class Plain(Silent):
    """A line for each phase, and one every few seconds while a study runs."""

    def __init__(self) -> None:
        self._speed = Speed()
        self._start = time.monotonic()
        self._next = 0.0

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    note = say

    def show(self, watch: Watch, summary: StudySummary) -> None:
        speed = self._speed.update(summary.epochs_trained)
        now = time.monotonic()
        if now >= self._next and summary.epochs_trained:
            self._next = now + PLAIN_S
            of = f"{summary.epochs_trained:,} of {count(watch.total_epochs, 'epoch')}"
            if summary.minutes is not None:
                of = f"{count(summary.epochs_trained, 'epoch')}, {100 * share(summary, watch.total_epochs):.0f} %"
            click.echo(f"{summary.name}: {duration(now - self._start)}, {of}, {status(summary, speed)}", err=True)


class Live(Silent):
    """A view of the study that is drawn anew a few times a second, and is gone when it ends.

    Brackets and rungs as they fill, lanes in flight, the speed, the best trial with its curve, the time that is left.
    No line is longer than ``WIDTH`` characters or the terminal; where that is too low for the rungs, they are left out.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive
        from rich.text import Text

        from tuner.cli.redrawn import Redrawn

        self._console = Console(stderr=True)
        self._speed, self._shares = Speed(), Speed()
        self._start = time.monotonic()
        self._phase = Text("")
        self._live = RichLive(
            self._phase, console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop"
        )
        self._live._live_render = Redrawn(self._console, self._phase)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        from rich.text import Text

        self._phase = Text(text, no_wrap=True, overflow="ellipsis")
        self._live.update(self._phase, refresh=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)  # the view replaces it, and draws itself below; click.echo would write past it

    def show(self, watch: Watch, summary: StudySummary) -> None:
        from rich.console import Group
        from rich.text import Text

        if not summary.epochs_trained:
            return  # the phase says what the wait is for
        now, done = time.monotonic(), share(summary, watch.total_epochs)
        speed = self._speed.update(summary.epochs_trained, now)
        pace = self._shares.update(round(done * 1e6), now)  # whole numbers, as Speed wants them
        width = min(self._console.width - 1, WIDTH)
        crew = [worker for worker in watch.workers() if worker.live]
        rungs = watch.rungs()
        lanes = count(sum(rung.running for rung in rungs), "lane")
        trials = summary.trials
        failed = f", {trials['failed']:,} failed" if trials["failed"] else ""
        over = (
            f"{trials['complete']:,} complete, {trials['pruned']:,} pruned{failed} of {count(trials['total'], 'trial')}"
        )
        left = f", about {duration((1 - done) * 1e6 / pace)} left" if pace and done < 1 else ""
        bar = progress_bar(1000, round(1000 * done), 0, max(width - 6, 1))
        lines = [
            Text.assemble((summary.name, "bold"), (f"  {summary.sampler} sampler, {summary.pruner} pruner", "dim")),
            Text.assemble((bar, "cyan"), f" {100 * done:3.0f} %"),
            *self._rungs(rungs, width),
            Text(f"{over}, {summary.epochs_trained:,} of {count(watch.total_epochs, 'epoch')}"),
            Text(f"{count(len(crew), 'worker')}, {lanes} in flight" + (f", {speed:,.0f} epochs/s" if speed else "")),
        ]
        if summary.best is not None:
            head = f"best {summary.metric} {number(summary.best.value)}, trial {summary.best.number}  "
            curve = sparkline(watch.curve(summary.best.number), max(min(width - len(head), 40), 1))
            lines.append(Text.assemble(head, (curve, "green")))
        lines.append(Text(f"{duration(now - self._start)}{left}", style="dim"))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
            line.truncate(width, overflow="ellipsis")
        self._live.update(Group(*lines), refresh=True)

    def _rungs(self, rungs: Sequence[RungStanding], width: int) -> list[Text]:
        """A line for each kind of bracket, a column for each number of epochs."""
        from rich.text import Text

        kinds = sorted({rung.bracket for rung in rungs}, reverse=True)
        columns = sorted({rung.epochs for rung in rungs})
        told = {rung: f"{rung.done:,}/{rung.planned:,}" for rung in rungs}
        numbers = max((len(text) for text in told.values()), default=0)
        label = "bracket  " if len(kinds) > 1 else "epochs   "
        room = (width - len(label)) // max(len(columns), 1) - numbers - 3  # for the bar, between blanks
        if room < 0 or self._console.height < len(kinds) + 9:
            return []
        room = min(room, 24)
        cell = room + numbers + 3
        lines = [Text(label + "".join(f"{count(epochs, 'epoch'):{cell}}" for epochs in columns), style="dim")]
        for kind in kinds:
            line = Text(f"{kind if len(kinds) > 1 else '':<{len(label)}}")
            at = {rung.epochs: rung for rung in rungs if rung.bracket == kind}
            for epochs in columns:
                if (rung := at.get(epochs)) is None:
                    line.append(" " * cell)
                    continue
                line.append(progress_bar(rung.planned, rung.done, rung.running, room), style="cyan")
                line.append(f" {told[rung]:<{numbers}}  ")
            lines.append(line)
        return lines


class Watch:
    """One study, looked at again and again."""

    def __init__(self, manager: StudyManager, name: str) -> None:
        from tuner.search import plan, total_epochs

        self._manager = manager
        self._dealt = plan(manager.spec(name))
        self._curve: tuple[int, list[float | None]] | None = None
        self._timed = manager.spec(name).search.minutes is not None
        self.name = name
        self.total_epochs = total_epochs(self._dealt)

    def summary(self) -> StudySummary:
        """Where it stands."""
        return self._manager.summary(self.name)

    def workers(self) -> list[WorkerRow]:
        """Who works on it, and who did."""
        return self._manager.workers(self.name)

    def rungs(self) -> list[RungStanding]:
        """How full its rungs are."""
        return standing(self._dealt, self._manager.places(self.name), begun_only=self._timed)

    def curve(self, trial: int) -> list[float | None]:
        """The validation metric of a completed trial, epoch by epoch."""
        if self._curve is None or self._curve[0] != trial:
            self._curve = trial, [point.value for point in self._manager.curve(self.name, trial)]
        return self._curve[1]

    @contextmanager
    def shown_in(self, view: Progress, stop: threading.Event, notice: str) -> Iterator[None]:
        """Show the study in a view while something else has the main thread. ``notice``, if any, is said
        once ``stop`` is set."""
        gone = threading.Event()

        def follow() -> None:
            told = False
            while not gone.wait(POLL_S):
                if stop.is_set():
                    if notice and not told:
                        view.say(notice)
                    told = True
                    continue
                try:
                    view.show(self, self.summary())
                except TunerError as error:  # the worker meets the same, and says it
                    _log.debug("%s: not shown: %s", self.name, error)

        thread = threading.Thread(target=follow, name="view", daemon=True)
        thread.start()
        try:
            yield
        finally:
            gone.set()
            thread.join()


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
