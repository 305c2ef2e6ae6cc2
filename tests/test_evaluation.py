"""The honest estimate: refits from other seeds, one opening of the test set, intervals that cover."""

import math
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.data.studies import study as study_on
from tests.storage.test_budget import spend
from tuner import evaluation as evaluation_module
from tuner import refits as refits_module
from tuner.data.dataset import load_final_data, load_training_data
from tuner.data.sealed import open_test
from tuner.errors import BadInputError, NothingCompletedError
from tuner.evaluation import evaluate, fit_all, risk_of, selection_bound
from tuner.export import export
from tuner.learning import crew
from tuner.learning.device import DeviceData, resolve_device
from tuner.learning.ensemble import as_outputs, votes
from tuner.learning.lanes import Lane, Pack, trial_lane
from tuner.learning.metrics import head_of, score
from tuner.learning.randomness import lane_key
from tuner.learning.trainer import LaneTask, kept_outputs, train_to_end
from tuner.manager import StudyManager
from tuner.plan import create_study
from tuner.refits import REFIT, FinalRows, Member, candidates, refit, winner
from tuner.report.study import evaluation_text
from tuner.spec import StudySpec, parse_spec
from tuner.storage.ledger import RungResult
from tuner.trial import Scaling
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
    rows = open_test(spec, Path(), {"standard": final.preprocessing})["standard"]
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


def test_no_failed_trial_is_tried_again_after_the_test_set_was_opened(manager: StudyManager) -> None:
    create_study(manager, study(search={"trials": 2, "pruner": "none"}), Path())
    ledger = manager.ledger("tiny")
    ledger.max_attempts = 1
    worker = ledger.register("here", 2, "cpu", "0.1")
    good, bad = ledger.claim(worker, limit=2, lease_s=60)
    ledger.commit(worker, [RungResult(number=good.number, token=good.token, epochs=9, value=0.1, seconds=1.0)])
    ledger.fail(worker, [(bad.number, bad.token, "boom")])
    assert manager.summary("tiny").state == "finished"
    evaluate(manager, "tiny", device="cpu")
    with pytest.raises(BadInputError, match="'tiny' was evaluated, so its test set is open and the search has ended"):
        manager.retry("tiny")
    assert manager.summary("tiny").state == "finished"
    manager.resume("tiny")  # which tuner run does: there is nothing left to search


def test_the_selection_bound_is_the_finite_class_bound() -> None:
    spec = study(search={"trials": 243})
    config = spec.trial_config({"learning_rate": 0.1, "batch_size": 16, "width": 4, "depth": 1})
    expected = np.sqrt(np.log(2 * 243 / 0.05) / (2 * 359))
    assert selection_bound(spec, config, trials=243, validation_rows=359) == pytest.approx(expected)
    best = study(search={"trials": 243}, training={"keep": "best"})
    larger = selection_bound(best, best.trial_config(config.as_dict()), trials=243, validation_rows=359)
    assert larger == pytest.approx(np.sqrt(np.log(2 * 243 * 9 / 0.05) / (2 * 359)))


@pytest.mark.parametrize(("stopped", "compared"), [(False, 3), (True, 100_000)])
def test_the_selection_bound_counts_the_trials_that_there_was_time_for(
    stopped: bool, compared: int, manager: StudyManager, tmp_path: Path
) -> None:
    """Of a search that somebody stopped, all that it might have had: who stopped it may have seen its scores."""
    spec = study(search={"trials": None, "minutes": 10.0})
    assert spec.total_trials == 100_000
    create_study(manager, spec, Path())
    ledger = manager.ledger("tiny")
    worker = ledger.register("here", 2, "cpu", "0.1")
    claims = ledger.claim(worker, limit=3, lease_s=60)
    ledger.commit(
        worker, [RungResult(number=c.number, token=c.token, epochs=9, value=0.1, seconds=1.0) for c in claims]
    )
    if stopped:
        ledger.leave(worker)
        manager.stop("tiny")
    else:
        spend(manager, 11.0)
        assert ledger.claim(worker, limit=3, lease_s=60) == []
    report = evaluate(manager, "tiny", device="cpu")
    assert report["selection_bound"] == pytest.approx(np.sqrt(np.log(2 * compared / 0.05) / (2 * 30)))
    export(manager, "tiny", tmp_path / "m", device="cpu")
    assert "Trial 0, of 3 trials begun; " in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize("fit_on", ["train", "train+val"])
