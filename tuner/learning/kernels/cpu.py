"""The kernels compiled for the CPU by numba: one pass over memory each, random bits made in registers.

Compiled code is cached on disk, so only the first run on a machine pays for it. ReLU and leaky ReLU run wholly here;
the smooth activations let torch's vectorised operations compute φ and φ′, and fuse bias, mask and scale around them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from tuner.learning.activations import LEAKY_SLOPE, value, value_and_derivative
from tuner.learning.kernels.interface import Blocks, LaneReal, Lanes, LaneWhole, Real, Step, Whole
from tuner.learning.kernels.reference import CLIP_EPS
from tuner.learning.metrics import Head
from tuner.learning.optimizers import ADAM_EPS
from tuner.learning.randomness import MIX_1, MIX_2, ROW_MULTIPLIER, UNIT_MULTIPLIER
from tuner.trial import Activation, Optimizer

Array = npt.NDArray[Any]

_ROW = np.uint32(ROW_MULTIPLIER)
_UNIT = np.uint32(UNIT_MULTIPLIER)
_MIX_1 = np.uint32(MIX_1)
_MIX_2 = np.uint32(MIX_2)
_15 = np.uint32(15)
_16 = np.uint32(16)

# Plain integers: numba reads enum members slowly or not at all.
_START, _COUNT, _STEPS = int(Whole.START), int(Whole.COUNT), int(Whole.STEPS)
_WEIGHT, _SIZE, _DENOMINATOR, _SHRINK, _AVERAGE = map(int, Real)
_WIDTH, _THRESHOLD, _INPUT_THRESHOLD = map(int, LaneWhole)
_SCALE, _INPUT_SCALE, _SMOOTHING, _L2, _COUPLED, _MOMENTUM, _BETA2, _CLIP = map(int, LaneReal)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled when it is first called, or read from the cache on disk."""

    def compiled(*, cache: bool) -> Callable[..., Any]:
        # error_model: a division that raises on zero cannot be vectorised. contract: fused multiply-add, the one
        # liberty taken.
        return njit(cache=cache, nogil=True, error_model="numpy", fastmath={"contract"})(function)

    try:
        return compiled(cache=True)
    except RuntimeError:  # neither this folder nor a user's cache can be written to
        return compiled(cache=False)


@njit(inline="always")
def _mix(x):  # type: ignore[no-untyped-def]
    # numba widens 32-bit integers to 64 bits in every operation: cut back each time, or nothing wraps around.
    x = np.uint32(x ^ np.uint32(x >> _16))
    x = np.uint32(x * _MIX_1)
    x = np.uint32(x ^ np.uint32(x >> _15))
    x = np.uint32(x * _MIX_2)
    return np.uint32(x ^ np.uint32(x >> _16))


@njit(inline="always")
def _unit_bits(row, h, b):  # type: ignore[no-untyped-def]
    return _mix(np.uint32(row ^ np.uint32(np.uint32(np.uint32(h) * _UNIT) + b)))


@njit(inline="always")
def _row_bits(position, a):  # type: ignore[no-untyped-def]
    return _mix(np.uint32(np.uint32(np.uint32(position) * _ROW) + a))


@_compiled
def _gather(x, y, order, whole, x_out, y_out):  # type: ignore[no-untyped-def]
    for k in range(y_out.shape[0]):
        start = whole[_START, k]
        for r in range(whole[_COUNT, k]):
            row = order[k, start + r]
            y_out[k, r] = y[row]
            if k < x_out.shape[0]:
                # A loop is one copy of memory to the compiler; assigning slices makes numba look for overlaps first.
                for d in range(x_out.shape[2]):
                    x_out[k, r, d] = x[row, d]


@_compiled
def _drop_inputs(x, words, whole, lane_whole, lane_real):  # type: ignore[no-untyped-def]
    for k in range(x.shape[0]):
        threshold = np.uint32(lane_whole[_INPUT_THRESHOLD, k])
        if threshold == 0:
            continue
        scale = lane_real[_INPUT_SCALE, k]
        zero = x.dtype.type(0)
        a, b = np.uint32(words[0, k]), np.uint32(words[1, k])
        for r in range(whole[_COUNT, k]):
            row = _row_bits(whole[_START, k] + r, a)
            x_r = x[k, r]
            for d in range(x.shape[2]):
                x_r[d] *= scale if _unit_bits(row, d, b) >= threshold else zero


