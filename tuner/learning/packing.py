"""Which lanes train together: a cost model of one epoch, and the partition into packs that it likes best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tuner.learning.device import DeviceData
from tuner.learning.lanes import Reading, may_share, reading
from tuner.learning.layout import padded
from tuner.learning.machine import Machine, machine_of
from tuner.learning.memory import memory_budget, pack_bytes
from tuner.learning.schedules import micro_batch, micro_steps_of
from tuner.learning.trainer import LaneTask
from tuner.trial import Scaling, TrialConfig, Value

NUMBER = 4  # bytes of a float32
OPTIMIZER_PASSES = 7  # an Adam step reads θ, g, m, v and writes θ, m, v
PRODUCT_PASSES = 3  # a micro-step reads each weight forward and backward, and writes its gradient
ROW_PASSES = (
    4  # it copies its rows, and reads the copy forward and backward; a copy that lanes share stays in the cache
)
MOST_CUTS = 32  # of a line of trials, unless they do not fit: a plan of thousands of lanes stays cheap
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
    line into runs, all folds of a trial in one. Where trials differ in the scaling of their features or in their epoch,
    so that they cannot read one copy of a batch, those that do not are put side by side as well, and the cheaper plan
    counts. On a GPU launches are dear and one large pack wins; on a CPU padding is dear and cuts win. No run of two or
    more trials is predicted to take more than ``budget`` bytes (None: :func:`memory_budget`).
    """
    budget = memory_budget(data.device) if budget is None else budget
    signatures: dict[tuple[Value, ...], list[LaneTask]] = {}
    for task in tasks:
        signatures.setdefault(task.lane.config.signature, []).append(task)
    return [pack for group in signatures.values() for pack in _partition(group, data, budget)]


def bytes_of(tasks: Sequence[LaneTask], data: DeviceData) -> int:
    """Predicted bytes of these trials as one pack."""
    return _Members.of(tasks, data).bytes(data)


def seconds_of(tasks: Sequence[LaneTask], data: DeviceData) -> float:
    """Estimated seconds to train these trials as one pack from the start to the last one's target."""
    epochs = max(task.target_epochs for task in tasks)
    return epochs * _Members.of(tasks, data).epoch_seconds(data, machine_of(data.device))


@dataclass(frozen=True, kw_only=True)
class _Members:
    """What estimates need to know of each lane: its configuration, training rows, features, and what it reads next."""

    configs: Sequence[TrialConfig]
    rows: Sequence[int]
    features: Sequence[int]
    views: Sequence[tuple[Scaling, int]]
    read: Sequence[Reading | None]

    @classmethod
    def of(cls, tasks: Sequence[LaneTask], data: DeviceData) -> _Members:
        configs, rows, features, views, read = [], [], [], [], []
        for task in tasks:
            lane, scaling = task.lane, task.lane.config.scaling
            own = [(scaling, lane.fold + fold) for fold in range(task.folds)]
            spans = [data.spans[view].train for view in own]
            configs += [lane.config] * task.folds
            rows += [last - first for first, last in spans]
            features += [data.features_of(scaling)] * task.folds
            views += own
            whole = reading(lane, data) if task.folds == 1 else None  # the folds of a trial never read the same
            read += [None if whole is None else (*whole, _epoch(task))] * task.folds
        return cls(configs=configs, rows=rows, features=features, views=views, read=read)

    def run(self, first: int, last: int) -> _Members:
        """Of some lanes side by side."""
        own = slice(first, last)
        return _Members(
            configs=self.configs[own],
            rows=self.rows[own],
            features=self.features[own],
            views=self.views[own],
            read=self.read[own],
        )

    def bytes(self, data: DeviceData) -> int:
        evaluated = max(last - first for first, last in (span.val for span in data.spans.values()))
        return pack_bytes(
            self.configs,
            self.rows,
            max(self.features),
            data.n_outputs,
            rows_evaluated=evaluated,
            item=data.x_train.element_size(),
            streamed=data.streamed,
            views=len(set(self.views)),
            device=data.device,
        )

    def epoch_seconds(self, data: DeviceData, machine: Machine) -> float:
        shared = may_share(self.read, self.configs, self.rows)
        return pack_seconds(self.configs, self.rows, max(self.features), data.n_outputs, machine, shared=shared)


def _epoch(task: LaneTask) -> int:
    """How many epochs a trial has trained."""
    return task.state.progress.epoch if task.state else 0


def halved(pack: list[LaneTask]) -> tuple[list[LaneTask], list[LaneTask]]:
    """Two halves of a pack that cannot be trained as a whole."""
    middle = len(pack) // 2
    return pack[:middle], pack[middle:]


def _partition(group: list[LaneTask], data: DeviceData, budget: int) -> list[list[LaneTask]]:
    def similarity(task: LaneTask) -> tuple[int, int, int, int]:
        c = task.lane.config
        return (c.batch_size, c.width, c.depth, task.lane.number)

    lines = [sorted(group, key=similarity)]
    if len({(task.lane.config.scaling, _epoch(task)) for task in group}) > 1:
        lines.append(sorted(lines[0], key=lambda task: (task.lane.config.scaling, _epoch(task))))
    _, packs = min((_cut(line, data, budget) for line in lines), key=lambda cut: cut[0])
    return packs


def _cut(line: list[LaneTask], data: DeviceData, budget: int) -> tuple[float, list[list[LaneTask]]]:
    """The cheapest cut of a line of trials: its estimated seconds an epoch, and its packs."""
    machine, members = machine_of(data.device), _Members.of(line, data)
    lanes_before = [0, *accumulate(task.folds for task in line)]

    def fits(first: int, last: int) -> bool:
        run = members.run(lanes_before[first], lanes_before[last])
        return len(run.configs) <= machine.max_lanes and run.bytes(data) <= budget

    grain = -(-len(line) // MOST_CUTS)
    while grain > 1 and not all(fits(i, min(i + grain, len(line))) for i in range(0, len(line), grain)):
        grain //= 2
    cuts = [*range(0, len(line), grain), len(line)]
    best: list[tuple[float, int]] = [(0.0, 0)]
    for j in range(1, len(cuts)):
        options = []
        for i in range(j - 1, -1, -1):
            if i < j - 1 and not fits(cuts[i], cuts[j]):
                break
            run = members.run(lanes_before[cuts[i]], lanes_before[cuts[j]])
            options.append((best[i][0] + run.epoch_seconds(data, machine), i))
        best.append(min(options))
    packs: list[list[LaneTask]] = []
    j = len(cuts) - 1
    while j > 0:
        i = best[j][1]
        packs.append(line[cuts[i] : cuts[j]])
        j = i
    return best[-1][0], packs[::-1]
