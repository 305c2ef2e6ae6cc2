"""Measures of a trained network's complexity: norms, margins, sharpness, and a PAC-Bayes bound (lecture, slides
"Bounding the Generalization Error" and "Model Complexity Trade-Off").

Each is a number that some theorem lets bound the generalization gap; whether it orders networks as their gaps do is for
data to say. They are of plain networks: linear maps W₁ … W_L with biases and an activation φ between them, φ(0) = 0 and
|φ'| ≤ 1, as ReLU or tanh.

Shapes: ``L`` layers, ``n`` rows, ``D`` features, ``C`` classes, ``M`` perturbations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.learning import activations
from tuner.learning.layout import Vector
from tuner.trial import Activation, TrialConfig

Floats = npt.NDArray[np.float64]

MARGIN_QUANTILE = 0.1  # of the train rows' margins: the smallest are a few outliers'
DEVIATION = 0.1  # by how much noise on the weights may raise the training error
SIGMAS = tuple(np.geomspace(1e-4, 1.0, 33).tolist())  # of that noise; the bound pays for having chosen among them


@dataclass(frozen=True, kw_only=True)
class Network:
    """weights, biases: of each layer, the first hidden one first: (out, in) and (out,). start: the weights it was
    trained from, biases likewise. Raises ValueError for weights of a network that has normalisation layers.
    """

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    start: tuple[Floats, ...]
    start_biases: tuple[Floats, ...]
    activation: Activation

    @classmethod
    def of(cls, trained: Mapping[str, Vector], start: Mapping[str, Vector], config: TrialConfig) -> Network:
        """From named weights as :func:`tuner.learning.layout.named_arrays` gives them."""
        if config.norm != "none" or config.residual:
            raise ValueError("complexity measures are of networks without normalisation and residual layers")
        names = [*(f"hidden.{layer}" for layer in range(1, config.depth + 1)), "head"]

        def parts(of: Mapping[str, Vector], what: str) -> tuple[Floats, ...]:
            return tuple(np.asarray(of[f"{name}.{what}"], dtype=np.float64) for name in names)

        return cls(
            weights=parts(trained, "weight"),
            biases=parts(trained, "bias"),
            start=parts(start, "weight"),
            start_biases=parts(start, "bias"),
            activation=config.activation,
        )

    @property
    def parameters(self) -> int:
        """How many there are, biases included."""
        return sum(a.size for a in (*self.weights, *self.biases))

    @property
    def distance(self) -> float:
        """‖θ - θ₀‖, biases included."""
        pairs = [*zip(self.weights, self.start, strict=True), *zip(self.biases, self.start_biases, strict=True)]
        return math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in pairs))

    def outputs(self, x: Tensor, *, noise: Sequence[Tensor] = (), sigma: float = 0.0) -> Tensor:
        """x (n, D) -> (n, C); with ``noise``, of :meth:`draw`, times sigma on all parameters: (M, n, C)."""
        phi = activations.module(self.activation)
        below = x
        for layer, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            weight, bias = torch.from_numpy(W).to(x), torch.from_numpy(b).to(x)
            if noise:
                weight = weight + sigma * noise[2 * layer]
                bias = (bias + sigma * noise[2 * layer + 1])[:, None, :]
            below = below @ weight.mT + bias
            if layer < len(self.weights) - 1:
                below = phi(below)
        return below

    def draw(self, M: int, like: Tensor, seed: int = 0) -> list[Tensor]:
        """Standard normal noise for every parameter: a layer's weights (M, out, in), then its biases (M, out)."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [shape for W, b in zip(self.weights, self.biases, strict=True) for shape in (W.shape, b.shape)]
        return [torch.randn(M, *shape, generator=generator, dtype=torch.float64).to(like) for shape in shapes]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure of complexity: its name, formula and source, and its value for a network whose margin is γ."""

    name: str
    formula: str
    source: str
    value: Callable[[Network, float], float]


def margins(outputs: Tensor, y: Tensor) -> Floats:
    """f_y(x) - max over other classes: outputs (n, C), y (n,) -> (n,); above 0 where the class is right."""
    own = outputs.gather(1, y[:, None])
    rest = outputs.scatter(1, y[:, None], -math.inf)
    found: Floats = (own[:, 0] - rest.max(1).values).double().cpu().numpy()
    return found


def margin_of(outputs: Tensor, y: Tensor) -> float:
    """γ: a low quantile of the rows' margins."""
    return float(np.quantile(margins(outputs, y), MARGIN_QUANTILE))


def path_norm(network: Network) -> float:
    """√Σ over all paths from an input, or a bias, to an output of the product of its squared weights."""
    through = np.ones(network.weights[0].shape[1])
    for W, b in zip(network.weights, network.biases, strict=True):
        through = W**2 @ through + b**2
    return math.sqrt(float(through.sum()))


def _spectral(W: Floats) -> float:
    return float(np.linalg.norm(W, 2))


def _product(factors: Sequence[float]) -> float:
    return float(np.prod(factors))


def _spectral_margin(network: Network, gamma: float) -> float:
    squares = [_spectral(W) ** 2 for W in network.weights]
    ranks = sum(float((W**2).sum()) / s for W, s in zip(network.weights, squares, strict=True))
    return _product(squares) * ranks / gamma**2


