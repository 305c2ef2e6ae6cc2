"""The fused model: K lanes, each one trial, trained as one batched network with a hand-derived backward pass.

Shapes: ``K`` lanes, ``B`` rows of a micro-step, ``D`` features, ``H`` hidden units of the widest lane, ``C`` outputs,
``L`` hidden layers of the deepest lane.

How lanes differ inside one pack:

- width: zero padding. A padded unit has zero weights in and out, so it stays zero and its gradients are zero.
- features: zero padding likewise, where lanes see views of the table that have more of them or fewer.
- depth: lanes are sorted by depth, deepest first, so hidden layer l is a batched product over the first ``K_l`` lanes
  only, and a lane's head reads the last hidden layer that the lane has. No lane passes through layers it lacks.
- batch size: micro-steps of the smallest batch. A lane with a larger batch adds up gradients over several micro-steps
  and its optimizer steps on its own cadence.
- rows: lanes may train on different views of the table (its features scaled otherwise, its rows split into folds). The
  rows of all views lie in one tensor, and a lane's order points into its own view's. Where all lanes visit the same
  rows in the same micro-steps, as the trials of a study at the same epoch do, a batch is copied once for all of them.
- learning rate, weight decay, dropout, momentum, schedule, smoothing, clipping, averaging: numbers of each lane, read
  by the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.learning import draws
from tuner.learning.device import DeviceData, DeviceView, Part, for_sums, has_float64
from tuner.learning.epoch_plan import EpochPlan
from tuner.learning.kernels import kernels_for, norms
from tuner.learning.kernels.interface import Blocks, Kernels, LaneReal, Lanes, LaneWhole, Step, Whole
from tuner.learning.layout import Layout
from tuner.learning.memory import evaluation_rows
from tuner.learning.metrics import balanced_weights, head_of, row_loss, score
from tuner.learning.parameters import Arrays, Parameters
from tuner.learning.products import Products
from tuner.learning.progress import EpochInterruptedError
from tuner.learning.randomness import Purpose, dropout_threshold, epoch_order, lane_key, words
from tuner.learning.schedules import batches, in_step, micro_batch
from tuner.learning.step_graph import StepGraph
from tuner.learning.stream import RowStream
from tuner.spec import Metric
from tuner.trial import Scaling, TrialConfig


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One network in a pack: its trial's number, its configuration, the key of its random streams, and its fold.

    It trains on the view (``config.scaling``, ``fold``), in the order that ``order_key`` gives; None: its own key.
    """

    number: int
    config: TrialConfig
    key: int
    fold: int = 0
    order_key: int | None = None

    @property
    def ordered_by(self) -> int:
        """The key that its data order is drawn from."""
        return self.key if self.order_key is None else self.order_key


def trial_lane(seed: int, number: int, config: TrialConfig) -> Lane:
    """The lane of a study's trial: weights and masks of its own, and the data order of the study's seed.

    That all trials of a study see the rows in the same order makes them comparable, and their batches one copy.
    """
    return Lane(number=number, config=config, key=lane_key(seed, number), order_key=lane_key(seed))


@dataclass(frozen=True, kw_only=True)
class LayerTensors:
    """The factors and results of a hidden layer's products, forward and backward, of the K_l lanes that have it.

    below (K_l, B, in), z and dz (K_l, B, H), weight and gradient (K_l, in, H); d_below (K_l, B, in): None for the first
    layer, whose inputs' gradient nobody needs. Ending in _t: transposed.
    """

    below: Tensor
    below_t: Tensor
    weight: Tensor
    weight_t: Tensor
    gradient: Tensor
    z: Tensor
    dz: Tensor
    d_below: Tensor | None


@dataclass(frozen=True, kw_only=True)
class HeadTensors:
    """Likewise of the head, of the J lanes with one last hidden layer: out (J, C, B), a and da (J, B, H), weight and
    gradient (J, C, H).
    """

    out: Tensor
    out_t: Tensor
    a: Tensor
    a_t: Tensor
    da: Tensor
    weight: Tensor
    gradient: Tensor


