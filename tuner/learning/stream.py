"""Training rows that do not fit the device: they stay in the host's memory and come in chunks of micro-steps.

A chunk holds what the next T micro-steps of all lanes read, gathered on the host in each lane's own order. Two chunks
lie in one table on the device, so that one is filled while the other is trained on, and the micro-step's kernels gather
from that table as from the whole data: by an order that says where in the table a row lies. It is the same in every
epoch, and a lane sees the same rows in the same order, streamed or not, to the last bit.

Shapes: ``K`` lanes, ``B`` rows of a micro-step, ``S`` micro-steps of an epoch, ``D`` features, ``n`` rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.learning.device import DeviceData
from tuner.learning.kernels.interface import Whole

CHUNK_BYTES = 2**26  # of a chunk, unless a single micro-step takes more


def chunk_steps(K: int, B: int, D: int, item: int) -> int:
    """T: how many micro-steps a chunk holds. item: bytes of a number."""
    return max(CHUNK_BYTES // (K * B * D * item), 1)


class RowStream:
    """The rows of one pack's epochs, chunk by chunk.

    x (2·T·K·B, D), y (2·T·K·B,): the table. order (K, n): where in it each position of a lane's epoch lies.
    whole_rows (S, 3, K): the micro-steps, see :class:`Whole`.
    """

    def __init__(self, data: DeviceData, D: int, B: int, whole_rows: npt.NDArray[np.int64]) -> None:
        self._data, self._x, self._B = data, data.x_train[:, :D], B
        S, _, K = whole_rows.shape
        self._start, self._count = whole_rows[:, Whole.START], whole_rows[:, Whole.COUNT]
        self._T = min(chunk_steps(K, B, D, data.dtype.itemsize), S)
        self._cuda = data.device.type == "cuda"
        size = self._T * K * B
        self.x = torch.zeros(2 * size, D, dtype=data.dtype, device=data.device)
        self.y = torch.zeros(2 * size, dtype=data.y_train.dtype, device=data.device)
        order = np.zeros((K, int((self._start + self._count).max())), dtype=np.int64)
        live = np.arange(B) < self._count[:, :, None]  # (S, K, B)
        step, lane, row = np.nonzero(live)
        order[lane, self._start[step, lane] + row] = (step % (2 * self._T) * K + lane) * B + row
        self.order = torch.from_numpy(order).to(data.device)
        self._live = live
        if self._cuda:
            self._host = [
                (torch.empty_like(x, device="cpu", pin_memory=True), torch.empty_like(y, device="cpu", pin_memory=True))
                for x, y in self._halves()
            ]
            self._side = torch.cuda.Stream(data.device)  # type: ignore[no-untyped-call]
            self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
            self._trained = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def begin(self, rows: npt.NDArray[np.int64]) -> None:
        """A new epoch, in which each lane visits its ``rows`` (K, n) in this order."""
        self._rows = rows

    def feed(self, s: int) -> None:
        """Before micro-step ``s`` of an epoch: its rows are in the table, or on their way ahead of it."""
        if s % self._T:
            return
        half = s // self._T % 2
        steps = slice(s, s + self._T)
        position = self._start[steps, :, None] + np.arange(self._B)
        lanes = np.arange(len(self._rows))[None, :, None]
        taken = np.where(self._live[steps], self._rows[lanes, np.minimum(position, self._rows.shape[1] - 1)], 0)
        numbers = torch.from_numpy(taken.reshape(-1))
        x, y = (table[: len(numbers)] for table in self._halves()[half])
        if not self._cuda:
            self._gather(numbers, x, y)
            return
        # The chunk before is still being trained on, or waits its turn in the device's queue: gather meanwhile.
        with torch.cuda.device(self._data.device):
            here = torch.cuda.current_stream()
            self._trained[1 - half].record(here)
            self._copied[half].synchronize()
            host_x, host_y = (buffer[: len(numbers)] for buffer in self._host[half])
            self._gather(numbers, host_x, host_y)
            with torch.cuda.stream(self._side):
                self._side.wait_event(self._trained[half])
                x.copy_(host_x, non_blocking=True)
                y.copy_(host_y, non_blocking=True)
                self._copied[half].record(self._side)
            here.wait_event(self._copied[half])

    def _halves(self) -> list[tuple[Tensor, Tensor]]:
        half = len(self.x) // 2
        return [(self.x[:half], self.y[:half]), (self.x[half:], self.y[half:])]

    def _gather(self, numbers: Tensor, x: Tensor, y: Tensor) -> None:
        torch.index_select(self._x, 0, numbers, out=x)
        torch.index_select(self._data.y_train, 0, numbers, out=y)
