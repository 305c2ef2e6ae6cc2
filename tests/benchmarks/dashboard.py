"""What the dashboard takes to show a large study, in a real browser: until its data are there, and until it is drawn.

python -m tests.benchmarks.dashboard --trials 1000 20000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from urllib.request import urlopen

from tests.browser import browser_page
from tests.dashboards import pretend, served

TARGET_S = 5.0  # until the page's data are there, and until its first figure is


def seconds_of(trials: int, epochs: int) -> dict[str, float]:
    """Seconds until each part of a study's page is there, each from its request on."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/study.db"
        pretend(url, trials=trials, max_epochs=epochs)
        with served(url) as address:
            found = {}
            for what, path in (("data", ""), ("importances", "/param_importances")):
                start = time.perf_counter()
                with urlopen(f"{address}/api/studies/1{path}") as answer:
                    answer.read()
                found[what] = time.perf_counter() - start
        with served(url) as address, browser_page() as page:
            start = time.perf_counter()
            page.goto(f"{address}/dashboard/studies/1")
            page.locator(".js-plotly-plot").first.wait_for(timeout=120_000)
            found["first figure"] = time.perf_counter() - start
            page.locator("#graph-hyperparameter-importances .bars path").first.wait_for(timeout=120_000)
            found["last figure"] = time.perf_counter() - start
    return found


def main() -> int:
    """Print a line for each size; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--epochs", type=int, default=27)
    options = parser.parse_args()
    missed = 0
    for trials in options.trials:
        found = seconds_of(trials, options.epochs)
        late = [what for what in ("data", "first figure") if found[what] > TARGET_S]
        missed += len(late)
        verdict = f"; above {TARGET_S:g} s: {', '.join(late)}" if late else ""
        print(
            f"{trials:,} trials: " + ", ".join(f"{what} {s:.1f} s" for what, s in found.items()) + verdict, flush=True
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
