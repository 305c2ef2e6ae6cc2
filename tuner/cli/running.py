"""The verbs that work on a study: run, worker."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli import output
from tuner.cli.group import EXIT_INTERRUPTED
from tuner.cli.options import (
    Format,
    device_option,
    ensemble_option,
    figures_option,
    format_option,
    known_metric,
    metric_option,
    name_argument,
    open_manager,
    override_options,
    quiet_option,
    read_spec,
    storage_options,
    storage_words,
    target_option,
)
from tuner.cli.progress import Live, Progress, Watch, progress
from tuner.cli.signals import leave_on_signal, set_at_end_of_input
from tuner.errors import StudyNotFoundError, TunerError
from tuner.report.layout import count

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuner.data import DataSummary
    from tuner.launch.engine import Engine
    from tuner.manager import StudyManager, StudySummary
    from tuner.spec import Shown, StudySpec

REPORTED_EPOCHS = 100_000  # of a study whose report is drawn without being asked for, which takes some seconds


@click.command()
@click.argument("study_file", metavar="STUDY.toml|DATA", type=click.Path(path_type=Path))
@target_option
@metric_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Local worker processes.  [default: one a CUDA device, else one a CPU core]",
)
@device_option
@ensemble_option
@figures_option
@override_options
@storage_options
@quiet_option
@format_option("table", "json")
@click.pass_context
def run(
    context: click.Context,
    /,
    study_file: Path,
    target: str | None,
    metric: str | None,
    workers: int | None,
    device: str,
    ensemble: bool,
    folder: Path,
    storage: str,
    artifacts: str | None,
    quiet: bool,
    form: Format,
    **overrides: Any,
) -> None:
    """Run a study to its end, and report an honest test error.

    Of a study file, or of a data file and its --target: then the study is what tuner init would write, for 5 minutes
    unless --minutes or --trials says otherwise.

    Creates the study or goes on with it, starts local workers, and when all trials are over refits the winner and
    opens the test set once. Of a study that is new it says what tuner check warns of. A study that is to show something
    of the lecture (study.shows) writes its figure and its numbers to the folder of --to. Ctrl-C saves and leaves; the
    same command goes on. A finished study reports at once.
    """
    of_table = study_file.suffix != ".toml"
    if not of_table and (target or metric):
        raise click.UsageError("--target and --metric are for a data file; a study file says them itself", context)
    written = None if of_table else read_spec(study_file, **overrides)

    with progress(quiet=quiet) as view:
        view.say(f"{study_file}: reading the data" if written is None else f"{written.study.name}: reading the data")
        from tuner.tracking.tracker import check_installed

        if written is not None:
            check_installed(written.log)
        from tuner.plan import create_or_resume

        with open_manager(storage, artifacts, create=True) as manager:
            if written is not None:
                spec, root = written, study_file.parent
            else:
                from tuner.launch.local import devices_for
                from tuner.recipe import study_of_table

                crew = len(devices_for(device, workers, overrides["trials"] or sys.maxsize))
                spec, root = study_of_table(
                    manager, study_file, target, metric=known_metric(metric), workers=crew, device=device, **overrides
                )
            name = spec.study.name
            told = None if quiet else partial(remark, view, spec, root, left_out=written is None)
            create_or_resume(manager, spec, root, device=device, told=told)
            with _still_there(name):
                if news := manager.summary(name).state != "finished":
                    _train(manager, spec, device, workers, storage, artifacts, view)
                from tuner.cores import usable_cores

                summary, shown = conclude(
                    manager,
                    spec,
                    view,
                    folder,
                    news=news,
                    processes=workers or usable_cores(),
                    device=device,
                    ensemble=ensemble,
                )
            database = manager.storage
    report(context, summary, database, form, shown)


def remark(view: Progress, spec: StudySpec, root: Path, data: DataSummary, *, left_out: bool = False) -> None:
    """Say of a new study what ``tuner check`` warns of. left_out: and which columns its recipe left out."""
    from tuner.data.columns import listed
    from tuner.plan import remarks, shift_remarks

    lines = remarks(spec, data)
    if left_out and (names := spec.data.drop):
        which = f"{'column' if len(names) == 1 else 'columns'} {listed(names)}"
        lines.insert(
            0, f"note: {which}: left out, only naming rows by the look of it; tuner init writes a file to change"
        )
    for line in (*lines, *shift_remarks(spec, root, data)):
        view.note(f"{spec.study.name}: {line}")


def conclude(
    manager: StudyManager,
    spec: StudySpec,
    view: Progress,
    folder: Path,
    *,
    news: bool,
    processes: int,
    device: str = "auto",
    ensemble: bool = False,
) -> tuple[StudySummary, dict[str, Any] | None]:
    """Refit the winner of a finished study and open its test set, once; the study as it is then, and what it showed.

    Demonstrates what the study file asks to show, and writes its figure and numbers to ``folder``. Draws the report of
    a study that ended, or was evaluated, since the caller began (``news``), and sees that all its trials are logged.
    processes: that may refit side by side on a CPU.
    """
    from tuner.report.note import write_note

    name, shows = spec.study.name, spec.study.shows
    summary = manager.summary(name)
    opened = summary.evaluation is not None and (not ensemble or summary.evaluation.get("ensemble"))
    if summary.state == "finished" and not opened and spec.has_test_rows:
        what = "the winner and choosing an ensemble" if ensemble else "the winner"
        view.say(f"{name}: refitting {what}, then opening the test set")
        from tuner.evaluation import evaluate

        evaluate(manager, name, device=device, ensemble=ensemble, processes=processes)
        summary, news = manager.summary(name), True
    if summary.state == "finished" and shows is not None and shows not in manager.demonstrations(name):
        view.say(f"{name}: demonstrating {shows}")
        from tuner.demonstrations import demonstrate

        try:
            demonstrate(manager, name, shows, device=device, say=lambda text: view.say(f"{name}: {text}"))
            news = True
        except TunerError as error:  # the search and its test score are not lost on it
            logging.getLogger(__name__).warning("%s: %s is not demonstrated: %s", name, shows, error)
    write_note(manager, name)
    if news and summary.state == "finished" and summary.epochs_trained <= REPORTED_EPOCHS:
        view.say(f"{name}: drawing the report")
        _attach_report(manager, name)
    if summary.state != "finished":
        return summary, None
    _log_rest(manager, name, view)
    return summary, _written(manager, name, shows, folder)


def report(
    context: click.Context, summary: StudySummary, database: str, form: Format, shown: dict[str, Any] | None = None
) -> None:
    """Write what a study came to, and what it showed; one that is not finished was interrupted."""
    if summary.state != "finished":
        over = sum(summary.trials[state] for state in ("complete", "pruned", "failed"))
        saved = f"{over:,} of {summary.trials['total']:,} trials are over and everything is saved"
        click.echo(f"interrupted: {saved}; the same command goes on from here", err=True)
        context.exit(EXIT_INTERRUPTED)
    record = summary.as_dict()
    if shown is not None:
        record["demonstration"] = shown

    from tuner.report.study import outcome_text

    option = storage_words(context, database)
    output.write(record, form, lambda: outcome_text(record, database, option))


def _written(manager: StudyManager, name: str, shows: Shown | None, folder: Path) -> dict[str, Any] | None:
    """What the study file asks to show, written to a folder."""
    if shows is None or shows not in manager.demonstrations(name):
        return None
    from tuner.demonstrations import Demonstration
    from tuner.report.html import write_exhibit

    found = Demonstration(**manager.demonstrations(name)[shows])
    page, data = write_exhibit(found, folder)
    return {**found.as_dict(), "figure": str(page), "data_file": str(data)}


def _train(
    manager: StudyManager,
    spec: StudySpec,
    device: str,
    workers: int | None,
    storage: str,
    artifacts: str | None,
    view: Progress,
    *,
    leashed: bool = False,
) -> bool:
    """Train with local workers until the study is over or a signal comes; whether one came."""
    from tuner.launch.engine import Crew
    from tuner.launch.local import LocalWorkers, devices_for

    name = spec.study.name
    devices = devices_for(device, workers, spec.total_trials)
    view.say(f"{name}: starting {count(len(devices), 'worker')}")
    crew = Crew(study=name, workers=len(devices), storage=storage, artifacts=artifacts)
    return attend(manager, name, LocalWorkers(crew, devices, died=undertaker(manager, name)), view, leashed=leashed)


def undertaker(manager: StudyManager, name: str) -> Callable[[int], None]:
    """Frees what a process of this machine held, once told that it is dead."""

    def bury(pid: int) -> None:
        if held := manager.bury(name, socket.gethostname(), pid):
            logging.getLogger(__name__).warning("%s: freed what the dead worker held: %s", name, count(held, "trial"))

    return bury


def attend(manager: StudyManager, name: str, engine: Engine, view: Progress, *, leashed: bool = False) -> bool:
    """Start an engine's workers and show the study until it is over or a signal comes; whether one came."""
    from tuner.launch.engine import follow
    from tuner.tracking.tracker import Tracking

    watch = Watch(manager, name)
    with Tracking.of(manager, name) as tracking, leave_on_signal(_interrupt) as stop, tracking.following(), engine:
        if leashed:
            set_at_end_of_input(stop)
        with _still_there(name):
            follow(manager, name, engine, stop=stop, show=lambda summary: view.show(watch, summary))
        if stop.is_set():
            view.say("interrupted: the workers finish their epoch and save; again to leave at once")
    return stop.is_set()


