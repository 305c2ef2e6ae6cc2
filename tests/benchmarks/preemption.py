"""What a study loses on machines that are taken away all the time.

    python -m tests.benchmarks.preemption [--life 10] [--workers 2] [--trials 2000]

It prints how long a study takes whose workers live ten seconds on average, every other with a notice, beside one whose
workers are left alone, and how much of the difference is explained by what was lost: what was trained since the last
save, and the time until those that replace them have work. What is left are the leases of machines that vanished.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.chaos.preemption import check, make_spec, preempted
from tests.storage.servers import fresh_database
from tuner.manager import StudyManager


def main() -> None:
    """Print both studies, and the ratio that is left unexplained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--life", type=float, default=10.0, help="seconds that a worker lives on average")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--database", default="postgresql")
    given = parser.parse_args()
    spec, seconds = make_spec(given.trials), list[float]()
    for life_s in (math.inf, given.life):
        with TemporaryDirectory() as folder, fresh_database(given.database, Path(folder)) as url:
            outcome = preempted(url, Path(folder), spec, life_s=life_s, workers=given.workers, seed=1)
            with StudyManager(url, Path(folder) / "artifacts") as manager:
                check(manager, spec)
                made = len(manager.workers("spot"))
        seconds.append(outcome.seconds)
    explained = seconds[0] + outcome.lost_s / given.workers
    deaths = outcome.noticed + outcome.vanished
    print(f"taken away {deaths} times, {outcome.noticed} of them with a notice; {made} workers in all")
    longest = max(outcome.leave_s, default=0.0)
    print(f"from a notice to the end: {longest:.1f} s at most, {outcome.killed} had to be killed")
    print(f"left alone {seconds[0]:.1f} s, taken away {seconds[1]:.1f} s; what was lost explains {explained:.1f} s")
    print(f"ratio {seconds[1] / explained:.2f}")


if __name__ == "__main__":
    main()
