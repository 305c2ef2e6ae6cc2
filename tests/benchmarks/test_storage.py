"""The benchmark of the storage runs, and what it prints of statements is constant."""

from pathlib import Path

import pytest

from tests.benchmarks import storage
from tests.storage.servers import fresh_database
from tuner.manager import StudyManager


@pytest.mark.parametrize(("workload", "few", "many"), [("full", 4, 64), ("hyperband", 27, 54)])
def test_statements_of_a_pack_do_not_depend_on_its_size(
    workload: str, few: int, many: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    with StudyManager(url, tmp_path) as manager:
        for size in (few, many):  # of hyperband: one rung that is decided, and two
            monkeypatch.setattr(storage, "PACK", size)
            counted.append(storage.statements(manager, storage.create(manager, storage.make_spec(workload, 98))))
    assert counted[0] == counted[1] < 60


def test_a_past_is_what_the_ledger_would_have_written(url: str, tmp_path: Path) -> None:
    """Trials that follow an invented history come out as they do without one."""
    found = storage.history("any", url, tmp_path, "hyperband", few=49, many=98, then=49)
    assert (found.few, found.many) == (49, 98)
    assert found.few_ms > 0


def test_a_small_asynchronous_study(tmp_path: Path) -> None:
    with fresh_database("sqlite", tmp_path) as url:
        found = storage.asha("sqlite", url, tmp_path, 100)
    assert found.packs > 2
    assert min(found.first_claim_ms, found.last_claim_ms, found.first_commit_ms, found.last_commit_ms) > 0


def test_a_small_crowd_is_exact(tmp_path: Path) -> None:
    with fresh_database("postgresql", tmp_path) as url:
        found = storage.crowd(url, tmp_path, workers=8, trials=60, pause_s=0.05)
    assert (found.exact, found.errors, found.finished) == (True, 0, 60)
