"""How good the networks are at equal wall clock: test error or RMSE on a folder of tables.

For each table and each of ``--repeats`` seeds, which split the rows anew, on the same rows for all:

- tuner: the study that ``tuner run DATA --target COLUMN --minutes M`` makes, its winner and its ensemble, refitted over
  seeds. Its search takes M minutes; refits and baselines come after, and their seconds are printed.
- plain: what Optuna's examples do, in two processes for M minutes: TPE and Hyperband over networks with a constant
  learning rate, ReLU, standardised inputs and 27 epochs at most, one plain PyTorch training at a time; the best
  refitted over the same number of seeds.
- boosting: scikit-learn's histogram gradient boosting, as ``tuner evaluate`` fits it.
- RealMLP: pytabkit's RealMLP_TD with its own defaults, where pytabkit is installed.

First come the repeats, a line each; then for each table the means over its repeats with their standard errors, and
Tuner's differences to the others in the same repeats: below zero, Tuner is better.

The folder holds the tables and ``targets.json``: {"file": "target column", …}; or ``--target``, once a table, says it.

    python -m tests.benchmarks.quality DATA --minutes 1 --repeats 3
    python -m tests.benchmarks.quality DATA --target churn.csv=churned --target prices.parquet=price
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
import polars.selectors as cs
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tuner.data import load_final_data, load_training_data
from tuner.data._prepare import prepare
from tuner.data.preprocessing import plain_columns
from tuner.data.sealed import open_test
from tuner.learning.device import DeviceData
from tuner.learning.metrics import score
from tuner.learning.mlp import MLP
from tuner.learning.plain import train_alone
from tuner.learning.randomness import lane_key
from tuner.learning.trainer import single_thread
from tuner.recipe import write_recipe
from tuner.spec import StudySpec, parse_spec

PLAIN_EPOCHS = 27
PLAIN_PROCESSES = 2
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Result:
    """Mean over seeds, standard deviation (NaN for one), and seconds in all."""

    mean: float
    sd: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.sd:.2g} ({self.seconds:.0f} s)"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One table, split by one seed. folder: where ``file`` is."""

    folder: Path
    file: str
    target: str
    minutes: float
    seed: int


def tuned(job: Job) -> dict[str, Result]:
    """The winner, the ensemble and boosting, from one ``tuner run``."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "tuner",
            "run",
            str(job.folder / job.file),
            "--target",
            job.target,
            "--ensemble",
        ]
        command += ["--minutes", str(job.minutes), "--seed", str(job.seed), "-q", "-f", "json"]
        command += ["--storage", f"sqlite:///{scratch}/t.db"]
        began = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    found = json.loads(done.stdout)["evaluation"]
    boosting = next(b for b in found["baselines"] if b["name"] == "boosting")
    return {
        "tuner": _result(found["test"], seconds),
        "ensemble": _result(found["ensemble"]["test"], seconds),
        "boosting": _result(boosting["test"], boosting["seconds"]),
    }


def _result(test: dict[str, Any], seconds: float) -> Result:
    return Result(mean=test["mean"], sd=float("nan") if test["sd"] is None else test["sd"], seconds=seconds)


def plain_spec(folder: Path, file: str, target: str, seed: int) -> StudySpec:
    """The split of Tuner's study with a usual search space."""
    content = write_recipe(file, target, root=folder, seed=seed).content
    content["data"] = {key: value for key, value in content["data"].items() if key != "scaling"}
    content["model"] = {}
    content["training"] = {"schedule": "constant", "max_epochs": PLAIN_EPOCHS}
    content["search"] = {"trials": 1}
    content["space"] = {
        "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
        "batch_size": {"choices": [32, 64, 128, 256]},
        "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True},
        "dropout": {"low": 0.0, "high": 0.6},
        "width": {"low": 16, "high": 512, "log": True},
        "depth": {"low": 1, "high": 4},
    }
    return parse_spec(content)


