"""The lease on a study's logging: one holder at a time, on every database."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.storage.fleet import create, make_spec
from tuner.manager import StudyManager


def test_one_holder_at_a_time(manager: StudyManager) -> None:
    create(manager, make_spec(9))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda holder: manager.lease_log("fleet", holder, 60.0), "abcdef"))
    assert sorted(answers) == ["refused"] * 5 + ["taken"]
    holder = "abcdef"[answers.index("taken")]
    assert manager.lease_log("fleet", holder, 60.0) == "kept"
    assert manager.lease_log("fleet", "other", 60.0) == "refused"
    assert manager.lease_log("fleet", holder, 0.0) == "kept", "given back"
    assert manager.lease_log("fleet", "other", 0.2) == "taken"
    time.sleep(0.3)
    assert manager.lease_log("fleet", "other", 0.2) == "kept", "late, but nobody came between"
    time.sleep(0.3)
    assert manager.lease_log("fleet", holder, 60.0) == "taken"
