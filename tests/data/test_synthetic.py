"""Synthetic sources: what they claim to know is what their rows show, within stated standard errors."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from tests.data.studies import study
from tuner.data import load_table, load_training_data
from tuner.data.synthetic import GaussianMixture, LinearNoise, Truth, TwoMoons, known_truth
from tuner.errors import DataError
from tuner.spec import DataSection

TRUTHS: dict[str, Truth] = {
    "slide": GaussianMixture(),
    "noisy": GaussianMixture(label_noise=0.1, prior=0.3),
    "equal variances": GaussianMixture(means=((0.0, 0.0), (1.0, 2.0)), variances=(1.0, 1.0)),
    "five dimensions": GaussianMixture(dimensions=5),
    "a plane": GaussianMixture(dimensions=2, variances=(1.0, 25.0)),
    "equal means": GaussianMixture(means=((1.0,), (1.0,)), variances=(1.0, 9.0), dimensions=3),
    "linear": LinearNoise(theta=(1.0, -2.0, 0.5), noise=0.7),
    "moons": TwoMoons(noise=0.3, label_noise=0.05, prior=0.4),
}
N = 60_000
Z = 4.5  # standard errors: a false alarm in 150,000


def within(values: np.ndarray, expected: float) -> bool:
    """Whether a mean is the expected one, up to Z standard errors."""
    return abs(values.mean() - expected) <= Z * values.std() / math.sqrt(len(values)) + 1e-12


@pytest.fixture(params=TRUTHS, name="truth")
def _truth(request: pytest.FixtureRequest) -> Truth:
    return TRUTHS[request.param]


def test_risks_are_what_rows_show(truth: Truth) -> None:
    x, y = truth.sample(N, np.random.default_rng(1))
    optimal = truth.optimal(x)
    assert x.shape == (N, truth.dimension)
    assert within((y - optimal) ** 2, truth.irreducible)
    assert within(truth.variance(x), truth.irreducible)
    if truth.classes:
        assert set(np.unique(y)) == {0.0, 1.0}
        assert within((y != (optimal > 0.5)).astype(float), truth.bayes_error)
    for theta, b in ((np.linspace(-0.5, 0.8, truth.dimension), 0.3), truth.best_linear(intercept=True)):
        assert within((x @ theta + b - y) ** 2, truth.expected_risk(theta, b))
        assert not within((x @ theta + b - y) ** 2, 1.05 * truth.expected_risk(theta, b)), "a wrong risk is noticed"


def test_the_optimal_predictor_is_calibrated(truth: Truth) -> None:
    """E[(y - f*) g(x)] = 0 for every g, which no other function has."""
    x, y = truth.sample(N, np.random.default_rng(2))
    residual = y - truth.optimal(x)
    tests = [np.ones(N), x[:, 0], x[:, 0] ** 2, np.sin(3 * x[:, -1]), (x.sum(1) > 1).astype(float)]
    assert all(within(residual * g, 0.0) for g in tests)
    theta, b = truth.best_linear(intercept=True)
    if not isinstance(truth, LinearNoise):
        assert not all(within((y - x @ theta - b) * g, 0.0) for g in tests), "the linear one is not"


def test_the_best_linear_predictor_is_the_best(truth: Truth) -> None:
    for intercept in (False, True):
        theta, b = truth.best_linear(intercept=intercept)
        least = truth.expected_risk(theta, b)
        assert least >= truth.irreducible - 1e-9
        for step in np.eye(truth.dimension) * 1e-3:
            assert truth.expected_risk(theta + step, b) > least
            assert truth.expected_risk(theta - step, b) > least
        if intercept:
            assert truth.expected_risk(theta, b + 1e-3) > least


def test_the_slides_example_by_quadrature() -> None:
    truth = GaussianMixture()

    def risk(theta: float) -> float:
        zero = integrate.quad(lambda x: (theta * x) ** 2 * stats.norm.pdf(x, 1, 1), -12, 14)[0]
        one = integrate.quad(lambda x: (theta * x - 1) ** 2 * stats.norm.pdf(x, 2, 2), -26, 30)[0]
        return 0.5 * zero + 0.5 * one

    for theta in (-1.0, 0.0, 0.2, 0.7):
        assert truth.expected_risk([theta]) == pytest.approx(risk(theta), abs=1e-9)
        assert truth.expected_risk([theta]) == pytest.approx(5 * theta**2 - 2 * theta + 0.5)

    def noise(x: float) -> float:
        zero, one = stats.norm.pdf(x, 1, 1), stats.norm.pdf(x, 2, 2)
        return 0.5 * zero * one / (zero + one)

    assert truth.irreducible == pytest.approx(integrate.quad(noise, -30, 34, limit=200)[0], abs=1e-8)


def test_quadratures_agree_with_finer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def irreducible() -> list[float]:
        fresh = [
            *(GaussianMixture(dimensions=D, variances=(1.0, 100.0)) for D in (1, 2, 5)),
            *(GaussianMixture(dimensions=D, variances=(1e-8, 1.0)) for D in (1, 2)),
            TwoMoons(noise=0.3),
        ]
        return [error for truth in fresh for error in (truth.irreducible, 0.01 * truth.bayes_error)]

    before = irreducible()
    monkeypatch.setattr("tuner.data.synthetic._PLANE", (300, 100))
    monkeypatch.setattr("tuner.data.synthetic._LINE", 3_000)
    monkeypatch.setattr("tuner.data.synthetic._GAUSS", (96, 64))
    assert irreducible() == pytest.approx(before, abs=2e-6)


def test_error_in_the_plane_by_a_closed_form() -> None:
    """Of equal means in the plane r² is exponential, and class 1 is likelier beyond one radius."""
    truth = GaussianMixture(means=((0.0,), (0.0,)), variances=(1.0, 100.0), dimensions=2)
    square = 2 * math.log(100) / (1 - 1 / 100)
    expected = 0.5 * math.exp(-square / 2) + 0.5 * (1 - math.exp(-square / 200))
    assert truth.bayes_error == pytest.approx(expected, rel=1e-4)


def test_errors_of_many_dimensions_take_no_memory_for_them() -> None:
    """The distance that tells 10,000 dimensions' classes apart is that of two Gaussians on a line."""
    truth = GaussianMixture(means=((0.0,), (0.01,)), variances=(1.0, 1.0), dimensions=10_000)
    assert truth.bayes_error == pytest.approx(stats.norm.cdf(-0.5), abs=2e-5)