def search_plainly(journal: str, folder: str, file: str, target: str, seed: str, seconds: str) -> None:
    """One process of the plain search."""
    from tuner.search.distributions import suggest

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    single_thread()
    spec = plain_spec(Path(folder), file, target, int(seed))
    data = DeviceData.place(load_training_data(spec, Path(folder)), CPU)
    study = optuna.create_study(
        study_name="plain",
        storage=JournalStorage(JournalFileBackend(journal)),
        load_if_exists=True,
        direction=spec.direction,
        sampler=optuna.samplers.TPESampler(constant_liar=True),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=PLAIN_EPOCHS, reduction_factor=3),
    )

    def objective(trial: optuna.Trial) -> float:
        config = spec.trial_config(suggest(trial, spec.search_space))
        key = lane_key(spec.study.seed, trial.number)
        value = float("nan")
        for result in train_alone(
            MLP(config, data.n_features, data.n_outputs, key=key), config, data, key, spec.study.metric
        ):
            value = result.value
            trial.report(value, result.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, timeout=float(seconds))


def plain(job: Job) -> Result:
    """The plain search's winner, refitted and tested."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        journal = f"{scratch}/journal"
        call = "import sys; from tests.benchmarks.quality import search_plainly; search_plainly(*sys.argv[1:])"
        words = [sys.executable, "-W", "ignore", "-c", call, journal, str(job.folder), job.file, job.target]
        words += [str(job.seed), str(60 * job.minutes)]
        crew = [subprocess.Popen(words) for _ in range(PLAIN_PROCESSES)]
        if any(process.wait() for process in crew):
            raise RuntimeError("a process of the plain search failed")
        study = optuna.load_study(study_name="plain", storage=JournalStorage(JournalFileBackend(journal)))
        best = study.best_trial.params
    spec = plain_spec(job.folder, job.file, job.target, job.seed)
    from tuner.search.distributions import decode

    config = spec.trial_config(decode(best, spec.search_space))
    final = load_final_data(spec, job.folder, config.scaling)
    data = DeviceData.place(final.data, CPU)
    test = open_test(spec, job.folder, {config.scaling: final.preprocessing})[config.scaling]
    values = []
    for seed in range(spec.final.seeds):
        model = MLP(config, data.n_features, data.n_outputs, key=lane_key(spec.study.seed, seed, 1))
        for _ in train_alone(model, config, data, lane_key(spec.study.seed, seed, 1), spec.study.metric):
            pass
        with torch.no_grad():
            outputs = model.eval()(torch.from_numpy(test.x))
        values.append(float(score(spec.study.metric, outputs, torch.from_numpy(test.y), final.data.only.target_sd)))
    return Result(mean=float(np.mean(values)), sd=float(np.std(values, ddof=1)), seconds=time.perf_counter() - began)


def real_mlp(job: Job) -> Result:
    """RealMLP_TD with its defaults, one seed, on the columns as they are: it encodes categories and scales by itself.

    It takes no missing numbers: the train rows' medians stand for them.
    """
    pytabkit = import_module("pytabkit")
    spec = plain_spec(job.folder, job.file, job.target, job.seed)
    prepared = prepare(spec, job.folder)
    split, y = prepared.split, prepared.table.target
    columns = plain_columns(prepared.schema(split.trained), prepared.table.frame)
    columns = columns.with_columns(pl.col(pl.Boolean).cast(pl.String).fill_null(""))
    medians = columns[split.trained].select(cs.numeric().median())
    columns = columns.with_columns(pl.col(name).fill_null(medians[name][0]) for name in medians.columns)
    x = columns.to_pandas().astype(dict.fromkeys(columns.select(pl.col(pl.String)).columns, "category"))
    classes = spec.task == "classification"
    kind = pytabkit.RealMLP_TD_Classifier if classes else pytabkit.RealMLP_TD_Regressor
    model = kind(device="cpu", random_state=job.seed, n_cv=1, n_refit=0, verbosity=0)
    rows = np.concatenate([split.train, split.val])
    began = time.perf_counter()
    model.fit(x.iloc[rows], y[rows], val_idxs=np.arange(len(split.train), len(rows)))
    said = np.asarray(model.predict(x.iloc[split.test])).reshape(-1)
    wrong = said != y[split.test] if classes else said - y[split.test]
    value = float(wrong.mean()) if classes else float(np.sqrt(np.square(wrong).mean()))
    return Result(mean=value, sd=float("nan"), seconds=time.perf_counter() - began)


def measured(job: Job) -> dict[str, Result]:
    """One repeat: a result a method."""
    row = tuned(job)
    row["plain"] = plain(job)
    if find_spec("pytabkit") is not None:
        row["RealMLP"] = real_mlp(job)
    return row


def summarized(rows: Sequence[Mapping[str, Result]]) -> dict[str, tuple[float, float]]:
    """Mean and standard error over repeats, of each method and of each difference that Tuner is judged by.

    >>> def result(mean): return Result(mean=mean, sd=0, seconds=1)
    >>> summarized([{"tuner": result(1), "plain": result(2)}, {"tuner": result(3), "plain": result(4)}])
    {'tuner': (2.0, 1.0), 'plain': (3.0, 1.0), 'tuner - plain': (-1.0, 0.0)}
    """
    found = {name: [row[name].mean for row in rows] for name in rows[0]}
    for ours in ("tuner", "ensemble"):
        for other in [name for name in rows[0] if ours in rows[0] and name not in ("tuner", "ensemble")]:
            found[f"{ours} - {other}"] = [row[ours].mean - row[other].mean for row in rows]
    return {
        name: (float(np.mean(values)), float(np.std(values, ddof=1) / len(rows) ** 0.5) if len(rows) > 1 else math.nan)
        for name, values in found.items()
    }


def asked(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options of the command line, and the target column of each table that is to be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3, help="seeds, each with another split")
    parser.add_argument("--only", action="append", help="a file of the folder; may be given several times")
    parser.add_argument(
        "--target", action="append", metavar="FILE=COLUMN", help="instead of targets.json; may be given several times"
    )
    parser.add_argument("-f", "--format", choices=["table", "json"], default="table")
    arguments = parser.parse_args(words)
    targets = arguments.data / "targets.json"
    if arguments.target:
        pairs = [given.partition("=") for given in arguments.target]
        if wrong := [file for file, equals, column in pairs if not (file and equals and column)]:
            parser.error(f"--target {wrong[0]}: names no column; write it as FILE=COLUMN")
        tables = {file: column for file, _, column in pairs}
    elif targets.exists():
        tables = json.loads(targets.read_text())
    else:
        parser.error(f'{targets}: missing; write it: {{"file.csv": "target column", …}}, or give --target FILE=COLUMN')
    return arguments, {file: column for file, column in tables.items() if not arguments.only or file in arguments.only}


def main() -> None:
    """Print the table."""
    arguments, tables = asked()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    say: Callable[[str], None] = functools.partial(print, flush=True) if arguments.format == "table" else lambda _: None
    rows: dict[str, list[dict[str, Result]]] = {file: [] for file in tables}
    for seed in range(arguments.repeats):
        for file, target in tables.items():
            folder = arguments.data.resolve()
            row = measured(Job(folder=folder, file=file, target=target, minutes=arguments.minutes, seed=seed))
            rows[file].append(row)
            say(f"{file} {seed}: " + "   ".join(f"{name} {result}" for name, result in row.items()))
    out = {}
    for file in tables:
        found = summarized(rows[file])
        say(file)
        for name, (mean, error) in found.items():
            say(f"    {name:22} {mean:10.4g} ± {error:.2g}")
        out[file] = {
            "repeats": [{name: vars(result) for name, result in row.items()} for row in rows[file]],
            "summary": {name: {"mean": mean, "standard_error": error} for name, (mean, error) in found.items()},
        }
    if arguments.format == "json":
        print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
