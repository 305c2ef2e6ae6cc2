"""What a device can do, in the few numbers that the cost model of :mod:`tuner.learning.packing` needs.

A CPU's numbers are measured once a process, in about a tenth of a second, on small products, optimizer steps and packs.
They only have to rank plans, so they are rounded to steps of √2: a plan does not change with every breath of the
machine. Other devices have fixed numbers: there, compiling and capturing would take longer than any plan could save.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tuner.data.dataset import Rows, View
from tuner.learning.device import DeviceData
from tuner.learning.kernels import kernels_for
from tuner.learning.kernels.interface import Blocks, LaneReal, Lanes, LaneWhole, Real, Step, Whole
from tuner.learning.lanes import Lane, Pack
from tuner.trial import TrialConfig

REPEATS = 7  # of each measurement; the fastest counts, the others were disturbed
# Bytes of working sets at which the memory's speed is measured; close together at the end, where it falls off a cliff.
KNOTS = (2**20, 2**23, 2**25, 2**26)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device's speed. It only has to rank packs, not to predict seconds."""

    launch_s: float  # a micro-step's fixed cost
    launch_layer_s: float  # and what each hidden layer adds to it
    flops: float  # of a large matrix product, 1/s
    rows_half: float  # rows of a product at which it reaches half of that
    bytes_per_s: tuple[float, ...]  # moved to and from memory, with working sets of KNOTS bytes
    max_lanes: int

    def memory_speed(self, working_set: float) -> float:
        """Bytes a second at a working set of so many bytes; interpolated over its logarithm."""
        return float(np.interp(math.log(working_set), np.log(KNOTS), self.bytes_per_s))


CPU = Machine(
    launch_s=40e-6, launch_layer_s=25e-6, flops=100e9, rows_half=6, bytes_per_s=(60e9, 40e9, 30e9, 20e9), max_lanes=16
)
GPU = Machine(
    launch_s=60e-6, launch_layer_s=40e-6, flops=20e12, rows_half=16, bytes_per_s=(1.5e12,) * len(KNOTS), max_lanes=4096
)


def machine_of(device: torch.device) -> Machine:
    """The numbers of a device."""
    return measured_cpu() if device.type == "cpu" else GPU


@functools.cache
def measured_cpu() -> Machine:
    """This machine's CPU, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, three = _micro_step_seconds(1), _micro_step_seconds(3)
        layer = max((three - one) / 2, 1e-6)
        flops, few = _flops(256), _flops(8)
        return Machine(
            launch_s=_rounded(max(one - layer, 1e-6)),
            launch_layer_s=_rounded(layer),
            flops=_rounded(flops),
            rows_half=_rounded(max(8 * (flops / few - 1), 1.0)),
            bytes_per_s=tuple(_rounded(bytes_per_s(size)) for size in KNOTS),
            max_lanes=CPU.max_lanes,
        )
    finally:
        torch.set_num_threads(threads)


def _rounded(value: float) -> float:
    """To the nearest power of √2."""
    return float(2 ** (round(2 * math.log2(value)) / 2))


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of one call, after a first that is not counted."""
    work()
    found = []
    for _ in range(REPEATS):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return min(found)


def _flops(rows: int) -> float:
    """Floating-point operations a second of products of so many rows."""
    a, b = torch.ones(1, rows, 256), torch.ones(1, 256, 256)
    out = torch.empty(1, rows, 256)
    return 2 * rows * 256**2 / _fastest(lambda: torch.bmm(a, b, out=out))


def bytes_per_s(working_set: int) -> float:
    """Bytes a second that an Adam step moves: it reads θ, g, m, v, the working set, and writes θ, m, v."""
    kernels = kernels_for(torch.device("cpu"))
    handle = kernels.handle
    n = working_set // 16
    theta, gradient, m, v = (handle(flat) for flat in torch.zeros(4, n))
    blocks = Blocks(*(handle(torch.tensor([number])) for number in (0, n, 1, 1)))
    step = Step(handle(torch.ones(len(Whole), 1, dtype=torch.int64)), handle(torch.full((len(Real), 1), 0.5)))
    lanes = Lanes(
        handle(torch.zeros(len(LaneWhole), 1, dtype=torch.int64)),
        handle(torch.full((len(LaneReal), 1), 0.5)),
        handle(torch.ones(1, 1)),
    )
    one = handle(torch.ones(1))
    moved = 7 * 4 * n
    return moved / _fastest(
        lambda: kernels.optimize("adamw", theta, gradient, (m, v), one, blocks, step, lanes, clear=False)
    )


def _micro_step_seconds(depth: int) -> float:
    """Of a pack so small that its numbers cost nothing."""
    steps = 8
    rows = Rows(x=np.ones((8 * steps, 8), dtype=np.float32), y=np.zeros(8 * steps, dtype=np.int64))
    view = View(train=rows, val=rows, target_mean=0.0, target_sd=1.0)
    data = DeviceData.of_views({("standard", 0): view}, "classification", 2, torch.device("cpu"))
    config = TrialConfig(learning_rate=1e-3, batch_size=8, width=8, depth=depth, dropout=0.1, max_epochs=1)
    pack = Pack([Lane(number=0, config=config, key=0)], data)
    return _fastest(lambda: pack.train_epoch([1])) / steps


def describe(machine: Machine) -> Sequence[str]:
    """A line for each number, for people."""
    speeds = ", ".join(f"{speed / 1e9:.0f}" for speed in machine.bytes_per_s)
    return [
        f"micro-step  {machine.launch_s * 1e6:.0f} µs and {machine.launch_layer_s * 1e6:.0f} µs a hidden layer",
        f"products    {machine.flops / 1e9:.0f} GFLOP/s, half of it with {machine.rows_half:.0f} rows",
        f"memory      {speeds} GB/s with working sets of {', '.join(f'{size >> 20}' for size in KNOTS)} MiB",
    ]
