"""Optimizers in torch's own words: the specification of the fused optimizer kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tuner.trial import TrialConfig

ADAM_EPS = 1e-8


class DecoupledAdamW(torch.optim.Optimizer):
    """AdamW whose decay is not scaled by η (slide "Bag of Tips"): w ← w - η v̂/√(ŝ + ε) - λw.

    v̂, ŝ: Adam's first and second moments after bias correction; ε inside the root, as on the slide (torch's AdamW adds
    it outside, and scales the decay by η).
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, v=torch.zeros_like(p), s=torch.zeros_like(p))
                state["step"] += 1
                v: Tensor = state["v"].mul_(beta1).add_(p.grad, alpha=1 - beta1)
                s: Tensor = state["s"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                v_hat, s_hat = v / (1 - beta1 ** state["step"]), s / (1 - beta2 ** state["step"])
                p.sub_(group["lr"] * v_hat / (s_hat + ADAM_EPS).sqrt() + group["weight_decay"] * p)


def make_optimizer(config: TrialConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a configuration names, with two groups of parameters: those that decay, and the others.

    Its learning rate is η as it was drawn: the scaling rule and the schedule are the caller's.
    """
    decaying, others = split_parameters(config, model)
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    lr = config.learning_rate
    if config.optimizer in ("sgd", "nesterov"):
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.optimizer == "nesterov")
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr, alpha=config.beta2, momentum=config.momentum)
    betas = (config.momentum, config.beta2)
    if config.optimizer == "adamw_decoupled":
        return DecoupledAdamW(groups, lr=lr, betas=betas)
    family = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return family(groups, lr=lr, betas=betas)


def split_parameters(config: TrialConfig, model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(parameters that decay, the others): the weights of linear layers, or everything with ``decay_biases``."""
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    parameters = list(model.parameters())
    decaying = [p for p in parameters if config.decay_biases or id(p) in weights]
    chosen = {id(p) for p in decaying}
    return decaying, [p for p in parameters if id(p) not in chosen]