@_compiled
def _relu_forward(z, bias, words, whole, lane_whole, lane_real, slope, out):  # type: ignore[no-untyped-def]
    K, B, _ = z.shape
    zero = z.dtype.type(0)
    for k in range(K):
        width = lane_whole[_WIDTH, k]
        threshold = np.uint32(lane_whole[_THRESHOLD, k])
        scale = lane_real[_SCALE, k]
        low = scale * slope
        a, b = np.uint32(words[0, k]), np.uint32(words[1, k])
        start = whole[_START, k]
        bias_k = bias[k]
        for r in range(B):
            z_r, out_r = z[k, r], out[k, r]
            if threshold == 0:
                for h in range(width):
                    v = z_r[h] + bias_k[h]
                    d = scale if v > 0 else low
                    z_r[h] = d
                    out_r[h] = v * d
            else:
                row = _row_bits(start + r, a)
                for h in range(width):
                    v = z_r[h] + bias_k[h]
                    d = scale if v > 0 else low
                    d = d if _unit_bits(row, h, b) >= threshold else zero
                    z_r[h] = d
                    out_r[h] = v * d


@_compiled
def _add_bias(z, bias):  # type: ignore[no-untyped-def]
    for k in range(z.shape[0]):
        for r in range(z.shape[1]):
            for h in range(z.shape[2]):
                z[k, r, h] += bias[k, h]


@_compiled
def _mask(a, derivative, words, whole, lane_whole, lane_real, out, z):  # type: ignore[no-untyped-def]
    K, B, H = a.shape
    zero = a.dtype.type(0)
    for k in range(K):
        width = lane_whole[_WIDTH, k]
        threshold = np.uint32(lane_whole[_THRESHOLD, k])
        scale = lane_real[_SCALE, k]
        word_a, word_b = np.uint32(words[0, k]), np.uint32(words[1, k])
        start = whole[_START, k]
        for r in range(B):
            row = _row_bits(start + r, word_a)
            for h in range(width):
                s = scale if _unit_bits(row, h, word_b) >= threshold else zero
                out[k, r, h] = a[k, r, h] * s
                z[k, r, h] = derivative[k, r, h] * s
            for h in range(width, H):
                out[k, r, h] = zero
                z[k, r, h] = zero


@_compiled
def _relu_infer(z, bias, slope):  # type: ignore[no-untyped-def]
    for k in range(z.shape[0]):
        bias_k = bias[k]
        for r in range(z.shape[1]):
            z_r = z[k, r]
            for h in range(z.shape[2]):
                v = z_r[h] + bias_k[h]
                z_r[h] = v if v > 0 else v * slope


@_compiled
def _clear_padding(z, lane_whole):  # type: ignore[no-untyped-def]
    for k in range(z.shape[0]):
        z[k, :, lane_whole[_WIDTH, k] :] = 0


@_compiled
def _hidden_backward(da, derivative, bias_gradient, accumulate):  # type: ignore[no-untyped-def]
    for k in range(da.shape[0]):
        gradient = bias_gradient[k]
        if not accumulate:
            gradient[:] = 0
        for r in range(da.shape[1]):
            da_r, derivative_r = da[k, r], derivative[k, r]
            for h in range(da.shape[2]):
                v = da_r[h] * derivative_r[h]
                da_r[h] = v
                gradient[h] += v


@_compiled
def _head_cross_entropy(outputs, bias, y, whole, real, class_weights, bias_gradient, loss, accumulate, lane_real):  # type: ignore[no-untyped-def]
    K, C, _ = outputs.shape
    for k in range(K):
        weight, smoothing = real[_WEIGHT, k], lane_real[_SMOOTHING, k]
        off = smoothing / outputs.dtype.type(C)
        on = outputs.dtype.type(1) - smoothing
        count = whole[_COUNT, k]
        if not accumulate:
            bias_gradient[k, :] = 0
        for r in range(count):
            row = outputs[k, :, r]
            top = row[0] + bias[k, 0]
            for c in range(C):
                row[c] += bias[k, c]
                if row[c] > top or row[c] != row[c]:
                    top = row[c]
            total = outputs.dtype.type(0)
            shifted_sum = outputs.dtype.type(0)
            label = y[k, r]
            at_label = row[label] - top
            for c in range(C):
                shifted = row[c] - top
                shifted_sum += shifted
                row[c] = math.exp(shifted)
                total += row[c]
            log_total = math.log(total)
            # -Σ target·log p, where log p = shifted - log_total and target = on·onehot + off
            class_weight = class_weights[k, label]
            loss[k] += class_weight * (log_total - on * at_label - off * shifted_sum)
            inverse = outputs.dtype.type(1) / total
            scale = weight * class_weight
            for c in range(C):
                g = row[c] * inverse - off
                if c == label:
                    g -= on
                g *= scale
                row[c] = g
                bias_gradient[k, c] += g
        outputs[k, :, count:] = 0


