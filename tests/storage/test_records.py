"""The bulk path writes exactly what Optuna's public API would have written."""

import math
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from tests.storage import fleet
from tests.storage.fleet import create
from tuner.manager import StudyManager
from tuner.search.distributions import suggest
from tuner.spec import StudySpec
from tuner.storage import records
from tuner.storage.database import parse_url
from tuner.storage.ledger import EpochRow, RungResult


class Given(optuna.samplers.BaseSampler):
    """Suggests what it was told, so that a trial of Optuna's own has given parameters."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}

    def infer_relative_search_space(self, *_: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:  # noqa: ARG002
        return self.params[param_name]


# How each trial of the study ends: its metric epoch by epoch. One rung of 3 epochs, so each ends alone.
ENDS: list[tuple[TrialState, list[float]]] = [
    (TrialState.COMPLETE, [0.5, 0.1 + 0.2, 1 / 3]),
    (TrialState.COMPLETE, [1e300, 5e-324, -0.0]),
    (TrialState.COMPLETE, [math.nan, math.inf, 0.25]),
    (TrialState.PRUNED, [0.5, math.nan]),
    (TrialState.PRUNED, [0.5, math.inf]),
    (TrialState.PRUNED, [0.5, 0.25, -math.inf]),
    (TrialState.FAIL, [0.5]),
    (TrialState.FAIL, []),
]


def written_in_bulk(manager: StudyManager, spec: StudySpec) -> None:
    ledger = create(manager, spec)
    ledger.max_attempts = 1
    worker = ledger.register("host", 1, "cpu", "0")
    claims = ledger.claim(worker, limit=len(ENDS), lease_s=60)
    rows, results, failures = [], [], []
    for claim, (state, curve) in zip(claims, ENDS, strict=True):
        rows += [
            EpochRow(number=claim.number, token=claim.token, epoch=e, value=value, train_loss=0.0, val_loss=0.0)
            for e, value in enumerate(curve, start=1)
        ]
        if state == TrialState.FAIL:
            failures.append((claim.number, claim.token, "boom"))
        else:
            results.append(
                RungResult(number=claim.number, token=claim.token, epochs=len(curve), value=curve[-1], seconds=1.0)
            )
    ledger.record(worker, rows)
    ledger.commit(worker, results)
    ledger.fail(worker, failures)
    assert ledger.finished()


def written_by_optuna(url: str, spec: StudySpec, likes: list[FrozenTrial]) -> list[FrozenTrial]:
    storage = optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    try:
        sampler = Given()
        study = optuna.create_study(study_name="plain", storage=storage, sampler=sampler, direction=spec.direction)
        for like, (state, curve) in zip(likes, ENDS, strict=True):
            sampler.params = like.params
            trial = study.ask()
            suggest(trial, spec.search_space)
            for epoch, value in enumerate(curve, start=1):
                trial.report(value, epoch)
            for key, content in like.user_attrs.items():
                trial.set_user_attr(key, content)
            study.tell(trial, curve[-1] if state == TrialState.COMPLETE else None, state)
        return study.get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def comparable(trial: FrozenTrial) -> dict[str, Any]:
    """Everything but ids and times; NaN as text, for it equals nothing."""
    return {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values,
        "params": list(trial.params.items()),
        "distributions": list(trial.distributions.items()),
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": [(step, repr(value)) for step, value in sorted(trial.intermediate_values.items())],
    }


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trials_equal_those_of_the_public_api(url: str, manager: StudyManager) -> None:
    spec = fleet.spaces_study(
        study={"name": "fleet"}, search={"trials": len(ENDS), "pruner": "none"}, training={"max_epochs": 3}
    )
    written_in_bulk(manager, spec)
    mine = fleet.read_optuna(url, "fleet").trials
    theirs = written_by_optuna(url, spec, mine)
    assert len(mine) == len(theirs) == len(ENDS)
    for one, other in zip(mine, theirs, strict=True):
        assert comparable(one) == comparable(other)
        for a, b in ((one.datetime_start, other.datetime_start), (one.datetime_complete, other.datetime_complete)):
            assert isinstance(a, datetime)
            assert isinstance(b, datetime)
            assert abs(a - b) < timedelta(seconds=30)
            assert abs(a - datetime.now()) < timedelta(seconds=30), "local time, as Optuna gives it"
    # The comparison can fail: another value is another trial.
    mine[0].intermediate_values[1] += 1e-12
    assert comparable(mine[0]) != comparable(theirs[0])


def test_optuna_sees_the_study(url: str, manager: StudyManager) -> None:
    spec = fleet.make_spec(9)
    create(manager, spec)
    storage = optuna.storages.RDBStorage(parse_url(url).render_as_string(hide_password=False))
    try:
        study = optuna.load_study(study_name="fleet", storage=storage)
        assert study.direction.name == "MINIMIZE"
        assert study.user_attrs == {"spec_digest": spec.digest, "metric": "error"}
        assert study.metric_names == ["error"]
        assert optuna.get_all_study_names(storage) == ["fleet"]
    finally:
        storage.remove_session()
        storage.engine.dispose()


@pytest.mark.parametrize("value", [0.1, 0.0, -1e-300, math.inf, -math.inf, math.nan])
def test_stored_values_come_back(value: float) -> None:
    loaded = records.loaded_value(*records.stored_value(value))
    assert repr(loaded) == repr(value)
    assert records.loaded_value(None, None) is None
