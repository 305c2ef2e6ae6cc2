"""The elementwise work of a pack: everything between the matrix products.

Three implementations of one interface, :class:`tuner.learning.kernels.interface.Kernels`: ``reference`` in torch
operations (any device, any dtype: the specification), ``cpu`` compiled by numba, ``cuda`` compiled by Triton.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from tuner.learning.kernels.interface import Kernels


def kernels_for(device: torch.device) -> Kernels:
    """The fastest implementation for a device. Triton comes with torch's CUDA builds for Linux alone."""
    if device.type == "cpu":
        from tuner.learning.kernels.cpu import CpuKernels

        return CpuKernels()
    if device.type == "cuda" and find_spec("triton") is not None:
        from tuner.learning.kernels.cuda import CudaKernels

        return CudaKernels(device)
    from tuner.learning.kernels.reference import ReferenceKernels

    return ReferenceKernels()
