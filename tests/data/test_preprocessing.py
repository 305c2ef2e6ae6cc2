from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler

from tuner.data import Preprocessing, Schema, preprocessing
from tuner.data.preprocessing import BINS, FarValueError, bins_of
from tuner.errors import DataError
from tuner.trial import Scaling

N = 40
FEATURES = np.random.default_rng(0).normal([0, 5, -1e3], [1, 0.1, 50], size=(N, 3))
TARGET = np.random.default_rng(1).normal(100, 7, size=N)
ALL = np.arange(N)


def frame_of(features: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(features, schema=[f"f{i}" for i in range(features.shape[1])])


def fit(
    features: np.ndarray | pl.DataFrame = FEATURES,
    target: np.ndarray = TARGET,
    task: str = "regression",
    rows: np.ndarray | None = None,
    scaling: Scaling = "standard",
    **columns: Any,
) -> Preprocessing:
    """``columns`` as ``Schema.infer`` takes them."""
    frame = features if isinstance(features, pl.DataFrame) else frame_of(features)
    rows = np.arange(frame.height) if rows is None else rows
    schema = Schema.infer(frame, rows, **columns)
    return Preprocessing.fit(schema, frame, target, rows, task=task, target_name="y", scaling=scaling)


def fit_one(values: list[Any], **settings: Any) -> Preprocessing:
    """On a single column ``c`` and all its rows."""
    return fit(pl.DataFrame({"c": values}), np.arange(float(len(values))), **settings)


def test_features_are_standardised() -> None:
    result = fit().transform(frame_of(FEATURES))
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(result.std(axis=0), 1, rtol=1e-6)


def test_other_rows_are_measured_by_the_fitted_ones() -> None:
    other = FEATURES[:5] * 3 + 1
    expected = StandardScaler().fit(FEATURES).transform(other)
    np.testing.assert_allclose(fit().transform(frame_of(other)), expected, rtol=1e-6)


def test_only_the_given_rows_are_fitted_on() -> None:
    rows = ALL[::2]
    first = fit(rows=rows)
    features, target = FEATURES.copy(), TARGET.copy()
    features[1::2] += 1000
    target[1::2] -= 1000
    other = fit(features, target, rows=rows)
    np.testing.assert_array_equal(first.transform(frame_of(FEATURES)), other.transform(frame_of(FEATURES)))
    assert (first.target_mean, first.target_sd) == (other.target_mean, other.target_sd)
    features[0] += 1000  # a train row: now everything moves
    moved = fit(features, target, rows=rows)
    assert (first.transform(frame_of(FEATURES)) != moved.transform(frame_of(FEATURES))).all()


def test_rows_may_be_chosen_and_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit().transform(frame_of(FEATURES))
    monkeypatch.setattr(preprocessing, "CHUNK_ROWS", 7)
    monkeypatch.setattr(preprocessing, "BLOCK_COLUMNS", 2)
    rows = np.array([39, 0, 0, 17, 3, 4, 5, 6, 7, 8])
    np.testing.assert_array_equal(fit().transform(frame_of(FEATURES)), whole)
    np.testing.assert_array_equal(fit().transform(frame_of(FEATURES), rows), whole[rows])


def test_the_given_rows_are_left_alone() -> None:
    features, target = FEATURES.copy(), TARGET.copy()
    fitted = fit(features, target)
    fitted.transform(frame_of(features))
    fitted.transform_target(target)
    np.testing.assert_array_equal(features, FEATURES)
    np.testing.assert_array_equal(target, TARGET)


def test_robust_scaling_is_clipped_smoothly() -> None:
    features = FEATURES.copy()
    features[0, 0] = 1e6
    result = fit(features, scaling="robust").transform(frame_of(features))
    s = RobustScaler().fit_transform(features)
    np.testing.assert_allclose(result, s / np.sqrt(1 + (s / 3) ** 2), rtol=1e-5)
    assert 2.99 < np.abs(result).max() <= 3


def test_robust_scaling_of_later_rows_however_far() -> None:
    fitted = fit(scaling="robust")
    far = FEATURES.copy()
    far[0, 0], far[1, 0] = 1e200, -1.7e308
    result = fitted.transform(frame_of(far))
    assert result[:2, 0].tolist() == [3, -3]
    np.testing.assert_array_equal(result[2:], fitted.transform(frame_of(FEATURES))[2:])


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_robust_scaling_of_a_column_that_is_mostly_one_value(unit: float) -> None:
    values = [0.0] * 35 + [unit * i for i in range(1, 6)]
    result = fit_one(values, scaling="robust").transform(pl.DataFrame({"c": values}))[:, 0]
    assert result[0] == 0
    assert result[-1] == pytest.approx(2 / np.sqrt(1 + (2 / 3) ** 2))  # the range is two half ranges


def test_quantile_scaling() -> None:
    result = fit(scaling="quantile").transform(frame_of(FEATURES))
    expected = QuantileTransformer(n_quantiles=N, output_distribution="normal").fit_transform(FEATURES)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_piecewise_scaling() -> None:
    """Beside the standardised number, how far it reaches into each bin of equally many rows."""
    values = np.arange(241) ** 2.0
    fitted = fit_one(values, scaling="piecewise")
    assert fitted.feature_names == ("c", *(f"c bin {i}" for i in range(1, BINS + 1)))
    later = np.array([-1e9, 0.0, 5.5**2, 100.0, 57600.0, 1e9])
    found = fitted.transform(pl.DataFrame({"c": later}))
    edges = (np.arange(BINS + 1) * 10) ** 2.0
    for row, value in zip(found, later, strict=True):
        for i in range(BINS):
            share = (value - edges[i]) / (edges[i + 1] - edges[i])
            assert row[1 + i] == pytest.approx(min(max(share, 0), 1), abs=1e-6)
    standard = fit_one(values, scaling="standard").transform(pl.DataFrame({"c": later}))
    assert np.array_equal(found[:, :1], standard)
    assert (found[0, 1:] == 0).all(), "what is far below is in no bin"
    assert (found[-1, 1:] == 1).all(), "and what is far above in all"


def test_piecewise_scaling_of_numbers_that_repeat() -> None:
    values = np.array([0.0] * 48 + [1.0] * 24 + [2.0] * 25)
    assert fit_one(values, scaling="piecewise").feature_names == ("c", "c bin 1", "c bin 2")
    assert fit_one(np.array([0.0, 1.0] * 50), scaling="piecewise").feature_names == ("c",), "two values are a line"


def test_bins_are_fewer_where_there_are_many_columns() -> None:
    assert [bins_of(columns) for columns in (1, 21, 22, 64, 1000)] == [24, 24, 23, 8, 4]


def test_a_far_value_is_refused_by_its_column_whatever_it_is_encoded_as() -> None:
    fitted = fit(scaling="piecewise")
    far = FEATURES.copy()
    far[3, 1] = 1e300
    with pytest.raises(FarValueError, match=r"column 'f1' cannot be standardised: 1e[+]300 in row 4"):
        fitted.transform(frame_of(far))


def test_missing_numbers_are_told_beside_the_bins() -> None:
    fitted = fit_one([None, *map(float, range(97))], scaling="piecewise")
    assert fitted.feature_names == ("c", *(f"c bin {i}" for i in range(1, BINS + 1)), "c missing")
    missing, median = fitted.transform(pl.DataFrame({"c": [None, 48.0]}))
    assert np.array_equal(missing[:-1], median[:-1])
    assert (missing[-1], median[-1]) == (1, 0)


@pytest.mark.parametrize("scaling", ["standard", "robust", "quantile"])
def test_missing_numbers_become_the_median_and_are_told(scaling: Any) -> None:
    values = [1.0, 2.0, 4.0, 8.0, 9.0, None, None]
    fitted = fit_one(values, scaling=scaling)
    assert fitted.feature_names == ("c", "c missing")
    result = fitted.transform(pl.DataFrame({"c": [4.0, None, 1.0]}))
    assert result[0, 0] == result[1, 0] != result[2, 0]
    assert result[:, 1].tolist() == [0, 1, 0]


def test_a_number_that_is_missing_only_later() -> None:
    fitted = fit_one([1.0, 2.0, 9.0])
    assert fitted.feature_names == ("c",)
    missing, median = fitted.transform(pl.DataFrame({"c": [None, 2.0]}))[:, 0]
    assert missing == median < 0


def test_booleans() -> None:
    fitted = fit_one([True, False, True, True, None])
    assert fitted.feature_names == ("c", "c missing")
    expected = [[0, 0], [1, 0], [1, 1]]
    for values in ([False, True, None], [0.0, 1.0, float("nan")], [0, 1, 2], ["false", "1", "?"]):
        assert fitted.transform(pl.DataFrame({"c": values})).tolist() == expected


def test_categories() -> None:
    fitted = fit_one(["a"] * 6 + ["b"] * 7 + ["rare", "rarer"] + [None] * 5)
    assert fitted.feature_names == ("c_", "c_a", "c_b", "c_infrequent_sklearn")
    result = fitted.transform(pl.DataFrame({"c": ["a", "rare", "never seen", None, "b"]}))
    assert result.argmax(axis=1).tolist() == [1, 3, 3, 0, 2]
    assert result.sum(axis=1).tolist() == [1] * 5


def test_an_unseen_category_where_none_is_rare() -> None:
    fitted = fit_one(["a", "b"] * 6)
    assert fitted.transform(pl.DataFrame({"c": ["never seen", "b"]})).tolist() == [[0, 0], [0, 1]]


def test_a_column_never_has_too_many_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "MAX_CATEGORIES", 4)
    values = [f"c{i % 8}" for i in range(80)]
    assert len(fit_one(values).feature_names) == 4


