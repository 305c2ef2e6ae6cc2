"""An epoch's micro-steps out of buffers that never move, so that on CUDA one captured graph serves them all.

Launching a micro-step's kernels one by one costs the host about a millisecond, as much as the device takes to run them
for a thousand lanes. A CUDA graph launches them all at once, but it fixes every address: so the micro-step reads its
numbers from one place, and the graph itself first fills that place from the epoch's tables, at a counter on the device.

Shapes: ``S`` micro-steps of an epoch, ``K`` lanes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from tuner.learning.kernels.interface import Kernels, Real, Step, Whole

TrainStep = Callable[[Step, Tensor], None]  # takes the numbers as handles, and the whole ones as a tensor as well

WARM_UP = 2  # micro-steps before capture: the first compiles kernels and sets up cuBLAS, which no graph may hold

_log = logging.getLogger(__name__)


class StepGraph:
    """Runs the micro-steps of one pack's epochs, each of ``S``.

    On a device other than CUDA, and where capture fails, it launches them one by one from the same buffers.
    """

    def __init__(self, S: int, K: int, kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
        self._whole_rows = torch.zeros(S, len(Whole), K, dtype=torch.int64, device=device)
        self._real_rows = torch.zeros(S, len(Real), K, dtype=dtype, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._whole, self._real = torch.zeros_like(self._whole_rows[:1]), torch.zeros_like(self._real_rows[:1])
        self._step = Step(kernels.handle(self._whole[0]), kernels.handle(self._real[0]))
        self._prepared = device.type != "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def captured(self) -> bool:
        """Whether micro-steps are launched as a graph."""
        return self._graph is not None

    def run(
        self, train_step: TrainStep, whole: Tensor, real: Tensor, before: Callable[[int], None] = lambda _: None
    ) -> None:
        """Train one epoch: whole (S, 3, K) and real (S, 5, K), see :class:`Whole` and :class:`Real`.

        ``before(s)`` is called before micro-step s is launched.

        ``train_step`` must be the same function with the same buffers each time. It is not kept: the graph holds
        addresses only.
        """
        if not self._prepared:
            self._prepare(train_step)
        self._whole_rows.copy_(whole)
        self._real_rows.copy_(real)
        self._at.zero_()
        for s in range(len(self._whole_rows)):
            before(s)
            if self._graph is None:
                self._advance(train_step)
            else:
                self._graph.replay()

    def idle(self, train_step: TrainStep) -> None:
        """A micro-step while the tables are still zero: no lane has rows or steps, and nothing changes."""
        self._at.zero_()
        self._advance(train_step)

    def _advance(self, train_step: TrainStep) -> None:
        """The micro-step that the counter is at; then the counter moves on."""
        torch.index_select(self._whole_rows, 0, self._at, out=self._whole)
        torch.index_select(self._real_rows, 0, self._at, out=self._real)
        self._at += 1
        train_step(self._step, self._whole[0])

    def _prepare(self, train_step: TrainStep) -> None:
        """Warm up with idle micro-steps, then capture, which runs nothing."""
        with torch.cuda.device(self._at.device):
            here, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(here)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.idle(train_step)
            here.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may call CUDA meanwhile: that must not end this capture.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._advance(train_step)
                self._graph = graph
            except torch.OutOfMemoryError:
                raise  # a smaller pack may be captured
            except RuntimeError as error:
                _warn(str(error).partition("\n")[0])
        self._prepared = True


@functools.cache
def _warn(reason: str) -> None:
    """Say once, not for every pack, that there is no graph."""
    _log.warning("no CUDA graph, micro-steps are launched one by one, which is slower: %s", reason)
