"""The plain model is an ordinary one: torch's layers, torch's initialisation, torch's dropout in distribution."""

import math

import torch
from torch import nn

from tests.learning.packs import make_config
from tuner.learning.mlp import MLP, CounterDropout, DropoutCounter
from tuner.learning.randomness import lane_key


def test_layers() -> None:
    model = MLP(make_config(depth=3, width=7, activation="gelu"), 5, 2, key=1)
    shapes = [tuple(linear.weight.shape) for linear in model.linears()]
    assert shapes == [(2, 7), (7, 5), (7, 7), (7, 7)]
    assert sum(isinstance(m, nn.GELU) for m in model.modules()) == 3
    assert model(torch.zeros(4, 5)).shape == (4, 2)


def test_initialisation_has_the_law_of_nn_linear() -> None:
    config = make_config(width=400, depth=1)
    ours, torchs = MLP(config, 100, 10, key=lane_key(0, 0)).linears()[1], nn.Linear(100, 400)
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
