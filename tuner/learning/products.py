"""The batched matrix products of a pack, at the precision that a study asks for.

Shapes: ``K`` lanes. Everything between the products, and every parameter and moment, stays in the data's own type.

- ``float32``: as they are (float64 where the data are).
- ``tf32``: float32 numbers, of which the products read 10 bits of mantissa; NVIDIA GPUs of compute capability 8.0 on.
- ``bf16``: factors rounded to bfloat16 (7 bits of mantissa, float32's range), sums in float32, results rounded to
  bfloat16, as under ``torch.autocast``; no loss scaling is needed, the range being float32's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tuner.trial import Precision


class Products:
    """Products of (K, n, m) and (K, m, p) into given buffers of the data's type."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Within it torch's own products have this precision; it matters for float32 and tf32 on CUDA."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def set(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        """out ← a·b."""
        if self.precision == "bf16":
            out.copy_(torch.bmm(a.bfloat16(), b.bfloat16()))
        else:
            torch.bmm(a, b, out=out)

    def add(self, out: Tensor, a: Tensor, b: Tensor, *, keep: bool) -> None:
        """out ← a·b, added to what is there if ``keep``."""
        if self.precision == "bf16":
            product = torch.bmm(a.bfloat16(), b.bfloat16())
            out.add_(product) if keep else out.copy_(product)
        else:
            torch.baddbmm(out, a, b, beta=1.0 if keep else 0.0, out=out)