def test_numbers_that_are_names() -> None:
    values = [1, 2, 2, 1] * 5
    assert fit_one(values, categorical=("c",)).feature_names == ("c_1", "c_2")
    assert fit_one(values).feature_names == ("c",)


def test_dates() -> None:
    days = ["2024-01-01", "2024-03-01", "2024-06-15", "2024-12-31"] * 3
    fitted = fit_one(days)
    assert fitted.feature_names == ("c", "c sin year", "c cos year", "c sin week", "c cos week")
    result = fitted.transform(pl.DataFrame({"c": ["2024-01-01", "2024-01-08", "2025-01-01", None]}))
    np.testing.assert_allclose(result[0, 1:3], [0, 1], atol=1e-6)  # the year begins
    np.testing.assert_allclose(result[0, 3:], result[1, 3:], atol=1e-6)  # both are Mondays
    np.testing.assert_allclose(result[0, 1:3], result[2, 1:3], atol=1e-6)
    assert result[0, 0] < result[1, 0] < result[2, 0]
    assert result[3, 1:].tolist() == [0] * 4


def test_a_column_that_is_called_as_a_part_of_a_date() -> None:
    frame = pl.DataFrame({"d": ["2024-01-01", "2024-03-01", "2024-06-15"], "d sin year": [0.1, 0.2, 0.3]})
    with pytest.raises(DataError, match="column 'd sin year' is called as a part of the date 'd'; rename it"):
        fit(frame, np.arange(3.0))


