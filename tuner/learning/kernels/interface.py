"""What a pack asks of its kernels.

Shapes: ``K`` lanes, ``B`` rows of a micro-step, ``D`` features, ``H`` hidden units, ``C`` outputs, ``L`` hidden layers.
A pack passes *handles*: whatever ``handle`` made of a tensor once (the tensor itself, or a numpy view of its memory),
so that no kernel call pays for a conversion. Every kernel writes into buffers it is given and allocates nothing.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tuner.trial import Activation, Optimizer, Task

Handle = Any


class Whole(IntEnum):
    """Rows of a micro-step's whole numbers, shape (3, K)."""

    START = 0  # the first row's position in the epoch's order
    COUNT = 1  # rows of this micro-step; 0 when the lane has nothing to do
    STEPS = 2  # 1 when the lane's optimizer steps after this micro-step


class Real(IntEnum):
    """Rows of a micro-step's real numbers, shape (4, K)."""

    ROW_WEIGHT = 0  # 1 / rows of the batch this micro-step belongs to
    STEP_SIZE = 1  # η of this step; for Adam divided by its first bias correction
    DENOMINATOR = 2  # √ of Adam's second bias correction
    SHRINK = 3  # what decoupled weight decay multiplies weights by


class LaneWhole(IntEnum):
    """Rows of the lanes' whole numbers, shape (2, K)."""

    WIDTH = 0
    THRESHOLD = 1  # a unit is dropped when its random bits are below


class LaneReal(IntEnum):
    """Rows of the lanes' real numbers, shape (4, K)."""

    KEEP_SCALE = 0  # 1 / (1 - p)
    SMOOTHING = 1  # label smoothing
    L2 = 2  # λ that is added to the gradient as λθ (SGD, Adam)
    MOMENTUM = 3  # SGD's momentum, Adam's β₁


class Step(NamedTuple):
    """One micro-step of all lanes."""

    whole: Handle  # (3, K), see Whole
    real: Handle  # (4, K), see Real


class Lanes(NamedTuple):
    """What stays the same over an epoch."""

    whole: Handle  # (2, K), see LaneWhole
    real: Handle  # (4, K), see LaneReal


class Blocks(NamedTuple):
    """The flat parameter buffer as blocks of equal-sized lanes: block i holds ``lanes[i]`` pieces of ``size[i]``."""

    offset: Handle
    size: Handle
    lanes: Handle
    is_weight: Handle  # 1 where weight decay applies


class Kernels(Protocol):
    """See the module's docstring for the letters."""

    def handle(self, tensor: Tensor) -> Handle:
        """What the other methods take in place of ``tensor``; shares its memory."""
        ...

    def gather(self, x: Handle, y: Handle, order: Handle, step: Step, x_out: Handle, y_out: Handle) -> None:
        """Rows of this micro-step: x (n, D), y (n,), order (K, n) -> x_out (K, B, D), y_out (K, B).

        What lies beyond a lane's row count is left as any finite numbers.
        """
        ...

    def hidden_forward(
        self, activation: Activation, z: Handle, bias: Handle, words: Handle, step: Step, lanes: Lanes, out: Handle
    ) -> None:
        """z (K, B, H) before the bias -> out = mask·φ(z + bias)/(1-p); z becomes the derivative of out by z.

        bias (K, H); words (2, K) are the layer's dropout words. K here may be less than the pack's.
        """
        ...

    def hidden_infer(self, activation: Activation, z: Handle, bias: Handle, lanes: Lanes) -> None:
        """z (K, B, H) becomes φ(z + bias), zero beyond each lane's width."""
        ...

    def hidden_backward(self, da: Handle, derivative: Handle, bias_gradient: Handle, accumulate: bool) -> None:
        """da (K, B, H) becomes dz = da·derivative; its sum over rows is set as, or added to, bias_gradient (K, H)."""
        ...

    def head(
        self,
        task: Task,
        outputs: Handle,
        bias: Handle,
        y: Handle,
        step: Step,
        lanes: Lanes,
        bias_gradient: Handle,
        loss: Handle,
        accumulate: bool,
    ) -> None:
        """outputs (K, B, C) before the bias become the gradient of each lane's mean batch loss by the outputs.

        Rows beyond a lane's count get zero. loss (K,) float64 grows by the sum of the rows' losses.
        """
        ...

    def optimize(
        self,
        optimizer: Optimizer,
        theta: Handle,
        gradient: Handle,
        moments: tuple[Handle, ...],
        blocks: Blocks,
        step: Step,
        lanes: Lanes,
        clear: bool,
    ) -> None:
        """One optimizer step of the lanes whose STEPS is 1, on flat buffers; ``clear`` zeroes their gradients after.

        moments: (velocity,) for SGD; (first, second) for Adam and AdamW.
        """
        ...