@_compiled
def _head_square_of_classes(outputs, bias, y, whole, real, class_weights, bias_gradient, loss, accumulate):  # type: ignore[no-untyped-def]
    K, C, _ = outputs.shape
    number = outputs.dtype.type
    for k in range(K):
        scale = number(2) * real[_WEIGHT, k] / number(C)
        count = whole[_COUNT, k]
        if not accumulate:
            bias_gradient[k, :] = 0
        for r in range(count):
            total = number(0)
            class_weight = class_weights[k, y[k, r]]
            for c in range(C):
                difference = outputs[k, c, r] + bias[k, c] - (number(1) if c == y[k, r] else number(0))
                total += difference * difference
                g = difference * scale * class_weight
                outputs[k, c, r] = g
                bias_gradient[k, c] += g
            loss[k] += class_weight * total / number(C)
        outputs[k, :, count:] = 0


@_compiled
def _head_hinge(outputs, bias, y, whole, real, class_weights, bias_gradient, loss, accumulate):  # type: ignore[no-untyped-def]
    K, C, _ = outputs.shape
    number = outputs.dtype.type
    for k in range(K):
        count = whole[_COUNT, k]
        if not accumulate:
            bias_gradient[k, :] = 0
        for r in range(count):
            label = y[k, r]
            class_weight = class_weights[k, label]
            scale = real[_WEIGHT, k] * class_weight / number(C)
            limit = outputs[k, label, r] + bias[k, label] - number(1)
            total, broken = number(0), number(0)
            for c in range(C):
                margin = outputs[k, c, r] + bias[k, c] - limit
                g = number(0)
                if c != label and not margin <= 0:
                    total += margin
                    broken += number(1)
                    g = scale
                outputs[k, c, r] = g
                bias_gradient[k, c] += g
            outputs[k, label, r] = -broken * scale
            bias_gradient[k, label] -= broken * scale
            loss[k] += class_weight * total / number(C)
        outputs[k, :, count:] = 0


@_compiled
def _head_square(outputs, bias, y, whole, real, _, bias_gradient, loss, accumulate):  # type: ignore[no-untyped-def]
    for k in range(outputs.shape[0]):
        scale = outputs.dtype.type(2) * real[_WEIGHT, k]
        count = whole[_COUNT, k]
        if not accumulate:
            bias_gradient[k, :] = 0
        for r in range(count):
            difference = outputs[k, 0, r] + bias[k, 0] - y[k, r]
            loss[k] += difference * difference
            g = difference * scale
            outputs[k, 0, r] = g
            bias_gradient[k, 0] += g
        outputs[k, :, count:] = 0


@_compiled
def _clip(theta, gradient, offset, size, lanes, decays, lane_real, coefficients):  # type: ignore[no-untyped-def]
    number = theta.dtype.type
    for k in range(coefficients.shape[0]):
        coefficients[k] = 1
        limit = lane_real[_CLIP, k]
        if limit == 0:
            continue
        total = 0.0
        for i in range(offset.shape[0]):
            if k >= lanes[i]:
                continue
            n = size[i]
            first = offset[i] + k * n
            l2 = lane_real[_L2, k] if decays[i] else number(0)
            t, g = theta[first : first + n], gradient[first : first + n]
            for j in range(n):
                full = g[j] + l2 * t[j]
                total += full * full
        scaled = limit / (math.sqrt(total) + CLIP_EPS)
        coefficients[k] = min(scaled, 1.0) if scaled == scaled else scaled


