"""The claim about empirical risks holds of what is measured, and not where risks, rates or means are other ones."""

import copy
import json
from typing import Any

import pytest

from tests.demonstrations.labs import small_lab
from tuner.data.synthetic import Moments
from tuner.demonstrations import law_of_large_numbers as shown
from tuner.errors import BadInputError

SMALL = {"training": {"max_epochs": 5}, "space": {"width": 16, "depth": 1}}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "SAMPLES", 100)
    monkeypatch.setattr(shown, "FRESH", 100_000)
    monkeypatch.setattr(shown, "SIZES", (10, 50, 250, 1250))


@pytest.fixture(scope="module", name="data")
def _data() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown, "SAMPLES", 100)
        patch.setattr(shown, "FRESH", 100_000)
        patch.setattr(shown, "SIZES", (10, 50, 250, 1250))
        measured: dict[str, Any] = json.loads(json.dumps(shown.measure(small_lab("gaussian_mixture_risk", SMALL))))
    return measured


def test_it_holds_of_what_is_measured(data: dict[str, Any]) -> None:
    assert data["linear"]["expected"] == pytest.approx(0.3), "the slide's R(θ) = 5θ² - 2θ + ½ at θ = 0.2"
    found = shown.claim(data)
    assert found.holds
    assert "is 0.3 = R(θ) on average" in found.sentence
    assert data["network"]["expected"] > data["irreducible"] - 4 * data["network"]["standard_error"]
    assert len(shown.draw(data).drawing.data) == 9


@pytest.mark.parametrize("part", ["linear", "network"])
def test_other_data_deny_it(data: dict[str, Any], part: str) -> None:
    shifted, stuck, fast = (copy.deepcopy(data) for _ in range(3))
    shifted[part]["expected"] *= 1.05
    for i, row in enumerate(stuck[part]["sizes"]):
        row["sd"] = stuck[part]["sizes"][0]["sd"]
        fast[part]["sizes"][i]["sd"] /= fast[part]["sizes"][i]["n"] ** 0.25
    for broken in (shifted, stuck, fast):
        assert not shown.claim(broken).holds
        assert "did not appear, because" in shown.claim(broken).sentence


def test_a_wrong_closed_form_denies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Moments.risk
    monkeypatch.setattr(Moments, "risk", lambda self, theta, b: right(self, theta, b) + 0.01)
    assert not shown.claim(shown.measure(small_lab("gaussian_mixture_risk", SMALL))).holds


def test_it_needs_a_known_truth() -> None:
    with pytest.raises(BadInputError, match="needs data of a known truth, and its source is sklearn:digits"):
        shown.measure(small_lab("complexity", {}))
