"""Refits: the winner, or an ensemble, trained anew from several seeds. What is evaluated, and what is exported.

Shapes: ``K`` refits, ``n`` rows, ``C`` outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tuner.data.dataset import FinalData, TrainingData, View, load_final_data
from tuner.data.preprocessing import Preprocessing
from tuner.errors import NothingCompletedError
from tuner.learning.crew import train_all
from tuner.learning.device import DeviceData
from tuner.learning.ensemble import as_outputs, greedy_selection, votes
from tuner.learning.lanes import Lane, Pack, trial_lane
from tuner.learning.metrics import Head, head_of, score
from tuner.learning.randomness import lane_key
from tuner.learning.trainer import LaneState, LaneTask, kept_outputs
from tuner.manager import StudyManager
from tuner.spec import METRICS, StudySpec
from tuner.trial import Scaling, Task, TrialConfig, Value

REFIT = 1  # the second part of a refit's key path; a trial's key has one part, so no refit repeats a trial's stream
CANDIDATES = 16  # best trials that an ensemble may be made of; more gained nothing on a dozen tables
ENSEMBLE_SIZE = 12  # members at most, those that are in it more than once counted as often
VOTES = 50_000_000  # candidates times validation rows times outputs at most; more rows, fewer candidates
FEWEST_CANDIDATES = 4
TIE_BREAK = 1e-6  # of the log-loss, against an error that is a whole number of rows


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trial that is refitted. epochs: how many it trained in the search; weight: how often it is in the ensemble."""

    trial: int
    params: Mapping[str, Value]
    config: TrialConfig
    value: float
    epochs: int
    weight: int = 1


@dataclass(frozen=True, kw_only=True)
class Selection:
    """An ensemble as it was chosen. validation: its score on the rows it was chosen by, so it is optimistic."""

    members: tuple[Member, ...]
    candidates: int
    validation: float


def winner(manager: StudyManager, name: str) -> Member:
    """The study's best trial. Raises NothingCompletedError where there is none."""
    best = manager.best(name)
    if best is None:
        raise NothingCompletedError(f"study {name!r} has no completed trial, so there is no winner to evaluate")
    config = manager.spec(name).trial_config(best.params)
    return Member(trial=best.number, params=best.params, config=config, value=best.value, epochs=best.epochs)


def candidates(manager: StudyManager, name: str) -> list[Member]:
    """The study's completed trials, the best first, no two with the same hyperparameters."""
    spec = manager.spec(name)
    sign = -1 if spec.direction == "maximize" else 1
    complete = [row for row in manager.trials(name) if row.state == "complete" and row.value is not None and row.params]
    found: dict[TrialConfig, Member] = {}
    for row in sorted(complete, key=lambda row: (sign * (row.value or 0.0), row.number)):
        config = spec.trial_config(row.params or {})
        member = Member(
            trial=row.number, params=row.params or {}, config=config, value=row.value or 0.0, epochs=row.epochs
        )
        found.setdefault(config, member)
    return list(found.values()) or [winner(manager, name)]  # none completed where a time budget was over before


def select_ensemble(
    spec: StudySpec, data: TrainingData, ranked: Sequence[Member], device: torch.device, *, processes: int = 1
) -> Selection:
    """A greedy ensemble of the best trials (see :func:`greedy_selection`), by the study's metric on validation rows.

    The trials are trained again, all at once, from their own seeds: they come out as they were. With folds, each row is
    judged by the lane that did not train on it.
    """
    metric = spec.study.metric
    placed = DeviceData.place(data, device)
    y = torch.cat([_targets(data, ranked[0].config.scaling, fold) for fold in range(data.folds)]).to(device)
    affordable = VOTES // (len(y) * data.n_outputs)
    ranked = ranked[: min(CANDIDATES, max(FEWEST_CANDIDATES, affordable))]
    tasks = [
        LaneTask(
            lane=trial_lane(spec.study.seed, member.trial, member.config),
            target_epochs=member.epochs,
            folds=data.folds,
        )
        for member in ranked
    ]
    states = train_all(tasks, placed, metric, processes=processes)
    heads = [head_of(member.config.loss, spec.task) for member in ranked]
    cast = torch.stack(
        [
            votes(head, _validation_outputs(task, states[task.lane.number], data, placed))
            for head, task in zip(heads, tasks, strict=True)
        ]
    )
    sd = data.views[ranked[0].config.scaling, 0].target_sd
    sign = -1 if METRICS[metric].direction == "maximize" else 1

    def loss(means: Tensor) -> Tensor:
        outputs = as_outputs(heads, means)
        value = sign * score(metric, outputs, y, sd)
        if METRICS[metric].zero_one and all(head == "cross_entropy" for head in heads):
            # On few validation rows many ensembles err equally often: of these, the one that gives the right classes
            # more probability.
            value = value + TIE_BREAK * score("log_loss", outputs, y)
        return value

    counts = greedy_selection(cast, loss, size=ENSEMBLE_SIZE)
    members = tuple(replace(member, weight=n) for member, n in zip(ranked, counts, strict=True) if n)
    weights = torch.tensor(counts, dtype=cast.dtype, device=cast.device) / sum(counts)
    mean = torch.einsum("m,mnc->nc", weights, cast)
    validation = float(score(metric, as_outputs(heads, mean), y, sd))
    return Selection(members=members, candidates=len(ranked), validation=validation)