@_compiled
def _sgd(theta, gradient, velocity, coefficients, offset, size, lanes, decays, whole, real, lane_real, clear, nesterov):  # type: ignore[no-untyped-def]
    zero = theta.dtype.type(0)
    for i in range(offset.shape[0]):
        n = size[i]
        for k in range(lanes[i]):
            if whole[_STEPS, k] == 0:
                continue
            first = offset[i] + k * n
            t, g, v = theta[first : first + n], gradient[first : first + n], velocity[first : first + n]
            step_size, mu, clipped = real[_SIZE, k], lane_real[_MOMENTUM, k], coefficients[k]
            l2 = lane_real[_L2, k] if decays[i] else zero
            coupled = lane_real[_COUPLED, k] if decays[i] else zero
            shrink = real[_SHRINK, k] if decays[i] else theta.dtype.type(1)
            for j in range(n):
                g_j = (g[j] + l2 * t[j]) * clipped + coupled * t[j]
                v_j = mu * v[j] + g_j
                v[j] = v_j
                t[j] = t[j] * shrink - step_size * (g_j + mu * v_j if nesterov else v_j)
            if clear:
                g[:] = 0


@_compiled
def _rmsprop(theta, gradient, velocity, v, coefficients, offset, size, lanes, decays, whole, real, lane_real, clear):  # type: ignore[no-untyped-def]
    number = theta.dtype.type
    zero, one, eps = number(0), number(1), number(ADAM_EPS)
    for i in range(offset.shape[0]):
        n = size[i]
        for k in range(lanes[i]):
            if whole[_STEPS, k] == 0:
                continue
            first = offset[i] + k * n
            t, g = theta[first : first + n], gradient[first : first + n]
            vk, buffer = v[first : first + n], velocity[first : first + n]
            step_size, mu, clipped = real[_SIZE, k], lane_real[_MOMENTUM, k], coefficients[k]
            alpha = lane_real[_BETA2, k]
            rest = one - alpha
            l2 = lane_real[_L2, k] if decays[i] else zero
            coupled = lane_real[_COUPLED, k] if decays[i] else zero
            shrink = real[_SHRINK, k] if decays[i] else one
            for j in range(n):
                g_j = (g[j] + l2 * t[j]) * clipped + coupled * t[j]
                v_j = alpha * vk[j] + rest * g_j * g_j
                vk[j] = v_j
                b_j = mu * buffer[j] + g_j / (math.sqrt(v_j) + eps)
                buffer[j] = b_j
                t[j] = t[j] * shrink - step_size * b_j
            if clear:
                g[:] = 0


@_compiled
def _adam(theta, gradient, m, v, coefficients, offset, size, lanes, decays, whole, real, lane_real, clear, inside):  # type: ignore[no-untyped-def]
    number = theta.dtype.type
    zero, one, eps = number(0), number(1), number(ADAM_EPS)
    for i in range(offset.shape[0]):
        n = size[i]
        for k in range(lanes[i]):
            if whole[_STEPS, k] == 0:
                continue
            first = offset[i] + k * n
            t, g = theta[first : first + n], gradient[first : first + n]
            mk, vk = m[first : first + n], v[first : first + n]
            step_size, root, clipped = real[_SIZE, k], one / real[_DENOMINATOR, k], coefficients[k]
            beta1, beta2 = lane_real[_MOMENTUM, k], lane_real[_BETA2, k]
            rest1, rest2 = one - beta1, one - beta2
            l2 = lane_real[_L2, k] if decays[i] else zero
            coupled = lane_real[_COUPLED, k] if decays[i] else zero
            shrink = real[_SHRINK, k] if decays[i] else one
            if inside:
                for j in range(n):
                    g_j = (g[j] + l2 * t[j]) * clipped + coupled * t[j]
                    m_j = beta1 * mk[j] + rest1 * g_j
                    v_j = beta2 * vk[j] + rest2 * g_j * g_j
                    mk[j] = m_j
                    vk[j] = v_j
                    t[j] = t[j] * shrink - step_size * m_j / math.sqrt(v_j * root * root + eps)
            else:
                for j in range(n):
                    g_j = (g[j] + l2 * t[j]) * clipped + coupled * t[j]
                    m_j = beta1 * mk[j] + rest1 * g_j
                    v_j = beta2 * vk[j] + rest2 * g_j * g_j
                    mk[j] = m_j
                    vk[j] = v_j
                    t[j] = t[j] * shrink - step_size * m_j / (math.sqrt(v_j) * root + eps)
            if clear:
                g[:] = 0


