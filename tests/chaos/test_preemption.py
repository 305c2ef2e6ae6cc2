"""A study on machines that are taken away all the time ends exactly, with a notice and without one."""

from pathlib import Path

from tests.chaos.preemption import check, make_spec, preempted
from tests.storage.servers import fresh_database
from tuner.manager import StudyManager

HASTY = {"LEASE_S": 3.0, "HEARTBEAT_S": 0.5, "SAVE_S": 0.2, "RECORD_S": 0.2}


def test_workers_are_taken_away(tmp_path: Path) -> None:
    spec = make_spec(81, max_epochs=81)
    with fresh_database("postgresql", tmp_path) as url:
        outcome = preempted(url, tmp_path, spec, life_saves=3, settings=HASTY)
        with StudyManager(url, tmp_path / "artifacts") as manager:
            check(manager, spec)
            assert manager.summary("spot").trials["running"] == 0
    assert outcome.noticed
    assert outcome.vanished
    assert outcome.killed == 0, "who was told left before its notice was over"
    print(f"{outcome.noticed} with a notice, {outcome.vanished} without; {outcome.seconds:.1f} s, {outcome.leave_s}")
