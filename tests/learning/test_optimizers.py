"""Our one own optimizer against the slide's formula, and who decays."""

import torch
from torch import nn

from tests.learning.packs import make_config
from tuner.learning.mlp import MLP
from tuner.learning.optimizers import DecoupledAdamW, make_optimizer, split_parameters


def test_decoupled_adamw_is_the_slides_formula() -> None:
    """w <- w - η v̂/√(ŝ + ε) - λw; two steps by hand."""
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = DecoupledAdamW([{"params": [w], "weight_decay": 0.01}], lr=0.1, betas=(0.9, 0.99))
    expected, v, s = w.detach().clone(), torch.zeros(2), torch.zeros(2)
    for t, g in enumerate((torch.tensor([0.5, 3.0]), torch.tensor([-1.0, 2.0])), start=1):
        w.grad = g.double()
        optimizer.step()
        v, s = 0.9 * v + 0.1 * g, 0.99 * s + 0.01 * g * g
        v_hat, s_hat = v.double() / (1 - 0.9**t), s.double() / (1 - 0.99**t)
        expected = expected - 0.1 * v_hat / (s_hat + 1e-8).sqrt() - 0.01 * expected
        assert torch.allclose(w.detach(), expected, rtol=1e-6)


def test_its_decay_is_not_scaled_by_the_learning_rate_and_torchs_is() -> None:
    shrunk = {}
    for name in ("adamw", "adamw_decoupled"):
        config = make_config(optimizer=name, learning_rate=1e-6, weight_decay=0.1)
        model = MLP(config, 3, 2, key=1)
        before = model.head.weight.detach().clone()
        optimizer = make_optimizer(config, model)
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        shrunk[name] = (model.head.weight / before).mean().item()
    assert shrunk["adamw"] > 0.999
    assert abs(shrunk["adamw_decoupled"] - 0.9) < 0.001


def test_biases_and_norms_decay_only_if_asked() -> None:
    for asked in (False, True):
        config = make_config(norm="layer", decay_biases=asked)
        model = MLP(config, 3, 2, key=1)
        decaying, others = split_parameters(config, model)
        assert sum(p.ndim == 1 for p in decaying) == (6 + 1 if asked else 0)
        assert len(decaying) + len(others) == len(list(model.parameters()))
