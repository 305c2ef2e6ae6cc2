"""Whole packs on Triton's kernels: interpreted on the CPU, and on a CUDA device."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning.compiled import GPU, TRITON, without_interpreter
from tests.learning.packs import TOLERANCE, distance_from_plain, lane_of, make_config, make_data, mixed_configs
from tests.learning.test_lanes import FORMS, NUMBERS, UNLIKE, lanes_with, sharing_lanes, unlike_lanes
from tuner.learning import kernels
from tuner.learning.kernels import kernels_for
from tuner.learning.kernels.reference import ReferenceKernels
from tuner.learning.lanes import Pack
from tuner.trial import Optimizer, Task

# Between them: every head, kinds of optimizer, each way to fill a gradient, and all that some lanes only do.
INTERPRETED: list[dict[str, object]] = [
    {"activation": "gelu", "averaging": "ema", "averaging_start": 0.0, "class_weight": "balanced"},
    {"optimizer": "nesterov", "loss": "hinge", "clip_norm": 0.1, "l2": 0.3, "input_dropout": 0.3},
    {"optimizer": "rmsprop", "loss": "square", "norm": "layer", "residual": True},
]
BY_NAME = {"ids": lambda changes: "-".join(map(str, changes.values())) or "default"}


def test_where_triton_is_missing_cuda_gets_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.learning.kernels.find_spec", lambda _: None)
    assert isinstance(kernels_for(torch.device("cuda")), ReferenceKernels)


@without_interpreter
def test_where_triton_does_not_work_cuda_gets_the_reference(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    here = torch.device("cpu")  # where the interpreter runs the kernels
    assert kernels._compiles.__wrapped__(here)
    for failing, reason in ((fails, "Failed to find C compiler."), (lambda *_: None, "it computes wrongly")):
        monkeypatch.setattr("tuner.learning.kernels.cuda.CudaKernels.hidden_infer", failing)
        assert not kernels._compiles.__wrapped__(here)
        assert caplog.messages[-1].endswith(f"torch's own operations train instead, which is slower: {reason}")
    monkeypatch.setattr(kernels, "_compiles", lambda _: False)
    assert isinstance(kernels_for(torch.device("cuda")), ReferenceKernels)


@pytest.mark.gpu
def test_cuda_gets_the_compiled_kernels() -> None:
    from tuner.learning.kernels.cuda import CudaKernels

    assert isinstance(kernels_for(torch.device("cuda", 0)), CudaKernels)


@without_interpreter
@pytest.mark.parametrize("changes", INTERPRETED, **BY_NAME)
def test_interpreted_packs_equal_plain(changes: dict[str, object]) -> None:
    data, lanes = make_data(n=41), lanes_with(changes)
    assert distance_from_plain(Pack(lanes, data, TRITON.kernels, graphed=True), lanes, data, epochs=1) < TOLERANCE


@without_interpreter
def test_interpreted_packs_that_share_batches_equal_plain() -> None:
    data, lanes = make_data(n=41), sharing_lanes()
    pack = Pack(lanes, data, TRITON.kernels, graphed=True)
    assert distance_from_plain(pack, lanes, data, epochs=1) < TOLERANCE
    assert pack.shared


@without_interpreter
def test_interpreted_packs_of_unlike_features_equal_plain() -> None:
    data, lanes = make_data(n=41, views=UNLIKE), unlike_lanes({})
    assert distance_from_plain(Pack(lanes, data, TRITON.kernels, graphed=True), lanes, data, epochs=1) < TOLERANCE
    assert distance_from_plain(Pack(lanes[:1], data, TRITON.kernels), lanes[:1], data, epochs=1) < TOLERANCE


@without_interpreter
def test_buffers_that_take_many_tiles_equal_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = TRITON.kernels
    for name, value in {"TILE": 16, "COLUMNS": 8, "SUMMED_COLUMNS": 4}.items():
        monkeypatch.setattr(f"tuner.learning.kernels.cuda.{name}", value)
    data = make_data(n=9, features=11)
    shapes: list[dict[str, object]] = [
        {"width": 9, "depth": 2, "dropout": 0.4, "clip_norm": 0.1},
        {"width": 5, "depth": 1, "input_dropout": 0.5},
    ]
    lanes = [lane_of(make_config(batch_size=5, averaging="ema", **shape), i) for i, shape in enumerate(shapes)]
    found, expected = Pack(lanes, data, kernels), Pack(lanes, data, ReferenceKernels())
    losses = [pack.train_epoch([1, 1]) for pack in (found, expected)]
    assert np.abs(losses[0] - losses[1]).max() < TOLERANCE
    assert torch.allclose(found.mean, expected.mean, rtol=0, atol=TOLERANCE)
    assert torch.allclose(found.theta, expected.theta, rtol=0, atol=TOLERANCE)
    assert torch.allclose(found.outputs(data.x_val), expected.outputs(data.x_val), rtol=0, atol=TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", FORMS + NUMBERS, **BY_NAME)
def test_packs_equal_plain(changes: dict[str, object]) -> None:
    data, lanes = make_data(device="cuda"), lanes_with(changes)
    assert distance_from_plain(Pack(lanes, data), lanes, data) < TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_packs_equal_plain_in_regression(optimizer: Optimizer) -> None:
    data, lanes = make_data("regression", device="cuda"), lanes_with({"optimizer": optimizer})
    assert distance_from_plain(Pack(lanes, data), lanes, data) < TOLERANCE


@pytest.mark.gpu
@settings(max_examples=20, deadline=None)
@given(draw=st.data(), task=st.sampled_from(get_args(Task)))
def test_random_mixed_packs_equal_plain(draw: st.DataObject, task: Task) -> None:
    data = make_data(task, device="cuda")
    lanes = [lane_of(config, number) for number, config in enumerate(draw.draw(mixed_configs(task)))]
    assert distance_from_plain(Pack(lanes, data), lanes, data) < TOLERANCE


@pytest.mark.gpu
def test_packs_that_share_batches_equal_plain() -> None:
    data, lanes = make_data(device="cuda"), sharing_lanes()
    pack = Pack(lanes, data)
    assert distance_from_plain(pack, lanes, data) < TOLERANCE
    assert pack.shared
    assert pack._step_graph().captured
    pack.train_epoch([4, 3, 3, 3])  # no longer at one epoch: another graph
    assert not pack.shared
    assert pack._step_graph().captured


@pytest.mark.gpu
def test_packs_of_unlike_features_equal_plain() -> None:
    data, lanes = make_data(device="cuda", views=UNLIKE), unlike_lanes({})
    assert distance_from_plain(Pack(lanes, data), lanes, data) < TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reference_kernels_can_be_captured_too(dtype: torch.dtype) -> None:
    data, lanes = make_data(device="cuda", dtype=dtype), lanes_with({"clip_norm": 0.1, "averaging": "swa"})
    pack = Pack(lanes, data, ReferenceKernels())
    pack.train_epoch([1] * len(lanes))
    assert pack._step_graph().captured


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"norm": "batch"}, {"optimizer": "sgd", "clip_norm": 0.1}], **BY_NAME)
def test_two_runs_give_equal_bits(changes: dict[str, object]) -> None:
    data = make_data(n=3000, features=200, classes=10, dtype=torch.float32, device=GPU.device)
    runs = []
    for _ in range(2):
        lanes = [
            lane_of(make_config(**{"batch_size": 64, "width": 30 + 7 * i, "dropout": 0.2, **changes}), i)
            for i in range(16)
        ]
        pack = Pack(lanes, data)
        losses = [pack.train_epoch([epoch] * len(lanes)) for epoch in (1, 2)]
        runs.append((pack, losses))
    (first, losses), (second, others) = runs
    assert np.array_equal(losses, others)
    assert torch.equal(first.theta, second.theta)
    assert torch.isfinite(first.theta).all()


@pytest.mark.gpu
def test_float32_follows_float64_on_a_large_pack() -> None:
    """Stated tolerance: 1e-3 on the training loss after two epochs of AdamW, 64 unlike lanes."""
    losses = []
    for dtype in (torch.float32, torch.float64):
        data = make_data(n=3000, features=200, classes=10, dtype=dtype, device="cuda")
        shapes = [{"batch_size": 16 << i % 4, "width": 17 + 3 * i, "depth": 1 + i % 3} for i in range(64)]
        lanes = [lane_of(make_config(dropout=0.2, activation="gelu", **shape), i) for i, shape in enumerate(shapes)]
        pack = Pack(lanes, data)
        losses.append([pack.train_epoch([epoch] * len(lanes)) for epoch in (1, 2)])
    assert np.abs(np.array(losses[0]) - np.array(losses[1])).max() < 1e-3