def test_a_time_of_day_is_a_part() -> None:
    moments = [f"2024-01-{day:02}T{hour:02}:30" for day in (1, 2, 3) for hour in (0, 6, 12, 18)]
    fitted = fit_one(moments)
    assert fitted.feature_names[-2:] == ("c sin day", "c cos day")
    noon = fitted.transform(pl.DataFrame({"c": ["2024-01-09T12:00Z", "2024-01-09T14:00+02:00"]}))
    np.testing.assert_allclose(noon[:, -2:], [[0, -1]] * 2, atol=1e-6)


def test_the_time_that_orders_the_rows_keeps_what_recurs() -> None:
    days = ["2024-01-01", "2024-03-01", "2024-06-15", "2024-12-31"] * 3
    fitted = fit(pl.DataFrame({"c": days, "d": range(12)}), np.arange(12.0), time="c")
    assert "c" not in fitted.feature_names
    assert "c sin year" in fitted.feature_names


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1e8 + 0.1, -1e-12])
def test_a_constant_column_is_dropped(value: float) -> None:
    fitted = fit(np.column_stack([FEATURES, np.full(N, value)]))
    assert fitted.feature_names == ("f0", "f1", "f2")
    assert fitted.schema.notes == ("column 'f3': dropped: constant on the train rows",)


