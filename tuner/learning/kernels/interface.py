"""What a pack asks of its kernels.

Shapes: ``K`` lanes, ``B`` rows of a micro-step, ``D`` features, ``H`` hidden units, ``C`` outputs, ``L`` hidden layers.
A pack passes *handles*: whatever ``handle`` made of a tensor once (the tensor itself, or a numpy view of its memory),
so that no kernel call pays for a conversion. Every kernel writes into buffers it is given and allocates nothing.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tuner.learning.metrics import Head
from tuner.trial import Activation, Optimizer

Handle = Any


class Whole(IntEnum):
    """Rows of a micro-step's whole numbers, shape (3, K)."""

    START = 0  # the first row's position in the epoch's order
    COUNT = 1  # rows of this micro-step; 0 when the lane has nothing to do
    STEPS = 2  # 1 when the lane's optimizer steps after this micro-step


class Real(IntEnum):
    """Rows of a micro-step's real numbers, shape (5, K)."""

    ROW_WEIGHT = 0  # 1 / rows of the batch this micro-step belongs to
    STEP_SIZE = 1  # η of this step; for the Adam family divided by its first bias correction
    DENOMINATOR = 2  # √ of the Adam family's second bias correction
    SHRINK = 3  # what decoupled weight decay multiplies weights by
    AVERAGE = 4  # weight of the new iterate in the averaged weights; 0 leaves them alone


class LaneWhole(IntEnum):
    """Rows of the lanes' whole numbers, shape (3, K)."""

    WIDTH = 0
    THRESHOLD = 1  # a hidden unit is dropped when its random bits are below
    INPUT_THRESHOLD = 2  # and so is an input


class LaneReal(IntEnum):
    """Rows of the lanes' real numbers, shape (8, K)."""

    KEEP_SCALE = 0  # 1 / (1 - dropout)
    INPUT_SCALE = 1  # 1 / (1 - input dropout)
    SMOOTHING = 2  # label smoothing
    L2 = 3  # λ of the penalty in the loss
    COUPLED = 4  # weight decay that is added to the clipped gradient as λθ
    MOMENTUM = 5  # of SGD, Nesterov and RMSProp; Adam's β₁
    BETA2 = 6  # Adam's β₂, RMSProp's α
    CLIP = 7  # largest norm of the gradient; 0 never clips


class Step(NamedTuple):
    """One micro-step of all lanes."""

    whole: Handle  # (3, K), see Whole
    real: Handle  # (5, K), see Real


class Lanes(NamedTuple):
    """What stays the same over an epoch."""

    whole: Handle  # (3, K), see LaneWhole
    real: Handle  # (8, K), see LaneReal
    class_weights: Handle  # (K, C): what the loss of a row of each class is multiplied by; not read by the square head


class Blocks(NamedTuple):
    """The flat parameter buffer as blocks of equal-sized lanes: block i holds ``lanes[i]`` pieces of ``size[i]``."""

    offset: Handle
    size: Handle
    lanes: Handle
    decays: Handle  # 1 where weight decay and l2 apply


class Kernels(Protocol):
    """See the module's docstring for the letters."""

    def handle(self, tensor: Tensor) -> Handle:
        """What the other methods take in place of ``tensor``; shares its memory."""
        ...

    def gather(self, x: Handle, y: Handle, order: Handle, step: Step, x_out: Handle, y_out: Handle) -> None:
        """Rows of this micro-step: x (n, D or more), y (n,), order (K, n) -> x_out (K, B, D), y_out (K, B).

        Where all lanes have the same rows x_out may be (1, B, D), and gets the first lane's. What lies beyond a lane's
        row count is left as any finite numbers.
        """
        ...

    def drop_inputs(self, x: Handle, words: Handle, step: Step, lanes: Lanes) -> None:
        """x (K, B, D) becomes mask·x/(1-p) with each lane's input dropout; words (2, K) are those of layer 0."""
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
        head: Head,
        outputs: Handle,
        bias: Handle,
        y: Handle,
        step: Step,
        lanes: Lanes,
        bias_gradient: Handle,
        loss: Handle,
        accumulate: bool,
    ) -> None:
        """outputs (K, C, B) before the bias become the gradient of each lane's mean batch loss by the outputs.

        Each row's loss is multiplied by its class's weight. Rows beyond a lane's count get zero. loss (K,), float64
        where the device has it, grows by the sum of the rows' losses.
        """
        ...

    def clip(self, theta: Handle, gradient: Handle, blocks: Blocks, lanes: Lanes, coefficients: Handle) -> None:
        """coefficients (K,): what the gradient of the penalised loss is multiplied by so that its norm is CLIP at most.

        As in ``torch.nn.utils.clip_grad_norm_``: min(1, CLIP / (norm + 1e-6)); 1 for lanes whose CLIP is 0.
        """
        ...

    def optimize(
        self,
        optimizer: Optimizer,
        theta: Handle,
        gradient: Handle,
        moments: tuple[Handle, ...],
        coefficients: Handle,
        blocks: Blocks,
        step: Step,
        lanes: Lanes,
        clear: bool,
    ) -> None:
        """One optimizer step of the lanes whose STEPS is 1, on flat buffers; ``clear`` zeroes their gradients after.

        moments: (velocity,) for SGD and Nesterov; (velocity, second) for RMSProp; (first, second) for the Adam family.
        """
        ...

    def average(self, theta: Handle, mean: Handle, blocks: Blocks, step: Step) -> None:
        """mean ← mean + AVERAGE·(theta - mean), lane by lane, on flat buffers; exact where AVERAGE is 1."""
        ...
