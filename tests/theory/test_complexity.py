"""Complexity measures on networks small enough to compute by hand."""

import math

import numpy as np
import pytest
import torch

from tests.learning.packs import lane_of, make_config, make_data
from tuner.learning.lanes import Pack
from tuner.learning.layout import named_arrays
from tuner.theory.complexity import (
    DEVIATION,
    MEASURES,
    SIGMAS,
    Network,
    kendall,
    margin_of,
    margins,
    measured,
    pac_bayes,
    path_norm,
)

# x -> relu(W1 x + b1) -> W2: singular values 3 and 4, and 5.
W1, B1 = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([1.0, 0.0])
W2, B2 = np.array([[3.0, 4.0]]), np.array([2.0])
NET = Network(
    weights=(W1, W2), biases=(B1, B2), start=(0 * W1, 0 * W2), start_biases=(0 * B1, 0 * B2), activation="relu"
)
GAMMA = 0.5


def test_by_hand() -> None:
    assert measured(NET, GAMMA) == pytest.approx(
        {
            "parameters": 9,
            "frobenius": 9 + 16 + 25,
            "distance": math.sqrt(9 + 16 + 25 + 1 + 4),
            "margin": 4,
            "frobenius_margin": 25 * 25 / 0.25,
            "spectral_margin": 16 * 25 * (25 / 16 + 25 / 25) / 0.25,
            # Row norms 3 and 4 add up to 7; the second layer's one row has norm 5.
            "spectral_distance": 4 * 5 * ((7 / 4) ** (2 / 3) + 1) ** 1.5 / 0.5,
            "path_margin": math.sqrt(9 * (9 + 1) + 16 * 16 + 4) / 0.5,
        }
    )


def test_the_path_norm_is_the_sum_over_paths() -> None:
    rng = np.random.default_rng(0)
    shapes = [(3, 2), (2, 3), (2, 2)]
    weights = tuple(rng.normal(size=shape) for shape in shapes)
    zeros = tuple(np.zeros(shape[0]) for shape in shapes)
    net = Network(weights=weights, biases=zeros, start=weights, start_biases=zeros, activation="relu")
    paths = [
        (weights[0][h, i] * weights[1][k, h] * weights[2][o, k]) ** 2
        for i in range(2) for h in range(3) for k in range(2) for o in range(2)
    ]  # fmt: skip
    assert path_norm(net) == pytest.approx(math.sqrt(sum(paths)))
    # Rescaling a ReLU unit's weights in and out changes neither the function nor its paths.
    scale = np.array([2.0, 0.5, 3.0])
    scaled = (weights[0] * scale[:, None], weights[1] / scale, weights[2])
    rescaled = Network(weights=scaled, biases=zeros, start=weights, start_biases=zeros, activation="relu")
    x = torch.from_numpy(rng.normal(size=(5, 2)))
    torch.testing.assert_close(net.outputs(x), rescaled.outputs(x))
    assert path_norm(rescaled) == pytest.approx(path_norm(net))
    assert measured(rescaled, 1.0)["spectral_margin"] != pytest.approx(measured(net, 1.0)["spectral_margin"])


def test_margins_by_hand() -> None:
    outputs = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0], [1.0, 1.0, 0.0]])
    assert margins(outputs, torch.tensor([0, 1, 0])).tolist() == [2.0, -3.0, 0.0]
    assert margin_of(outputs[:1], torch.tensor([0])) == 2.0
    undefined = measured(NET, -1.0)
    assert {name for name, value in undefined.items() if math.isnan(value)} == {
        m.name for m in MEASURES if "γ" in m.formula
    }


def test_a_network_is_its_lane() -> None:
    data = make_data()
    config = make_config(depth=2, width=5)
    pack = Pack([lane_of(config)], data)
    start = named_arrays(pack.export(0)["theta"], config, data.n_features, data.n_outputs)
    pack.train_epoch([1])
    trained = named_arrays(pack.export(0)["theta"], config, data.n_features, data.n_outputs)
    net = Network.of(trained, start, config)
    torch.testing.assert_close(net.outputs(data.x_val), pack.outputs(data.x_val)[0])
    assert net.parameters == len(pack.export(0)["theta"])
    flat = [np.concatenate([a.ravel() for a in of.values()]) for of in (trained, start)]
    assert net.distance == pytest.approx(float(np.linalg.norm(flat[0] - flat[1])))
    with pytest.raises(ValueError, match="without normalisation"):
        Network.of(trained, start, make_config(norm="layer"))


def test_pac_bayes_by_hand() -> None:
    """A linear classifier of one input: noise of deviation σ on (w, b) flips the sign of x = ±1 with a known chance."""
    weights, zeros = (np.array([[0.0], [1.0]]),), (np.zeros(2),)
    net = Network(weights=weights, biases=zeros, start=(np.zeros((2, 1)),), start_biases=zeros, activation="relu")
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).repeat(50, 1)
    y = torch.tensor([1, 0]).repeat(50)
    found = pac_bayes(net, x, y, M=4000)
    # f₁ - f₀ at x = 1 is 1 + σ√4·z: both weights and both biases move it. P(z < -1/2σ) = DEVIATION at σ = 0.39.
    expected = [s for s in SIGMAS if 0.5 * math.erfc(1 / (2 * s) / math.sqrt(2)) <= DEVIATION][-1]
    assert found.sigma == expected
    assert found.sharpness == pytest.approx(expected**-2)
    kl = 1 / (2 * expected**2)
    assert found.gap == pytest.approx(math.sqrt((kl + math.log(2 * 10 * len(SIGMAS) / 0.05)) / 200))
    sharp = Network(
        weights=(weights[0] * 0.01,), biases=zeros, start=(np.zeros((2, 1)),), start_biases=zeros, activation="relu"
    )
    assert pac_bayes(sharp, x, y, M=500).sharpness > 1000 * found.sharpness


def test_kendall() -> None:
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert math.isnan(kendall([1, 1, 1], [1, 2, 3]))
