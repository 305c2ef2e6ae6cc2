"""Tracking: every trial that is over is in the real MLflow and TensorBoard exactly once, whoever died over it."""

import math
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import TINY, refused, tuner, wait_until, write_study
from tests.storage.fleet import create, make_spec
from tuner.errors import BadInputError, SpecError, StorageError
from tuner.manager import StudyManager
from tuner.spec import LogSection, parse_spec
from tuner.storage.ledger import EpochRow, RungResult
from tuner.tracking import tracker
from tuner.tracking.tracker import Tracking, check_installed

pytestmark = [
    pytest.mark.usefixtures("workdir"),
    pytest.mark.filterwarnings("ignore"),  # of the tools themselves
]
LOGGED = '[log]\nmlflow = "ml"\ntensorboard = "logs/tb"\n'


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's, which takes seconds to make."""
    from tuner.tracking.mlflow import MlflowTracker

    folder = tmp_path_factory.mktemp("mlflow")
    MlflowTracker(folder, "other", "other-1", "error")
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def _database(workdir: Path, empty: Path) -> None:
    (workdir / "ml").mkdir()
    shutil.copy(empty, workdir / "ml" / "mlflow.db")


def runs(study: str = "tiny") -> list[Any]:
    """MLflow's runs that are not deleted, by trial."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{Path('ml').absolute()}/mlflow.db")
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    return sorted(found, key=lambda run: int(run.data.tags["tuner.trial"]))


def history_of(run: Any, key: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{Path('ml').absolute()}/mlflow.db")
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]


def boards() -> list[Path]:
    """TensorBoard's folders of trials, by name."""
    (study,) = Path("logs/tb").iterdir()
    return sorted(study.glob("*trial-*"))


def scalars(board: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(board))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_is_in_both_tools_with_all_its_trials_once() -> None:
    study = write_study(TINY + LOGGED)
    tuner("run", study, "--workers", "1", "--device", "cpu")
    with StudyManager("sqlite:///tuner.db") as manager:
        trials, curves = manager.trials("tiny"), manager.curves("tiny")
    assert [run.info.run_name for run in runs()] == ["trial 0", "trial 1", "trial 2"]
    for trial, run, board in zip(trials, runs(), boards(), strict=True):
        assert trial.params is not None
        assert run.info.status == "FINISHED"
        assert 0 < run.info.start_time <= run.info.end_time
        assert run.data.params == {key: str(value) for key, value in trial.params.items()}
        assert run.data.metrics["value"] == trial.value
        assert {"epochs": "4", "worker": trial.worker, "device": "cpu"}.items() <= run.data.tags.items()
        assert board.name == f"trial-{trial.number:05}-complete"
        shown = scalars(board)
        assert shown["value"] == [(4, pytest.approx(trial.value))]
        for key, of in (("error", "value"), ("train_loss", "train_loss"), ("val_loss", "val_loss")):
            curve = [(point.epoch, getattr(point, of)) for point in curves[trial.number]]
            assert len(curve) == 4
            assert history_of(run, key) == curve
            assert shown[key] == [(epoch, pytest.approx(value)) for epoch, value in curve]
    before = [run.info.run_id for run in runs()], [list(board.iterdir()) for board in boards()]
    tuner("run", study, "--workers", "1", "--device", "cpu")
    assert ([run.info.run_id for run in runs()], [list(board.iterdir()) for board in boards()]) == before
    # What was lost is logged again, and nothing else.
    shutil.rmtree(boards()[1])
    tuner("worker", "tiny", "--device", "cpu")
    assert [run.info.run_id for run in runs()] == before[0]
    assert [board.name for board in boards()] == [f"trial-0000{i}-complete" for i in range(3)]


# Studies that nobody trained


@pytest.fixture
def manager() -> Iterator[StudyManager]:
    """Of a study of nine trials that is logged to both tools."""
    log = LogSection(mlflow=str(Path("ml").absolute()), tensorboard=str(Path("logs/tb").absolute()))
    with StudyManager("sqlite:///tuner.db") as manager:
        create(manager, make_spec(9, pruner="none").model_copy(update={"log": log}))
        yield manager


