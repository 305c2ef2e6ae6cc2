"""The verbs of a study's results: trials, best, replay, evaluate, export; and predict."""

from __future__ import annotations

from pathlib import Path

import click

from tuner.cli import output
from tuner.cli.options import (
    Format,
    device_option,
    ensemble_option,
    format_option,
    name_argument,
    open_manager,
    quiet_option,
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
        from tuner.cores import usable_cores
        from tuner.evaluation import evaluate as evaluate_study

        record = evaluate_study(manager, name, device=device, ensemble=ensemble, processes=usable_cores())
        write_note(manager, name)
    output.write(record, form, lambda: evaluation_text(record), rows=lambda: evaluation_rows(record))


@click.command()
@name_argument
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), metavar="DIR", help="A new folder.")
@click.option("--ensemble", is_flag=True, help="The ensemble instead of the winner: the evaluated one, if any.")
@click.option("--onnx", is_flag=True, help="Also one ONNX graph, from numbers to probabilities or values.")
@device_option
@storage_options
@format_option("table", "json")
def export(
    name: str,
    folder: Path,
    ensemble: bool,
    onnx: bool,
    device: str,
    storage: str,
    artifacts: str | None,
    form: Format,
) -> None:
    """Write the tuned model to a folder.

    Weights, preprocessing, config, metrics, a model card, and a hash of each: no pickle, and nothing is run when it is
    loaded. The model is the first of the refits that tuner evaluate scores; exporting opens no test set. The study
    carries it, too: in the dashboard it can be downloaded.
    """
    from tuner.report.study import export_text

    with open_manager(storage, artifacts) as manager:
        from tuner.export import export as export_model

        record = export_model(manager, name, folder, ensemble=ensemble, onnx=onnx, device=device).as_dict()
        from tuner.report.attached import attach_model

        attach_model(manager, name, folder)
    output.write(record, form, lambda: export_text(record))


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="[default: standard output]")
@quiet_option
def predict(folder: Path, data: Path, out: Path | None, quiet: bool) -> None:
    """Predict the rows of a file with an exported model, as CSV.

    DATA is CSV (gzipped or not), Parquet, NPZ or NPY of any size. Its columns are found by name, in arrays by the place
    that they had in training (the target's among them); others are ignored, missing ones are refused. Each row gets its
    prediction, and a probability of each class.
    """
    from tuner.model import TunedModel
    from tuner.predict import predict_file
    from tuner.report.layout import count

    done = predict_file(TunedModel.load(folder), data, None if out is None or str(out) == "-" else out)
    if not quiet:
        for note in done.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(f"{count(done.rows, 'row')} predicted", err=True)