def _spectral_distance(network: Network, gamma: float) -> float:
    norms = [_spectral(W) for W in network.weights]
    # The (2, 1) norm of the transpose: Euclidean norms of the rows, one a unit, added up.
    apart = [float(np.linalg.norm(W - W0, axis=1).sum()) for W, W0 in zip(network.weights, network.start, strict=True)]
    total: float = sum((a / s) ** (2 / 3) for a, s in zip(apart, norms, strict=True)) ** 1.5
    return _product(norms) * total / gamma


MEASURES: tuple[Measure, ...] = (
    Measure(
        name="parameters",
        formula="number of parameters",
        source="counting; VC dimension, Bartlett et al., JMLR 2019",
        value=lambda network, _: float(network.parameters),
    ),
    Measure(
        name="frobenius",
        formula="Σ ‖W_l‖²_F",
        source="weight decay; Jiang et al., ICLR 2020",
        value=lambda network, _: sum(float((W**2).sum()) for W in network.weights),
    ),
    Measure(
        name="distance",
        formula="‖θ - θ₀‖",
        source="Nagarajan and Kolter, 2019",
        value=lambda network, _: network.distance,
    ),
    Measure(
        name="margin",
        formula="1 / γ²",
        source="Jiang et al., ICLR 2020",
        value=lambda _, gamma: 1 / gamma**2,
    ),
    Measure(
        name="frobenius_margin",
        formula="Π ‖W_l‖²_F / γ²",
        source="Neyshabur, Tomioka and Srebro, COLT 2015",
        value=lambda network, gamma: _product([float((W**2).sum()) for W in network.weights]) / gamma**2,
    ),
    Measure(
        name="spectral_margin",
        formula="Π ‖W_l‖₂² · Σ ‖W_l‖²_F / ‖W_l‖₂² / γ²",
        source="Neyshabur, Bhojanapalli and Srebro, ICLR 2018",
        value=_spectral_margin,
    ),
    Measure(
        name="spectral_distance",
        formula="Π ‖W_l‖₂ · (Σ (‖W_lᵀ - W⁰_lᵀ‖₂,₁ / ‖W_l‖₂)^⅔)^(3/2) / γ",
        source="Bartlett, Foster and Telgarsky, NeurIPS 2017",
        value=_spectral_distance,
    ),
    Measure(
        name="path_margin",
        formula="√(Σ over paths of Π w²) / γ",
        source="Neyshabur, Salakhutdinov and Srebro, NeurIPS 2015",
        value=lambda network, gamma: path_norm(network) / gamma,
    ),
)


def measured(network: Network, gamma: float) -> dict[str, float]:
    """Every measure's value, by name; NaN for those that divide by a margin that is not above 0."""
    return {m.name: math.nan if "γ" in m.formula and gamma <= 0 else m.value(network, gamma) for m in MEASURES}


@dataclass(frozen=True, kw_only=True)
class PacBayes:
    """What noise on the weights says. sigma: the largest of :data:`SIGMAS` that raises the training error by
    :data:`DEVIATION` at most (0: none does). sharpness: 1/σ². training_error: of the noisy network, mean over draws.
    gap: bound on the noisy network's expected error minus that one, with the given probability.
    """

    sigma: float
    sharpness: float
    training_error: float
    gap: float


def pac_bayes(network: Network, x: Tensor, y: Tensor, *, M: int = 8, confidence: float = 0.95) -> PacBayes:
    """Of the posterior N(θ, σ²) against the prior N(θ₀, σ²) on rows x (n, D), y (n,) that it was trained on.

    R(Q) ≤ R_S(Q) + √((‖θ - θ₀‖²/2σ² + ln(2√n·J/δ)) / 2n): McAllester's bound with Maurer's constant (2004), J values of
    σ tried; σ by sharpness as in Neyshabur et al., "Exploring Generalization in Deep Learning", NeurIPS 2017. R_S(Q) is
    itself a mean over M draws.
    """
    noise = network.draw(M, x)
    own = _error(network.outputs(x), y)
    low, high = -1, len(SIGMAS)  # the largest known to be small enough, and the smallest known to be too large
    errors: dict[int, float] = {}
    while high - low > 1:
        middle = (low + high) // 2
        errors[middle] = _error(network.outputs(x, noise=noise, sigma=SIGMAS[middle]), y)
        low, high = (middle, high) if errors[middle] <= own + DEVIATION else (low, middle)
    if low < 0:
        return PacBayes(sigma=0.0, sharpness=math.inf, training_error=own, gap=math.inf)
    sigma, n = SIGMAS[low], len(x)
    kl = network.distance**2 / (2 * sigma**2)
    slack = math.log(2 * math.sqrt(n) * len(SIGMAS) / (1 - confidence))
    return PacBayes(
        sigma=sigma,
        sharpness=1 / sigma**2,
        training_error=errors[low],
        gap=math.sqrt((kl + slack) / (2 * n)),
    )


def _error(outputs: Tensor, y: Tensor) -> float:
    return float((outputs.argmax(-1) != y).double().mean())


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's τ_b: how far two orders agree, from -1 to 1; NaN where one of them is constant.

    >>> kendall([1, 2, 3], [1, 2, 4])
    1.0
    """
    from scipy import stats

    found: Any = stats.kendalltau(x, y).statistic
    return float(found)