Reading = tuple[Hashable, ...]


def reading(lane: Lane, data: DeviceData) -> Reading | None:
    """Which rows a lane reads in an epoch, and in which order; None where it needs a copy of its own."""
    if lane.config.input_dropout > 0 or data.streamed:
        return None
    return lane.ordered_by, lane.config.scaling, lane.fold


def may_share(read: Sequence[Reading | None], configs: Sequence[TrialConfig], rows: Sequence[int]) -> bool:
    """Whether lanes that read these can do with one copy of each batch: they read the same in every micro-step.

    rows: each lane's training rows.
    """
    return len(read) > 1 and read[0] is not None and len(set(read)) == 1 and in_step(configs, rows)


class Pack:
    """K lanes of equal signature on one device. Lanes are addressed by their position in ``lanes`` as given.

    ``graphed``: whether micro-steps run out of fixed buffers, see :class:`tuner.learning.step_graph.StepGraph`; by
    default where the device is CUDA. Raises ValueError when the lanes' signatures differ.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        data: DeviceData,
        kernels: Kernels | None = None,
        *,
        graphed: bool | None = None,
    ) -> None:
        signatures = {lane.config.signature for lane in lanes}
        if len(signatures) != 1:
            raise ValueError(f"lanes of one pack need one signature, got {sorted(map(str, signatures))}")
        self.data = data
        self.kernels = kernels or kernels_for(data.device)
        order = sorted(range(len(lanes)), key=lambda i: -lanes[i].config.depth)
        self.lanes = [lanes[i] for i in order]
        self._place = {given: inside for inside, given in enumerate(order)}
        self.configs = [lane.config for lane in self.lanes]
        first = self.configs[0]
        self.activation, self.optimizer, self.norm, self.residual = (
            first.activation,
            first.optimizer,
            first.norm,
            first.residual,
        )
        self.head = head_of(first.loss, data.task)
        self.keys = np.array([lane.key for lane in self.lanes], dtype=np.uint64)
        self._order_keys = np.array([lane.ordered_by for lane in self.lanes], dtype=np.uint64)
        features = [data.features_of(config.scaling) for config in self.configs]
        self.layout = Layout(self.configs, features, data.n_outputs)
        self.K, self.L, self.H = self.layout.K, self.layout.L, self.layout.H
        self.views = [data.view(lane.config.scaling, lane.fold) for lane in self.lanes]
        self.rows = [len(view.x_train) for view in self.views]
        self.B = micro_batch(self.configs, self.rows)
        self.accumulate = any(min(c.batch_size, n) > self.B for c, n in zip(self.configs, self.rows, strict=True))
        self.drops_inputs = any(c.input_dropout > 0 for c in self.configs)
        self.clips = any(c.clip_norm > 0 for c in self.configs)
        self.parameters = Parameters(self.layout, self.keys, data.device, data.dtype)
        self._name_parameters()
        self._allocate_activations()
        self._describe_lanes()
        self.plan = EpochPlan(self.configs, self.rows, self.B)
        self._ahead: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None = None
        self._allocate_rows()
        self._pair_tensors()
        self.products = Products(first.precision)
        self.interrupted: Callable[[], bool] = lambda: False  # asked before each micro-step
        self._graphed = data.device.type == "cuda" if graphed is None else graphed
        self._step_graphs: dict[bool, StepGraph] = {}  # of batches that lanes share, and of those that they do not

    # ---- buffers ----

    def _name_parameters(self) -> None:
        """Views of the parameters by layer, and handles of what kernels work on."""
        layout, handle, numbers = self.layout, self.kernels.handle, self.parameters
        self.averages = numbers.averages
        self.theta, self.gradient, self.moments, self.mean = (
            numbers.theta,
            numbers.gradient,
            numbers.moments,
            numbers.mean,
        )
        self.running, self.judged_running = numbers.running, numbers.judged_running
        self.W, self.b = layout.views(self.theta, "weight"), layout.views(self.theta, "bias")
        self.gW, self.gb = layout.views(self.gradient, "weight"), layout.views(self.gradient, "bias")
        self.judged = {name: layout.views(self.mean, name) for name in ("weight", "bias", "gain", "shift")}
        self.gain, self.shift = layout.views(self.theta, "gain"), layout.views(self.theta, "shift")
        self.g_gain, self.g_shift = layout.views(self.gradient, "gain"), layout.views(self.gradient, "shift")
        self.coefficients = torch.ones(self.K, device=self.data.device, dtype=self.data.dtype)
        columns = [[getattr(b, field) for b in layout.blocks] for field in ("offset", "size", "lanes", "decays")]
        self._blocks = Blocks(*(handle(torch.tensor(column, dtype=torch.int64)) for column in columns))
        self._h_theta, self._h_gradient, self._h_mean = handle(self.theta), handle(self.gradient), handle(self.mean)
        self._h_moments = tuple(handle(m) for m in self.moments)
        self._h_coefficients = handle(self.coefficients)
        # What is added to a hidden layer before its activation: its shift where it is normalised, else its bias.
        added, g_added = (self.b, self.gb) if self.norm == "none" else (self.shift, self.g_shift)
        self._h_added = {layer: handle(vector) for layer, vector in {**added, 0: self.b[0]}.items()}
        self._h_g_added = {layer: handle(vector) for layer, vector in {**g_added, 0: self.gb[0]}.items()}

    def _allocate_activations(self) -> None:
        device, dtype, handle = self.data.device, self.data.dtype, self.kernels.handle
        counts, K, B, H, C = self.layout.counts, self.K, self.B, self.H, self.layout.C
        self.x = torch.zeros(K, B, self.layout.D, device=device, dtype=dtype)
        self.y = torch.zeros(K, B, device=device, dtype=self.data.y_train.dtype)
        self.words = torch.zeros(self.L + 1, 2, K, device=device, dtype=torch.int64)
        self.a = [self.x, *(torch.zeros(count, B, H, device=device, dtype=dtype) for count in counts[1:])]
        self.z = [torch.zeros_like(a) for a in self.a[1:]]
        self.da = [torch.zeros_like(a) for a in self.a[1:]]
        self.out = torch.zeros(K, C, B, device=device, dtype=dtype)
        self.loss = torch.zeros(K, device=device, dtype=torch.float64 if has_float64(device) else dtype)
        # Lanes whose last hidden layer is l are the run counts[l+1]..counts[l].
        bounds = [*counts[1:], 0]
        runs = [(layer + 1, bounds[layer + 1], bounds[layer]) for layer in range(self.L)]
        self.heads = [(layer, first, last) for layer, first, last in runs if last > first]
        self._h_x, self._h_y = handle(self.x), handle(self.y)
        self._h_shared_x = handle(self.x[:1])
        self._h_words = [handle(self.words[layer]) for layer in range(self.L + 1)]
        self._h_a = [handle(a) for a in self.a]
        self._h_z, self._h_da = [handle(z) for z in self.z], [handle(d) for d in self.da]
        self._h_out, self._h_loss = handle(self.out), handle(self.loss)

    def _allocate_rows(self) -> None:
        """What micro-steps gather their rows from, and in which order: the data themselves, or a stream of them."""
        data, handle = self.data, self.kernels.handle
        place = torch.device("cpu") if data.streamed else data.device
        self.order = torch.zeros(self.K, max(self.rows), device=place, dtype=torch.int64)
        self._stream = RowStream(data, self.layout.D, self.B, self.plan.whole_rows) if data.streamed else None
        x, y = (self._stream.x, self._stream.y) if self._stream else (data.x_train, data.y_train)
        self._h_rows = handle(x), handle(y), handle(self._stream.order if self._stream else self.order)
        self._may_share = may_share([reading(lane, data) for lane in self.lanes], self.configs, self.rows)
        self.shared = False  # whether the lanes read one copy of each batch in this epoch

    def _pair_tensors(self) -> None:
        """Every product's factors and results, made once: a view costs the host as much as a small product."""
        head_W, head_gW = (weights[0].transpose(1, 2) for weights in (self.W, self.gW))  # as they lie in memory

        def layer_tensors(layer: int, below: Tensor) -> LayerTensors:
            count = self.layout.counts[layer]
            return LayerTensors(
                below=below[:count],
                below_t=below[:count].transpose(1, 2),
                weight=self.W[layer],
                weight_t=self.W[layer].transpose(1, 2),
                gradient=self.gW[layer],
                z=self.z[layer - 1],
                dz=self.da[layer - 1],
                d_below=self.da[layer - 2][:count] if layer > 1 else None,
            )

        above = [layer_tensors(layer, self.a[layer - 1]) for layer in range(2, self.L + 1)]
        one_copy = self.x[:1].expand(self.K, -1, -1)
        self._layers = {shared: [layer_tensors(1, x), *above] for shared, x in ((False, self.x), (True, one_copy))}
        self._heads = [
            HeadTensors(
                out=self.out[first:last],
                out_t=self.out[first:last].transpose(1, 2),
                a=self.a[layer][first:last],
                a_t=self.a[layer][first:last].transpose(1, 2),
                da=self.da[layer - 1][first:last],
                weight=head_W[first:last],
                gradient=head_gW[first:last],
            )
            for layer, first, last in self.heads
        ]

    def _describe_lanes(self) -> None:
        whole = np.zeros((len(LaneWhole), self.K), dtype=np.int64)
        real = np.zeros((len(LaneReal), self.K))
        for k, c in enumerate(self.configs):
            whole[:, k] = c.width, dropout_threshold(c.dropout), dropout_threshold(c.input_dropout)
            real[LaneReal.KEEP_SCALE, k] = 1 / (1 - c.dropout)
            real[LaneReal.INPUT_SCALE, k] = 1 / (1 - c.input_dropout)
            real[LaneReal.SMOOTHING, k] = c.label_smoothing
            real[LaneReal.L2, k] = c.l2
            real[LaneReal.COUPLED, k] = 0.0 if c.optimizer.startswith("adamw") else c.weight_decay
            real[LaneReal.MOMENTUM, k], real[LaneReal.BETA2, k] = c.momentum, c.beta2
            real[LaneReal.CLIP, k] = c.clip_norm
        device, dtype = self.data.device, self.data.dtype
        class_weights = torch.ones(self.K, self.layout.C, dtype=dtype)
        for k, c in enumerate(self.configs):
            if c.class_weight == "balanced":
                class_weights[k] = balanced_weights(for_sums(self.views[k].y_train), self.layout.C)
        self._lane_tensors = (
            torch.from_numpy(whole).to(device),
            torch.from_numpy(real).to(device, dtype),
            class_weights.to(device),
        )
        self.lane_numbers = Lanes(*(self.kernels.handle(t) for t in self._lane_tensors))
        width = self._lane_tensors[0][LaneWhole.WIDTH]
        inside = torch.arange(self.H, device=device) < width[:, None]
        self._inside = inside.to(self.data.dtype)[:, None, :]  # (K, 1, H)
        self._width = width.to(self.data.dtype)[:, None, None]  # (K, 1, 1)

    # ---- one epoch ----

    def train_epoch(self, epochs: Sequence[int]) -> npt.NDArray[np.float64]:
        """Train every lane for one epoch; ``epochs[i]`` is lane i's 1-based epoch. Mean training loss, (K,).

        Raises EpochInterruptedError as soon as ``interrupted`` says so; what the lanes are then is good for nothing.
        """
        inside = np.empty(self.K, dtype=np.int64)
        for given, k in self._place.items():
            inside[k] = epochs[given]
        ahead, self._ahead = self._ahead, None
        real_rows = ahead[1] if ahead is not None and np.array_equal(ahead[0], inside) else self.plan.real_rows(inside)
        self.shared = self._may_share and bool((inside == inside[0]).all())
        self._draw(inside)
        self.loss.zero_()
        whole, real = torch.from_numpy(self.plan.whole_rows), torch.from_numpy(real_rows)
        with self.products.scope():
            if self._graphed:
                self._step_graph().run(self._train_step, whole, real, self._feed)
                # The device is busy from here on: prepare what the next epoch most likely needs.
                self._ahead = inside + 1, self.plan.real_rows(inside + 1)
            else:
                self._run_steps(whole.to(self.data.device), real.to(self.data.device, self.data.dtype))
            if self.norm == "batch" and self.averages:
                self._refresh_statistics()
        return self._in_given_order(self.loss.cpu().numpy() / self.plan.visited)

    def _step_graph(self) -> StepGraph:
        """The graph of this epoch's micro-steps."""
        if self.shared not in self._step_graphs:
            device, dtype = self.data.device, self.data.dtype
            self._step_graphs[self.shared] = StepGraph(len(self.plan), self.K, self.kernels, device, dtype)
        return self._step_graphs[self.shared]

    def _run_steps(self, whole: Tensor, real: Tensor) -> None:
        whole_rows, real_rows = self.kernels.handle(whole), self.kernels.handle(real)
        for s in range(len(whole)):
            self._feed(s)
            self._train_step(Step(whole_rows[s], real_rows[s]), whole[s])

    def _feed(self, s: int) -> None:
        if self.interrupted():
            raise EpochInterruptedError
        if self._stream is not None:
            self._stream.feed(s)

    def _draw(self, epochs: npt.NDArray[np.int64]) -> None:
        """Each lane's order and dropout words for its epoch."""
        if self.order.device.type != "cuda":
            # Of the CPU's own this is the memory itself; others get a copy of what the host draws.
            drawn_here = self.order.cpu()
            order = drawn_here.numpy()
            drawn: dict[tuple[int, int, int], npt.NDArray[np.int64]] = {}  # once for all lanes that visit rows alike
            for k, (n, view) in enumerate(zip(self.rows, self.views, strict=True)):
                of = int(self._order_keys[k]), int(epochs[k]), n
                if of not in drawn:
                    drawn[of] = epoch_order(*of)
                np.add(drawn[of], view.first_train, out=order[k, :n])
            self.order.copy_(drawn_here)
            if self._stream is not None:
                self._stream.begin(order)
        else:
            for n in set(self.rows):
                lanes = np.flatnonzero(np.array(self.rows) == n)
                first = torch.tensor([self.views[k].first_train for k in lanes], device=self.data.device)
                # Of lanes that visit rows alike only the first one's is drawn.
                alike = lanes[:1] if self.shared else lanes
                drawn_order = draws.orders(self._order_keys[alike], epochs[alike], n, self.data.device)
                self.order[torch.from_numpy(lanes), :n] = drawn_order + first[:, None]
        masks = np.stack([words(self.keys, Purpose.DROPOUT, epochs, layer) for layer in range(self.L + 1)])
        self.words.copy_(torch.from_numpy(masks.astype(np.int64)))

    def _train_step(self, step: Step, whole: Tensor) -> None:
        kernels, products, accumulate = self.kernels, self.products, self.accumulate
        layers = self._layers[self.shared]
        kernels.gather(*self._h_rows, step, self._h_shared_x if self.shared else self._h_x, self._h_y)
        if self.drops_inputs:
            kernels.drop_inputs(self._h_x, self._h_words[0], step, self.lane_numbers)
        saved = [self._forward_layer(layer, own, step, whole) for layer, own in enumerate(layers, start=1)]
        for head in self._heads:
            products.set(head.out, head.weight, head.a_t)
        kernels.head(
            self.head,
            self._h_out,
            self._h_added[0],
            self._h_y,
            step,
            self.lane_numbers,
            self._h_g_added[0],
            self._h_loss,
            accumulate,
        )
        for head in self._heads:
            products.add(head.gradient, head.out, head.a, keep=accumulate)
            products.set(head.da, head.out_t, head.weight)
        for layer in range(self.L, 0, -1):
            own = layers[layer - 1]
            if self.residual and own.d_below is not None:  # what is added to a layer's input passes on as it is
                own.d_below.copy_(own.dz)
            self._backward_layer(layer, saved[layer - 1], whole)
            products.add(own.gradient, own.below_t, own.dz, keep=accumulate)
            if own.d_below is not None:
                products.add(own.d_below, own.dz, own.weight_t, keep=self.residual)
        if self.clips:
            kernels.clip(self._h_theta, self._h_gradient, self._blocks, self.lane_numbers, self._h_coefficients)
        kernels.optimize(
            self.optimizer,
            self._h_theta,
            self._h_gradient,
            self._h_moments,
            self._h_coefficients,
            self._blocks,
            step,
            self.lane_numbers,
            accumulate,
        )
        if self.averages:
            kernels.average(self._h_theta, self._h_mean, self._blocks, step)

    def _forward_layer(self, layer: int, own: LayerTensors, step: Step, whole: Tensor) -> tuple[Tensor, Tensor] | None:
        """Hidden layer ``layer`` of a micro-step; what its normalisation's backward pass needs, if it has one."""
        count, z = self.layout.counts[layer], own.z
        self.products.set(z, own.below, own.weight)
        saved = None
        if self.norm != "none":
            if self.norm == "layer":
                z += self.b[layer][:, None, :]
                saved = norms.layer_forward(z, self._width[:count], self._inside[:count])
            else:
                live, rows = self._live(whole, count)
                normalised, inverse, mean, variance = norms.batch_forward(z, live, rows)
                self._track(layer, mean, variance, rows.squeeze(2))
                saved = normalised, inverse
            torch.mul(saved[0], self.gain[layer][:, None, :], out=z)
        self.kernels.hidden_forward(
            self.activation,
            self._h_z[layer - 1],
            self._h_added[layer],
            self._h_words[layer],
            step,
            self.lane_numbers,
            self._h_a[layer],
        )
        if self.residual and layer > 1:
            self.a[layer] += own.below
        return saved

    def _backward_layer(self, layer: int, saved: tuple[Tensor, Tensor] | None, whole: Tensor) -> None:
        """da of hidden layer ``layer`` becomes the gradient by its linear map; vectors get their gradients."""
        count, accumulate, da = self.layout.counts[layer], self.accumulate, self.da[layer - 1]
        self.kernels.hidden_backward(self._h_da[layer - 1], self._h_z[layer - 1], self._h_g_added[layer], accumulate)
        if saved is None:
            return
        normalised, inverse = saved
        gain = self.gain[layer]
        _add_or_set(self.g_gain[layer], (da * normalised).sum(1), accumulate)
        if self.norm == "layer":
            dz = norms.layer_backward(da, normalised, inverse, gain, self._width[:count], self._inside[:count])
        else:
            dz = norms.batch_backward(da, normalised, inverse, gain, *self._live(whole, count))
        da.copy_(dz)
        if layer in self.gb:
            _add_or_set(self.gb[layer], da.sum(1), accumulate)

    # ---- batch normalisation ----

    def _live(self, whole: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Which rows of the micro-step count, (K_l, B, 1), and how many they are, (K_l, 1, 1), at least 1."""
        rows = whole[Whole.COUNT][:count]
        live = torch.arange(self.B, device=whole.device) < rows[:, None]
        return live.to(self.data.dtype)[:, :, None], rows.clamp(min=1).to(self.data.dtype)[:, None, None]

    def _track(self, layer: int, mean: Tensor, variance: Tensor, rows: Tensor) -> None:
        """Move the running statistics towards a batch's; the variance unbiased, as in torch."""
        unbiased = variance * rows / (rows - 1).clamp(min=1)
        running, new = self.running[layer - 1], torch.stack([mean, unbiased])
        seen = (rows > 1).to(mean.dtype)  # a lane whose epoch is over has no batch
        running += norms.MOMENTUM * seen * (new - running)

    def _refresh_statistics(self) -> None:
        """The averaged weights' statistics: the mean over the training rows in order, batch by batch."""
        for view, lanes in self._by_view():
            total = self._statistics_over(view.x_train)
            for layer in range(self.L):
                count = self.layout.counts[layer + 1]
                for k in lanes[lanes < count].tolist():
                    averaged = self.configs[k].averaging != "none"
                    self.judged_running[layer][:, k] = (total if averaged else self.running)[layer][:, k]

    def _statistics_over(self, x: Tensor) -> list[Tensor]:
        """Mean and variance of each layer (2, K_l, H) over rows x (n, D), every lane's judged weights, dropout off."""
        cut = batches(len(x), self.configs[0])
        total = [torch.zeros_like(running) for running in self.running]
        for start, size in cut:
            below = self._wide(x[start : start + size].to(self.data.device)).expand(self.K, size, -1)
            for layer in range(1, self.L + 1):
                count = self.layout.counts[layer]
                z = torch.empty(count, size, self.H, device=below.device, dtype=below.dtype)
                self.products.set(z, below[:count], self.judged["weight"][layer])
                variance, mean = torch.var_mean(z, dim=1)
                total[layer - 1] += torch.stack([mean, variance]) / len(cut)
                normalised = (z - mean[:, None, :]) * torch.rsqrt(z.var(1, correction=0, keepdim=True) + norms.EPS)
                below = self._activate(layer, normalised, below)
        return total

    def _activate(self, layer: int, normalised: Tensor, below: Tensor) -> Tensor:
        """Hidden layer ``layer`` of the judged weights from its normalised pre-activations on, dropout off."""
        z = normalised * self.judged["gain"][layer][:, None, :]
        handle = self.kernels.handle
        self.kernels.hidden_infer(self.activation, handle(z), handle(self.judged["shift"][layer]), self.lane_numbers)
        return z + below[: len(z)] if self.residual and layer > 1 else z

    # ---- evaluation ----

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        """Every lane's outputs on the same rows, of the weights it is judged by, dropout off.

        (n, D) -> (K, n, C), in the order the lanes were given.
        """
        return self._outputs(x)[[self._place[given] for given in range(self.K)]]

    def _outputs(self, x: Tensor) -> Tensor:
        """(n, D) -> (K, n, C)."""
        pieces = (self._wide(rows.to(self.data.device)) for rows in torch.split(x, self._rows_at_once))
        with self.products.scope():
            return torch.cat([self._infer(rows.expand(self.K, *rows.shape)) for rows in pieces], dim=1)

    def _wide(self, x: Tensor) -> Tensor:
        """Rows (…, D of their view) as (…, D of the pack): zeros for what they lack, without what no lane reads."""
        lacking = self.layout.D - x.shape[-1]
        return torch.nn.functional.pad(x, (0, lacking)) if lacking > 0 else x[..., : self.layout.D]

    @property
    def _rows_at_once(self) -> int:
        return evaluation_rows(self.data.device, self.K, self.H)

    def _by_view(self) -> list[tuple[DeviceView, npt.NDArray[np.int64]]]:
        """Each view that lanes train on, and the places of these lanes."""
        places: dict[tuple[Scaling, int], list[int]] = {}
        for k, lane in enumerate(self.lanes):
            places.setdefault((lane.config.scaling, lane.fold), []).append(k)
        return [(self.views[lanes[0]], np.array(lanes)) for lanes in places.values()]

    def _infer(self, x: Tensor) -> Tensor:
        """x (K, n, D) -> (K, n, C)."""
        handle, judged = self.kernels.handle, self.judged
        out = torch.empty(self.K, self.layout.C, x.shape[1], device=x.device, dtype=x.dtype)
        below = x
        heads = {layer: (first, last) for layer, first, last in self.heads}
        for layer in range(1, self.L + 1):
            count = self.layout.counts[layer]
            a = torch.empty(count, x.shape[1], self.H, device=x.device, dtype=x.dtype)
            self.products.set(a, below[:count], judged["weight"][layer])
            if self.norm == "none":
                self.kernels.hidden_infer(self.activation, handle(a), handle(judged["bias"][layer]), self.lane_numbers)
                if self.residual and layer > 1:
                    a += below[:count]
            else:
                if self.norm == "layer":
                    a += judged["bias"][layer][:, None, :]
                    normalised, _ = norms.layer_forward(a, self._width[:count], self._inside[:count])
                else:
                    mean, variance = self.judged_running[layer - 1][:, :, None, :]
                    normalised = (a - mean) * torch.rsqrt(variance + norms.EPS)
                a = self._activate(layer, normalised, below)
            if layer in heads:
                first, last = heads[layer]
                weight = judged["weight"][0][first:last].transpose(1, 2)
                self.products.set(out[first:last], weight, a[first:last].transpose(1, 2))
                out[first:last] += judged["bias"][0][first:last, :, None]
            below = a
        return out.transpose(1, 2)

    @torch.no_grad()
    def validate(self, metric: Metric, part: Part = "val") -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Each lane's mean loss and metric on its view's validation rows, or on its train rows, dropout off: (K,), in
        the order the lanes were given.
        """
        outputs, groups = self._part_outputs(part), self._by_view()
        loss, value = np.empty(self.K), np.empty(self.K)
        for view, lanes in groups:
            x, rows_y = view.part(part)
            own = for_sums(outputs[torch.from_numpy(lanes), : len(x)] if len(groups) > 1 else outputs)
            y = rows_y.to(own.device)
            loss[lanes] = row_loss(self.head, own, y).mean(1, dtype=torch.float64).cpu().numpy()
            value[lanes] = score(metric, own, y, view.target_sd).cpu().numpy()
        return self._in_given_order(loss), self._in_given_order(value)

    def _part_outputs(self, part: Part) -> Tensor:
        """Each lane's outputs on its own view's rows of one part, and on any rows after them: (K, n, C)."""
        if len(self._by_view()) == 1:
            return self._outputs(self.views[0].part(part)[0])
        x = (self.data.x_train if part == "train" else self.data.x_val)[:, : self.layout.D]
        first = torch.tensor([view.first_train if part == "train" else view.first_val for view in self.views])
        last = first + torch.tensor([len(view.part(part)[0]) for view in self.views]) - 1
        parts = []
        with self.products.scope():
            n = int((last - first).max()) + 1
            for start in range(0, n, self._rows_at_once):
                rows = torch.arange(start, min(start + self._rows_at_once, n))
                taken = torch.minimum(first[:, None] + rows, last[:, None]).to(x.device)
                parts.append(self._infer(x[taken].to(self.data.device)))
        return torch.cat(parts, dim=1)

    # ---- a lane's own state ----

    def mark_best(self, given: Sequence[int]) -> None:
        """Remember the weights these lanes are judged by now, and their statistics, as the best so far."""
        self.parameters.mark_best([self._place[i] for i in given])

    def export(self, given: int) -> Arrays:
        """Lane ``given``'s numbers, see :meth:`Parameters.export`."""
        return self.parameters.export(self._place[given])

    def restore(self, given: int, arrays: Arrays) -> None:
        """Put back what ``export`` gave, of this or any other pack that holds an equal lane."""
        self.parameters.restore(self._place[given], arrays)

    def _in_given_order(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return values[[self._place[given] for given in range(self.K)]]


def _add_or_set(gradient: Tensor, total: Tensor, accumulate: bool) -> None:
    gradient.add_(total) if accumulate else gradient.copy_(total)
