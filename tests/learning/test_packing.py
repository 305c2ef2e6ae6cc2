"""Plans of packs: every lane once, only fusible lanes together, and cheaper than the obvious plans."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning.packs import lane_of, make_config
from tuner.learning.packing import CPU, GPU, pack_seconds, plan_packs
from tuner.learning.trainer import LaneTask
from tuner.trial import TrialConfig

CPU_DEVICE = torch.device("cpu")

configs = st.builds(
    make_config,
    batch_size=st.sampled_from([16, 32, 64, 128, 256]),
    width=st.integers(16, 512),
    depth=st.integers(1, 4),
    activation=st.sampled_from(["relu", "gelu"]),
    optimizer=st.sampled_from(["sgd", "adamw"]),
)


def tasks_of(drawn: list[TrialConfig]) -> list[LaneTask]:
    return [LaneTask(lane=lane_of(config, n), target_epochs=1) for n, config in enumerate(drawn)]


def seconds(packs: list[list[LaneTask]]) -> float:
    return sum(pack_seconds([task.lane.config for task in pack], 1078, 64, 10, CPU) for pack in packs)


@settings(max_examples=40)
@given(st.lists(configs, min_size=1, max_size=90))
def test_plans(drawn: list[TrialConfig]) -> None:
    tasks = tasks_of(drawn)
    packs = plan_packs(tasks, 1078, 64, 10, CPU_DEVICE)
    assert sorted(task.lane.number for pack in packs for task in pack) == list(range(len(tasks)))
    for pack in packs:
        assert len({task.lane.config.signature for task in pack}) == 1
        assert len(pack) <= max(CPU.max_lanes, -(-len(tasks) // 64))
    assert seconds(packs) <= seconds([[task] for task in tasks]) * (1 + 1e-9), "never worse than one at a time"


def test_alike_lanes_go_together_and_unlike_ones_do_not_on_a_cpu() -> None:
    narrow, wide = make_config(width=16), make_config(width=512)
    packs = plan_packs(tasks_of([narrow, wide, narrow, wide]), 1078, 64, 10, CPU_DEVICE)
    assert sorted(sorted(task.lane.config.width for task in pack) for pack in packs) == [[16, 16], [512, 512]]


def test_a_gpu_takes_them_all_at_once() -> None:
    drawn = [make_config(width=16 + 8 * (n % 15), depth=1 + n % 3, batch_size=64) for n in range(1000)]
    device = torch.device("cuda")
    packs = plan_packs(tasks_of(drawn), 3000, 784, 10, device)
    assert len(packs) <= 4
    assert max(len(pack) for pack in packs) <= GPU.max_lanes
