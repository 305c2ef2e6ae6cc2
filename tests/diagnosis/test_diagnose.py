"""Diagnoses of studies whose trouble is known, since it was planted."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tuner.data.dataset import load_training_data
from tuner.diagnosis import diagnose as diagnose_module
from tuner.diagnosis.diagnose import diagnose
from tuner.diagnosis.probes import PROBE, Lab, nested_order, part_of
from tuner.diagnosis.variants import variants
from tuner.errors import BadInputError, DataError, NothingCompletedError, StudyNotFoundError
from tuner.learning.device import DeviceData
from tuner.learning.lanes import Lane
from tuner.learning.randomness import lane_key
from tuner.learning.trainer import LaneTask, kept_outputs, train_to_end
from tuner.manager import StudyManager
from tuner.plan import create_study
from tuner.refits import winner
from tuner.report.diagnosis import diagnosis_text
from tuner.spec import StudySpec, parse_spec
from tuner.storage.artifacts import Folder
from tuner.trial import TrialConfig
from tuner.worker import run_worker


@pytest.fixture
def manager(tmp_path: Path) -> StudyManager:
    return StudyManager(f"sqlite:///{tmp_path}/study.db")


def noisy_line(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """A linear rule of 20 features in which a quarter of the labels is wrong: few rows of it are easily memorised."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 20)).astype(np.float32)
    y = (x[:, :5].sum(1) > 0) ^ (rng.random(n) < 0.25)
    return x, y.astype(np.int64)


