"""The compiled kernels equal the reference, one call at a time, float32 and float64."""

from typing import get_args

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.learning.compiled import COMPILED, Compiled
from tuner.learning.kernels import cpu, kernels_for
from tuner.learning.kernels.cpu import CpuKernels
from tuner.learning.kernels.interface import Blocks, Kernels, Lanes, Step
from tuner.learning.kernels.reference import ReferenceKernels, dropout_bits
from tuner.learning.metrics import Head, batch_loss
from tuner.learning.randomness import bits, dropout_threshold
from tuner.trial import Activation, Optimizer

K, B, D, H, C, N = 3, 6, 4, 11, 5, 40
DTYPES = [torch.float32, torch.float64]
CLOSE = {torch.float32: 3e-6, torch.float64: 1e-14}


class Case:
    """Random buffers and the numbers of three unlike lanes, on one device."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu") -> None:
        self.generator = torch.Generator().manual_seed(11)
        self.dtype, self.device = dtype, device
        self.whole = torch.tensor([[0, 6, 12], [6, 4, 0], [1, 0, 1]], device=device)
        self.real = torch.tensor(
            [[1 / 6, 1 / 9, 1.0], [0.1, 0.2, 0.05], [0.9, 0.5, 1.0], [0.99, 0.9, 1.0], [0.0, 0.3, 1.0]]
        ).to(device, dtype)
        self.lane_whole = torch.tensor(
            [
                [11, 7, 1],
                [0, dropout_threshold(0.25), dropout_threshold(0.9)],
                [0, dropout_threshold(0.5), dropout_threshold(0.1)],
            ],
            device=device,
        )
        self.lane_real = torch.tensor(
            [
                [1.0, 1 / 0.75, 10.0],  # keep scale
                [1.0, 2.0, 1 / 0.9],  # input scale
                [0.0, 0.1, 0.3],  # smoothing
                [0.0, 0.01, 0.2],  # l2
                [0.1, 0.0, 0.3],  # coupled decay
                [0.9, 0.0, 0.5],  # momentum
                [0.999, 0.9, 0.99],  # beta2
                [0.0, 0.5, 1e3],  # clip
            ]
        ).to(device, dtype)
        self.words = self.whole_numbers(2**32, 2, K)
        self.class_weights = torch.linspace(0.0, 3.0, K * C, device=device).view(K, C).to(dtype)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.device, self.dtype)

    def whole_numbers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, shape, generator=self.generator).to(self.device)

    def step(self, kernels: Kernels) -> Step:
        return Step(kernels.handle(self.whole), kernels.handle(self.real))

    def lanes(self, kernels: Kernels) -> Lanes:
        return Lanes(*map(kernels.handle, (self.lane_whole, self.lane_real, self.class_weights)))


def assert_close(found: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    assert float((found.double() - expected.double()).abs().max()) / scale < CLOSE[expected.dtype]


def test_cpu_gets_the_compiled_kernels() -> None:
    assert isinstance(kernels_for(torch.device("cpu")), CpuKernels)


def test_dropout_bits_equal_the_specification() -> None:
    words = torch.tensor([[1, 2**32 - 1], [77, 123456789]])
    rows = torch.tensor([[0, 5, 10**6], [1, 2, 2**31]])
    found = dropout_bits(words, rows, 9)
    for k in range(2):
        expected = bits(int(words[0, k]), int(words[1, k]), rows[k].numpy(), 9)
        assert np.array_equal(found[k].numpy(), expected.astype(np.int64))


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", get_args(Activation))
def test_hidden_forward(activation: Activation, dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    z, bias = case.random(K, B, H), case.random(K, H)
    for k, width in enumerate(case.lane_whole[0].tolist()):
        z[k, :, width:], bias[k, width:] = 0, 0
    results = []
    for kernels in (ReferenceKernels(), compiled.kernels):
        z_, out = z.clone(), torch.zeros_like(z)
        handle = kernels.handle
        kernels.hidden_forward(
            activation,
            handle(z_),
            handle(bias),
            handle(case.words),
            case.step(kernels),
            case.lanes(kernels),
            handle(out),
        )
        results.append((z_, out))
    dropped = (results[0][1] == 0).double().mean((1, 2))
    assert dropped[2] > dropped[0], "the lane that drops most has most zeros"
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected)


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", get_args(Activation))
def test_hidden_infer(activation: Activation, dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    z, bias = case.random(K, B, H), case.random(K, H)
    for k, width in enumerate(case.lane_whole[0].tolist()):
        z[k, :, width:], bias[k, width:] = 0, 0
    expected, found = z.clone(), z.clone()
    for kernels, buffer in ((ReferenceKernels(), expected), (compiled.kernels, found)):
        kernels.hidden_infer(activation, kernels.handle(buffer), kernels.handle(bias), case.lanes(kernels))
    assert_close(found, expected)


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_hidden_backward(accumulate: bool, dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    da, derivative, gradient = case.random(K, B, H), case.random(K, B, H), case.random(K, H)
    results = []
    for kernels in (ReferenceKernels(), compiled.kernels):
        da_, gradient_ = da.clone(), gradient.clone()
        kernels.hidden_backward(kernels.handle(da_), kernels.handle(derivative), kernels.handle(gradient_), accumulate)
        results.append((da_, gradient_))
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected)
    assert torch.allclose(results[1][1] - da_.sum(1), gradient if accumulate else torch.zeros_like(gradient), atol=1e-4)


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("head", get_args(Head))
def test_head(head: Head, accumulate: bool, dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    outputs = 1 if head == "square" else C
    logits, bias, gradient = 3 * case.random(K, B, outputs), case.random(K, outputs), case.random(K, outputs)
    y = case.random(K, B) if head == "square" else case.whole_numbers(C, K, B)
    results = []
    for kernels in (ReferenceKernels(), compiled.kernels):
        logits_, gradient_ = logits.mT.clone(memory_format=torch.contiguous_format), gradient.clone()
        loss = torch.ones(K, dtype=torch.float64, device=case.device)
        handle = kernels.handle
        kernels.head(
            head,
            handle(logits_),
            handle(bias),
            handle(y),
            case.step(kernels),
            case.lanes(kernels),
            handle(gradient_),
            handle(loss),
            accumulate,
        )
        results.append((logits_, gradient_, loss.to(dtype)))
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected)
    assert results[0][0][2].abs().max() == 0, "a lane without rows has no gradient"
    assert results[0][2][2] == 1, "a lane without rows has no loss"


@pytest.mark.parametrize("head", get_args(Head))
def test_the_heads_gradient_is_that_of_torchs_loss(head: Head) -> None:
    case = Case(torch.float64)
    outputs = 1 if head == "square" else C
    logits, bias = 3 * case.random(K, B, outputs), case.random(K, outputs)
    y = case.random(K, B) if head == "square" else case.whole_numbers(C, K, B)
    kernels = ReferenceKernels()
    full, count = case.step(kernels), 6
    full.whole[1, :], full.real[0, :] = count, 1 / count
    found, total = logits.mT.clone(memory_format=torch.contiguous_format), torch.zeros(K, dtype=torch.float64)
    kernels.head(head, found, bias, y, full, case.lanes(kernels), torch.zeros_like(bias), total, False)
    for k in range(K):
        leaf = (logits[k] + bias[k]).requires_grad_()
        weights = None if head == "square" else case.class_weights[k]
        loss = batch_loss(head, leaf, y[k], float(case.lane_real[2, k]), weights)
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        assert torch.allclose(found[k].T, leaf.grad, rtol=0, atol=1e-14)
        assert total[k].item() / count == pytest.approx(loss.item(), abs=1e-12)


TOTAL = 36 + 14


def blocks_for(kernels: Kernels) -> Blocks:
    """Two blocks that decay and one that does not; the last one of two lanes."""
    columns = ([0, 30, 36], [10, 2, 7], [3, 3, 2], [1, 0, 1])
    return Blocks(*(kernels.handle(torch.tensor(column)) for column in columns))


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_optimize(optimizer: Optimizer, clear: bool, dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    flats = [case.random(TOTAL) for _ in range(2)] + [case.random(TOTAL).abs() for _ in range(2)]
    coefficients = torch.tensor([1.0, 0.5, 0.2], dtype=dtype, device=case.device)
    moments_of = {"sgd": 1, "nesterov": 1}
    results = []
    for kernels in (ReferenceKernels(), compiled.kernels):
        theta, gradient, *moments = (flat.clone() for flat in flats)
        handle = kernels.handle
        kernels.optimize(
            optimizer,
            handle(theta),
            handle(gradient),
            tuple(handle(m) for m in moments[: moments_of.get(optimizer, 2)]),
            handle(coefficients),
            blocks_for(kernels),
            case.step(kernels),
            case.lanes(kernels),
            clear,
        )
        results.append((theta, gradient, *moments))
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected)
    assert torch.equal(results[1][0][10:20], flats[0][10:20]), "lane 1 does not step now"
    assert not torch.equal(results[1][0][:10], flats[0][:10])


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather(dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    x, y = case.random(N, D), torch.arange(N, device=case.device)
    order = torch.stack([torch.randperm(N, generator=case.generator) for _ in range(K)]).to(case.device)
    for kernels in (ReferenceKernels(), compiled.kernels):
        x_out, y_out = x.new_zeros(K, B, D), y.new_zeros(K, B)
        handle = kernels.handle
        kernels.gather(handle(x), handle(y), handle(order), case.step(kernels), handle(x_out), handle(y_out))
        for k, (start, count, _) in enumerate(case.whole.T.tolist()):
            rows = order[k, start : start + count]
            assert torch.equal(x_out[k, :count], x[rows])
            assert torch.equal(y_out[k, :count], y[rows])


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_of_rows_that_lanes_share(dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    case.whole[:] = case.whole[:, :1]
    start, count, _ = case.whole[:, 0].tolist()
    assert count > 1
    x, y = case.random(N, D + 3), torch.arange(N, device=case.device)  # the last features are of other lanes
    order = torch.randperm(N, generator=case.generator).to(case.device).expand(K, N).contiguous()
    for kernels in (ReferenceKernels(), compiled.kernels):
        x_out, y_out = x.new_zeros(1, B, D), y.new_zeros(K, B)
        handle = kernels.handle
        kernels.gather(handle(x), handle(y), handle(order), case.step(kernels), handle(x_out), handle(y_out))
        rows = order[0, start : start + count]
        assert torch.equal(x_out[0, :count], x[rows, :D])
        assert torch.equal(y_out[:, :count], y[rows].expand(K, count))


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
def test_clip(dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    theta, gradient = case.random(TOTAL), case.random(TOTAL)
    results = []
    for kernels in (ReferenceKernels(), compiled.kernels):
        coefficients = torch.full((K,), 7.0, dtype=dtype, device=case.device)
        handle = kernels.handle
        lanes = case.lanes(kernels)
        kernels.clip(handle(theta), handle(gradient), blocks_for(kernels), lanes, handle(coefficients))
        results.append(coefficients)
    assert_close(results[1], results[0])
    assert results[0][0] == 1, "lane 0 never clips"
    assert results[0][1] < 1
    assert results[0][2] == 1, "lane 2 is below its limit"


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
def test_average(dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    theta, mean = case.random(TOTAL), case.random(TOTAL)
    results = []
    for kernels in (ReferenceKernels(), compiled.kernels):
        found = mean.clone()
        kernels.average(kernels.handle(theta), kernels.handle(found), blocks_for(kernels), case.step(kernels))
        results.append(found)
    assert_close(results[1], results[0])
    assert torch.equal(results[0][:10], mean[:10]), "rate 0 leaves it alone"
    assert torch.equal(results[0][20:30], theta[20:30]), "rate 1 follows"


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES)
def test_drop_inputs(dtype: torch.dtype, compiled: Compiled) -> None:
    case = Case(dtype, compiled.device)
    x = case.random(K, B, D)
    results = []
    for kernels in (ReferenceKernels(), compiled.kernels):
        found = x.clone()
        kernels.drop_inputs(kernels.handle(found), kernels.handle(case.words), case.step(kernels), case.lanes(kernels))
        results.append(found)
    for k, count in enumerate([6, 4]):
        assert_close(results[1][k, :count], results[0][k, :count])
    assert torch.equal(results[0][0], x[0])
    assert (results[0][1] == 0).any()


def test_where_no_cache_can_be_written_kernels_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])

    def twice(x: float) -> float:
        return 2 * x

    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(twice)
    assert cpu._compiled(twice)(1.5) == 3.0
