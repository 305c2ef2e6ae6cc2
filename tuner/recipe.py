"""The recipe: a study file written for a table that nobody has tuned yet.

What makes a plain network good on tables is in it: robust scaling with smooth clipping or numbers encoded in bins, GELU
and SiLU, warm-up and a cosine to zero, label smoothing, decoupled decay. The ranges are the lecture's (slide
"Hyperparameter Tuning": log scale for the learning rate and the decay), narrowed to what the optimizer takes and to the
number of rows.
"""

from __future__ import annotations

import json
import re
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from tuner.data import Schema, Split, Table, load_table, load_training_data, split_rows
from tuner.data.columns import read_as
from tuner.data.preprocessing import bins_of
from tuner.errors import DataError, SpecMismatchError
from tuner.learning.device import DeviceData, resolve_device
from tuner.learning.lanes import trial_lane
from tuner.learning.packing import plan_packs
from tuner.learning.progress import EpochInterruptedError
from tuner.learning.schedules import micro_steps_of
from tuner.learning.trainer import LaneTask, PackTrainer, single_thread
from tuner.manager import StudyManager
from tuner.search import make_sampler
from tuner.spec import METRICS, DataSection, Metric, SplitSection, StudySpec, parse_spec
from tuner.trial import Task
from tuner.words import count

