"""The text of results: what is missing is left out, never made up."""

from typing import Any

from tuner.report.layout import table
from tuner.report.study import (
    evaluation_text,
    outcome_text,
    scores,
    simpler_models,
    studies_text,
    study_text,
    trials_text,
)

STUDY: dict[str, Any] = {
    "name": "s",
    "state": "interrupted",
    "metric": "rmse",
    "direction": "minimize",
    "sampler": "tpe",
    "pruner": "none",
    "minutes": None,
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


def test_the_parts_of_the_risk_are_told() -> None:
    risk = {
        "training": 40.0, "risk": 55.0, "gap": 15.0, "gap_low": 10.5, "gap_high": 20.0, "irreducible": None,
        "best_low": 40.0, "best_high": 60.0, "approximation_low": None, "approximation_high": None,
    }  # fmt: skip
    told = evaluation_text({**EVALUATION, "risk": risk})
    assert "55 = training 40 + generalization gap +15 (+10.5 to +20)" in told
    assert "the best network of this kind lies between 40 and 60, irreducible error included" in told
    known = {**risk, "irreducible": 30.0, "approximation_low": 10.0, "approximation_high": 30.0}
    assert "error between 10 and 30, above an irreducible error of 30" in evaluation_text({**EVALUATION, "risk": known})
    assert "generalization gap" not in evaluation_text({**EVALUATION, "risk": None})


def test_unfinished_study() -> None:
    assert study_text(STUDY) == (
        "s: interrupted, tpe sampler, none pruner\n"
        "6 of 1,200 trials done (1 complete, 2 pruned, 3 failed), 5,000 epochs in 1:01 min, 1,194 waiting"
    )


def test_a_time_budget() -> None:
    """While it runs, the number of trials is a bound; and who wins without having completed is said to have."""
    study = {**STUDY, "minutes": 10.0}
    assert "6 of at most 1,200 trials done" in study_text(study)
    best = {"number": 7, "value": 0.5, "epochs": 3, "complete": False, "params": {}}
    over = study_text({**study, "state": "finished", "best": best})
    assert "6 of 1,200 trials done (1 complete, 2 pruned, 3 failed), 5,000 epochs in 1:01 min of 10 minutes" in over
    assert "7, 3 epochs; none completed in time, it is the best of those that got furthest" in over


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
        "metric": "error",
        "seeds": 2,
        "test": {"mean": 0.1, "sd": 0.01, "low": 0.05, "high": 0.2, "confidence": 0.95},
        "gap_test_validation": 0.01,
        "gap_test_train": 0.1,
    }
    study = {
        "name": "s",
        "state": "finished",
        "metric": "error",
        "minutes": None,
        "best": {"number": 3, "value": 0.09, "epochs": 9, "complete": True, "params": params},
        "evaluation": evaluation,
        "trials": {"total": 4, "complete": 2, "pruned": 2, "failed": 0},
        "epochs_trained": 20,
        "seconds": 3.0,
    }
    default = outcome_text(study, "sqlite:///tuner.db")
    assert "tuner trials s\n" in default
    assert default.endswith(
        "tuner report s\n          tuner dashboard\n"
        "more      tuner show s: how far to trust the selection, and where the mistakes are"
    )
    assert outcome_text({**study, "evaluation": None}, "sqlite:///tuner.db").endswith("tuner dashboard")
    assert "activation" not in default
    other = outcome_text(study, "sqlite:///x.db", " --storage sqlite:///x.db")
    assert "tuner trials s --storage sqlite:///x.db\n" in other
    assert "tuner diagnose s --storage sqlite:///x.db\n" in other
    secret = outcome_text(study, "postgresql+psycopg://me:***@host/db")
    assert "***" in secret
    assert "tuner show s: how" in secret


def judged(title: str, mean: float, verdict: str, network: float = 0.1) -> dict[str, Any]:
    return {
        "title": title,
        "test": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "sd": None, "confidence": 0.9},
        "difference": {"mean": network - mean, "low": -1.0, "high": 1.0, "verdict": verdict},
    }


