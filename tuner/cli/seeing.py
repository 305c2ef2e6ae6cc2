"""The verbs that show studies elsewhere than in the terminal: dashboard, report."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from tuner.cli import output
from tuner.cli.options import name_argument, open_manager, storage_option, storage_options


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
@storage_option
def dashboard(
    host: str,
    port: int,
    allow_edits: bool,
    allow_hosts: tuple[str, ...],
    wait_s: float,
    storage: str,
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

    The file needs no network and no other file. It may be written at any time; it never opens the test set.
    """
    from tuner.report.analysis import analyse

    with open_manager(storage, artifacts) as manager:
        analysis = analyse(manager, name)
    from tuner.report.html import file_name, report_html, write_file

    text = output.as_json(analysis) + "\n" if as_json else report_html(analysis)
    if file is None and not as_json:
        file = Path(file_name(name))
    if file is None or str(file) == "-":
        click.echo(text, nl=False)
    else:
        write_file(file, text)
        click.echo(f"{name}: {file}")
