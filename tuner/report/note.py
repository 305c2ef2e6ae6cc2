"""The note on a study's page in the dashboard: where it stands and what came out, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tuner.report.layout import number
from tuner.report.study import scores, told, work_done

if TYPE_CHECKING:
    from tuner.manager import StudyManager


def write_note(manager: StudyManager, name: str) -> None:
    """Bring the note of a study up to date. One that somebody wrote in the dashboard stays as it is."""
    manager.save_note(name, note_text(manager.summary(name).as_dict()))


def note_text(study: Mapping[str, Any]) -> str:
    """The note. Its first line never changes, so that a later one replaces it.

    study: what :meth:`tuner.manager.StudySummary.as_dict` says.
    """
    lines = scores(study)
    parts = [f"# Tuner's summary of {study['name']}", "", f"**{study['state']}**: {work_done(study)}", ""]
    if lines:
        parts += ["| | |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in lines.items()), ""]
    if (best := study["best"]) is not None:
        parts += [f"Trial {best['number']} is the best, with", "", "| hyperparameter | value |", "|---|---|"]
        parts += [f"| {_cell(key)} | {_cell(number(value))} |" for key, value in told(best["params"]).items()]
        parts += [""]
    parts += ["Every trial has its curve here; the losses at its end, its bracket and its worker are attributes."]
    parts += ["The report, the figures and the exported model, once made, can be downloaded from the study's page."]
    return "\n".join(parts)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|")
