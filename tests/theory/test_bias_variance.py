"""Bias, variance and noise add up to the measured risk, exactly, whatever the networks answer."""

import numpy as np
import pytest

from tuner.data.synthetic import GaussianMixture
from tuner.theory.bias_variance import squared_parts, zero_one_parts

EXACT = 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_squared_parts_add_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    f, optimal, noise = rng.normal(size=(7, 50)), rng.normal(size=50), rng.random(50)
    y = optimal + np.sqrt(noise) * rng.normal(size=50)
    parts = squared_parts(f, optimal, noise=noise)
    assert parts.bias + parts.variance + parts.noise == pytest.approx(parts.risk, abs=EXACT)
    assert parts.cross == 0
    drawn = squared_parts(f, optimal, y=y)
    assert drawn.risk == pytest.approx(((f - y) ** 2).mean(), abs=EXACT)
    assert drawn.bias + drawn.variance + drawn.noise + drawn.cross == pytest.approx(drawn.risk, abs=EXACT)
    assert abs(drawn.bias + drawn.variance + drawn.noise - drawn.risk) > 1e-4, (
        "the three alone do not, on drawn targets"
    )
    unknown = squared_parts(f, y, y=y)
    assert unknown.bias + unknown.variance == pytest.approx(drawn.risk, abs=EXACT)
    assert (unknown.noise, unknown.cross) == (0, 0)


def test_squared_parts_are_what_they_say() -> None:
    """Networks that are f* plus a constant plus noise of their own."""
    rng = np.random.default_rng(1)
    truth = GaussianMixture()
    x, y = truth.sample(4000, rng)
    optimal = truth.optimal(x)
    f = optimal + 0.3 + 0.2 * rng.normal(size=(400, len(x)))
    parts = squared_parts(f, optimal, noise=truth.variance(x))
    assert parts.bias == pytest.approx(0.09 + 0.04 / 400, rel=0.01)
    assert parts.variance == pytest.approx(0.04 * 399 / 400, rel=0.01)
    assert parts.noise == pytest.approx(truth.irreducible, rel=0.05)
    measured = (f - y) ** 2
    assert abs(squared_parts(f, optimal, y=y).cross) < 4.5 * 2 * 0.3 * (y - optimal).std() / np.sqrt(len(x))
    assert measured.mean() == pytest.approx(parts.risk, abs=4.5 * measured.mean(0).std() / np.sqrt(len(x)))


def test_either_targets_or_their_variance() -> None:
    for given in ({}, {"y": np.zeros(3), "noise": np.zeros(3)}):
        with pytest.raises(ValueError, match="give the drawn targets, or their variance"):
            squared_parts(np.zeros((2, 3)), np.zeros(3), **given)


@pytest.mark.parametrize("C", [2, 3, 6])
@pytest.mark.parametrize("S", [1, 2, 9])
def test_zero_one_parts_add_up(C: int, S: int) -> None:
    rng = np.random.default_rng(C * 10 + S)
    probability = rng.dirichlet(np.ones(C), size=80)
    votes = rng.integers(0, C, (S, 80))
    parts = zero_one_parts(votes, probability)
    assert parts.risk == pytest.approx(1 - np.mean([probability[np.arange(80), v].mean() for v in votes]), abs=EXACT)
    assert parts.bias + parts.variance + parts.noise == pytest.approx(parts.risk, abs=EXACT)
    labels = rng.integers(0, C, 80)
    known = zero_one_parts(votes, np.eye(C)[labels])
    assert known.noise == 0
    assert known.bias + known.unbiased_variance - known.biased_variance == pytest.approx((votes != labels).mean())


def test_zero_one_parts_by_hand() -> None:
    """Domingos: variance costs where the vote is right, and helps where it is wrong."""
    right = zero_one_parts(np.array([[0], [0], [1]]), np.array([[1.0, 0.0]]))
    assert (right.bias, right.unbiased_variance, right.biased_variance) == (0, pytest.approx(1 / 3), 0)
    wrong = zero_one_parts(np.array([[1], [1], [0]]), np.array([[1.0, 0.0]]))
    assert (wrong.bias, wrong.unbiased_variance, wrong.biased_variance) == (1, 0, pytest.approx(1 / 3))
    # Two classes: c₁ = 2P(f_S = y*) - 1 times the noise.
    noisy = zero_one_parts(np.array([[0], [0], [1]]), np.array([[0.8, 0.2]]))
    assert noisy.noise == pytest.approx((2 * 2 / 3 - 1) * 0.2)
