"""Values and derivatives against torch's modules and autograd."""

from typing import get_args

import pytest
import torch

from tuner.learning.activations import module, value, value_and_derivative
from tuner.trial import Activation

Z = torch.linspace(-4, 4, 81, dtype=torch.float64)


@pytest.mark.parametrize("name", get_args(Activation))
def test_values_and_derivatives(name: Activation) -> None:
    z = Z.clone().requires_grad_()
    out = module(name)(z)
    out.sum().backward()
    a, derivative = value_and_derivative(name, Z)
    assert torch.allclose(a, out.detach(), rtol=0, atol=1e-13)
    assert torch.allclose(value(name, Z), a, rtol=0, atol=1e-13)
    assert z.grad is not None
    assert torch.allclose(derivative, z.grad, rtol=0, atol=1e-13)


def test_step_is_a_step_with_a_straight_through_gradient() -> None:
    a, derivative = value_and_derivative("step", Z)
    assert a.unique().tolist() == [0, 1]
    assert derivative.unique().tolist() == [1]
