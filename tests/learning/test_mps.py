"""What an Apple GPU trains with: the plain torch kernels, in operations that it has, without float64.

There is none here. So a pack trains on the CPU in its place while every operation is looked at: torch's own table says
which have a kernel for it, and on its side no number may be of double precision.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.learning.packs import METRIC, lane_of, make_config, make_data
from tests.learning.test_lanes import FORMS, NUMBERS, lanes_with
from tuner.errors import DeviceError
from tuner.learning import device as device_module
from tuner.learning import lanes as lanes_module
from tuner.learning import memory
from tuner.learning.device import for_sums, resolve_device
from tuner.learning.kernels import kernels_for
from tuner.learning.kernels.reference import ReferenceKernels
from tuner.learning.lanes import Lane, Pack
from tuner.learning.memory import is_out_of_memory, memory_budget
from tuner.trial import Optimizer

MPS = torch.device("mps")
OF_NUMPY = {"lift_fresh", "detach"}  # what torch makes a tensor from an array with, on the host


@cache
def operations_of_mps() -> frozenset[str]:
    """The operations that torch has a kernel of for Apple GPUs, or that are made of such."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    names: dict[str, dict[str, Any]] = {}
    for entry in yaml.load(table.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        names[entry["func"].partition("(")[0]] = entry

    def there(name: str) -> bool:
        entry = names[name]
        if "structured_delegate" in entry:
            return there(entry["structured_delegate"])
        keys = {key.strip() for listed in entry.get("dispatch", {"CompositeImplicit": ""}) for key in listed.split(",")}
        return any(key == "MPS" or key.startswith("Composite") for key in keys)

    return frozenset(name for name in names if there(name))


class AppleGpu(TorchDispatchMode):
    """Refuses what an Apple GPU would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        assert name in operations_of_mps(), name
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            # A number that torch wraps as a tensor of no dimension stays on the host, and so does a numpy array's view.
            if isinstance(tensor, torch.Tensor) and tensor.ndim and name not in OF_NUMPY:
                assert tensor.dtype != torch.float64, name
        return found


@pytest.fixture
def _apple_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything of a pack happens on the device, but for what it takes to the host to sum it up."""
    brought: list[torch.Tensor] = []

    def to_host(tensor: torch.Tensor) -> torch.Tensor:
        brought.append(tensor.clone())
        return brought[-1]

    def on_host(function: Any, place: int) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            assert any(args[place] is tensor for tensor in brought), "this would be computed in float64 on the device"
            with _disable_current_modes():
                return function(*args, **options)

        return call

    def row_loss(*args: Any) -> torch.Tensor:
        """Whose mean is taken in float64 at once."""
        return on_host(host_row_loss, 1)(*args).numpy().view(HostArray)  # type: ignore[no-any-return]

    host_row_loss = lanes_module.row_loss
    monkeypatch.setattr(lanes_module, "has_float64", lambda _: False)
    monkeypatch.setattr(lanes_module, "for_sums", to_host)
    monkeypatch.setattr(lanes_module, "row_loss", row_loss)
    monkeypatch.setattr(lanes_module, "score", on_host(lanes_module.score, 1))
    monkeypatch.setattr(lanes_module, "balanced_weights", on_host(lanes_module.balanced_weights, 0))
    with AppleGpu():
        yield


class HostArray(np.ndarray):
    """A row loss on the host; as a tensor it would be looked at as one of the device."""

    def mean(self, axis: int, dtype: torch.dtype) -> Any:  # type: ignore[override]
        with _disable_current_modes():
            return torch.from_numpy(self.view(np.ndarray)).mean(axis, dtype=dtype)


def train(lanes: list[Lane], task: str = "classification") -> tuple[Pack, np.ndarray]:
    with _disable_current_modes():
        data = make_data(task, dtype=torch.float32)  # type: ignore[arg-type]
    pack = Pack(lanes, data, ReferenceKernels())
    losses = [pack.train_epoch([epoch] * len(lanes)) for epoch in (1, 2)]
    hinge_or_square = lanes[0].config.loss in ("hinge", "square")
    pack.validate("error" if hinge_or_square else METRIC[data.task])
    pack.mark_best([0])
    pack.restore(0, pack.export(0))
    return pack, np.array(losses)


BY_NAME = {"ids": lambda changes: "-".join(map(str, changes.values())) or "default"}


@pytest.mark.usefixtures("_apple_gpu")
@pytest.mark.parametrize("changes", [*FORMS, *NUMBERS, {"keep": "best"}], **BY_NAME)
def test_a_pack_asks_for_nothing_that_an_apple_gpu_lacks(changes: dict[str, object]) -> None:
    _, losses = train(lanes_with(changes))
    assert np.isfinite(losses).all()


@pytest.mark.usefixtures("_apple_gpu")
@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_nor_in_regression(optimizer: Optimizer) -> None:
    _, losses = train(lanes_with({"optimizer": optimizer}), "regression")
    assert np.isfinite(losses).all()


def test_negative_control_double_precision_and_a_missing_operation_are_noticed() -> None:
    with pytest.raises(AssertionError, match="_to_copy"), AppleGpu():
        torch.ones(3).double()
    with pytest.raises(AssertionError, match="geqrf"), AppleGpu():
        torch.geqrf(torch.ones(3, 3))


def test_losses_summed_up_in_float32_are_those_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = [lane_of(make_config(dropout=0.2, width=5 + i), i) for i in range(3)]
    _, expected = train(lanes)
    monkeypatch.setattr(lanes_module, "has_float64", lambda _: False)
    pack, found = train(lanes)
    assert pack.loss.dtype == torch.float32
    assert np.abs(found - expected).max() < 1e-6


def test_it_gets_the_plain_kernels() -> None:
    assert isinstance(kernels_for(MPS), ReferenceKernels)


def test_work_in_float64_goes_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == MPS
    assert resolve_device("mps", double=True) == torch.device("cpu")
    assert resolve_device("cpu", double=True) == torch.device("cpu")
    with pytest.raises(DeviceError, match="bf16 is not supported on Apple GPUs"):
        resolve_device("mps", "bf16")
    assert not device_module.has_float64(MPS)
    here = torch.ones(2)
    assert for_sums(here) is here


def test_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1000)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 200)
    assert memory_budget(MPS) == memory.SHARE * 800
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GiB)"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
