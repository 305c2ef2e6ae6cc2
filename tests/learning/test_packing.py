"""Plans of packs: every lane once, only fusible lanes together, within memory, cheaper than the obvious plans."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning.packs import lane_of, make_config, make_data
from tuner.learning import packing
from tuner.learning.machine import CPU, GPU
from tuner.learning.packing import bytes_of, halved, pack_seconds, plan_packs, seconds_of
from tuner.learning.progress import Progress
from tuner.learning.trainer import LaneState, LaneTask
from tuner.trial import Scaling, TrialConfig

DATA = make_data(n=1078, features=64, classes=10, dtype=torch.float32)
LARGE = 2**40  # bytes


@pytest.fixture(autouse=True)
def _fixed_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans for a machine of round numbers, not for this one."""
    monkeypatch.setattr(packing, "machine_of", lambda device: CPU if device.type == "cpu" else GPU)


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
    return sum(pack_seconds([task.lane.config for task in pack], [1078] * len(pack), 64, 10, CPU) for pack in packs)


@settings(max_examples=40)
@given(st.lists(configs, min_size=1, max_size=90))
def test_plans(drawn: list[TrialConfig]) -> None:
    tasks = tasks_of(drawn)
    packs = plan_packs(tasks, DATA, LARGE)
    assert sorted(task.lane.number for pack in packs for task in pack) == list(range(len(tasks)))
    for pack in packs:
        assert len({task.lane.config.signature for task in pack}) == 1
        assert len(pack) <= CPU.max_lanes
    assert seconds(packs) <= seconds([[task] for task in tasks]) * (1 + 1e-9), "never worse than one at a time"


@settings(max_examples=20)
@given(st.lists(configs, min_size=1, max_size=90), st.integers(2**20, 2**26))
def test_plans_keep_to_a_budget(drawn: list[TrialConfig], budget: int) -> None:
    packs = plan_packs(tasks_of(drawn), DATA, budget)
    assert sum(map(len, packs)) == len(drawn)
    assert all(len(pack) == 1 or bytes_of(pack, DATA) <= budget for pack in packs)


def test_lanes_that_fall_out_of_the_cache_train_one_by_one() -> None:
    """Four vectors of a million parameters each: beside each other they only push each other out."""
    wide = make_data(n=3000, features=784, classes=10, dtype=torch.float32)
    assert {len(pack) for pack in plan_packs(tasks_of([make_config(width=512, batch_size=64)] * 8), wide, LARGE)} == {1}
    assert {len(pack) for pack in plan_packs(tasks_of([make_config(width=32, batch_size=64)] * 8), wide, LARGE)} == {8}


def test_alike_lanes_go_together_and_unlike_ones_do_not_on_a_cpu() -> None:
    narrow, wide = make_config(width=16), make_config(width=160)
    packs = plan_packs(tasks_of([narrow, wide, narrow, wide]), DATA, LARGE)
    assert sorted(sorted(task.lane.config.width for task in pack) for pack in packs) == [[16, 16], [160, 160]]


def test_scalings_go_apart_where_a_shared_copy_of_the_rows_is_worth_it() -> None:
    # Many features and few units: to copy rows is much of the work.
    views: tuple[tuple[Scaling, int], ...] = (("standard", 0), ("robust", 0))
    data = make_data(n=1078, features=2000, classes=10, dtype=torch.float32, views=views)

    def packs(order_key: int | None) -> list[set[str]]:
        drawn = [make_config(width=16, batch_size=64, scaling=("standard", "robust")[n % 2]) for n in range(16)]
        tasks = [
            LaneTask(lane=lane_of(config, n, order_key=order_key), target_epochs=1) for n, config in enumerate(drawn)
        ]
        return [{task.lane.config.scaling for task in pack} for pack in plan_packs(tasks, data, LARGE)]

    assert all(len(scalings) == 1 for scalings in packs(order_key=7))
    assert all(len(scalings) == 2 for scalings in packs(order_key=None))


@settings(max_examples=20)
@given(st.lists(configs, min_size=40, max_size=90), st.integers(2**21, 2**24))
def test_plans_of_unlike_features_keep_to_a_budget(drawn: list[TrialConfig], budget: int) -> None:
    views: tuple[tuple[Scaling, int], ...] = (("piecewise", 0), ("standard", 0))
    data = make_data(n=300, features=100, dtype=torch.float32, views=views)
    drawn = [replace(config, scaling=views[n % 2][0]) for n, config in enumerate(drawn)]
    packs = plan_packs(tasks_of(drawn), data, budget)
    assert sum(map(len, packs)) == len(drawn)
    assert all(len(pack) == 1 or bytes_of(pack, data) <= budget for pack in packs)


def test_many_trials_on_a_cpu_go_in_packs_no_larger_than_few() -> None:
    tasks = tasks_of([make_config(width=8)] * 1024)
    assert {len(pack) for pack in plan_packs(tasks, DATA, LARGE)} == {CPU.max_lanes}


