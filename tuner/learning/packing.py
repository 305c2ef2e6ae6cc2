"""Which lanes train together: a cost model of one epoch, and the partition into packs that it likes best."""

from __future__ import annotations

from collections.abc import Sequence

from tuner.learning.device import DeviceData
from tuner.learning.lanes import Reading, may_share, reading
from tuner.learning.layout import padded
from tuner.learning.machine import Machine, machine_of
from tuner.learning.memory import memory_budget, pack_bytes
from tuner.learning.schedules import micro_batch, micro_steps_of
from tuner.learning.trainer import LaneTask
from tuner.trial import TrialConfig, Value

NUMBER = 4  # bytes of a float32
OPTIMIZER_PASSES = 7  # an Adam step reads θ, g, m, v and writes θ, m, v
PRODUCT_PASSES = 3  # a micro-step reads each weight forward and backward, and writes its gradient
ROW_PASSES = (
    4  # it copies its rows, and reads the copy forward and backward; a copy that lanes share stays in the cache
)
FLATS = 4  # vectors of the size of the parameters: θ, g, m, v


def pack_seconds(
    configs: Sequence[TrialConfig], rows: Sequence[int], D: int, C: int, machine: Machine, *, shared: bool = False
) -> float:
    """Estimated seconds of one epoch, all lanes as one pack; rows: each lane's; D features, C outputs.

    shared: whether the lanes read one copy of their batches.
    """
    H = padded(max(c.width for c in configs))
    sizes = [min(c.batch_size, n) for c, n in zip(configs, rows, strict=True)]
    B, L = micro_batch(configs, rows), max(c.depth for c in configs)
    micro_steps = micro_steps_of(configs, rows)
    rate = machine.flops * B / (B + machine.rows_half)
    parameters = [D * H + (c.depth - 1) * H * H + H * C for c in configs]
    copies = 1 if shared else len(configs)
    working_set = NUMBER * (FLATS * sum(parameters) + copies * B * D + len(configs) * B * 3 * L * H)
    speed = machine.memory_speed(working_set) / NUMBER
    seconds = micro_steps * (machine.launch_s + L * machine.launch_layer_s)
    seconds += micro_steps * copies * ROW_PASSES * B * D / speed
    for P, b, n in zip(parameters, sizes, rows, strict=True):
        # The gradient by the inputs is never taken.
        seconds += micro_steps * B * (6 * P - 2 * D * H) / rate
        seconds += micro_steps * PRODUCT_PASSES * P / speed
        seconds += -(-n // b) * OPTIMIZER_PASSES * P / speed
    return seconds


def plan_packs(tasks: Sequence[LaneTask], data: DeviceData, budget: int | None = None) -> list[list[LaneTask]]:
    """Partition trials into packs: equal signatures, similar batch sizes and widths, cheapest in total.

    Lanes of one signature are sorted by (batch size, width, depth); dynamic programming finds the cheapest cut of that
    line into runs, all folds of a trial in one. Where trials differ in the scaling of their features, so that they
    cannot read one copy of a batch and may have more or fewer of them, those of one scaling are put side by side as
    well, and the cheaper plan counts. On a GPU launches are dear and one large pack wins; on a CPU padding is dear and
    cuts win. No run of two or more trials is predicted to take more than ``budget`` bytes (None:
    :func:`memory_budget`).
    """
    budget = memory_budget(data.device) if budget is None else budget
    signatures: dict[tuple[Value, ...], list[LaneTask]] = {}
    for task in tasks:
        signatures.setdefault(task.lane.config.signature, []).append(task)
    return [pack for group in signatures.values() for pack in _partition(group, data, budget)]


def bytes_of(tasks: Sequence[LaneTask], data: DeviceData) -> int:
    """Predicted bytes of these trials as one pack."""
    configs, rows = _members(tasks, data)
    evaluated = max(last - first for first, last in (span.val for span in data.spans.values()))
    D, C, item = _features(tasks, data), data.n_outputs, data.x_train.element_size()
    return pack_bytes(
        configs, rows, D, C, rows_evaluated=evaluated, item=item, streamed=data.streamed, device=data.device
    )


def seconds_of(tasks: Sequence[LaneTask], data: DeviceData) -> float:
    """Estimated seconds to train these trials as one pack from the start to the last one's target."""
    epochs = max(task.target_epochs for task in tasks)
    read = [_reading(task, data) for task in tasks]
    return epochs * _epoch_seconds(tasks, read, data, machine_of(data.device))


def _epoch_seconds(
    tasks: Sequence[LaneTask], read: Sequence[Reading | None], data: DeviceData, machine: Machine
) -> float:
    configs, rows = _members(tasks, data)
    shared = len(configs) == len(tasks) and may_share(read, configs, rows)
    return pack_seconds(configs, rows, _features(tasks, data), data.n_outputs, machine, shared=shared)


def _reading(task: LaneTask, data: DeviceData) -> Reading | None:
    """What a trial's next epoch reads; the folds of one never read the same."""
    read = reading(task.lane, data)
    return None if read is None else (*read, task.state.progress.epoch if task.state else 0)


def _features(tasks: Sequence[LaneTask], data: DeviceData) -> int:
    """D of these trials as one pack."""
    return max(data.features_of(task.lane.config.scaling) for task in tasks)


def _members(tasks: Sequence[LaneTask], data: DeviceData) -> tuple[list[TrialConfig], list[int]]:
    """Configuration and training rows of each lane."""
    configs = [task.lane.config for task in tasks for _ in range(task.folds)]
    spans = [data.spans[lane.config.scaling, lane.fold].train for task in tasks for lane in task.lanes]
    return configs, [last - first for first, last in spans]


def halved(pack: list[LaneTask]) -> tuple[list[LaneTask], list[LaneTask]]:
    """Two halves of a pack that cannot be trained as a whole."""
    middle = len(pack) // 2
    return pack[:middle], pack[middle:]


def _partition(group: list[LaneTask], data: DeviceData, budget: int) -> list[list[LaneTask]]:
    def similarity(task: LaneTask) -> tuple[int, int, int, int]:
        c = task.lane.config
        return (c.batch_size, c.width, c.depth, task.lane.number)

    lines = [sorted(group, key=similarity)]
    if len({task.lane.config.scaling for task in group}) > 1:
        lines.append(sorted(lines[0], key=lambda task: task.lane.config.scaling))
    _, packs = min((_cut(line, data, budget) for line in lines), key=lambda cut: cut[0])
    return packs


def _cut(line: list[LaneTask], data: DeviceData, budget: int) -> tuple[float, list[list[LaneTask]]]:
    """The cheapest cut of a line of trials: its estimated seconds an epoch, and its packs."""
    machine, read = machine_of(data.device), [_reading(task, data) for task in line]
    grain = -(-len(line) // 64)  # cut only at multiples, so that thousands of lanes stay cheap to plan
    while grain > 1 and bytes_of(line[-grain:], data) > budget:
        grain //= 2
    cuts = [*range(0, len(line), grain), len(line)]
    best: list[tuple[float, int]] = [(0.0, 0)]
    for j in range(1, len(cuts)):
        options = []
        for i in range(j - 1, -1, -1):
            run = line[cuts[i] : cuts[j]]
            lanes = sum(task.folds for task in run)
            if i < j - 1 and (lanes > machine.max_lanes or bytes_of(run, data) > budget):
                break
            options.append((best[i][0] + _epoch_seconds(run, read[cuts[i] : cuts[j]], data, machine), i))
        best.append(min(options))
    packs: list[list[LaneTask]] = []
    j = len(cuts) - 1
    while j > 0:
        i = best[j][1]
        packs.append(line[cuts[i] : cuts[j]])
        j = i
    return best[-1][0], packs[::-1]
