"""Probes: every variant trained from every seed, as lanes of packs, and what it then answers.

Shapes: ``K`` seeds, ``n`` rows, ``C`` outputs, ``D`` features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.data.dataset import Rows, TrainingData, View
from tuner.diagnosis.variants import Variant
from tuner.learning.device import DeviceData
from tuner.learning.lanes import Lane, Pack
from tuner.learning.metrics import score
from tuner.learning.packing import plan_packs
from tuner.learning.progress import EpochResult
from tuner.learning.randomness import lane_key
from tuner.learning.trainer import LaneState, LaneTask, PackTrainer
from tuner.refits import in_unit_of
from tuner.spec import StudySpec
from tuner.trial import Scaling

PROBE = 2  # the second part of a probe's key path: no trial and no refit has its stream
ROWS_SCORED = 20_000  # of train and of validation rows, at most; more are drawn at random
NUMBERS = 100_000_000  # features times rows of all parts of the training rows together, at most
_STREAM = 0xD1A6


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What trained networks answer.

    validation: of each variant, (K, n, C) on the rows of all folds, numbers in the unit of the first fold's target.
    train_scores: of each variant, (K,) on its own training rows (with folds, the first fold's).
    train: the winner's outputs on train rows, and these rows' targets. y: the validation rows' targets.
    curves: of the winner, epoch by epoch, one a seed. rows: of each variant, how many train (in the first fold).
    """

    validation: Mapping[str, Tensor]
    y: Tensor
    train_scores: Mapping[str, npt.NDArray[np.float64]]
    train: tuple[Tensor, Tensor]
    curves: Sequence[Sequence[EpochResult]]
    rows: Mapping[str, int]
    target_sd: float