def test_labels_and_rows() -> None:
    spec = study("synthetic:gaussian_mixture", synthetic={"rows": 400, "prior": 0.8})
    data = load_training_data(spec, Path())
    assert data.classes == ("0", "1")
    assert len(data.only.train) == 240
    again, other = (
        load_training_data(study("synthetic:gaussian_mixture", seed=seed, synthetic=keys), Path())
        for seed, keys in ((5, {"rows": 400, "prior": 0.8}), (0, {"rows": 400, "prior": 0.8, "seed": 1}))
    )
    assert again.data_digest == data.data_digest, "the study's seed is not the data's"
    assert other.data_digest != data.data_digest
    numbers = load_training_data(study("synthetic:gaussian_mixture", "mse", synthetic={"rows": 400}), Path())
    assert len(np.unique(numbers.only.train.y)) == 2
    linear = load_table(
        study("synthetic:linear_noise", "mse", synthetic={"theta": [1, 2, 3]}).data, "regression", Path()
    )
    assert linear.frame.columns == ["x0", "x1", "x2"]


def test_known_truth() -> None:
    given = {"source": "synthetic:linear_noise", "synthetic": {"theta": [3, 4], "noise": 0.5}}
    assert known_truth(DataSection.model_validate(given)) == LinearNoise(theta=(3.0, 4.0), noise=0.5)
    assert known_truth(DataSection.model_validate({**given, "corrupt": "random_pixels"})) is None
    assert known_truth(DataSection(source="sklearn:iris")) is None
    drawn = known_truth(study("synthetic:linear_noise", "mse", synthetic={"dimension": 7}).data)
    assert isinstance(drawn, LinearNoise)
    assert np.linalg.norm(drawn.theta) == pytest.approx(1)


@pytest.mark.parametrize(
    ("source", "metric", "keys", "message"),
    [
        ("synthetic:moons", "error", {}, "did you mean 'two_moons'?"),
        ("synthetic:linear_noise", "error", {}, "the target is a quantity, not a class; use a regression metric"),
        ("synthetic:two_moons", "error", {"target": "y"}, "leave data.target out"),
        ("synthetic:two_moons", "error", {"synthetic": {"rows": 3, "prior": 1e-9}}, "all 3 rows drawn are of class 0"),
        ("synthetics:two_moons", "error", {}, "did you mean 'synthetic'?"),
    ],
)
def test_refused(source: str, metric: str, keys: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_training_data(study(source, metric, **keys), Path())
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
