"""A study on machines that are taken away all the time ends exactly, with a notice and without one."""

import signal
from pathlib import Path

import pytest

from tests.chaos.preemption import NOTICE_S, check, make_spec, preempted
from tests.cli.command import TINY, start, tuner, wait_until, write_study
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


NEVER_OVER = TINY.replace("max_epochs = 4", "max_epochs = 1000000").replace("trials = 3", "trials = 32")
# Epochs of some milliseconds, and one of many seconds, in which more than half a million rows go by four at a time.
SHORT = NEVER_OVER.replace("sklearn:iris", "sklearn:digits")
LONG = NEVER_OVER.replace('"sklearn:iris"', '"synthetic:two_moons"\n[data.synthetic]\nrows = 1000000').replace(
    "batch_size = 32\nwidth = 8\ndepth = 1", "batch_size = 4\nwidth = 64\ndepth = 2"
)
PROMISED_S = 5.0  # from the notice until nothing can be lost any more


@pytest.mark.parametrize("epochs", ["short", "long"])
@pytest.mark.usefixtures("workdir")
def test_a_worker_that_is_told_saves_and_gives_back_what_it_held_in_time(epochs: str, tmp_path: Path) -> None:
    """In the middle of a pack, whose epoch may take longer than there is time."""
    with fresh_database("postgresql", tmp_path) as url:
        storage = ["--storage", url]
        tuner("create", write_study(SHORT if epochs == "short" else LONG), *storage)
        process = start("worker", "tiny", "--device", "cpu", "--quiet", *storage)
        with StudyManager(url) as manager:

            def in_a_pack() -> bool:
                begun = manager.summary("tiny").epochs_trained > 0 or epochs == "long"
                return begun and any(worker.lanes for worker in manager.workers("tiny"))

            wait_until(in_a_pack, process=process)
            recorded = manager.summary("tiny").epochs_trained
            ledger = manager.ledger("tiny")

            def gave_back() -> bool:
                left = ledger.outstanding()
                return left.leased == 0 and not left.holders and manager.workers("tiny")[0].state == "left"

            process.send_signal(signal.SIGTERM)
            try:
                wait_until(gave_back, within_s=PROMISED_S)
                assert process.communicate(timeout=NOTICE_S) == ("", "")
            finally:
                process.kill()
                process.communicate()
            assert process.returncode == 130
            claims = ledger.claim(ledger.register("next", 1, "cpu", "0.1.0"), limit=32, lease_s=30)
            assert len(claims) == 32
            trained = {number: len(curve) for number, curve in manager.curves("tiny").items()}
            assert all(claim.epochs == trained.get(claim.number, 0) for claim in claims)
            assert all((claim.checkpoint is not None) == (claim.epochs > 0) for claim in claims)
            if epochs == "short":
                assert sum(claim.epochs for claim in claims) > recorded, "nothing that it had trained was lost"
