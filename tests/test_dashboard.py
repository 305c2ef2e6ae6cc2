"""The dashboard: whole studies in a real browser, and nobody gets in or changes anything who should not."""

import base64
import io
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna_dashboard import get_note, save_note, wsgi

from tests.browser import browser_page, has_browser
from tests.cli.command import tuner
from tests.dashboards import STUDY, pretend, served
from tests.storage.servers import lay_tables
from tuner import dashboard
from tuner.dashboard import (
    SHOWN_POINTS,
    SHOWN_TRIALS,
    WEIGHED_TRIALS,
    Guard,
    Shown,
    check_address,
    representatives,
    stride,
    whole,
)
from tuner.errors import BadInputError
from tuner.manager import StudyManager
from tuner.plan import create_study
from tuner.report.note import note_text, write_note
from tuner.spec import parse_spec
from tuner.worker import run_worker


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with a finished study."""
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/study.db"
    with StudyManager(url) as manager:
        create_study(manager, parse_spec(STUDY), Path())
        run_worker(manager, "curves", device="cpu", stop=threading.Event())
        write_note(manager, "curves")
        manager.attach("curves", "report", "curves-report.html", b"<script>document.title = 'shown'</script>")
    return url


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with a study of more trials than are shown, which nobody trained."""
    url = f"sqlite:///{tmp_path_factory.mktemp('large')}/study.db"
    pretend(url, trials=2 * SHOWN_TRIALS, max_epochs=1)
    return url


@pytest.fixture(scope="module")
def address(storage: str) -> Iterator[str]:
    """Where the dashboard of the small study answers."""
    with served(storage) as at:
        yield at


def fetched(url: str) -> Any:
    with urlopen(url) as answer:
        return json.load(answer)


