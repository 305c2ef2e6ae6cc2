"""Learning-rate schedules: pure functions from a step to a factor of η (slide "Learning Rate Decay")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tuner.trial import TrialConfig

NEARLY_EQUAL = 1.1  # ratio of two batch sizes up to which the smaller is filled up with idle rows

F64 = npt.NDArray[np.float64]


def batches(rows: int, config: TrialConfig) -> list[tuple[int, int]]:
    """(first position, rows) of each batch of an epoch; the last may be short, and too large a batch is the whole set.

    With batch normalisation a last batch of a single row is left out: it has no variance.
    """
    size = min(config.batch_size, rows)
    found = [(first, min(size, rows - first)) for first in range(0, rows, size)]
    if config.norm == "batch" and found[-1][1] == 1 and len(found) > 1:
        found.pop()
    return found


def micro_batch(configs: Sequence[TrialConfig], rows: Sequence[int]) -> int:
    """B: rows of a micro-step of a pack; configuration i trains on ``rows[i]`` rows.

    The smallest batch, which larger ones are made of. But batches that are nearly equal, as the whole sets of folds
    are, are not cut for the last few rows; nor are those of batch normalisation, which needs them whole.
    """
    sizes = [min(config.batch_size, n) for config, n in zip(configs, rows, strict=True)]
    whole = configs[0].norm == "batch" or max(sizes) <= NEARLY_EQUAL * min(sizes)
    return max(sizes) if whole else min(sizes)


def in_step(configs: Sequence[TrialConfig], rows: Sequence[int]) -> bool:
    """Whether all lanes of a pack read the same positions of their orders in every micro-step.

    They do where each batch is made of whole micro-steps, but for an epoch's last rows.
    """
    n, B = rows[0], micro_batch(configs, rows)
    sizes = {min(config.batch_size, n) for config in configs}
    return set(rows) == {n} and all(size % B == 0 or size == n for size in sizes)


def micro_steps_of(configs: Sequence[TrialConfig], rows: Sequence[int]) -> int:
    """S: how many micro-steps an epoch of a pack has, those of its slowest lane."""
    B = micro_batch(configs, rows)
    sizes = {(min(config.batch_size, n), n) for config, n in zip(configs, rows, strict=True)}
    return max(n // size * -(-size // B) + -(-(n % size) // B) for size, n in sizes)


def factor(config: TrialConfig, step: npt.ArrayLike, steps_per_epoch: int) -> F64:
    """η's factor at each 0-based optimizer step of a trial, over ``max_epochs`` epochs of ``steps_per_epoch``.

    The first ``round(warmup * total)`` steps rise linearly to 1; then the schedule starts:

    - ``constant``: 1.
    - ``cosine``, step by step: (1 + cos(π t/T))/2; it would reach 0 at the step after the last.
    - ``inverse``, ``inverse_sqrt``, epoch by epoch: 1/k, 1/√k in the k-th epoch after the warm-up, the first being 1.
    - ``exponential``, epoch by epoch: decay^(k-1), the slide's 0.95^k by default, starting from η itself.
    - ``step``, epoch by epoch: decay^⌊(k-1)/decay_epochs⌋.

    >>> config = TrialConfig(learning_rate=1, batch_size=1, width=1, depth=1, schedule="cosine", max_epochs=4)
    >>> factor(config, [0, 2, 3], 1).round(3).tolist()
    [1.0, 0.5, 0.146]
    """
    t = np.asarray(step, dtype=np.float64)
    total = config.max_epochs * steps_per_epoch
    warm = round(config.warmup * total)
    walked = np.maximum(t - warm, 0)
    epoch = walked // steps_per_epoch  # whole epochs since the warm-up
    if config.schedule == "cosine":
        after = 0.5 * (1 + np.cos(np.pi * np.minimum(walked / max(total - warm, 1), 1)))
    elif config.schedule == "inverse":
        after = 1 / (epoch + 1)
    elif config.schedule == "inverse_sqrt":
        after = 1 / np.sqrt(epoch + 1)
    elif config.schedule == "exponential":
        after = config.decay**epoch
    elif config.schedule == "step":
        after = config.decay ** (epoch // config.decay_epochs)
    else:
        after = np.ones_like(t)
    return np.where(t < warm, (t + 1) / max(warm, 1), after)


def averaging_rate(config: TrialConfig, epoch: int, steps: int) -> F64:
    """The weight of the new iterate in the averaged weights after each of an epoch's ``steps``; 0: left as they are.

    The averaged weights are what a trial is judged by, so until averaging starts they follow the iterate (1 after the
    epoch's last step). ``swa``: after each epoch 1/(k+1) in the k-th averaged epoch, k from 0, the running mean
    (slide "Averaging Weights for Better Performance"). ``ema``: after each step 1 - ema_decay.
    """
    rate = np.zeros(steps)
    first = int(config.averaging_start * config.max_epochs) + 1  # the first epoch that is averaged
    if config.averaging == "none" or epoch < first:
        rate[-1] = 1
    elif config.averaging == "swa":
        rate[-1] = 1 / (epoch - first + 1)
    else:
        rate[:] = 1 - config.ema_decay
        if first == 1 and epoch == 1:
            rate[0] = 1  # there is no average yet
    return rate