def _targets(data: TrainingData, scaling: Scaling, fold: int) -> Tensor:
    """The validation targets of a fold, numbers in the unit of the first fold's."""
    first, view = data.views[scaling, 0], data.views[scaling, fold]
    y = torch.from_numpy(view.val.y)
    return y if data.task == "classification" else in_unit_of(first, view, y)


def _validation_outputs(task: LaneTask, state: LaneState, data: TrainingData, placed: DeviceData) -> Tensor:
    """What a trial answers on the validation rows of all folds, each fold's lane on its own: (n, C)."""
    scaling, parts = task.lane.config.scaling, []
    for lane in task.lanes:
        pack = Pack([lane], placed)
        pack.restore(0, state.kept(lane.fold))
        outputs = pack.outputs(placed.view(scaling, lane.fold).x_val)[0]
        if data.task == "regression":
            outputs = in_unit_of(data.views[scaling, 0], data.views[scaling, lane.fold], outputs)
        parts.append(outputs)
    return torch.cat(parts)


def in_unit_of(first: View, view: View, z: Tensor) -> Tensor:
    """Numbers standardised as one view's target, as another's."""
    if view is first:
        return z
    return (z * view.target_sd + view.target_mean - first.target_mean) / first.target_sd


@dataclass(frozen=True, kw_only=True)
class FinalRows:
    """The rows that are refitted on, as each scaling of the members sees them, on a device."""

    finals: Mapping[Scaling, FinalData]
    placed: Mapping[Scaling, DeviceData]

    @classmethod
    def load(
        cls,
        spec: StudySpec,
        root: Path,
        members: Sequence[Member],
        device: torch.device,
        *,
        also: Scaling | None = None,
    ) -> FinalRows:
        """For every scaling of a member; of ``also`` the host's rows. A relative path starts at ``root``. DataError."""
        needed = [*(member.config.scaling for member in members), *([] if also is None else [also])]
        finals = {scaling: load_final_data(spec, root, scaling) for scaling in dict.fromkeys(needed)}
        placed = {member.config.scaling: finals[member.config.scaling] for member in members}
        return cls(finals=finals, placed={s: DeviceData.place(final.data, device) for s, final in placed.items()})

    @property
    def fitted(self) -> dict[Scaling, Preprocessing]:
        """What makes any other rows ready, by scaling."""
        return {scaling: final.preprocessing for scaling, final in self.finals.items()}

    @property
    def train(self) -> dict[Scaling, Tensor]:
        """The rows themselves, by scaling: (n, D)."""
        return {scaling: placed.x_train for scaling, placed in self.placed.items()}


@dataclass(frozen=True, kw_only=True)
class Refits:
    """``members`` trained from ``seeds`` seeds each; refit k of the whole is refit k of each member."""

    members: tuple[Member, ...]
    seeds: int
    tasks: tuple[tuple[LaneTask, ...], ...]  # of each member, one a seed
    states: Mapping[int, LaneState]  # by the lane's number
    rows: FinalRows
    task: Task

    @property
    def heads(self) -> list[Head]:
        """What each member's last layer is."""
        return [head_of(member.config.loss, self.task) for member in self.members]

    def outputs(self, x: Mapping[Scaling, Tensor]) -> Tensor:
        """What each refit answers on the same rows in each scaling, (n, D): (K, n, C).

        For several members as :func:`as_outputs` says.
        """
        if len(self.members) == 1:
            return self._of_member(0, x)
        total = sum(member.weight for member in self.members)
        mean = torch.zeros(())
        for i, (member, head) in enumerate(zip(self.members, self.heads, strict=True)):
            mean = mean + votes(head, self._of_member(i, x)) * (member.weight / total)
        return as_outputs(self.heads, mean)

    def _of_member(self, i: int, x: Mapping[Scaling, Tensor]) -> Tensor:
        scaling = self.members[i].config.scaling
        return kept_outputs(self.tasks[i], self.states, self.rows.placed[scaling], x[scaling])


def refit(
    spec: StudySpec, rows: FinalRows, members: Sequence[Member], *, seeds: int | None = None, processes: int = 1
) -> Refits:
    """Train every member from ``seeds`` seeds (None: as the study says) on ``rows``, all as lanes of packs.

    A refit's stream is that of (study seed, refit), and of an ensemble's members (study seed, refit, trial). processes:
    as :func:`tuner.learning.crew.train_all` takes it.
    """
    seeds = spec.final.seeds if seeds is None else seeds
    tasks: list[tuple[LaneTask, ...]] = []
    for place, member in enumerate(members):
        path = () if len(members) == 1 else (member.trial,)
        # With validation rows in it there is nothing left to stop on: as long as the trial trained.
        epochs = member.epochs if spec.fit_on == "train+val" else member.config.max_epochs
        lanes = [
            Lane(number=place * seeds + k, config=member.config, key=lane_key(spec.study.seed, k, REFIT, *path))
            for k in range(seeds)
        ]
        tasks.append(tuple(LaneTask(lane=lane, target_epochs=epochs) for lane in lanes))
    states: dict[int, LaneState] = {}
    for scaling, placed in rows.placed.items():
        mine = [task for of_member in tasks for task in of_member if task.lane.config.scaling == scaling]
        states |= train_all(mine, placed, spec.study.metric, processes=processes)
    return Refits(members=tuple(members), seeds=seeds, tasks=tuple(tasks), states=states, rows=rows, task=spec.task)
