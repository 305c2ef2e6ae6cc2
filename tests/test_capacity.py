"""A model that fits no memory even alone is refused before anything is trained, by who would train it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.command import TINY, refused, tuner, tuner_json, write_study
from tests.test_worker import study
from tuner import capacity
from tuner.capacity import Table, check_capacity
from tuner.data.dataset import load_training_data, summarize
from tuner.errors import DeviceError
from tuner.learning import memory
from tuner.learning.device import DeviceData
from tuner.learning.lanes import Lane
from tuner.learning.memory import available_memory, memory_budget
from tuner.learning.packing import bytes_of
from tuner.learning.trainer import LaneTask

CPU = torch.device("cpu")
HUGE = TINY.replace("width = 8", "width = 65536").replace("depth = 1", "depth = 64")
TABLE = Table(features=30, outputs=3, train=1000, val=300, folds=1)


def largest_bytes(**changes: dict[str, Any]) -> int:
    """What the check takes a study's largest model for."""
    spec = study(**changes)
    return max(capacity._bytes(config, TABLE, CPU) for config in capacity._largest(spec))


def test_the_largest_model_of_the_space_counts() -> None:
    def bytes_at(**space: object) -> int:
        given = {"width": 40, "depth": 3, "batch_size": 16, "dropout": 0.0}
        return largest_bytes(space={**given, **space})

    assert largest_bytes() == bytes_at()
    assert bytes_at(width={"low": 4, "high": 40, "step": 9}) == bytes_at(width=40)
    assert bytes_at(depth={"choices": [3, 1]}) == bytes_at(depth=3)
    assert bytes_at(batch_size={"choices": [512, 16]}) == bytes_at(batch_size=512) > bytes_at()
    both = largest_bytes(training={"optimizer": {"choices": ["adamw", "sgd"]}})
    assert both == largest_bytes() > largest_bytes(training={"optimizer": "sgd"})
    smooth = largest_bytes(model={"activation": "gelu"})
    assert largest_bytes(model={"activation": {"choices": ["gelu", "relu"]}}) == smooth > largest_bytes()


def test_the_prediction_is_the_one_that_packs_are_planned_by() -> None:
    spec = study(data={"split": {"folds": 3}})
    placed = DeviceData.place(load_training_data(spec, Path()), CPU)
    table = Table.of_device(placed)
    assert table == Table.of_summary(summarize(spec, Path()))
    [config] = capacity._largest(spec)
    lane = Lane(number=0, config=config, key=0)
    assert capacity._bytes(config, table, CPU) == bytes_of([LaneTask(lane=lane, target_epochs=1, folds=3)], placed)


def test_the_width_that_is_said_to_fit_fits_and_the_next_does_not() -> None:
    def widest(width: int) -> dict[str, Any]:
        return {"space": {"width": width, "depth": 3}}

    budget = largest_bytes(**widest(1000)) - 1
    with pytest.raises(DeviceError, match=r"3 x 2,000 units, needs [\d.]+ MiB even alone; cpu has \d+ MiB") as caught:
        check_capacity(study(**widest(2000)), TABLE, CPU, budget)
    # Units are padded to a multiple of 8: 992 is the widest below 1000's own.
    assert "a width up to 992 fits: lower space.width or space.depth" in str(caught.value)
    check_capacity(study(**widest(992)), TABLE, CPU, budget)
    with pytest.raises(DeviceError):
        check_capacity(study(**widest(993)), TABLE, CPU, budget)


def test_a_table_too_wide_for_any_width() -> None:
    wide = Table(features=10**7, outputs=3, train=1000, val=300, folds=1)
    with pytest.raises(DeviceError) as caught:
        check_capacity(study(), wide, CPU, 10**9)
    assert "at this depth" not in str(caught.value)
    assert "fewer features" in str(caught.value)


