"""The page of a report: one HTML file that needs nothing else, light and dark, on paper too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.io
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tuner import strict_json
from tuner.drawing import Figure
from tuner.errors import BadInputError
from tuner.files import whole_file
from tuner.report.diagnosis import caution, fit_lines, head, question_lines
from tuner.report.figures import figures
from tuner.report.layout import count, duration, number
from tuner.report.study import scores, told, work_done

if TYPE_CHECKING:
    from tuner.demonstrations import Demonstration

TRIALS_SHOWN = 200  # rows of the table, the best ones; the JSON has all


def report_html(analysis: Mapping[str, Any], drawn: Sequence[Figure] | None = None) -> str:
    """The page. It runs no code but Plotly's and its own, and loads nothing.

    drawn: the analysis' figures, where they are at hand.
    """
    study = analysis["study"]
    best = study["best"]
    drawn = figures(analysis) if drawn is None else drawn
    return _page(
        "page.html.jinja",
        drawn,
        study=study,
        analysis=analysis,
        work=work_done(study),
        scores=scores(study),
        params={} if best is None else told(best["params"]),
        diagnosis=_diagnosis(analysis),
        figures=drawn,
        trials=_ranked(analysis),
        count=count,
        spec=json.dumps(analysis["reproduce"]["spec"], indent=2, ensure_ascii=False),
    )


def exhibit_html(shown: Demonstration, data_file: str) -> str:
    """A demonstration's page: its claim and its figure, in one file that needs nothing else."""
    figure = shown.figure()
    return _page("exhibit.html.jinja", [figure], shown=shown, figure=figure, data_file=data_file)


def write_exhibit(shown: Demonstration, folder: Path) -> tuple[Path, Path]:
    """Write a demonstration's page and, beside it, its data as JSON; the two files. Raises BadInputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"cannot make the folder {folder}: {error.strerror or error}; give another: --to DIR"
        ) from error
    stem = shown.name if shown.study == shown.name else f"{shown.study}-{shown.name}"
    page = folder / file_name(stem)
    data = page.with_suffix(".json")
    write_file(data, strict_json.dumps(shown.as_dict(), indent=1, ensure_ascii=False) + "\n")
    write_file(page, exhibit_html(shown, data.name))
    return page, data


def _page(template: str, drawn: Sequence[Figure], **content: Any) -> str:
    environment = Environment(
        loader=PackageLoader("tuner.report", "."),
        autoescape=select_autoescape(["html", "jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration}
    return environment.get_template(template).render(
        drawings=_embedded({figure.name: _drawing(figure) for figure in drawn}),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        **content,
    )


def _diagnosis(analysis: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page says of the last diagnosis."""
    found = analysis["diagnosis"]
    if found is None:
        return None
    best = analysis["study"]["best"]
    return {
        "head": head(found),
        "lines": {**fit_lines(found), **question_lines(found)},
        "tips": found["tips"],
        "advice": found["advice"],
        "caution": caution(found),
        "old": best is not None and best["number"] != found["winner"]["trial"],
    }


def file_name(study_name: str) -> str:
    """A file for a study's report; names may hold what file systems do not take.

    >>> file_name("digits"), file_name("a/b: c")
    ('digits.html', 'a-b-c.html')
    """
    return f"{file_stem(study_name)}.html"


def file_stem(study_name: str) -> str:
    """A study's name as the beginning of a file's."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", study_name).strip("-.") or "study"


def write_file(path: Path, text: str) -> None:
    """Write a file as a whole or not at all; into a device or a pipe, and through a link, whose place nothing takes.

    Raises BadInputError with the fix where that cannot be.
    """
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; give a file in it: -o {path / 'report.html'}")
    try:
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise BadInputError(f"cannot write {path}: {error.strerror or error}; give another file: -o FILE") from error


def _drawing(figure: Figure) -> dict[str, Any]:
    drawing: dict[str, Any] = json.loads(plotly.io.to_json(figure.drawing, validate=False))
    return drawing


def _embedded(content: Any) -> Markup:
    """JSON that no HTML parser takes for a tag."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _ranked(analysis: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials of the table: those that got furthest, the best first."""
    sign = -1 if analysis["study"]["direction"] == "maximize" else 1

    def rank(trial: Mapping[str, Any]) -> tuple[bool, bool, int, float]:
        value = trial["value"]
        return value is None, trial["state"] != "complete", -trial["epochs"], sign * (value or 0.0)

    return sorted(analysis["trials"], key=rank)[:TRIALS_SHOWN]
