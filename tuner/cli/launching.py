"""The verb that takes a study beyond one machine: launch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from tuner.cli import output
from tuner.cli.options import (
    Format,
    ensemble_option,
    figures_option,
    format_option,
    open_manager,
    override_options,
    quiet_option,
    read_spec,
    storage_options,
    storage_words,
    study_file,
)
from tuner.cli.progress import progress
from tuner.cli.running import attend, conclude, remark, report, undertaker
from tuner.launch import Place
from tuner.report.layout import count, pairs


@click.command()
@study_file
@click.option(
    "--on", "place", type=click.Choice(get_args(Place)), required=True, help="What starts and places the workers."
)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", required=True, help="How many workers.")
@click.option(
    "--gpus-per-worker",
    "gpus",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="GPUs of each worker, a process each; 0 trains on CPUs.",
)
@click.option(
    "--cpus-per-worker",
    "cpus",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="CPU cores of each worker; without GPUs a process each.",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="The Ray cluster.  [default: RAY_ADDRESS, else the one that this machine belongs to]",
)
@click.option(
    "--runtime-env",
    metavar="JSON",
    help='What Ray sets up for the workers, such as {"pip": [...]}; without it, what the nodes have installed.',
)
@click.option(
    "--slurm",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of sbatch, such as partition=gpu or time=04:00:00; may be repeated.",
)
@click.option(
    "--kubernetes",
    multiple=True,
    metavar="KEY=VALUE",
    help="image, namespace, context, memory or claim (a volume for data and checkpoints); may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Print exactly what would be submitted, and submit nothing.")
@click.option("--detach", is_flag=True, help="Submit and return, instead of following the study to its end.")
@ensemble_option
@figures_option
@override_options
@storage_options
@quiet_option
@format_option("table", "json")
@click.pass_context
def launch(
    context: click.Context,
    /,
    study_file: Path,
    place: Place,
    workers: int,
    gpus: int,
    cpus: int,
    address: str | None,
    runtime_env: str | None,
    slurm: tuple[str, ...],
    kubernetes: tuple[str, ...],
    dry_run: bool,
    detach: bool,
    ensemble: bool,
    folder: Path,
    storage: str,
    artifacts: str | None,
    quiet: bool,
    form: Format,
    **overrides: Any,
) -> None:
    """Run a study with workers on a cluster.

    Creates the study or goes on with it, has the engine start the workers, follows them, and when all trials are over
    refits the winner here and opens the test set once, as tuner run does; what the study is to show (study.shows) goes
    to the folder of --to. Ctrl-C lets the workers save and leave; the same command goes on.
    """
    for option, parameter in {"--ensemble": "ensemble", "--to": "folder"}.items():
        if detach and context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} is for the end of the study, which --detach does not wait for", context)
    spec = read_spec(study_file, **overrides)
    name = spec.study.name

    from tuner.launch.engine import Crew, make_engine

    crew = Crew(study=name, workers=workers, storage=storage, artifacts=artifacts, cpus=cpus, gpus=gpus)
    engine = make_engine(place, crew, address=address, runtime_env=runtime_env, slurm=slurm, kubernetes=kubernetes)
    if dry_run:
        click.echo(engine.submission(detach=detach))
        return
    with progress(quiet=quiet) as view:
        from tuner.tracking.tracker import check_installed

        check_installed(spec.log)
        engine.check()
        view.say(f"{name}: reading the data")
        from tuner.plan import create_or_resume

        with open_manager(storage, artifacts, create=True) as manager:
            told = None if quiet else partial(remark, view, spec, study_file.parent)
            create_or_resume(manager, spec, study_file.parent, told=told)
            if news := manager.summary(name).state != "finished":
                view.say(f"{name}: starting {count(workers, 'worker')} on {engine.name}")
                if detach:
                    engine.start(detach=True)
                    option = storage_words(context, manager.storage)
                    record = {
                        "study": name,
                        "workers": workers,
                        "traces": engine.traces,
                        "next": [f"tuner {verb} {name}{option}" for verb in ("show", "stop")],
                    }
                    output.write(record, form, lambda: _started(record))
                    return
                engine.died = undertaker(manager, name)
                attend(manager, name, engine, view)
            from tuner.cores import usable_cores

            summary, shown = conclude(
                manager, spec, view, folder, news=news, processes=usable_cores(), ensemble=ensemble
            )
            database = manager.storage
    report(context, summary, database, form, shown)


def _started(record: dict[str, Any]) -> str:
    """What a detached launch ends with."""
    show, stop = record["next"]
    head = f"{record['study']}: {count(record['workers'], 'worker')} started, {record['traces']}"
    return f"{head}\n{pairs({'next': show, '': stop}, indent='')}"
