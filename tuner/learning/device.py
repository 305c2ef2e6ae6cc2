"""Devices, and the training and validation rows as tensors on one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tuner.data.dataset import Rows, TrainingData, View
from tuner.errors import DataError, DeviceError
from tuner.spec import Metric
from tuner.trial import Precision, Scaling, Task

Part = Literal["train", "val"]

DATA_SHARE = 0.5  # of a GPU's free memory that rows may take; packs need the rest


def resolve_device(name: str, precision: Precision = "float32", *, double: bool = False) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` as a device of this machine.

    double: for work in float64, which Apple GPUs do not have: the CPU in their place. Raises DeviceError for a device
    that is not there, or that has no products of this precision.
    """
    device = _named(name)
    check_precision(device, precision)
    return device if has_float64(device) or not double else torch.device("cpu")


def has_float64(device: torch.device) -> bool:
    """Whether a device has numbers of double precision at all."""
    return device.type != "mps"


def for_sums(tensor: Tensor) -> Tensor:
    """The tensor where it can be summed up in float64: where it is, or on the host."""
    return tensor if has_float64(tensor.device) else tensor.cpu()


def check_precision(device: torch.device, precision: Precision) -> None:
    """Raises DeviceError when a device cannot multiply at this precision, see :mod:`tuner.learning.products`."""
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        missing = "needs an NVIDIA GPU of compute capability 8.0 or above"
    elif precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        missing = "needs compute capability 8.0 or above on an NVIDIA GPU"
    elif precision == "bf16" and device.type == "mps":
        missing = "is not supported on Apple GPUs"
    else:
        return
    raise DeviceError(
        f"training.precision {precision} {missing}, and device {str(device)!r} is none; "
        "use another device, or a study with precision float32"
    )


def computes(device: torch.device) -> bool:
    """Whether a device still computes. After a fault of a kernel or of the card itself every call of the process fails
    there, whatever it is about.
    """
    try:
        return int(torch.ones(2, device=device).sum()) == 2
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False


def _named(name: str) -> torch.device:
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
class DeviceView:
    """The rows of one view: one scaling of the features, one fold. Slices of what :class:`DeviceData` holds.

    x: (n, D); y: (n,) int64 classes or floats of x's dtype.
    first_train, first_val: where its rows begin among those of all views. target_sd: the unit of a regression target.
    """

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    first_train: int
    first_val: int
    target_sd: float

    def part(self, part: Part) -> tuple[Tensor, Tensor]:
        """Features and targets of one part."""
        return (self.x_train, self.y_train) if part == "train" else (self.x_val, self.y_val)


