"""The kernels compiled for CUDA by Triton: one launch each, random bits made in registers, sums in a fixed order.

A launch's grid depends on shapes alone and nothing is read back from the device, so a whole micro-step can be captured
in a CUDA graph. No float is added atomically: every sum belongs to one program, so two runs give equal bits.
"""
# Triton's functions have no Python types: their parameters are pointers and tiles.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tuner.learning.activations import LEAKY_SLOPE
from tuner.learning.kernels.interface import Blocks, LaneReal, Lanes, LaneWhole, Real, Step, Whole
from tuner.learning.kernels.reference import CLIP_EPS
from tuner.learning.metrics import Head
from tuner.learning.optimizers import ADAM_EPS
from tuner.learning.randomness import MIX_1, MIX_2, ROW_MULTIPLIER, UNIT_MULTIPLIER
from tuner.trial import Activation, Optimizer

TILE = 1024  # numbers that a program holds of each buffer; a power of two
COLUMNS = 128  # at most, in a tile of rows
SUMMED_COLUMNS = 32  # likewise, where a program sums over all rows: more programs, and still whole memory transactions

# What Triton's functions read from their module must be of its own constant type.
_ROW, _UNIT = tl.constexpr(ROW_MULTIPLIER), tl.constexpr(UNIT_MULTIPLIER)
_MIX_1, _MIX_2 = tl.constexpr(MIX_1), tl.constexpr(MIX_2)
_START, _COUNT, _STEPS = (tl.constexpr(int(row)) for row in Whole)
_WEIGHT, _SIZE, _DENOMINATOR, _SHRINK, _AVERAGE = (tl.constexpr(int(row)) for row in Real)
_WIDTH, _THRESHOLD, _INPUT_THRESHOLD = (tl.constexpr(int(row)) for row in LaneWhole)
_SCALE, _INPUT_SCALE, _SMOOTHING, _L2, _COUPLED, _MOMENTUM, _BETA2, _CLIP = (tl.constexpr(int(row)) for row in LaneReal)
_SLOPE, _ADAM_EPS, _CLIP_EPS = tl.constexpr(LEAKY_SLOPE), tl.constexpr(ADAM_EPS), tl.constexpr(CLIP_EPS)
_ROOT_HALF = tl.constexpr(0.5**0.5)
_GAUSS = tl.constexpr(0.3989422804014327)  # 1/√(2π)

# Numbers that differ from pack to pack: a kernel compiled anew for each of their properties would gain nothing.
_PLAIN = ["K", "B", "n", "C", "N"]


# ---- random bits: randomness.mix32 and randomness.bits ----


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * _MIX_1
    x = x ^ (x >> 15)
    x = x * _MIX_2
    return x ^ (x >> 16)


@triton.jit
def _kept(positions, units, words, threshold, k, K):
    """Which of a tile's units stay: positions (ROWS,) in the epoch's order, units (COLUMNS,)."""
    a, b = tl.load(words + k).to(tl.uint32), tl.load(words + K + k).to(tl.uint32)
    row = _mix(positions.to(tl.uint32) * _ROW + a)
    unit = units.to(tl.uint32) * _UNIT + b
    return _mix(row[:, None] ^ unit[None, :]) >= threshold.to(tl.uint32)


# ---- rows ----


