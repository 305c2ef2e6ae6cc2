"""Devices by name, and what is said when one is not there."""

import numpy as np
import pytest
import torch

from tuner.data.dataset import Rows, View
from tuner.errors import DataError, DeviceError
from tuner.learning.device import DeviceData, computes, resolve_device, tensors


def test_auto_is_a_device_of_this_machine() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


def test_absent_and_unknown_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, message in [
        ("cuda", "torch sees no CUDA device here; use --device cpu"),
        ("mps", "torch sees no Apple GPU here"),
        ("gpu", "device 'gpu' is not known; use auto, cpu, cuda"),
        ("xpu", "device 'xpu' is not supported"),
    ]:
        with pytest.raises(DeviceError, match=message):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="there are 2 CUDA devices, numbered from 0"):
        resolve_device("cuda:2")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cuda") == torch.device("cuda", 0)


def test_a_single_view_shares_its_memory() -> None:
    rows = Rows(x=np.ones((3, 2), dtype=np.float32), y=np.array([0, 1, 1]))
    view = View(train=rows, val=rows, target_mean=0.0, target_sd=1.0)
    data = DeviceData.of_views({("standard", 0): view}, "classification", 2, torch.device("cpu"))
    rows.x[1, 1] = 7
    assert data.x_train[1, 1] == 7
    twice = DeviceData.of_views(
        {("standard", 0): view, ("standard", 1): view}, "classification", 2, torch.device("cpu")
    )
    assert torch.equal(twice.view("standard", 1).x_train, twice.view("standard", 0).x_train)
    assert (twice.folds, len(twice.x_train)) == (2, 6)


def test_an_area_under_the_curve_needs_two_classes() -> None:
    many = Rows(x=np.ones((2, 1), dtype=np.float32), y=np.array([0, 1]))
    single = Rows(x=np.ones((2, 1), dtype=np.float32), y=np.array([1, 1]))
    views = {
        ("standard", fold): View(train=many, val=val, target_mean=0.0, target_sd=1.0)
        for fold, val in enumerate([many, single])
    }
    data = DeviceData.of_views(views, "classification", 2, torch.device("cpu"))
    data.check("error")
    with pytest.raises(DataError, match="all validation rows of fold 1 are of one class"):
        data.check("roc_auc")


def test_rows_become_tensors() -> None:
    x = np.ones((3, 2), dtype=np.float32)
    features, classes = tensors([Rows(x=x, y=np.array([0, 1, 2]))], torch.device("cpu"), torch.float64)
    assert (features.dtype, classes.dtype) == (torch.float64, torch.int64)
    _, target = tensors([Rows(x=x, y=np.ones(3, dtype=np.float32))], torch.device("cpu"), torch.float64)
    assert target.dtype == torch.float64


def test_a_device_computes_unless_a_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert computes(torch.device("cpu"))
    for error, expected in ((torch.AcceleratorError("fault"), False), (torch.OutOfMemoryError("full"), True)):

        def fail(*_: object, error: RuntimeError = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(torch, "ones", fail)
        assert computes(torch.device("cpu")) is expected
