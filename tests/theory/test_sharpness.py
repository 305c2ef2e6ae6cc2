"""Sharpness against dense Hessians and closed forms."""

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from tuner.learning.metrics import Head
from tuner.learning.mlp import MLP
from tuner.theory.loss import flat_loss
from tuner.theory.sharpness import hessian_product, largest_eigenvalue, sam_sharpness, trace
from tuner.trial import TrialConfig


def network(activation: str = "tanh", norm: str = "none", outputs: int = 3) -> MLP:
    config = TrialConfig(
        learning_rate=0.1, batch_size=8, width=5, depth=2, max_epochs=1, activation=activation, norm=norm, dropout=0.3
    )  # type: ignore[arg-type]
    return MLP(config, 4, outputs, key=11)


def rows(head: Head, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 4, generator=generator)
    return x, torch.randn(n, generator=generator) if head == "square" else torch.arange(n) % 3


@pytest.mark.parametrize("head", ["cross_entropy", "square_of_classes", "square"])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_a_tiny_networks_dense_hessian(head: Head, activation: str, norm: str) -> None:
    """At its initial weights the Hessian has eigenvalues of both signs; each estimate is that of the dense one."""
    module = network(activation, norm, 1 if head == "square" else 3)
    loss, theta = flat_loss(module, head, *rows(head))
    assert theta.numel() == sum(parameter.numel() for parameter in module.parameters())
    dense = hessian(loss, theta)  # row by row: under vmap torch 2.13's second derivative of layer norm is wrong
    eigenvalues = torch.linalg.eigvalsh(dense)
    vector = torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(hessian_product(loss, theta)(vector), dense @ vector)
    found = largest_eigenvalue(loss, theta, iterations=3000, tolerance=1e-10)
    assert found.value == pytest.approx(float(eigenvalues[-1]), rel=1e-3)
    assert found.residual < 0.05 * found.value
    mean, error = trace(loss, theta, samples=400)
    assert mean == pytest.approx(float(dense.trace()), abs=4 * error)
    # The estimator's own variance: twice the squares off the diagonal.
    off = dense - dense.diagonal().diag()
    assert error == pytest.approx(float((2 * (off**2).sum() / 400).sqrt()), rel=0.2)


def test_the_largest_is_not_the_one_of_largest_size() -> None:
    matrix = torch.diag(torch.tensor([-9.0, 1.0, 4.0], dtype=torch.float64))

    def loss(theta: Tensor) -> Tensor:
        return theta @ matrix @ theta / 2

    theta = torch.ones(3, dtype=torch.float64)
    assert largest_eigenvalue(loss, theta, tolerance=1e-9).value == pytest.approx(4)
    assert largest_eigenvalue(lambda t: -9 * t @ t / 2, theta).value == pytest.approx(-9)
    assert largest_eigenvalue(lambda t: 0 * t.sum(), theta).value == 0
    assert trace(loss, theta, samples=4) == (-4, 0), "exact for a diagonal"


@pytest.mark.parametrize("seed", range(8))
def test_eigenvalues_of_both_signs_and_nearly_one_size_are_told_apart(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64)).Q
    spread = torch.cat([torch.linspace(-0.5, 0.5, 28), torch.tensor([-1.0, 0.99])]).double()
    matrix = (basis * spread) @ basis.T
    found = largest_eigenvalue(lambda t: t @ matrix @ t / 2, torch.zeros(30, dtype=torch.float64), seed=seed)
    assert found.value == pytest.approx(0.99, rel=0.02)
    assert found.residual < 0.1


def test_sam_at_a_minimum_leaves_it() -> None:
    """Where the gradient is exactly 0: ½ρ²·λ, λ the largest curvature."""
    A = torch.diag(torch.tensor([1.0, 2.0, 8.0], dtype=torch.float64))
    found = sam_sharpness(lambda t: t @ A @ t / 2, torch.zeros(3, dtype=torch.float64), rho=0.5, steps=20)
    assert found == pytest.approx(0.5 * 0.5**2 * 8, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 20])
def test_sam_on_a_bowl_is_known(steps: int) -> None:
    """L = ½θᵀAθ at a point off the minimum: one step is the gradient's, many find the maximum on the sphere."""
    A = torch.diag(torch.tensor([1.0, 2.0, 8.0], dtype=torch.float64))
    theta = torch.tensor([0.3, 0.2, 0.01], dtype=torch.float64)

    def loss(t: Tensor) -> Tensor:
        return t @ A @ t / 2

    g = A @ theta
    one = 0.5 * g / g.norm()
    expected = float(loss(theta + one) - loss(theta))
    found = sam_sharpness(loss, theta, rho=0.5, steps=steps)
    if steps == 1:
        assert found == pytest.approx(expected)
        return
    directions = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = theta + 0.5 * directions / directions.norm(dim=1, keepdim=True)
    brute = float((torch.einsum("nd,de,ne->n", points, A, points) / 2).max() - loss(theta))
    assert found > expected
    assert found == pytest.approx(brute, rel=0.01)


def test_sam_at_a_maximum_is_none() -> None:
    assert sam_sharpness(lambda t: -(t @ t), torch.tensor([0.0, 1e-9], dtype=torch.float64)) == 0


def test_a_sharper_minimum_is_sharper_by_every_measure() -> None:
    """The same network with its loss 3 times as large: each measure is 3 times as large, but for the ball."""
    loss, theta = flat_loss(network(), "cross_entropy", *rows("cross_entropy"))

    def steeper(t: Tensor) -> Tensor:
        return 3 * loss(t)

    assert largest_eigenvalue(steeper, theta).value == pytest.approx(3 * largest_eigenvalue(loss, theta).value)
    assert trace(steeper, theta, samples=8)[0] == pytest.approx(3 * trace(loss, theta, samples=8)[0])
    assert sam_sharpness(steeper, theta) == pytest.approx(3 * sam_sharpness(loss, theta))
