"""Chaos from the command line.

    python -m tests.chaos [--seconds 60] [--seed 0] [--databases sqlite postgresql] [--workers 4]

Prints what was injected and which promises were checked; ends with exit code 1 when one is broken.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from tests.chaos.run import chaos, report
from tests.storage.servers import KINDS
from tuner.errors import TunerError


def main() -> None:
    """Run, print, and keep the files of a run that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="in all, shared by the databases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--databases", nargs="+", choices=KINDS, default=["sqlite", "postgresql"])
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    for kind in arguments.databases:
        folder = Path(mkdtemp(prefix=f"tuner-chaos-{kind}-"))
        began = time.monotonic()
        try:
            outcome = chaos(
                kind,
                folder,
                seconds=arguments.seconds / len(arguments.databases),
                seed=arguments.seed,
                workers=arguments.workers,
                say=lambda line, kind=kind: print(f"{kind}: {line}", flush=True),
            )
        except (AssertionError, TunerError) as error:
            print(f"{kind}, seed {arguments.seed}: BROKEN after {time.monotonic() - began:.0f} s\n{error}")
            print(f"journals and logs of the workers: {folder}")
            sys.exit(1)
        print("\n".join(report(kind, arguments.seed, outcome)), flush=True)


if __name__ == "__main__":
    main()
