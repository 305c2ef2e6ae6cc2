"""The worker: trains what it claims, gives back what it cannot finish, and survives what can happen to a pack."""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import select, update

from tuner import worker as worker_module
from tuner.data.dataset import load_training_data
from tuner.errors import DataError, DeviceLostError, StorageError, StudyNotFoundError
from tuner.learning.device import DeviceData
from tuner.learning.progress import EpochInterruptedError, Progress
from tuner.learning.trainer import LaneState, PackTrainer
from tuner.manager import StudyManager, TrialRow
from tuner.plan import create_study
from tuner.spec import StudySpec, parse_spec
from tuner.storage import schema
from tuner.storage.checkpoints import CheckpointStore
from tuner.worker import remove_orphans, run_worker


def study(**sections: dict[str, Any]) -> StudySpec:
    """A study of a few seconds; ``sections`` replace keys."""
    content: dict[str, dict[str, Any]] = {
        "study": {"name": "tiny", "metric": "error"},
        "data": {"source": "sklearn:iris"},
        "training": {"max_epochs": 4},
        "search": {"trials": 8, "eta": 2},
        "space": {
            "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
            "batch_size": {"choices": [8, 16]},
            "dropout": {"low": 0.0, "high": 0.5},
            "width": {"low": 4, "high": 40},
            "depth": {"low": 1, "high": 3},
        },
    }
    return parse_spec({key: {**content.get(key, {}), **sections.get(key, {})} for key in content | sections})


@pytest.fixture
def manager(tmp_path: Path) -> StudyManager:
    return StudyManager(f"sqlite:///{tmp_path}/tuner.db")


def results(manager: StudyManager) -> list[tuple[int, str, float | None, int]]:
    return [(t.number, t.state, t.value, t.epochs) for t in manager.trials("tiny")]


def run(manager: StudyManager, spec: StudySpec, stop: threading.Event | None = None) -> list[TrialRow]:
    create_study(manager, spec, Path())
    run_worker(manager, "tiny", device="cpu", stop=stop or threading.Event())
    return manager.trials("tiny")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, float | None, int]]:
    """What the study comes to when nothing happens."""
    with StudyManager(f"sqlite:///{tmp_path_factory.mktemp('undisturbed')}/tuner.db") as quiet:
        run(quiet, study())
        return results(quiet)


def test_a_study_ends_with_every_slot_decided(undisturbed: list[tuple[int, str, float | None, int]]) -> None:
    assert len(undisturbed) == 8
    assert {state for _, state, _, _ in undisturbed} == {"complete", "pruned"}
    assert all(value is not None and 0 <= value <= 1 for _, _, value, _ in undisturbed)
    assert max(epochs for *_, epochs in undisturbed) == 4


def test_stopping_after_each_epoch_and_going_on_changes_nothing(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch, undisturbed: list[tuple[int, str, float | None, int]]
) -> None:
    original = PackTrainer.run_epoch
    stops = 0

    def once(self: PackTrainer) -> Any:
        stop.set()
        return original(self)

    monkeypatch.setattr(PackTrainer, "run_epoch", once)
    while not stops or manager.summary("tiny").state != "finished":
        stop = threading.Event()
        run(manager, study(), stop)
        stops += 1
        assert manager.summary("tiny").trials["running"] == 0, "a worker that leaves holds nothing"
        assert stops < 60
    assert stops > 4
    assert results(manager) == undisturbed


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "too dear to keep"])
def test_an_epoch_that_is_too_long_to_wait_for_is_given_up(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bool
) -> None:
    """The lanes go on from before that epoch, or from the last checkpoint; what they come to is the same."""
    spec = study(search={"pruner": "none"})
    with StudyManager(f"sqlite:///{tmp_path}/quiet.db") as quiet:
        run(quiet, spec)
        expected = results(quiet)
    monkeypatch.setattr(worker_module, "HURRY_S", 0.0)
    monkeypatch.setattr(worker_module, "SAVE_COST", 0.0 if kept else 1e12)
    monkeypatch.setattr(worker_module, "SAVE_S", 1e12)
    original, begun, given_up, stop = PackTrainer.run_epoch, 0, 0, threading.Event()

    def interrupted(self: PackTrainer) -> Any:
        nonlocal begun, given_up
        begun += 1
        if begun == 4:
            stop.set()
        try:
            return original(self)
        except EpochInterruptedError:
            given_up += 1
            raise

    monkeypatch.setattr(PackTrainer, "run_epoch", interrupted)
    run(manager, spec, stop)
    assert given_up == 1
    assert manager.summary("tiny").trials["running"] == 0, "a worker that leaves holds nothing"
    slots = manager._database.read(lambda c: c.execute(select(schema.slots.c.epochs, schema.slots.c.state)).all())
    assert {row.epochs for row in slots if row.state == "waiting"} == ({3} if kept else {0})
    run(manager, spec)
    assert results(manager) == expected


