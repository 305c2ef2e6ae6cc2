"""The kernels in torch operations: slow, clear, for any device and dtype. The compiled ones must equal these."""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.learning.activations import value, value_and_derivative
from tuner.learning.kernels.interface import Blocks, LaneReal, Lanes, LaneWhole, Real, Step, Whole
from tuner.learning.randomness import MIX_1, MIX_2, ROW_MULTIPLIER, UNIT_MULTIPLIER
from tuner.trial import Activation, Optimizer, Task

LOW = 0xFFFFFFFF
ADAM_BETA2 = 0.999
ADAM_EPS = 1e-8


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
        K, B, D = x_out.shape
        position = step.whole[Whole.START][:, None] + torch.arange(B, device=x.device)
        rows = order.gather(1, position.clamp_(max=order.shape[1] - 1)).view(-1)
        torch.index_select(x, 0, rows, out=x_out.view(K * B, D))
        torch.index_select(y, 0, rows, out=y_out.view(K * B))

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
        task: Task,
        outputs: Tensor,
        bias: Tensor,
        y: Tensor,
        step: Step,
        lanes: Lanes,
        bias_gradient: Tensor,
        loss: Tensor,
        accumulate: bool,
    ) -> None:
        _, B, C = outputs.shape
        live = torch.arange(B, device=outputs.device) < step.whole[Whole.COUNT][:, None]
        outputs.add_(bias[:, None, :])
        if task == "classification":
            smoothing = lanes.real[LaneReal.SMOOTHING][:, None, None]
            target = torch.nn.functional.one_hot(y, C).to(outputs.dtype) * (1 - smoothing) + smoothing / C
            log_p = torch.log_softmax(outputs, -1)
            row_loss = -(target * log_p).sum(-1)
            gradient = log_p.exp() - target
        else:
            difference = outputs - y[:, :, None]
            row_loss = (difference**2).squeeze(-1)
            gradient = 2 * difference
        loss.add_(torch.where(live, row_loss, 0.0).sum(1, dtype=torch.float64))
        gradient *= step.real[Real.ROW_WEIGHT][:, None, None]
        outputs.copy_(torch.where(live[:, :, None], gradient, 0.0))
        total = outputs.sum(1)
        bias_gradient.add_(total) if accumulate else bias_gradient.copy_(total)

    def optimize(
        self,
        optimizer: Optimizer,
        theta: Tensor,
        gradient: Tensor,
        moments: tuple[Tensor, ...],
        blocks: Blocks,
        step: Step,
        lanes: Lanes,
        clear: bool,
    ) -> None:
        columns = zip(blocks.offset, blocks.size, blocks.lanes, blocks.is_weight, strict=True)
        for offset, size, count, is_weight in columns:
            piece = slice(offset, offset + size * count)
            t, g, *m = (flat[piece].view(count, size) for flat in (theta, gradient, *moments))
            now = (step.whole[Whole.STEPS][:count] != 0)[:, None]
            step_size = step.real[Real.STEP_SIZE][:count, None]
            beta1 = lanes.real[LaneReal.MOMENTUM][:count, None]
            new = g + lanes.real[LaneReal.L2][:count, None] * t if is_weight else g
            if optimizer == "sgd":
                first = beta1 * m[0] + new
                moved = t - step_size * first
            else:
                shrunk = t * step.real[Real.SHRINK][:count, None] if is_weight else t
                first = beta1 * m[0] + (1 - beta1) * new
                second = ADAM_BETA2 * m[1] + (1 - ADAM_BETA2) * new * new
                moved = shrunk - step_size * first / (
                    second.sqrt() / step.real[Real.DENOMINATOR][:count, None] + ADAM_EPS
                )
                m[1].copy_(torch.where(now, second, m[1]))
            m[0].copy_(torch.where(now, first, m[0]))
            t.copy_(torch.where(now, moved, t))
            if clear:
                g.masked_fill_(now, 0.0)
