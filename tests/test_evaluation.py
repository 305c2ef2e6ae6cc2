"""The honest estimate: refits from other seeds, one opening of the test set, intervals that cover."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tuner import evaluation as evaluation_module
from tuner.data.dataset import load_final_data
from tuner.data.sealed import open_test
from tuner.errors import BadInputError, NothingCompletedError
from tuner.evaluation import REFIT, evaluate, interval, selection_bound, wilson
from tuner.learning.device import DeviceData, resolve_device
from tuner.learning.lanes import Lane
from tuner.learning.randomness import lane_key
from tuner.learning.trainer import LaneTask, kept_outputs, train_to_end
from tuner.manager import StudyManager
from tuner.plan import create_study
from tuner.spec import StudySpec, parse_spec
from tuner.storage.ledger import RungResult
from tuner.worker import run_worker


def study(**sections: dict[str, Any]) -> StudySpec:
    content: dict[str, dict[str, Any]] = {
        "study": {"name": "tiny", "metric": "error", "seed": 5},
        "data": {"source": "sklearn:iris"},
        "training": {"max_epochs": 9},
        "search": {"trials": 4, "pruner": "none"},
        "space": {
            "learning_rate": {"low": 1e-2, "high": 1e-1, "log": True},
            "dropout": 0.2,
            "batch_size": 16,
            "width": {"low": 4, "high": 40},
            "depth": {"low": 1, "high": 3},
        },
        "final": {"seeds": 3},
    }
    return parse_spec({key: {**content.get(key, {}), **sections.get(key, {})} for key in content | sections})


@pytest.fixture
def manager(tmp_path: Path) -> StudyManager:
    return StudyManager(f"sqlite:///{tmp_path}/study.db")


def finish(manager: StudyManager, spec: StudySpec) -> None:
    create_study(manager, spec, Path())
    run_worker(manager, "tiny", device="cpu", stop=threading.Event())


def test_the_report_is_what_its_parts_say(manager: StudyManager) -> None:
    spec = study()
    finish(manager, spec)
    report = evaluate(manager, "tiny", device="cpu")
    best = manager.best("tiny")
    assert best is not None
    assert (report["trial"], report["params"], report["validation"]) == (best.number, best.params, best.value)

    # The refits again, by hand.
    final = load_final_data(spec, Path(), "standard")
    data = DeviceData.place(final.data, resolve_device("cpu"))
    config = spec.trial_config(best.params)
    tasks = [LaneTask(lane=Lane(number=s, config=config, key=lane_key(5, s, REFIT)), target_epochs=9) for s in range(3)]
    states = train_to_end(tasks, data, "error")
    rows = open_test(spec, Path(), final.preprocessing)
    wrong = kept_outputs(tasks, states, data, data.x_val.new_tensor(rows.x)).argmax(-1).numpy() != rows.y
    assert report["test"]["mean"] == pytest.approx(wrong.mean())
    assert report["test"]["sd"] == pytest.approx(np.std(wrong.mean(1), ddof=1))
    assert report["test"]["low"] <= report["test"]["mean"] <= report["test"]["high"]
    assert (report["seeds"], report["metric"], report["test"]["confidence"]) == (3, "error", 0.95)
    assert report["gap_test_validation"] == pytest.approx(report["test"]["mean"] - best.value)
    assert report["gap_test_train"] == pytest.approx(report["test"]["mean"] - report["train"]["mean"])
    assert report["peeks"] == 0


def test_the_test_set_is_opened_once_and_later_peeks_are_counted(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(manager, study())
    opened = []
    original = evaluation_module.open_test
    monkeypatch.setattr(evaluation_module, "open_test", lambda *a: opened.append(a) or original(*a))
    first = evaluate(manager, "tiny", device="cpu")
    again = [evaluate(manager, "tiny", device="cpu") for _ in range(2)]
    assert len(opened) == 1
    assert [r["peeks"] for r in (first, *again)] == [0, 1, 2]
    assert all({**r, "peeks": 0} == first for r in again)


def test_an_unfinished_study_keeps_its_test_set_sealed(manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    create_study(manager, study(), Path())
    stop = threading.Event()
    stop.set()
    run_worker(manager, "tiny", device="cpu", stop=stop)
    monkeypatch.setattr(evaluation_module, "open_test", lambda *_: pytest.fail("opened"))
    with pytest.raises(BadInputError, match="the test set opens when the search is over"):
        evaluate(manager, "tiny", device="cpu")


def test_no_winner_no_evaluation(manager: StudyManager) -> None:
    wild = study(
        study={"metric": "rmse"},
        data={"source": "sklearn:diabetes"},
        training={"optimizer": "sgd"},
        space={"learning_rate": {"choices": [900.0]}},
    )
    finish(manager, wild)
    with pytest.raises(NothingCompletedError, match="no completed trial"):
        evaluate(manager, "tiny", device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"final": {"seeds": 1}},
        {"final": {"seeds": 2, "fit_on": "train+val"}},
        {"training": {"patience": 2}},
        {"training": {"averaging": "swa", "keep": "best"}, "model": {"norm": "batch"}},
        {"study": {"metric": "rmse"}, "data": {"source": "sklearn:diabetes"}},
        {"study": {"metric": "accuracy"}},
        {"study": {"metric": "log_loss"}},
    ],
    ids=str,
)
def test_every_kind_of_study_is_evaluated(manager: StudyManager, changes: dict[str, Any]) -> None:
    spec = study(**changes)
    finish(manager, spec)
    report = evaluate(manager, "tiny", device="cpu")
    test = report["test"]
    assert test["low"] <= test["mean"] <= test["high"]
    assert (test["sd"] is None) == (spec.final.seeds == 1)
    assert (report["selection_bound"] is None) == (spec.study.metric not in ("error", "accuracy"))
    if spec.study.metric == "rmse":
        assert 40 < test["mean"] < 90, "in the target's own unit"


def test_wilsons_interval_covers_where_a_bootstrap_would_not() -> None:
    """Of 4,000 samples of 50 rows at a true error of 2 %, close to 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    shares = rng.binomial(50, 0.02, size=4000) / 50
    covered = np.mean([low <= 0.02 <= high for low, high in (wilson(s, 50, 0.95) for s in shares)])
    assert covered > 0.92
    degenerate = np.mean(shares > 0)  # a percentile bootstrap of no mistakes is [0, 0]
    assert degenerate < 0.7


