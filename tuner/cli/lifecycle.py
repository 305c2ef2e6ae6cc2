"""The verbs of a whole study: init, check, create, studies, show, workers, stop, retry, delete."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli import output
from tuner.cli.options import (
    Format,
    format_option,
    known_metric,
    metric_option,
    name_argument,
    open_manager,
    override_options,
    read_spec,
    storage_options,
    study_file,
    target_option,
)
from tuner.errors import BadInputError
from tuner.files import whole_file
from tuner.report.layout import count, minutes

if TYPE_CHECKING:
    from tuner.data import DataSummary


@click.command()
@click.argument("data", metavar="DATA")
@target_option
@metric_option
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="How long the search may take.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="How many workers will share that time.  [default: one a CUDA device, else one a CPU core]",
)
@click.option("--name", metavar="NAME", help="The study's name.  [default: the file's]")
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path), help="The study file.  [default: NAME.toml; - prints]"
)
@click.option("--force", is_flag=True, help="Replace a study file that is there.")
def init(
    data: str,
    target: str | None,
    metric: str | None,
    minutes: float | None,
    workers: int | None,
    name: str | None,
    file: Path | None,
    force: bool,
) -> None:
    """Look at a data file and write a study file for it.

    The ranges are the lecture's, fitted to the number of rows; with --minutes this machine is measured for a few
    seconds, so that the trials are as long as the time allows. Nothing is trained.
    """
    from tuner.launch.local import devices_for
    from tuner.recipe import name_of, write_recipe

    name = name or name_of(data)
    file = file or Path(f"{name}.toml")
    if file.exists() and not force:
        raise BadInputError(f"{file}: is there already; give another one with -o, or --force to replace it")
    folder = Path() if str(file) == "-" else file.parent
    if not folder.is_dir():
        raise BadInputError(f"{file}: cannot be written: there is no folder {folder}")
    source = data if ":" in data else os.path.relpath(data, folder)
    recipe = write_recipe(
        source,
        target,
        root=folder,
        name=name,
        metric=known_metric(metric),
        minutes=minutes,
        workers=len(devices_for("auto", workers, sys.maxsize)),
    )
    if str(file) == "-":
        click.echo(recipe.text, nl=False)
        return
    try:
        with whole_file(file) as whole:
            whole.write(recipe.text.encode())
    except OSError as error:
        raise BadInputError(f"{file}: cannot be written: {error.strerror}") from None
    click.echo(f"wrote {file}; next: tuner check {file}, tuner run {file}")


@click.command()
@study_file
@override_options
@format_option("table", "json", "csv")
def check(study_file: Path, form: Format, **overrides: Any) -> None:
    """Validate a study file and show what the study would do.

    Reads the data and prints its summary, the splits, the search space, the brackets, and the epochs it will cost.
    Changes nothing. As CSV it lists the rungs.
    """
    spec = read_spec(study_file, **overrides)

    from tuner.plan import plan_study
    from tuner.report.plan import plan_text

    plan = plan_study(spec, study_file.parent)
    output.write(plan.as_dict(), form, lambda: plan_text(plan), rows=plan.rungs)


@click.command()
@study_file
@override_options
@storage_options
def create(study_file: Path, storage: str, artifacts: str | None, **overrides: Any) -> None:
    """Create a study without running it.

    Workers can join it then: tuner worker NAME. A study that is there already stays as it is.
    """
    spec = read_spec(study_file, **overrides)

    from tuner.plan import create_study, remarks

    def told(data: DataSummary) -> None:
        for line in remarks(spec, data):
            click.echo(f"{spec.study.name}: {line}", err=True)

    with open_manager(storage, artifacts, create=True) as manager:
        created = create_study(manager, spec, study_file.parent, told=told)
        what = "created" if created else "there already"
        trials = count(spec.total_trials, "trial")
        if spec.search.minutes is not None:
            trials = f"at most {trials} or {minutes(spec.search.minutes)}"
        click.echo(f"{spec.study.name}: {what}, {trials} in {manager.storage}")


@click.command()
@storage_options
@format_option("table", "json", "csv")
def studies(storage: str, artifacts: str | None, form: Format) -> None:
    """List all studies."""
    from tuner.report.study import studies_text

    with open_manager(storage, artifacts) as manager:
        records = [summary.as_dict() for summary in manager.summaries()]
    output.write(records, form, lambda: studies_text(records))


@click.command()
@name_argument
@storage_options
@format_option("table", "json", "csv")
def show(name: str, storage: str, artifacts: str | None, form: Format) -> None:
    """Show where a study stands."""
    from tuner.report.study import study_text

    with open_manager(storage, artifacts) as manager:
        record = manager.summary(name).as_dict()
    output.write(record, form, lambda: study_text(record))


@click.command()
@name_argument
@storage_options
@format_option("table", "json", "csv")
def workers(name: str, storage: str, artifacts: str | None, form: Format) -> None:
    """List all workers of a study, those that have gone included.

    A worker is live, has left, or is lost: its heartbeat stopped without a word.
    """
    from tuner.report.study import workers_text

    with open_manager(storage, artifacts) as manager:
        records = [row.as_dict() for row in manager.workers(name)]
    output.write(records, form, lambda: workers_text(records))


@click.command()
@name_argument
@storage_options
def stop(name: str, storage: str, artifacts: str | None) -> None:
    """Let all workers of a study save and leave.

    Each finishes its epoch first. tuner run with the study's file goes on from there.
    """
    with open_manager(storage, artifacts) as manager:
        manager.stop(name)
        click.echo(f"{name}: stopping; its workers finish their epoch, save and leave")


@click.command()
@name_argument
@storage_options
def retry(name: str, storage: str, artifacts: str | None) -> None:
    """Let workers try the failed trials of a study again.

    They keep their hyperparameters and get all their attempts anew. Once the test set was opened, nothing is searched
    any more.
    """
    with open_manager(storage, artifacts) as manager:
        again = manager.retry(name)
    if again:
        click.echo(f"{name}: {count(again, 'failed trial')} to try again; start workers with: tuner worker {name}")
    else:
        click.echo(f"{name}: no trial has failed")


@click.command()
@name_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_options
def delete(name: str, yes: bool, storage: str, artifacts: str | None) -> None:
    """Delete a study with all its trials and checkpoints."""
    with open_manager(storage, artifacts) as manager:
        trials = manager.summary(name).trials
        if not yes:
            if not on_terminal():
                raise BadInputError(
                    f"delete needs a yes, and there is no terminal to ask on; tuner delete {name} --yes"
                )
            over = trials["complete"] + trials["pruned"] + trials["failed"]
            question = f"Delete study {name} with the results of {over:,} trials from {manager.storage}?"
            click.confirm(question, abort=True, err=True)
        manager.delete(name)
        click.echo(f"{name}: deleted")


def on_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()
