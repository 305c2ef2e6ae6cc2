"""The report: one page with every number of its analysis, for whatever study there is."""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import browser_page, has_browser
from tests.cli.command import TINY, strict_json, tuner, write_study
from tuner.drawing import BLUE, GREEN, RED
from tuner.manager import CurvePoint, RungRow, StudyManager
from tuner.report import analysis as analysis_module
from tuner.report.analysis import analyse, contours, fidelity, importances, ticks
from tuner.report.figures import figures
from tuner.report.html import file_name, report_html, write_file
from tuner.space import Choices, Range, parse_domain
from tuner.storage.ledger import EpochRow, RungResult

pytestmark = pytest.mark.usefixtures("workdir")

ALL = ["scores", "curves", "brackets", "history", "importance", "slices", "contours", "timeline"]
WIDE = """
[study]
name = "wide"
metric = "error"
[data]
source = "sklearn:iris"
[training]
max_epochs = 9
[search]
pruner = "hyperband"
trials = 60
[space]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
batch_size = { choices = [16, 32] }
weight_decay = { low = 1e-6, high = 1e-2, log = true, or_zero = true }
dropout = { low = 0.0, high = 0.5 }
width = { low = 4, high = 32, log = true }
depth = { low = 1, high = 2 }
"""


TAG = "</script><script>alert(1)</script>"  # what a machine may call itself


def pretended(content: str, value: Any, *, stop_after: int | None = None) -> StudyManager:
    """A study whose trials came to ``value(params)``, at whatever epoch; at most ``stop_after`` of them."""
    tuner("create", write_study(content, "study.toml"))
    manager = StudyManager("sqlite:///tuner.db")
    (name,) = manager.names()
    ledger = manager.ledger(name)
    worker = ledger.register(TAG, 7, "cuda:0", "0.1.0")
    while claims := ledger.claim(worker, limit=stop_after or 1000, lease_s=600):
        rows, results = [], []
        for claim in claims:
            end = value(claim.params)
            number, token, target = claim.number, claim.token, claim.target_epochs
            rows += [
                EpochRow(number=number, token=token, epoch=epoch, value=end, train_loss=end / 2, val_loss=end)
                for epoch in range(claim.epochs + 1, target + 1)
            ]
            results.append(RungResult(number=number, token=token, epochs=target, value=end, seconds=0.1))
        ledger.commit(worker, results, rows)
        if stop_after is not None:
            break
    ledger.leave(worker)
    return manager


