"""The verb that explains a study's winner: diagnose."""

from __future__ import annotations

import time

import click

from tuner.cli import output
from tuner.cli.options import (
    Format,
    device_option,
    format_option,
    name_argument,
    open_manager,
    quiet_option,
    storage_options,
)
from tuner.cli.progress import PLAIN_S, Progress, progress
from tuner.report.layout import count

SEEDS = 10


@click.command()
@name_argument
@click.option(
    "--seeds",
    type=click.IntRange(min=4),
    default=SEEDS,
    show_default=True,
    metavar="N",
    help="How often the winner and each variant of it are trained; more seeds, narrower intervals.",
)
@device_option
@storage_options
@quiet_option
@format_option("table", "json", "csv")
def diagnose(
    name: str, seeds: int, device: str, storage: str, artifacts: str | None, quiet: bool, form: Format
) -> None:
    """Say whether the winner over- or underfits, and what would help.

    Trains the winner anew beside variants of itself from the same seeds: without each of its regularizers, wider and
    narrower, more regularized, longer, on fewer rows. Says whether it over- or underfits, what each of these changes
    does, and checks the lecture's tips. It never opens the test set. The result is kept for tuner report; as CSV it
    lists the changes.
    """
    from tuner.report.diagnosis import diagnosis_text

    with progress(quiet=quiet) as view, open_manager(storage, artifacts) as manager:
        from tuner.diagnosis.diagnose import diagnose as diagnose_study

        done = _Done(view, name)
        record = diagnose_study(manager, name, seeds=seeds, device=device, begin=done.begin, step=done.step)
    output.write(record, form, lambda: diagnosis_text(record), rows=lambda: record["effects"])


class _Done:
    """How much is trained, told every few seconds."""

    def __init__(self, view: Progress, name: str) -> None:
        self._view, self._name = view, name
        self._epochs = self._total = 0
        self._next = 0.0

    def begin(self, trainings: int, epochs: int) -> None:
        self._total, self._next = epochs, time.monotonic() + PLAIN_S
        work = f"{count(trainings, 'training')}, at most {count(epochs, 'epoch')}"
        self._view.say(f"{self._name}: {work}; Ctrl-C ends it and keeps nothing")

    def step(self, epochs: int) -> None:
        self._epochs += epochs
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_S
            self._view.say(f"{self._name}: {100 * self._epochs / max(self._total, 1):.0f} % of the epochs trained")
