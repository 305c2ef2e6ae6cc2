"""Counter-based random streams: every random number of a lane is a pure function of its key and a counter.

A lane's initial weights and dropout masks must depend on nothing but (study seed, trial number), its data order on
nothing but the study's seed: not on its neighbours, the pack's padding, the device, or where training was interrupted.
So there is no generator with a state. A *key* (64 bits) names a lane, or an order that several visit rows in; ``words``
derives two 32-bit words for one purpose, epoch and layer; ``bits`` hashes (words, row, unit) to 32 uniform bits. The
same integer arithmetic runs here in numpy (the specification), in the compiled CPU kernels and on CUDA, bit for bit.

The mixers are SplitMix64 (Steele, Lea, Flood 2014) for keys and Wellons' ``lowbias32`` for bits: two multiplications
an element, which is what makes a dropout mask cheaper than reading it from memory.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

ROW_MULTIPLIER = 0x9E3779B9
UNIT_MULTIPLIER = 0x85EBCA6B
MIX_1 = 0x7FEB352D
MIX_2 = 0x846CA68B


class Purpose(IntEnum):
    """What a stream is for; streams of different purposes are unrelated."""

    WEIGHTS = 1
    ORDER = 2
    DROPOUT = 3


def splitmix64(x: U64) -> U64:
    """One SplitMix64 output for each 64-bit input, element by element."""
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: U64 = z ^ (z >> np.uint64(31))
    return mixed


def lane_key(seed: int, *path: int) -> int:
    """The 64-bit key of a lane: ``lane_key(study seed, trial number)``, or any other path of whole numbers."""
    key = splitmix64(np.array([seed], dtype=np.uint64))
    for part in path:
        # Mixed twice before the part is added: an xor of two mixes would make (0, 1) and (1, 0) one path.
        key = splitmix64(splitmix64(key) + np.array([part], dtype=np.uint64))
    return int(key[0])


def fold_key(key: int, fold: int) -> int:
    """The key of a trial's lane on one fold: the trial's own on fold 0, so that folds leave trials without them alone.

    No path of :func:`lane_key` from the study's seed gives the key of another fold: it is mixed once more.
    """
    return key if fold == 0 else lane_key(key, fold)


def words(keys: U64, purpose: Purpose, epochs: npt.ArrayLike = 0, layer: int = 0) -> tuple[U32, U32]:
    """Two 32-bit words, each of the shape of ``keys``, for one purpose and layer of each lane at its own epoch."""
    counter = np.asarray(epochs, dtype=np.uint64) | np.uint64((int(purpose) << 56) | (layer << 40))
    z = splitmix64(keys ^ splitmix64(counter))
    return (z >> np.uint64(32)).astype(np.uint32), z.astype(np.uint32)


def mix32(x: U32) -> U32:
    """Wellons' lowbias32 hash of each 32-bit element."""
    with np.errstate(over="ignore"):
        x = x ^ (x >> np.uint32(16))
        x = x * np.uint32(MIX_1)
        x = x ^ (x >> np.uint32(15))
        x = x * np.uint32(MIX_2)
        return x ^ (x >> np.uint32(16))


def bits(a: int, b: int, rows: npt.ArrayLike, units: int) -> U32:
    """32 uniform bits for each (row, unit): shape (len(rows), units).

    The bits of (row, unit) do not depend on how many rows or units are asked for, which is what makes a lane
    independent of batch boundaries and padding.
    """
    with np.errstate(over="ignore"):
        row = mix32(np.asarray(rows, dtype=np.uint32) * np.uint32(ROW_MULTIPLIER) + np.uint32(a))
        unit = np.arange(units, dtype=np.uint32) * np.uint32(UNIT_MULTIPLIER) + np.uint32(b)
    return mix32(row[:, None] ^ unit[None, :])


def dropout_threshold(p: float) -> int:
    """A unit is dropped when its 32 bits are below this number, which happens with probability p in [0, 1)."""
    return min(round(p * 2**32), 2**32 - 1)


def keep_mask(key: int, p: float, *, epoch: int, layer: int, rows: npt.ArrayLike, units: int) -> npt.NDArray[np.bool_]:
    """Which units stay, shape (len(rows), units). ``rows`` are positions in the epoch's order, not row numbers."""
    a, b = words(np.array([key], dtype=np.uint64), Purpose.DROPOUT, epoch, layer)
    return bits(int(a[0]), int(b[0]), rows, units) >= np.uint32(dropout_threshold(p))


def epoch_order(key: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order in which a lane visits rows 0..n-1 in one epoch: rows sorted by (their 32 bits, row number)."""
    a, b = words(np.array([key], dtype=np.uint64), Purpose.ORDER, epoch)
    keys = bits(int(a[0]), int(b[0]), np.arange(n), 1)[:, 0].astype(np.uint64) << np.uint64(32)
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def uniform(key: int, layer: int, shape: tuple[int, int], bound: float) -> npt.NDArray[np.float32]:
    """Initial weights: uniform in (-bound, bound), shape (rows, units), 24 random bits each."""
    a, b = words(np.array([key], dtype=np.uint64), Purpose.WEIGHTS, layer=layer)
    steps = (bits(int(a[0]), int(b[0]), np.arange(shape[0]), shape[1]) >> np.uint32(8)).astype(np.float64)
    return ((2 * (steps + 0.5) / 2**24 - 1) * bound).astype(np.float32)
