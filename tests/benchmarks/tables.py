"""What reading a large table costs: from a CSV to tensors, beside polars reading alone and scikit-learn transforming.

Each side runs in a process of its own. Memory is the peak of what the process itself holds (Linux: RssAnon, so that a
file mapped into memory is not counted), in units of the table as one float32 matrix.

    python -m tests.benchmarks.tables --rows 1000000 --columns 100
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl
import torch
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.data.studies import study
from tuner.data import load_training_data
from tuner.learning.device import DeviceData


def write_table(path: Path, rows: int, columns: int) -> None:
    """A CSV of random numbers and a target ``y`` of three classes."""
    rng = np.random.default_rng(0)
    features = {f"f{i}": rng.normal(size=rows).astype(np.float32).round(4) for i in range(columns)}
    pl.DataFrame({**features, "y": rng.integers(0, 3, rows)}).write_csv(path)


def to_tensors(path: Path) -> None:
    """What a worker does before it trains."""
    spec = study(str(path), target="y", split={"train": 0.6, "val": 0.2, "test": 0.2})
    DeviceData.place(load_training_data(spec, Path()), torch.device("cpu"))


def by_libraries(path: Path) -> None:
    """polars reads, scikit-learn fits the same steps on the same share of rows and transforms train and validation."""
    matrix = pl.read_csv(path).drop("y").to_numpy()
    train, most = 6 * len(matrix) // 10, 8 * len(matrix) // 10
    pipeline = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit(matrix[:train])
    pipeline.transform(matrix[:most]).astype(np.float32)


def measured(work: Callable[[Path], None], path: Path) -> tuple[float, int]:
    """Seconds, and peak bytes beyond what the process held before."""
    with _watched() as peak:
        began = time.perf_counter()
        work(path)
        seconds = time.perf_counter() - began
    return seconds, peak[0]


@contextmanager
def _watched() -> Iterator[list[int]]:
    peak, before, over = [0], _held(), threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], _held() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _held() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def main() -> None:
    """Print one line a side, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_table(path, arguments.rows, arguments.columns)
        for work in (by_libraries, to_tensors):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[work.__name__] = pool.submit(measured, work, path).result()
    matrix = 4 * arguments.rows * arguments.columns
    record = {
        "rows": arguments.rows,
        "columns": arguments.columns,
        "seconds": {name: seconds for name, (seconds, _) in found.items()},
        "peak_in_matrices": {name: peak / matrix for name, (_, peak) in found.items()},
        "slower": found["to_tensors"][0] / found["by_libraries"][0],
    }
    if arguments.format == "json":
        print(json.dumps(record, indent=2))
        return
    for name, (seconds, peak) in found.items():
        print(f"{name:14} {seconds:6.1f} s   peak {peak / matrix:.1f} x the float32 matrix")
    print(f"to tensors takes {record['slower']:.2f} x polars and scikit-learn alone")


if __name__ == "__main__":
    main()
