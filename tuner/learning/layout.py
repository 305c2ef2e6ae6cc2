"""Where each lane's parameters lie in a pack's flat buffers.

Shapes: ``K`` lanes, deepest first; ``K_l`` of them have hidden layer l; ``D`` features of the lane that has most; ``H``
hidden units of the widest lane; ``C`` outputs. A flat buffer is a row of blocks; block i holds ``lanes[i]`` equal
pieces, lane by lane. For each layer, the head first as layer 0: weights ``(K_l, in, out)``, biases ``(K_l, out)``, and
gains and shifts ``(K_l, out)`` of hidden layers that are normalised. What a lane does not use of its pieces is padding,
and zero.

The head's weights lie in memory as ``(K, out, in)``: matrix kernels take three times as long over products whose rows
are as short as the head's C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tuner.trial import Norm, TrialConfig

if TYPE_CHECKING:
    from torch import Tensor

ALIGN = 8  # hidden units are padded to a multiple: matrix kernels are slow on odd sizes

Vector = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Block:
    """``lanes`` pieces of ``rows * columns`` numbers from ``offset`` on; vectors have one row.

    transposed: they lie in memory column by column.
    """

    layer: int
    name: str  # weight, bias, gain, shift
    offset: int
    rows: int
    columns: int
    lanes: int
    decays: bool
    transposed: bool

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def view(self, flat: Tensor) -> Tensor:
        """(lanes, rows, columns) of a weight, (lanes, columns) of a vector."""
        whole = flat[self.offset : self.offset + self.lanes * self.size]
        if self.transposed:
            return whole.view(self.lanes, self.columns, self.rows).transpose(1, 2)
        return whole.view(self.lanes, self.rows, self.columns) if self.name == "weight" else whole.view(self.lanes, -1)

    def piece(self, flat: Tensor, lane: int) -> Tensor:
        """(rows, columns) of one lane."""
        own = flat[self.offset + lane * self.size :][: self.size]
        return own.view(self.columns, self.rows).T if self.transposed else own.view(self.rows, self.columns)


class Layout:
    """The blocks of a pack of lanes with these configurations, deepest first, and so many features each."""

    def __init__(self, configs: Sequence[TrialConfig], features: Sequence[int], C: int) -> None:
        self.configs, self.features, self.C = configs, features, C
        self.D = D = max(features)
        self.K, self.L = len(configs), configs[0].depth
        self.H = padded(max(c.width for c in configs))
        self.counts = [self.K, *(sum(c.depth >= layer for c in configs) for layer in range(1, self.L + 1))]
        shapes = [(self.H, C), (D, self.H), *[(self.H, self.H)] * (self.L - 1)]
        self.blocks: list[Block] = []
        self.size = 0
        for layer, ((rows, columns), lanes) in enumerate(zip(shapes, self.counts, strict=True)):
            for name in block_names(layer, configs[0].norm):
                block = Block(
                    layer=layer,
                    name=name,
                    offset=self.size,
                    rows=rows if name == "weight" else 1,
                    columns=columns,
                    lanes=lanes,
                    decays=name == "weight" or configs[0].decay_biases,
                    transposed=layer == 0 and name == "weight",
                )
                self.blocks.append(block)
                self.size += block.lanes * block.size

    def views(self, flat: Tensor, name: str) -> dict[int, Tensor]:
        """The views of all blocks of one name, by layer: those that have one."""
        return {block.layer: block.view(flat) for block in self.blocks if block.name == name}

    def pieces(self, flat: Tensor, lane: int) -> list[Tensor]:
        """Views of one lane's own numbers without padding, in the order of :func:`named_shapes`."""
        config = self.configs[lane]
        own = [block for block in self.blocks if block.layer <= config.depth]
        shapes = [shape for _, shape in named_shapes(config, self.features[lane], self.C)]
        return [block.piece(flat, lane)[:rows, :columns] for block, (rows, columns) in zip(own, shapes, strict=True)]


def padded(width: int) -> int:
    """The hidden units that a lane of this width takes up when it is the widest."""
    return -(-width // ALIGN) * ALIGN


def block_names(layer: int, norm: Norm) -> list[str]:
    """The blocks of one layer, in order. Batch normalisation takes a bias away again, so there is none before it."""
    if layer == 0 or norm == "none":
        return ["weight", "bias"]
    return ["weight", "gain", "shift"] if norm == "batch" else ["weight", "bias", "gain", "shift"]


def named_shapes(config: TrialConfig, D: int, C: int) -> list[tuple[str, tuple[int, int]]]:
    """A lane's own arrays in the order they are stored, vectors as one row: name and (in, out).

    >>> config = TrialConfig(learning_rate=1, batch_size=1, width=3, depth=1, norm="layer", max_epochs=1)
    >>> [name for name, shape in named_shapes(config, D=5, C=2)]
    ['head.weight', 'head.bias', 'hidden.1.weight', 'hidden.1.bias', 'hidden.1.gain', 'hidden.1.shift']
    """
    shapes = [(config.width, C), (D, config.width), *[(config.width, config.width)] * (config.depth - 1)]
    return [
        (f"{f'hidden.{layer}' if layer else 'head'}.{name}", (rows if name == "weight" else 1, columns))
        for layer, (rows, columns) in enumerate(shapes)
        for name in block_names(layer, config.norm)
    ]


def parameter_count(config: TrialConfig, D: int, C: int) -> int:
    """How many parameters one lane has without padding."""
    return sum(rows * columns for _, (rows, columns) in named_shapes(config, D, C))


def named_arrays(theta: Vector, config: TrialConfig, D: int, C: int) -> dict[str, Vector]:
    """A lane's flat parameters by name, in torch's orientation: weights (out, in), vectors (out,)."""
    named, used = {}, 0
    for name, (rows, columns) in named_shapes(config, D, C):
        piece = theta[used : used + rows * columns].reshape(rows, columns)
        named[name] = piece.T.copy() if name.endswith("weight") else piece[0].copy()
        used += rows * columns
    return named
