"""Bias, variance and noise of a learning algorithm: what its risk is made of, over training sets that it might have had
(lecture, slides "Bias-Variance Decomposition of Expected Risk" and "Bias-Variance Trade-Off").

Expectations over training sets are means over the S networks at hand, expectations over x means over the n rows, and
f̄ is the networks' mean; the parts then add up to the measured risk exactly, whatever S is. As estimates of what
infinitely many training sets would give, the squared bias is too large and the variance too small by a 1/S of the
variance.

Shapes: ``S`` networks, one a training set; ``n`` rows; ``C`` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SquaredParts:
    """risk = bias + variance + noise + cross. bias: E(f̄ - f*)². variance: E(f_S - f̄)². noise: E(y - f*)².

    cross: 2E(f̄ - f*)(f* - y), which vanishes in expectation (the slide's cross term), and exactly where noise is given
    as Var(y|x) instead of by drawn targets.
    """

    risk: float
    bias: float
    variance: float
    noise: float
    cross: float


def squared_parts(f: Floats, optimal: Floats, *, y: Floats | None = None, noise: Floats | None = None) -> SquaredParts:
    """Of the square loss: predictions f (S, n), f* = E[y|x] (n,), and either drawn targets y (n,) or Var(y|x) (n,).

    Where nobody knows f*, y stands for it: then ``bias`` is the squared bias and the noise together.

    >>> squared_parts(np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([1.0, 2.0]), noise=np.array([0.5, 0.5]))
    SquaredParts(risk=1.5, bias=0.5, variance=0.5, noise=0.5, cross=0.0)
    """
    if (y is None) == (noise is None):
        raise ValueError("give the drawn targets, or their variance given x")
    mean = f.mean(0)
    if y is None:
        assert noise is not None
        risk, of_noise, cross = ((f - optimal) ** 2 + noise).mean(), noise.mean(), 0.0
    else:
        risk, of_noise = ((f - y) ** 2).mean(), ((y - optimal) ** 2).mean()
        cross = 2 * ((mean - optimal) * (optimal - y)).mean()
    return SquaredParts(
        risk=float(risk),
        bias=float(((mean - optimal) ** 2).mean()),
        variance=float(((f - mean) ** 2).mean()),
        noise=float(of_noise),
        cross=float(cross),
    )


@dataclass(frozen=True, kw_only=True)
class ZeroOneParts:
    """risk = bias + unbiased_variance - biased_variance + noise (Domingos, "A Unified Bias-Variance Decomposition",
    ICML 2000, theorem 3, several classes).

    The main prediction is the networks' vote. bias: share of rows where it is not the optimal class. variance: share of
    votes against it, which costs where it is right (unbiased) and helps where it is wrong (biased), if they are for the
    optimal class. noise: what the labels' own randomness costs, c₁N(x) in the paper.
    """

    risk: float
    bias: float
    unbiased_variance: float
    biased_variance: float
    noise: float

    @property
    def variance(self) -> float:
        """Net: what it costs minus what it saves."""
        return self.unbiased_variance - self.biased_variance


def zero_one_parts(votes: Codes, probability: Floats) -> ZeroOneParts:
    """Of the zero-one loss: predicted classes (S, n), and P(y = c|x) (n, C).

    Where nobody knows the probabilities, the one-hot labels stand for them: noise is then 0 and counts as bias.

    >>> parts = zero_one_parts(np.array([[0, 1], [0, 0], [1, 0]]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    >>> {key: round(value, 4) for key, value in vars(parts).items()}
    {'risk': 0.4833, 'bias': 0.5, 'unbiased_variance': 0.1667, 'biased_variance': 0.1667, 'noise': -0.0167}
    """
    C = probability.shape[1]
    share = np.stack([(votes == c).mean(0) for c in range(C)], axis=1)  # (n, C): P(f_S(x) = c)
    optimal, main = probability.argmax(1), share.argmax(1)
    rows = np.arange(len(share))
    right, for_main = share[rows, optimal], share[rows, main]
    noise = 1 - probability[rows, optimal]
    wrong = 1 - right
    # P(y = f_S | f_S ≠ y*, y ≠ y*): both miss the optimal class, and agree on another.
    agree = (share * probability).sum(1) - right * probability[rows, optimal]
    both = wrong * noise
    coefficient = right - np.divide(wrong * agree, both, out=np.zeros(len(rows)), where=both > 0)
    biased = main != optimal
    variance = 1 - for_main
    return ZeroOneParts(
        risk=float(1 - (share * probability).sum(1).mean()),
        bias=float(biased.mean()),
        unbiased_variance=float(np.where(biased, 0, variance).mean()),
        biased_variance=float(np.where(biased, right, 0).mean()),
        noise=float((coefficient * noise).mean()),
    )