def checkerboard(n: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Four fields of two colours: no single unit tells them apart."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int64)


def finished(manager: StudyManager, folder: Path, rows: tuple[np.ndarray, np.ndarray], **sections: Any) -> StudySpec:
    """A study of two learning rates, done."""
    np.savez(folder / "rows.npz", X=rows[0], y=rows[1])
    content: dict[str, dict[str, Any]] = {
        "study": {"name": "planted", "metric": "error", "seed": 3},
        "data": {"source": "rows.npz"},
        "training": {"max_epochs": 20},
        "search": {"trials": 2, "pruner": "none"},
        "space": {"learning_rate": {"low": 0.01, "high": 0.02}, "batch_size": 32, "width": 8, "depth": 1},
    }
    spec = parse_spec({key: {**content.get(key, {}), **sections.get(key, {})} for key in content | sections})
    create_study(manager, spec, folder)
    run_worker(manager, "planted", device="cpu", stop=threading.Event())
    return spec


def effect(record: dict[str, Any], name: str) -> dict[str, Any]:
    """One effect of a diagnosis."""
    (found,) = [effect for effect in record["effects"] if effect["name"] == name]
    return dict(found)


def test_a_large_network_on_few_noisy_rows_overfits(manager: StudyManager, tmp_path: Path) -> None:
    finished(
        manager,
        tmp_path,
        noisy_line(),
        study={"metric": "log_loss"},
        data={"split": {"train": 0.2, "val": 0.7, "test": 0.1}},
        training={"max_epochs": 30},
        space={"width": 64, "learning_rate": {"low": 0.005, "high": 0.01}},
    )
    record = diagnose(manager, "planted", seeds=5, device="cpu")
    fit = record["fit"]
    assert fit["verdict"] == "overfitting"
    assert fit["train"]["mean"] < 0.1
    assert fit["gap"]["low"] > 0.5
    assert record["questions"]["more regularization"]["answer"] == "yes"
    assert record["questions"]["more data"]["answer"] == "yes"
    (diverging,) = [tip for tip in record["tips"] if tip["name"] == "diverging"]
    assert diverging["applies"]
    assert "raise" in diverging["advice"]
    text = diagnosis_text(record)
    assert text.startswith("planted: It overfits.")
    assert any("weight decay" in line for line in record["advice"])


def test_a_network_of_one_unit_underfits_a_checkerboard(manager: StudyManager, tmp_path: Path) -> None:
    finished(manager, tmp_path, checkerboard(), model={"activation": "tanh"}, space={"width": 1})
    record = diagnose(manager, "planted", seeds=5, device="cpu")
    assert record["fit"]["verdict"] == "underfitting"
    assert record["questions"]["more capacity"]["answer"] == "yes"
    assert record["questions"]["more regularization"]["answer"] != "yes"
    wider = effect(record, "width_x4")
    assert (wider["verdict"], wider["mean"] < -0.1) == ("better", True)
    assert "width 1 → 4" in record["advice"][0]


def test_regularizers_that_do_nothing_have_no_effect_and_one_that_helps_has(
    manager: StudyManager, tmp_path: Path
) -> None:
    """Clipping at a norm that no gradient has changes nothing at all, a λ of a billionth the last digits."""
    finished(
        manager,
        tmp_path,
        noisy_line(),
        study={"metric": "log_loss"},
        data={"split": {"train": 0.2, "val": 0.7, "test": 0.1}},
        training={"clip_norm": 1e5, "l2": 1e-9, "max_epochs": 30},
        space={"width": 64, "learning_rate": {"low": 0.005, "high": 0.01}, "dropout": 0.6, "weight_decay": 0.5},
    )
    record = diagnose(manager, "planted", seeds=5, device="cpu")
    assert effect(record, "without_clip_norm")["verdict"] == "same"
    assert effect(record, "without_l2")["verdict"] in ("same", "unseen")
    dropout = effect(record, "without_dropout")
    assert (dropout["verdict"], dropout["mean"] > 0.05) == ("worse", True)
    text = diagnosis_text(record)
    (line,) = [line for line in text.splitlines() if line.strip().startswith("dropout (0.6)")]
    assert line.split()[2].startswith("-"), "what dropout does is the other way round than leaving it out"
    assert line.endswith("helps")
    (line,) = [line for line in text.splitlines() if line.strip().startswith("gradient clipping")]
    assert line.split("(1e+05)")[1].split() == ["+0", "±", "0", "no", "effect", "seen:", "nothing", "changes"]


def test_pure_noise_has_no_cure(manager: StudyManager, tmp_path: Path) -> None:
    """Labels that no input tells: nothing helps, and nothing is claimed to."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((800, 3)).astype(np.float32), rng.integers(0, 2, 800)
    finished(manager, tmp_path, rows, training={"max_epochs": 4}, space={"width": 4})
    record = diagnose(manager, "planted", seeds=4, device="cpu")
    assert [e["name"] for e in record["effects"] if e["seen"]] == []
    assert {found["answer"] for found in record["questions"].values()} == {"unseen"}


def test_a_probe_is_the_winner_trained_alone_from_its_own_stream(manager: StudyManager, tmp_path: Path) -> None:
    spec = finished(manager, tmp_path, noisy_line(200), training={"max_epochs": 3}, space={"dropout": 0.3})
    best = winner(manager, "planted")
    data = load_training_data(spec, tmp_path)
    tried = variants(best.config, rows=120, classes=True)
    probes = Lab(spec, data, tried, 4, torch.device("cpu")).run()
    placed = DeviceData.place(data, torch.device("cpu"))
    without = TrialConfig(**{**vars(best.config), "dropout": 0.0})
    for name, config in (("winner", best.config), ("without_dropout", without)):
        lane = Lane(number=0, config=config, key=lane_key(3, 2, PROBE))
        task = LaneTask(lane=lane, target_epochs=3)
        alone = kept_outputs([task], train_to_end([task], placed, "error"), placed, placed.x_val)[0]
        torch.testing.assert_close(probes.validation[name][2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(probes.validation["winner"][0], probes.validation["winner"][1])
    assert torch.equal(probes.y, placed.y_val)


def test_fewer_rows_are_other_rows_for_other_seeds_and_nothing_else_changes(
    manager: StudyManager, tmp_path: Path
) -> None:
    """A lane on a part of the rows equals one trained on a table that holds no others."""
    spec = finished(manager, tmp_path, noisy_line(200), training={"max_epochs": 3})
    best, data = winner(manager, "planted"), load_training_data(spec, tmp_path)
    (half,) = [v for v in variants(best.config, rows=120, classes=True) if v.name == "rows_/2"]
    (own, *_) = variants(best.config, rows=120, classes=True)
    lab = Lab(spec, data, [own, half], 4, torch.device("cpu"))
    probes = lab.run()
    assert probes.rows == {"winner": 120, "rows_/2": 60}
    parts = [lab._views["standard", task.lane.fold] for task in lab.tasks["rows_/2"]]
    assert len({part.train.x.tobytes() for part in parts}) == 4
    assert all(part.train.y.mean() == pytest.approx(data.only.train.y.mean(), abs=0.02) for part in parts)
    lane = Lane(number=0, config=half.config, key=lane_key(3, 1, PROBE))
    task = LaneTask(lane=lane, target_epochs=6)
    placed = DeviceData.of_views({("standard", 0): parts[1]}, data.task, 2, torch.device("cpu"))
    alone = kept_outputs([task], train_to_end([task], placed, "error"), placed, placed.x_val)[0]
    torch.testing.assert_close(probes.validation["rows_/2"][1], alone, rtol=1e-4, atol=1e-4)


def test_parts_of_the_rows_are_nested_and_keep_the_classes() -> None:
    y = np.repeat([0, 1, 2], [60, 30, 10])
    order = nested_order(y, np.random.default_rng(1))
    assert sorted(order) == list(range(100))
    for n in (10, 20, 50):
        np.testing.assert_allclose(np.bincount(y[order[:n]], minlength=3), np.array([0.6, 0.3, 0.1]) * n, atol=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"split": {"folds": 3, "test": 0.2}}},
        {"study": {"metric": "roc_auc"}, "model": {"norm": "batch"}, "training": {"averaging": "swa"}},
        {"training": {"patience": 2}},
        {"study": {"metric": "rmse"}, "space": {"batch_size": {"low": 16, "high": 32}}},
    ],
    ids=["folds", "batch norm and SWA", "patience", "regression"],
)
def test_every_kind_of_study_is_diagnosed(manager: StudyManager, tmp_path: Path, changes: dict[str, Any]) -> None:
    x, y = noisy_line(150)
    rows = (x, (x @ np.linspace(0, 300, 20)).astype(np.float64)) if "rmse" in str(changes) else (x, y)
    changes.setdefault("training", {})["max_epochs"] = 4
    changes.setdefault("space", {})["dropout"] = 0.2
    finished(manager, tmp_path, rows, **changes)
    record = diagnose(manager, "planted", seeds=4, device="cpu")
    names = [found["name"] for found in record["effects"]]
    assert len(set(names)) == len(names)
    assert all(found["verdict"] in ("better", "worse", "unseen", "same") for found in record["effects"])
    assert manager.diagnosis("planted") == record
    assert "patience" not in str(changes) or "without_early_stopping" in names
    assert "batch" not in str(changes.get("model")) or {"without_norm", "without_averaging"} <= set(names)
    if "norm" in changes.get("model", {}):
        assert any(tip["name"] == "dropout_with_batch_norm" and tip["applies"] for tip in record["tips"])
    assert diagnosis_text(record).startswith("planted: ")


def test_the_edge_of_a_range_is_told_with_what_lies_beyond(manager: StudyManager, tmp_path: Path) -> None:
    finished(
        manager,
        tmp_path,
        checkerboard(400),
        training={"max_epochs": 8},
        space={"learning_rate": {"low": 1e-5, "high": 2e-5}, "width": {"low": 8, "high": 9}, "depth": 2},
        search={"trials": 6},
    )
    record = diagnose(manager, "planted", seeds=4, device="cpu")
    edges = {tip["name"]: tip for tip in record["tips"] if tip["name"].startswith("edge_")}
    assert "edge_learning_rate" in edges
    if edges["edge_learning_rate"]["applies"]:
        assert "beyond it" in edges["edge_learning_rate"]["evidence"]


def no_winner(manager: StudyManager, folder: Path) -> None:
    spec = parse_spec(
        {
            "study": {"name": "planted", "metric": "error"},
            "data": {"source": "sklearn:iris"},
            "search": {"trials": 2},
            "space": {"learning_rate": {"low": 0.01, "high": 0.02}, "batch_size": 32, "width": 8, "depth": 1},
        }
    )
    create_study(manager, spec, folder)


def gone(manager: StudyManager, folder: Path) -> None:
    finished(manager, folder, noisy_line(100), training={"max_epochs": 1})
    (folder / "rows.npz").unlink()


def changed(manager: StudyManager, folder: Path) -> None:
    finished(manager, folder, noisy_line(100), training={"max_epochs": 1})
    np.savez(folder / "rows.npz", X=noisy_line(101)[0], y=noisy_line(101)[1])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda *_: None, StudyNotFoundError, "no study 'planted'"),
        (no_winner, NothingCompletedError, "no completed trial"),
        (gone, DataError, "rows.npz"),
        (changed, DataError, "data"),
    ],
    ids=["unknown", "nothing completed", "data gone", "data changed"],
)
def test_what_cannot_be_diagnosed_is_refused(
    manager: StudyManager,
    tmp_path: Path,
    make: Callable[[StudyManager, Path], None],
    error: type[Exception],
    message: str,
) -> None:
    make(manager, tmp_path)
    with pytest.raises(error, match=message):
        diagnose(manager, "planted", device="cpu")


def test_too_few_seeds_are_refused(manager: StudyManager) -> None:
    with pytest.raises(BadInputError, match="4 or more, got 3"):
        diagnose(manager, "planted", seeds=3)


def test_a_winner_that_diverges_is_told_as_such(
    manager: StudyManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(manager, tmp_path, noisy_line(100), training={"max_epochs": 1})
    run = Lab.run

    def diverged(lab: Lab) -> Any:
        probes = run(lab)
        probes.validation["winner"][:] = torch.nan  # type: ignore[index]
        return probes

    monkeypatch.setattr(Lab, "run", diverged)
    record = diagnose(manager, "planted", seeds=4, device="cpu")
    assert record["fit"]["verdict"] == "unknown"
    assert {found["verdict"] for found in record["effects"]} == {"diverged"}
    assert "diverges from every seed" in diagnosis_text(record)


def test_a_diagnosis_that_cannot_be_kept_is_told_all_the_same(
    manager: StudyManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finished(manager, tmp_path, noisy_line(100), training={"max_epochs": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write", full)
    record = diagnose(manager, "planted", seeds=4, device="cpu")
    assert diagnosis_text(record).startswith("planted: ")
    assert manager.diagnosis("planted") is None
    assert "No space left on device" in caplog.text


def test_an_interrupted_diagnosis_keeps_nothing(manager: StudyManager, tmp_path: Path) -> None:
    finished(manager, tmp_path, noisy_line(100), training={"max_epochs": 1})

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose(manager, "planted", seeds=4, device="cpu", step=interrupt)
    assert manager.diagnosis("planted") is None


def test_part_of_a_view_keeps_its_validation_rows(tmp_path: Path, manager: StudyManager) -> None:
    spec = finished(manager, tmp_path, noisy_line(100), training={"max_epochs": 1})
    view = load_training_data(spec, tmp_path).only
    part = part_of(view, 0.25, np.random.default_rng(0))
    assert (len(part.train), part.val) == (15, view.val)
    rows = {row.tobytes() for row in view.train.x}
    assert all(row.tobytes() in rows for row in part.train.x)


def test_the_module_offers_nothing_that_opens_the_test_set() -> None:
    assert not [name for name in vars(diagnose_module) if "test" in name]
