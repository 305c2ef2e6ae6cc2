"""run and worker: from a study file to a test error, through Ctrl-C, again and again."""

import csv
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sklearn.datasets import load_iris

from tests.cli.command import DEADLINE_S, STUDIES, TINY, start, strict_json, tuner, tuner_json, wait_until, write_study
from tuner import evaluation
from tuner.errors import TunerError
from tuner.launch.local import usable_cores
from tuner.manager import StudyManager

pytestmark = pytest.mark.usefixtures("workdir")

OVERRIDES: dict[str, list[str]] = {
    "breast_cancer": ["--trials", "9", "--max-epochs", "9"],
    "diabetes": ["--trials", "9", "--max-epochs", "9"],
    "digits": ["--trials", "9", "--max-epochs", "3"],
    "iris": ["--max-epochs", "1"],
    "wine": ["--trials", "9", "--max-epochs", "9"],
}
DIVERGING = TINY.replace("low = 1e-3, high = 1e-1", "low = 900, high = 1000").replace(
    "[training]", '[training]\noptimizer = "sgd"\nmomentum = 0.99'
)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a process that ends by itself."""
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def results(name: str) -> list[tuple[Any, ...]]:
    """What the trials of a study came to."""
    return [(row["state"], row["value"], row["epochs"], row["params"]) for row in tuner_json("trials", name)]


def test_every_study_file_has_overrides() -> None:
    assert {path.stem for path in STUDIES.glob("*.toml")} == OVERRIDES.keys()


@pytest.mark.parametrize("name", OVERRIDES)
def test_study_file_in_a_tiny_form(name: str) -> None:
    file = STUDIES / f"{name}.toml"
    assert any(line.startswith("# Shows: ") for line in file.read_text().splitlines())
    tuner("create", file, *OVERRIDES[name])
    tuner("worker", name, "--device", "cpu", "--quiet")
    study = tuner_json("show", name)
    trials = study["trials"]
    assert study["state"] == "finished"
    assert trials["complete"] + trials["pruned"] == trials["total"]
    evaluation = tuner_json("evaluate", name, "--device", "cpu")
    assert evaluation["test"]["low"] <= evaluation["test"]["mean"] <= evaluation["test"]["high"]
    assert f"test {evaluation['metric']}" in tuner("show", name).stdout


def test_run_reports_an_honest_test_error() -> None:
    code, out, err = finish(start("run", write_study(), "--workers", "1", "--device", "cpu"))
    assert (code, err.splitlines()[:2]) == (0, ["tiny: reading the data", "tiny: starting 1 worker"])
    assert err.endswith("tiny: refitting the winner, then opening the test set\ntiny: drawing the report\n")
    study = tuner_json("show", "tiny")
    evaluation = study["evaluation"]
    assert out.startswith("tiny: 3 of 3 trials done (3 complete, 0 pruned, 0 failed), 12 epochs in ")
    assert f"validation error  {study['best']['value']:.4g}, optimistic: picked as the best of 3 trials" in out
    assert (
        f"test error        {evaluation['test']['mean']:.4g} ± {evaluation['test']['sd']:.4g} over 2 refits, 95 %"
        in out
    )
    told = {line.split()[0] for line in out.splitlines() if line}
    assert {"learning_rate", "batch_size", "weight_decay", "dropout", "width", "depth"} <= told
    assert "activation" not in told, "hyperparameters at their default are not worth a line"
    assert "database  sqlite:///tuner.db\nnext      tuner trials tiny\n" in out

    # A finished study reports at once, does not look at the test set again, and says the same.
    again = tuner("run", "tiny.toml")
    assert (again.stdout, again.stderr) == (out, "tiny: reading the data\n")
    assert strict_json(tuner("run", "tiny.toml", "-f", "json").stdout) == study
    assert evaluation["peeks"] == 0


@pytest.mark.parametrize(("words", "expected"), [(["--workers", "3"], 3), ([], usable_cores())])
def test_refits_take_as_many_processes_as_the_search(
    words: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Mock(wraps=evaluation.evaluate)
    monkeypatch.setattr(evaluation, "evaluate", asked)
    tuner("run", write_study(), "--device", "cpu", "--quiet", *words)
    assert asked.call_args.kwargs["processes"] == expected
    tuner("evaluate", "tiny")
    assert asked.call_args.kwargs["processes"] == usable_cores()


def test_run_with_an_ensemble() -> None:
    tuner("create", write_study())
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    result = tuner("run", "tiny.toml", "--ensemble", "--device", "cpu")
    last = "tiny: refitting the winner and choosing an ensemble, then opening the test set\ntiny: drawing the report\n"
    assert result.stderr.endswith(last)
    evaluation = tuner_json("show", "tiny")["evaluation"]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("ensemble ")]
    assert f"{evaluation['ensemble']['test']['mean']:.4g} ± " in line
    assert line.endswith("from the best 3")
    assert evaluation["peeks"] == 0
    assert tuner("run", "tiny.toml", "--ensemble").stdout == result.stdout, "it is stored, and not opened again"
    assert tuner_json("show", "tiny")["evaluation"] == evaluation


def test_results_follow_the_contract() -> None:
    tuner("create", write_study())
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    evaluation = tuner_json("evaluate", "tiny", "--device", "cpu")
    best, trials = tuner_json("best", "tiny"), tuner_json("trials", "tiny")
    assert list(best) == ["number", "value", "epochs", "complete", "params"]
    assert [row["number"] for row in trials] == [0, 1, 2]
    assert list(trials[0]) == (
        ["number", "state", "value", "params", "epochs", "bracket", "rung", "attempt", "worker", "seconds", "reason"]
    )
    assert (trials[0]["state"], trials[0]["epochs"], trials[0]["attempt"]) == ("complete", 4, 1)
    assert list(evaluation) == [
        "trial", "params", "metric", "seeds", "validation", "test", "train", "gap_test_validation", "gap_test_train",
        "risk", "selection_bound", "train_rows", "test_rows", "mistakes", "baselines", "ensemble", "seconds", "peeks",
    ]  # fmt: skip
    assert list(evaluation["test"]) == ["mean", "sd", "low", "high", "confidence", "values"]
    assert evaluation["params"] == best["params"]
    assert evaluation["validation"] == best["value"]

    assert tuner_json("evaluate", "tiny") == {**evaluation, "peeks": 1}
    assert "looked at again 2 times" in tuner("evaluate", "tiny").stdout
    winner, *others = csv.DictReader(tuner("evaluate", "tiny", "-f", "csv").stdout.splitlines())
    assert (winner["model"], winner["test.mean"]) == ("winner", repr(evaluation["test"]["mean"]))
    assert [row["model"] for row in others] == ["constant", "linear", "boosting"]
    assert others[0]["winner_minus_it.verdict"] == evaluation["baselines"][0]["difference"]["verdict"]
    assert len(tuner("trials", "tiny", "-f", "csv").stdout.splitlines()) == 4
    assert tuner("trials", "tiny").stdout.splitlines()[0].split() == (
        ["number", "state", "value", "epochs", "bracket", "rung", "seconds", "learning_rate", "reason"]
    )
    assert "optimistic" in tuner("best", "tiny").stdout
    assert tuner("studies").stdout.splitlines()[1].split()[:3] == ["tiny", "finished", "error"]


@pytest.mark.parametrize("search", ['pruner = "asha"', 'pruner = "hyperband"\nrefine = { rounds = 2, keep = 0.3 }'])
def test_searches_run_to_their_end(search: str) -> None:
    study = write_study(TINY.replace('pruner = "none"', search).replace("trials = 3", "trials = 12"))
    assert "12 trials" in tuner("check", study).stdout
    tuner("create", study)
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    summary = tuner_json("show", "tiny")
    assert summary["state"] == "finished"
    assert summary["trials"]["complete"] >= 1
    assert summary["trials"]["complete"] + summary["trials"]["pruned"] == 12


def test_a_time_budget_ends_a_study() -> None:
    """The real thing: as many trials as there is time for, the winner evaluated, nobody left running."""
    study = write_study(TINY.replace("trials = 3", "minutes = 10").replace('pruner = "none"', 'pruner = "hyperband"'))
    text = tuner("check", study).stdout
    assert "search: at most 100,000 trials in 10 minutes, random sampler" in text
    assert "epochs at most, or as many as fit into 10 minutes" in text
    created = tuner("create", study, "--minutes", "0.05").stdout
    assert created == "tiny: created, at most 1,000 trials or 0.05 minutes in sqlite:///tuner.db\n"
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    out = tuner("run", study, "--minutes", "0.05").stdout
    summary = tuner_json("show", "tiny")
    trials = summary["trials"]
    assert (summary["state"], summary["minutes"]) == ("finished", 0.05)
    assert trials["running"] == trials["waiting"] == 0
    assert 0 < trials["complete"] + trials["pruned"] == trials["total"] <= 1000
    assert f"tiny: {trials['total']:,} of {trials['total']:,} trials done" in out
    assert f"{summary['seconds']:.1f} s of 0.05 minutes" in out
    assert "study.name" not in tuner("run", study, "--minutes", "0.06", code=2).stderr
    assert "search.minutes: 0.05 -> 0.06" in tuner("run", study, "--minutes", "0.06", code=2).stderr


def test_no_trial_completes_in_time() -> None:
    """The best of those that got furthest wins, and is said to be no more than that."""
    study = write_study(
        TINY.replace("trials = 3", "trials = 3\nminutes = 0.05").replace("max_epochs = 4", "max_epochs = 1000000")
    )
    tuner("create", study)
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    best = tuner_json("best", "tiny")
    rows = tuner_json("trials", "tiny")
    assert best["complete"] is False
    assert best["epochs"] == max(row["epochs"] for row in rows)
    assert "none completed in time, it is the best of those that got furthest" in tuner("best", "tiny").stdout
    assert {row["reason"] for row in rows} == {"time budget of 0.05 minutes over"}


def test_a_crew_of_workers() -> None:
    tuner("create", write_study(TINY.replace("trials = 3", "trials = 40")))
    code, out, err = finish(start("worker", "tiny", "--workers", "2", "--device", "cpu"))
    assert (code, out) == (0, "")
    assert err.splitlines()[0] == "tiny: starting 2 workers"
    assert err.splitlines()[-1] == "tiny: finished"
    rows = tuner_json("workers", "tiny")
    assert len({row["pid"] for row in rows}) == 2
    assert {(row["device"], row["state"], row["lanes"]) for row in rows} == {("cpu", "left", 0)}


def test_an_interrupted_crew_saves_and_leaves() -> None:
    tuner("create", write_study(TINY.replace("max_epochs = 4", "max_epochs = 1000000")))
    process = start("worker", "tiny", "--workers", "2", "--device", "cpu")
    with StudyManager("sqlite:///tuner.db") as manager:
        wait_until(lambda: bool(_workers(manager, "tiny")), process=process)
        os.kill(process.pid, signal.SIGTERM)
        code, out, _ = finish(process)
        assert (code, out) == (130, "")
        assert {row.state for row in manager.workers("tiny")} == {"left"}
        assert manager.summary("tiny").trials["running"] == 0


def test_all_gpus_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    tuner("create", write_study())
    assert "cuda" in tuner("worker", "tiny", "--gpus", "all", "--quiet", code=2).stderr
    message = tuner("worker", "tiny", "--gpus", "all", "--device", "cpu", code=2).stderr
    assert "--gpus and --device cpu say two things" in message


def test_all_gpus_get_a_worker_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.launch.local._cuda_devices", lambda: 2)
    monkeypatch.setattr("tuner.learning.device.resolve_device", lambda _: None)
    asked: list[list[str]] = []

    def crew(_crew: Any, devices: list[str], **_: Any) -> Any:
        asked.append(devices)
        raise TunerError("enough")

    monkeypatch.setattr("tuner.launch.local.LocalWorkers", crew)
    tuner("create", write_study())
    tuner("worker", "tiny", "--gpus", "all", "--quiet", code=1)
    tuner("worker", "tiny", "--gpus", "all", "--workers", "3", "--quiet", code=1)
    assert asked == [["cuda:0", "cuda:1"], ["cuda:0", "cuda:1", "cuda:0"]]


def test_failed_trials_are_tried_again() -> None:
    tuner("create", write_study())
    with StudyManager("sqlite:///tuner.db") as manager:
        ledger = manager.ledger("tiny")
        ledger.max_attempts = 1
        worker = ledger.register("node", 7, "cpu", "0")
        claims = ledger.claim(worker, limit=1, lease_s=60)
        ledger.fail(worker, [(claims[0].number, claims[0].token, "out of memory")])
        ledger.leave(worker)
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    assert tuner_json("show", "tiny")["trials"]["failed"] == 1
    again = "tiny: 1 failed trial to try again; start workers with: tuner worker tiny\n"
    assert tuner("retry", "tiny").stdout == again
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    assert tuner_json("show", "tiny")["trials"]["complete"] == 3
    assert tuner("retry", "tiny").stdout == "tiny: no trial has failed\n"


def test_workers_are_listed() -> None:
    tuner("create", write_study())
    assert tuner("workers", "tiny").stdout == "no workers yet\n"
    with StudyManager("sqlite:///tuner.db") as manager:
        manager.ledger("tiny").register("node", 7, "cuda:1", "0.1.0")
    (row,) = tuner_json("workers", "tiny")
    assert list(row) == [
        "id", "worker", "host", "pid", "device", "version", "state", "started_at", "heartbeat_at", "heartbeat_age_s",
        "ended_at", "lanes", "epochs_per_s",
    ]  # fmt: skip
    assert (row["host"], row["pid"], row["device"], row["state"]) == ("node", 7, "cuda:1", "live")
    assert 0 <= row["heartbeat_age_s"] < 60
    header, line = tuner("workers", "tiny").stdout.splitlines()
    assert " ".join(header.split()) == "host pid device version started (UTC) heartbeat lanes epochs/s state"
    assert line.split()[:4] == ["node", "7", "cuda:1", "0.1.0"]
    assert line.endswith("live")
    assert len(tuner("workers", "tiny", "-f", "csv").stdout.splitlines()) == 2


def test_nothing_completed() -> None:
    study = write_study(DIVERGING)
    tuner("create", study)
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    result = tuner("run", study, "-f", "json", code=3)
    assert result.stdout == ""
    assert "has no completed trial" in result.stderr
    assert all(row["value"] is None and row["reason"] for row in tuner_json("trials", "tiny"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_goes_on(number: signal.Signals) -> None:
    study = write_study(TINY.replace("sklearn:iris", "sklearn:digits").replace("batch_size = 32", "batch_size = 4"))
    command = ["run", str(study), "--workers", "1", "--device", "cpu", "-f", "json"]
    process = start(*command)
    with StudyManager("sqlite:///tuner.db") as manager:
        wait_until(lambda: bool(_workers(manager, "tiny")), process=process)
        os.kill(process.pid, number)
        code, out, err = finish(process)
        assert (code, out) == (130, ""), err
        assert err.endswith("of 3 trials are over and everything is saved; the same command goes on from here\n")
        summary = manager.summary("tiny")
        assert summary.state == "interrupted"
        assert summary.trials["running"] == 0
        assert all(worker.ended_at is not None for worker in manager.workers("tiny"))  # it left, it was not killed

    if number == signal.SIGINT:
        code, out, err = finish(start(*command))
        assert code == 0, err
        assert strict_json(out)["state"] == "finished"
        tuner("create", study, "--name", "whole")
        tuner("worker", "whole", "--device", "cpu", "--quiet")
        assert results("tiny") == results("whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_still_importing_leaves_at_once(number: signal.Signals) -> None:
    """It holds nothing yet: no traceback, no waiting for the import, nothing written."""
    tuner("create", write_study())
    process = start("worker", "tiny", "--device", "cpu")
    assert process.stderr is not None
    assert process.stderr.readline() == "tiny: joining, on cpu\n"
    os.kill(process.pid, number)
    code, out, err = finish(process)
    assert (code, out, err) == (130, "", "")
    assert tuner_json("workers", "tiny") == []


def test_what_a_killed_worker_held_is_free_at_once() -> None:
    """Its launcher sees it die: nobody waits half a minute for its lease."""
    study = write_study(TINY.replace("max_epochs = 4", "max_epochs = 1000000").replace("trials = 3", "trials = 1"))
    tuner("create", study)
    process = start("worker", "tiny", "--workers", "1", "--device", "cpu")
    with StudyManager("sqlite:///tuner.db") as manager:
        wait_until(lambda: manager.summary("tiny").trials["running"] == 1, process=process)
        (first,) = manager.workers("tiny")
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: len(manager.workers("tiny")) == 2, process=process)
        assert [row.state for row in manager.workers("tiny")] == ["lost", "live"]
        wait_until(lambda: manager.trials("tiny")[0].attempt == 2, process=process)
        freed = manager.workers("tiny")[0].heartbeat_age_s
        os.kill(process.pid, signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 130
    assert "freed what the dead worker held: 1 trial" in err
    print(f"claimed again {freed:.1f} s after its last heartbeat")


def test_stopped_worker_leaves_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.worker.HEARTBEAT_S", 0.05)  # seconds between two looks at the stop flag
    tuner("create", write_study(TINY.replace("max_epochs = 4", "max_epochs = 1000000")))

    def stop_once_it_works() -> None:
        with StudyManager("sqlite:///tuner.db") as manager:
            wait_until(lambda: bool(_workers(manager, "tiny")))
            manager.stop("tiny")

    thread = threading.Thread(target=stop_once_it_works)
    thread.start()
    result = tuner("worker", "tiny", "--device", "cpu")
    thread.join()
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "tiny: stopped"
    assert tuner_json("show", "tiny")["state"] == "stopped"


def _workers(manager: StudyManager, name: str) -> list[Any]:
    """Who works on a study that may not be there yet."""
    try:
        return list(manager.workers(name))
    except TunerError:
        return []


def test_export_and_predict() -> None:
    tuner("create", write_study())
    tuner("worker", "tiny", "--device", "cpu", "--quiet")
    exported = strict_json(tuner("export", "tiny", "--to", "m", "--onnx", "--device", "cpu", "-f", "json").stdout)
    assert (exported["folder"], exported["evaluated"], exported["onnx_difference"] < 1e-4) == ("m", False, True)
    assert "is there already" in tuner("export", "tiny", "--to", "m", code=2).stderr
    text = tuner("export", "tiny", "--to", "m2", "--device", "cpu").stdout
    assert "note      not evaluated: no honest test score is known for this model\n" in text
    assert text.endswith("next      tuner predict m2 DATA -o predictions.csv\n")

    iris = load_iris()
    Path("rows.csv").write_text(
        "\n".join([",".join(iris.feature_names), *(",".join(map(str, row)) for row in iris.data)])
    )
    shown = tuner("predict", "m", "rows.csv")
    assert shown.stderr == "150 rows predicted\n"
    rows = list(csv.DictReader(shown.stdout.splitlines()))
    assert list(rows[0]) == ["prediction", *(f"probability_{label}" for label in iris.target_names)]
    right = sum(row["prediction"] == iris.target_names[code] for row, code in zip(rows, iris.target, strict=True))
    assert right > 100
    assert tuner("predict", "m2", "rows.csv", "-o", "p.csv", "-q").stderr == ""
    assert Path("p.csv").read_text() == shown.stdout
    assert "no such model folder" in tuner("predict", "none", "rows.csv", code=2).stderr
    Path("m/config.json").write_text("{}")
    assert "config.json changed since the export" in tuner("predict", "m", "rows.csv", code=2).stderr


@pytest.mark.parametrize("command", [["run", "tiny.toml", "--workers", "1"], ["worker", "tiny"]])
def test_a_study_that_is_deleted_while_somebody_works_on_it(command: list[str]) -> None:
    write_study(TINY.replace("trials = 3", "trials = 400").replace("max_epochs = 4", "max_epochs = 4000"))
    tuner("create", "tiny.toml")

    def delete() -> None:
        with StudyManager("sqlite:///tuner.db") as manager:
            wait_until(lambda: any(worker.lanes for worker in manager.workers("tiny")))
            manager.delete("tiny")

    with ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(delete)
        result = tuner(*command, "--device", "cpu", code=2)
        deleted.result()
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "error: study 'tiny' is gone: somebody deleted it"