MOST_CLASSES = 50  # different whole numbers that still look like classes
ROWS_A_CLASS = 10  # and rows that each needs on average
FULL_TRIALS = 30  # times a trial's full length that the search's time should be, or trials are made shorter
MINUTES = 5.0  # for a search that nobody gave a time
EPOCHS = (9, 18, 27, 54, 81)  # of whole rungs
FIRST_RUNG = 9  # a trial is first judged after a ninth of its epochs: what is seen earlier hardly tells how it will end
WIDEST = 512
MEASURED_LANES = 8  # trials that are trained for a moment to see how fast this machine is
MEASURED_S = 3.0  # and for how long; three times that with what comes before and what is left out
ENCODED_ROWS = 10_000  # train rows from which on numbers in bins help; fewer are overfitted (measured on eleven tables)
MOST_ENCODED = 100_000_000  # numbers that they may make in all: 400 MB for each worker
SCALINGS = 3  # that a study with bins has, each with its rows
LEVERAGE = 0.1  # share of a column's variance in one train row from which on it is not only standardised
UNEVEN = 0.2  # share of the rarest class below which an error rate says little


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A study file for a table. text: TOML with comments; root: the folder that a relative source starts at."""

    text: str
    root: Path

    @property
    def content(self) -> dict[str, Any]:
        """What :func:`tuner.spec.parse_spec` takes."""
        return tomllib.loads(self.text)

    @property
    def spec(self) -> StudySpec:
        return parse_spec(self.content)


def write_recipe(
    source: str,
    target: str | None,
    *,
    root: Path,
    name: str | None = None,
    metric: Metric | None = None,
    minutes: float | None = None,
    max_epochs: int | None = None,
    workers: int = 1,
    device: str = "auto",
    seed: int = 0,
    drop: bool = True,
) -> Recipe:
    """Look at a table and write a study file for it.

    source, target: as in a study file; a relative source starts at ``root``. metric: left out, error for a target that
    looks like classes and rmse for one that does not. minutes: the time for the search; unless ``max_epochs`` says how
    long trials are, this machine is measured for a few seconds to see how long they may be, with ``workers`` at work.
    drop: leave out columns that look like identifiers. Raises DataError.
    """
    task, table = _read(source, target, root, metric)
    metric = metric or ("error" if task == "classification" else "rmse")
    split = _default_split(table, task, seed)
    schema = Schema.infer(table.frame, split.train)
    n = len(split.train)
    dropped = list(schema.identifiers) if drop and len(schema.identifiers) < len(schema.columns) else []
    settings = _Settings(
        name=name or name_of(source),
        metric=metric,
        task=task,
        seed=seed,
        source=source,
        target=target,
        drop=dropped,
        times=schema.of_kind("date"),
        encodes=_encodes(schema, n, len(table.frame)),
        leverage=_leverage(schema, table.frame, split, dropped),
        classes=_class_comment(table),
        rows=n,
        columns=len(schema.columns),
        width=min(WIDEST, max(128, 2 ** round(np.log2(8 * np.sqrt(n))))),
        batch_sizes=[size for size in (32, 64, 128, 256, 512) if n // 200 <= size <= max(n // 8, 32)] or [256, 512],
        minutes=minutes,
        epochs=EPOCHS[-1] if max_epochs is None else max_epochs,
    )
    draft = Recipe(text=settings.text(), root=root)
    if minutes is None or max_epochs is not None:
        return draft
    speed = workers * epochs_a_second(draft.spec, root, device=device)
    affordable = 60 * minutes * speed / FULL_TRIALS
    settings.epochs = max([epochs for epochs in EPOCHS if epochs <= affordable], default=EPOCHS[0])
    return Recipe(text=settings.text(), root=root)


def study_of_table(
    manager: StudyManager,
    path: Path,
    target: str | None,
    *,
    metric: Metric | None = None,
    name: str | None = None,
    seed: int | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    max_epochs: int | None = None,
    workers: int = 1,
    device: str = "auto",
) -> tuple[StudySpec, Path]:
    """The study of a table, and the folder that its source starts at: the one that is stored, else a new recipe's.

    path: a file, or a source such as sklearn:digits. minutes: left out, 5 unless ``trials`` says how many.
    Raises DataError; SpecMismatchError when the stored study of this name is another one, or of a file of the same name
    in another folder. Where the stored study's file is gone it may have moved here: whether it is the same, its digest
    says as the study is gone on with.
    """
    source, root = (path.name, path.parent) if ":" not in str(path) else (str(path), Path())
    name = name or name_of(source)
    if name in manager.names():
        stored = manager.spec(name)
        roots = (manager.data_root(name), manager.created_in(name))  # they differ where TUNER_DATA_ROOT is set
        there, created = ((folder / stored.data.source).resolve() for folder in roots)
        elsewhere = stored.data.source == path.name and there.exists() and path.resolve() not in (there, created)
        asked = {
            "data.source": (there, path.resolve()) if elsewhere else (stored.data.source, source),
            "data.target": (stored.data.target, target),
            "study.metric": (stored.study.metric, metric),
            "study.seed": (stored.study.seed, seed),
            "search.trials": (stored.search.trials, trials),
            "search.minutes": (stored.search.minutes, minutes),
            "training.max_epochs": (stored.training.max_epochs, max_epochs),
        }
        given = {key: (there, wanted) for key, (there, wanted) in asked.items() if wanted not in (None, there)}
        if given:
            raise SpecMismatchError(name, [f"{key}: {there} -> {wanted}" for key, (there, wanted) in given.items()])
        return stored, root
    if minutes is None and trials is None:
        minutes = MINUTES
    recipe = write_recipe(
        source,
        target,
        root=root,
        name=name,
        metric=metric,
        minutes=minutes,
        max_epochs=max_epochs,
        workers=workers,
        device=device,
        seed=seed or 0,
    )
    return parse_spec(recipe.content, trials=trials), root


def epochs_a_second(spec: StudySpec, root: Path, *, device: str = "auto") -> float:
    """How many epochs of this study's trials one worker trains in a second, all lanes together, measured now.

    Takes 3 ``MEASURED_S`` at most, however large the table is, reading it and compiling left aside.
    """
    place = resolve_device(device)
    if place.type == "cpu":
        single_thread()
    data = DeviceData.place(load_training_data(spec, root), place)
    drawn = make_sampler(spec).draw(range(MEASURED_LANES), lambda: ())
    configs = [spec.trial_config(spec.search_space.complete(params)) for params in drawn]
    lanes = [trial_lane(spec.study.seed, i, config) for i, config in enumerate(configs)]
    packs = plan_packs([LaneTask(lane=lane, target_epochs=spec.training.max_epochs) for lane in lanes], data)
    began, seconds, epochs = time.perf_counter(), 0.0, 0.0
    for pack in packs:
        trained, took = _measured(pack, data, spec.study.metric)
        epochs, seconds = epochs + trained, seconds + took
        if seconds > MEASURED_S or time.perf_counter() - began > 2 * MEASURED_S:
            break
    return epochs / seconds


def _measured(pack: list[LaneTask], data: DeviceData, metric: Metric) -> tuple[float, float]:
    """How many epochs the lanes of a pack were trained for, all together, and in how many seconds.

    After ``MEASURED_S`` / 2 an epoch is given up, and the share of its micro-steps counts; so it does without
    validation, which is short beside so long an epoch.
    """
    configs = [task.lane.config for task in pack]
    steps = micro_steps_of(configs, [len(data.view(config.scaling).y_train) for config in configs])
    asked, began = 0, 0.0

    def is_over() -> bool:
        nonlocal asked
        asked += 1
        return asked > 1 and time.perf_counter() - began > MEASURED_S / 2

    trainer = PackTrainer(pack, data, metric, interrupted=is_over)
    trained, seconds = 0.0, 0.0
    for _ in range(2):  # the first time it also compiles and allocates
        if not trainer.running:
            break  # all have diverged
        asked, began = 0, time.perf_counter()
        try:
            trained = len(trainer.run_epoch())
        except EpochInterruptedError:
            trained = len(trainer.running) * (asked - 1) / steps
        torch.zeros(1, device=data.device).item()  # waits until the device has done what it was given
        seconds = time.perf_counter() - began
    return trained, seconds


@dataclass(kw_only=True)
class _Settings:
    """What the file says, before it is text."""

    name: str
    metric: Metric
    task: Task
    seed: int
    source: str
    target: str | None
    drop: list[str]
    times: list[str]
    encodes: bool
    leverage: tuple[float, str]
    classes: str
    rows: int
    columns: int
    width: int
    batch_sizes: list[int]
    minutes: float | None
    epochs: int

    def text(self) -> str:
        quoted = _quoted
        data = [f"source  = {quoted(self.source)}"]
        if self.target is not None:
            data.append(f"target  = {quoted(self.target)}{self.classes}")
        if self.drop:
            data.append(f"drop    = [{', '.join(map(quoted, self.drop))}]   # they seem to name rows only")
        data += [
            self._scaling,
            "# split = { train = 0.6, val = 0.2, test = 0.2 }   # the default at this size",
            "# split = { folds = 5, test = 0.2 }   # if the metric hangs on few rows: every other row validates once",
            *(f"# split = {{ time = {quoted(time)} }}   # if it is to predict what comes later" for time in self.times),
            '# split = { group = "…" }   # if rows of one customer, patient, … must not be on both sides',
        ]
        search = [
            'sampler = "random"      # or tpe, qmc, grid',
            'pruner  = "hyperband"   # most trials stop early; or asha, successive_halving, none',
        ]
        if self.minutes is None:
            search.append("trials  = 200           # in total, whatever the number of workers; or: minutes = 10")
        else:
            search.append(f"minutes = {self.minutes:g}   # for the search, all workers together")
        search.append(f"min_epochs = {max(1, self.epochs // FIRST_RUNG)}   # what is seen earlier says little")
        smoothing = "\nlabel_smoothing = { choices = [0.0, 0.05, 0.1] }" if self._smooths else ""
        return "\n".join(
            [
                f"# {count(self.rows, 'row')} to train on, {count(self.columns, 'feature column')}. Written by tuner",
                "# init; everything may be changed. tuner check says what it means, tuner run does it.",
                "",
                "[study]",
                f"name   = {quoted(self.name)}",
                f"metric = {quoted(self.metric)}   # {', '.join(self._others)} would do, too",
                f"seed   = {self.seed}",
                "",
                "[data]",
                *data,
                "",
                "[model]",
                'activation = { choices = ["gelu", "silu"] }   # better than relu on most of a dozen tables',
                "",
                "[training]",
                'optimizer  = "adamw"',
                'schedule   = "cosine"   # to zero, step by step',
                "warmup     = 0.05       # the first steps rise linearly",
                f"max_epochs = {self.epochs}{smoothing}",
                "",
                "[search]",
                *search,
                "",
                "[space]   # in the lecture's order of importance; on a log scale where a factor counts",
                "learning_rate = { low = 3e-4, high = 2e-2, log = true }",
                f"batch_size    = {{ choices = {self.batch_sizes} }}",
                "weight_decay  = { low = 1e-4, high = 1.0, log = true }",
                "dropout       = { low = 0.0, high = 0.5 }",
                f"width         = {{ low = {self.width // 8}, high = {self.width}, log = true }}",
                "depth         = { low = 1, high = 3 }",
                "",
                "[final]",
                "seeds  = 5   # the winner is trained anew this often, then the test set is opened once",
                'fit_on = "train+val"   # as long as in the search, on a third more rows; or train',
                "",
            ]
        )

    @property
    def _scaling(self) -> str:
        """Not standardised alone where one row lies so far away that a network, which goes on as a straight line beyond
        the rows it knows, can be wrong by any amount on the next such row; validation shows that by chance only.
        """
        share, column = self.leverage
        far = share >= LEVERAGE
        names = ["robust", *([] if far else ["standard"]), *(["piecewise"] if self.encodes else [])]
        means = {"robust": "far values clipped", "standard": "as they are", "piecewise": "in bins"}
        comment = "; ".join(means[name] for name in names)
        if far:
            comment += f", for one row has {share:.0%} of the variance of {_quoted(column)}; or standard, quantile"
        else:
            comment += "; or quantile"
        choices = ", ".join(map(_quoted, names))
        value = f"{{ choices = [{choices}] }}" if len(names) > 1 else choices
        return f"scaling = {value}   # {comment}"

    @property
    def _smooths(self) -> bool:
        """Label smoothing helps an error rate; it spoils probabilities, which other metrics are about."""
        return self.task == "classification" and not METRICS[self.metric].probabilities

    @property
    def _others(self) -> list[str]:
        return [name for name, rule in METRICS.items() if rule.task == self.task and name != self.metric]


def _encodes(schema: Schema, train: int, rows: int) -> bool:
    """Whether there are numbers to encode in bins, enough train rows to learn from that, and memory for all rows."""
    numeric = len([column for column in schema.columns if column.kind in ("numeric", "date")])
    return numeric > 0 and train >= ENCODED_ROWS and SCALINGS * rows * numeric * bins_of(numeric) <= MOST_ENCODED


def _leverage(schema: Schema, frame: pl.DataFrame, split: Split, dropped: list[str]) -> tuple[float, str]:
    """The largest share that one of the train rows has of a column's sum of squared deviations, and that column.

    With 1/n more it is the row's leverage in a regression on that column alone. Columns of numbers only, without those
    that are ``dropped``; 0 where there are none.
    """
    shares = [(0.0, "")]
    for column in schema.columns:
        if column.kind == "numeric" and column.name not in dropped:
            values = read_as(frame[column.name][split.train], column.kind, column.values).drop_nulls()
            far = (values - values.mean()).abs()
            relative = far / far.max()  # their squares may be no numbers, relative ones are
            shares.append((1 / float(relative.pow(2).sum()), column.name))
    return max(share for share in shares if np.isfinite(share[0]))


def _quoted(text: str) -> str:
    """A TOML string: JSON's, but for DEL, and for what JSON writes as two escapes, of which TOML takes neither."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(source: str, target: str | None, root: Path, metric: Metric | None) -> tuple[Task, Table]:
    """The table, and what its target looks like."""
    section = DataSection(source=source, target=target)
    if metric is not None:
        task = METRICS[metric].task
        return task, load_table(section, task, root)
    try:
        table = load_table(section, "classification", root)
    except DataError as not_classes:
        try:
            return "regression", load_table(section, "regression", root)
        except DataError:
            raise not_classes from None
    counts = np.bincount(table.target)
    numbers = all(re.fullmatch(r"[+-]?[0-9]+", label) for label in table.classes)
    if numbers and (len(counts) > MOST_CLASSES or len(table.target) < ROWS_A_CLASS * len(counts)):
        return "regression", load_table(section, "regression", root)
    return "classification", table


def _default_split(table: Table, task: Task, seed: int) -> Split:
    """The split that the study will have; where a class is too rare for it, one that its user has to choose anyway."""
    try:
        return split_rows(table.target, task, None, seed, classes=table.classes)
    except DataError:
        return split_rows(table.target, task, SplitSection(stratify=False), seed)


def _class_comment(table: Table) -> str:
    if not table.classes:
        return ""
    counts = np.bincount(table.target)
    rare = int(counts.argmin())
    share = counts[rare] / counts.sum()
    text = f"   # {len(counts)} classes"
    if len(counts) * share < UNEVEN:
        text += f", {table.classes[rare]!r} in {share:.1%} of the rows: consider balanced_accuracy, f1 or roc_auc"
    return text


def name_of(source: str) -> str:
    """A study's name from its source's: what a name may not hold becomes a dash."""
    stem = Path(source).name.split(".")[0] if ":" not in source else source.partition(":")[2]
    return re.sub(r"[^\w.+-]+", "-", stem).strip("-.+") or "study"
