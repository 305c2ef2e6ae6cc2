"""Rows that are streamed in chunks train every lane as rows that lie on the device, to the last bit."""

import numpy as np
import pytest
import torch

from tests.learning.packs import VIEWS, lane_of, make_config, make_data
from tests.learning.test_lanes import MIXED, UNLIKE, on_views, unlike_lanes
from tests.learning.test_step_graph import assert_equal
from tuner.learning import stream
from tuner.learning.kernels.cpu import CpuKernels
from tuner.learning.kernels.interface import Kernels
from tuner.learning.kernels.reference import ReferenceKernels
from tuner.learning.lanes import Lane, Pack
from tuner.learning.stream import RowStream

FORMS: list[dict[str, object]] = [
    {},
    {"input_dropout": 0.2, "optimizer": "sgd"},
    {"norm": "batch", "batch_size": 16, "averaging": "ema", "averaging_start": 0.0},
]
OF_FORMS = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())) or "default")
ON_DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture(params=[1, 3000, 2**26], ids=["one step a chunk", "some", "all"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", request.param)


def lanes_of(form: dict[str, object]) -> list[Lane]:
    return [lane_of(make_config(**{**lane, **form}), number) for number, lane in enumerate(MIXED)]


def test_rows_are_counted_as_they_lie_with_the_features_of_the_widest_view() -> None:
    views = (("standard", 0), ("robust", 0), ("piecewise", 0))
    there = make_data(views=views)  # type: ignore[arg-type]
    numbers = sum(tensor.numel() for tensor in (there.x_train, there.y_train, there.x_val, there.y_val))
    size = there.x_train.element_size()
    assert not make_data(views=views, budget=numbers * size).streamed  # type: ignore[arg-type]
    assert make_data(views=views, budget=numbers * size - 1).streamed  # type: ignore[arg-type]


def test_a_pack_of_few_features_streams_no_others() -> None:
    data = make_data(views=UNLIKE, budget=0)
    pack = Pack(unlike_lanes({})[:1], data)
    assert pack._stream is not None
    assert pack._stream.x.shape[1] == data.features_of("standard") < data.n_features


def assert_trains_alike(here: Pack, streamed: Pack) -> None:
    for epoch in (1, 2):
        epochs = [epoch] * here.K
        assert np.array_equal(here.train_epoch(epochs), streamed.train_epoch(epochs))
        for ours, theirs in zip(here.validate("log_loss"), streamed.validate("log_loss"), strict=True):
            assert np.array_equal(ours, theirs)
    assert_equal(here, streamed)


@ON_DEVICES
@OF_FORMS
@pytest.mark.parametrize("graphed", [False, True])
@pytest.mark.usefixtures("_chunks")
def test_streamed_rows_train_as_rows_on_the_device(form: dict[str, object], graphed: bool, device: str) -> None:
    here, there = make_data(device=device), make_data(device=device, budget=0)
    assert (here.streamed, there.streamed) == (False, True)
    lanes = lanes_of(form)
    assert_trains_alike(Pack(lanes, here, graphed=graphed), Pack(lanes, there, graphed=graphed))


@pytest.mark.parametrize("kernels", [ReferenceKernels(), CpuKernels()], ids=["reference", "cpu"])
@pytest.mark.usefixtures("_chunks")
def test_streamed_views_train_as_views_on_the_device(kernels: Kernels) -> None:
    lanes = on_views({})
    here, there = make_data(views=VIEWS), make_data(views=VIEWS, budget=0)
    assert_trains_alike(Pack(lanes, here, kernels), Pack(lanes, there, kernels))


def test_negative_control_a_chunk_that_does_not_come_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 3000)
    original = RowStream.feed
    monkeypatch.setattr(RowStream, "feed", lambda self, s: original(self, s) if s < 4 else None)
    lanes = lanes_of({})
    here, there = Pack(lanes, make_data()), Pack(lanes, make_data(budget=0))
    assert not np.array_equal(here.train_epoch([1] * 4), there.train_epoch([1] * 4))


def test_only_chunks_of_the_rows_lie_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 2**14)
    data = make_data(n=2000, features=20, dtype=torch.float32, budget=50_000)
    pack = Pack([lane_of(make_config(batch_size=8), n) for n in range(3)], data)
    assert pack._stream is not None
    assert pack._stream.x.nbytes <= 2 * 2**14 < data.x_train.nbytes


def test_rows_within_the_budget_are_not_streamed() -> None:
    bytes_of_rows = sum(part.nbytes for part in (make_data().x_train, make_data().y_train))
    assert not make_data(budget=2 * bytes_of_rows).streamed
