"""The kernels that are compiled, each where it can run.

Triton's need a CUDA device. Where there is none, Triton's interpreter runs the same code on the CPU, which checks all
but the compiler; it must be told before Triton is imported.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch

from tuner.learning.kernels.cpu import CpuKernels
from tuner.learning.kernels.interface import Kernels

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
INTERPRETED = find_spec("triton") is not None and not CUDA

without_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="Triton's interpreter needs triton (pip install triton) and no CUDA device"
)


@dataclass(frozen=True)
class Compiled:
    """Kernels of one kind, and the device that they run on."""

    name: str
    device: str

    @property
    def kernels(self) -> Kernels:
        if self.name == "cpu":
            return CpuKernels()
        from tuner.learning.kernels.cuda import CudaKernels

        return CudaKernels(torch.device(self.device))


CPU, TRITON, GPU = Compiled("cpu", "cpu"), Compiled("interpreted", "cpu"), Compiled("cuda", "cuda")
COMPILED = pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(CPU, id="cpu"),
        pytest.param(TRITON, id="triton-interpreted", marks=without_interpreter),
        pytest.param(GPU, id="cuda", marks=pytest.mark.gpu),
    ],
)
