"""The elementwise work of a pack: everything between the matrix products.

Three implementations of one interface, :class:`tuner.learning.kernels.interface.Kernels`: ``reference`` in torch
operations (any device, any dtype: the specification), ``cpu`` compiled by numba, ``cuda`` compiled by Triton.
"""

from __future__ import annotations

import functools
import logging
from importlib.util import find_spec

import torch

from tuner.learning.kernels.interface import Kernels, LaneReal, Lanes, LaneWhole

_log = logging.getLogger(__name__)


def kernels_for(device: torch.device) -> Kernels:
    """The fastest implementation that works on a device. Triton comes with torch's CUDA builds for Linux alone, and
    compiles where there is a C compiler.
    """
    if device.type == "cpu":
        from tuner.learning.kernels.cpu import CpuKernels

        return CpuKernels()
    if device.type == "cuda" and find_spec("triton") is not None and _compiles(device):
        from tuner.learning.kernels.cuda import CudaKernels

        return CudaKernels(device)
    from tuner.learning.kernels.reference import ReferenceKernels

    return ReferenceKernels()


@functools.cache
def _compiles(device: torch.device) -> bool:
    """Whether Triton compiles and launches a kernel on a device: asked once a process, before anything is trained."""
    whole = torch.ones(len(LaneWhole), 1, dtype=torch.int64, device=device)
    real, class_weights = torch.ones(len(LaneReal), 1, device=device), torch.ones(1, 1, device=device)
    z = torch.ones(1, 1, 1, device=device)
    try:
        from tuner.learning.kernels.cuda import CudaKernels

        CudaKernels(device).hidden_infer("relu", z, torch.ones(1, 1, device=device), Lanes(whole, real, class_weights))
        if float(z) == 2:
            return True
        reason = "it computes wrongly"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, a card that is too old, a driver of another version: errors of all kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
    _log.warning("Triton does not work here, torch's own operations train instead, which is slower: %s", reason)
    return False
