"""The plain model is an ordinary one: torch's layers, torch's initialisation, torch's dropout in distribution."""

import math

import pytest
import torch
from torch import nn

from tests.learning.packs import make_config
from tuner.learning.mlp import MLP, CounterDropout, DropoutCounter
from tuner.learning.randomness import lane_key


def test_layers() -> None:
    model = MLP(make_config(depth=3, width=7, activation="gelu", norm="layer"), 5, 2, key=1)
    assert [tuple(block.linear.weight.shape) for block in model.hidden] == [(7, 5), (7, 7), (7, 7)]
    assert model.head.weight.shape == (2, 7)
    assert sum(isinstance(m, nn.GELU) for m in model.modules()) == 3
    assert sum(isinstance(m, nn.LayerNorm) for m in model.modules()) == 3
    assert model(torch.zeros(4, 5)).shape == (4, 2)


def test_residual_layers_add_their_input() -> None:
    model = MLP(make_config(depth=2, width=6, residual=True), 5, 2, key=1)
    first, second = model.hidden
    x = torch.randn(3, 5)
    below = first(x)
    assert torch.equal(second(below), below + second.activation(second.linear(below)))
    assert torch.equal(below, first.activation(first.linear(x))), "the first layer has another width than its input"


def test_batch_normalisation_has_no_bias_before_it() -> None:
    model = MLP(make_config(norm="batch"), 5, 2, key=1)
    assert all(block.linear.bias is None for block in model.hidden)


@pytest.mark.parametrize("initialization", ["xavier", "he"])
def test_initialisations_equal_torchs_in_distribution(initialization: str) -> None:
    linear = (
        MLP(make_config(width=300, depth=1, initialization=initialization), 200, 2, key=lane_key(0, 0)).hidden[0].linear
    )
    theirs = torch.empty(300, 200)
    if initialization == "xavier":
        nn.init.xavier_uniform_(theirs)
    else:
        nn.init.kaiming_uniform_(theirs, nonlinearity="relu")
    assert linear.weight.std().item() == pytest.approx(theirs.std().item(), rel=0.02)
    assert linear.weight.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    assert not linear.bias.any()


def test_initialisation_has_the_law_of_nn_linear() -> None:
    config = make_config(width=400, depth=1)
    ours, torchs = MLP(config, 100, 10, key=lane_key(0, 0)).hidden[0].linear, nn.Linear(100, 400)
    for name in ("weight", "bias"):
        a, b = getattr(ours, name).detach(), getattr(torchs, name).detach()
        bound = 1 / math.sqrt(100)
        assert a.abs().max() <= bound
        assert b.abs().max() <= bound
        assert abs(a.std() - b.std()) < 0.1 * bound


def test_models_of_different_keys_differ_and_of_one_key_agree() -> None:
    config = make_config()
    first, again, other = (MLP(config, 5, 2, key).head.weight for key in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_dropout_scales_what_it_keeps_and_is_off_in_evaluation() -> None:
    counter = DropoutCounter(epoch=1, start=0)
    dropout = CounterDropout(lane_key(0, 0), 1, 0.25, counter)
    x = torch.ones(2000, 50)
    out = dropout(x)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(out.mean().item() - 1) < 0.01
    counter.start = 2000
    assert not torch.equal(dropout(x), out), "the next batch has another mask"
    assert torch.equal(dropout.eval()(x), x)