@dataclass(frozen=True, kw_only=True)
class DeviceData:
    """Training and validation rows of all views, those of one view after those of another.

    x: (n of all views, D); y likewise. A view that has fewer features than another has zeros at the end.
    spans: of each view (scaling, fold), see :class:`Span`.
    device: where packs train on them. streamed: they are too many for it, stay in the host's memory and come in chunks,
        see :mod:`tuner.learning.stream`; otherwise they are there.
    """

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    spans: Mapping[tuple[Scaling, int], Span]
    task: Task
    n_outputs: int
    device: torch.device
    streamed: bool = False

    @property
    def n_features(self) -> int:
        """D of the view that has most."""
        return self.x_train.shape[1]

    def features_of(self, scaling: Scaling) -> int:
        """D of the views of one scaling. Raises KeyError when the data have none."""
        return self.spans[scaling, 0].features

    @property
    def dtype(self) -> torch.dtype:
        return self.x_train.dtype

    @property
    def folds(self) -> int:
        """How many folds a trial has; 1 without folds."""
        return 1 + max(fold for _, fold in self.spans)

    def view(self, scaling: Scaling, fold: int = 0) -> DeviceView:
        """The rows of one view. Raises KeyError when the data have no such view."""
        span = self.spans[scaling, fold]
        train, val, own = slice(*span.train), slice(*span.val), slice(span.features)
        return DeviceView(
            x_train=self.x_train[train, own],
            y_train=self.y_train[train],
            x_val=self.x_val[val, own],
            y_val=self.y_val[val],
            first_train=span.train[0],
            first_val=span.val[0],
            target_sd=span.target_sd,
        )

    @classmethod
    def place(cls, data: TrainingData, device: torch.device, dtype: torch.dtype = torch.float32) -> DeviceData:
        """The rows of all views for packs on ``device``; on a CPU the rows of a single view share its memory."""
        return cls.of_views(data.views, data.task, data.n_outputs, device, dtype)

    @classmethod
    def of_views(
        cls,
        views: Mapping[tuple[Scaling, int], View],
        task: Task,
        n_outputs: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        budget: int | None = None,
    ) -> DeviceData:
        """The rows of any views of one table. n_outputs: C, or 1 for regression.

        budget: bytes that the rows may take on the device; None: half of a GPU's free memory, no limit elsewhere.
        """
        if budget is None and device.type == "cuda":
            budget = int(DATA_SHARE * torch.cuda.mem_get_info(device)[0])
        rows = sum(len(part) for view in views.values() for part in (view.train, view.val))
        numbers = rows * (1 + max(view.train.x.shape[1] for view in views.values()))
        streamed = budget is not None and numbers * dtype.itemsize > budget
        place = torch.device("cpu") if streamed else device
        x_train, y_train = tensors([view.train for view in views.values()], place, dtype)
        x_val, y_val = tensors([view.val for view in views.values()], place, dtype)
        spans, train, val = {}, 0, 0
        widest = {s: max(v.train.x.shape[1] for (of, _), v in views.items() if of == s) for s, _ in views}
        for key, view in views.items():
            spans[key] = Span(
                train=(train, train + len(view.train)),
                val=(val, val + len(view.val)),
                features=widest[key[0]],
                target_sd=view.target_sd,
            )
            train, val = spans[key].train[1], spans[key].val[1]
        return cls(
            x_train=x_train,
            y_train=y_train,
            x_val=x_val,
            y_val=y_val,
            spans=spans,
            task=task,
            n_outputs=n_outputs,
            device=device,
            streamed=streamed,
        )

    def check(self, metric: Metric) -> None:
        """Raises DataError where ``metric`` is not defined on the validation rows of some view."""
        if metric == "roc_auc":
            for (_, fold), span in self.spans.items():
                if len(torch.unique(self.y_val[slice(*span.val)])) < 2:
                    raise DataError(
                        f"metric roc_auc ranks classes against each other, and all validation rows"
                        f"{f' of fold {fold}' if self.folds > 1 else ''} are of one class; "
                        "use another metric, or another data.split"
                    )


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where a view's rows lie among those of all views, (first, end), how many features they have, and its regression
    target's unit.
    """

    train: tuple[int, int]
    val: tuple[int, int]
    features: int
    target_sd: float


def tensors(parts: Sequence[Rows], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows of all parts, one after the other: x (n, D) as ``dtype`` and y (n,) as int64 classes or ``dtype``; zeros
    for features that a part lacks.

    A single part that needs no other device and dtype is not copied: the tensors share its memory.
    """
    kind = torch.int64 if parts[0].y.dtype == np.int64 else dtype
    return _joined([part.x for part in parts], device, dtype), _joined([part.y for part in parts], device, kind)


def _joined(arrays: Sequence[npt.NDArray[Any]], device: torch.device, dtype: torch.dtype) -> Tensor:
    if len(arrays) == 1:
        only = arrays[0]
        return torch.from_numpy(only if only.flags.writeable else only.copy()).to(device, dtype)
    shape = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
    joined = torch.zeros(sum(map(len, arrays)), *shape, device=device, dtype=dtype)
    for piece, array in zip(torch.split(joined, [len(array) for array in arrays]), arrays, strict=True):
        own = piece[:, : array.shape[1]] if array.ndim > 1 else piece
        own.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))
    return joined
