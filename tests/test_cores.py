"""How many cores are used: those of this process, and no more than a container may keep busy."""

import os
from pathlib import Path

import pytest

from tuner.cores import usable_cores


@pytest.mark.parametrize(
    ("limit", "cores"),
    [(None, 6), ("max 100000", 6), ("250000 100000", 3), ("50000 100000", 1), ("900000 100000", 6), ("", 6)],
)
def test_a_container_may_have_fewer(
    limit: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    if limit is not None:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{limit}\n")
    assert usable_cores(tmp_path) == cores


def test_where_the_system_does_not_say_all_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_cores(tmp_path) == 12
