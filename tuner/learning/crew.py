"""Packs trained to their ends: refits, candidates, whatever needs no curve; on a CPU by several processes at a time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tuner.learning.device import DeviceData
from tuner.learning.memory import is_out_of_memory
from tuner.learning.packing import halved, plan_packs, seconds_of
from tuner.learning.trainer import LaneState, LaneTask, single_thread, train_to_end
from tuner.spec import Metric

_TENSORS = ("x_train", "y_train", "x_val", "y_val")
WORTH_S = 4.0  # of estimated work for each process: what it takes to start one

_log = logging.getLogger(__name__)


def train_all(
    tasks: Sequence[LaneTask], data: DeviceData, metric: Metric, *, processes: int = 1
) -> dict[int, LaneState]:
    """Train trials to their targets, in packs. What comes back lacks the optimizer's moments: it is not trained on.

    processes: how many may share the work on a CPU; fewer do where there is little of it. With more than one, a program
    that calls this has to be importable, as :mod:`multiprocessing` wants its main module. The results are the same bit
    for bit.
    """
    packs = sorted(plan_packs(tasks, data), key=lambda pack: -seconds_of(pack, data))
    if data.device.type == "cpu":
        estimated = sum(seconds_of(pack, data) for pack in packs)
        processes = min(processes, len(packs), int(estimated / WORTH_S))
        if processes > 1:
            return _by_processes(packs, data, metric, processes)
    return _here(packs, data, metric)


def _here(packs: Sequence[Sequence[LaneTask]], data: DeviceData, metric: Metric) -> dict[int, LaneState]:
    states: dict[int, LaneState] = {}
    for pack in packs:
        states |= _trained(pack, data, metric)
    return states


def _trained(
    pack: Sequence[LaneTask], data: DeviceData, metric: Metric, interrupted: Callable[[], bool] = lambda: False
) -> dict[int, LaneState]:
    try:
        states = train_to_end(pack, data, metric, interrupted=interrupted)
        return {number: replace(state, arrays=_needed(state)) for number, state in states.items()}
    except Exception as error:
        if len(pack) == 1 or not is_out_of_memory(error):
            raise
        _log.warning("out of memory with %d lanes; going on with half of them", len(pack))
    # Not in the handler, whose error still holds the pack.
    return {n: state for half in halved(list(pack)) for n, state in _trained(half, data, metric, interrupted).items()}


def _needed(state: LaneState) -> dict[str, npt.NDArray[Any]]:
    return {name: array for name, array in state.arrays.items() if not name.rpartition(".")[2].startswith("moment")}


def _by_processes(
    packs: Sequence[Sequence[LaneTask]], data: DeviceData, metric: Metric, processes: int
) -> dict[int, LaneState]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit other threads' locks
    stop = context.Event()
    states: dict[int, LaneState] = {}
    left = list(packs)
    with TemporaryDirectory(prefix="tuner-") as folder:
        rest = _save(data, Path(folder))
        begin = (folder, rest, metric, stop)
        with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=begin) as pool:
            coming: list[Future[dict[int, LaneState]]] = []
            try:
                with _no_ctrl_c():
                    for pack in packs:
                        coming.append(pool.submit(_of_process, pack))
                for future in coming:
                    states |= future.result()
                    left.pop(0)
            except BrokenProcessPool:
                _log.warning("a process that trained was killed, for its memory perhaps; going on without others")
            except BaseException:
                stop.set()  # gives up the epochs that are being trained
                for future in coming:
                    future.cancel()
                raise
    return states | _here(left, data, metric)


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Processes that are started within it never hear Ctrl-C, which reaches all of a terminal: their parent tells them.

    Only the main thread may change that; where another one starts them, they hear it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _save(data: DeviceData, folder: Path) -> dict[str, Any]:
    """Write the rows to files that processes map into their memory, one copy for all; what else the data have.

    Through a pipe each would have to be waited for, and torch would take /dev/shm, which containers keep small.
    """
    rest = dict(vars(data))
    for name in _TENSORS:
        np.save(folder / f"{name}.npy", rest.pop(name).numpy())
    return rest


def _load(folder: Path, rest: dict[str, Any]) -> DeviceData:
    for name in _TENSORS:
        rest[name] = torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))
    return DeviceData(**rest)


# Of a process that trains for another one.
_rows: DeviceData
_metric: Metric
_stop: Event


def _begin(folder: str, rest: dict[str, Any], metric: Metric, stop: Event) -> None:
    global _rows, _metric, _stop
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    single_thread()
    _rows, _metric, _stop = _load(Path(folder), rest), metric, stop


def _leave_with_parent() -> None:
    """Nobody waits for the results of a process whose parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _of_process(pack: Sequence[LaneTask]) -> dict[int, LaneState]:
    return _trained(pack, _rows, _metric, _stop.is_set)
