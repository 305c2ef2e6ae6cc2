"""What the lanes of a pack keep from step to step: parameters, moments, averages, running statistics, the best so far.

Shapes: ``K`` lanes, deepest first, ``K_l`` of them with hidden layer l, ``H`` hidden units of the widest; the flat
buffers are those of :class:`tuner.learning.layout.Layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.learning import draws
from tuner.learning.layout import Layout
from tuner.learning.mlp import drawn_layer, initial_bounds
from tuner.learning.randomness import U64

Arrays = dict[str, npt.NDArray[Any]]


class Parameters:
    """The numbers of K lanes, initialised from their keys (K,) exactly as :class:`tuner.learning.mlp.MLP` starts.

    theta, gradient, moments: flat buffers. mean: of the weights that lanes are judged by, their average, or theta
        itself where no lane averages. best: of the best epoch's weights, None if no lane keeps them.
    running: batch normalisation's mean and variance of each hidden layer, (2, K_l, H); judged_running: those of mean;
        best_running: those of best.
    """

    def __init__(self, layout: Layout, keys: U64, device: torch.device, dtype: torch.dtype) -> None:
        self.layout, self._keys = layout, keys
        self.configs = configs = layout.configs
        self.averages = any(c.averaging != "none" for c in configs)

        def flat() -> Tensor:
            return torch.zeros(layout.size, device=device, dtype=dtype)

        self.theta, self.gradient = flat(), flat()
        self.moments = tuple(flat() for _ in range(1 if configs[0].optimizer in ("sgd", "nesterov") else 2))
        self.mean = flat() if self.averages else self.theta
        self.best = flat() if any(c.keep == "best" for c in configs) else None
        counts = layout.counts[1:] if configs[0].norm == "batch" else []
        self.running = [torch.zeros(2, count, layout.H, device=device, dtype=dtype) for count in counts]
        for running in self.running:
            running[1] = 1
        self.judged_running = [running.clone() for running in self.running] if self.averages else self.running
        self.best_running = [running.clone() for running in self.running] if self.best is not None else []
        if device.type != "cuda":
            for k in range(layout.K):
                self._fill_lane(k)
        else:
            self.fill_together()
        if self.averages:
            self.mean.copy_(self.theta)

    def _shapes(self, k: int) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer of a lane, the head first."""
        config, D, C = self.configs[k], self.layout.features[k], self.layout.C
        return [(config.width, C), (D, config.width), *[(config.width, config.width)] * (config.depth - 1)]

    def _fill_lane(self, k: int) -> None:
        W, b, gain = (self.layout.views(self.theta, name) for name in ("weight", "bias", "gain"))
        config = self.configs[k]
        for layer, (fan_in, fan_out) in enumerate(self._shapes(k)):
            weight, bias = drawn_layer(int(self._keys[k]), layer, fan_in, fan_out, config.initialization)
            W[layer][k, :fan_in, :fan_out] = torch.from_numpy(weight).to(self.theta)
            if layer in b:
                b[layer][k, :fan_out] = torch.from_numpy(bias).to(self.theta)
            if layer in gain:
                gain[layer][k, :fan_out] = 1

    def fill_together(self) -> None:
        """Draw the initial weights of all lanes at once, on any device."""
        W, b, gain = (self.layout.views(self.theta, name) for name in ("weight", "bias", "gain"))
        width = torch.tensor([c.width for c in self.configs], device=self.theta.device)
        inside = torch.arange(self.layout.H, device=self.theta.device) < width[:, None]
        for layer, count in enumerate(self.layout.counts):
            configs = self.configs[:count]
            fans = [self._shapes(k)[layer] for k in range(count)]
            bounds = np.array([initial_bounds(*fan, c.initialization) for fan, c in zip(fans, configs, strict=True)])
            draws.fill_layer(W[layer], b.get(layer), self._keys[:count], layer, fans, bounds)
            if layer in gain:
                gain[layer].copy_(inside[:count])

    @property
    def _flats(self) -> dict[str, Tensor]:
        flats = {"theta": self.theta, **{f"moment{i}": m for i, m in enumerate(self.moments)}}
        if self.averages:
            flats["mean"] = self.mean
        if self.best is not None:
            flats["best"] = self.best
        return flats

    def mark_best(self, lanes: Sequence[int]) -> None:
        """Remember the weights these lanes are judged by now, and their statistics, as the best so far."""
        if self.best is None or not lanes:
            return
        places = torch.tensor(lanes, device=self.theta.device)
        for block in self.layout.blocks:
            own = places[places < block.lanes]
            block.view(self.best)[own] = block.view(self.mean)[own]
        for kept, running in zip(self.best_running, self.judged_running, strict=False):
            own = places[places < running.shape[1]]
            kept[:, own] = running[:, own]

    def export(self, k: int) -> Arrays:
        """Lane ``k``'s numbers without padding, each array a flat vector, layer by layer, the head first.

        Keys: ``theta``; ``moment0`` and, but for SGD, ``moment1``; ``mean`` if the lane averages; ``best`` if it keeps
        its best; with batch normalisation ``running``, mean and variance of each layer, and likewise ``mean_running``
        and ``best_running``.
        """
        config = self.configs[k]
        arrays = {}
        for name, flat in self._flats.items():
            if (name == "mean" and config.averaging == "none") or (name == "best" and config.keep != "best"):
                continue
            pieces = [piece.reshape(-1) for piece in self.layout.pieces(flat, k)]
            arrays[name] = torch.cat(pieces).cpu().numpy().copy()
        if self.running:
            arrays["running"] = self._own_statistics(self.running, k)
            if config.averaging != "none":
                arrays["mean_running"] = self._own_statistics(self.judged_running, k)
            if config.keep == "best":
                arrays["best_running"] = self._own_statistics(self.best_running, k)
        return arrays

    def restore(self, k: int, arrays: Arrays) -> None:
        """Put back what ``export`` gave, of this or any other pack that holds an equal lane."""
        for name, flat in self._flats.items():
            # A lane that does not average is judged by its parameters, in a pack that averages as in any other.
            stored = arrays.get(name, arrays["theta"] if name == "mean" else None)
            if stored is None:
                continue
            vector = torch.from_numpy(np.asarray(stored)).to(flat)
            used = 0
            for piece in self.layout.pieces(flat, k):
                piece.copy_(vector[used : used + piece.numel()].view(piece.shape))
                used += piece.numel()
        if "running" not in arrays:
            return
        self._put_statistics(self.running, k, arrays["running"])
        self._put_statistics(self.judged_running, k, arrays.get("mean_running", arrays["running"]))
        if "best_running" in arrays:
            self._put_statistics(self.best_running, k, arrays["best_running"])

    def _own_statistics(self, running: Sequence[Tensor], k: int) -> npt.NDArray[Any]:
        config = self.configs[k]
        own = [layer[:, k, : config.width] for layer in running[: config.depth]]
        statistics: npt.NDArray[Any] = torch.stack(own).cpu().numpy().copy()
        return statistics

    def _put_statistics(self, running: Sequence[Tensor], k: int, stored: npt.NDArray[Any]) -> None:
        for layer, own in zip(running, torch.from_numpy(stored), strict=False):
            layer[:, k, : own.shape[1]] = own.to(layer)
