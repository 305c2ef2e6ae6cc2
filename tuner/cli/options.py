"""What several commands take: a study file with its overrides, a study's name, the storage, an output format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import click
from click.core import ParameterSource

from tuner.cli.secrets import hide_argument, password_of

if TYPE_CHECKING:
    from tuner.manager import StudyManager
    from tuner.spec import Metric, StudySpec

DEFAULT_STORAGE = "sqlite:///tuner.db"

Format = Literal["table", "json", "csv"]
F = TypeVar("F", bound=Callable[..., Any])

study_file = click.argument("study_file", metavar="STUDY.toml", type=click.Path(path_type=Path))
target_option = click.option("--target", metavar="COLUMN", help="A data file's target column.")
metric_option = click.option(
    "--metric", metavar="METRIC", help="What to optimise.  [default: error for classes, rmse for numbers]"
)
name_argument = click.argument("name", metavar="NAME")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cpu, cuda, cuda:1, … or mps; auto takes a CUDA device if there is one.",
)

ensemble_option = click.option(
    "--ensemble",
    is_flag=True,
    help="Also evaluate a greedy ensemble of the study's best trials, chosen on validation.",
)
figures_option = click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("figures"),
    show_default=True,
    metavar="DIR",
    help="Where the figure and its numbers are written.",
)


def storage_options(command: F) -> F:
    """``--storage`` and ``--artifacts``, as parameters ``storage`` and ``artifacts``."""
    database = click.option(
        "--storage",
        envvar=["TUNER_STORAGE", "OPTUNA_STORAGE"],
        show_envvar=True,
        default=DEFAULT_STORAGE,
        show_default=True,
        callback=_hidden,
        metavar="URL",
        help="The database: sqlite:///FILE, postgresql://… or mysql://….",
    )
    artifacts = click.option(
        "--artifacts",
        envvar="TUNER_ARTIFACTS",
        show_envvar=True,
        callback=_hidden,
        metavar="DIR",
        help="Where checkpoints and attachments live: a folder, or a URL such as s3://bucket/path.  [default: beside "
        "an SQLite file, else ./tuner-artifacts]",
    )
    return database(artifacts(command))


def _hidden(_context: click.Context, option: click.Parameter, url: str | None) -> str | None:
    """A place as given, with its password out of sight."""
    if url is not None and (password := password_of(url)) and not hide_argument(password):
        name = option.name or ""
        click.echo(
            f"warning: the list of processes shows the password in --{name}; set TUNER_{name.upper()} instead", err=True
        )
    return url


def override_options(command: F) -> F:
    """What may be said otherwise than the study file does, as parameters that :func:`read_spec` takes."""
    options = [
        click.option("--name", metavar="NAME", help="Another study.name: the same file as another study."),
        click.option("--seed", type=int, help="Another study.seed."),
        click.option("--trials", type=int, help="Another search.trials: how many trials in total."),
        click.option("--minutes", type=float, help="Another search.minutes: how long the workers may take in total."),
        click.option("--max-epochs", type=int, help="Another training.max_epochs: the most epochs a trial gets."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def format_option(*formats: Format) -> Callable[[F], F]:
    """``-f``, as parameter ``form``; the first format is the default."""
    return click.option(
        "-f",
        "--format",
        "form",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="How the result is written to standard output.",
    )


def read_spec(file: Path, **overrides: Any) -> StudySpec:
    """The study file's spec; an override of None says nothing."""
    from tuner.spec import load_spec

    return load_spec(file, **overrides)


def known_metric(name: str | None) -> Metric | None:
    """``--metric`` as a metric. Raises click.BadParameter naming those there are."""
    from tuner.spec import METRICS

    if name is not None and name not in METRICS:
        raise click.BadParameter(f"{name!r} is none of {', '.join(METRICS)}", param_hint="--metric")
    return cast("Metric | None", name)


def storage_words(context: click.Context, database: str) -> str:
    """What the next command has to say to find the same database: nothing where that comes from the environment."""
    given = context.get_parameter_source("storage") is ParameterSource.COMMANDLINE
    return f" --storage {database}" if given else ""


def open_manager(storage: str, artifacts: str | None, *, create: bool = False) -> StudyManager:
    """The manager of the studies in a database, which must be there unless the command is to ``create`` it."""
    from tuner.manager import StudyManager

    return StudyManager(storage, artifacts, create=create)
