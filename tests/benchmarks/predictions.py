"""What predicting a large file costs, beside reading it, the bare forward pass and writing the answers.

Both sides run in turn in one process, several times; the best of each counts, since whatever else the machine does only
adds to them. The bare side reads numbers with polars, runs the network on them as they are, and writes; it neither
fills in nor scales anything, so what it writes is worth nothing.

    python -m tests.benchmarks.predictions --rows 1000000 --columns 20
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from tests.models import model
from tuner.model import ROWS_AT_ONCE, TunedModel
from tuner.predict import predict_file

FITTED_ROWS = 5000


def write_rows(path: Path, rows: int, columns: int) -> None:
    """A CSV of random numbers with five digits."""
    rng = np.random.default_rng(0)
    pl.DataFrame({f"f{i}": rng.normal(size=rows).astype(np.float32).round(5) for i in range(columns)}).write_csv(path)


def bare(made: TunedModel, data: Path, out: Path) -> None:
    """Read, one forward pass, write: nothing else."""
    x = torch.from_numpy(pl.read_csv(data).cast(pl.Float32).to_numpy())
    module = made.networks[0].module
    with torch.inference_mode():
        shares = torch.cat([torch.softmax(module(rows), -1) for rows in torch.split(x, ROWS_AT_ONCE)]).numpy()
    labels = pl.Series("prediction", made.classes).gather(pl.Series(shares.argmax(1).astype(np.uint32)))
    columns = [pl.Series(f"probability_{label}", shares[:, i]) for i, label in enumerate(made.classes)]
    pl.DataFrame([labels, *columns]).write_csv(out)


def whole(made: TunedModel, data: Path, out: Path) -> None:
    """What ``tuner predict`` does once the model is loaded."""
    predict_file(made, data, out)


def best_of(times: int, works: list[Callable[[], None]]) -> list[float]:
    """The fewest seconds that each piece of work took, in turns."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(times):
        for i, work in enumerate(works):
            began = time.perf_counter()
            work()
            seconds[i].append(time.perf_counter() - began)
    return [min(found) for found in seconds]


def main() -> None:
    """Print one line a side, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "rows.csv", Path(folder) / "predictions.csv"
        write_rows(data, arguments.rows, arguments.columns)
        table = pl.read_csv(data, n_rows=FITTED_ROWS)
        made = model(table, {"width": arguments.width, "scaling": "robust"}, classes=("no", "yes"))
        found = best_of(arguments.times, [lambda: bare(made, data, out), lambda: whole(made, data, out)])
    record = {
        "rows": arguments.rows,
        "columns": arguments.columns,
        "width": arguments.width,
        "bare_s": found[0],
        "predict_s": found[1],
        "ratio": found[1] / found[0],
    }
    if arguments.format == "json":
        print(json.dumps(record, indent=2))
        return
    print(f"{arguments.rows:,} rows of {arguments.columns} columns, two layers of {arguments.width}")
    print(f"reading, the bare forward pass and writing  {found[0]:6.2f} s")
    print(f"tuner predict                               {found[1]:6.2f} s, {record['ratio']:.2f} times as long")


if __name__ == "__main__":
    main()
