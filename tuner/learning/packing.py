"""Which lanes train together: a cost model of one epoch, and the partition into packs that it likes best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tuner.learning.device import DeviceData
from tuner.learning.layout import padded
from tuner.learning.memory import memory_budget, pack_bytes
from tuner.learning.trainer import LaneTask
from tuner.trial import TrialConfig, Value

BYTES_MOVED = 28  # an Adam step reads θ, g, m, v and writes θ, m, v: seven float32 a parameter


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a device can do, roughly: it only has to rank packs, not to predict seconds."""

    launch_s: float  # a micro-step's fixed cost
    launch_layer_s: float  # and what each hidden layer adds to it
    flops: float  # of a large matrix product, 1/s
    rows_half: float  # rows of a product at which it reaches half of that
    bytes_per_s: float
    max_lanes: int


CPU = Machine(launch_s=40e-6, launch_layer_s=25e-6, flops=100e9, rows_half=6, bytes_per_s=12e9, max_lanes=16)
GPU = Machine(launch_s=60e-6, launch_layer_s=40e-6, flops=20e12, rows_half=16, bytes_per_s=1.5e12, max_lanes=4096)


def machine_of(device: torch.device) -> Machine:
    """The cost constants of a device."""
    return CPU if device.type == "cpu" else GPU


def pack_seconds(configs: Sequence[TrialConfig], n: int, D: int, C: int, machine: Machine) -> float:
    """Estimated seconds of one epoch over ``n`` rows of ``D`` features and ``C`` outputs, all lanes as one pack."""
    H = padded(max(c.width for c in configs))
    batches = [min(c.batch_size, n) for c in configs]
    B, L = min(batches), max(c.depth for c in configs)
    micro_steps = max(sum(-(-min(b, n - i) // B) for i in range(0, n, b)) for b in set(batches))
    rate = machine.flops * B / (B + machine.rows_half)
    seconds = micro_steps * (machine.launch_s + L * machine.launch_layer_s)
    for c, b in zip(configs, batches, strict=True):
        parameters = D * H + (c.depth - 1) * H * H + H * C
        seconds += micro_steps * 6 * B * parameters / rate
        seconds += -(-n // b) * parameters * BYTES_MOVED / machine.bytes_per_s
    return seconds


def plan_packs(tasks: Sequence[LaneTask], data: DeviceData, budget: int | None = None) -> list[list[LaneTask]]:
    """Partition lanes into packs: equal signatures, similar batch sizes and widths, cheapest in total.

    Lanes of one signature are sorted by (batch size, width, depth); dynamic programming finds the cheapest cut of that
    line into runs. On a GPU launches are dear and one large pack wins; on a CPU padding is dear and cuts win. No run of
    two or more lanes is predicted to take more than ``budget`` bytes (None: :func:`memory_budget`).
    """
    budget = memory_budget(data.device) if budget is None else budget
    signatures: dict[tuple[Value, ...], list[LaneTask]] = {}
    for task in tasks:
        signatures.setdefault(task.lane.config.signature, []).append(task)
    return [pack for group in signatures.values() for pack in _cut(group, data, budget)]


def bytes_of(tasks: Sequence[LaneTask], data: DeviceData) -> int:
    """Predicted bytes of these lanes as one pack."""
    return pack_bytes(
        [task.lane.config for task in tasks],
        len(data.x_train),
        data.n_features,
        data.n_outputs,
        rows_evaluated=len(data.x_val),
        item=data.x_train.element_size(),
    )


def halved(pack: list[LaneTask]) -> tuple[list[LaneTask], list[LaneTask]]:
    """Two halves of a pack that ran out of memory."""
    middle = len(pack) // 2
    return pack[:middle], pack[middle:]


def _cut(group: list[LaneTask], data: DeviceData, budget: int) -> list[list[LaneTask]]:
    def similarity(task: LaneTask) -> tuple[int, int, int, int]:
        c = task.lane.config
        return (c.batch_size, c.width, c.depth, task.lane.number)

    machine = machine_of(data.device)
    n, D, C = len(data.x_train), data.n_features, data.n_outputs
    line = sorted(group, key=similarity)
    configs = [task.lane.config for task in line]
    grain = -(-len(line) // 64)  # cut only at multiples, so that thousands of lanes stay cheap to plan
    while grain > 1 and bytes_of(line[-grain:], data) > budget:
        grain //= 2
    cuts = [*range(0, len(line), grain), len(line)]
    best: list[tuple[float, int]] = [(0.0, 0)]
    for j in range(1, len(cuts)):
        options = []
        for i in range(j - 1, -1, -1):
            if i < j - 1 and (
                cuts[j] - cuts[i] > machine.max_lanes or bytes_of(line[cuts[i] : cuts[j]], data) > budget
            ):
                break
            options.append((best[i][0] + pack_seconds(configs[cuts[i] : cuts[j]], n, D, C, machine), i))
        best.append(min(options))
    packs: list[list[LaneTask]] = []
    j = len(cuts) - 1
    while j > 0:
        i = best[j][1]
        packs.append(line[cuts[i] : cuts[j]])
        j = i
    return packs[::-1]
