import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from tuner.data import Preprocessing
from tuner.errors import DataError

FEATURES = np.random.default_rng(0).normal([0, 5, -1e3], [1, 0.1, 50], size=(40, 3))
TARGET = np.random.default_rng(1).normal(100, 7, size=40)


def fit(features: np.ndarray = FEATURES, target: np.ndarray = TARGET, task: str = "regression") -> Preprocessing:
    names = [f"f{i}" for i in range(features.shape[1])]
    return Preprocessing.fit(features, target, task=task, feature_names=names, target_name="y")


def test_features_are_standardised() -> None:
    result = fit().transform(FEATURES)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(result.std(axis=0), 1, rtol=1e-6)


def test_other_rows_are_measured_by_the_fitted_ones() -> None:
    other = FEATURES[:5] * 3 + 1
    expected = StandardScaler().fit(FEATURES).transform(other)
    np.testing.assert_allclose(fit().transform(other), expected, rtol=1e-6)


def test_the_given_rows_are_left_alone() -> None:
    features, target = FEATURES.copy(), TARGET.copy()
    fitted = fit(features, target)
    fitted.transform(features)
    fitted.transform_target(target)
    np.testing.assert_array_equal(features, FEATURES)
    np.testing.assert_array_equal(target, TARGET)


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1e8 + 0.1, -1e-12])
def test_a_constant_column_becomes_zero_in_every_part(value: float) -> None:
    features = np.column_stack([FEATURES, np.full(40, value)])
    fitted = fit(features)
    assert fitted.feature_sd[3] == 0
    np.testing.assert_array_equal(fitted.transform(features)[:, 3], 0)
    features[:, 3] += 1000
    np.testing.assert_array_equal(fitted.transform(features)[:, 3], 0)
    assert fitted.transform(features)[:, 2].std() == pytest.approx(1)


def test_a_column_that_is_constant_but_for_rounding_is_constant() -> None:
    column = np.where(np.arange(40) % 2, 0.1 + 0.2, 0.3)
    assert column.std() > 0
    fitted = fit(np.column_stack([FEATURES, column]))
    assert fitted.feature_sd[3] == 0
    with pytest.raises(DataError, match="target 'y' is constant"):
        fit(target=column)


def test_a_regression_target_is_standardised() -> None:
    fitted = fit()
    result = fitted.transform_target(TARGET)
    assert result.dtype == np.float32
    assert fitted.target_mean == pytest.approx(TARGET.mean())
    assert fitted.target_sd == pytest.approx(TARGET.std())  # the population's: divisor n
    np.testing.assert_allclose(result * fitted.target_sd + fitted.target_mean, TARGET, rtol=1e-5)


def test_class_codes_are_left_alone() -> None:
    codes = np.arange(40) % 3
    fitted = fit(target=codes, task="classification")
    assert (fitted.target_mean, fitted.target_sd) == (0.0, 1.0)
    assert fitted.transform_target(codes).dtype == np.int64
    np.testing.assert_array_equal(fitted.transform_target(codes), codes)


@pytest.mark.parametrize("value", [3.0, 0.1])
def test_a_constant_target(value: float) -> None:
    with pytest.raises(DataError, match=rf"^target 'y' is constant on the train rows \({value:g} in all 40\).*another"):
        fit(target=np.full(40, value))


def test_numbers_too_large_to_standardise() -> None:
    features = FEATURES.copy()
    features[3, 1] = -1e200
    with pytest.raises(DataError, match=r"^column 'f1' cannot be standardised: -1e\+200 is too large.*rescale it"):
        fit(features)
    target = TARGET.copy()
    target[2] = 1e200
    with pytest.raises(DataError, match=r"^target 'y' cannot be standardised: 1e\+200"):
        fit(target=target)


def test_other_rows_too_far_from_the_fitted_ones() -> None:
    features, target = FEATURES.copy(), TARGET.copy()
    features[0, 2], target[0] = 1e300, -1e300
    with pytest.raises(DataError, match=r"^column 'f2' cannot be standardised: 1e\+300"):
        fit().transform(features)
    with pytest.raises(DataError, match=r"^target 'y' cannot be standardised: -1e\+300"):
        fit().transform_target(target)
