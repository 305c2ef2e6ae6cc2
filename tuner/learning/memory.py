"""How much memory a pack takes, and how much there is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from tuner.cores import usable_cores
from tuner.learning.kernels.interface import Real, Whole
from tuner.learning.layout import Layout
from tuner.learning.schedules import micro_batch, micro_steps_of
from tuner.learning.stream import chunk_steps
from tuner.trial import TrialConfig

EVALUATION_ROWS = 256  # at least, of a validation pass at a time
EVALUATION_NUMBERS = 2**26  # of a hidden layer at a time on a GPU
SHARE = 0.8  # of a GPU's free memory that packs may take
BYTES_OF_INTEGER = 8  # orders and tables hold int64
BYTES_OF_DOUBLE = 8
NORM_TEMPORARIES, SMOOTH_TEMPORARIES = 3, 5  # tensors that are in use at a time
HEAP = 2**25  # bytes: what is freed of tensors below that the C library keeps for itself, in pieces,
HELD = 2.5  # which makes it so many times what is in use (measured)


def evaluation_rows(device: torch.device, K: int, H: int) -> int:
    """Rows of a validation pass at a time: more on a GPU, where that is faster."""
    return max(EVALUATION_ROWS, EVALUATION_NUMBERS // (K * H)) if device.type == "cuda" else EVALUATION_ROWS


def pack_bytes(
    configs: Sequence[TrialConfig],
    rows: Sequence[int],
    D: int,
    C: int,
    *,
    rows_evaluated: int,
    item: int = 4,
    streamed: bool = False,
    views: int = 1,
    device: torch.device,
) -> int:
    """Predicted peak bytes of a pack in training and validation: every buffer of :class:`tuner.learning.lanes.Pack`.

    rows: each lane's training rows. rows_evaluated: validation rows, of the view that has most. item: bytes of a
    number, 4 for float32. streamed: whether training rows come in chunks. views: how many the lanes train on together.
    """
    ordered = sorted(configs, key=lambda c: -c.depth)
    layout = Layout(ordered, [D] * len(ordered), C)
    first, K, H = ordered[0], layout.K, layout.H
    B = micro_batch(configs, rows)
    flats = 2 + (1 if first.optimizer in ("sgd", "nesterov") else 2)
    flats += any(c.averaging != "none" for c in ordered) + any(c.keep == "best" for c in ordered)
    parameters = flats * layout.size * item
    hidden = sum(layout.counts[1:])  # lanes, counted once for each hidden layer they have
    units = hidden * B * H
    activations = (3 * units + K * B * (D + C)) * item
    temporaries = 0  # of a layer's size, at most, in norms and in activations that torch computes
    if first.norm != "none":
        activations += units * item  # what the backward pass keeps
        temporaries = NORM_TEMPORARIES
    if first.activation not in ("relu", "leaky_relu") and device.type != "cuda":
        temporaries = max(temporaries, SMOOTH_TEMPORARIES)
    layer = K * B * H * item
    activations += int(temporaries * layer * (HELD if device.type == "cpu" and layer < HEAP else 1))
    if first.precision == "bf16":  # the largest product's factors and result, rounded
        activations += 2 * (K * max(D, H) * H + 2 * K * B * max(D, H))
    S = micro_steps_of(configs, rows)
    tables = S * K * (len(Whole) * BYTES_OF_INTEGER + len(Real) * item)
    if device.type == "cpu":
        # The plan keeps weights of rows and ends of batches, and draws up its numbers in float64, lane by lane, before
        # it brings them into the micro-steps' order.
        drawn_up = BYTES_OF_INTEGER + BYTES_OF_DOUBLE + len(Real) * (2 * BYTES_OF_DOUBLE - item)
        tables += S * K * drawn_up
    if streamed:
        tables += 2 * min(chunk_steps(K, B, D, item), S) * K * B * D * item
    at_once = min(evaluation_rows(device, K, H), rows_evaluated)
    evaluation = (2 * K * at_once * H + 3 * K * rows_evaluated * C) * item
    if views > 1:  # each lane's own rows, copied
        evaluation += K * at_once * D * item
    return parameters + activations + evaluation + tables + K * max(rows) * BYTES_OF_INTEGER


def memory_budget(device: torch.device, processes: int | None = None) -> int:
    """Bytes that the packs of one process may take: most of a GPU's free memory, or a fair share of the machine's.

    processes: how many share the machine's memory; None: as many as there are usable cores.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(SHARE * free)
    if device.type == "mps":
        return int(SHARE * (torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    return int(SHARE * available_memory() / (processes or usable_cores()))


def available_memory(system: Path = Path("/")) -> int:
    """Bytes of this machine's memory that programs may still take, within the limit of the container they run in.

    What files are cached in counts as free, as the kernel will give it up. Where the kernel tells neither (macOS): all
    that the machine has. system: where its ``proc`` and ``sys`` are.
    """
    try:
        lines = (system / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = system / "sys/fs/cgroup"
    try:
        limit, used, parts = (
            (group / f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current", "stat")
        )
    except OSError:  # another version of control groups, or no limit at all
        return available
    if limit.strip() == "max":
        return available
    cached = next(int(line.split()[1]) for line in parts.splitlines() if line.startswith("inactive_file "))
    return min(available, max(int(limit) - int(used) + cached, 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or numpy means that memory ran out."""
    known = ("can't allocate memory", "MPS backend out of memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in known)
