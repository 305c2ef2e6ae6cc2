"""The text of results: what is missing is left out, never made up."""

from typing import Any

from tuner.report.layout import table
from tuner.report.study import evaluation_text, outcome_text, studies_text, study_text, trials_text

STUDY: dict[str, Any] = {
    "name": "s",
    "state": "interrupted",
    "metric": "rmse",
    "direction": "minimize",
    "sampler": "tpe",
    "pruner": "none",
    "trials": {"total": 1200, "complete": 1, "pruned": 2, "failed": 3, "running": 0, "waiting": 1194},
    "epochs_trained": 5000,
    "seconds": 61.0,
    "best": None,
    "evaluation": None,
}
EVALUATION: dict[str, Any] = {
    "trial": 7,
    "params": {"depth": 1},
    "metric": "rmse",
    "seeds": 1,
    "validation": 50.0,
    "test": {"mean": 55.0, "sd": None, "low": 50.5, "high": 60.0, "confidence": 0.9},
    "train": {"mean": 40.0},
    "gap_test_validation": 5.0,
    "gap_test_train": 15.0,
    "selection_bound": None,
    "peeks": 0,
}


def test_unfinished_study() -> None:
    assert study_text(STUDY) == (
        "s: interrupted, tpe sampler, none pruner\n"
        "6 of 1,200 trials done (1 complete, 2 pruned, 3 failed), 5,000 epochs in 1:01 min, 1,194 waiting"
    )


def test_one_seed_has_no_spread_and_rmse_no_bound() -> None:
    assert evaluation_text(EVALUATION) == (
        "test rmse  55 over 1 refit, 90 % interval 50.5 to 60\n"
        "winner     trial 7, validation rmse 50\n"
        "gaps       test - validation +5, test - train +15"
    )


def test_list_of_studies() -> None:
    header, row = studies_text([STUDY]).splitlines()
    assert header.split() == ["name", "state", "metric", "validation", "test", "done", "trials", "epochs"]
    assert row.split() == ["s", "interrupted", "rmse", "-", "-", "6", "1200", "5000"]


def test_trials_show_what_differs() -> None:
    common = {"state": "waiting", "value": None, "epochs": 0, "bracket": 0, "rung": 0, "seconds": 0.0, "reason": None}
    rows = [
        {"number": 0, **common, "params": {"width": 8, "depth": 1}},
        {"number": 1, **common, "params": {"width": 9, "depth": 1}},
        {"number": 2, **common, "params": None},
    ]
    lines = trials_text(rows).splitlines()
    assert lines[0].split() == ["number", "state", "value", "epochs", "bracket", "rung", "seconds", "width", "reason"]
    assert [line.split()[-1] for line in lines[1:]] == ["8", "9", "-"]
    assert trials_text([]) == "no trials yet"


def test_table_without_rows() -> None:
    assert table(["a", "b"], []) == "a  b"


def test_what_to_type_next_finds_the_same_database_and_never_shows_a_password() -> None:
    params = {"learning_rate": 0.1, "batch_size": 8, "width": 4, "depth": 1, "activation": "relu"}
    evaluation = {
        "seeds": 2,
        "test": {"mean": 0.1, "sd": 0.01, "low": 0.05, "high": 0.2, "confidence": 0.95},
        "gap_test_validation": 0.01,
        "gap_test_train": 0.1,
    }
    study = {
        "name": "s",
        "metric": "error",
        "best": {"number": 3, "value": 0.09, "epochs": 9, "params": params},
        "evaluation": evaluation,
        "trials": {"total": 4, "complete": 2, "pruned": 2, "failed": 0},
        "epochs_trained": 20,
        "seconds": 3.0,
    }
    default = outcome_text(study, "sqlite:///tuner.db")
    assert "tuner trials s\n" in default
    assert default.endswith("optuna-dashboard sqlite:///tuner.db")
    assert "activation" not in default
    other = outcome_text(study, "sqlite:///x.db", " --storage sqlite:///x.db")
    assert "tuner trials s --storage sqlite:///x.db\n" in other
    assert "tuner show s -f json --storage sqlite:///x.db\n" in other
    secret = outcome_text(study, "postgresql+psycopg://me:***@host/db")
    assert secret.endswith('optuna-dashboard "$TUNER_STORAGE"')