@triton.jit
def _place(B, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile of a program: its lane, its rows (ROWS,) and its columns (COLUMNS,)."""
    blocks = tl.cdiv(B, ROWS)
    k = (tl.program_id(0) // blocks).to(tl.int64)
    r = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    return k, r, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit(do_not_specialize=_PLAIN)
def _gather(x, y, order, whole, x_out, y_out, K, B, D, n, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    k, r, d = _place(B, ROWS, COLUMNS)
    live = r < tl.load(whole + _COUNT * K + k)
    row = tl.load(order + k * n + tl.load(whole + _START * K + k) + r, mask=live, other=0)
    used = live[:, None] & (d < D)[None, :]
    values = tl.load(x + row[:, None] * stride + d[None, :], mask=used, other=0.0)
    tl.store(x_out + (k * B + r)[:, None] * D + d[None, :], values, mask=used)
    if tl.program_id(1) == 0:
        tl.store(y_out + k * B + r, tl.load(y + row, mask=live, other=0), mask=live)


@triton.jit(do_not_specialize=_PLAIN)
def _gather_targets(y, order, whole, y_out, K, B, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    k, r, _ = _place(B, ROWS, COLUMNS)
    live = r < tl.load(whole + _COUNT * K + k)
    row = tl.load(order + k * n + tl.load(whole + _START * K + k) + r, mask=live, other=0)
    tl.store(y_out + k * B + r, tl.load(y + row, mask=live, other=0), mask=live)


@triton.jit(do_not_specialize=_PLAIN)
def _drop_inputs(x, words, whole, lane_whole, lane_real, K, B, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    k, r, d = _place(B, ROWS, COLUMNS)
    threshold = tl.load(lane_whole + _INPUT_THRESHOLD * K + k)
    if threshold == 0:
        return
    scale = tl.load(lane_real + _INPUT_SCALE * K + k)
    used = (r < tl.load(whole + _COUNT * K + k))[:, None] & (d < D)[None, :]
    at = x + (k * B + r)[:, None] * D + d[None, :]
    kept = _kept(tl.load(whole + _START * K + k) + r, d, words, threshold, k, K)
    tl.store(at, tl.load(at, mask=used, other=0.0) * tl.where(kept, scale, 0.0), mask=used)


# ---- hidden layers ----


@triton.jit
def _tanh(z):
    """From exp where |z| is large; below 0.625, where that would cancel, the rational function of Cephes' tanh.c."""
    s = z * z
    p = (-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3
    q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3
    size = tl.abs(z)
    large = 1 - 2 / (tl.exp(2 * size) + 1)
    return tl.where(size < 0.625, z + z * s * (p / q), tl.where(z < 0, -large, large))


@triton.jit
def _value_and_derivative(z, ACTIVATION: tl.constexpr):
    """φ(z) and φ′(z); NaN stays NaN."""
    if ACTIVATION == "relu":
        derivative = tl.where(z > 0, 1.0, 0.0).to(z.dtype)
        a = z * derivative
    elif ACTIVATION == "leaky_relu":
        derivative = tl.where(z > 0, tl.full(z.shape, 1.0, z.dtype), tl.full(z.shape, _SLOPE, z.dtype))
        a = z * derivative
    elif ACTIVATION == "tanh":
        a = _tanh(z)
        derivative = 1 - a * a
    elif ACTIVATION == "sigmoid":
        a = 1 / (1 + tl.exp(-z))
        derivative = a * (1 - a)
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1 + tl.erf(z * _ROOT_HALF))
        a = z * cdf
        derivative = cdf + z * tl.exp(-0.5 * z * z) * _GAUSS
    elif ACTIVATION == "step":
        a = tl.where(z > 0, 1.0, 0.0).to(z.dtype)
        derivative = tl.full(z.shape, 1.0, z.dtype)
    else:
        tl.static_assert(ACTIVATION == "silu")
        s = 1 / (1 + tl.exp(-z))
        a = z * s
        derivative = s * (1 + z * (1 - s))
    return a, derivative


@triton.jit(do_not_specialize=_PLAIN)
def _hidden_forward(
    z,
    bias,
    words,
    whole,
    lane_whole,
    lane_real,
    out,
    K,
    B,
    H,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    k, r, h = _place(B, ROWS, COLUMNS)
    at = (k * B + r)[:, None] * H + h[None, :]
    stored = (r < B)[:, None] & (h < H)[None, :]
    before = tl.load(z + at, mask=stored, other=0.0) + tl.load(bias + k * H + h, mask=h < H, other=0.0)[None, :]
    a, derivative = _value_and_derivative(before, ACTIVATION)
    inside = (h < tl.load(lane_whole + _WIDTH * K + k))[None, :]
    scale = tl.where(stored & inside, tl.load(lane_real + _SCALE * K + k), 0.0)
    threshold = tl.load(lane_whole + _THRESHOLD * K + k)
    if threshold > 0:
        scale = tl.where(_kept(tl.load(whole + _START * K + k) + r, h, words, threshold, k, K), scale, 0.0)
    tl.store(out + at, a * scale, mask=stored)
    tl.store(z + at, derivative * scale, mask=stored)


@triton.jit(do_not_specialize=_PLAIN)
def _hidden_infer(z, bias, lane_whole, K, B, H, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    k, r, h = _place(B, ROWS, COLUMNS)
    at = z + (k * B + r)[:, None] * H + h[None, :]
    stored = (r < B)[:, None] & (h < H)[None, :]
    before = tl.load(at, mask=stored, other=0.0) + tl.load(bias + k * H + h, mask=h < H, other=0.0)[None, :]
    a, _ = _value_and_derivative(before, ACTIVATION)
    inside = (h < tl.load(lane_whole + _WIDTH * K + k))[None, :]
    tl.store(at, tl.where(inside, a, 0.0), mask=stored)


@triton.jit(do_not_specialize=_PLAIN)
def _hidden_backward(
    da, derivative, bias_gradient, B, H, ACCUMULATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    k = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    used = h < H
    total = tl.zeros((ROWS, COLUMNS), da.dtype.element_ty)
    for first in range(0, B, ROWS):
        r = first + tl.arange(0, ROWS)
        at = (k * B + r)[:, None] * H + h[None, :]
        stored = (r < B)[:, None] & used[None, :]
        product = tl.load(da + at, mask=stored, other=0.0) * tl.load(derivative + at, mask=stored, other=0.0)
        tl.store(da + at, product, mask=stored)
        total += product
    gradient = tl.sum(total, 0)
    if ACCUMULATE:
        gradient += tl.load(bias_gradient + k * H + h, mask=used, other=0.0)
    tl.store(bias_gradient + k * H + h, gradient, mask=used)


# ---- the head ----


@triton.jit(do_not_specialize=_PLAIN)
def _head(
    outputs,
    bias,
    y,
    whole,
    real,
    lane_real,
    class_weights,
    bias_gradient,
    loss,
    K,
    B,
    C,
    HEAD: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """One program a lane: it walks over the rows, so that the sums over them have one order."""
    k = tl.program_id(0).to(tl.int64)
    count = tl.load(whole + _COUNT * K + k)
    weight = tl.load(real + _WEIGHT * K + k)
    smoothing = tl.load(lane_real + _SMOOTHING * K + k)
    c = tl.arange(0, CLASSES)
    known = c < C
    b = tl.load(bias + k * C + c, mask=known, other=0.0)
    gradients = tl.zeros((ROWS, CLASSES), outputs.dtype.element_ty)
    losses = tl.zeros((ROWS,), tl.float64)
    for first in range(0, B, ROWS):
        r = first + tl.arange(0, ROWS)
        live = r < count
        at = outputs + k * C * B + c[None, :] * B + r[:, None]
        used = live[:, None] & known[None, :]
        o = tl.load(at, mask=used, other=0.0) + b[None, :]
        target = tl.load(y + k * B + r, mask=live, other=0)
        if HEAD == "square":
            difference = tl.where(used, o - target[:, None], 0.0)
            row_loss = tl.sum(difference * difference, 1)
            g = 2 * difference
        else:
            label = c[None, :] == target[:, None]
            if HEAD == "cross_entropy":
                top = tl.max(tl.where(known[None, :], o, float("-inf")), 1)
                shifted = tl.where(known[None, :], o - top[:, None], 0.0)
                e = tl.where(known[None, :], tl.exp(shifted), 0.0)
                total = tl.sum(e, 1)
                off = smoothing / C
                at_label = tl.sum(tl.where(label, shifted, 0.0), 1)
                # -Σ target·log p, where log p = shifted - log(total) and target = (1 - smoothing)·onehot + off
                row_loss = tl.log(total) - (1 - smoothing) * at_label - off * tl.sum(shifted, 1)
                g = e / total[:, None] - off - tl.where(label, 1 - smoothing, 0.0)
            elif HEAD == "square_of_classes":
                difference = tl.where(used, o - tl.where(label, 1.0, 0.0), 0.0)
                row_loss = tl.sum(difference * difference, 1) / C
                g = 2 * difference / C
            else:
                tl.static_assert(HEAD == "hinge")
                margin = 1 + o - tl.sum(tl.where(label, o, 0.0), 1)[:, None]
                # What is not below the limit counts: NaN stays NaN in the loss and moves the weights.
                over = known[None, :] & (c[None, :] != target[:, None]) & ((margin > 0) | (margin != margin))
                row_loss = tl.sum(tl.where(over, margin, 0.0), 1) / C
                broken = tl.where(over, 1.0, 0.0).to(o.dtype)
                g = (broken - tl.where(label, tl.sum(broken, 1)[:, None], 0.0)) / C
            class_weight = tl.load(class_weights + k * C + target, mask=live, other=0.0)
            row_loss *= class_weight
            g *= class_weight[:, None]
        g = tl.where(used, g * weight, 0.0)
        tl.store(at, g, mask=(r < B)[:, None] & known[None, :])
        gradients += g
        losses += tl.where(live, row_loss, 0.0).to(tl.float64)
    gradient = tl.sum(gradients, 0)
    if ACCUMULATE:
        gradient += tl.load(bias_gradient + k * C + c, mask=known, other=0.0)
    tl.store(bias_gradient + k * C + c, gradient, mask=known)
    tl.store(loss + k, tl.load(loss + k) + tl.sum(losses, 0))


# ---- flat buffers ----


@triton.jit
def _chunk(chunks, N, CHUNK: tl.constexpr):
    """The chunk of a program, see :class:`_Chunks`: its lane, indices into the flat buffers, their mask, and decays.

    The mask is empty where the lane has no such block.
    """
    k = (tl.program_id(0) // N).to(tl.int64)
    chunk = chunks + tl.program_id(0) % N
    offset, size, lanes = tl.load(chunk), tl.load(chunk + N), tl.load(chunk + 2 * N)
    decays, first = tl.load(chunk + 3 * N), tl.load(chunk + 4 * N)
    inside = first + tl.arange(0, CHUNK)
    return k, offset + k * size + inside, inside < tl.where(k < lanes, size, 0), decays != 0


@triton.jit(do_not_specialize=_PLAIN)
def _squares(theta, gradient, chunks, lane_real, partial, K, N, CHUNK: tl.constexpr):
    """partial (K, N): the sum of squares of each chunk of the penalised gradient, for lanes that clip."""
    k, at, used, decays = _chunk(chunks, N, CHUNK)
    if tl.load(lane_real + _CLIP * K + k) == 0:
        return
    full = tl.load(gradient + at, mask=used, other=0.0)
    if decays:
        full += tl.load(lane_real + _L2 * K + k) * tl.load(theta + at, mask=used, other=0.0)
    wide = full.to(tl.float64)
    tl.store(partial + tl.program_id(0), tl.sum(wide * wide, 0))


@triton.jit(do_not_specialize=_PLAIN)
def _coefficients(partial, lane_real, coefficients, K, N, CHUNK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64)
    limit = tl.load(lane_real + _CLIP * K + k)
    if limit == 0:
        tl.store(coefficients + k, 1.0)
        return
    total = tl.zeros((CHUNK,), tl.float64)
    for first in range(0, N, CHUNK):
        c = first + tl.arange(0, CHUNK)
        total += tl.load(partial + k * N + c, mask=c < N, other=0.0)
    scaled = limit / (tl.sqrt(tl.sum(total, 0)) + _CLIP_EPS)
    tl.store(coefficients + k, tl.where(scaled > 1, 1.0, scaled))  # NaN stays NaN


@triton.jit(do_not_specialize=_PLAIN)
def _optimize(
    theta,
    gradient,
    first_moment,
    second_moment,
    coefficients,
    chunks,
    whole,
    real,
    lane_real,
    K,
    N,
    OPTIMIZER: tl.constexpr,
    CLEAR: tl.constexpr,
    CHUNK: tl.constexpr,
):
    k, at, used, decays = _chunk(chunks, N, CHUNK)
    if tl.load(whole + _STEPS * K + k) == 0:
        return
    t = tl.load(theta + at, mask=used, other=0.0)
    g = tl.load(gradient + at, mask=used, other=0.0)
    m = tl.load(first_moment + at, mask=used, other=0.0)
    step_size = tl.load(real + _SIZE * K + k)
    mu = tl.load(lane_real + _MOMENTUM * K + k)
    clipped = tl.load(coefficients + k)
    start = t
    if decays:
        coupled = tl.load(lane_real + _COUPLED * K + k)
        g = (g + tl.load(lane_real + _L2 * K + k) * t) * clipped + coupled * t
        start = t * tl.load(real + _SHRINK * K + k)
    else:
        g = g * clipped
    if OPTIMIZER == "sgd" or OPTIMIZER == "nesterov":
        m = mu * m + g
        if OPTIMIZER == "nesterov":
            move = g + mu * m
        else:
            move = m
    else:
        beta2 = tl.load(lane_real + _BETA2 * K + k)
        v = beta2 * tl.load(second_moment + at, mask=used, other=0.0) + (1 - beta2) * g * g
        tl.store(second_moment + at, v, mask=used)
        if OPTIMIZER == "rmsprop":
            m = mu * m + g / (tl.sqrt(v) + _ADAM_EPS)
            move = m
        else:
            m = mu * m + (1 - mu) * g
            root = tl.load(real + _DENOMINATOR * K + k)
            if OPTIMIZER == "adamw_decoupled":
                move = m / tl.sqrt(v / (root * root) + _ADAM_EPS)
            else:
                tl.static_assert(OPTIMIZER == "adam" or OPTIMIZER == "adamw")
                move = m / (tl.sqrt(v) / root + _ADAM_EPS)
    tl.store(first_moment + at, m, mask=used)
    tl.store(theta + at, start - step_size * move, mask=used)
    if CLEAR:
        tl.store(gradient + at, tl.zeros((CHUNK,), t.dtype), mask=used)


@triton.jit(do_not_specialize=_PLAIN)
def _average(theta, mean, chunks, real, K, N, CHUNK: tl.constexpr):
    k, at, used, _ = _chunk(chunks, N, CHUNK)
    rate = tl.load(real + _AVERAGE * K + k)
    if rate == 0:
        return
    t, m = tl.load(theta + at, mask=used, other=0.0), tl.load(mean + at, mask=used, other=0.0)
    tl.store(mean + at, tl.where(rate == 1, t, m + rate * (t - m)), mask=used)


@dataclass(frozen=True)
class _Chunks:
    """How a lane's pieces are cut: chunk c of every lane is a part of one block.

    table (5, N) int64: its block's offset, size, lanes and decays, and the chunk's first number within a piece.
    partial (K, N) float64: room for a sum of each lane's chunk.
    """

    blocks: Blocks
    table: Tensor
    partial: Tensor

    @classmethod
    def of(cls, blocks: Blocks, K: int, device: torch.device) -> "_Chunks":
        columns = [
            (offset, size, lanes, decays, first)
            for offset, size, lanes, decays in zip(*(column.tolist() for column in blocks), strict=True)
            for first in range(0, size, TILE)
        ]
        table = torch.tensor(columns, dtype=torch.int64).T.contiguous().to(device)
        return cls(blocks, table, torch.zeros(K, len(columns), dtype=torch.float64, device=device))


class CudaKernels:
    """See :class:`tuner.learning.kernels.interface.Kernels`. Handles are the tensors themselves, all of one device.

    Blocks lie in the CPU's memory and are read once, when they are first met.
    """

    def __init__(self, device: torch.device) -> None:
        # Triton launches on torch's current device, whatever device the tensors are on.
        cuda = device.type == "cuda"
        self._device: AbstractContextManager[Any] = torch.cuda.device(device) if cuda else nullcontext()
        self._chunks: dict[int, _Chunks] = {}

    def handle(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, x: Tensor, y: Tensor, order: Tensor, step: Step, x_out: Tensor, y_out: Tensor) -> None:
        K, (copies, B, D), n = len(y_out), x_out.shape, order.shape[1]
        numbers = (K, B, D, n, x.stride(0))
        self._by_tiles(_gather, (copies, B, D), x, y, order, step.whole, x_out, y_out, *numbers)
        if copies < K:
            self._by_tiles(_gather_targets, (K, B, 1), y, order, step.whole, y_out, K, B, n)

    def drop_inputs(self, x: Tensor, words: Tensor, step: Step, lanes: Lanes) -> None:
        K, B, D = x.shape
        self._by_tiles(_drop_inputs, (K, B, D), x, words, step.whole, lanes.whole, lanes.real, K, B, D)

    def hidden_forward(
        self, activation: Activation, z: Tensor, bias: Tensor, words: Tensor, step: Step, lanes: Lanes, out: Tensor
    ) -> None:
        K, (_, B, H) = lanes.whole.shape[1], z.shape
        numbers = (step.whole, lanes.whole, lanes.real)
        self._by_tiles(_hidden_forward, z.shape, z, bias, words, *numbers, out, K, B, H, ACTIVATION=activation)

    def hidden_infer(self, activation: Activation, z: Tensor, bias: Tensor, lanes: Lanes) -> None:
        K, (_, B, H) = lanes.whole.shape[1], z.shape
        self._by_tiles(_hidden_infer, z.shape, z, bias, lanes.whole, K, B, H, ACTIVATION=activation)

    def hidden_backward(self, da: Tensor, derivative: Tensor, bias_gradient: Tensor, accumulate: bool) -> None:
        K, B, H = da.shape
        rows, columns = _tile(B, H, SUMMED_COLUMNS)
        grid = (K, triton.cdiv(H, columns))
        constants = {"ACCUMULATE": accumulate, "ROWS": rows, "COLUMNS": columns}
        self._launch(_hidden_backward, grid, da, derivative, bias_gradient, B, H, **constants)

    def head(
        self,
        head: Head,
        outputs: Tensor,
        bias: Tensor,
        y: Tensor,
        step: Step,
        lanes: Lanes,
        bias_gradient: Tensor,
        loss: Tensor,
        accumulate: bool,
    ) -> None:
        K, C, B = outputs.shape
        classes = triton.next_power_of_2(C)
        rows, _ = _tile(B, classes, classes)
        numbers = (step.whole, step.real, lanes.real, lanes.class_weights)
        constants = {"HEAD": head, "ACCUMULATE": accumulate, "ROWS": rows, "CLASSES": classes}
        self._launch(_head, (K,), outputs, bias, y, *numbers, bias_gradient, loss, K, B, C, **constants)

    def clip(self, theta: Tensor, gradient: Tensor, blocks: Blocks, lanes: Lanes, coefficients: Tensor) -> None:
        chunks = self._chunks_of(blocks, lanes.real)
        K, N = chunks.partial.shape
        table, partial = chunks.table, chunks.partial
        self._launch(_squares, (K * N,), theta, gradient, table, lanes.real, partial, K, N, CHUNK=TILE)
        self._launch(_coefficients, (K,), partial, lanes.real, coefficients, K, N, CHUNK=TILE)

    def optimize(
        self,
        optimizer: Optimizer,
        theta: Tensor,
        gradient: Tensor,
        moments: tuple[Tensor, ...],
        coefficients: Tensor,
        blocks: Blocks,
        step: Step,
        lanes: Lanes,
        clear: bool,
    ) -> None:
        chunks = self._chunks_of(blocks, lanes.real)
        K, N = chunks.partial.shape
        buffers = (theta, gradient, moments[0], moments[-1], coefficients, chunks.table)
        numbers = (step.whole, step.real, lanes.real)
        constants = {"OPTIMIZER": optimizer, "CLEAR": clear, "CHUNK": TILE}
        self._launch(_optimize, (K * N,), *buffers, *numbers, K, N, **constants)

    def average(self, theta: Tensor, mean: Tensor, blocks: Blocks, step: Step) -> None:
        chunks = self._chunks_of(blocks, step.real)
        K, N = chunks.partial.shape
        self._launch(_average, (K * N,), theta, mean, chunks.table, step.real, K, N, CHUNK=TILE)

    def _by_tiles(self, kernel: Any, shape: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch a kernel with one program for each tile of (K, B, columns)."""
        K, B, width = shape
        rows, columns = _tile(B, width, COLUMNS)
        grid = (K * triton.cdiv(B, rows), triton.cdiv(width, columns))
        self._launch(kernel, grid, *arguments, **constants, ROWS=rows, COLUMNS=columns)

    def _launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Fused multiply-add is allowed by name: Triton's own choice differs from version to version."""
        with self._device:
            kernel[grid](*arguments, **constants, enable_fp_fusion=True)

    def _chunks_of(self, blocks: Blocks, real: Tensor) -> _Chunks:
        """The chunks of ``blocks``; they hold on to these, so that no other blocks get the same identity."""
        if id(blocks) not in self._chunks:
            self._chunks[id(blocks)] = _Chunks.of(blocks, real.shape[1], real.device)
        return self._chunks[id(blocks)]


def _tile(rows: int, columns: int, most_columns: int) -> tuple[int, int]:
    """Powers of two that cover (rows, columns), or a part of about ``TILE`` numbers of it."""
    across = min(triton.next_power_of_2(columns), most_columns)
    return min(triton.next_power_of_2(rows), max(TILE // across, 1)), across
