"""The claim about random signs holds of what is measured, and not where classes, bounds or rates are other ones."""

import copy
from typing import Any

import pytest

from tests.demonstrations.labs import small_lab
from tuner.demonstrations import rademacher as shown
from tuner.errors import BadInputError

SMALL = {"training": {"max_epochs": 100}, "space": {"width": {"choices": [1, 64]}}}


@pytest.fixture(scope="module", name="data")
def _data() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown, "DRAWS", 3)
        patch.setattr(shown, "SEEDS", 2)
        patch.setattr(shown, "SIGMAS", 300)
        return shown.measure(small_lab("rademacher", SMALL))


def test_it_holds_of_what_is_measured(data: dict[str, Any]) -> None:
    found = shown.claim(data)
    assert found.holds
    narrow, wide = data["widths"]
    assert narrow["complexity"] < 0.5 < 0.9 < wide["complexity"] <= 1
    assert wide["bound"] == pytest.approx(wide["complexity"] + 3 * (3.688879 / (2 * 341)) ** 0.5, abs=1e-4)
    assert all(gap < 0.15 for row in data["widths"] for gap in row["gaps"])
    assert "says nothing, since no error is above 1" in found.sentence
    assert len(shown.draw(data).drawing.data) == 5


def test_other_data_deny_it(data: dict[str, Any]) -> None:
    flat, violated, loose, constant = (copy.deepcopy(data) for _ in range(4))
    flat["widths"][1]["complexity"] = flat["widths"][0]["complexity"]
    violated["widths"][0]["gaps"] = [0.9, 0.9]
    loose["linear"][0]["complexity"] = 1.1 * loose["linear"][0]["bound"]
    for row in constant["linear"]:
        row["complexity"] = 0.1
    for broken, why in (
        (flat, "wider networks are not seen to fit random signs better"),
        (violated, "a measured gap is above its bound"),
        (loose, "the linear class is above its bound"),
        (constant, "the linear class does not fall as the root of n"),
    ):
        denied = shown.claim(broken)
        assert not denied.holds
        assert why in denied.sentence


def test_it_is_of_two_classes() -> None:
    with pytest.raises(BadInputError, match="the bound is for two classes, and its target has 10"):
        shown.measure(small_lab("complexity", {}))
    with pytest.raises(BadInputError, match="this demonstration is of classes, and metric mse is of numbers"):
        shown.measure(small_lab("gaussian_mixture_risk", {}))
