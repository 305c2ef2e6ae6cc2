"""What a device can do: measured on a CPU, fixed elsewhere, and good enough to rank plans."""

from dataclasses import fields, replace

import pytest
import torch

from tests.learning.packs import make_config
from tuner.learning import machine
from tuner.learning.machine import CPU, GPU, KNOTS, describe, machine_of
from tuner.learning.packing import pack_seconds


def test_a_cpu_is_measured_once() -> None:
    threads = torch.get_num_threads()
    found = machine_of(torch.device("cpu"))
    assert machine_of(torch.device("cpu")) is found
    assert torch.get_num_threads() == threads
    numbers = [getattr(found, field.name) for field in fields(found) if field.name != "bytes_per_s"]
    assert all(number > 0 for number in (*numbers, *found.bytes_per_s))
    assert found.launch_s < 0.1, "seconds"
    assert 1e8 < found.flops < 1e14
    assert all(1e8 < speed < 1e14 for speed in found.bytes_per_s)
    assert len(describe(found)) == 3


def test_the_fastest_of_several_measurements_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 5.0, 5.0, 7.0, 7.0, 10.0])
    monkeypatch.setattr(machine.time, "thread_time", lambda: next(ticks))
    monkeypatch.setattr(machine, "REPEATS", 3)
    assert machine._fastest(lambda: None) == 2.0


@pytest.mark.parametrize(("value", "rounded"), [(1.0, 1.0), (1.3, 2**0.5), (1.1, 1.0), (100e9, 2**36.5)])
def test_numbers_are_rounded_to_steps_of_the_root_of_two(value: float, rounded: float) -> None:
    assert machine._rounded(value) == pytest.approx(rounded)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_other_devices_have_fixed_numbers(name: str) -> None:
    assert machine_of(torch.device(name)) is GPU


def test_memory_is_as_fast_as_its_working_set_allows() -> None:
    speeds = [CPU.memory_speed(size) for size in (1, KNOTS[0], 2**21.5, KNOTS[1], 2**40)]
    assert speeds == pytest.approx([60e9, 60e9, 50e9, 40e9, 20e9])


@pytest.mark.parametrize(
    "better",
    [
        {"launch_s": 1e-6},
        {"launch_layer_s": 1e-6},
        {"flops": 1e13},
        {"rows_half": 1.0},
        {"bytes_per_s": (1e12,) * len(KNOTS)},
    ],
    ids=lambda better: next(iter(better)),
)
def test_every_number_counts(better: dict[str, object]) -> None:
    configs, rows = [make_config(width=64)] * 4, [1000] * 4
    faster = replace(CPU, **better)  # type: ignore[arg-type]
    assert pack_seconds(configs, rows, 64, 10, faster) < pack_seconds(configs, rows, 64, 10, CPU)
