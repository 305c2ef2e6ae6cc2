"""The verbs of a study's results: trials, best, replay, evaluate."""

from __future__ import annotations

import click

from tuner.cli import output
from tuner.cli.options import (
    Format,
    device_option,
    ensemble_option,
    format_option,
    name_argument,
    open_manager,
    storage_options,
)
from tuner.errors import NothingCompletedError


@click.command()
@name_argument
@storage_options
@format_option("table", "json", "csv")
def trials(name: str, storage: str, artifacts: str | None, form: Format) -> None:
    """List all trials of a study."""
    from tuner.report.study import trials_text

    with open_manager(storage, artifacts) as manager:
        records = [row.as_dict() for row in manager.trials(name)]
    output.write(records, form, lambda: trials_text(records))


@click.command()
@name_argument
@storage_options
@format_option("table", "json", "csv")
def best(name: str, storage: str, artifacts: str | None, form: Format) -> None:
    """Show the best completed trial of a study.

    Its validation value is optimistic: it was picked by it. For an honest one: tuner evaluate NAME.
    """
    from tuner.report.study import best_text

    with open_manager(storage, artifacts) as manager:
        winner, summary = manager.best(name), manager.summary(name)
    if winner is None:
        raise NothingCompletedError(f"study {name!r} has no completed trial yet; it is {summary.state}")
    record = winner.as_dict()
    output.write(record, form, lambda: best_text(record, summary.metric, summary.trials["total"]))


@click.command()
@name_argument
@click.argument("trial", type=click.IntRange(min=0))
@device_option
@storage_options
@format_option("table", "json", "csv")
@click.pass_context
def replay(
    context: click.Context, name: str, trial: int, device: str, storage: str, artifacts: str | None, form: Format
) -> None:
    """Train one trial again, alone, and say whether it matches.

    Exit code 1 when it does not.
    """
    from tuner.report.study import replay_text

    with open_manager(storage, artifacts) as manager:
        from tuner.replay import replay as replay_trial

        record = replay_trial(manager, name, trial, device=device).as_dict()
    output.write(record, form, lambda: replay_text(record))
    context.exit(0 if record["matches"] else 1)


@click.command()
@name_argument
@ensemble_option
@device_option
@storage_options
@format_option("table", "json", "csv")
def evaluate(name: str, ensemble: bool, device: str, storage: str, artifacts: str | None, form: Format) -> None:
    """Refit the winner and open the test set.

    The result is stored the first time; every later look returns it and is counted. Asking for the ensemble only later
    opens the test set once more, which is counted, too. As CSV it lists the models that were scored.
    """
    from tuner.report.note import write_note
    from tuner.report.study import evaluation_rows, evaluation_text

    with open_manager(storage, artifacts) as manager:
        from tuner.evaluation import evaluate as evaluate_study

        record = evaluate_study(manager, name, device=device, ensemble=ensemble)
        write_note(manager, name)
    output.write(record, form, lambda: evaluation_text(record), rows=lambda: evaluation_rows(record))
