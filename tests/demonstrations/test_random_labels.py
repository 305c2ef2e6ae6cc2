"""The claim about random labels is its data's: it holds of what a network does, and not of what a broken one would."""

import copy
from typing import Any

import pytest

from tuner.demonstrations.random_labels import claim, draw


def measured() -> dict[str, Any]:
    """What two draws of a network that fits everything look like."""
    names = ["true labels", "random labels", "shuffled pixels", "random pixels", "Gaussian inputs"]
    held_out = [[0.02, 0.03], [0.91, 0.89], [0.03, 0.02], [0.4, 0.45], [0.9, 0.91]]
    versions = [
        {
            "version": name,
            "train_loss": [2.0, 0.1],
            "train_error": [0.5, 0.0],
            "final_train_error": [0.0, 0.0],
            "held_out_error": errors,
            "fitted_at": 10,
        }
        for name, errors in zip(names, held_out, strict=True)
    ]
    fractions = [
        {"fraction": 0.0, "train_error": [0.0, 0.0], "held_out_error": [0.02, 0.03]},
        {"fraction": 1.0, "train_error": [0.0, 0.0], "held_out_error": [0.91, 0.89]},
    ]
    sizes = {"classes": 10, "chance": 0.9, "train_rows": 1079, "held_out_rows": 359, "width": 256, "depth": 2}
    return {"epochs": [1, 60], **sizes, "versions": versions, "fractions": fractions}


def test_it_holds() -> None:
    found = claim(measured())
    assert found.holds
    assert "its training error is exactly 0 from epoch 10 on" in found.sentence
    assert "held out it errs on 90.0 % where chance errs on 90.0 ± 1.1 %" in found.sentence
    assert len(draw(measured()).drawing.data) == 12


@pytest.mark.parametrize(
    ("version", "key", "value", "why"),
    [
        (
            "random labels",
            "final_train_error",
            [0.0, 1 / 1079],
            "still errs on up to 0.046 % of the train rows of random",
        ),
        ("Gaussian inputs", "final_train_error", [0.1, 0.1], "of the train rows of Gaussian inputs"),
        ("random labels", "held_out_error", [0.5, 0.5], "held out it errs on 50.0 %"),  # true labels were trained on
        ("random labels", "held_out_error", [0.85, 0.85], "held out it errs on 85.0 %"),
        ("true labels", "held_out_error", [0.9, 0.9], "90.0 % when it was trained on true labels"),
    ],
)
def test_other_data_deny_it(version: str, key: str, value: list[float], why: str) -> None:
    data = copy.deepcopy(measured())
    (found,) = [row for row in data["versions"] if row["version"] == version]
    found[key] = value
    denied = claim(data)
    assert not denied.holds
    assert "did not appear, because" in denied.sentence
    assert why in denied.sentence