def test_a_column_that_is_constant_but_for_rounding_is_constant() -> None:
    column = np.where(np.arange(N) % 2, 0.1 + 0.2, 0.3)
    assert column.std() > 0
    assert fit(np.column_stack([FEATURES, column])).feature_names == ("f0", "f1", "f2")
    with pytest.raises(DataError, match="target 'y' is constant"):
        fit(target=column)


def test_one_number_or_none_is_a_category() -> None:
    fitted = fit_one([7.0, None, 7.0, None] * 5)
    result = fitted.transform(pl.DataFrame({"c": [7.0, None]}))
    assert result.tolist() == [[0, 1], [1, 0]]


def test_no_column_left() -> None:
    with pytest.raises(DataError, match=r"no feature column is left on [0-9]+ train rows: column 'c'"):
        fit_one([1, 1, 1])


def test_a_missing_column() -> None:
    with pytest.raises(DataError, match=r"columns are missing: 'f0', 'f2'; give every column"):
        fit().transform(pl.DataFrame({"f1": [1.0]}))


def test_columns_are_found_by_name() -> None:
    turned = frame_of(FEATURES).select("f2", pl.lit("x").alias("extra"), "f0", "f1")
    np.testing.assert_array_equal(fit().transform(turned), fit().transform(frame_of(FEATURES)))


def test_a_regression_target_is_standardised() -> None:
    fitted = fit()
    result = fitted.transform_target(TARGET)
    assert result.dtype == np.float32
    assert fitted.target_mean == pytest.approx(TARGET.mean())
    assert fitted.target_sd == pytest.approx(TARGET.std())  # the population's: divisor n
    np.testing.assert_allclose(result * fitted.target_sd + fitted.target_mean, TARGET, rtol=1e-5)


def test_class_codes_are_left_alone() -> None:
    codes = np.arange(N) % 3
    fitted = fit(target=codes, task="classification")
    assert (fitted.target_mean, fitted.target_sd) == (0.0, 1.0)
    assert fitted.transform_target(codes).dtype == np.int64
    np.testing.assert_array_equal(fitted.transform_target(codes), codes)


@pytest.mark.parametrize("value", [3.0, 0.1])
def test_a_constant_target(value: float) -> None:
    with pytest.raises(DataError, match=rf"^target 'y' is constant on the train rows \({value:g} in all 40\).*another"):
        fit(target=np.full(N, value))


def test_numbers_too_large_to_standardise() -> None:
    features = FEATURES.copy()
    features[3, 1] = -1e200
    with pytest.raises(
        DataError, match=r"^column 'f1' cannot be standardised: -1e\+200 in row 4 is too large.*rescale"
    ):
        fit(features)
    target = TARGET.copy()
    target[2] = 1e200
    with pytest.raises(DataError, match=r"^target 'y' cannot be standardised: 1e\+200 in row 3 "):
        fit(target=target, rows=ALL[1:])


def test_other_rows_too_far_from_the_fitted_ones() -> None:
    features, target = FEATURES.copy(), TARGET.copy()
    features[7, 2], target[9] = 1e300, -1e300
    features[3, 0] = np.nan
    for rows, called in ((None, 8), (ALL[::7], 8), (ALL[7:], 8)):
        with pytest.raises(DataError, match=rf"^column 'f2' cannot be standardised: 1e\+300 in row {called} "):
            fit().transform(frame_of(features), rows)
    with pytest.raises(DataError, match=r"^target 'y' cannot be standardised: -1e\+300 in row 10 "):
        fit().transform_target(target, ALL[4:])
    fit().refuse_far_rows(frame_of(FEATURES), TARGET)
    with pytest.raises(DataError, match=r"^column 'f2'.* in row 8 "):
        fit().refuse_far_rows(frame_of(features), TARGET)
    with pytest.raises(DataError, match=r"^target 'y'.* in row 10 "):
        fit().refuse_far_rows(frame_of(FEATURES), target)