def _attach_report(manager: StudyManager, name: str) -> None:
    from tuner.report.analysis import analyse
    from tuner.report.attached import attach_report
    from tuner.report.figures import figures
    from tuner.report.html import report_html

    analysis = analyse(manager, name)
    drawn = figures(analysis)
    attach_report(manager, name, report_html(analysis, drawn), drawn)


def _log_rest(manager: StudyManager, name: str, view: Progress, *, wait: bool = True) -> None:
    """Log the trials of a finished study that are not logged yet. Trouble costs nothing but that."""
    from tuner.report.note import note_text
    from tuner.tracking.tracker import Tracking

    try:
        with Tracking.of(manager, name) as tracking:
            tracking.finish(note_text(manager.summary(name).as_dict()), view.say, wait=wait)
    except TunerError as error:
        logging.getLogger(__name__).warning("%s: its trials are not logged: %s", name, error)


@contextmanager
def _still_there(name: str) -> Iterator[None]:
    """Of a study that was there, say what became of it where it is not any more."""
    try:
        yield
    except StudyNotFoundError:
        raise StudyNotFoundError(f"study {name!r} is gone: somebody deleted it") from None


def _interrupt() -> None:
    raise KeyboardInterrupt


@click.command()
@name_argument
@device_option
@click.option("--gpus", type=click.Choice(["all"]), help="One worker process for each CUDA device of this machine.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="So many worker processes, on the devices of --device or --gpus in turn.  [default: this process alone]",
)
@click.option("--leashed", is_flag=True, help="Save and leave when standard input ends, too.")
@storage_options
@quiet_option
@click.pass_context
def worker(
    context: click.Context,
    /,
    name: str,
    device: str,
    gpus: str | None,
    workers: int | None,
    leashed: bool,
    storage: str,
    artifacts: str | None,
    quiet: bool,
) -> None:
    """Work on a study until it is finished.

    Any number of workers, on any number of machines, may share a study. Ctrl-C or SIGTERM lets this one finish its
    epoch, save and leave; a second one leaves at once, which costs the epoch.
    """

    from tuner.report.note import write_note

    if gpus is not None and device != "auto":
        raise click.UsageError(f"--gpus and --device {device} say two things; give one of them", context)
    if gpus is not None or workers is not None:
        with open_manager(storage, artifacts) as manager, progress(quiet=quiet) as view:
            manager.admit(name)
            place = device if gpus is None else "cuda"
            spec = manager.spec(name)
            interrupted = _train(manager, spec, place, workers, storage, artifacts, view, leashed=leashed)
            state = manager.summary(name).state
            write_note(manager, name)
            if state == "finished":
                _log_rest(manager, name, view)
            if interrupted and state not in ("finished", "stopped"):
                context.exit(EXIT_INTERRUPTED)
            view.say(f"{name}: {state}")
        return

    working = threading.Event()

    def leave_at_once() -> None:
        if not quiet and sys.stderr.isatty():
            os.write(2, b"\x1b[?25h")  # the live view hid the cursor
        os._exit(EXIT_INTERRUPTED)

    def leave_unless_working() -> None:
        """Before it has imported all it needs, which takes seconds, a worker holds nothing."""
        if not working.is_set():
            leave_at_once()

    notice = f"{name}: finishing the epoch, then leaving; again to leave at once"
    view = progress(quiet=quiet)
    # A line written in the middle of a live view would spoil it; elsewhere it must not wait for anything.
    at_once = "" if quiet or isinstance(view, Live) else notice
    with leave_on_signal(leave_at_once, on_first=leave_unless_working, notice=at_once) as stop:
        if leashed:
            set_at_end_of_input(stop, on_end=leave_unless_working)
        with open_manager(storage, artifacts) as manager, view:
            manager.admit(name)  # refuses before the slow import
            if not leashed:
                from tuner.tracking.tracker import check_installed

                check_installed(manager.spec(name).log)
            view.say(f"{name}: joining, on {device}")
            from tuner.worker import run_worker

            working.set()
            with _still_there(name):
                with nullcontext() if quiet else Watch(manager, name).shown_in(view, stop, "" if at_once else notice):
                    run_worker(manager, name, device=device, stop=stop)
                state = manager.summary(name).state
                if state != "running":  # others, who are still at work, will say it
                    write_note(manager, name)
                if state == "finished" and not leashed:
                    _log_rest(manager, name, view, wait=False)
        if stop.is_set() and state not in ("finished", "stopped"):
            context.exit(EXIT_INTERRUPTED)
        if not quiet:
            click.echo(f"{name}: {state}", err=True)
