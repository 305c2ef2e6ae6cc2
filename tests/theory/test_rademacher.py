"""Rademacher complexity: the closed form of the supremum, its bound, and what Monte Carlo makes of it."""

import numpy as np
import pytest

from tuner.theory.rademacher import (
    gap_bound,
    linear_bound,
    linear_class,
    linear_class_exactly,
    of_signs_fitted,
    signs,
)

RNG = np.random.default_rng(0)


def test_monte_carlo_agrees_with_every_sign() -> None:
    x = RNG.normal(size=(10, 4)) * [1, 2, 3, 0.1]
    exact = linear_class_exactly(x, 1.7)
    estimate = linear_class(x, 1.7, draws=4000, seed=1)
    assert abs(estimate.value - exact) < 4.5 * estimate.standard_error < 0.05 * exact
    assert exact <= linear_bound(x, 1.7)
    with pytest.raises(ValueError, match="too many to enumerate"):
        linear_class_exactly(np.zeros((21, 1)), 1.0)


def test_the_supremum_is_one() -> None:
    """No w of the class does better than the closed form, and its own does as well; the minimum is the negative."""
    x, sigma = RNG.normal(size=(12, 3)), signs(12, 1, 3)[0]
    best = np.linalg.norm(sigma @ x) * 2.0 / 12
    w = RNG.normal(size=(5000, 3))
    w *= 2.0 / np.linalg.norm(w, axis=1, keepdims=True)
    reached = (x @ w.T * sigma[:, None]).mean(0)
    assert 0.99 * best < reached.max() <= best + 1e-12
    assert reached.min() == pytest.approx(-reached.max(), rel=0.02)
    own = sigma @ x
    assert (sigma * (x @ (2 * own / np.linalg.norm(own)))).mean() == pytest.approx(best)


def test_it_falls_with_the_root_of_n_and_the_bound_holds() -> None:
    values = []
    for n in (50, 200, 800):
        x = RNG.normal(size=(n, 5))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        estimate, bound = linear_class(x, 3.0, draws=2000, seed=n), linear_bound(x, 3.0)
        assert bound == pytest.approx(3 / np.sqrt(n))
        assert 0.9 * bound < estimate.value + 4.5 * estimate.standard_error
        assert estimate.value - 4.5 * estimate.standard_error < bound
        values.append(estimate.value)
    assert values[0] / values[1] == pytest.approx(2, rel=0.08)
    assert values[1] / values[2] == pytest.approx(2, rel=0.08)


def test_orthogonal_rows_by_hand() -> None:
    """‖Σ σᵢxᵢ‖ is √n for orthonormal rows, whatever the signs: the bound is met with equality."""
    assert linear_class_exactly(np.eye(9), 2.0) == pytest.approx(2 / 3)
    assert linear_class(np.eye(9), 2.0, draws=5).value == pytest.approx(linear_bound(np.eye(9), 2.0))


def test_signs_are_fair_and_repeatable() -> None:
    drawn = signs(40, 500, 7)
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 4.5 / np.sqrt(drawn.size)
    np.testing.assert_array_equal(drawn, signs(40, 500, 7))


def test_of_fitted_signs_and_its_bound() -> None:
    assert of_signs_fitted(np.zeros(4)).value == 1, "a class that fits all signs"
    assert of_signs_fitted(np.full(4, 0.5)).value == 0, "and one that fits none"
    assert of_signs_fitted(np.array([0.1, 0.3])).standard_error == pytest.approx(0.2)
    assert gap_bound(0.0, 10**9) < 1e-3 < gap_bound(0.0, 1000) < gap_bound(0.1, 1000)
