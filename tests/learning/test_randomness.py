"""Streams are functions of their counters, pinned for ever, and look random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.learning.randomness import (
    Purpose,
    bits,
    dropout_threshold,
    epoch_order,
    fold_key,
    keep_mask,
    lane_key,
    uniform,
    words,
)


def test_streams_are_pinned() -> None:
    """A change here would change the result of every stored study."""
    assert lane_key(0, 0) == 2558736989570252433
    assert bits(1, 2, [0, 1], 2).tolist() == [[3405767568, 4077875068], [1833388140, 3450328831]]
    assert epoch_order(lane_key(0, 1), 1, 8).tolist() == [3, 4, 6, 1, 2, 0, 7, 5]
    weights = uniform(lane_key(0, 1), 1, (1, 3), 1.0)[0]
    assert weights.tolist() == pytest.approx([0.126282871, -0.751503646, -0.103493631], abs=1e-8)


@given(rows=st.lists(st.integers(0, 2**31), min_size=1, max_size=20), units=st.integers(1, 50), more=st.integers(1, 9))
def test_a_bit_does_not_depend_on_what_else_is_asked(rows: list[int], units: int, more: int) -> None:
    whole = bits(123, 456, [*rows, 5], units + more)
    assert np.array_equal(bits(123, 456, rows, units), whole[: len(rows), :units])


def test_different_streams_differ() -> None:
    keys = np.array([lane_key(0, 0), lane_key(0, 1), lane_key(1, 0), lane_key(0, 0, 0), lane_key(0, 0, 1)], np.uint64)
    assert len(set(keys.tolist())) == 5
    drawn = {
        (purpose, epoch, layer): words(keys, purpose, epoch, layer)
        for purpose in Purpose
        for epoch in (0, 1, 2)
        for layer in (0, 1, 2)
    }
    pairs = {(int(a), int(b)) for first, second in drawn.values() for a, b in zip(first, second, strict=True)}
    assert len(pairs) == 5 * len(drawn)


def test_folds_have_keys_of_their_own() -> None:
    keys = {fold_key(lane_key(5, trial), fold) for trial in range(20) for fold in range(5)}
    paths = [(), *((a,) for a in range(20, 60)), *((a, b) for a in range(20) for b in range(5))]
    assert len(keys) == 100
    assert not keys & {lane_key(5, *path) for path in paths}
    assert fold_key(lane_key(5, 7), 0) == lane_key(5, 7), "a study without folds keeps its streams"


def test_lanes_at_different_epochs_get_their_own_words() -> None:
    keys = np.array([5, 6], dtype=np.uint64)
    both = words(keys, Purpose.DROPOUT, [3, 9], 2)
    for i, epoch in enumerate((3, 9)):
        assert both[0][i] == words(keys[i : i + 1], Purpose.DROPOUT, epoch, 2)[0][0]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_masks_drop_with_probability_p(p: float) -> None:
    mask = keep_mask(lane_key(1, 1), p, epoch=1, layer=1, rows=range(2000), units=100)
    standard_error = np.sqrt(p * (1 - p) / mask.size)
    assert abs((1 - mask.mean()) - p) <= 4 * standard_error
    # Neither a unit nor a row is dropped more often than its own 4.5 standard errors allow.
    assert np.abs(1 - mask.mean(0) - p).max() <= 4.5 * np.sqrt(p * (1 - p) / 2000)
    assert np.abs(1 - mask.mean(1) - p).max() <= 5 * np.sqrt(p * (1 - p) / 100)


def test_neighbouring_units_rows_layers_and_epochs_are_uncorrelated() -> None:
    def centred(**changes: int) -> np.ndarray:
        stream = {"epoch": 1, "layer": 1, **changes}
        return keep_mask(lane_key(1, 1), 0.5, rows=range(500), units=400, **stream).astype(float) - 0.5

    mask = centred()
    pairs = [
        (mask[:, 1:], mask[:, :-1]),
        (mask[1:], mask[:-1]),
        (mask, centred(epoch=2)),
        (mask, centred(layer=2)),
    ]
    for first, second in pairs:
        assert abs((first * second).mean() / 0.25) < 4.5 / np.sqrt(first.size)


def test_threshold_is_exact_at_the_ends() -> None:
    assert dropout_threshold(0.0) == 0
    assert dropout_threshold(0.5) == 2**31
    assert dropout_threshold(1 - 2**-60) == 2**32 - 1


@given(n=st.integers(1, 300), epoch=st.integers(1, 1000))
def test_an_order_is_a_permutation(n: int, epoch: int) -> None:
    assert sorted(epoch_order(99, epoch, n)) == list(range(n))


def test_orders_are_uniform() -> None:
    firsts = np.bincount([epoch_order(lane_key(0, lane), 1, 5)[0] for lane in range(5000)], minlength=5)
    assert np.abs(firsts - 1000).max() < 4.5 * np.sqrt(5000 * 0.2 * 0.8)


def test_initial_weights_are_uniform_within_their_bound() -> None:
    weights = uniform(lane_key(0, 0), 1, (300, 200), 0.25)
    assert np.abs(weights).max() < 0.25
    assert abs(weights.mean()) < 4.5 * 0.25 / np.sqrt(3 * weights.size)
    assert weights.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.01)
