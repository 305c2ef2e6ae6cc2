"""The mechanism: a study file names a demonstration; run and demonstrate measure it, say it, draw it and store it."""

import importlib
import re
from pathlib import Path
from typing import get_args

import pytest

from tests.browser import browser_page, has_browser
from tests.cli.command import TINY, refused, strict_json, tuner, tuner_json, write_study
from tests.demonstrations.test_random_labels import measured
from tuner.demonstrations import Demonstration, exhibit
from tuner.manager import StudyManager
from tuner.report.html import write_exhibit
from tuner.spec import Shown

pytestmark = pytest.mark.usefixtures("workdir")

SMALL = (
    TINY.replace('metric = "error"', 'metric = "error"\nshows = "random_labels"')
    .replace("max_epochs = 4", "max_epochs = 40")
    .replace("width = 8", "width = 32")
)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("tuner.demonstrations.random_labels")
    monkeypatch.setattr(module, "DRAWS", 2)
    monkeypatch.setattr(module, "FRACTIONS", (0.0, 1.0))


@pytest.mark.parametrize("name", get_args(Shown))
def test_every_demonstration_is_an_exhibit(name: Shown) -> None:
    found = exhibit(name)
    assert found.TITLE
    assert found.SLIDE
    assert all(callable(part) for part in (found.measure, found.claim, found.draw))


@pytest.mark.usefixtures("_quick")
def test_run_shows_what_the_study_file_names() -> None:
    tuner("create", write_study(SMALL))
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    result = tuner("run", "tiny.toml", "--device", "cpu")
    stored = StudyManager("sqlite:///tuner.db").demonstrations("tiny")["random_labels"]
    verdict = "it holds: " if stored["holds"] else ""
    assert f"random_labels  {verdict}{stored['sentence']}\n" in result.stdout
    assert "figure         figures/tiny-random_labels.html\n" in result.stdout

    # The page needs nothing else; its numbers are beside it, and the claim is theirs.
    page = Path("figures/tiny-random_labels.html").read_text()
    assert re.findall(r"(?:src|href)=", page.partition("<script>")[0]) == []
    assert stored["sentence"][1:] in page
    beside = strict_json(Path("figures/tiny-random_labels.json").read_text())
    assert beside == stored
    again = Demonstration.of("tiny", "random_labels", beside["data"])
    assert again.as_dict() == stored

    # It is measured once; the report has it, too; and it opened no test set a second time.
    assert tuner("run", "tiny.toml", "--device", "cpu", "--to", "elsewhere").stdout.replace(
        "elsewhere", "figures"
    ) == result.stdout  # fmt: skip
    assert Path("elsewhere/tiny-random_labels.json").read_text() == Path("figures/tiny-random_labels.json").read_text()
    assert (
        strict_json(tuner("run", "tiny.toml", "-f", "json").stdout)["demonstration"]["sentence"] == stored["sentence"]
    )
    launch = ["launch", "tiny.toml", "--on", "local", "--workers", "1", "--to", "launched"]  # goes the same way
    assert tuner(*launch).stdout.replace("launched", "figures") == result.stdout
    assert Path("launched/tiny-random_labels.json").read_text() == Path("figures/tiny-random_labels.json").read_text()
    tuner("report", "tiny")
    assert stored["sentence"][1:] in Path("tiny.html").read_text()
    assert tuner_json("show", "tiny")["evaluation"]["peeks"] == 0
    tuner("delete", "tiny", "--yes")
    tuner("create", "tiny.toml")
    assert StudyManager("sqlite:///tuner.db").demonstrations("tiny") == {}, "they go with the study"


@pytest.mark.usefixtures("_quick")
def test_a_study_without_test_rows_shows_it_too() -> None:
    write_study(SMALL.replace("[data]", "[data]\nsplit = { train = 0.7, val = 0.3, test = 0.0 }"))
    tuner("create", "tiny.toml")
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    result = tuner("run", "tiny.toml", "--device", "cpu")
    assert "numbers        figures/tiny-random_labels.json\n" in result.stdout
    assert "test error" not in result.stdout


def test_what_cannot_be_shown_does_not_spoil_the_outcome() -> None:
    """Only the data say that there are three classes, where the bound is for two."""
    write_study(TINY.replace('metric = "error"', 'metric = "error"\nshows = "rademacher"'))
    tuner("create", "tiny.toml")
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    result = tuner("run", "tiny.toml", "--device", "cpu")
    assert "tiny: rademacher is not demonstrated: study 'tiny': the bound is for two classes" in result.stderr
    assert "test error" in result.stdout
    assert "figure" not in result.stdout
    assert not Path("figures").exists()


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    if not has_browser():
        return
    found = Demonstration.of("digits", "random_labels", measured())
    page, _ = write_exhibit(found, tmp_path)
    with browser_page(viewport={"width": 900, "height": 700}, color_scheme="dark") as opened:
        opened.goto(page.as_uri())
        opened.wait_for_selector("#random_labels .main-svg")
        assert "It holds. The network fits all 1,079 random labels" in opened.inner_text("#told")
        assert opened.locator("#random_labels .scatterlayer path.js-line").count() == 12
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.usefixtures("_quick")
def test_any_study_may_be_asked() -> None:
    tuner("create", write_study())
    assert "is created: a demonstration begins when the search is over" in refused(
        "demonstrate", "tiny", "random_labels", "-q"
    )
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    assert "names no demonstration (study.shows)" in refused("demonstrate", "tiny", "-q")
    assert "did you mean random_labels?" in refused("demonstrate", "tiny", "random_label", "-q")
    record = tuner_json("demonstrate", "tiny", "random_labels", "--device", "cpu", "-q")
    assert list(record) == [
        "study", "name", "title", "slide", "holds", "sentence", "data", "figure", "data_file",
    ]  # fmt: skip
    Path("file").touch()
    told = refused("demonstrate", "tiny", "random_labels", "--device", "cpu", "-q", "--to", "file")
    assert told == "error: cannot make the folder file: File exists; give another: --to DIR\n"
    assert not record["holds"]
    assert record["sentence"].startswith("that a network fits random data did not appear, because after 4 epochs")
    assert Path(record["figure"]).is_file()
    assert tuner_json("show", "tiny")["evaluation"] is None, "the test set stays sealed"


def test_an_unknown_demonstration_is_refused() -> None:
    write_study(TINY.replace('metric = "error"', 'metric = "error"\nshows = "magic"'))
    assert "study.shows: 'magic' is not one of " in refused("check", "tiny.toml")


def test_the_latest_of_each_kind_is_stored() -> None:
    tuner("create", write_study())
    manager = StudyManager("sqlite:///tuner.db")
    assert manager.store_demonstration("tiny", "a", {"x": float("nan")}) == {"x": None}
    manager.store_demonstration("tiny", "b", {"x": 1})
    manager.store_demonstration("tiny", "a", {"x": 2})
    assert manager.demonstrations("tiny") == {"a": {"x": 2}, "b": {"x": 1}}