def test_shared_rows_are_cheaper_only_where_lanes_share_them() -> None:
    data = make_data(n=1078, features=784, classes=10, dtype=torch.float32)

    def estimate(*epochs: int, order_key: int | None = 7, batch_size: int = 64) -> float:
        states = [LaneState(progress=Progress(epoch=epoch), arrays={}) if epoch else None for epoch in epochs]
        configs = [make_config(width=16, batch_size=size) for size in (32, *[batch_size] * (len(epochs) - 1))]
        return seconds_of(
            [
                LaneTask(lane=lane_of(config, n, order_key=order_key), target_epochs=9, state=state)
                for n, (config, state) in enumerate(zip(configs, states, strict=True))
            ],
            data,
        )

    assert estimate(0, 0, 0) < estimate(0, 0, 0, order_key=None)
    assert estimate(3, 3, 3) == estimate(0, 0, 0)
    assert estimate(3, 0, 0) == estimate(0, 0, 0, order_key=None)
    assert estimate(0, 0, batch_size=48) == estimate(0, 0, batch_size=48, order_key=None)


def test_a_gpu_takes_them_all_at_once() -> None:
    drawn = [make_config(width=16 + 8 * (n % 15), depth=1 + n % 3, batch_size=64) for n in range(1000)]
    on_gpu = replace(DATA, device=torch.device("cuda"))
    packs = plan_packs(tasks_of(drawn), on_gpu, LARGE)
    assert len(packs) <= 4
    assert max(len(pack) for pack in packs) <= GPU.max_lanes


def test_halves() -> None:
    tasks = tasks_of([make_config()] * 5)
    first, second = halved(tasks)
    assert [*first, *second] == tasks
    assert (len(first), len(second)) == (2, 3)


MEASURE = """
import json, sys, torch
from tests.learning.packs import lane_of, make_config, make_data
from tuner.learning.lanes import Pack
from tuner.learning.packing import bytes_of
from tuner.learning.trainer import LaneTask
torch.set_num_threads(1)
shape, changes = json.loads(sys.argv[1])
changes = {"width": 1000, "depth": 3, "batch_size": 256, **changes}
shape = {"n": 2000, "features": 500, "classes": 10, **shape}
data = make_data(**shape, dtype=torch.float32)
def used(name):
    # Not getrusage: its peak is inherited from the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))
small = Pack([lane_of(make_config(**{**changes, "batch_size": 8, "width": 8, "depth": 1}))], data)
small.train_epoch([1]); small.validate("error")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = used("VmRSS")
lanes = [lane_of(make_config(**changes), n) for n in range(8)]
pack = Pack(lanes, data)
pack.train_epoch([1] * 8); pack.validate("error")
print(json.dumps([used("VmHWM") - before, bytes_of([LaneTask(lane=lane, target_epochs=1) for lane in lanes], data)]))
"""

# What is freed of smaller tensors the C library keeps at its whim: the prediction allows for it, but is not exact then.
ROWS: dict[str, object] = {"n": 6000}
LARGE_LAYER: dict[str, object] = {"width": 512, "depth": 1, "batch_size": 4096}

# Of the table, and of the lanes; otherwise 2,000 rows of 500 features, and three hidden layers of 1,000 units.
MEMORY: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "wide": ({}, {"optimizer": "adamw"}),
    "sgd, averaged, best kept": ({}, {"optimizer": "sgd", "averaging": "swa", "keep": "best"}),
    "deep": ({}, {"width": 300, "depth": 32}),
    "784 features": ({"features": 784}, {"width": 512, "depth": 2}),
    "many features": ({"features": 20000, "n": 600}, {"width": 64, "depth": 1, "batch_size": 64}),
    "many classes, weighted": ({"classes": 1000, "n": 6000}, {"width": 300, "class_weight": "balanced"}),
    "large batches": ({"n": 6000}, {"width": 128, "batch_size": 4096}),
    "layer norm": (ROWS, {"norm": "layer", **LARGE_LAYER}),
    "batch norm": (ROWS, {"norm": "batch", "averaging": "ema", "averaging_start": 0.0, **LARGE_LAYER}),
    "smooth activation": (ROWS, {"activation": "silu", **LARGE_LAYER}),
    "tanh after layer norm": (ROWS, {"activation": "tanh", "norm": "layer", **LARGE_LAYER}),
    "bf16": ({}, {"precision": "bf16"}),
    "in chunks": ({"n": 20000, "budget": 0}, {"width": 256, "depth": 1}),
    "many steps": ({"n": 160000, "features": 4}, {"width": 8, "depth": 1, "batch_size": 4}),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak memory from /proc")
@pytest.mark.parametrize("case", MEMORY)
def test_memory_is_predicted_within_a_fifth(case: str) -> None:
    """The growth of a process's peak memory by one large pack."""
    command = [sys.executable, "-c", MEASURE, json.dumps(MEMORY[case])]
    measured, predicted = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.8 < predicted / measured < 1.2, (measured, predicted)
