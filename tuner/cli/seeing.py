"""The verbs that show studies elsewhere than in the terminal: dashboard, report, demonstrate."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from tuner.cli import output
from tuner.cli.options import (
    Format,
    device_option,
    figures_option,
    format_option,
    name_argument,
    open_manager,
    quiet_option,
    storage_options,
)
from tuner.cli.progress import progress


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="The port; 0 takes a free one."
)
@click.option("--allow-edits", is_flag=True, help="Let those who see the studies change, add and delete them as well.")
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="NAME",
    help="One more name under which the dashboard may be asked for, such as a reverse proxy's; may be repeated.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a database that does not answer yet.",
)
@storage_options
def dashboard(
    host: str,
    port: int,
    allow_edits: bool,
    allow_hosts: tuple[str, ...],
    wait_s: float,
    storage: str,
    artifacts: str | None,
) -> None:
    """Serve optuna-dashboard on all studies of a database, read-only.

    On this machine alone, unless --host says otherwise; then it asks for the password in TUNER_DASHBOARD_PASSWORD.
    """
    from tuner.dashboard import PASSWORD_VARIABLE, serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does

    def ready(address: str) -> None:
        click.echo(f"dashboard: {address} ({'with edits' if allow_edits else 'read-only'}); Ctrl-C ends it", err=True)

    serve(
        storage,
        artifacts,
        host=host,
        port=port,
        password=os.environ.get(PASSWORD_VARIABLE),
        allow_edits=allow_edits,
        allow_hosts=allow_hosts,
        wait_s=wait_s,
        ready=ready,
    )


@click.command()
@name_argument
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Where to write it; - is standard output.  [default: NAME.html in this folder, for --json standard output]",
)
@click.option("--json", "as_json", is_flag=True, help="The page's numbers as JSON instead of the page.")
@storage_options
def report(name: str, file: Path | None, as_json: bool, storage: str, artifacts: str | None) -> None:
    """Write a report of a study: one HTML file with all its figures.

    The file needs no network and no other file. It may be written at any time; it never opens the test set. The study
    carries it, too: in the dashboard it can be downloaded, beside its figures.
    """
    from tuner.report.analysis import analyse

    with open_manager(storage, artifacts) as manager:
        analysis = analyse(manager, name)
        if as_json:
            _put(file, output.as_json(analysis) + "\n", name)
            return
        from tuner.report.attached import attach_report
        from tuner.report.figures import figures
        from tuner.report.html import file_name, report_html

        drawn = figures(analysis)
        page = report_html(analysis, drawn)
        _put(file or Path(file_name(name)), page, name)
        attach_report(manager, name, page, drawn)


def _put(file: Path | None, text: str, name: str) -> None:
    """Write a text to a file, and say so, or to standard output."""
    if file is None or str(file) == "-":
        click.echo(text, nl=False)
        return
    from tuner.report.html import write_file

    write_file(file, text)
    click.echo(f"{name}: {file}")


@click.command()
@name_argument
@click.argument("what", metavar="[WHAT]", required=False)
@figures_option
@device_option
@storage_options
@quiet_option
@format_option("table", "json")
def demonstrate(
    name: str,
    what: str | None,
    folder: Path,
    device: str,
    storage: str,
    artifacts: str | None,
    quiet: bool,
    form: Format,
) -> None:
    """Show a claim of the lecture on a study's data.

    Networks are trained, a figure is drawn, and a sentence says whether the claim holds. WHAT is
    random_labels, …; left out, what the study file names in study.shows. Writes the figure and its numbers, as JSON, to
    a folder; tuner report shows it, too. Never opens the test set.
    """
    from tuner.spec import known_shown

    shown = None if what is None else known_shown(what)
    with open_manager(storage, artifacts) as manager, progress(quiet=quiet) as view:
        view.say(f"{name}: reading the data")
        from tuner.demonstrations import demonstrate as demonstrate_on
        from tuner.report.html import write_exhibit
        from tuner.report.study import demonstration_text

        found = demonstrate_on(manager, name, shown, device=device, say=lambda text: view.say(f"{name}: {text}"))
    page, data = write_exhibit(found, folder)
    record = {**found.as_dict(), "figure": str(page), "data_file": str(data)}
    output.write(record, form, lambda: demonstration_text(record))
