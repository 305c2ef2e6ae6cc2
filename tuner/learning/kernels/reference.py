"""The kernels in torch operations: slow, clear, for any device and dtype. The compiled ones must equal these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tuner.learning.activations import value, value_and_derivative
from tuner.learning.kernels.interface import Blocks, LaneReal, Lanes, LaneWhole, Real, Step, Whole
from tuner.learning.metrics import Head
from tuner.learning.optimizers import ADAM_EPS
from tuner.learning.randomness import MIX_1, MIX_2, ROW_MULTIPLIER, UNIT_MULTIPLIER
from tuner.trial import Activation, Optimizer

LOW = 0xFFFFFFFF
CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_'s


def mix32(x: Tensor) -> Tensor:
    """:func:`tuner.learning.randomness.mix32` on int64 tensors that hold 32-bit numbers."""
    x = x ^ (x >> 16)
    x = (x * MIX_1) & LOW
    x = x ^ (x >> 15)
    x = (x * MIX_2) & LOW
    return x ^ (x >> 16)


def dropout_bits(words: Tensor, rows: Tensor, units: int) -> Tensor:
    """32 uniform bits, shape (K, B, units): words (2, K), rows (K, B) positions."""
    row = mix32((rows * ROW_MULTIPLIER + words[0][:, None]) & LOW)
    unit = (torch.arange(units, device=rows.device) * UNIT_MULTIPLIER + words[1][:, None]) & LOW
    return mix32(row[:, :, None] ^ unit[:, None, :])


class ReferenceKernels:
    """See :class:`tuner.learning.kernels.interface.Kernels`."""

    def handle(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, x: Tensor, y: Tensor, order: Tensor, step: Step, x_out: Tensor, y_out: Tensor) -> None:
        copies, B, D = x_out.shape
        position = step.whole[Whole.START][:, None] + torch.arange(B, device=x.device)
        rows = order.gather(1, position.clamp_(max=order.shape[1] - 1))
        torch.index_select(x[:, :D], 0, rows[:copies].reshape(-1), out=x_out.view(copies * B, D))
        torch.index_select(y, 0, rows.view(-1), out=y_out.view(-1))

    def drop_inputs(self, x: Tensor, words: Tensor, step: Step, lanes: Lanes) -> None:
        _, B, D = x.shape
        rows = step.whole[Whole.START][:, None] + torch.arange(B, device=x.device)
        kept = dropout_bits(words, rows, D) >= lanes.whole[LaneWhole.INPUT_THRESHOLD][:, None, None]
        x *= kept * lanes.real[LaneReal.INPUT_SCALE][:, None, None]

    def hidden_forward(
        self, activation: Activation, z: Tensor, bias: Tensor, words: Tensor, step: Step, lanes: Lanes, out: Tensor
    ) -> None:
        K, B, H = z.shape
        rows = step.whole[Whole.START][:K, None] + torch.arange(B, device=z.device)
        kept = dropout_bits(words[:, :K], rows, H) >= lanes.whole[LaneWhole.THRESHOLD][:K, None, None]
        inside = torch.arange(H, device=z.device) < lanes.whole[LaneWhole.WIDTH][:K, None, None]
        scale = (kept & inside) * lanes.real[LaneReal.KEEP_SCALE][:K, None, None]
        a, derivative = value_and_derivative(activation, z + bias[:, None, :])
        torch.mul(a, scale, out=out)
        torch.mul(derivative, scale, out=z)

    def hidden_infer(self, activation: Activation, z: Tensor, bias: Tensor, lanes: Lanes) -> None:
        K, _, H = z.shape
        inside = torch.arange(H, device=z.device) < lanes.whole[LaneWhole.WIDTH][:K, None, None]
        torch.mul(value(activation, z + bias[:, None, :]), inside, out=z)

    def hidden_backward(self, da: Tensor, derivative: Tensor, bias_gradient: Tensor, accumulate: bool) -> None:
        da.mul_(derivative)
        total = da.sum(1)
        bias_gradient.add_(total) if accumulate else bias_gradient.copy_(total)

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
        outputs = outputs.transpose(1, 2)  # (K, B, C)
        B = outputs.shape[1]
        live = torch.arange(B, device=outputs.device) < step.whole[Whole.COUNT][:, None]
        outputs.add_(bias[:, None, :])
        if head == "square":
            difference = outputs - y[:, :, None]
            row_loss, gradient = (difference**2).squeeze(-1), 2 * difference
        else:
            row_loss, gradient = _class_head(head, outputs, y, lanes.real[LaneReal.SMOOTHING][:, None, None])
            weights = lanes.class_weights.gather(1, y)
            row_loss, gradient = row_loss * weights, gradient * weights[:, :, None]
        loss.add_(torch.where(live, row_loss, 0.0).sum(1, dtype=loss.dtype))
        gradient *= step.real[Real.ROW_WEIGHT][:, None, None]
        outputs.copy_(torch.where(live[:, :, None], gradient, 0.0))
        total = outputs.sum(1)
        bias_gradient.add_(total) if accumulate else bias_gradient.copy_(total)

    def clip(self, theta: Tensor, gradient: Tensor, blocks: Blocks, lanes: Lanes, coefficients: Tensor) -> None:
        squares = torch.zeros_like(coefficients)
        for (t, g), count, decays in _pieces((theta, gradient), blocks):
            full = g + lanes.real[LaneReal.L2][:count, None] * t if decays else g
            squares[:count] += (full**2).sum(1)
        limit = lanes.real[LaneReal.CLIP]
        scaled = (limit / (squares.sqrt() + CLIP_EPS)).clamp(max=1)
        coefficients.copy_(torch.where(limit > 0, scaled, 1.0))

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
        for (t, g, *m), count, decays in _pieces((theta, gradient, *moments), blocks):

            def of(row: Tensor, count: int = count) -> Tensor:
                return row[:count, None]

            now = of(step.whole[Whole.STEPS]) != 0
            step_size, mu, beta2 = (
                of(row)
                for row in (step.real[Real.STEP_SIZE], lanes.real[LaneReal.MOMENTUM], lanes.real[LaneReal.BETA2])
            )
            new, start = g, t
            if decays:
                new = new + of(lanes.real[LaneReal.L2]) * t
            new = new * of(coefficients)
            if decays:
                new = new + of(lanes.real[LaneReal.COUPLED]) * t
                start = t * of(step.real[Real.SHRINK])
            if optimizer in ("sgd", "nesterov"):
                first = mu * m[0] + new
                move = new + mu * first if optimizer == "nesterov" else first
            elif optimizer == "rmsprop":
                second = beta2 * m[1] + (1 - beta2) * new * new
                first = mu * m[0] + new / (second.sqrt() + ADAM_EPS)
                move = first
            else:
                first = mu * m[0] + (1 - mu) * new
                second = beta2 * m[1] + (1 - beta2) * new * new
                root = of(step.real[Real.DENOMINATOR])
                if optimizer == "adamw_decoupled":
                    move = first / (second / root**2 + ADAM_EPS).sqrt()
                else:
                    move = first / (second.sqrt() / root + ADAM_EPS)
            if len(m) > 1:
                m[1].copy_(torch.where(now, second, m[1]))
            m[0].copy_(torch.where(now, first, m[0]))
            t.copy_(torch.where(now, start - step_size * move, t))
            if clear:
                g.masked_fill_(now, 0.0)

    def average(self, theta: Tensor, mean: Tensor, blocks: Blocks, step: Step) -> None:
        for (t, m), count, _ in _pieces((theta, mean), blocks):
            rate = step.real[Real.AVERAGE][:count, None]
            mixed = torch.where(rate == 1, t, m + rate * (t - m))
            m.copy_(torch.where(rate == 0, m, mixed))


def _pieces(flats: Sequence[Tensor], blocks: Blocks) -> Iterator[tuple[list[Tensor], int, bool]]:
    """Each block of each flat buffer as (lanes, size), how many lanes it has, and whether it decays."""
    for offset, size, count, decays in zip(*(column.tolist() for column in blocks), strict=True):
        yield [flat[offset : offset + size * count].view(count, size) for flat in flats], count, bool(decays)


def _class_head(head: Head, outputs: Tensor, y: Tensor, smoothing: Tensor) -> tuple[Tensor, Tensor]:
    """Row losses (K, B) and their gradients by the outputs (K, B, C)."""
    C = outputs.shape[-1]
    onehot = torch.nn.functional.one_hot(y, C).to(outputs.dtype)
    if head == "cross_entropy":
        target = onehot * (1 - smoothing) + smoothing / C
        log_p = torch.log_softmax(outputs, -1)
        return -(target * log_p).sum(-1), log_p.exp() - target
    if head == "square_of_classes":
        difference = outputs - onehot
        return (difference**2).mean(-1), 2 * difference / C
    margins = (1 - outputs.gather(-1, y.unsqueeze(-1)) + outputs) * (1 - onehot)
    broken = (margins > 0).to(outputs.dtype)
    return margins.clamp_min(0).sum(-1) / C, (broken - onehot * broken.sum(-1, keepdim=True)) / C