def finish(manager: StudyManager, limit: int) -> None:
    """So many trials end, each with a training loss that was not finite, the first without a value."""
    ledger = manager.ledger("fleet")
    worker = ledger.register("host", 1, "cpu", "0")
    claims = ledger.claim(worker, limit=limit, lease_s=60)
    rows = [
        EpochRow(number=c.number, token=c.token, epoch=e, value=1 / e, train_loss=math.nan, val_loss=0.5)
        for c in claims
        for e in range(1, 10)
    ]
    results = [
        RungResult(number=c.number, token=c.token, epochs=9, value=math.nan if c.number == 0 else 0.1, seconds=0.1)
        for c in claims
    ]
    ledger.commit(worker, results, rows)


def test_several_processes_at_once_log_each_trial_once(manager: StudyManager) -> None:
    finish(manager, 5)
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        several = [stack.enter_context(Tracking.of(manager, "fleet")) for _ in range(4)]
        finish(manager, 4)
        answers = list(pool.map(Tracking.catch_up, several))
    assert (answers.count(2 * 9), answers.count(None)) == (1, 3)
    assert [run.data.tags["tuner.trial"] for run in runs("fleet")] == [str(i) for i in range(9)]
    assert len(boards()) == 9
    assert "value" not in runs("fleet")[0].data.metrics
    assert "train_loss" not in runs("fleet")[1].data.metrics, "what is not finite is left out"
    with Tracking.of(manager, "fleet") as late:
        assert late.catch_up() == 0, "the lease was given back"


class Killed(BaseException):
    """SIGKILL, as far as a test can have it in its own process."""


def fatal(call: Callable[..., Any], after: int) -> Callable[..., Any]:
    """A call that ends the process after so many times."""
    calls: list[None] = []

    def die(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) > after:
            raise Killed
        return call(*args, **options)

    return die


def test_whoever_dies_over_a_trial_leaves_it_to_the_next(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(tracker, "LEASE_S", 1.0)
    finish(manager, 9)
    first, second = Tracking.of(manager, "fleet"), Tracking.of(manager, "fleet")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", fatal(MlflowClient.set_terminated, 3))
        with pytest.raises(Killed):
            first.catch_up()
    assert [run.info.status for run in runs("fleet")] == ["KILLED", "FINISHED", "FINISHED", "RUNNING"], "half a run"
    (folder,) = Path("logs/tb").iterdir()
    (folder / ".unfinished-0").mkdir()
    logged: list[int | None] = []
    wait_until(lambda: logged.append(second.catch_up()) or logged[-1] is not None)  # until the lease is over
    assert logged[-1] == 6 + 9
    assert len(runs("fleet")) == len(boards()) == 9
    assert [run.info.status for run in runs("fleet")] == ["KILLED"] + ["FINISHED"] * 8, "the first one diverged"
    assert not (folder / ".unfinished-0").exists()
    # One that slept through it all, and goes on where it was, writes a trial a second time; the next one sees to it.
    first._trackers[0].log(manager.histories("fleet", [3])[0])
    assert len(runs("fleet")) == 10
    with Tracking.of(manager, "fleet") as third:
        wait_until(lambda: third.catch_up() is not None)
    assert [run.data.tags["tuner.trial"] for run in runs("fleet")] == [str(i) for i in range(9)]


def test_a_failed_trial_that_is_tried_again_takes_its_old_place(manager: StudyManager) -> None:
    ledger = manager.ledger("fleet")
    worker = ledger.register("host", 1, "cpu", "0")
    while manager.trials("fleet")[0].state != "failed":
        claims = ledger.claim(worker, limit=1, lease_s=60)
        ledger.fail(worker, [(c.number, c.token, "out of luck") for c in claims])
    with Tracking.of(manager, "fleet") as tracking:
        assert tracking.catch_up() == 2
        assert [run.info.status for run in runs("fleet")] == ["FAILED"]
        assert [board.name for board in boards()] == ["trial-00000-failed"]
        manager.retry("fleet")
        finish(manager, 9)
        assert tracking.catch_up() == 2 * 9
    assert len(runs("fleet")) == len(boards()) == 9
    assert runs("fleet")[0].info.status == "KILLED"
    assert boards()[0].name == "trial-00000-pruned", "it diverged"


def test_trials_are_logged_while_the_search_goes_on(manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "PAUSE_S", 0.05)
    with Tracking.of(manager, "fleet") as tracking, tracking.following():
        finish(manager, 4)
        wait_until(lambda: len(boards()) == 4)
        finish(manager, 5)
        wait_until(lambda: len(boards()) == 9)
    assert len(runs("fleet")) == 9


# Trouble


def test_what_is_not_installed_is_said_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda _: None)
    message = refused("run", write_study(TINY + LOGGED), "--quiet")
    assert "log.mlflow: mlflow is not installed here; pip install 'tuner[mlflow]'" in message
    assert not Path("tuner.db").exists()
    with pytest.raises(BadInputError, match=r"pip install 'tuner\[tensorboard\]'"):
        check_installed(LogSection(tensorboard="x"))
    check_installed(LogSection())
    tuner("create", write_study(TINY + LOGGED))
    assert "mlflow is not installed here" in refused("worker", "tiny", "--quiet")


