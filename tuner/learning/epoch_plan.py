"""The plan of a pack's epochs: what each micro-step reads, and which numbers each lane's optimizer steps with.

Shapes: ``K`` lanes, ``S`` micro-steps of an epoch. Pure numpy; nothing here trains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tuner.learning.kernels.interface import Real, Whole
from tuner.learning.schedules import averaging_rate, batches, factor
from tuner.trial import TrialConfig


class EpochPlan:
    """The micro-steps of ``B`` rows in which lane k visits its ``rows[k]`` training rows once.

    whole_rows (S, 3, K): see :class:`Whole`; the same in every epoch. visited (K,): rows of each lane's epoch.
    """

    def __init__(self, configs: Sequence[TrialConfig], rows: Sequence[int], B: int) -> None:
        self._configs = configs
        self._rows = rows
        made: dict[tuple[int, int], npt.NDArray[np.int64]] = {}  # once for lanes whose epochs are cut alike
        plans = []
        for c, n in zip(configs, rows, strict=True):
            if (c.batch_size, n) not in made:
                made[c.batch_size, n] = micro_steps(batches(n, c), B)
            plans.append(made[c.batch_size, n])
        S, K = max(map(len, plans)), len(configs)
        self.whole_rows = np.zeros((S, len(Whole), K), dtype=np.int64)
        self._row_weights = np.zeros((K, S))
        for k, plan in enumerate(plans):
            self.whole_rows[: len(plan), :, k] = plan[:, :3]
            self._row_weights[k, : len(plan)] = 1 / plan[:, 3]
        self._ends = [np.flatnonzero(plan[:, 2]) for plan in plans]  # micro-steps after which the optimizer steps
        self.visited = np.array([plan[:, 1].sum() for plan in plans])

    def __len__(self) -> int:
        """S."""
        return len(self.whole_rows)

    def real_rows(self, epochs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Each micro-step's numbers when lane k is at its epoch ``epochs[k]``: (S, 5, K), see :class:`Real`."""
        real = np.zeros((len(self._configs), len(Real), len(self)))  # lane by lane while it is filled
        real[:, Real.ROW_WEIGHT] = self._row_weights
        real[:, [Real.DENOMINATOR, Real.SHRINK]] = 1
        lanes = zip(real, self._configs, self._rows, epochs.tolist(), self._ends, strict=True)
        for lane, config, n, epoch, ends in lanes:
            steps = len(ends)
            index = (epoch - 1) * steps + np.arange(steps)
            eta = config.peak_learning_rate(n) * factor(config, index, steps)
            lane[Real.AVERAGE, ends] = averaging_rate(config, epoch, steps)
            lane[Real.STEP_SIZE, ends] = eta
            if config.optimizer.startswith("adam"):
                lane[Real.STEP_SIZE, ends] /= 1 - config.momentum ** (index + 1)
                lane[Real.DENOMINATOR, ends] = np.sqrt(1 - config.beta2 ** (index + 1))
            if config.optimizer == "adamw":
                lane[Real.SHRINK, ends] = 1 - eta * config.weight_decay
            elif config.optimizer == "adamw_decoupled":
                lane[Real.SHRINK, ends] = 1 - config.weight_decay
        return np.ascontiguousarray(real.transpose(2, 1, 0))


def micro_steps(cut: Sequence[tuple[int, int]], micro: int) -> npt.NDArray[np.int64]:
    """The micro-steps of one epoch cut into batches: (S, 4) columns start, rows, optimizer steps after it, batch rows.

    >>> micro_steps([(0, 6), (6, 4)], 4).tolist()
    [[0, 4, 0, 6], [4, 2, 1, 6], [6, 4, 1, 4]]
    """
    plan = []
    for first, rows in cut:
        for start in range(0, rows, micro):
            count = min(micro, rows - start)
            plan.append((first + start, count, int(start + count == rows), rows))
    return np.array(plan, dtype=np.int64)