def test_baselines_are_fitted_on_the_same_rows_and_compared_on_the_same_test_rows(
    fit_on: str, manager: StudyManager
) -> None:
    spec = study(final={"seeds": 3, "fit_on": fit_on})
    finish(manager, spec)
    report = evaluate(manager, "tiny", device="cpu")
    final = load_final_data(spec, Path(), "standard")
    train, rows = final.data.only.train, open_test(spec, Path(), {"standard": final.preprocessing})["standard"]
    by_name = {baseline["name"]: baseline for baseline in report["baselines"]}
    assert list(by_name) == ["constant", "linear", "boosting"]
    assert {baseline["rows"] for baseline in by_name.values()} == {len(train)} == {report["train_rows"]}
    linear = LogisticRegression(**by_name["linear"]["settings"], max_iter=200).fit(train.x, train.y)
    error = np.mean(linear.predict(rows.x) != rows.y)
    assert by_name["linear"]["test"]["mean"] == pytest.approx(error)
    assert by_name["constant"]["test"]["mean"] == pytest.approx(2 / 3)
    for baseline in by_name.values():
        difference, test = baseline["difference"], baseline["test"]
        assert difference["mean"] == pytest.approx(report["test"]["mean"] - test["mean"])
        assert test["low"] <= test["mean"] <= test["high"]
        assert difference["low"] <= difference["mean"] <= difference["high"]
    assert by_name["constant"]["difference"]["verdict"] == "network"


@pytest.mark.parametrize("choices", [["piecewise", "robust"], ["piecewise", "standard"], ["piecewise"]])
def test_baselines_of_a_winner_with_numbers_in_bins_have_plain_features(
    choices: list[Scaling], manager: StudyManager
) -> None:
    simplest = choices[-1]
    scaling = {"choices": choices} if len(choices) > 1 else "piecewise"
    spec = study(study={"metric": "log_loss"}, data={"scaling": scaling})
    finish(manager, spec)
    trials = {row.params["scaling"] if len(choices) > 1 else "piecewise": row for row in manager.trials("tiny")}  # type: ignore[index]
    row = trials["piecewise"]
    config = spec.trial_config(row.params or {})
    best = Member(trial=row.number, params=row.params or {}, config=config, value=row.value or 0.0, epochs=row.epochs)
    data = load_training_data(spec, Path())
    report = fit_all(spec, Path(), data, best, device="cpu").score_on_test(Path())
    final = load_final_data(spec, Path(), simplest)
    train, rows = final.data.only.train, open_test(spec, Path(), {simplest: final.preprocessing})[simplest]
    linear = next(baseline for baseline in report.baselines if baseline.name == "linear")
    model = LogisticRegression(**linear.settings, max_iter=200).fit(train.x, train.y)
    of_truth = model.predict_proba(rows.x)[np.arange(len(rows.y)), rows.y]
    assert linear.test.mean == pytest.approx(-np.log(of_truth).mean(), rel=1e-4)
    assert report.params == best.params
    wide, plain = (load_final_data(spec, Path(), s).data.n_features for s in ("piecewise", simplest))
    assert wide > plain or simplest == "piecewise"


@pytest.mark.parametrize(("fit_on", "trained"), [("train", 9), ("train+val", 4)])
def test_a_refit_lasts_as_long_as_its_trial_where_no_rows_are_left_to_stop_on(fit_on: str, trained: int) -> None:
    """Of a time budget that is over before any trial completes, the winner is one that got furthest."""
    spec = study(final={"seeds": 2, "fit_on": fit_on})
    config = spec.trial_config(spec.search_space.complete({"learning_rate": 0.05, "width": 8, "depth": 1}))
    member = Member(trial=0, params={}, config=config, value=0.1, epochs=4)
    refits = refit(spec, FinalRows.load(spec, Path(), [member], torch.device("cpu")), [member])
    assert {state.progress.epoch for state in refits.states.values()} == {trained}


