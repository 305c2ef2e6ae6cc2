"""What regularizers do, against closed forms: linear networks, brute force, weights that are set by hand."""

import math

import pytest
import torch

from tests.theory.networks import network, rows
from tuner.theory.regularizers import (
    adversarial_margins,
    input_gradient_norm,
    input_jacobian,
    linear_limit,
    linear_share,
    median_margin,
    near_zero_share,
    weight_norm,
    weights,
)


def test_norm_and_sparsity_count_weights_alone() -> None:
    module = network(features=2, outputs=2, width=2, depth=1, norm="layer")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(5.0)  # biases, gains and shifts count for nothing
        module.head.weight.copy_(torch.tensor([[3.0, 0.0], [0.005, -0.02]]))
        module.hidden[0].linear.weight.copy_(torch.tensor([[0.0, -0.01], [4.0, 0.0]]))  # type: ignore[union-attr]
    assert len(weights(module)) == 8
    assert weight_norm(module) == pytest.approx(math.sqrt(9 + 16 + 0.005**2 + 0.02**2 + 0.01**2))
    assert near_zero_share(module) == 5 / 8
    assert near_zero_share(module, 0.05) == 6 / 8


def test_linear_share_counts_units_in_every_layer() -> None:
    limit = linear_limit()
    assert math.tanh(limit) / limit == pytest.approx(0.95)
    module = network(features=1, width=2, depth=2, activation="tanh")
    with torch.no_grad():
        first, second = (block.linear for block in module.hidden)  # type: ignore[union-attr]
        first.weight.copy_(torch.tensor([[1.0], [10.0]]))
        first.bias.zero_()  # type: ignore[union-attr]
        second.weight.zero_()
        second.bias.copy_(torch.tensor([0.0, limit * 1.01]))  # type: ignore[union-attr]
    x = torch.tensor([[0.3], [0.03], [3.0], [0.0]], dtype=torch.float64)
    # First layer: |x| of 3 rows, 10|x| of 2 rows are small; second: its first unit in all 4 rows, the other in none.
    assert linear_share(module, x) == (3 + 2 + 4 + 0) / 16
    with pytest.raises(ValueError, match="tanh"):
        linear_share(network(activation="relu"), rows())


def test_weights_that_shrink_make_the_network_linear_and_flat() -> None:
    """Slide "Interpretation: Linearity": with w → 0, φ(wx) → wx."""
    module, x = network(activation="tanh"), rows()
    before = linear_share(module, x), input_gradient_norm(module, x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 0.1
    assert before[0] < linear_share(module, x) == 1
    assert input_gradient_norm(module, x) < before[1] / 100


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_jacobian_is_the_difference_quotient(norm: str) -> None:
    module, x, h = network(activation="gelu", norm=norm, dropout=0.5), rows(6), 1e-6
    jacobian = input_jacobian(module, x)
    for d in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[d] = h
        with torch.no_grad():
            quotient = (module(x + step) - module(x - step)) / (2 * h)
        torch.testing.assert_close(jacobian[:, :, d], quotient, rtol=1e-6, atol=1e-8)
    norms = [float(torch.linalg.matrix_norm(matrix)) for matrix in jacobian]
    assert input_gradient_norm(module, x) == pytest.approx(sum(norms) / 6)


def test_margins_of_a_linear_network_are_distances_to_its_boundaries() -> None:
    """tanh of tiny numbers is linear: the margin is what the point-to-plane formula says, and moving there ties."""
    module = network(width=6, depth=1, activation="tanh")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 1e-3
        module.head.weight *= 1e3
    x = rows(30)
    with torch.no_grad():
        y = module(x).argmax(1)
    W = (module.head.weight @ module.hidden[0].linear.weight).detach()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        outputs = module(x)
    expected = []
    for i in range(30):
        others = [j for j in range(3) if j != y[i]]
        expected.append(min(float((outputs[i, y[i]] - outputs[i, j]) / (W[y[i]] - W[j]).norm()) for j in others))
    margins = adversarial_margins(module, x, y)
    torch.testing.assert_close(margins, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=0)
    assert median_margin(module, x, y) == pytest.approx(float(torch.quantile(margins, 0.5)))
    wrong = adversarial_margins(module, x, (y + 1) % 3)
    assert (wrong < 0).all()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert adversarial_margins(module, x, y).tolist() == [0.0] * len(x), "every row lies on the boundary"


def test_rows_are_cut_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = network(), rows(20)
    whole = input_jacobian(module, x)
    monkeypatch.setattr("tuner.theory.regularizers.ROWS_AT_ONCE", 7)
    torch.testing.assert_close(input_jacobian(module, x), whole)