@_compiled
def _average(theta, mean, offset, size, lanes, real):  # type: ignore[no-untyped-def]
    for i in range(offset.shape[0]):
        n = size[i]
        for k in range(lanes[i]):
            rate = real[_AVERAGE, k]
            if rate == 0:
                continue
            first = offset[i] + k * n
            t, m = theta[first : first + n], mean[first : first + n]
            if rate == 1:
                m[:] = t
            else:
                for j in range(n):
                    m[j] += rate * (t[j] - m[j])


class CpuKernels:
    """See :class:`tuner.learning.kernels.interface.Kernels`."""

    def handle(self, tensor: Tensor) -> Array:
        array: Array = tensor.numpy()
        return array

    def gather(self, x: Array, y: Array, order: Array, step: Step, x_out: Array, y_out: Array) -> None:
        _gather(x, y, order, step.whole, x_out, y_out)

    def drop_inputs(self, x: Array, words: Array, step: Step, lanes: Lanes) -> None:
        _drop_inputs(x, words, step.whole, lanes.whole, lanes.real)

    def hidden_forward(
        self, activation: Activation, z: Array, bias: Array, words: Array, step: Step, lanes: Lanes, out: Array
    ) -> None:
        if activation in ("relu", "leaky_relu"):
            slope = z.dtype.type(LEAKY_SLOPE if activation == "leaky_relu" else 0.0)
            _relu_forward(z, bias, words, step.whole, lanes.whole, lanes.real, slope, out)
            return
        _add_bias(z, bias)
        a, derivative = value_and_derivative(activation, torch.from_numpy(z))
        _mask(a.numpy(), derivative.numpy(), words, step.whole, lanes.whole, lanes.real, out, z)

    def hidden_infer(self, activation: Activation, z: Array, bias: Array, lanes: Lanes) -> None:
        if activation in ("relu", "leaky_relu"):
            _relu_infer(z, bias, z.dtype.type(LEAKY_SLOPE if activation == "leaky_relu" else 0.0))
            return
        _add_bias(z, bias)
        shared = torch.from_numpy(z)
        shared.copy_(value(activation, shared))
        _clear_padding(z, lanes.whole)

    def hidden_backward(self, da: Array, derivative: Array, bias_gradient: Array, accumulate: bool) -> None:
        _hidden_backward(da, derivative, bias_gradient, accumulate)

    def head(
        self,
        head: Head,
        outputs: Array,
        bias: Array,
        y: Array,
        step: Step,
        lanes: Lanes,
        bias_gradient: Array,
        loss: Array,
        accumulate: bool,
    ) -> None:
        heads: dict[Head, tuple[Callable[..., None], tuple[Array, ...]]] = {
            "cross_entropy": (_head_cross_entropy, (lanes.real,)),
            "square": (_head_square, ()),
            "square_of_classes": (_head_square_of_classes, ()),
            "hinge": (_head_hinge, ()),
        }
        compiled, more = heads[head]
        numbers = (step.whole, step.real, lanes.class_weights)
        compiled(outputs, bias, y, *numbers, bias_gradient, loss, accumulate, *more)

    def clip(self, theta: Array, gradient: Array, blocks: Blocks, lanes: Lanes, coefficients: Array) -> None:
        compiled: Callable[..., None] = _clip
        compiled(theta, gradient, *blocks, lanes.real, coefficients)

    def optimize(
        self,
        optimizer: Optimizer,
        theta: Array,
        gradient: Array,
        moments: tuple[Array, ...],
        coefficients: Array,
        blocks: Blocks,
        step: Step,
        lanes: Lanes,
        clear: bool,
    ) -> None:
        families: dict[Optimizer, tuple[Callable[..., None], tuple[bool, ...]]] = {
            "sgd": (_sgd, (False,)),
            "nesterov": (_sgd, (True,)),
            "rmsprop": (_rmsprop, ()),
            "adam": (_adam, (False,)),
            "adamw": (_adam, (False,)),
            "adamw_decoupled": (_adam, (True,)),
        }
        compiled, flags = families[optimizer]
        numbers = (step.whole, step.real, lanes.real)
        compiled(theta, gradient, *moments, coefficients, *blocks, *numbers, clear, *flags)

    def average(self, theta: Array, mean: Array, blocks: Blocks, step: Step) -> None:
        compiled: Callable[..., None] = _average
        compiled(theta, mean, *blocks[:3], step.real)
