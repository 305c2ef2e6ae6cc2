"""K fused lanes equal K ordinary models trained alone, whatever differs between the lanes."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning.packs import TOLERANCE, VIEWS, distance_from_plain, lane_of, make_config, make_data, mixed_configs
from tuner.learning.epoch_plan import EpochPlan, micro_steps
from tuner.learning.kernels.cpu import CpuKernels
from tuner.learning.kernels.interface import Kernels, Whole
from tuner.learning.kernels.reference import ReferenceKernels
from tuner.learning.lanes import Lane, Pack
from tuner.learning.schedules import batches, in_step, micro_batch
from tuner.trial import Activation, Optimizer, Scaling, Schedule, Task

KERNELS = [ReferenceKernels(), CpuKernels()]
MIXED = [
    {"batch_size": 8, "width": 5, "depth": 1, "schedule": "constant"},
    {"batch_size": 16, "weight_decay": 0.01, "dropout": 0.3, "width": 12, "depth": 3, "warmup": 0.2},
    {"batch_size": 24, "weight_decay": 0.1, "dropout": 0.5, "width": 9, "depth": 2, "learning_rate": 0.0002},
    {"batch_size": 500, "dropout": 0.1, "width": 3, "depth": 3, "momentum": 0.5},
]


# Each value of each choice that splits packs, one at a time; the random packs below combine them.
FORMS: list[dict[str, object]] = [
    {},
    *({"activation": name} for name in get_args(Activation)),
    *({"optimizer": name} for name in get_args(Optimizer)),
    *({"loss": name} for name in ("cross_entropy", "square", "hinge")),
    *({"norm": norm, "residual": residual} for norm in ("none", "layer", "batch") for residual in (False, True)),
    {"optimizer": "sgd", "decay_biases": True, "norm": "layer"},
]
# And of each that does not, in one lane of a mixed pack.
NUMBERS: list[dict[str, object]] = [
    *({"schedule": name, "warmup": 0.2, "decay": 0.7, "decay_epochs": 1} for name in get_args(Schedule)),
    *({"averaging": name, "averaging_start": 0.2} for name in ("swa", "ema")),
    *({"averaging": name, "averaging_start": 0.0, "norm": "batch", "batch_size": 16} for name in ("swa", "ema")),
    *({"initialization": name} for name in ("xavier", "he")),
    {"input_dropout": 0.3},
    {"class_weight": "balanced", "label_smoothing": 0.1},
    *({"class_weight": "balanced", "loss": loss} for loss in ("square", "hinge")),
    {"l2": 0.3, "clip_norm": 0.1},
    {"l2": 0.3, "clip_norm": 0.1, "optimizer": "sgd", "weight_decay": 0.2},
    {"reference_batch_size": 32, "beta2": 0.9},
]


# Forms of a whole training in float32.
FLOAT32: list[dict[str, object]] = [
    {"optimizer": "adamw", "activation": "gelu"},
    {"optimizer": "sgd", "norm": "layer"},
    {"optimizer": "rmsprop", "averaging": "ema"},
    {"optimizer": "adamw_decoupled", "norm": "batch", "batch_size": 16, "averaging": "swa"},
]
TOLERANCE_32 = 1e-4  # relative, on losses


def lanes_with(changes: dict[str, object]) -> list[Lane]:
    """The mixed lanes, all of the form that ``changes`` says; numbers are changed in the first two only."""
    form = {name: value for name, value in changes.items() if name in SPLITTING}
    numbers = {name: value for name, value in changes.items() if name not in SPLITTING}
    if form.get("norm") == "batch":
        form["batch_size"] = 16
    configs = [make_config(**{**lane, **form, **(numbers if i < 2 else {})}) for i, lane in enumerate(MIXED)]
    return [lane_of(config, number) for number, config in enumerate(configs)]


SPLITTING = {"activation", "optimizer", "loss", "norm", "residual", "decay_biases"}


@pytest.mark.parametrize("kernels", KERNELS, ids=["reference", "cpu"])
@pytest.mark.parametrize("changes", FORMS + NUMBERS, ids=lambda c: "-".join(map(str, c.values())) or "default")
def test_fused_equals_plain(changes: dict[str, object], kernels: Kernels) -> None:
    data, lanes = make_data(), lanes_with(changes)
    assert distance_from_plain(Pack(lanes, data, kernels), lanes, data) < TOLERANCE


@pytest.mark.parametrize("kernels", KERNELS, ids=["reference", "cpu"])
@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_fused_equals_plain_in_regression(optimizer: Optimizer, kernels: Kernels) -> None:
    data, lanes = make_data("regression"), lanes_with({"optimizer": optimizer})
    assert distance_from_plain(Pack(lanes, data, kernels), lanes, data) < TOLERANCE


@settings(max_examples=30)
@given(draw=st.data(), task=st.sampled_from(get_args(Task)), kernels=st.sampled_from(KERNELS))
def test_random_mixed_packs_equal_plain(draw: st.DataObject, task: Task, kernels: Kernels) -> None:
    data = make_data(task)
    configs = draw.draw(mixed_configs(task))
    lanes = [lane_of(config, number) for number, config in enumerate(configs)]
    assert distance_from_plain(Pack(lanes, data, kernels), lanes, data, epochs=3) < TOLERANCE


# Lanes whose larger batches are made of whole micro-steps, so that all of them read the same rows at the same time.
IN_STEP = [{**lane, "batch_size": batch} for lane, batch in zip(MIXED, (8, 16, 64, 500), strict=True)]


def sharing_lanes(changes: dict[str, object] | None = None) -> list[Lane]:
    configs = [make_config(**{**lane, **(changes or {})}) for lane in IN_STEP]
    return [lane_of(config, number, order_key=5) for number, config in enumerate(configs)]


@pytest.mark.parametrize("graphed", [False, True], ids=["eager", "fixed buffers"])
@pytest.mark.parametrize("kernels", KERNELS, ids=["reference", "cpu"])
@pytest.mark.parametrize(
    "changes", [{}, {"norm": "layer"}, {"norm": "batch", "batch_size": 16}, {"clip_norm": 0.1}, {"optimizer": "sgd"}]
)
def test_lanes_that_share_their_batches_equal_plain(
    changes: dict[str, object], kernels: Kernels, graphed: bool
) -> None:
    data, lanes = make_data(), sharing_lanes(changes)
    pack = Pack(lanes, data, kernels, graphed=graphed)
    assert distance_from_plain(pack, lanes, data) < TOLERANCE
    assert pack.shared


@settings(max_examples=20)
@given(draw=st.data(), task=st.sampled_from(get_args(Task)), kernels=st.sampled_from(KERNELS))
def test_random_packs_of_one_order_equal_plain(draw: st.DataObject, task: Task, kernels: Kernels) -> None:
    data = make_data(task)
    configs = [replace(c, batch_size=4 << c.batch_size % 5) for c in draw.draw(mixed_configs(task))]
    if configs[0].norm == "batch":
        configs = [replace(c, batch_size=configs[0].batch_size) for c in configs]
    lanes = [lane_of(config, number, order_key=9) for number, config in enumerate(configs)]
    pack = Pack(lanes, data, kernels)
    assert distance_from_plain(pack, lanes, data) < TOLERANCE
    assert pack.shared == (len(lanes) > 1 and not any(c.input_dropout for c in configs))


def test_lanes_share_batches_at_the_same_epoch_only() -> None:
    data, lanes = make_data(), sharing_lanes()
    ahead, together = Pack(lanes[:1], data), Pack(lanes, data)
    ahead.train_epoch([1])
    together.restore(0, ahead.export(0))
    alone = Pack(lanes[1:2], data)
    for epoch in (1, 2):
        together.train_epoch([epoch + 1, epoch, epoch, epoch])
        assert not together.shared
        ahead.train_epoch([epoch + 1])
        alone.train_epoch([epoch])
    for i, other in ((0, ahead), (1, alone)):
        assert np.abs(together.export(i)["theta"] - other.export(0)["theta"]).max() < TOLERANCE
    together.train_epoch([3] * 4)
    assert together.shared


@pytest.mark.parametrize(
    "case", ["other orders", "a batch of odd size", "dropped inputs", "other rows", "rows in chunks", "one lane"]
)
def test_lanes_that_read_other_rows_share_none(case: str) -> None:
    data = make_data(views=VIEWS[:2] if case == "other rows" else VIEWS[:1], budget=0 if "chunks" in case else None)
    lanes = sharing_lanes()
    if case == "other orders":
        lanes[0] = replace(lanes[0], order_key=6)
    elif case == "a batch of odd size":
        lanes[2] = replace(lanes[2], config=replace(lanes[2].config, batch_size=17))
    elif case == "dropped inputs":
        lanes[1] = replace(lanes[1], config=replace(lanes[1].config, input_dropout=0.1))
    elif case == "other rows":
        lanes[1] = replace(lanes[1], fold=1)
    elif case == "one lane":
        lanes = lanes[:1]
    pack = Pack(lanes, data)
    if case == "rows in chunks":
        pack.train_epoch([1] * 4)
    else:
        assert distance_from_plain(pack, lanes, data) < TOLERANCE
    assert not pack.shared


def test_negative_control_lanes_out_of_step_that_share_batches_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    data, lanes = make_data(), sharing_lanes()
    lanes[2] = replace(lanes[2], config=replace(lanes[2].config, batch_size=17))
    monkeypatch.setattr("tuner.learning.lanes.in_step", lambda *_: True)
    assert distance_from_plain(Pack(lanes, data), lanes, data) > 1000 * TOLERANCE


@given(st.integers(1, 90), st.lists(st.integers(1, 100), min_size=1, max_size=4), st.booleans())
def test_in_step_is_what_the_plan_says(n: int, sizes: list[int], batch_norm: bool) -> None:
    norm = "batch" if batch_norm and len(set(sizes)) == 1 else "none"
    configs, rows = [make_config(batch_size=size, norm=norm) for size in sizes], [n] * len(sizes)
    whole = EpochPlan(configs, rows, micro_batch(configs, rows)).whole_rows
    same = bool((whole[:, : Whole.STEPS] == whole[:, : Whole.STEPS, :1]).all())
    assert in_step(configs, rows) == same


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0101},
        {"weight_decay": 0.0101},
        {"dropout": 0.303},
        {"momentum": 0.909},
        {"label_smoothing": 0.101},
        {"width": 9},
        {"depth": 3},
        {"batch_size": 17},
        {"class_weight": "balanced"},
        {"beta2": 0.989},
        {"l2": 0.101},
        {"clip_norm": 0.101},
        {"input_dropout": 0.202},
        {"decay": 0.909},
        {"warmup": 0.35},
        {"ema_decay": 0.909},
        {"averaging_start": 0.4},
        {"reference_batch_size": 17},
    ],
    ids=lambda change: next(iter(change)),
)
def test_negative_control_one_number_of_one_lane_is_noticed(change: dict[str, float]) -> None:
    data = make_data()
    base: dict[str, object] = {"weight_decay": 0.01, "dropout": 0.3, "label_smoothing": 0.1}
    base |= {"l2": 0.1, "input_dropout": 0.2, "reference_batch_size": 16, "warmup": 0.3}
    base |= {"schedule": "exponential", "decay": 0.9, "averaging": "ema", "averaging_start": 0.0, "ema_decay": 0.9}
    if "clip_norm" in change:  # Adam divides what it scales every gradient by
        base |= {"optimizer": "sgd", "clip_norm": 0.1}
    lanes = [lane_of(make_config(**base), 0), lane_of(make_config(**base), 1)]
    changed = [lanes[0], lane_of(make_config(**{**base, **change}), 1)]
    pack = Pack(changed, data)
    if "width" in change or "depth" in change:
        assert len(pack.export(1)["theta"]) != len(Pack(lanes, data).export(1)["theta"])
    else:
        assert distance_from_plain(pack, lanes, data, epochs=3) > 1000 * TOLERANCE
        assert distance_from_plain(Pack(lanes, data), lanes, data, epochs=3) < TOLERANCE


def on_views(changes: dict[str, object]) -> list[Lane]:
    """Lanes with these changes, one on each of the views."""
    found = []
    for i, (lane, (scaling, fold)) in enumerate(zip(lanes_with(changes), VIEWS, strict=True)):
        batch_size = changes.get("batch_size", lane.config.batch_size)
        config = replace(lane.config, scaling=scaling, batch_size=batch_size)  # type: ignore[arg-type]
        found.append(lane_of(config, number=i // 2, fold=fold))
    return found


@pytest.mark.parametrize("kernels", KERNELS, ids=["reference", "cpu"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 500},
        {"class_weight": "balanced"},
        {"norm": "batch", "averaging": "ema", "averaging_start": 0.0},
        {"norm": "batch", "batch_size": 500, "averaging": "swa", "averaging_start": 0.0},
    ],
    ids=lambda c: "-".join(map(str, c.values())) or "default",
)
def test_lanes_on_unlike_views_equal_plain(changes: dict[str, object], kernels: Kernels) -> None:
    data, lanes = make_data(views=VIEWS), on_views(changes)
    assert len({(view.x_train.shape, view.x_val.shape) for view in Pack(lanes, data).views}) == 4
    assert distance_from_plain(Pack(lanes, data, kernels), lanes, data) < TOLERANCE


UNLIKE: tuple[tuple[Scaling, int], ...] = (("standard", 0), ("piecewise", 0))


def unlike_lanes(changes: dict[str, object]) -> list[Lane]:
    """Lanes with these changes, every other one with twice the features."""
    found = enumerate(lanes_with(changes))
    return [replace(lane, config=replace(lane.config, scaling=UNLIKE[i % 2][0])) for i, lane in found]


@pytest.mark.parametrize("streamed", [False, True], ids=["at hand", "in chunks"])
@pytest.mark.parametrize("kernels", KERNELS, ids=["reference", "cpu"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"input_dropout": 0.3}, {"norm": "batch", "batch_size": 16, "averaging": "ema", "averaging_start": 0.0}],
    ids=lambda c: "-".join(map(str, c.values())) or "default",
)
def test_lanes_with_unlike_features_equal_plain(changes: dict[str, object], kernels: Kernels, streamed: bool) -> None:
    whole = make_data(views=UNLIKE)
    data = make_data(views=UNLIKE, budget=0) if streamed else whole
    assert (data.features_of("standard"), data.features_of("piecewise"), data.n_features) == (5, 10, 10)
    lanes = unlike_lanes(changes)
    assert distance_from_plain(Pack(lanes, data, kernels), lanes, whole) < TOLERANCE
    narrow = Pack([lanes[0]], data, kernels)
    assert narrow.layout.D == 5, "features that no lane of a pack has are not multiplied"
    assert distance_from_plain(narrow, lanes[:1], whole) < TOLERANCE
    assert len(narrow.export(0)["theta"]) == len(Pack(lanes, data).export(0)["theta"])


def test_packs_of_unlike_features_share_batches() -> None:
    data = make_data(views=UNLIKE)
    for scaling, _ in UNLIKE:
        lanes = [replace(lane, config=replace(lane.config, scaling=scaling)) for lane in sharing_lanes()]
        pack = Pack(lanes, data)
        assert distance_from_plain(pack, lanes, data) < TOLERANCE
        assert pack.shared


def test_lanes_on_unlike_views_equal_plain_in_regression() -> None:
    data, lanes = make_data("regression", views=VIEWS), on_views({})
    assert distance_from_plain(Pack(lanes, data), lanes, data) < TOLERANCE


@pytest.mark.parametrize("change", [{"fold": 0}, {"scaling": "standard"}], ids=["fold", "scaling"])
def test_negative_control_a_lane_on_another_view_is_noticed(change: dict[str, object]) -> None:
    data, lanes = make_data(views=VIEWS), on_views({})
    last = lanes[-1]
    if "fold" in change:
        changed = replace(last, fold=0)
    else:
        changed = replace(last, config=replace(last.config, scaling="standard"))
    assert distance_from_plain(Pack([*lanes[:-1], changed], data), lanes, data) > 1000 * TOLERANCE


def test_whole_sets_of_nearly_equal_size_are_one_micro_step() -> None:
    pack = Pack(on_views({"batch_size": 500}), make_data(views=VIEWS))
    assert (pack.B, pack.accumulate, len(pack.plan)) == (61, False, 1)


def test_a_lane_does_not_depend_on_its_neighbours_or_their_order() -> None:
    data = make_data()
    lanes = [lane_of(make_config(optimizer="adam", **lane), number) for number, lane in enumerate(MIXED)]
    together = Pack(lanes, data)
    backwards = Pack(lanes[::-1], data)
    for epoch in (1, 2):
        together.train_epoch([epoch] * 4)
        backwards.train_epoch([epoch] * 4)
    for i, lane in enumerate(lanes):
        alone = Pack([lane], data)
        for epoch in (1, 2):
            alone.train_epoch([epoch])
        for name, vector in alone.export(0).items():
            assert np.abs(vector - together.export(i)[name]).max() < TOLERANCE
            assert np.abs(vector - backwards.export(3 - i)[name]).max() < TOLERANCE


def test_padding_stays_exactly_zero_even_where_the_activation_of_zero_is_not() -> None:
    data = make_data()
    lanes = [lane_of(make_config(activation="sigmoid", width=width, dropout=0.2), width) for width in (3, 13)]
    pack = Pack(lanes, data)
    pack.train_epoch([1, 1])
    narrow = sum(len(pack.export(i)["theta"]) for i in (0, 1))
    assert int(torch.count_nonzero(pack.theta)) == narrow < pack.theta.numel()


def test_lanes_of_one_pack_may_be_at_different_epochs() -> None:
    data = make_data()
    lanes = [lane_of(make_config(dropout=0.2, optimizer="adam"), number) for number in (0, 1)]
    ahead = Pack(lanes[:1], data)
    ahead.train_epoch([1])
    both = Pack(lanes, data)
    both.restore(0, ahead.export(0))
    both.train_epoch([2, 1])
    ahead.train_epoch([2])
    assert np.abs(both.export(0)["theta"] - ahead.export(0)["theta"]).max() < TOLERANCE


@pytest.mark.parametrize("form", FLOAT32, ids=lambda form: "-".join(map(str, form.values())))
def test_in_float32_a_lane_trains_beside_others_as_alone(form: dict[str, object]) -> None:
    """Stated tolerance: a tenth of what ``tuner replay`` allows, on every loss of a whole training, pauses included."""
    data, seen = make_data(dtype=torch.float32), []
    lanes = [lane_of(make_config(**{**lane, **form, "max_epochs": 27}), number) for number, lane in enumerate(MIXED)]
    together = Pack(lanes, data)
    for epoch in range(1, 28):
        if epoch == 10:  # as from a checkpoint
            states, together = [together.export(i) for i in range(4)], Pack(lanes, data)
            for i, arrays in enumerate(states):
                together.restore(i, arrays)
        seen.append([together.train_epoch([epoch] * 4), together.validate("log_loss")[0]])
    for i, lane in enumerate(lanes):
        alone, own = Pack([lane], data), []
        for epoch in range(1, 28):
            own.append([alone.train_epoch([epoch]), alone.validate("log_loss")[0]])
        worst = np.abs(np.array(seen)[:, :, i] / np.array(own)[:, :, 0] - 1).max()
        assert worst < TOLERANCE_32, f"lane {i}"


def test_float32_follows_float64_over_a_whole_training() -> None:
    """Stated tolerance: 1e-4 on the training loss after six epochs of Adam."""
    configs = [make_config(optimizer="adam", **lane) for lane in MIXED]
    losses = {}
    for dtype in (torch.float32, torch.float64):
        data = make_data(dtype=dtype)
        pack = Pack([lane_of(config, number) for number, config in enumerate(configs)], data)
        for epoch in range(1, 7):
            losses[dtype] = pack.train_epoch([epoch] * 4)
    assert np.abs(losses[torch.float32] - losses[torch.float64]).max() < 1e-4


def test_lanes_that_cannot_fuse_are_refused() -> None:
    lanes = [lane_of(make_config(activation="relu"), 0), lane_of(make_config(activation="tanh"), 1)]
    with pytest.raises(ValueError, match="one signature"):
        Pack(lanes, make_data())


@given(n=st.integers(1, 200), batch=st.integers(1, 250), micro=st.integers(1, 250))
def test_micro_steps_visit_every_row_once_and_step_once_a_batch(n: int, batch: int, micro: int) -> None:
    batch = min(batch, n)
    micro = min(micro, batch)
    plan = micro_steps(batches(n, make_config(batch_size=batch)), micro)
    rows = [row for start, count, _, _ in plan for row in range(start, start + count)]
    assert rows == list(range(n))
    assert plan[:, 1].max() <= micro
    assert plan[:, 2].sum() == -(-n // batch)
    batch_of_row = [first // batch for first in plan[:, 0]]
    sizes = [min(batch, n - b * batch) for b in batch_of_row]
    assert plan[:, 3].tolist() == sizes


def test_evaluation_in_pieces_equals_evaluation_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    pack = Pack([lane_of(make_config(**lane), i) for i, lane in enumerate(MIXED)], data)
    whole = pack.outputs(data.x_train)
    monkeypatch.setattr("tuner.learning.memory.EVALUATION_ROWS", 7)
    assert torch.allclose(pack.outputs(data.x_train), whole, rtol=0, atol=TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_cuda_equals_plain(optimizer: Optimizer) -> None:
    data = make_data(device="cuda")
    lanes = [lane_of(make_config(optimizer=optimizer, **lane), number) for number, lane in enumerate(MIXED)]
    assert distance_from_plain(Pack(lanes, data), lanes, data) < TOLERANCE
