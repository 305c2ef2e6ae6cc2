"""The elementwise work of a pack: everything between the matrix products.

Three implementations of one interface, :class:`tuner.learning.kernels.interface.Kernels`: ``reference`` in torch
operations (any device, any dtype: the specification), ``cpu`` compiled by numba, ``cuda`` compiled by Triton.
"""

from __future__ import annotations

import torch

from tuner.learning.kernels.interface import Kernels


def kernels_for(device: torch.device) -> Kernels:
    """The fastest implementation for a device."""
    if device.type == "cpu":
        from tuner.learning.kernels.cpu import CpuKernels

        return CpuKernels()
    from tuner.learning.kernels.reference import ReferenceKernels

    return ReferenceKernels()
