"""The simulation against what queueing theory knows, and the benchmark at a small size."""

from pathlib import Path

import pytest

from tests.benchmarks import scale
from tests.benchmarks.scale import Call, Costs, saturation, simulate
from tests.storage.servers import fresh_database


def costs(server_s: float = 0.01, locked_s: float = 0.0, background_s: float = 0.0) -> Costs:
    call, beat = Call(client_s=0.0, server_s=server_s), Call(client_s=0.0, server_s=background_s)
    nothing = Call(client_s=0.0, server_s=0.0)
    locking = Call(client_s=0.0, server_s=server_s, locked_server_s=locked_s)
    return Costs(pack=8, claim=call, commit=locking, save=nothing, record=nothing, beat=beat)


def test_an_idle_server_makes_nobody_wait() -> None:
    found = simulate(1, costs(), 1.0, 4, packs=300)
    assert found.claim_ms == pytest.approx(10.0)
    assert found.packs_per_s == pytest.approx(1 / 1.02, rel=0.05)


@pytest.mark.parametrize(("cores", "locked_s", "most"), [(2, 0.0, 100.0), (4, 0.0, 200.0), (4, 0.008, 125.0)])
def test_throughput_is_what_the_busiest_part_gives(cores: int, locked_s: float, most: float) -> None:
    """Cores / (claim + commit), or one commit after the other where the row is locked."""
    found = simulate(400, costs(locked_s=locked_s), 0.5, cores)
    assert found.packs_per_s == pytest.approx(most, rel=0.05)


def test_saturation_is_near_the_asymptotes_crossing() -> None:
    """W* = (training + service) / (service / cores): beyond it more workers only queue."""
    assert saturation(costs(), 5.0, 2) == pytest.approx(2 * 5.02 / 0.02, rel=0.15)
    assert saturation(costs(locked_s=0.01), 5.0, 64) == pytest.approx(5.02 / 0.01, rel=0.15)
    assert saturation(costs(background_s=0.5), 5.0, 2) < saturation(costs(), 5.0, 2) / 10


def test_costs_are_measured(tmp_path: Path) -> None:
    with fresh_database("postgresql", tmp_path) as url:
        found = scale.measured(url, tmp_path, 8, rounds=3)
    for call in (found.claim, found.commit, found.save, found.record, found.beat):
        assert call.client_s > 0
        assert call.server_s > 0
    assert 0 < found.commit.locked_server_s < found.commit.server_s
    assert 0 < found.commit.locked_client_s < found.commit.client_s
    assert found.claim.locked_server_s == 0
