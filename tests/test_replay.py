"""A stored trial can be trained again, alone, and a study that was tampered with is found out."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tuner.errors import BadInputError
from tuner.learning.progress import EpochResult
from tuner.manager import CurvePoint, StudyManager
from tuner.plan import create_study
from tuner.replay import TOLERANCE, _difference, replay
from tuner.spec import parse_spec
from tuner.worker import run_worker

STUDY = {
    "study": {"name": "tiny", "metric": "error"},
    "data": {"source": "sklearn:iris"},
    "training": {"max_epochs": 4},
    "search": {"trials": 6, "eta": 2},
    "space": {
        "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
        "batch_size": {"choices": [8, 16]},
        "dropout": {"low": 0.0, "high": 0.5},
        "width": {"low": 4, "high": 40},
        "depth": {"low": 1, "high": 3},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with a finished study."""
    url = f"sqlite:///{tmp_path_factory.mktemp('replay')}/study.db"
    with StudyManager(url) as manager:
        create_study(manager, parse_spec(STUDY), Path())
        run_worker(manager, "tiny", device="cpu", stop=threading.Event())
    return url


def test_every_trial_matches_its_replay(finished: str) -> None:
    with StudyManager(finished) as manager:
        trials = manager.trials("tiny")
        for trial in trials:
            again = replay(manager, "tiny", trial.number, device="cpu")
            assert again.matches
            assert again.epochs == trial.epochs
            assert again.stored == again.replayed == trial.value
            assert again.largest_difference < 1e-4
        assert {trial.state for trial in trials} == {"complete", "pruned"}


def test_folds_and_scalings_match_their_replay(tmp_path: Path) -> None:
    data = {"split": {"folds": 3}, "scaling": {"choices": ["standard", "quantile"]}}
    spec = parse_spec({**STUDY, "data": {**STUDY["data"], **data}})
    with StudyManager(f"sqlite:///{tmp_path}/study.db") as manager:
        create_study(manager, spec, Path())
        run_worker(manager, "tiny", device="cpu", stop=threading.Event())
        trials = manager.trials("tiny")
        assert {trial.params["scaling"] for trial in trials if trial.params} == {"standard", "quantile"}
        assert all(replay(manager, "tiny", trial.number, device="cpu").matches for trial in trials)


@pytest.mark.parametrize(
    ("stored", "again", "matches"), [(2e-6, 2.12e-6, True), (1e-3, 1.01e-3, False), (2.0, 2.01, False)]
)
def test_tiny_losses_may_differ_by_what_float32_rounds_away(stored: float, again: float, matches: bool) -> None:
    point = CurvePoint(epoch=1, value=0.0, train_loss=stored, val_loss=1.0)
    result = EpochResult(epoch=1, train_loss=again, val_loss=1.0, value=0.0)
    assert (_difference(point, result) <= TOLERANCE) == matches


def test_negative_control_a_changed_parameter_does_not_match(finished: str, tmp_path: Path) -> None:
    copy = tmp_path / "changed.db"
    source = Path(finished.removeprefix("sqlite:///"))
    with StudyManager(finished) as manager:
        number = next(t.number for t in manager.trials("tiny") if t.state == "complete")
    engine = create_engine(f"sqlite:///{source}")
    raw = engine.raw_connection()
    raw.driver_connection.execute("VACUUM INTO ?", (str(copy),))
    raw.close()
    engine.dispose()
    changed = create_engine(f"sqlite:///{copy}")
    with changed.begin() as connection:
        old = connection.execute(text("SELECT params FROM tuner_slots WHERE number = :n"), {"n": number}).scalar_one()
        rate = old.split('"learning_rate": ')[1].split(",")[0]
        new = old.replace(rate, repr(float(rate) * 1.05))
        connection.execute(text("UPDATE tuner_slots SET params = :p WHERE number = :n"), {"p": new, "n": number})
    changed.dispose()
    with StudyManager(f"sqlite:///{copy}") as manager:
        assert not replay(manager, "tiny", number, device="cpu").matches


def test_what_cannot_be_replayed(finished: str, tmp_path: Path) -> None:
    with StudyManager(finished) as manager, pytest.raises(BadInputError, match="trials 0 to 5, not 6"):
        replay(manager, "tiny", 6)
    with StudyManager(f"sqlite:///{tmp_path}/new.db") as manager:
        create_study(manager, parse_spec(STUDY), Path())
        with pytest.raises(BadInputError, match="trial 0 of study 'tiny' has not been trained yet: it is waiting"):
            replay(manager, "tiny", 0)
