"""Double descent and implicit regularization: measured with fewer widths, ways and seeds, and denied by other data."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.demonstrations.labs import lab_of
from tuner.demonstrations import double_descent, implicit_regularization
from tuner.demonstrations.demonstration import Data
from tuner.demonstrations.double_descent import turning_points
from tuner.demonstrations.implicit_regularization import WAYS, rank_correlation


@pytest.fixture(scope="module")
def descended() -> Data:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(double_descent, "SIZES", (0.1, 0.3, 1.2, 6.0))
        patch.setattr(double_descent, "DRAWS", 4)
        return double_descent.measure(lab_of("double_descent", learning_rate=4e-3, max_epochs=1500))


def test_error_falls_rises_to_the_threshold_and_falls_below_where_it_was(descended: Data) -> None:
    assert descended["threshold"] == 10 * descended["train_rows"] == 3050
    found = double_descent.claim(descended)
    assert found.holds, found.sentence
    first, valley, peak, last = (np.mean(point["held_out_error"]) for point in descended["points"])
    assert first > valley + 0.1
    assert peak > valley + 0.03
    assert last < peak - 0.1
    assert last < valley - 0.02
    assert [round(point["parameters"] / 3050, 1) for point in descended["points"]] == [0.1, 0.3, 1.2, 6.0]
    assert max(descended["points"][-1]["train_error"]) == 0
    assert json.loads(json.dumps(descended)) == descended
    assert len(double_descent.draw(descended).drawing.data) == 5


def without_peak(data: Data) -> None:
    data["points"][2]["held_out_error"] = data["points"][1]["held_out_error"]


def without_second_descent(data: Data) -> None:
    data["points"][3]["held_out_error"] = data["points"][2]["held_out_error"]


def not_below_the_valley(data: Data) -> None:
    data["points"][3]["held_out_error"] = data["points"][1]["held_out_error"]


def elsewhere(data: Data) -> None:
    data["threshold"] *= 5


def unfitted(data: Data) -> None:
    data["points"][3]["train_error"][2] = 1 / 305


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without_peak, "the error does not rise again"),
        (without_second_descent, "it does not fall beyond it"),
        (not_below_the_valley, "not better than the best of the small ones"),
        (elsewhere, "its peak is not near the threshold but at 0.24 times it"),
        (unfitted, "do not fit every row"),
    ],
)
def test_other_data_deny_double_descent(descended: Data, change: Callable[[Data], None], why: str) -> None:
    data = copy.deepcopy(descended)
    change(data)
    denied = double_descent.claim(data)
    assert not denied.holds
    assert "double descent did not appear as on the slide, because " in denied.sentence
    assert why in denied.sentence


def test_noise_alone_is_no_double_descent() -> None:
    """Curves that only fall, with seeds that differ: hardly one of a hundred passes."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        points = [
            {
                "parameters": 100 * 2**i,
                "held_out_error": (0.5 - 0.03 * i + 0.03 * rng.standard_normal(4)).tolist(),
                "train_error": [0.0] * 4,
            }
            for i in range(10)
        ]
        held += double_descent.claim({"points": points, "threshold": 3000}).holds
    assert held <= 3


def test_turning_points() -> None:
    assert turning_points([5, 3, 4, 1]) == (1, 2, 3)
    assert turning_points([5, 4, 3, 2]) == (0, 1, 3)


@pytest.fixture(scope="module")
def trained() -> Data:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(implicit_regularization, "WAYS", tuple(way for way in WAYS if way.name != "Adam, batch 8"))
        patch.setattr(implicit_regularization, "SEEDS", 3)
        patch.setattr(implicit_regularization, "SAMPLES", 16)
        patch.setattr(implicit_regularization, "TARGET", 1e-3)
        return implicit_regularization.measure(lab_of("implicit_regularization", width=32))


def test_optimizers_find_minima_that_differ_in_what_flatness_tells(trained: Data) -> None:
    found = implicit_regularization.claim(trained)
    assert found.holds, found.sentence
    runs = [run for way in trained["ways"] for run in way["runs"] if run is not None]
    assert all(run["train_loss"] <= 1e-3 for run in runs)
    assert all(run["eigenvalue"] < run["trace"] + 3 * run["trace_error"] for run in runs), "a minimum has no maximum"
    by_way = [
        np.mean([run["held_out_error"] for run in way["runs"]]) for way in trained["ways"] if None not in way["runs"]
    ]
    assert max(by_way) > min(by_way) + 0.03
    assert json.loads(json.dumps(trained)) == trained
    assert len(implicit_regularization.draw(trained).drawing.data) == 18


def equal_errors(data: Data) -> None:
    for way in data["ways"]:
        for i, run in enumerate(way["runs"]):
            run["held_out_error"] = 0.1 + i / 1000


def sharper_is_better(data: Data) -> None:
    for way in data["ways"]:
        for run in way["runs"]:
            run["trace"] = -run["trace"]


def not_fitted(data: Data) -> None:
    data["ways"][0]["runs"][0]["train_error"] = 0.01


def never_there(data: Data) -> None:
    for way in data["ways"][:-3]:
        way["runs"][0] = None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (equal_errors, "they differ by no more than seeds do"),
        (sharper_is_better, "that flatter minima do better did not appear"),
        (not_fitted, "some err on up to 1.0 % of the training rows"),
        (never_there, "because only 3 of 6 came to a training loss"),
    ],
)
def test_other_data_deny_implicit_regularization(trained: Data, change: Callable[[Data], None], why: str) -> None:
    data = copy.deepcopy(trained)
    change(data)
    denied = implicit_regularization.claim(data)
    assert not denied.holds
    assert why in denied.sentence


def test_a_way_that_does_not_get_there_is_left_out_and_named(trained: Data) -> None:
    data: dict[str, Any] = copy.deepcopy(trained)
    data["ways"][0]["runs"][1] = None
    assert (
        f"({WAYS[0].name} did not get there from every seed and is left out)"
        in implicit_regularization.claim(data).sentence
    )
    assert implicit_regularization.draw(data).drawing.data


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    a, b = [0.3, 0.1, 0.7, 0.5, 0.2], [3.0, 1.0, 5.0, 2.0, 2.0]
    assert rank_correlation(a, b)[0] == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == (0.0, 1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == (-1.0, 1.0)
