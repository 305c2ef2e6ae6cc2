"""The claim about capacity holds of what is measured, and not where the U, the bias or the variance is another."""

import copy
from typing import Any

import numpy as np
import pytest

from tests.demonstrations.labs import small_lab
from tuner.demonstrations import bias_variance as shown

SMALL = {"training": {"max_epochs": 500}, "space": {"width": {"choices": [1, 4, 64]}}}


@pytest.fixture(scope="module", name="data")
def _data() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown, "SETS", 16)
        patch.setattr(shown, "FRESH", 500)
        return shown.measure(small_lab("bias_variance", SMALL))


def test_the_three_parts_add_up_to_the_measured_risk(data: dict[str, Any]) -> None:
    for row in data["capacities"]:
        assert row["bias"] + row["variance"] + row["noise"] == pytest.approx(np.mean(row["risks"]), abs=1e-12)
        assert row["risk"] == pytest.approx(np.mean(row["risks"]), abs=1e-12)


def test_it_holds_of_what_is_measured(data: dict[str, Any]) -> None:
    assert shown.claim(data).holds
    bias, variance = ([row[key] for row in data["capacities"]] for key in ("bias", "variance"))
    assert bias[0] > 3 * bias[-1]
    assert variance[-1] > 3 * variance[0]
    assert shown.claim(data).sentence.startswith("the risk is U-shaped: over 16 training sets of 120 rows")
    assert len(shown.draw(data).drawing.data) == 5


@pytest.mark.parametrize(
    ("take", "why"),
    [
        (slice(1, None), "the smallest network is not seen to be worse"),
        (slice(None, 2), "the largest network is not seen to be worse"),
        (slice(None, None, -1), "the bias does not fall, and the variance does not rise"),
    ],
)
def test_other_data_deny_it(data: dict[str, Any], take: slice, why: str) -> None:
    broken = copy.deepcopy(data)
    broken["capacities"] = broken["capacities"][take]
    denied = shown.claim(broken)
    assert not denied.holds
    assert f"the U-shape did not appear, because {why}" in denied.sentence


def test_one_training_set_has_no_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken implementation that trained every lane on the same rows from the same weights would be noticed."""
    monkeypatch.setattr(shown, "SETS", 3)
    monkeypatch.setattr(shown, "FRESH", 50)
    lab = small_lab("bias_variance", {"training": {"max_epochs": 20}, "space": {"width": {"choices": [1, 8]}}})
    real, whole = shown._training_sets, type(lab).lane

    def same(of: Any) -> Any:
        training, *rest = real(of)
        return [training[0]] * len(training), *rest

    monkeypatch.setattr(shown, "_training_sets", same)
    monkeypatch.setattr(
        type(lab), "lane", lambda self, n, config, *, seed, fold=0: whole(self, n, config, seed=0 * seed, fold=fold)
    )
    data = shown.measure(lab)
    assert max(row["variance"] for row in data["capacities"]) < 1e-9
    assert not shown.claim(data).holds


def test_classes_and_data_without_a_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "SETS", 4)
    lab = small_lab("rademacher", {"training": {"max_epochs": 3}, "space": {"width": {"choices": [1, 8]}}})
    data = shown.measure(lab)
    assert (data["loss"], data["truth"], data["train_rows"]) == ("zero-one", False, 170)
    for row in data["capacities"]:
        assert row["bias"] + row["variance"] == pytest.approx(np.mean(row["risks"]), abs=1e-12)
    assert "the noise is" not in shown.claim(data).sentence
    assert shown.draw(data).drawing.data[0].name == "bias + noise"
