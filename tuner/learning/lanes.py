"""The fused model: K lanes, each one trial, trained as one batched network with a hand-derived backward pass.

Shapes: ``K`` lanes, ``B`` rows of a micro-step, ``D`` features, ``H`` hidden units of the widest lane, ``C`` outputs,
``L`` hidden layers of the deepest lane.

How lanes differ inside one pack:

- width: zero padding. A padded unit has zero weights in and out, so it stays zero and its gradients are zero.
- depth: lanes are sorted by depth, deepest first, so hidden layer l is a batched product over the first ``K_l`` lanes
  only, and a lane's head reads the last hidden layer that the lane has. No lane passes through layers it lacks.
- batch size: micro-steps of the smallest batch. A lane with a larger batch adds up gradients over several micro-steps
  and its optimizer steps on its own cadence.
- learning rate, weight decay, dropout, momentum, schedule, smoothing: numbers of each lane, read by the kernels.

Parameters, gradients and moments are flat buffers of the same layout: for each layer (the head first, as layer 0) the
weights ``(K_l, in, out)``, then the biases ``(K_l, out)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.learning.device import DeviceData
from tuner.learning.kernels import kernels_for
from tuner.learning.kernels.interface import Blocks, Kernels, LaneReal, Lanes, LaneWhole, Step
from tuner.learning.kernels.reference import ADAM_BETA2
from tuner.learning.metrics import row_loss, row_metric
from tuner.learning.randomness import Purpose, dropout_threshold, epoch_order, uniform, words
from tuner.learning.schedules import factor, steps_per_epoch
from tuner.spec import Metric
from tuner.trial import TrialConfig

ALIGN = 8  # hidden units are padded to a multiple: matrix kernels are slow on odd sizes
EVALUATION_ROWS = 256  # rows of a validation pass at a time


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One trial in a pack: its number, its configuration and the key of its random streams."""

    number: int
    config: TrialConfig
    key: int


Arrays = dict[str, npt.NDArray[Any]]