@given(
    width=st.integers(1, 3000),
    depth=st.integers(1, 64),
    batch_size=st.integers(1, 4096),
    features=st.integers(1, 3000),
    rows=st.integers(1, 5000),
    norm=st.sampled_from(["none", "layer", "batch"]),
)
def test_who_is_not_asked_needs_next_to_nothing(
    width: int, depth: int, batch_size: int, features: int, rows: int, norm: str
) -> None:
    spec = study(
        space={"width": width, "depth": depth, "batch_size": batch_size},
        model={"norm": norm},
        training={"averaging": "swa", "keep": "best"},
    )
    table = Table(features=features, outputs=10, train=rows, val=rows, folds=2)
    if capacity._small(spec, table):
        assert max(capacity._bytes(config, table, CPU) for config in capacity._largest(spec)) <= 4 * capacity.SMALL


@pytest.mark.usefixtures("workdir")
class TestCommands:
    def test_run_refuses_and_leaves_nothing(self) -> None:
        message = refused("run", write_study(HUGE), "--quiet")
        assert "the largest of tiny, 64 x 65,536 units, needs 4," in message
        assert len(message.splitlines()) == 2
        assert tuner_json("studies") == []

    def test_check_says_so(self) -> None:
        checked = tuner("check", write_study(HUGE)).stdout
        assert "advice: this machine cannot run it: a device trains every model" in checked
        assert "cannot run it" not in tuner("check", write_study()).stdout

    def test_a_worker_refuses_and_the_study_stays_for_others(self) -> None:
        tuner("create", write_study(HUGE))
        message = refused("worker", "tiny", "--quiet")
        assert re.search(r"even alone; cpu has [\d.,]+ [GM]iB for it, a worker for each core\n", message)
        shown = tuner_json("show", "tiny")
        assert (shown["state"], shown["trials"]["waiting"]) == ("created", 3)
        assert tuner_json("workers", "tiny") == []

    def test_run_refuses_a_device_before_there_is_a_study(self) -> None:
        assert "device 'abacus' is not known" in refused("run", write_study(), "--device", "abacus", "--quiet")
        assert tuner_json("studies") == []
        tf32 = write_study(TINY.replace("max_epochs = 4", 'max_epochs = 4\nprecision = "tf32"'))
        assert "training.precision tf32 needs an NVIDIA GPU" in refused("run", tf32, "--device", "cpu", "--quiet")
        assert tuner_json("studies") == []

    def test_a_finished_study_needs_no_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tuner("run", write_study(), "--workers", "1", "--device", "cpu", "--quiet")
        monkeypatch.setattr(capacity, "SMALL", 0)
        monkeypatch.setattr(memory, "memory_budget", lambda _: 1000)
        assert "winner" in tuner("run", "tiny.toml", "--device", "cpu", "--quiet").stdout
        again = write_study(TINY.replace('"tiny"', '"other"'))
        assert "even alone" in refused("run", again, "--device", "cpu", "--quiet")


def machine(root: Path, limit: str | None = None, used: int = 0, cached: int = 0) -> Path:
    """Linux's files about a machine of 8 GiB, 5 of them available."""
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 1048576 kB\nMemAvailable: 5242880 kB\n")
    if limit is not None:
        group = root / "sys/fs/cgroup"
        group.mkdir(parents=True)
        for name, text in (("max", limit), ("current", used), ("stat", f"anon 5\ninactive_file {cached}\n")):
            (group / f"memory.{name}").write_text(f"{text}\n")
    return root


def test_what_files_are_cached_in_is_available(tmp_path: Path) -> None:
    assert available_memory(machine(tmp_path)) == 5 * 2**30


@pytest.mark.parametrize(
    ("limit", "used", "cached", "expected"),
    [("max", 2**30, 0, 5 * 2**30), (str(2**31), 2**30, 2**29, 3 * 2**29), (str(2**30), 2**31, 0, 0)],
    ids=["none", "some left", "none left"],
)
def test_a_container_has_its_own_limit(tmp_path: Path, limit: str, used: int, cached: int, expected: int) -> None:
    assert available_memory(machine(tmp_path, limit, used, cached)) == expected


def test_where_the_kernel_does_not_tell_the_machines_memory_counts(tmp_path: Path) -> None:
    assert available_memory(tmp_path) >= available_memory() > 0
    assert memory_budget(CPU, processes=1) == pytest.approx(0.8 * available_memory(), rel=0.2)
