"""Sharpness: how steeply the training loss rises around a minimum (slide "Implicit Regularization").

Let H be the Hessian of the loss L at θ. It is never formed: as it is symmetric, its product with a vector is the
gradient of the gradient's product with that vector (Pearlmutter 1994), by ``torch.func`` reverse over reverse.

Shapes: ``P`` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vjp

from tuner.theory.loss import Loss

ITERATIONS = 200
TOLERANCE = 1e-3  # relative change of the eigenvalue between two products
MIXED = 0.1  # residual, relative to the eigenvalue, from which on the iteration has found no single one
SAMPLES = 64
RHO = 0.05  # radius of the SAM ball, as in the paper
STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Eigenvalue:
    """An eigenvalue λ with its unit vector v (P,). residual: ‖Hv - λv‖, which bounds λ's distance to an eigenvalue."""

    value: float
    vector: Tensor
    residual: float
    products: int


def hessian_product(loss: Loss, theta: Tensor) -> Callable[[Tensor], Tensor]:
    """v ↦ Hv at θ: (P,) -> (P,). The gradient is taken once, for any number of products."""
    product = vjp(grad(loss), theta)[1]
    return lambda vector: product(vector)[0]


def largest_eigenvalue(
    loss: Loss, theta: Tensor, *, iterations: int = ITERATIONS, tolerance: float = TOLERANCE, seed: int = 0
) -> Eigenvalue:
    """The largest eigenvalue of the Hessian, by power iteration.

    That finds the eigenvalue of largest size. Where it is negative, or mixes with one of the other sign and nearly its
    size, the iteration is repeated on H + ‖Hv‖I, whose eigenvalues are none below 0, so that what it finds is the
    largest of H.
    """
    product = hessian_product(loss, theta)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(theta.numel(), generator=generator, dtype=torch.float64).to(theta)
    found = _power(product, start, 0.0, iterations, tolerance)
    if found.value < 0 or found.residual > MIXED * found.value:
        shift = -math.hypot(found.value, found.residual)
        shifted = _power(product, start, shift, iterations, tolerance / 10)  # the shift makes its steps smaller
        products = found.products + shifted.products
        return Eigenvalue(value=shifted.value, vector=shifted.vector, residual=shifted.residual, products=products)
    return found


def _power(
    product: Callable[[Tensor], Tensor], start: Tensor, shift: float, iterations: int, tolerance: float
) -> Eigenvalue:
    """Power iteration on H - shift·I; value and residual are H's."""
    vector = start / start.norm()
    value, residual, products = math.nan, math.inf, 0
    while products < iterations:
        image = product(vector)
        products += 1
        before, value = value, float(vector @ image)
        residual = float((image - value * vector).norm())
        shifted = image - shift * vector
        size = float(shifted.norm())
        settled = abs(value - before) <= tolerance * abs(value) and residual <= MIXED * abs(value)
        if size == 0 or settled:
            break
        vector = shifted / size
    return Eigenvalue(value=value, vector=vector, residual=residual, products=products)


def trace(loss: Loss, theta: Tensor, *, samples: int = SAMPLES, seed: int = 0) -> tuple[float, float]:
    """The trace of the Hessian and its standard error, by Hutchinson's estimator (1990): the mean of vᵀHv over random
    vectors of signs.
    """
    generator, product = torch.Generator().manual_seed(seed), hessian_product(loss, theta)
    draws = []
    for _ in range(samples):
        signs = torch.randint(0, 2, (theta.numel(),), generator=generator).to(theta) * 2 - 1
        draws.append(float(signs @ product(signs)))
    values = torch.tensor(draws, dtype=torch.float64)
    return float(values.mean()), float(values.std() / math.sqrt(samples))


def sam_sharpness(loss: Loss, theta: Tensor, *, rho: float = RHO, steps: int = STEPS) -> float:
    """How far the loss rises at most within a ball: max over ‖ε‖ ≤ ρ of L(θ + ε) - L(θ), from below.

    Foret et al., "Sharpness-Aware Minimization", ICLR 2021, equation 1; its one step along the gradient to the sphere
    (equation 2) is followed by further ones, each back onto the sphere. The best point that was seen counts, and θ
    itself is one, so the result is never below 0.
    """
    slope = grad(loss)
    here = float(loss(theta))
    start = torch.randn(theta.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(theta)
    offset, best = torch.zeros_like(theta), 0.0
    for _ in range(steps):
        direction = slope(theta + offset)
        if not direction.any():  # at a critical point any direction will do to leave it
            direction = start
        size = direction.norm()
        # On the sphere the loss rises fastest along its tangent; a step of the radius, then back onto it.
        offset = offset + rho * direction / size
        offset = offset * (rho / offset.norm())
        best = max(best, float(loss(theta + offset)) - here)
    return best