def test_a_better_baseline_is_said_plainly_and_a_worse_one_is_not() -> None:
    baselines = [judged("a line", 0.05, "other"), judged("trees", 0.09, "level"), judged("guessing", 0.5, "network")]
    evaluation = {**EVALUATION, "metric": "error", "test": {**EVALUATION["test"], "mean": 0.1}, "baselines": baselines}
    assert simpler_models(evaluation) == [
        "note: a line, fitted on the same rows, is better than the tuned network: test error 0.05 against 0.1",
        (
            "note: trees, fitted on the same rows, has the better score, though within the noise: "
            "test error 0.09 against 0.1"
        ),
    ]
    worse = {**evaluation, "baselines": [judged("trees", 0.12, "level")]}
    assert simpler_models(worse) == []
    accurate = {**worse, "metric": "accuracy"}
    assert len(simpler_models(accurate)) == 1, "of an accuracy the larger is the better"


def test_a_baseline_that_was_fitted_on_fewer_rows_is_said_to_be() -> None:
    trees = {**judged("trees", 0.05, "other"), "rows": 50_000}
    guess = {**judged("guessing", 0.5, "network"), "rows": 80_000}
    evaluation = {**EVALUATION, "metric": "error", "train_rows": 80_000, "baselines": [guess, trees]}
    assert simpler_models(evaluation)[0].startswith(
        "note: trees, fitted on 50,000 of the 80,000 rows, is better than the tuned network"
    )
    told = (
        "guessing 0.5, trees 0.05 (fitted on 50,000 of the 80,000 rows); fitted on the same rows where nothing else is"
    )
    assert told in scores({**STUDY, "evaluation": evaluation})["baselines"]
    assert "trees (fitted on 50,000 of the 80,000 rows)" in evaluation_text(evaluation)
    same = {**evaluation, "baselines": [guess]}
    assert scores({**STUDY, "evaluation": same})["baselines"] == "guessing 0.5; fitted on the same rows"
    earlier = {key: value for key, value in evaluation.items() if key != "train_rows"}
    assert "of the" not in evaluation_text(earlier), "of an evaluation before it was stored nothing is made up"


def test_the_comparison_and_the_mistakes_are_tables() -> None:
    evaluation = {
        **EVALUATION,
        "metric": "error",
        "seconds": 2.0,
        "baselines": [judged("trees", 60.0, "network", 55.0)],
        "ensemble": {
            **judged("", 50.0, "other", 55.0),
            "members": [{"trial": 1, "weight": 2}, {"trial": 4, "weight": 1}],
            "candidates": 9,
            "validation": 45.0,
        },
        "mistakes": {
            "classes": {
                "labels": ["a", "b"],
                "rows": [10, 20],
                "error": [0.1, 0.25],
                "matrix": [[9, 1], [5, 15]],
                "confusions": [["b", "a", 5.0], ["a", "b", 1.0]],
            }
        },
    }
    lines = evaluation_text(evaluation).splitlines()
    assert lines[1] == (
        "ensemble    50 over 1 refit, 90 % interval 49.99 to 50.01; "
        "of 2 trials, chosen on validation (45) from the best 9"
    )
    assert [line.split() for line in lines if "trees" in line] == [
        ["trees", "60", "59.99", "to", "60.01", "-5", "(-1", "to", "+1)"]
    ]
    assert [line.split()[:4] for line in lines[-2:]] == [["b", "20", "0.25", "a"], ["a", "10", "0.1", "b"]]


def test_residuals_are_told_in_three_lines() -> None:
    found = {
        "bias": -1.0,
        "sd": 9.0,
        "quantiles": {"0.05": -20.0, "0.5": 0.5, "0.95": 18.0},
        "within": {"0.5": 0.6, "1": 0.95},
        "target_sd": 10.0,
        "r2": 0.7,
    }
    lines = evaluation_text({**EVALUATION, "mistakes": {"residuals": found}}).splitlines()[-3:]
    assert lines == [
        "R²         0.7",
        "residuals  -1 on average, sd 9; quantiles -20 (5 %), 0.5 (50 %), 18 (95 %)",
        "within     60 % within 0.5, 95 % within 1 standard deviations (10) of the target",
    ]
