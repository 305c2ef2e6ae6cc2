"""optuna-dashboard, opened on a study's database: the study is there, with its learning curves, in a real browser."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import optuna_dashboard
import pytest

from tuner.manager import StudyManager
from tuner.plan import create_study
from tuner.spec import parse_spec
from tuner.worker import run_worker

CHROMIUM = Path("/usr/bin/chromium")
STUDY = {
    "study": {"name": "curves", "metric": "error"},
    "data": {"source": "sklearn:iris"},
    "training": {"max_epochs": 9},
    "search": {"trials": 9},
    "space": {
        "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
        "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True, "or_zero": True},
        "batch_size": 16,
        "width": {"low": 4, "high": 40},
        "depth": {"low": 1, "high": 3},
    },
}


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are what the test is about."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with a finished study."""
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/study.db"
    with StudyManager(url) as manager:
        create_study(manager, parse_spec(STUDY), Path())
        run_worker(manager, "curves", device="cpu", stop=threading.Event())
    return url


@pytest.fixture(scope="module")
def address(storage: str) -> Iterator[str]:
    """Where the dashboard answers."""
    opened = optuna.storages.RDBStorage(storage)
    server = make_server("127.0.0.1", 0, optuna_dashboard.wsgi(opened), handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    opened.engine.dispose()


def fetched(url: str) -> Any:
    with urlopen(url) as answer:
        return json.load(answer)


def test_the_dashboards_data_hold_every_trial_and_its_curve(storage: str, address: str) -> None:
    (listed,) = fetched(f"{address}/api/studies")["study_summaries"]
    assert listed["study_name"] == "curves"
    detail = fetched(f"{address}/api/studies/{listed['study_id']}")
    with StudyManager(storage) as manager:
        trials = manager.trials("curves")
        curves = {trial.number: manager.curve("curves", trial.number) for trial in trials}
    assert [t["number"] for t in detail["trials"]] == list(range(9))
    assert {t["state"] for t in detail["trials"]} == {"Complete", "Pruned"}
    for shown, trial in zip(detail["trials"], trials, strict=True):
        points = [(point["step"], point["value"]) for point in shown["intermediate_values"]]
        assert points == [(point.epoch, point.value) for point in curves[trial.number]]
        assert len(points) == trial.epochs


def test_the_study_page_renders_in_a_browser(address: str, tmp_path: Path) -> None:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{CHROMIUM} is not there: apt-get install chromium")
        pytest.skip(f"no browser: {CHROMIUM} is not installed")
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/dashboard/studies/1")
        expect(page.get_by_text("Intermediate values", exact=False).first).to_be_visible(timeout=30_000)
        expect(page.get_by_text("curves", exact=False).first).to_be_visible()
        expect(page.locator(".js-plotly-plot").first).to_be_visible(timeout=30_000)
        page.screenshot(path=str(tmp_path / "study.png"), full_page=True)
        browser.close()
    assert errors == []
    assert (tmp_path / "study.png").stat().st_size > 20_000