class Pack:
    """K lanes of equal signature on one device. Lanes are addressed by their position in ``lanes`` as given.

    Raises ValueError when the lanes' signatures differ.
    """

    def __init__(self, lanes: Sequence[Lane], data: DeviceData, kernels: Kernels | None = None) -> None:
        signatures = {lane.config.signature for lane in lanes}
        if len(signatures) != 1:
            raise ValueError(f"lanes of one pack need one signature, got {sorted(signatures)}")
        self.data = data
        self.kernels = kernels or kernels_for(data.device)
        order = sorted(range(len(lanes)), key=lambda i: -lanes[i].config.depth)
        self.lanes = [lanes[i] for i in order]
        self._place = {given: inside for inside, given in enumerate(order)}
        configs = [lane.config for lane in self.lanes]
        self.activation, self.optimizer = configs[0].activation, configs[0].optimizer
        self.keys = np.array([lane.key for lane in self.lanes], dtype=np.uint64)
        K, self.L = len(lanes), configs[0].depth
        n, D, C = len(data.x_train), data.n_features, data.n_outputs
        self.H = -(-max(c.width for c in configs) // ALIGN) * ALIGN
        self.batch_sizes = [min(c.batch_size, n) for c in configs]
        self.B = min(self.batch_sizes)
        self.accumulate = len(set(self.batch_sizes)) > 1
        # counts[l] lanes have a hidden layer l; the head (layer 0) belongs to all.
        self.counts = [K, *(sum(c.depth >= layer for c in configs) for layer in range(1, self.L + 1))]
        self._allocate(K, n, D, C)
        self._describe_lanes(configs)
        keeps_best = any(c.keep == "best" for c in configs)
        self.best_theta = torch.zeros_like(self.theta) if keeps_best else None
        for k, lane in enumerate(self.lanes):
            self._initialize(k, lane)

    # ---- buffers ----

    def _allocate(self, K: int, n: int, D: int, C: int) -> None:
        device, dtype = self.data.device, self.data.dtype
        shapes = [(self.H, C), (D, self.H), *[(self.H, self.H)] * (self.L - 1)]
        offsets, sizes, counts, is_weight = [], [], [], []
        total = 0
        for (rows, columns), count in zip(shapes, self.counts, strict=True):
            for size, weight in ((rows * columns, 1), (columns, 0)):
                offsets.append(total)
                sizes.append(size)
                counts.append(count)
                is_weight.append(weight)
                total += size * count
        self._columns = (offsets, sizes, counts, is_weight)
        moments = 1 if self.optimizer == "sgd" else 2
        self.theta = torch.zeros(total, device=device, dtype=dtype)
        self.gradient = torch.zeros_like(self.theta)
        self.moments = tuple(torch.zeros_like(self.theta) for _ in range(moments))

        def views(flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            weights, biases = [], []
            for layer, ((rows, columns), count) in enumerate(zip(shapes, self.counts, strict=True)):
                w, b = offsets[2 * layer], offsets[2 * layer + 1]
                weights.append(flat[w : w + count * rows * columns].view(count, rows, columns))
                biases.append(flat[b : b + count * columns].view(count, columns))
            return weights, biases

        self.W, self.b = views(self.theta)
        self.gW, self.gb = views(self.gradient)
        B, H = self.B, self.H
        self.x = torch.zeros(K, B, D, device=device, dtype=dtype)
        self.y = torch.zeros(K, B, device=device, dtype=self.data.y_train.dtype)
        self.order = torch.zeros(K, n, device=device, dtype=torch.int64)
        self.words = torch.zeros(self.L + 1, 2, K, device=device, dtype=torch.int64)
        self.a = [self.x, *(torch.zeros(count, B, H, device=device, dtype=dtype) for count in self.counts[1:])]
        self.z = [torch.zeros_like(a) for a in self.a[1:]]
        self.da = [torch.zeros_like(a) for a in self.a[1:]]
        self.out = torch.zeros(K, B, C, device=device, dtype=dtype)
        self.loss = torch.zeros(K, device=device, dtype=torch.float64)
        # Lanes whose last hidden layer is l are the contiguous run counts[l+1]..counts[l].
        bounds = [*self.counts[1:], 0]
        self.heads = [(layer + 1, bounds[layer + 1], bounds[layer]) for layer in range(self.L)]
        self.heads = [(layer, first, last) for layer, first, last in self.heads if last > first]
        handle = self.kernels.handle
        self._blocks = Blocks(*(handle(torch.tensor(column)) for column in self._columns))
        self._h_theta, self._h_gradient = handle(self.theta), handle(self.gradient)
        self._h_moments = tuple(handle(m) for m in self.moments)
        self._h_x, self._h_y, self._h_order = handle(self.x), handle(self.y), handle(self.order)
        self._h_words = [handle(self.words[layer]) for layer in range(self.L + 1)]
        self._h_b, self._h_gb = [handle(b) for b in self.b], [handle(b) for b in self.gb]
        self._h_a = [handle(a) for a in self.a]
        self._h_z, self._h_da = [handle(z) for z in self.z], [handle(d) for d in self.da]
        self._h_out, self._h_loss = handle(self.out), handle(self.loss)
        self._h_data = (handle(self.data.x_train), handle(self.data.y_train))

    def _describe_lanes(self, configs: Sequence[TrialConfig]) -> None:
        whole = np.zeros((len(LaneWhole), len(configs)), dtype=np.int64)
        real = np.zeros((len(LaneReal), len(configs)))
        for k, c in enumerate(configs):
            whole[:, k] = c.width, dropout_threshold(c.dropout)
            coupled = 0.0 if c.optimizer == "adamw" else c.weight_decay
            real[:, k] = 1 / (1 - c.dropout), c.label_smoothing, coupled, c.momentum
        handle = self.kernels.handle
        self._lane_tensors = (
            torch.from_numpy(whole).to(self.data.device),
            torch.from_numpy(real).to(self.data.device, self.data.dtype),
        )
        self.lane_numbers = Lanes(*(handle(t) for t in self._lane_tensors))

    def _initialize(self, k: int, lane: Lane) -> None:
        """Fill lane k's parameters exactly as :class:`tuner.learning.mlp.MLP` starts."""
        for layer, (fan_in, fan_out) in enumerate(self._true_shapes(k)):
            drawn = torch.from_numpy(uniform(lane.key, layer, (fan_in + 1, fan_out), fan_in**-0.5))
            self.W[layer][k, :fan_in, :fan_out] = drawn[:-1].to(self.theta)
            self.b[layer][k, :fan_out] = drawn[-1].to(self.theta)

    def _true_shapes(self, k: int) -> list[tuple[int, int]]:
        """(in, out) of each layer of lane k without padding; the head first."""
        config = self.lanes[k].config
        hidden = [(self.data.n_features, config.width), *[(config.width, config.width)] * (config.depth - 1)]
        return [(config.width, self.data.n_outputs), *hidden]

    # ---- one epoch ----

    def train_epoch(self, epochs: Sequence[int]) -> npt.NDArray[np.float64]:
        """Train every lane for one epoch; ``epochs[i]`` is lane i's 1-based epoch. Mean training loss, (K,)."""
        inside = np.empty(len(self.lanes), dtype=np.int64)
        for given, k in self._place.items():
            inside[k] = epochs[given]
        whole, real = self._tables(inside)
        self._draw(inside)
        self.loss.zero_()
        handle = self.kernels.handle
        whole_rows, real_rows = handle(torch.from_numpy(whole)), handle(torch.from_numpy(real).to(self.data.dtype))
        for s in range(len(whole)):
            self._train_step(Step(whole_rows[s], real_rows[s]))
        return self._in_given_order(self.loss.cpu().numpy() / len(self.data.x_train))

    def _draw(self, epochs: npt.NDArray[np.int64]) -> None:
        """Each lane's order and dropout words for its epoch."""
        n = len(self.data.x_train)
        order = np.stack([epoch_order(int(key), int(e), n) for key, e in zip(self.keys, epochs, strict=True)])
        self.order.copy_(torch.from_numpy(order))
        drawn = np.zeros(self.words.shape, dtype=np.int64)
        for layer in range(1, self.L + 1):
            drawn[layer] = words(self.keys, Purpose.DROPOUT, epochs, layer)
        self.words.copy_(torch.from_numpy(drawn))

    def _tables(self, epochs: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """What each lane does in each micro-step of the epoch: (S, 3, K) whole and (S, 4, K) real numbers."""
        n, K = len(self.data.x_train), len(self.lanes)
        plans = {b: micro_steps(n, b, self.B) for b in set(self.batch_sizes)}
        S = max(len(plan) for plan in plans.values())
        whole = np.zeros((S, 3, K), dtype=np.int64)
        real = np.ones((S, 4, K))
        for k, lane in enumerate(self.lanes):
            plan = plans[self.batch_sizes[k]]
            whole[: len(plan), :, k] = plan[:, :3]
            real[: len(plan), 0, k] = 1 / plan[:, 3]
            config, steps = lane.config, steps_per_epoch(n, self.batch_sizes[k])
            ends = np.flatnonzero(plan[:, 2])
            index = (epochs[k] - 1) * steps + np.arange(steps)
            eta = config.learning_rate * factor(config.schedule, index, config.max_epochs * steps, config.warmup)
            if config.optimizer == "sgd":
                real[ends, 1, k] = eta
                continue
            real[ends, 1, k] = eta / (1 - config.momentum ** (index + 1))
            real[ends, 2, k] = np.sqrt(1 - ADAM_BETA2 ** (index + 1))
            if config.optimizer == "adamw":
                real[ends, 3, k] = 1 - eta * config.weight_decay
        return whole, real

    def _train_step(self, step: Step) -> None:
        kernels, counts, accumulate = self.kernels, self.counts, self.accumulate
        beta = 1.0 if accumulate else 0.0
        kernels.gather(*self._h_data, self._h_order, step, self._h_x, self._h_y)
        for layer in range(1, self.L + 1):
            count = counts[layer]
            torch.bmm(self.a[layer - 1][:count], self.W[layer], out=self.z[layer - 1])
            kernels.hidden_forward(
                self.activation,
                self._h_z[layer - 1],
                self._h_b[layer],
                self._h_words[layer],
                step,
                self.lane_numbers,
                self._h_a[layer],
            )
        for layer, first, last in self.heads:
            torch.bmm(self.a[layer][first:last], self.W[0][first:last], out=self.out[first:last])
        kernels.head(
            self.data.task,
            self._h_out,
            self._h_b[0],
            self._h_y,
            step,
            self.lane_numbers,
            self._h_gb[0],
            self._h_loss,
            accumulate,
        )
        for layer, first, last in self.heads:
            out, a = self.out[first:last], self.a[layer][first:last]
            torch.baddbmm(self.gW[0][first:last], a.transpose(1, 2), out, beta=beta, out=self.gW[0][first:last])
            torch.bmm(out, self.W[0][first:last].transpose(1, 2), out=self.da[layer - 1][first:last])
        for layer in range(self.L, 0, -1):
            count, dz = counts[layer], self.da[layer - 1]
            kernels.hidden_backward(self._h_da[layer - 1], self._h_z[layer - 1], self._h_gb[layer], accumulate)
            below = self.a[layer - 1][:count]
            torch.baddbmm(self.gW[layer], below.transpose(1, 2), dz, beta=beta, out=self.gW[layer])
            if layer > 1:
                torch.bmm(dz, self.W[layer].transpose(1, 2), out=self.da[layer - 2][:count])
        kernels.optimize(
            self.optimizer,
            self._h_theta,
            self._h_gradient,
            self._h_moments,
            self._blocks,
            step,
            self.lane_numbers,
            accumulate,
        )

    # ---- evaluation ----

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        """Every lane's outputs on the same rows, dropout off: (n, D) -> (K, n, C), in the order lanes were given."""
        parts = [self._infer(rows) for rows in torch.split(x, EVALUATION_ROWS)]
        joined = torch.cat(parts, dim=1)
        return joined[[self._place[given] for given in range(len(self.lanes))]]

    def _infer(self, x: Tensor) -> Tensor:
        handle = self.kernels.handle
        K, C = self.counts[0], self.out.shape[2]
        out = torch.empty(K, len(x), C, device=x.device, dtype=x.dtype)
        below = x.expand(K, *x.shape)
        heads = {layer: (first, last) for layer, first, last in self.heads}
        for layer in range(1, self.L + 1):
            z = torch.bmm(below[: self.counts[layer]], self.W[layer])
            self.kernels.hidden_infer(self.activation, handle(z), self._h_b[layer], self.lane_numbers)
            if layer in heads:
                first, last = heads[layer]
                torch.baddbmm(self.b[0][first:last, None, :], z[first:last], self.W[0][first:last], out=out[first:last])
            below = z
        return out

    @torch.no_grad()
    def validate(self, metric: Metric) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Each lane's mean loss on the validation rows, and the mean of its row metric (see metrics.finish): (K,)."""
        data = self.data
        outputs = self.outputs(data.x_val)
        loss = row_loss(data.task, outputs, data.y_val).mean(1, dtype=torch.float64)
        value = row_metric(metric, outputs, data.y_val, data.target_sd).mean(1, dtype=torch.float64)
        return loss.cpu().numpy(), value.cpu().numpy()

    # ---- a lane's own state ----

    @property
    def _flats(self) -> dict[str, Tensor]:
        best = {} if self.best_theta is None else {"best_theta": self.best_theta}
        return {"theta": self.theta, **{f"moment{i}": m for i, m in enumerate(self.moments)}, **best}

    def mark_best(self, given: Sequence[int]) -> None:
        """Remember the current weights of these lanes as their best so far."""
        if self.best_theta is None or not given:
            return
        places = torch.tensor([self._place[i] for i in given], device=self.theta.device)
        for offset, size, count, _ in zip(*self._columns, strict=True):
            lanes = places[places < count]
            now = self.theta[offset : offset + size * count].view(count, size)
            self.best_theta[offset : offset + size * count].view(count, size)[lanes] = now[lanes]

    def export(self, given: int) -> Arrays:
        """Lane ``given``'s parameters and moments without padding: each a flat vector, layer by layer, head first.

        Keys: ``theta``, ``moment0`` (Adam and AdamW: and ``moment1``), and ``best_theta`` if the lane keeps its best.
        """
        k = self._place[given]
        arrays = {name: self._cut(flat, k).cpu().numpy().copy() for name, flat in self._flats.items()}
        if self.lanes[k].config.keep != "best":
            arrays.pop("best_theta", None)
        return arrays

    def restore(self, given: int, arrays: Arrays) -> None:
        """Put back what ``export`` gave, of this or any other pack that holds an equal lane."""
        k = self._place[given]
        for name, flat in self._flats.items():
            if name not in arrays:
                continue
            vector = torch.from_numpy(np.asarray(arrays[name])).to(flat)
            used = 0
            for piece in self._pieces(flat, k):
                piece.copy_(vector[used : used + piece.numel()].view(piece.shape))
                used += piece.numel()

    def _cut(self, flat: Tensor, k: int) -> Tensor:
        return torch.cat([piece.reshape(-1) for piece in self._pieces(flat, k)])

    def _pieces(self, flat: Tensor, k: int) -> list[Tensor]:
        """Views of lane k's true weights and biases inside a flat buffer."""
        offsets, sizes, _, _ = self._columns
        pieces = []
        for layer, (fan_in, fan_out) in enumerate(self._true_shapes(k)):
            w, b = offsets[2 * layer] + k * sizes[2 * layer], offsets[2 * layer + 1] + k * sizes[2 * layer + 1]
            rows, columns = self.W[layer].shape[1:]
            pieces.append(flat[w : w + rows * columns].view(rows, columns)[:fan_in, :fan_out])
            pieces.append(flat[b : b + fan_out])
        return pieces

    def _in_given_order(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return values[[self._place[given] for given in range(len(self.lanes))]]


def micro_steps(n: int, batch: int, micro: int) -> npt.NDArray[np.int64]:
    """The micro-steps of one epoch of ``n`` rows: (S, 4) columns start, rows, optimizer steps after it, batch rows.

    >>> micro_steps(10, 6, 4).tolist()
    [[0, 4, 0, 6], [4, 2, 1, 6], [6, 4, 1, 4]]
    """
    plan = []
    for first in range(0, n, batch):
        rows = min(batch, n - first)
        for start in range(0, rows, micro):
            count = min(micro, rows - start)
            plan.append((first + start, count, int(start + count == rows), rows))
    return np.array(plan, dtype=np.int64)


def tensors_of(
    theta: npt.NDArray[np.float32], config: TrialConfig, D: int, C: int
) -> dict[str, npt.NDArray[np.float32]]:
    """A lane's flat parameters as named arrays in torch's orientation, ``weight`` (out, in) and ``bias`` (out,)."""
    shapes = [(config.width, C), (D, config.width), *[(config.width, config.width)] * (config.depth - 1)]
    named, used = {}, 0
    for layer, (fan_in, fan_out) in enumerate(shapes):
        name = "head" if layer == 0 else f"hidden.{layer}"
        named[f"{name}.weight"] = theta[used : used + fan_in * fan_out].reshape(fan_in, fan_out).T.copy()
        used += fan_in * fan_out
        named[f"{name}.bias"] = theta[used : used + fan_out].copy()
        used += fan_out
    return named