class Lab:
    """A study's rows, and all that is to be trained on them.

    step: called after each epoch of a pack with the number of lane-epochs it had.
    """

    def __init__(
        self,
        spec: StudySpec,
        data: TrainingData,
        variants: Sequence[Variant],
        seeds: int,
        device: torch.device,
        step: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.spec, self.data, self.variants, self.seeds, self.step = spec, data, variants, seeds, step
        self.scaling: Scaling = variants[0].config.scaling
        self.folds = data.folds
        self._views: dict[tuple[Scaling, int], View] = {
            (self.scaling, fold): data.views[self.scaling, fold] for fold in range(self.folds)
        }
        self.tasks = {variant.name: self._tasks(place, variant) for place, variant in enumerate(variants)}
        self.placed = DeviceData.of_views(self._views, data.task, data.n_outputs, device)
        self.placed.check(spec.study.metric)
        self._val = self._sample([len(data.views[self.scaling, fold].val) for fold in range(self.folds)])

    @property
    def lane_epochs(self) -> int:
        """How many epochs all lanes have together at most."""
        return sum(task.target_epochs * task.folds for tasks in self.tasks.values() for task in tasks)

    def run(self) -> Probes:
        """Train everything."""
        winner = self.variants[0]
        own = {task.lane.number for task in self.tasks[winner.name]}
        curves: dict[int, list[EpochResult]] = {number: [] for number in own}
        validation: dict[int, Tensor] = {}
        train: dict[int, Tensor] = {}
        scores: dict[int, float] = {}
        everything = [task for tasks in self.tasks.values() for task in tasks]
        for pack in plan_packs(everything, self.placed):
            trainer = PackTrainer(pack, self.placed, self.spec.study.metric)
            while running := trainer.running:
                for number, result in trainer.run_epoch().items():
                    if number in own:
                        curves[number].append(result)
                self.step(len(running) * self.folds)
            states = {number: trainer.state(number) for number in trainer.tasks}
            validation |= self._on_validation(pack, states)
            for number, outputs, value in self._on_train(pack, states):
                scores[number] = value
                if number in own:
                    train[number] = outputs
        order = {name: [task.lane.number for task in tasks] for name, tasks in self.tasks.items()}
        return Probes(
            validation={name: torch.stack([validation[n] for n in numbers]) for name, numbers in order.items()},
            y=self._validation_targets(),
            train_scores={name: np.array([scores[n] for n in numbers]) for name, numbers in order.items()},
            train=(torch.stack([train[n] for n in order[winner.name]]), self._train_rows(0)[1]),
            curves=[curves[n] for n in order[winner.name]],
            rows={name: len(self._views[self.scaling, tasks[0].lane.fold].train) for name, tasks in self.tasks.items()},
            target_sd=self.data.views[self.scaling, 0].target_sd,
        )

    # ---- what is trained ----

    def _tasks(self, place: int, variant: Variant) -> list[LaneTask]:
        firsts = [0] * self.seeds if variant.fraction == 1 else self._parts(variant.fraction)
        return [
            LaneTask(
                lane=Lane(
                    number=place * self.seeds + k,
                    config=replace(variant.config, scaling=self.scaling),
                    key=lane_key(self.spec.study.seed, k, PROBE),
                    fold=firsts[k],
                ),
                target_epochs=variant.config.max_epochs,
                folds=self.folds,
            )
            for k in range(self.seeds)
        ]

    def _parts(self, fraction: float) -> list[int]:
        """The first fold of the rows that each seed trains on: other rows for other seeds, as far as memory goes."""
        first = self.data.views[self.scaling, 0]
        draws = int(np.clip(NUMBERS // (first.train.x.size + 3 * first.val.x.size), 1, self.seeds))
        begins = []
        for draw in range(draws):
            begins.append(len(self._views))
            for fold in range(self.folds):
                view = self.data.views[self.scaling, fold]
                rng = np.random.default_rng([self.spec.study.seed, _STREAM, draw, fold])
                self._views[self.scaling, len(self._views)] = part_of(view, fraction, rng)
        return [begins[k % draws] for k in range(self.seeds)]

    # ---- what they answer ----

    def _on_validation(self, pack: Sequence[LaneTask], states: Mapping[int, LaneState]) -> dict[int, Tensor]:
        parts: dict[int, list[Tensor]] = {task.lane.number: [] for task in pack}
        for fold in range(self.folds):
            view = self.placed.view(self.scaling, fold)
            first, mine = self.data.views[self.scaling, 0], self.data.views[self.scaling, fold]
            outputs = self._outputs(pack, states, fold, view.x_val[self._val[fold]])
            if self.data.task == "regression":
                outputs = in_unit_of(first, mine, outputs)
            for task, own in zip(pack, outputs, strict=True):
                parts[task.lane.number].append(own)
        return {number: torch.cat(own) for number, own in parts.items()}

    def _validation_targets(self) -> Tensor:
        first, parts = self.data.views[self.scaling, 0], []
        for fold in range(self.folds):
            y = self.placed.view(self.scaling, fold).y_val[self._val[fold]]
            mine = self.data.views[self.scaling, fold]
            parts.append(y if self.data.task == "classification" else in_unit_of(first, mine, y))
        return torch.cat(parts).to(self.placed.device)

    def _on_train(self, pack: Sequence[LaneTask], states: Mapping[int, LaneState]) -> list[tuple[int, Tensor, float]]:
        """Each trial's outputs and score on its own training rows."""
        found = []
        for first in dict.fromkeys(task.lane.fold for task in pack):
            alike = [task for task in pack if task.lane.fold == first]
            x, y = self._train_rows(first)
            outputs = self._outputs(alike, states, 0, x)
            values = score(self.spec.study.metric, outputs, y, self.data.views[self.scaling, 0].target_sd).tolist()
            found += [(t.lane.number, o, v) for t, o, v in zip(alike, outputs, values, strict=True)]
        return found

    def _train_rows(self, fold: int) -> tuple[Tensor, Tensor]:
        view = self.placed.view(self.scaling, fold)
        (rows,) = self._sample([len(view.x_train)])
        return view.x_train[rows], view.y_train[rows].to(self.placed.device)

    def _outputs(self, pack: Sequence[LaneTask], states: Mapping[int, LaneState], fold: int, x: Tensor) -> Tensor:
        """What the lanes of one of their folds keep and answer: (n, D) -> (lanes, n, C)."""
        lanes = Pack([task.lanes[fold] for task in pack], self.placed)
        for i, task in enumerate(pack):
            lanes.restore(i, states[task.lane.number].kept(fold))
        return lanes.outputs(x)

    def _sample(self, sizes: Sequence[int]) -> list[Tensor]:
        """Which rows of each fold are scored: all of them, or so many at random."""
        share = min(1.0, ROWS_SCORED / sum(sizes))
        rng = np.random.default_rng([self.spec.study.seed, _STREAM])
        chosen = [np.sort(rng.permutation(n)[: max(int(share * n), 1)]) for n in sizes]
        return [torch.from_numpy(rows) for rows in chosen]


def part_of(view: View, fraction: float, rng: np.random.Generator) -> View:
    """The view with a fraction of its training rows, classes in their shares; smaller fractions lie in larger ones."""
    rows = np.sort(nested_order(view.train.y, rng)[: max(round(fraction * len(view.train)), 1)])
    part = Rows(x=view.train.x[rows], y=view.train.y[rows])
    return View(train=part, val=view.val, target_mean=view.target_mean, target_sd=view.target_sd)


def nested_order(y: npt.NDArray[np.int64] | npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Row numbers in an order of which every beginning holds the classes in nearly their shares; of numbers, any order.

    >>> y = np.array([0] * 90 + [1] * 10)
    >>> [int(y[nested_order(y, np.random.default_rng(0))[:n]].sum()) for n in (10, 20, 50)]
    [1, 2, 5]
    """
    place = rng.random(len(y))
    if y.dtype != np.int64:
        return np.argsort(place)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        place[rows] = (np.argsort(np.argsort(place[rows])) + 0.5) / len(rows)
    return np.argsort(place, kind="stable")