def test_the_interval_of_an_error_grows_with_the_spread_of_the_seeds() -> None:
    """Refits that differ by far more than rows explain: rows alone would claim a tenth of the width."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.random(20_000) < share for share in (0.05, 0.08, 0.10, 0.12, 0.15)]).astype(float)
    # Outputs of refits that get these rows wrong.
    outputs = torch.stack([torch.from_numpy(1 - rows), torch.from_numpy(rows)], -1)
    low, high = interval(outputs, torch.zeros(20_000, dtype=torch.int64), "error", 0.95)
    assert low < 0.075
    assert high > 0.125
    alone = wilson(float(rows.mean()), 20_000, 0.95)
    assert high - low > 5 * (alone[1] - alone[0])


def test_two_evaluations_at_once_count_as_a_peek(manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(manager, study())
    original = evaluation_module.open_test

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(evaluation_module, "open_test", original)
        evaluate(manager, "tiny", device="cpu")
        return original(*arguments)

    monkeypatch.setattr(evaluation_module, "open_test", meanwhile)
    assert evaluate(manager, "tiny", device="cpu")["peeks"] == 1


def test_an_evaluation_that_died_after_opening_counts_as_a_peek(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(manager, study())
    original = evaluation_module.open_test
    monkeypatch.setattr(evaluation_module, "open_test", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(manager, "tiny", device="cpu")
    assert manager.evaluation("tiny") is None
    monkeypatch.setattr(evaluation_module, "open_test", original)
    assert evaluate(manager, "tiny", device="cpu")["peeks"] == 1


def test_no_search_goes_on_after_the_test_set_was_opened(manager: StudyManager) -> None:
    spec = study(search={"trials": 40})
    create_study(manager, spec, Path())
    stop = threading.Event()
    manager.ledger("tiny").register("host", 1, "cpu", "0.1")
    ledger = manager.ledger("tiny")
    worker = ledger.register("here", 2, "cpu", "0.1")
    (claim,) = ledger.claim(worker, limit=1, lease_s=60)
    ledger.commit(worker, [RungResult(number=0, token=claim.token, epochs=9, value=0.1, seconds=1.0)])
    ledger.leave(worker)
    manager.stop("tiny")
    assert evaluate(manager, "tiny", device="cpu")["trial"] == 0
    with pytest.raises(BadInputError, match="evaluated before its search was over"):
        manager.resume("tiny")
    with pytest.raises(BadInputError, match="evaluated before its search was over"):
        manager.retry("tiny")
    run_worker(manager, "tiny", device="cpu", stop=stop)
    assert manager.summary("tiny").trials["complete"] == 1


def test_wilson_against_published_values() -> None:
    low, high = wilson(0.1, 100, 0.95)
    assert (low, high) == (pytest.approx(0.0552, abs=1e-4), pytest.approx(0.1744, abs=1e-4))
    assert wilson(0.0, 30, 0.95)[0] == 0
    assert wilson(1.0, 30, 0.95)[1] == 1


def test_the_bootstrap_interval_covers_a_known_mean() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        misses = torch.from_numpy(rng.exponential(2.0, size=(1, 150, 1)))
        low, high = interval(misses, torch.zeros(150), "mae", 0.95, seed=seed)
        covered += low <= 2.0 <= high
    assert 50 <= covered <= 60


def test_the_selection_bound_is_the_finite_class_bound() -> None:
    spec = study(search={"trials": 243})
    config = spec.trial_config({"learning_rate": 0.1, "batch_size": 16, "width": 4, "depth": 1})
    expected = np.sqrt(np.log(2 * 243 / 0.05) / (2 * 359))
    assert selection_bound(spec, config, validation_rows=359) == pytest.approx(expected)
    best = study(search={"trials": 243}, training={"keep": "best"})
    larger = selection_bound(best, best.trial_config(config.as_dict()), validation_rows=359)
    assert larger == pytest.approx(np.sqrt(np.log(2 * 243 * 9 / 0.05) / (2 * 359)))
