"""Risk: the empirical one converges to the expected one at the rate of the law of large numbers, and its parts add
up."""

import numpy as np
import pytest

from tuner.data.synthetic import GaussianMixture
from tuner.theory.risk import Floats, convergence, decompose, rate

SIZES = (10, 40, 160, 640)


def test_the_empirical_risk_converges() -> None:
    truth, rng = GaussianMixture(), np.random.default_rng(0)

    def losses(m: int) -> Floats:
        x, y = truth.sample(m, rng)
        return (0.2 * x[:, 0] - y) ** 2

    found = convergence(losses, SIZES, 400)
    assert [row.n for row in found] == list(SIZES)
    for row in found:
        assert abs(row.mean - truth.expected_risk([0.2])) < 4.5 * row.sd / np.sqrt(400)
        assert row.low < truth.expected_risk([0.2]) < row.high
    slope, error = rate(SIZES, [row.sd for row in found], 400)
    assert abs(slope + 0.5) < 4.5 * error < 0.1


def test_rate_notices_another_one() -> None:
    """One outcome shared by all rows of a sample: no law of large numbers, no convergence."""
    rng = np.random.default_rng(0)
    found = [rng.normal(size=400).std() for _ in SIZES]
    slope, error = rate(SIZES, found, 400)
    assert abs(slope + 0.5) > 10 * error


def test_parts_add_up() -> None:
    parts = decompose(0.05, 0.25, 0.2, 0.31)
    assert parts.training + parts.gap == pytest.approx(parts.risk)
    assert (parts.gap_low, parts.gap_high) == pytest.approx((0.15, 0.26))
    assert (parts.best_low, parts.best_high) == (0.05, 0.31)
    assert parts.irreducible is parts.approximation_low is parts.approximation_high is None
    known = decompose(0.05, 0.25, 0.2, 0.31, irreducible=0.1)
    assert known.approximation_low == 0, "the best of a class is no better than the optimal predictor"
    assert known.approximation_high == pytest.approx(0.21)
    lucky = decompose(0.3, 0.25, 0.2, 0.28)
    assert lucky.best_low <= lucky.best_high
    assert lucky.gap < 0