def embedded(page: str) -> dict[str, Any]:
    """The drawings in a page."""
    found = re.search(r'<script type="application/json" id="drawings">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    drawings: dict[str, Any] = strict_json(found[1])
    return drawings


@pytest.fixture
def wide() -> Iterator[StudyManager]:
    """A finished study in which the learning rate is all that matters."""
    with pretended(WIDE, lambda params: 0.1 + abs(math.log10(params["learning_rate"]) + 2) / 5) as manager:
        manager.begin_evaluation("wide")
        best = manager.best("wide")
        assert best is not None
        difference = {"mean": -0.1, "low": -0.2, "high": 0.1, "verdict": "level"}
        test = {"mean": 0.2, "sd": 0.01, "low": 0.15, "high": 0.3, "confidence": 0.95}
        baseline = {"name": "logistic", "title": "logistic regression", "test": test, "difference": difference}
        evaluation = {
            "trial": best.number,
            "params": best.params,
            "metric": "error",
            "seeds": 3,
            "validation": best.value,
            "test": test,
            "train": {"mean": 0.05},
            "gap_test_validation": 0.1,
            "gap_test_train": 0.15,
            "selection_bound": 0.3,
            "ensemble": None,
            "mistakes": {},
            "baselines": [baseline],
        }
        manager.store_evaluation("wide", evaluation)
        yield manager


def test_the_page_shows_every_figure_and_needs_nothing_else(wide: StudyManager) -> None:
    analysis = analyse(wide, "wide")
    page = report_html(analysis)
    assert list(embedded(page)) == ALL
    assert page.count("Plotly.newPlot(name") == 1
    visible = page.partition("<script>")[0]
    assert re.findall(r"(?:src|href)=", visible) == []
    assert "default-src 'none'" in visible
    for name in ALL:
        assert f'aria-labelledby="{name}-title"' in visible
        assert re.search(rf'id="{name}" class="drawing" role="img" aria-label="[^"]{{20,}}"', visible)
    best = analysis["study"]["best"]
    assert "validation error" in visible
    assert f"{best['value']:.4g}, optimistic: picked as the best of 60 trials" in visible
    assert "0.2 ± 0.01 over 3 refits, 95 % interval 0.15 to 0.3" in visible
    assert "prefers-color-scheme: dark" in visible
    assert "@media print" in visible
    assert TAG not in page, "what workers are called is text"
    assert analysis["reproduce"]["digests"]["spec"] in visible


def test_json_says_the_same(wide: StudyManager) -> None:
    said = strict_json(tuner("report", "wide", "--json").stdout)
    analysis = json.loads(json.dumps(analyse(wide, "wide")))
    for record in (said, analysis):
        record.pop("made_at")
    assert said == analysis
    assert tuner("report", "wide").stdout == "wide: wide.html\n"
    written = Path("wide.html").read_text()
    assert embedded(written) == embedded(report_html(analyse(wide, "wide")))
    assert embedded(tuner("report", "wide", "-o", "-").stdout) == embedded(written)
    assert [path.name for path in Path().glob(".wide*")] == []
    tuner("report", "wide", "--json", "-o", "numbers.json")
    assert strict_json(Path("numbers.json").read_text())["study"] == said["study"]


def test_the_numbers_are_the_studys_own(wide: StudyManager) -> None:
    analysis = analyse(wide, "wide")
    trials = wide.trials("wide")
    assert [row["number"] for row in analysis["trials"]] == list(range(60))
    planned = {(row["bracket"], row["rung"]): row["planned"] for row in analysis["rungs"]}
    for row in analysis["rungs"]:
        assert sum(row[state] for state in analysis_module.STATES) == row["planned"], row
        if (row["bracket"], row["rung"] + 1) in planned:
            assert row["promoted"] == planned[row["bracket"], row["rung"] + 1]
    assert sum(row["complete"] for row in analysis["rungs"]) == sum(trial.state == "complete" for trial in trials)
    assert next(iter(analysis["importance"]["share"])) == "learning_rate"
    assert analysis["importance"]["epochs"] in (1, 3, 9)
    steps = [value for _, value in analysis["history"]["by_trial"]]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == analysis["study"]["best"]["value"]
    assert analysis["history"]["by_second"][-1][1] == steps[-1]
    (winner,) = [curve for curve in analysis["curves"]["shown"] if curve["winner"]]
    assert winner["number"] == analysis["study"]["best"]["number"]
    curve = wide.curve("wide", winner["number"])
    assert winner["val_loss"] == [point.val_loss for point in curve]
    assert wide.curves("wide")[winner["number"]] == curve
    assert all(isinstance(point, CurvePoint) for point in curve)
    (worker,) = analysis["timeline"]["workers"]
    assert (worker["state"], worker["trials"]) == ("left", 60)
    assert len(analysis["timeline"]["ended"]) == 60


NAN = float("nan")
SOME = ["curves", "brackets", "history", "slices", "timeline"]
DEGENERATE: dict[str, tuple[str, Any, int | None, list[str]]] = {
    "one trial": (TINY.replace("trials = 3", "trials = 1"), lambda _: 0.5, None, SOME),
    "nothing but NaN": (TINY, lambda _: NAN, None, ["curves", "brackets", "timeline"]),
    "equal values": (TINY.replace("trials = 3", "trials = 40"), lambda _: 0.5, None, SOME),
    "one choice": (
        TINY.replace("{ low = 1e-3, high = 1e-1, log = true }", "{ choices = [0.1] }"),
        lambda _: 0.0,
        None,
        SOME,
    ),
    "zero and infinite": (TINY, lambda params: math.inf if params["learning_rate"] > 0.01 else 0.0, None, SOME),
    "unfinished": (WIDE, lambda _: 0.5, 3, SOME),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_a_strange_study_has_a_sensible_page(case: str) -> None:
    content, value, stop_after, expected = DEGENERATE[case]
    with pretended(content, value, stop_after=stop_after) as manager:
        (name,) = manager.names()
        analysis = analyse(manager, name)
    json.dumps(analysis, allow_nan=False)
    page = report_html(analysis)
    assert [name for name in embedded(page) if name != "contours"] == expected
    assert ("No trial has completed." in page) == (analysis["study"]["best"] is None)
    assert "sealed" in page
    assert "<script>alert(1)" not in page
    assert "nan" not in page.partition("<script>")[0].lower().split()


def test_a_study_that_has_not_begun() -> None:
    tuner("create", write_study())
    assert tuner("report", "tiny").stdout == "tiny: tiny.html\n"
    page = Path("tiny.html").read_text()
    assert list(embedded(page)) == ["brackets"]
    assert "No trial has completed." in page


def test_bad_input() -> None:
    tuner("create", write_study())
    assert "no study 'gone'" in tuner("report", "gone", code=2).stderr
    Path("folder").mkdir()
    folder = tuner("report", "tiny", "-o", "folder", code=2).stderr
    assert "folder is a folder; give a file in it: -o folder/report.html" in folder
    nowhere = tuner("report", "tiny", "-o", "no/such/place.html", code=2).stderr
    assert "cannot write no/such/place.html: No such file or directory; give another file: -o FILE" in nowhere
    assert sorted(path.name for path in Path().iterdir() if path.suffix == ".html") == []


def test_file_names() -> None:
    assert file_name("../../etc/passwd") == "etc-passwd.html"
    assert file_name("Übung") == "bung.html"
    assert file_name("…") == "study.html"


# The parts


def test_trials_are_compared_at_equal_epochs() -> None:
    def rows(epochs: int, count: int) -> list[RungRow]:
        return [RungRow(number=i, rung=0, epochs=epochs, value=float(i)) for i in range(count)]

    assert fidelity([]) == (None, {})
    assert fidelity([RungRow(number=0, rung=0, epochs=1, value=None)]) == (None, {})
    assert fidelity(rows(1, 90) + rows(3, 30) + rows(9, 10))[0] == 3
    assert fidelity(rows(1, 9) + rows(3, 3))[0] == 1
    assert fidelity(rows(1, 3) + rows(3, 3)) == (3, {0: 0.0, 1: 1.0, 2: 2.0})


def test_importance_finds_what_matters() -> None:
    rng = np.random.default_rng(0)
    points = {i: [a, b, 0.5] for i, (a, b) in enumerate(rng.random((200, 2)).tolist())}
    values = {i: abs(point[1] - 0.3) for i, point in points.items()}
    found = importances(["a", "b", "same"], points, values, maximize=False)
    assert list(found) == ["b", "a"]
    assert found["b"] > 0.7
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances(["a", "b", "same"], {i: points[i] for i in range(9)}, values, maximize=False) == {}
    assert importances(["a", "b", "same"], points, dict.fromkeys(values, 1.0), maximize=False) == {}


def test_contours_follow_the_values() -> None:
    rng = np.random.default_rng(0)
    points = dict(enumerate(rng.random((2000, 2)).tolist()))
    (found,) = contours(["a", "b"], points, {i: 3 * a for i, (a, _) in points.items()})
    z = np.array(found["z"], dtype=float)
    assert (found["x"], found["y"]) == ("a", "b")
    middle = z[:, analysis_module.GRID // 2]
    assert np.allclose(middle, 1.5, atol=0.15), "a row is one value of b, and b does not matter"
    assert np.all(np.diff(z.mean(0)) > 0)
    corner = {0: [0.05, 0.05], 1: [0.06, 0.04], 2: [0.04, 0.06]}
    (found,) = contours(["a", "b"], corner, {0: 1.0, 1: 2.0, 2: 3.0})
    assert found["z"][-1][-1] is None, "nothing is made up where nobody was"
    assert found["z"][1][1] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("domain", "texts"),
    [
        (Range(low=1e-6, high=1e-1, log=True, or_zero=True), ["0", "1e-06", "0.0001", "0.01"]),
        (Range(low=0.002, high=0.008, log=True), ["0.002", "0.008"]),
        (Range(low=0.0, high=0.6), ["0", "0.15", "0.3", "0.45", "0.6"]),
        (Range(low=1, high=3, integer=True), ["1", "2", "3"]),
        (Range(low=16, high=512, log=True, integer=True), ["16", "512"]),
        (Choices(choices=(16, 32)), ["16", "32"]),
        (parse_domain("activation", {"choices": ["relu", "gelu"]}), ["relu", "gelu"]),
    ],
)
def test_ticks(domain: Any, texts: list[str]) -> None:
    found = ticks(domain)
    assert [text for _, text in found] == texts
    places = [place for place, _ in found]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)


# In a browser


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_in_a_browser(wide: StudyManager, width: int, scheme: str, tmp_path: Path) -> None:
    if not has_browser():
        return
    page_file = tmp_path / "wide.html"
    page_file.write_text(report_html(analyse(wide, "wide")))
    with browser_page(viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(page_file.as_uri())
        page.wait_for_function(f"document.querySelectorAll('.drawing svg.main-svg').length >= {2 * len(ALL)}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself never scrolls sideways"
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 24, 31)" if scheme == "dark" else "rgb(255, 255, 255)")
        assert page.locator(".drawing[role=img][aria-label]").count() == len(ALL)
        widths = "[...document.querySelectorAll('.drawing svg.main-svg')].map((figure) => figure.clientWidth)"
        on_screen = page.evaluate(widths)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert set(page.evaluate(widths)) == {680}, "what a sheet of A4 holds"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(widths) == on_screen
        assert page.pdf().startswith(b"%PDF")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert said == []


def test_figures_come_from_json_alone(wide: StudyManager) -> None:
    analysis = analyse(wide, "wide")
    again = json.loads(json.dumps(analysis))
    assert [figure.told for figure in figures(again)] == [figure.told for figure in figures(analysis)]


def test_a_death_and_a_pause_show_in_the_timeline(wide: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = wide.workers("wide")
    assert only.ended_at is not None
    zero, end = only.started_at, only.ended_at
    crew = [
        only,
        replace(only, worker="dead-1", state="lost", started_at=zero, heartbeat_at=end + 5, ended_at=None),
        replace(only, worker="late-1", state="live", started_at=end + 25, heartbeat_at=end + 40, ended_at=None),
    ]
    monkeypatch.setattr(wide, "workers", lambda _: crew)
    found = analyse(wide, "wide")["timeline"]
    assert found["pauses"] == [[pytest.approx(end - zero + 5, abs=0.5), pytest.approx(end - zero + 25, abs=0.5)]]
    (figure,) = [figure for figure in figures(analyse(wide, "wide")) if figure.name == "timeline"]
    assert figure.told == "3 workers: 1 live, 1 left, 1 lost; 1 pause."
    bars = {bar["name"]: bar for bar in figure.drawing.data if bar["type"] == "bar"}
    colours = {name: bar["marker"]["color"] for name, bar in bars.items()}
    assert colours == {"worker live": GREEN, "worker left": BLUE, "worker lost": RED}
    assert bars["worker lost"]["y"] == ("dead-1 (cuda:0)",)
    (pause,) = figure.drawing.layout.shapes
    assert [pause.x0, pause.x1] == found["pauses"][0]

    crew.pop(1)
    crew[1] = replace(crew[1], started_at=end + 0.5)
    assert analyse(wide, "wide")["timeline"]["pauses"] == [], "a worker that takes over within a second"


def test_slices_have_each_hyperparameters_scale(wide: StudyManager) -> None:
    analysis = analyse(wide, "wide")
    (figure,) = [figure for figure in figures(analysis) if figure.name == "slices"]
    axes = [figure.drawing.layout[f"xaxis{i or ''}"] for i in (0, *range(2, 7))]
    kinds = {axis["name"]: shown.type for axis, shown in zip(analysis["space"], axes, strict=True)}
    assert kinds == {
        "learning_rate": "log",
        "batch_size": "category",
        "weight_decay": "log",
        "dropout": None,
        "width": "log",
        "depth": None,
    }
    decay = axes[2]
    assert decay.ticktext[0] == "0", "what is off stands apart"
    least = min(value for trial in analysis["trials"] if (value := trial["params"]["weight_decay"]))
    assert decay.tickvals[0] == pytest.approx(least / 10)


def test_a_pipe_is_written_into_and_a_link_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", "a report")
    assert os.read(reading, 100) == b"a report"
    os.close(reading)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("r.html")
    write_file(tmp_path / "link", "a report")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "r.html").read_text() == "a report"