def answer(
    url: str, method: str = "GET", content: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body, whatever they are."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(url, method=method, data=content, headers=named)
    try:
        with urlopen(request) as got:
            return got.status, dict(got.headers), got.read().decode()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read().decode()


# What it shows


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


def test_trials_carry_what_one_asks_of_them(storage: str) -> None:
    (listed,) = optuna.get_all_study_summaries(storage)
    assert listed.study_name == "curves"
    with StudyManager(storage) as manager:
        rows = {row.number: row for row in manager.trials("curves")}
        (worker,) = manager.workers("curves")
        for trial in optuna.load_study(study_name="curves", storage=storage).trials:
            row, last = rows[trial.number], manager.curve("curves", trial.number)[-1]
            told = {"train_loss": last.train_loss, "val_loss": last.val_loss, "worker": worker.worker, "device": "cpu"}
            told |= {"epochs": row.epochs, "bracket": row.bracket, "rung": row.rung}
            assert last.train_loss is not None
            assert last.val_loss is not None
            told |= {"generalization_gap": last.val_loss - last.train_loss}
            assert told.items() <= trial.user_attrs.items()
            assert trial.user_attrs.get("reason") == row.reason


def test_trials_are_read_as_optuna_reads_them(storage: str) -> None:
    plain, ours = optuna.storages.RDBStorage(storage), Shown(storage)
    assert ours.get_all_trials(1) == plain.get_all_trials(1)
    for light, trial in zip(ours._get_trials(1, None, set(), -1), plain.get_all_trials(1), strict=True):
        assert light.intermediate_values == {}
        light.intermediate_values = trial.intermediate_values
        assert light == trial
    assert ours.get_all_trials(1) == plain.get_all_trials(1), "from memory, too"
    complete = (optuna.trial.TrialState.COMPLETE,)
    assert ours.get_all_trials(1, states=complete) == plain.get_all_trials(1, states=complete)
    with pytest.raises(KeyError, match="study 9 is gone"):
        ours.get_all_trials(9)
    for opened in (plain, ours):
        opened.engine.dispose()


def test_a_large_study_is_thinned_and_says_so(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, plain = Shown(large), optuna.storages.RDBStorage(large)
    trials = shown.get_all_trials(1)
    assert stride(2 * SHOWN_TRIALS) == 2
    assert len(trials) == SHOWN_TRIALS
    assert [trial.number // 2 for trial in trials] == list(range(SHOWN_TRIALS))
    assert plain.get_best_trial(1).number in {trial.number for trial in trials}
    (study,) = shown.get_all_studies()
    assert study.user_attrs["shown"] == (
        f"the best of each 2 consecutive trials of {2 * SHOWN_TRIALS:,}; tuner report curves draws all"
    )
    assert len(shown._get_trials(1, None, set(), -1)) == 2 * SHOWN_TRIALS == WEIGHED_TRIALS
    monkeypatch.setattr(dashboard, "WEIGHED_TRIALS", 1000)
    assert sorted(t.number for t in shown._get_trials(1, None, set(), -1)) == list(range(0, 2 * SHOWN_TRIALS, 4))
    with whole():
        assert len(shown._get_trials(1, None, set(), -1)) == 2 * SHOWN_TRIALS
    for opened in (plain, shown):
        opened.engine.dispose()


def test_who_stands_for_its_neighbours() -> None:
    heads = [(1, 0, True, 0.2), (2, 1, True, 0.1), (3, 2, True, math.inf), (4, 3, True, 9.0), (5, 4, True, 0.1)]
    assert representatives(heads, 2) == [2, 4, 5]
    running = [*heads[:4], (5, 4, True, 0.1), (6, 5, False, math.inf)]
    assert representatives(running, 2) == [2, 4, 6], "who is over stays where it was; a run that is not over shows so"
    assert representatives(heads, 1) == [1, 2, 3, 4, 5]


def test_long_curves_are_thinned() -> None:
    storage = optuna.storages.RDBStorage("sqlite://")
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    for step in range(1, 1001):
        trial.report(step / 7, step)
    shown = Shown("sqlite://")
    shown.engine.dispose()
    shown.engine = storage.engine
    (read,) = shown.get_all_trials(study._study_id)
    steps = list(read.intermediate_values)
    assert (steps[0], steps[-1]) == (1, 1000)
    assert SHOWN_POINTS <= len(steps) <= SHOWN_POINTS + 1
    storage.engine.dispose()


def test_the_study_page_in_a_browser_with_its_note_and_no_delete(address: str, tmp_path: Path) -> None:
    if not has_browser():
        return
    with browser_page() as page:
        page.goto(f"{address}/dashboard/studies/1")
        page.get_by_text("Intermediate values", exact=False).first.wait_for(timeout=30_000)
        page.locator(".js-plotly-plot").first.wait_for(timeout=30_000)
        page.screenshot(path=str(tmp_path / "study.png"), full_page=True)
        page.goto(f"{address}/dashboard/studies/1/note")
        page.get_by_text("Tuner's summary of curves").first.wait_for(timeout=30_000)
        deleted = page.evaluate(
            "fetch('/api/studies/1', {method: 'DELETE'}).then(async r => [r.status, await r.json()])"
        )
        assert deleted == [
            403,
            {"reason": "this dashboard is read-only; to change studies in it: tuner dashboard --allow-edits"},
        ]
    assert (tmp_path / "study.png").stat().st_size > 20_000
    assert len(fetched(f"{address}/api/studies")["study_summaries"]) == 1


@pytest.mark.parametrize("trials", [1_000, 20_000])
def test_a_large_study_in_a_browser(trials: int, tmp_path: Path) -> None:
    if not has_browser():
        return
    url = f"sqlite:///{tmp_path}/study.db"
    pretend(url, trials=trials, max_epochs=1)
    with served(url) as address, browser_page() as page:
        start_s = time.perf_counter()
        page.goto(f"{address}/dashboard/studies/1")
        page.locator(".js-plotly-plot").first.wait_for(timeout=60_000)
        print(f"{trials:,} trials: the first figure after {time.perf_counter() - start_s:.1f} s")
        page.locator("#graph-hyperparameter-importances .bars path").first.wait_for(timeout=60_000)
        print(f"{trials:,} trials: the importances after {time.perf_counter() - start_s:.1f} s")
        shown = page.get_by_text("importances are of one trial in 8; tuner report curves draws all")
        if trials > SHOWN_TRIALS:
            shown.first.wait_for(timeout=30_000)
        assert shown.count() == (trials > SHOWN_TRIALS)
        assert len(answer(f"{address}/csv/1")[2].splitlines()) == 1 + trials, "the file has all"


# The note


def test_notes_are_optuna_dashboards_own(storage: str) -> None:
    with StudyManager(storage) as manager:
        text = note_text(manager.summary("curves").as_dict())
        study = optuna.load_study(study_name="curves", storage=storage)
        assert get_note(study) == text
        assert text.startswith("# Tuner's summary of curves\n")
        assert "validation error" in text
        assert "| learning_rate |" in text
        manager.save_note("curves", text.splitlines()[0] + "\n" + "long " * 1000)
        assert get_note(study).endswith("long " * 1000)
        write_note(manager, "curves")
        assert get_note(study) == text, "a shorter one leaves nothing of the longer"
        save_note(study, "my own words")
        write_note(manager, "curves")
        assert get_note(study) == "my own words"
        save_note(study, "")
        write_note(manager, "curves")
        assert get_note(study) == text


# Who gets in


def test_changes_are_refused_with_the_reason(address: str) -> None:
    changes = ["DELETE /api/studies/1", "POST /api/studies", "PUT /api/studies/1/note", "POST /api/trials/1/tell"]
    for method, path in map(str.split, [*changes, "PATCH /", "POST /incompatible-rdb-schema"]):
        status, headers, body = answer(address + path, method)
        assert (status, "read-only" in json.loads(body)["reason"]) == (403, True)
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert fetched(f"{address}/api/studies")["study_summaries"]


def test_security_headers(address: str) -> None:
    status, headers, _ = answer(f"{address}/dashboard")
    assert status == 200
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert {
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }.items() <= (headers.items())
    assert "Server" not in headers
    assert answer(f"{address}/api/studies")[1]["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Host": "evil.example:8080"}, "the Host header must name this machine, not 'evil.example:8080'"),
        ({"Host": "localhost@evil.example"}, "must name this machine"),
        ({"Host": ""}, "must name this machine"),
        ({"Origin": "https://evil.example"}, "came from https://evil.example"),
        ({"Origin": "null"}, "came from null"),
        ({"Sec_Fetch_Site": "cross-site"}, "came from cross-site"),
    ],
)
def test_strangers_are_refused(address: str, headers: dict[str, str], reason: str) -> None:
    status, _, body = answer(f"{address}/api/studies", **headers)
    assert status == 403
    assert reason in json.loads(body)["reason"]


