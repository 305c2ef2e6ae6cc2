"""Dashboards to look at: studies whose curves are made up, served by a process of its own."""

import math
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cli.command import start
from tuner.manager import StudyManager
from tuner.plan import create_study
from tuner.spec import parse_spec
from tuner.storage.ledger import EpochRow, RungResult

STUDY: dict[str, Any] = {
    "study": {"name": "curves", "metric": "error"},
    "data": {"source": "sklearn:iris"},
    "training": {"max_epochs": 9},
    "search": {"trials": 9},
    "space": {
        "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
        "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True, "or_zero": True},
        "batch_size": 16,
        "width": {"low": 4, "high": 40},
        "depth": {"low": 1, "high": 3},
    },
}


def pretend(url: str, *, trials: int, max_epochs: int) -> None:
    """A finished study whose learning curves are made up."""
    spec = parse_spec({**STUDY, "training": {"max_epochs": max_epochs}, "search": {"trials": trials}})
    rng = random.Random(0)
    with StudyManager(url) as manager:
        create_study(manager, spec, Path())
        ledger = manager.ledger("curves")
        worker = ledger.register("node", 7, "cuda:0", "0.1.0")
        while claims := ledger.claim(worker, limit=1000, lease_s=600):
            rows, results = [], []
            for claim in claims:
                asymptote = 0.05 + abs(math.log10(claim.params["learning_rate"]) + 2) / 10
                epochs = range(claim.epochs + 1, claim.target_epochs + 1)
                values = [asymptote + 0.5 / e + rng.random() / 100 for e in epochs]
                rows += [
                    EpochRow(number=claim.number, token=claim.token, epoch=e, value=v, train_loss=v / 2, val_loss=v)
                    for e, v in zip(epochs, values, strict=True)
                ]
                last, token = epochs[-1], claim.token
                results.append(RungResult(number=claim.number, token=token, epochs=last, value=values[-1], seconds=0.1))
            ledger.commit(worker, results, rows)
        ledger.leave(worker)
        assert manager.summary("curves").state == "finished"


@contextmanager
def served(storage: str, *options: str) -> Iterator[str]:
    """``tuner dashboard`` in a process of its own: where it answers."""
    process = start("dashboard", "--port", "0", "--storage", storage, *options)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("dashboard: http://"), line + process.stderr.read()
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