def test_places_that_cannot_be_used_are_said_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    write_study(TINY + '[log]\ntensorboard = "file/tb"\n')
    message = refused("run", "tiny.toml", "--quiet", code=1)
    assert "cannot be written: Not a directory; see [log] tensorboard" in message
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_study(TINY + '[log]\nmlflow = "http://me@127.0.0.1:9"\n')
    message = refused("run", "tiny.toml", "--quiet", code=1)
    assert "MLflow at http://me@127.0.0.1:9: " in message
    with StudyManager("sqlite:///tuner.db") as manager:
        assert manager.summary("tiny").state == "created"
        assert manager.spec("tiny").log == LogSection(mlflow="http://me@127.0.0.1:9"), "as the last run had it"
        monkeypatch.setenv("TUNER_DATA_ROOT", "/nowhere")
        write_study(TINY + LOGGED)
        tuner("create", "tiny.toml")
        with pytest.raises(StorageError, match="ml is relative to /nowhere, which is not on this machine"):
            Tracking.of(manager, "tiny")


def test_trouble_afterwards_costs_no_result(manager: StudyManager, caplog: pytest.LogCaptureFixture) -> None:
    finish(manager, 9)
    with Tracking.of(manager, "fleet") as tracking:
        shutil.rmtree("logs")
        Path("logs").write_text("")
        tracking.finish("note", lambda _: None)
        assert "not all of its trials are logged: TensorBoard at " in caplog.text
        assert len(runs("fleet")) == 9
        Path("logs").unlink()
        Path("logs/tb").mkdir(parents=True)
        tracking.finish("note", lambda _: None)


def test_what_is_logged_where_is_no_part_of_the_study() -> None:
    plain, with_log = (parse_spec(tomllib.loads(text)) for text in (TINY, TINY + LOGGED))
    assert (with_log.log.mlflow, with_log.log.tensorboard) == ("ml", "logs/tb")
    assert plain.digest == with_log.digest
    assert plain.differences(with_log) == []
    tuner("create", write_study(TINY))
    tuner("create", write_study(TINY + LOGGED))
    with StudyManager("sqlite:///tuner.db") as manager:
        assert manager.spec("tiny").log == with_log.log
        manager.admit("tiny")
    for line, reason in (
        ('mlflow = "https://me:secret@host"', "log.mlflow: a password would be stored"),
        ('mlflow = ""', "log.mlflow: "),
        ('tensorboard = "s3://bucket"', "log.tensorboard: 's3://bucket' is no folder"),
        ('wandb = "x"', "log.wandb: unknown key; known here: mlflow, tensorboard"),
    ):
        with pytest.raises(SpecError, match=re.escape(reason)):
            parse_spec(tomllib.loads(f"{TINY}[log]\n{line}"))
