"""The draws of many lanes at once equal the numpy specification, bit for bit."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.learning.packs import lane_of, make_config, make_data
from tuner.learning import draws
from tuner.learning.lanes import Pack
from tuner.learning.randomness import epoch_order
from tuner.trial import Initialization, Norm

ON_DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@given(
    keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    epoch=st.integers(1, 2**20),
    n=st.integers(1, 300),
)
def test_orders_of_any_keys_equal_the_specification(keys: list[int], epoch: int, n: int) -> None:
    assert_orders_equal(keys, epoch, n, "cpu")


@ON_DEVICES
def test_orders_of_many_rows_in_pieces_equal_the_specification(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "PIECE", 100_000)
    assert_orders_equal([0, 1, 2**63, 2**64 - 1, 12345], 3, 40_000, device)


def assert_orders_equal(keys: list[int], epoch: int, n: int, device: str) -> None:
    epochs = np.arange(epoch, epoch + len(keys))
    found = draws.orders(np.array(keys, dtype=np.uint64), epochs, n, torch.device(device)).cpu().numpy()
    for key, at, order in zip(keys, epochs, found, strict=True):
        assert np.array_equal(order, epoch_order(key, int(at), n))


@ON_DEVICES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("initialization", get_args(Initialization))
def test_initial_weights_drawn_together_equal_those_drawn_lane_by_lane(
    initialization: Initialization, norm: Norm, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "PIECE", 300)
    shapes = [(5, 1), (24, 3), (9, 2), (16, 3)]
    configs = [make_config(width=w, depth=d, norm=norm, initialization=initialization) for w, d in shapes]
    lanes = [lane_of(config, number) for number, config in enumerate(configs)]
    alone = Pack(lanes, make_data(dtype=dtype))
    together = Pack(lanes, make_data(dtype=dtype, device=device))
    for weight in together.W.values():
        weight.fill_(7)
    together.parameters.fill_together()
    assert torch.equal(together.theta.cpu(), alone.theta)
    assert int(torch.count_nonzero(alone.theta)) > 0
