"""Conclusions from made-up answers: each verdict, and the level at which all intervals hold together."""

from typing import Any

import numpy as np
import pytest
import torch

from tuner.diagnosis.conclusions import conclude
from tuner.diagnosis.effects import effects
from tuner.diagnosis.probes import Probes
from tuner.diagnosis.variants import variants
from tuner.learning.progress import EpochResult
from tuner.refits import Member
from tuner.spec import Metric, parse_spec

K, N = 6, 400
SHIFT = {"shifted": False, "by_time": False, "sentence": "alike"}


def answers(rng: np.random.Generator, error: float, rows: int = N) -> torch.Tensor:
    """Networks that err on this share of rows, all of class 0: other rows for other networks."""
    wrong = torch.from_numpy(rng.random((K, rows)) < error)
    return torch.stack([(~wrong).double(), wrong.double()], dim=2)


def concluded(
    metric: Metric = "error",
    *,
    train: float,
    val: float,
    changed: dict[str, float] | None = None,
    trained: dict[str, float] | None = None,
    rising: bool = False,
    learning_rate: float = 0.01,
) -> dict[str, Any]:
    """The record for errors of the winner on train and validation, and of changes that differ from it."""
    rng = np.random.default_rng(0)
    spec = parse_spec(
        {
            "study": {"name": "s", "metric": metric},
            "data": {"source": "sklearn:iris"},
            "training": {"max_epochs": 8},
            "search": {"trials": 1},
            "space": {
                "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
                "batch_size": 16,
                "width": 8,
                "depth": 2,
                "dropout": 0.2,
            },
        }
    )
    params = spec.search_space.complete({"learning_rate": learning_rate})
    best = Member(trial=3, params=params, config=spec.trial_config(params), value=val, epochs=8)
    tried = variants(best.config, rows=N, classes=True)
    same = answers(rng, val)
    losses = [1.0, 0.5, 0.6, 0.9] if rising else [1.0, 0.5, 0.5, 0.4]
    curves = [
        [
            EpochResult(epoch=i, train_loss=2.0 / i, val_loss=v + 0.01 * rng.random(), value=v)
            for i, v in enumerate(losses, 1)
        ]
        for _ in range(K)
    ]
    sign = 1 if metric == "error" else -1
    of_train = {v.name: (trained or {}).get(v.name, train) for v in tried}
    probes = Probes(
        validation={
            v.name: answers(rng, (changed or {})[v.name]) if v.name in (changed or {}) else same for v in tried
        },
        y=torch.zeros(N, dtype=torch.int64),
        train_scores={
            name: (e if sign == 1 else 1 - e) + 1e-3 * rng.standard_normal(K) for name, e in of_train.items()
        },
        train=(answers(rng, train), torch.zeros(N, dtype=torch.int64)),
        curves=curves,
        rows={v.name: N for v in tried},
        target_sd=1.0,
    )
    record = conclude(spec, best, tried, probes, shift=SHIFT, evaluation=None)
    record["probes"] = probes
    return record


@pytest.mark.parametrize("metric", ["error", "accuracy"])
@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"train": 0.30, "val": 0.30, "changed": {"width_x4": 0.1}, "trained": {"width_x4": 0.1}}, "underfitting"),
        # Wider is better on validation, but no better where it was trained: whatever that is, it is no underfitting.
        ({"train": 0.30, "val": 0.30, "changed": {"width_x4": 0.1}}, "balanced"),
        ({"train": 0.30, "val": 0.30}, "balanced"),
        ({"train": 0.0, "val": 0.30}, "overfitting"),  # the gap is all of it
        ({"train": 0.20, "val": 0.30}, "gap"),
        ({"train": 0.20, "val": 0.30, "changed": {"decay_up": 0.1}}, "overfitting"),
        ({"train": 0.20, "val": 0.30, "rising": True}, "overfitting"),
        ({"train": 0.30, "val": 0.30, "changed": {"decay_up": 0.1}}, "balanced"),  # better, but without a gap
    ],
    ids=["freed", "freed but not on train", "nothing", "all gap", "gap", "held", "rising", "held without gap"],
)
def test_verdicts(metric: Metric, given: dict[str, Any], verdict: str) -> None:
    assert concluded(metric, **given)["fit"]["verdict"] == verdict


def test_all_intervals_hold_together() -> None:
    record = concluded(train=0.1, val=0.3, changed={"width_x4": 0.25, "decay_up": 0.28})
    probes, m = record["probes"], record["comparisons"]
    assert m == len(record["effects"]) > 10
    base, own = probes.validation["winner"], probes.validation["width_x4"]
    (found,) = effects("error", base, {"x": own}, probes.y, level=0.05 / m).values()
    (shown,) = [effect for effect in record["effects"] if effect["name"] == "width_x4"]
    assert shown["half_width"] == pytest.approx(found.half_width)
    assert (shown["low"], shown["high"]) == pytest.approx(
        (found.mean - found.half_width, found.mean + found.half_width)
    )


def test_questions_and_advice_name_the_best_evidence() -> None:
    record = concluded(
        train=0.0, val=0.3, changed={"decay_up": 0.2, "dropout_up": 0.1, "rows_/2": 0.45, "epochs_x2": 0.5}
    )
    asked = record["questions"]
    assert asked["more regularization"]["answer"] == "yes"
    assert asked["more regularization"]["evidence"].startswith("dropout 0.2 → 0.4: ")
    assert asked["more data"]["answer"] == "yes"
    assert asked["longer training"]["answer"] == "no"
    assert asked["more capacity"]["answer"] == "unseen"
    assert [line.split(":")[0] for line in record["advice"][:2]] == [
        "dropout 0.2 → 0.4",
        record["advice"][1].split(":")[0],
    ]
    assert "weight decay" in record["advice"][1]
    assert record["advice"][2].startswith("collect more rows")


@pytest.mark.parametrize(
    ("learning_rate", "side", "beyond", "wider"),
    [(0.0012, "lower", "rate_/3", "downwards"), (0.09, "upper", "rate_x3", "upwards"), (0.01, None, "rate_x3", "")],
)
def test_a_winner_at_the_edge_of_its_range(learning_rate: float, side: str | None, beyond: str, wider: str) -> None:
    """It is told in any case, and to widen the range only where beyond it was seen to be better."""
    for error, better in ((0.1, True), (0.3, False), (0.5, False)):
        record = concluded(train=0.3, val=0.3, changed={beyond: error}, learning_rate=learning_rate)
        (tip,) = [tip for tip in record["tips"] if tip["name"] == "edge_learning_rate"]
        assert tip["applies"] == (side is not None)
        if side is None:
            assert tip["evidence"].endswith("lies inside")
        else:
            assert f"lies at the {side} edge; beyond it: " in tip["evidence"]
        advice = f"widen the range of learning_rate {wider} and search on" if side and better else None
        assert tip["advice"] == advice
