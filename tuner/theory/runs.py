"""Runs: lanes trained side by side to their horizon, with what they were worth along the way.

Each lane trains on the view (``config.scaling``, ``fold``) of the data, so training sets that differ (resampled,
corrupted) are folds of one :class:`DeviceData` and still train in one pack: see :func:`resampled`.

Shapes: ``E`` epochs, ``K`` lanes, ``n`` rows, ``C`` outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.data.dataset import Rows, View
from tuner.errors import TunerError
from tuner.learning.device import DeviceData, Part
from tuner.learning.lanes import Lane, Pack
from tuner.learning.layout import Vector, named_arrays
from tuner.learning.packing import plan_packs
from tuner.learning.parameters import Arrays
from tuner.learning.trainer import LaneTask
from tuner.spec import Metric
from tuner.trial import Scaling, Task

Floats = npt.NDArray[np.float64]
Watch = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A lane at its horizon. arrays: as :meth:`Pack.export` gives them.

    epochs (E,): after which it was looked at, the last one among them; loss and value of each part (E,): its mean loss
    and the metric on these rows, dropout off.
    """

    lane: Lane
    arrays: Arrays
    epochs: npt.NDArray[np.int64]
    loss: Mapping[Part, Floats]
    value: Mapping[Part, Floats]

    def weights(self, data: DeviceData) -> dict[str, Vector]:
        """The weights it is judged by, by name, in torch's orientation: see :func:`named_arrays`."""
        theta = self.arrays.get("mean", self.arrays["theta"])
        config = self.lane.config
        return named_arrays(theta, config, data.features_of(config.scaling), data.n_outputs)


def train(
    lanes: Sequence[Lane],
    data: DeviceData,
    metric: Metric,
    *,
    at: Sequence[int] = (),
    parts: Sequence[Part] = ("train", "val"),
    say: Watch = lambda _: None,
) -> list[Run]:
    """Train every lane for its ``max_epochs``; early stopping and the best epoch play no part.

    at: epochs after which to look at them, besides the last. say: hears how many are done after each pack. Raises
    ValueError when two lanes have one number, or their horizons differ; TunerError when networks diverge.
    """
    if len({lane.number for lane in lanes}) != len(lanes):
        raise ValueError("two lanes have one number")
    (horizon,) = {lane.config.max_epochs for lane in lanes}
    looked = sorted({epoch for epoch in at if epoch < horizon} | {horizon})
    # The best epoch's weights would only take memory.
    lanes = [replace(lane, config=replace(lane.config, patience=0, keep="last")) for lane in lanes]
    done: dict[int, Run] = {}
    for tasks in plan_packs([LaneTask(lane=lane, target_epochs=horizon) for lane in lanes], data):
        own = [task.lane for task in tasks]
        pack = Pack(own, data)
        found: dict[Part, list[tuple[Floats, Floats]]] = {part: [] for part in parts}
        for epoch in range(1, horizon + 1):
            pack.train_epoch([epoch] * len(own))
            if epoch in looked:
                for part in parts:
                    found[part].append(pack.validate(metric, part))
        for i, lane in enumerate(own):
            done[lane.number] = Run(
                lane=lane,
                arrays={name: a for name, a in pack.export(i).items() if not name.startswith("moment")},
                epochs=np.array(looked),
                loss={part: np.array([loss[i] for loss, _ in seen]) for part, seen in found.items()},
                value={part: np.array([value[i] for _, value in seen]) for part, seen in found.items()},
            )
        check_finite(own, data, np.isfinite(np.sum([seen[-1][0] for seen in found.values()], axis=0)))
        say(f"{len(done):,} of {len(lanes):,} networks trained")
    return [done[lane.number] for lane in lanes]


def check_finite(lanes: Sequence[Lane], data: DeviceData, finite: npt.NDArray[np.bool_]) -> None:
    """Raises TunerError where lanes trained to no finite loss: of a network that diverged there is nothing to say."""
    lost = [lane for lane, whole in zip(lanes, finite, strict=True) if not whole]
    if lost:
        config = lost[0].config
        rate = config.peak_learning_rate(len(data.view(config.scaling, lost[0].fold).x_train))
        raise TunerError(
            f"{len(lost)} of {len(lanes)} networks that trained together diverged, such as one of width {config.width} "
            f"at a learning rate of {rate:.3g}; use a study whose winner has a smaller one, or set training.clip_norm"
        )


def outputs(runs: Sequence[Run], data: DeviceData, x: Tensor) -> Tensor:
    """What each run's network answers on the same rows: x (n, D) -> (K, n, C)."""
    found: dict[int, Tensor] = {}
    tasks = [LaneTask(lane=run.lane, target_epochs=1) for run in runs]
    of = {run.lane.number: run for run in runs}
    for planned in plan_packs(tasks, data):
        pack = Pack([task.lane for task in planned], data)
        for i, task in enumerate(planned):
            pack.restore(i, _judged(of[task.lane.number].arrays))
        found |= {task.lane.number: own for task, own in zip(planned, pack.outputs(x), strict=True)}
    return torch.stack([found[run.lane.number] for run in runs])


def _judged(arrays: Arrays) -> Arrays:
    theta = arrays.get("mean", arrays["theta"])
    running = arrays.get("mean_running", arrays.get("running"))
    return {"theta": theta, "mean": theta} | ({} if running is None else {"running": running})


def resampled(
    views: Sequence[View], task: Task, n_outputs: int, device: torch.device, scaling: Scaling = "standard"
) -> DeviceData:
    """Data of several training sets, the i-th as fold i; those with fewer features than others have zeros for them."""
    D = max(view.train.x.shape[1] for view in views)

    def wide(rows: Rows) -> Rows:
        return Rows(x=np.pad(rows.x, ((0, 0), (0, D - rows.x.shape[1]))), y=rows.y)

    padded = {
        (scaling, fold): replace(view, train=wide(view.train), val=wide(view.val)) for fold, view in enumerate(views)
    }
    return DeviceData.of_views(padded, task, n_outputs, device)