def test_friends_are_let_in(address: str) -> None:
    port = address.rpartition(":")[2]
    for headers in (
        {"Host": f"localhost:{port}"},
        {"Host": f"[::1]:{port}"},
        {"Host": socket.gethostname()},
        {"Origin": address},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},  # a link
    ):
        assert answer(f"{address}/api/studies", **headers)[0] == 200, headers


def test_the_password(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_DASHBOARD_PASSWORD", "pässword:1")

    def basic(text: str, kind: str = "Basic") -> str:
        return f"{kind} {base64.b64encode(text.encode()).decode()}"

    with served(storage, "--host", "0.0.0.0") as address:
        url = address.replace("0.0.0.0", "127.0.0.1") + "/api/studies"
        status, headers, _ = answer(url)
        assert status == 401
        assert headers["Www-Authenticate"].startswith("Basic ")
        for wrong in (
            basic("me:wrong"),
            basic("pässword:1"),
            basic("me:"),
            "Basic %%%",
            "Basic",
            basic("me:pässword:1", "Bearer"),
        ):
            assert answer(url, Authorization=wrong)[0] == 401, wrong
        assert answer(url, Authorization=basic("anybody:pässword:1"))[0] == 200
        assert answer(url, Authorization=basic(":pässword:1"))[0] == 200


def test_edits_are_let_through_but_no_renaming(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    lay_tables(url)
    for name in ("kept", "gone"):
        optuna.create_study(storage=url, study_name=name)
    with served(url, "--allow-edits", "--allow-host", "tuner.example") as address:
        status, _, body = answer(f"{address}/api/studies/1/rename", "POST")
        assert (status, "a study keeps its name" in body) == (403, True)
        assert answer(f"{address}/api/studies/2", "DELETE", Origin="https://evil.example")[0] == 403
        assert answer(f"{address}/api/studies/2", "DELETE", Host="tuner.example")[0] == 204
        assert [s["study_name"] for s in fetched(f"{address}/api/studies")["study_summaries"]] == ["kept"]


def test_uploaded_html_is_never_shown(tmp_path: Path) -> None:
    """The very application, with an artifact store: what was uploaded comes as a download."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(storage=storage)
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    (tmp_path / "files").mkdir()
    store = FileSystemArtifactStore(tmp_path / "files")
    identity = upload_artifact(artifact_store=store, file_path=str(tmp_path / "page.html"), study_or_trial=study)
    got: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        got.update(status=status, headers=headers)

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": f"/artifacts/1/{identity}",
        "HTTP_HOST": "localhost",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
    }
    guarded = Guard(wsgi(storage, artifact_store=store))(environ, start_response)
    with closing(guarded):
        body = b"".join(guarded)
    headers = dict(got["headers"])
    assert (got["status"], body) == ("200 OK", b"<script>alert(1)</script>")
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"] == "attachment"
    assert "sandbox" in headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in headers
    assert len(headers) == len(got["headers"]), "no header twice"
    # The control: without the guard it is a page of this origin.
    with closing(wsgi(storage, artifact_store=store)(dict(environ), start_response)):
        pass
    assert dict(got["headers"])["Content-Type"] == "text/html"
    storage.engine.dispose()


# Attachments


def test_a_report_is_downloaded_in_a_browser_and_never_shown(address: str) -> None:
    if not has_browser():
        return
    with browser_page() as page:
        page.goto(f"{address}/dashboard/studies/1")
        page.get_by_text("curves-report.html").first.wait_for(timeout=30_000)
        (link,) = page.locator("a[href^='/artifacts/']").all()
        with page.expect_download() as clicked:
            link.click()
        assert clicked.value.suggested_filename == "curves-report.html"
        assert Path(clicked.value.path()).read_bytes() == b"<script>document.title = 'shown'</script>"
        url = address + link.get_attribute("href")
        with page.expect_download():
            page.evaluate(f"location.href = {json.dumps(url)}")
        assert page.title() != "shown"
        for method, path in (("DELETE", link.get_attribute("href")), ("POST", "/artifacts/1")):
            status = page.evaluate(f"fetch('/api{path}', {{method: '{method}'}}).then(r => r.status)")
            assert status == 403
    status, headers, _ = answer(url)
    assert (status, headers["Content-Disposition"], headers["X-Content-Type-Options"]) == (200, "attachment", "nosniff")
    assert headers["Content-Type"] == "application/octet-stream"
    assert "sandbox" in headers["Content-Security-Policy"]


def test_attachments_that_are_not_there_or_find_no_room(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    elsewhere = tmp_path / "elsewhere"
    with StudyManager(url, elsewhere) as manager:
        create_study(manager, parse_spec(STUDY), Path())
        identity = manager.attach("curves", "report", "curves-report.html", b"report")
    upload = json.dumps({"file": "data:text/html;base64,eA==", "filename": "x.html"}).encode()
    json_headers = {"Content_Type": "application/json"}
    with served(url, "--allow-edits") as address:
        status, _, body = answer(f"{address}/artifacts/1/{identity}")
        assert (status, "give it the --artifacts of who attached it" in json.loads(body)["reason"]) == (404, True)
        (tmp_path / "tuner-artifacts").write_text("no folder")
        status, _, body = answer(f"{address}/api/artifacts/1", "POST", upload, **json_headers)
        assert (status, "cannot be written (Not a directory)" in json.loads(body)["reason"]) == (507, True)
    with served(url, "--allow-edits", "--artifacts", str(elsewhere)) as address:
        assert answer(f"{address}/artifacts/1/{identity}")[2] == "report"
        assert answer(f"{address}/api/artifacts/1", "POST", upload, **json_headers)[0] == 201
        assert sorted(path.read_bytes() for path in (elsewhere / "attached").iterdir()) == [b"report", b"x"]
    with served(url) as address:
        large = {"Content_Length": str(2**21)}
        assert answer(f"{address}/api/artifacts/1", "POST", b"x", **large)[0] == 413, "before it is read"


# Bad input


def test_a_study_that_is_deleted_while_somebody_looks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    pretend(url, trials=3, max_epochs=1)
    with served(url) as address:
        assert answer(f"{address}/api/studies/1")[0] == 200
        with StudyManager(url) as manager:
            manager.delete("curves")
        pages = ("/api/studies/1", "/api/studies/1/param_importances", "/api/studies/1/plot/slice", "/csv/1")
        for path in (*pages, "/artifacts/1/abc", "/artifacts/1/1/abc"):
            assert answer(address + path)[0] == 404, path
        assert fetched(f"{address}/api/studies") == {"study_summaries": []}
        assert answer(f"{address}/dashboard/studies/1")[0] == 200


def test_many_looks_at_once_are_answered_in_silence(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    pretend(url, trials=300, max_epochs=1)
    with served(url) as address, ThreadPoolExecutor(32) as crowd:  # served: nothing but the address is said
        assert set(crowd.map(lambda _: answer(f"{address}/api/studies/1")[0], range(64))) == {200}


def test_other_addresses_need_a_password() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_address(host, None)
    check_address("0.0.0.0", "secret")
    for host in ("0.0.0.0", "::", "192.168.1.2", "db.example"):
        with pytest.raises(BadInputError, match="needs a password: set TUNER_DASHBOARD_PASSWORD, or leave out --host"):
            check_address(host, None)
    with pytest.raises(BadInputError, match="is set and empty"):
        check_address("127.0.0.1", "")


@pytest.mark.usefixtures("workdir")
def test_a_port_that_is_taken() -> None:
    lay_tables("sqlite:///tuner.db")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = tuner("dashboard", "--port", str(port), code=2).stderr
    assert f"port {port} on 127.0.0.1 is taken" in message
    assert f"ss -ltnp 'sport = :{port}'" in message
    assert f"--port {port + 1}" in message


@pytest.mark.usefixtures("workdir")
def test_a_host_that_is_not_here_and_a_database_that_never_answers() -> None:
    tuner("dashboard", "--host", "0.0.0.0", code=2)
    assert "there is no file tuner.db" in tuner("dashboard", code=1).stderr
    assert not Path("tuner.db").exists()
    dead = "postgresql://me@127.0.0.1:9/x"
    assert "127.0.0.1:9" in tuner("dashboard", "--storage", dead, "--wait", "0.2", code=1).stderr
