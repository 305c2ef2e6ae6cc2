"""What regularizers do, measured anew with fewer seeds: each claim holds of real networks, and not of broken ones."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.demonstrations.labs import lab_of
from tuner.demonstrations import dropout, swa, weight_decay
from tuner.demonstrations.demonstration import Data
from tuner.learning import mlp


@pytest.fixture(scope="module")
def decayed() -> Data:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_decay, "SEEDS", 3)
        patch.setattr(weight_decay, "STRENGTHS", (0.0, 1.0, 4.0))
        return weight_decay.measure(lab_of("weight_decay", learning_rate=3e-3))


@pytest.fixture(scope="module")
def dropped() -> Data:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropout, "SEEDS", 3)
        patch.setattr(dropout, "SIZES", (1, 8, 64))
        return dropout.measure(lab_of("dropout", width=64))


@pytest.fixture(scope="module")
def averaged() -> Data:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swa, "SEEDS", 3)
        patch.setattr(swa, "SIDE", 5)
        return swa.measure(lab_of("swa", max_epochs=30, learning_rate=0.2))


def test_weight_decay_does_all_that_the_slides_say(decayed: Data) -> None:
    found = weight_decay.claim(decayed)
    assert found.holds, found.sentence
    none, *_, most = decayed["decays"]
    assert none["weight_decay"] == 0
    for run, strong in zip(none["runs"], most["runs"], strict=True):
        assert run["train_error"] == 0, "without it the noise is fitted"
        assert strong["norm"] < 0.6 * run["norm"]
        assert strong["gradient"] < 0.6 * run["gradient"]
        assert strong["near_zero"] > 1.5 * run["near_zero"]
        assert strong["linear"] > 1.3 * run["linear"]
        assert strong["held_out_error"] < run["held_out_error"] - 0.02
    assert json.loads(json.dumps(decayed)) == decayed
    assert len(weight_decay.draw(decayed).drawing.data) == 7


def test_weight_decay_of_few_steps_turns_no_weight_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_decay, "SEEDS", 2)
    lab = lab_of("weight_decay", learning_rate=3e-3, batch_size=1000, max_epochs=5)
    decays = [decay["weight_decay"] for decay in weight_decay.measure(lab)["decays"]]
    assert decays[0] == 0
    assert max(decays) > 0
    assert max(decays) * lab.winner.config.peak_learning_rate(len(lab.view.train)) <= 1


@pytest.mark.parametrize("key", ["held_out_error", *weight_decay.MEASURES])
def test_weight_decay_without_one_of_its_effects_is_denied(decayed: Data, key: str) -> None:
    """As where λ did nothing to it: each network has what it had without."""
    data = copy.deepcopy(decayed)
    for decay in data["decays"]:
        for run, first in zip(decay["runs"], data["decays"][0]["runs"], strict=True):
            run[key] = first[key]
    denied = weight_decay.claim(data)
    assert not denied.holds
    assert "did not appear" in denied.sentence or "did appear, because of" in denied.sentence


def test_dropout_is_an_ensemble(dropped: Data) -> None:
    found = dropout.claim(dropped)
    assert found.holds, found.sentence
    own, other = (network["runs"] for network in dropped["networks"])
    for run, without in zip(own, other, strict=True):
        assert run["ensemble_error"][-1] < run["thinned_error"] - 0.04
        assert run["scaled_error"] < without["scaled_error"] - 0.01
        assert without["thinned_error"] > run["thinned_error"] + 0.05, "it never had to do without a unit"
        # The scaled network is the geometric mean but for the depth; the arithmetic mean is flatter.
        assert run["geometric_distance"][-1] < run["to_ensemble"]["scaled"] < run["to_ensemble"]["thinned"]
        assert run["distance"][0] > run["distance"][1] > run["distance"][2]
    assert json.loads(json.dumps(dropped)) == dropped
    assert len(dropout.draw(dropped).drawing.data) == 7


def test_dropout_that_drops_nothing_is_no_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "SEEDS", 2)
    monkeypatch.setattr(dropout, "SIZES", (1, 4))
    monkeypatch.setattr(mlp, "keep_mask", lambda *_, rows, units, **__: np.full((len(rows), units), 0.5))
    data = dropout.measure(lab_of("dropout", width=16, max_epochs=2))
    assert all(run["to_ensemble"]["thinned"] < 1e-6 for network in data["networks"] for run in network["runs"])
    assert not dropout.claim(data).holds


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda run: run.update(thinned_error=run["ensemble_error"][-1]), "not better than its members"),
        (lambda run: run.update(scaled_error=run["scaled_error"] + 0.3), "is not the ensemble's"),
        (lambda run: run["to_ensemble"].update(scaled=run["to_ensemble"]["thinned"]), "is no nearer to the ensemble"),
    ],
)
def test_other_data_deny_dropout(dropped: Data, change: Any, why: str) -> None:
    data = copy.deepcopy(dropped)
    for run in data["networks"][0]["runs"]:
        change(run)
    denied = dropout.claim(data)
    assert not denied.holds
    assert why in denied.sentence


def test_the_average_of_iterates_is_better_than_they_are(averaged: Data) -> None:
    found = swa.claim(averaged)
    assert found.holds, found.sentence
    for run in averaged["runs"]:
        held_out, train = run["held_out"], run["train"]
        assert held_out["mean_error"] < np.mean(held_out["iterate_error"]) - 0.03
        assert train["mean_loss"] < 0.8 * np.mean(train["iterate_loss"])
        assert held_out["mean_distance"] < 0.7 * held_out["iterate_distance"]
        at = dict(zip([round(t, 6) for t in averaged["line"]], train["line_loss"], strict=True))
        assert at[0.0] == pytest.approx(train["mean_loss"], rel=1e-4)
        assert at[1.0] == pytest.approx(train["iterate_loss"][-1], rel=1e-3)
        assert len(held_out["iterate_loss"]) == len(run["radii"]) == len(run["steps"]) + 1 == 15
    plane = averaged["plane"]
    assert np.shape(plane["train"]) == (5, 5)
    assert json.loads(json.dumps(averaged)) == averaged
    assert len(swa.draw(averaged).drawing.data) == 8


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda run: run["held_out"].update(mean_error=run["held_out"]["iterate_error"][-1]), "does not err less"),
        (lambda run: run["train"].update(mean_loss=run["train"]["iterate_loss"][-1] + 1), "is not below"),
        (lambda run: run["held_out"].update(mean_distance=1.0), "no nearer to the ensemble's"),
        (lambda run: run.update(radii=[0.0, *run["radii"]]), "in no shell"),
    ],
    ids=["error", "loss", "predictions", "shell"],
)
def test_other_data_deny_averaging(averaged: Data, change: Any, why: str) -> None:
    """The first two are what an average would be that is only the last iterate."""
    data = copy.deepcopy(averaged)
    for run in data["runs"]:
        run["held_out"]["iterate_error"][-1] = float(np.mean(run["held_out"]["iterate_error"]))
        change(run)
    denied = swa.claim(data)
    assert not denied.holds
    assert why in denied.sentence


def test_the_plane_passes_through_its_corners(averaged: Data) -> None:
    corners, mean = averaged["plane"]["corners"], averaged["plane"]["mean"]
    assert tuple(corners[0]) == (0.0, 0.0)
    assert corners[1][1] == 0
    inside = torch.tensor([corner[0] for corner in corners]).mean()
    assert abs(mean[0] - float(inside)) < corners[1][0]
