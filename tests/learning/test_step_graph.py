"""Micro-steps out of fixed buffers train exactly as micro-steps launched one by one from the epoch's tables."""

import logging
from collections.abc import Sequence

import pytest
import torch

from tests.learning.packs import lane_of, make_config, make_data
from tests.learning.test_lanes import MIXED
from tuner.learning import step_graph
from tuner.learning.kernels.cpu import CpuKernels
from tuner.learning.kernels.interface import Kernels, Step
from tuner.learning.kernels.reference import ReferenceKernels
from tuner.learning.lanes import Lane, Pack
from tuner.learning.step_graph import StepGraph

FORMS: list[dict[str, object]] = [
    {},
    {"optimizer": "sgd", "clip_norm": 0.1, "l2": 0.1},
    {"averaging": "ema", "averaging_start": 0.0, "input_dropout": 0.2},
    {"norm": "layer", "residual": True, "activation": "sigmoid"},
    {"norm": "batch", "batch_size": 16},
]
OF_FORMS = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())) or "default")


def lanes_of(form: dict[str, object]) -> list[Lane]:
    return [lane_of(make_config(**{**lane, **form}), number) for number, lane in enumerate(MIXED)]


def state(pack: Pack) -> list[torch.Tensor]:
    return [pack.theta, pack.mean, pack.gradient, pack.loss, *pack.moments, *pack.running]


def assert_equal(one: Pack, other: Pack) -> None:
    for ours, theirs in zip(state(one), state(other), strict=True):
        assert torch.equal(ours, theirs)


def train(pack: Pack, epochs: Sequence[int] = (1, 2, 4)) -> Pack:
    for epoch in epochs:  # one is skipped: what was prepared for it must not be used
        pack.train_epoch([epoch] * pack.K)
    return pack


@OF_FORMS
@pytest.mark.parametrize("kernels", [ReferenceKernels(), CpuKernels()], ids=["reference", "cpu"])
def test_fixed_buffers_train_exactly_as_tables(kernels: Kernels, form: dict[str, object]) -> None:
    data, lanes = make_data(), lanes_of(form)
    assert_equal(train(Pack(lanes, data, kernels, graphed=True)), train(Pack(lanes, data, kernels, graphed=False)))


@OF_FORMS
def test_an_idle_step_changes_nothing(form: dict[str, object]) -> None:
    """So that warming up before capture needs no copy of what is trained."""
    data, lanes = make_data(), lanes_of(form)
    warm, cold = Pack(lanes, data), Pack(lanes, data)
    for epochs in ((1, 2), (3,)):
        warm.loss.zero_()
        cold.loss.zero_()
        for _ in range(2):
            StepGraph(3, warm.K, warm.kernels, data.device, data.dtype).idle(warm._train_step)
        assert torch.equal(warm.theta, cold.theta)
        assert_equal(train(warm, epochs), train(cold, epochs))


def test_each_micro_step_sees_its_own_row_of_the_tables() -> None:
    whole, real = torch.arange(4 * 3 * 2).view(4, 3, 2), torch.arange(4 * 5 * 2).view(4, 5, 2) / 2
    tables = StepGraph(4, 2, ReferenceKernels(), torch.device("cpu"), torch.float64)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def step(numbers: Step, rows: torch.Tensor) -> None:
        assert torch.equal(numbers.whole, rows)
        seen.append((rows.clone(), numbers.real.clone()))

    for factor in (1, 10):
        seen.clear()
        tables.run(step, factor * whole, factor * real)
        assert torch.equal(torch.stack([rows for rows, _ in seen]), factor * whole)
        assert torch.equal(torch.stack([numbers for _, numbers in seen]), factor * real)


@pytest.mark.gpu
@OF_FORMS
def test_a_graph_trains_as_eager_launches(form: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    data, lanes = make_data(device="cuda"), lanes_of(form)
    with caplog.at_level(logging.WARNING):
        replayed = train(Pack(lanes, data))
    assert not caplog.records, "capture must not fail"
    eager = train(Pack(lanes, data, graphed=False))
    for ours, theirs in zip(state(replayed), state(eager), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.gpu
def test_memory_that_runs_out_in_a_capture_is_no_reason_to_go_on_without_a_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "graph", full)
    with pytest.raises(torch.OutOfMemoryError):
        train(Pack(lanes_of({}), make_data(device="cuda")))


@pytest.mark.gpu
def test_a_failed_capture_is_said_once_and_trains_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, lanes = make_data(device="cuda"), lanes_of({})

    class Failing:
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        def __exit__(self, *_: object) -> None: ...

    step_graph._warn.cache_clear()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(torch.cuda, "graph", Failing)
        packs = [train(Pack(lanes, data)) for _ in range(2)]
    assert [record.getMessage().endswith("when stream is capturing") for record in caplog.records] == [True]
    assert_equal(packs[0], train(Pack(lanes, data, graphed=False)))