def test_folds_that_stop_and_go_on_from_checkpoints_end_the_same(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = study(data={"split": {"folds": 3}})
    with StudyManager(f"sqlite:///{tmp_path}/quiet.db") as quiet:
        run(quiet, spec)
        expected = results(quiet)
    original = PackTrainer.run_epoch
    stop = threading.Event()

    def once(self: PackTrainer) -> Any:
        stop.set()
        return original(self)

    monkeypatch.setattr(PackTrainer, "run_epoch", once)
    monkeypatch.setattr(worker_module, "_REMEMBERED", 0)
    for _ in range(60):
        stop.clear()
        run(manager, spec, stop)
        if manager.summary("tiny").state == "finished":
            break
    assert results(manager) == expected


def test_paused_lanes_stay_in_memory_while_there_is_room(manager: StudyManager) -> None:
    create_study(manager, study(), Path())
    rows = DeviceData.place(load_training_data(study(), Path()), torch.device("cpu"))
    worker = worker_module._Worker(manager.ledger("tiny"), manager.checkpoints("tiny"), rows, threading.Event())
    state = LaneState(progress=Progress(), arrays={"theta": np.zeros(100)})
    worker._room = 3 * state.bytes
    worker._remember(dict.fromkeys(range(2), state))
    worker._remember(dict.fromkeys(range(2, 5), state))
    assert list(worker._paused) == [2, 3, 4], "the latest"
    worker._room = 0
    worker._remember({5: state})
    assert not worker._paused


def test_out_of_memory_halves_the_pack_and_goes_on(
    manager: StudyManager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    undisturbed: list[tuple[int, str, float | None, int]],
) -> None:
    original = PackTrainer.run_epoch

    def small(self: PackTrainer) -> Any:
        if len(self.tasks) > 1:
            raise MemoryError
        return original(self)

    monkeypatch.setattr(PackTrainer, "run_epoch", small)
    with caplog.at_level(logging.WARNING, logger="tuner.worker"):
        run(manager, study())
    assert "out of memory with" in caplog.text
    assert results(manager) == undisturbed


def test_a_model_that_fits_no_memory_fails_with_the_reason(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "memory_budget", lambda *_: 1000)
    trials = run(manager, study(search={"trials": 2}))
    assert {t.state for t in trials} == {"failed"}
    assert all("needs" in (t.reason or "") and "MiB even alone" in (t.reason or "") for t in trials)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_trial_that_cannot_be_trained_fails_after_bounded_attempts(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def broken(_: PackTrainer) -> Any:
        raise kind("the device\nis on fire")

    monkeypatch.setattr(PackTrainer, "run_epoch", broken)
    trials = run(manager, study(search={"trials": 2, "pruner": "none"}))
    assert [(t.state, t.attempt, t.reason) for t in trials] == [("failed", 3, f"{kind.__name__}: the device")] * 2


def test_only_the_trial_that_cannot_be_trained_fails(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = study(search={"pruner": "none"})
    with StudyManager(f"sqlite:///{tmp_path}/quiet.db") as quiet:
        run(quiet, spec)
        expected = results(quiet)
    original = PackTrainer.run_epoch

    def broken(self: PackTrainer) -> Any:
        if 3 in self.tasks:
            raise RuntimeError("trial 3 is not to be trained")
        return original(self)

    monkeypatch.setattr(PackTrainer, "run_epoch", broken)
    trials = run(manager, spec)
    assert results(manager)[:3] + results(manager)[4:] == expected[:3] + expected[4:]
    assert (trials[3].state, trials[3].attempt) == ("failed", 3)
    assert {trial.attempt for trial in trials if trial.number != 3} == {1}


def test_a_device_that_is_lost_ends_the_worker_and_not_the_study(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: PackTrainer) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(PackTrainer, "run_epoch", broken)
        patch.setattr(worker_module, "computes", lambda _: False)
        with pytest.raises(DeviceLostError, match=r"cpu does not compute any more \(RuntimeError: an illegal memory"):
            run(manager, study())
    trials = manager.trials("tiny")
    assert {trial.state for trial in trials} == {"waiting"}
    assert max(trial.attempt for trial in trials) == 2, "a trial that breaks every device is not tried for ever"
    assert {trial.state for trial in run(manager, study())} == {"complete", "pruned"}


def test_a_full_disk_is_not_the_fault_of_the_trials(manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise StorageError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "write", full)
        with pytest.raises(StorageError, match="no room"):
            run(manager, study())
    before = manager.trials("tiny")
    assert ({t.state for t in before}, max(t.attempt for t in before)) == ({"waiting"}, 1)
    assert {t.state for t in run(manager, study())} == {"complete", "pruned"}


def test_leases_are_renewed_while_an_epoch_takes_long(manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "HEARTBEAT_S", 0.02)
    original = PackTrainer.run_epoch
    expired: list[int] = []

    def slow(self: PackTrainer) -> Any:
        if not expired:
            over = update(schema.slots).where(schema.slots.c.state == "leased").values(lease_until=1.0)
            manager._database.write(lambda c: c.execute(over) and None)
            ledger = manager.ledger("tiny")
            for _ in range(1000):
                if not (left := ledger.outstanding().expired):
                    break
                threading.Event().wait(0.02)
            expired.append(left)
        return original(self)

    monkeypatch.setattr(PackTrainer, "run_epoch", slow)
    trials = run(manager, study(search={"trials": 2, "pruner": "none"}))
    assert expired == [0]
    assert {(trial.state, trial.attempt) for trial in trials} == {("complete", 1)}


def test_a_diverged_trial_is_pruned_and_says_when(manager: StudyManager) -> None:
    wild = study(
        study={"metric": "rmse"},
        data={"source": "sklearn:diabetes"},
        training={"optimizer": "sgd", "max_epochs": 4},
        space={"learning_rate": {"choices": [0.01, 900.0]}},
        search={"sampler": "random", "pruner": "none", "trials": 8},
    )
    trials = run(manager, wild)
    by_rate = {rate: [t for t in trials if t.params and t.params["learning_rate"] == rate] for rate in (0.01, 900.0)}
    assert {t.state for t in by_rate[0.01]} == {"complete"}
    assert {t.state for t in by_rate[900.0]} == {"pruned"}
    assert all((t.reason or "").startswith("diverged at epoch") for t in by_rate[900.0])


@pytest.mark.parametrize("harm", ["missing", "corrupt"])
def test_a_lost_checkpoint_costs_time_never_correctness(
    manager: StudyManager,
    monkeypatch: pytest.MonkeyPatch,
    harm: str,
    undisturbed: list[tuple[int, str, float | None, int]],
) -> None:
    write = CheckpointStore.write

    def harmed(self: CheckpointStore, states: Any) -> Any:
        checkpoint = write(self, states)
        path = self.root / checkpoint.name
        if harm == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        return checkpoint

    monkeypatch.setattr(CheckpointStore, "write", harmed)
    monkeypatch.setattr(worker_module, "_REMEMBERED", 0)
    run(manager, study())
    assert results(manager) == undisturbed


def test_a_time_budget_ends_at_the_end_of_an_epoch(manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps past the budget during the third epoch: no other is trained, and nothing is left over."""
    spec = study(search={"trials": 8, "pruner": "none", "minutes": 30.0}, training={"max_epochs": 100_000})
    original, clock, epochs = PackTrainer.run_epoch, time.monotonic, 0

    def slow(self: PackTrainer) -> Any:
        nonlocal epochs
        epochs += 1
        if epochs == 3:
            passed = update(schema.workers).values(started_at=schema.workers.c.started_at - 1800)
            manager._database.write(lambda c: c.execute(passed) and None)
            monkeypatch.setattr(worker_module.time, "monotonic", lambda: clock() + 1800)
        return original(self)

    monkeypatch.setattr(PackTrainer, "run_epoch", slow)
    trials = run(manager, spec)
    assert epochs == 3
    assert {(t.state, t.reason) for t in trials} == {("pruned", "time budget of 30 minutes over")}
    furthest = max(t.epochs for t in trials)
    assert furthest == 3
    assert manager.summary("tiny").state == "finished"
    best = manager.best("tiny")
    assert best is not None
    assert (best.complete, best.epochs) == (False, 3)
    assert best.value == min(t.value for t in trials if t.value is not None and t.epochs == 3)
    assert not manager.checkpoints("tiny").names(), "what nobody goes on with is not kept"


class TestOrphans:
    """Checkpoint files of workers that were killed between writing and committing."""

    def age(self, store: CheckpointStore, name: str, hours: float) -> None:
        assert isinstance(store.root, Path)
        then = time.time() - 3600 * hours
        os.utime(store.root / name, (then, then))

    def test_old_ones_go_and_one_about_to_be_committed_stays(self, manager: StudyManager) -> None:
        create_study(manager, study(), Path())
        ledger, store = manager.ledger("tiny"), manager.checkpoints("tiny")
        worker = ledger.register("h", 1, "cpu", "0")
        one, two, three = ledger.claim(worker, limit=3, lease_s=60)
        orphan, needed, pending = (store.write({c.number: {"a": np.zeros(3)}}) for c in (one, two, three))
        ledger.release(worker, [(two.number, two.token, 1)], (), needed)
        assert isinstance(store.root, Path)
        (store.root / ".half.safetensors.tmp").write_bytes(b"half")
        for name in (orphan.name, needed.name, ".half.safetensors.tmp"):
            self.age(store, name, hours=2)
        self.age(store, pending.name, hours=0.9)
        remove_orphans(ledger, store)
        assert set(store.names()) == {needed.name, pending.name}
        ledger.release(worker, [(three.number, three.token, 1)], (), pending)
        self.age(store, pending.name, hours=2)
        remove_orphans(ledger, store)
        assert set(store.names()) == {needed.name, pending.name}
        again = {claim.number: claim for claim in ledger.claim(worker, limit=9, lease_s=60)}
        assert again[three.number].checkpoint == pending
        assert store.read_pack(pending, [three.number])

    def test_a_file_that_is_committed_while_others_are_looked_for_stays(self, manager: StudyManager) -> None:
        create_study(manager, study(), Path())
        ledger, store = manager.ledger("tiny"), manager.checkpoints("tiny")
        worker = ledger.register("h", 1, "cpu", "0")
        (claim,) = ledger.claim(worker, limit=1, lease_s=60)
        file = store.write({claim.number: {"a": np.zeros(3)}})
        self.age(store, file.name, hours=2)  # its worker was stopped for so long, and no other one wanted the slot
        listed = store.names

        def names(older_than_s: float = 0.0) -> list[str]:
            found = listed(older_than_s)
            ledger.release(worker, [(claim.number, claim.token, 1)], (), file)
            return found

        store.names = names  # type: ignore[method-assign]
        remove_orphans(ledger, store)
        assert listed() == [file.name]

    def test_of_a_finished_study_all_go(self, manager: StudyManager) -> None:
        create_study(manager, study(), Path())
        store = manager.checkpoints("tiny")
        store.write({0: {"a": np.zeros(3)}})
        run_worker(manager, "tiny", device="cpu", stop=threading.Event())
        assert manager.summary("tiny").state == "finished"
        assert store.names() == []


def test_early_stopping_takes_part_in_the_rungs(manager: StudyManager) -> None:
    trials = run(manager, study(training={"patience": 1, "max_epochs": 8}, study={"metric": "log_loss"}))
    assert {t.state for t in trials} == {"complete", "pruned"}
    assert any(t.state == "complete" for t in trials)
    summary = manager.summary("tiny")
    assert summary.state == "finished"


def test_a_study_that_takes_the_name_while_the_data_are_read_is_another_one(
    manager: StudyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(manager, study(), Path())
    load = worker_module.load_training_data

    def slow(*given: Any) -> Any:
        manager.delete("tiny")
        create_study(manager, study(training={"max_epochs": 2}), Path())
        return load(*given)

    monkeypatch.setattr(worker_module, "load_training_data", slow)
    with pytest.raises(StudyNotFoundError, match="'tiny' is gone"):
        run_worker(manager, "tiny", device="cpu", stop=threading.Event())
    assert manager.summary("tiny").state == "created"


def test_changed_data_are_refused(manager: StudyManager, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [f"{i % 7},{i % 5},{i % 2}" for i in range(60)]
    path.write_text("\n".join(["a,b,label", *rows]))
    spec = study(data={"source": str(path), "target": "label"})
    create_study(manager, spec, tmp_path)
    path.write_text("\n".join(["a,b,label", *rows[:-1], "9,9,1"]))
    with pytest.raises(DataError, match=r"the data of study 'tiny' changed since it was created: SHA-256 \w{12}… then"):
        run_worker(manager, "tiny", device="cpu", stop=threading.Event())
    assert manager.summary("tiny").trials["waiting"] == 8
