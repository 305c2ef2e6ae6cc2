"""The claim about measures holds of what is measured, and not where they, or the gaps, are other ones."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.demonstrations.labs import small_lab
from tuner import strict_json
from tuner.demonstrations import complexity as shown
from tuner.errors import BadInputError

SMALL = {"training": {"max_epochs": 50}, "space": {"learning_rate": {"choices": [4e-3, 5e-3]}}}


@pytest.fixture(scope="module", name="data")
def _data() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown, "FRACTIONS", (0.0, 1.0))
        patch.setattr(shown, "SEEDS", 2)
        measured: dict[str, Any] = json.loads(strict_json.dumps(shown.measure(small_lab("complexity", SMALL))))
    return measured


def test_it_holds_of_what_is_measured(data: dict[str, Any]) -> None:
    found = shown.claim(data)
    assert found.holds
    assert shown.agreement(data, "parameters") is None
    assert all(network["values"]["pac_bayes_gap"] > network["gap"] for network in data["networks"]), "it is a bound"
    assert all(row["formula"] and row["source"] for row in data["measures"])
    assert [row["name"] for row in data["measures"]] == list(data["networks"][0]["values"])
    assert len(shown.draw(data).drawing.data) == len(data["measures"]) + 2


def test_other_data_deny_it(data: dict[str, Any]) -> None:
    unfitted, opposite, level, counted = (copy.deepcopy(data) for _ in range(4))
    unfitted["networks"][-1]["training_error"] = 0.2
    for i, network in enumerate(reversed(data["networks"])):
        opposite["networks"][i]["values"] = network["values"]
        level["networks"][i]["gap"] = 0.02 + 0.001 * i
        counted["networks"][i]["values"]["parameters"] = 1000 + i
    for broken, why in (
        (unfitted, "a network still errs on 20 % of its train rows"),
        (opposite, "measures agree with the gap (τ ≥ 0.5)"),
        (level, "the gap does not grow"),
        (counted, "the number of parameters differs"),
    ):
        denied = shown.claim(broken)
        assert not denied.holds
        assert why in denied.sentence


def test_an_undefined_measure_agrees_with_nothing(data: dict[str, Any]) -> None:
    broken = copy.deepcopy(data)
    broken["networks"][0]["values"]["margin"] = None  # a margin that is not above 0
    assert shown.agreement(broken, "margin") is None
    assert "margin undefined" in shown.claim(broken).sentence
    shown.draw(broken)


def test_plain_networks_only() -> None:
    lab = small_lab("complexity", {})
    normalised = replace(lab.winner, config=replace(lab.winner.config, norm="layer"))
    with pytest.raises(BadInputError, match="these measures are of plain networks, and the winner has layer norm"):
        shown.measure(replace(lab, ranked=[normalised]))
