"""Matrix products at less than full precision: what they round, and what that does to a training."""

import numpy as np
import pytest
import torch

from tests.learning.packs import lane_of, make_config, make_data
from tuner.errors import DeviceError
from tuner.learning.device import resolve_device
from tuner.learning.lanes import Pack
from tuner.learning.products import Products
from tuner.learning.trainer import LaneTask, train_to_end
from tuner.trial import Precision


@pytest.mark.parametrize("keep", [False, True])
def test_bf16_products_are_those_of_rounded_factors(keep: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, start = (torch.randn(*shape, generator=generator) for shape in ((3, 7, 33), (3, 33, 5), (3, 7, 5)))
    exact = torch.bmm(a, b)
    found, plain = start.clone(), torch.empty_like(start)
    products = Products("bf16")
    products.add(found, a, b, keep=keep)
    products.set(plain, a, b)
    rounded = torch.bmm(a.bfloat16().float(), b.bfloat16().float())
    assert torch.equal(found, start + plain if keep else plain)
    assert (plain - rounded).abs().max() < 2**-7 * rounded.abs().max(), "sums in float32, rounded once"
    assert 0 < (plain - exact).abs().max() < 2**-5 * exact.abs().max()


def test_full_precision_products_are_torchs() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    out = torch.ones(2, 3, 5)
    Products("float32").add(out, a, b, keep=True)
    assert torch.equal(out, torch.baddbmm(torch.ones(2, 3, 5), a, b))
    Products("float32").set(out, a, b)
    assert torch.equal(out, torch.bmm(a, b))


@pytest.mark.parametrize(("precision", "inside"), [("float32", "highest"), ("tf32", "high"), ("bf16", "highest")])
def test_torchs_own_precision_is_set_and_put_back(precision: Precision, inside: str) -> None:
    before = torch.get_float32_matmul_precision()
    with Products(precision).scope():
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == before


def test_bf16_learns_as_well_as_float32() -> None:
    """Stated tolerance: two points of validation accuracy, over 16 lanes after 40 epochs."""
    data = make_data(n=600, features=20, classes=4, dtype=torch.float32)
    errors = {}
    for precision in ("float32", "bf16"):
        tasks = []
        for n in range(16):
            config = make_config(width=32, dropout=0.1 * (n % 3), max_epochs=40, precision=precision)
            tasks.append(LaneTask(lane=lane_of(config, n), target_epochs=40))
        states = train_to_end(tasks, data, "error")
        errors[precision] = np.array([state.progress.value for state in states.values()])
    assert errors["float32"].mean() < 0.2
    assert not np.array_equal(errors["bf16"], errors["float32"])
    assert abs(errors["bf16"].mean() - errors["float32"].mean()) < 0.02


def test_lanes_of_unlike_precision_are_no_pack() -> None:
    lanes = [lane_of(make_config(precision=precision), n) for n, precision in enumerate(["float32", "bf16"])]
    with pytest.raises(ValueError, match="one signature"):
        Pack(lanes, make_data())


def test_a_device_that_lacks_a_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu", "bf16") == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"tf32 needs an NVIDIA GPU .* and device 'cpu' is none; use another device"):
        resolve_device("cpu", "tf32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    for precision in ("tf32", "bf16"):
        with pytest.raises(DeviceError, match=rf"{precision} needs .*compute capability 8.0.* 'cuda:0' is none"):
            resolve_device("cuda:0", precision)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(DeviceError, match="bf16 is not supported on Apple GPUs"):
        resolve_device("mps", "bf16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert resolve_device("cuda", "tf32") == torch.device("cuda", 0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_less_precise_products_train_on_cuda(precision: Precision) -> None:
    resolve_device("cuda", precision)
    data = make_data(n=600, features=20, classes=4, dtype=torch.float32, device="cuda")
    tasks = [LaneTask(lane=lane_of(make_config(width=32, max_epochs=40, precision=precision)), target_epochs=40)]
    assert train_to_end(tasks, data, "error")[0].progress.value < 0.2