def test_a_baseline_that_is_better_is_called_so(manager: StudyManager) -> None:
    """A network that hardly learns, on a table that a line explains."""
    spec = study(space={"learning_rate": {"choices": [1e-7, 2e-7]}}, training={"max_epochs": 1}, search={"trials": 2})
    finish(manager, spec)
    report = evaluate(manager, "tiny", device="cpu")
    verdicts = {baseline["name"]: baseline["difference"]["verdict"] for baseline in report["baselines"]}
    assert verdicts["linear"] == "other"
    text = evaluation_text(report)
    assert "logistic regression, fitted on the same rows, is better than the tuned network" in text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"final": {"seeds": 2, "fit_on": "train+val"}, "study": {"metric": "log_loss"}},
        {"study": {"metric": "rmse"}, "data": {"source": "sklearn:diabetes"}},
        {"model": {"loss": {"choices": ["hinge", "cross_entropy"]}}, "study": {"metric": "accuracy"}},
        {"training": {"patience": 2}, "study": {"metric": "roc_auc"}},
        {"data": {"split": {"folds": 3}, "scaling": {"choices": ["standard", "quantile"]}}},
        {"data": {"scaling": {"choices": ["standard", "piecewise"]}}},
        {"study": {"metric": "mae"}, "data": {"source": "sklearn:diabetes", "split": {"folds": 2}}},
    ],
    ids=str,
)
def test_an_ensemble_is_chosen_on_validation_and_evaluated_in_the_same_opening(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    spec = study(**{"search": {"trials": 8}, **changes})
    finish(manager, spec)
    opened = []
    original = evaluation_module.open_test
    monkeypatch.setattr(evaluation_module, "open_test", lambda *a: opened.append(a) or original(*a))
    report = evaluate(manager, "tiny", device="cpu", ensemble=True)
    ensemble = report["ensemble"]
    assert (len(opened), report["peeks"]) == (1, 0)
    assert len(ensemble["test"]["values"]) == spec.final.seeds
    assert ensemble["test"]["low"] <= ensemble["test"]["mean"] <= ensemble["test"]["high"]
    members = {member["trial"]: member["weight"] for member in ensemble["members"]}
    assert members.keys() <= set(range(8))
    assert all(weight >= 1 for weight in members.values())

    # The chosen members, trained by hand as the search trained them, average to the stored validation score.
    data, metric = DeviceData.place(load_training_data(spec, Path()), resolve_device("cpu")), spec.study.metric
    rows = {row.number: row for row in manager.trials("tiny")}
    means: list[Any] = [0.0] * data.folds
    heads = []
    for trial, weight in members.items():
        config, alone = spec.trial_config(rows[trial].params or {}), []
        lane = trial_lane(5, trial, config)
        task = LaneTask(lane=lane, target_epochs=rows[trial].epochs, folds=data.folds)
        state = train_to_end([task], data, metric)[trial]
        heads.append(head_of(config.loss, spec.task))
        for fold, of_fold in enumerate(task.lanes):
            view = data.view(config.scaling, fold)
            pack = Pack([of_fold], data)
            pack.restore(0, state.kept(fold))
            outputs = pack.outputs(view.x_val)[0]
            alone.append(float(score(metric, outputs, view.y_val, view.target_sd)))
            means[fold] = means[fold] + votes(heads[-1], outputs) * weight / sum(members.values())
        assert np.mean(alone) == pytest.approx(rows[trial].value, rel=1e-3), "it came out as it was"
    # Predictions of each fold in the target's own unit, which folds standardise each by its own train rows.
    views = [load_training_data(spec, Path()).views[config.scaling, fold] for fold in range(data.folds)]
    units = [(view.target_mean, view.target_sd) for view in views]
    raw = torch.cat([m * sd + mean for m, (mean, sd) in zip(means, units, strict=True)])
    targets = [torch.from_numpy(view.val.y) for view in views]
    if spec.task == "classification":
        y = torch.cat(targets)
    else:
        y = torch.cat([t * sd + mean for t, (mean, sd) in zip(targets, units, strict=True)])
    validation = float(score(metric, as_outputs(heads, raw), y))
    assert ensemble["validation"] == pytest.approx(validation, rel=1e-3, abs=1e-6)
    if data.folds > 1:
        return  # the value of a trial is the mean over folds, the ensemble's is that of all rows together
    if spec.direction == "maximize":
        assert ensemble["validation"] >= report["validation"] - 1e-6
    else:
        assert ensemble["validation"] <= report["validation"] + 1e-6


def test_an_ensemble_after_the_evaluation_opens_the_test_set_again(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(manager, study())
    opened = []
    original = evaluation_module.open_test
    monkeypatch.setattr(evaluation_module, "open_test", lambda *a: opened.append(a) or original(*a))
    first = evaluate(manager, "tiny", device="cpu")
    assert (first["ensemble"], first["peeks"]) == (None, 0)
    second = evaluate(manager, "tiny", device="cpu", ensemble=True)
    assert (len(opened), second["peeks"]) == (2, 1)
    assert second["ensemble"]["members"]
    assert {**second, "ensemble": None, "peeks": 0} == first, "what was stored stays"
    third = evaluate(manager, "tiny", device="cpu", ensemble=True)
    assert (len(opened), third) == (2, {**second, "peeks": 2})


def test_several_processes_refit_what_one_does(manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(manager, study(model={"activation": {"choices": ["relu", "gelu"]}}, search={"trials": 6}))
    spec, best, ranked = manager.spec("tiny"), winner(manager, "tiny"), candidates(manager, "tiny")
    data = load_training_data(spec, Path())
    monkeypatch.setattr(crew, "WORTH_S", 1e-9)
    monkeypatch.setattr(refits_module, "ENSEMBLE_SIZE", 24)  # members of both activations, which are two packs
    asked, scores = Mock(wraps=crew._by_processes), []
    monkeypatch.setattr(crew, "_by_processes", asked)
    for processes in (1, 2):
        fits = fit_all(spec, Path(), data, best, ranked, device="cpu", processes=processes)
        scores.append(fits.score_on_test(Path()).as_dict())
    for score_ in scores:
        score_.pop("seconds")
        for baseline in score_["baselines"]:
            baseline.pop("seconds")
    assert scores[0] == scores[1]
    assert asked.call_count == 2, "candidates, and the ensemble's refits; the winner's are one pack"


def test_mistakes_and_seconds_are_in_the_report(manager: StudyManager) -> None:
    finish(manager, study())
    report = evaluate(manager, "tiny", device="cpu")
    classes = report["mistakes"]["classes"]
    assert classes["labels"] == ["setosa", "versicolor", "virginica"]
    assert sum(classes["rows"]) == report["test_rows"] == 30
    share = np.dot(classes["error"], classes["rows"]) / 30
    assert share == pytest.approx(report["test"]["mean"])
    assert report["seconds"] > 0


def test_residuals_of_a_regression(manager: StudyManager) -> None:
    finish(manager, study(study={"metric": "rmse"}, data={"source": "sklearn:diabetes"}))
    found = evaluate(manager, "tiny", device="cpu")["mistakes"]["residuals"]
    assert 40 < found["sd"] < 90, "in the target's own unit"
    assert found["quantiles"]["0.05"] < found["quantiles"]["0.5"] < found["quantiles"]["0.95"]
    assert 0 < found["within"]["0.5"] < found["within"]["1"] <= 1


def test_refits_that_diverge_are_told_as_such(manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is made up: the score is unknown, the baselines stand, and every text can say so."""
    finish(manager, study())
    original = evaluation_module.Refits.outputs
    monkeypatch.setattr(evaluation_module.Refits, "outputs", lambda *a: original(*a) * torch.nan)
    report = evaluate(manager, "tiny", device="cpu")
    assert (report["test"]["mean"], report["test"]["low"], report["mistakes"]) == (None, None, {})
    assert report["baselines"][0]["test"]["mean"] == pytest.approx(2 / 3)
    assert evaluation_text(report).startswith("test error  - over 3 refits, 3 of which diverged, 95 % interval - to -")


def test_the_parts_of_the_risk() -> None:
    def scored(mean: float) -> evaluation_module.TestScore:
        return evaluation_module.TestScore(
            mean=mean, sd=0.0, low=mean - 0.05, high=mean + 0.05, confidence=0.95, values=(mean,)
        )

    known = risk_of(study_on("synthetic:gaussian_mixture", "mse"), 0.1, scored(0.3))
    assert known is not None
    assert known.irreducible == pytest.approx(0.1956, abs=1e-4)
    assert known.training + known.gap == pytest.approx(known.risk) == 0.3
    assert known.approximation_high == pytest.approx(0.35 - known.irreducible)
    classes = risk_of(study_on("synthetic:two_moons"), 0.0, scored(0.1))
    assert classes is not None
    assert classes.irreducible == pytest.approx(0.0289, abs=1e-4)
    unknown = risk_of(study_on("sklearn:digits"), 0.0, scored(0.1))
    assert unknown is not None
    assert unknown.irreducible is None
    assert risk_of(study_on("sklearn:digits", "f1"), 0.0, scored(0.1)) is None, "no mean of losses"
    assert risk_of(study_on("sklearn:digits"), math.nan, scored(0.1)) is None, "a refit diverged"
    corrupted = risk_of(study_on("synthetic:two_moons", corrupt="random_pixels"), 0.0, scored(0.1))
    assert corrupted is not None
    assert corrupted.irreducible is None, "nobody knows the truth of corrupted data"
