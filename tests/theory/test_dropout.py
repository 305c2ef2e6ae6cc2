"""The ensemble of thinned networks: identities where they hold, and the scaled network where it only approximates."""

import itertools

import pytest
import torch

from tests.theory.networks import network, rows
from tuner.theory.dropout import ensemble_probabilities, geometric_mean, scaled, thinned


def every_mask(width: int, p: float) -> list[tuple[float, torch.Tensor]]:
    """All masks of a layer, each with its probability; kept units are scaled as in training."""
    masks = [torch.tensor(bits, dtype=torch.float64) for bits in itertools.product([0.0, 1.0], repeat=width)]
    return [(float((1 - p) ** m.sum() * p ** (width - m.sum())), m / (1 - p)) for m in masks]


def test_thinned_networks_have_one_mask_each_and_drop_the_right_share() -> None:
    module, x = network(width=16, depth=1, dropout=0.3, outputs=16), rows(5)
    with torch.no_grad():
        module.head.weight.copy_(torch.eye(16))
        module.head.bias.zero_()
    answers = thinned(module, x, 400)
    hidden = scaled(module, x)
    kept = torch.where(hidden[None] == 0, torch.nan, answers / hidden[None])
    shares = kept.nanmean((0, 1))
    assert ((kept.isnan()) | (kept == 0) | torch.isclose(kept, torch.tensor(1 / 0.7, dtype=torch.float64))).all()
    assert torch.nan_to_num(shares, 1.0) == pytest.approx(torch.ones(16), abs=5 * (0.3 / 0.7 / 400) ** 0.5)
    for columns in kept.nan_to_num(-1):  # one network's rows, unit by unit; -1 is a unit that is silent anyway
        for column in columns.T:
            live = column[column >= 0]
            assert not len(live) or live.max() - live.min() < 1e-9, "one mask for every row"
    assert not torch.equal(answers[0], answers[1])
    assert not module.training


def test_below_the_head_alone_the_scaled_network_is_the_ensemble() -> None:
    """One hidden layer: the mean over all 2^H masks is the scaled output, exactly; the Monte Carlo mean approaches it
    as 1/√S, and the geometric mean of the probabilities with it.
    """
    module, x, p = network(width=5, depth=1, dropout=0.4, activation="tanh"), rows(7), 0.4
    with torch.no_grad():
        hidden = torch.tanh(module.hidden[0].linear(x))  # type: ignore[union-attr, operator]
        mean = sum(share * module.head(hidden * mask) for share, mask in every_mask(5, p))
    assert isinstance(mean, torch.Tensor)
    torch.testing.assert_close(mean, scaled(module, x))
    answers = thinned(module, x, 3000)
    error = answers.std(0) / 3000**0.5
    assert ((answers.mean(0) - scaled(module, x)).abs() < 5 * error).all()
    few = (answers[:30].mean(0) - scaled(module, x)).pow(2).mean().sqrt()
    many = (answers.mean(0) - scaled(module, x)).pow(2).mean().sqrt()
    assert many < few / 4
    torch.testing.assert_close(geometric_mean(answers), torch.softmax(scaled(module, x), -1), atol=0.05, rtol=0)
    assert ensemble_probabilities(answers).sum(-1) == pytest.approx(torch.ones(7))


def test_the_means_differ_where_networks_disagree() -> None:
    answers = torch.tensor([[[4.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    arithmetic, geometric = ensemble_probabilities(answers)[0, 0], geometric_mean(answers)[0, 0]
    assert float(arithmetic) == pytest.approx((1 / (1 + torch.e**-4) + 1 / (1 + torch.e**1)) / 2)
    assert float(geometric) == pytest.approx(1 / (1 + torch.e**-1.5))


def test_a_network_without_dropout_has_one_thinned_network() -> None:
    module, x = network(depth=2), rows(4)
    answers = thinned(module, x, 3)
    torch.testing.assert_close(answers, scaled(module, x).expand(3, -1, -1))
