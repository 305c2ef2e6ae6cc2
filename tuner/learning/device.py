"""Devices, and the training and validation rows as tensors on one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tuner.data.dataset import Rows, TrainingData
from tuner.errors import DeviceError
from tuner.trial import Task


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` as a device of this machine. Raises DeviceError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is not known; use auto, cpu, cuda, cuda:1, … or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise DeviceError(f"device {name!r} asked for, but torch sees no CUDA device here; use --device cpu")
        if (device.index or 0) >= count:
            raise DeviceError(f"device {name!r} asked for, but there are {count} CUDA devices, numbered from 0")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' asked for, but torch sees no Apple GPU here; use --device cpu")
    if device.type not in ("cpu", "mps"):
        raise DeviceError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:1, … or mps")
    return device


@dataclass(frozen=True, kw_only=True)
class DeviceData:
    """Training and validation rows on a device. x: (n, D); y: (n,) int64 classes or floats of x's dtype."""

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    task: Task
    n_outputs: int
    target_sd: float

    @property
    def n_features(self) -> int:
        return self.x_train.shape[1]

    @property
    def device(self) -> torch.device:
        return self.x_train.device

    @property
    def dtype(self) -> torch.dtype:
        return self.x_train.dtype

    @classmethod
    def place(cls, data: TrainingData, device: torch.device, dtype: torch.dtype = torch.float32) -> DeviceData:
        """Copy the rows to ``device``."""
        view = data.only
        x_train, y_train = tensors(view.train, device, dtype)
        x_val, y_val = tensors(view.val, device, dtype)
        return cls(
            x_train=x_train,
            y_train=y_train,
            x_val=x_val,
            y_val=y_val,
            task=data.task,
            n_outputs=data.n_outputs,
            target_sd=view.target_sd,
        )


def tensors(rows: Rows, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (n, D) as ``dtype`` and y (n,) as int64 classes or ``dtype``, on ``device``."""
    x = torch.tensor(rows.x, dtype=dtype, device=device)
    y = torch.tensor(rows.y, device=device)
    return x, y if y.dtype == torch.int64 else y.to(dtype)
