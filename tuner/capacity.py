"""Whether a device can train every model of a study: asked before anything is trained.

Where a study's space meets the memory that :mod:`tuner.learning.memory` predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from tuner.data import DataSummary
from tuner.errors import DeviceError
from tuner.learning.layout import padded, parameter_count
from tuner.space import Choices, Constant, Domain
from tuner.spec import StudySpec
from tuner.trial import TrialConfig, Value

if TYPE_CHECKING:
    import torch

    from tuner.learning.device import DeviceData

SIZES = ("width", "depth", "batch_size")  # the larger, the more memory
FORMS = ("optimizer", "averaging", "norm", "activation")  # which of them takes most is for the prediction to say
SMALL = 2**26  # numbers, a quarter of a GiB: who has less is told by the worker


@dataclass(frozen=True, kw_only=True)
class Table:
    """What of a study's data its models' memory depends on. features: D; outputs: C; rows of one fold."""

    features: int
    outputs: int
    train: int
    val: int
    folds: int
    streamed: bool = False

    @classmethod
    def of_summary(cls, data: DataSummary) -> Table:
        """Of data that have been looked at."""
        outputs = max(len(data.class_counts), 1)
        return cls(features=data.features, outputs=outputs, train=data.n_train, val=data.n_val, folds=data.folds)

    @classmethod
    def of_device(cls, data: DeviceData) -> Table:
        """Of data that lie where they are trained on."""
        return cls(
            features=data.n_features,
            outputs=data.n_outputs,
            train=max(last - first for first, last in (span.train for span in data.spans.values())),
            val=max(last - first for first, last in (span.val for span in data.spans.values())),
            folds=data.folds,
            streamed=data.streamed,
        )


def check_device(spec: StudySpec, data: DataSummary, device: str) -> None:
    """Raises DeviceError when this machine has no such device, or when it cannot train every model of the study."""
    table = Table.of_summary(data)
    # Torch takes seconds to import. A processor has this precision, and no machine lacks so little memory.
    if device in ("auto", "cpu") and spec.training.precision == "float32" and _small(spec, table):
        return
    from tuner.learning.device import resolve_device

    check_capacity(spec, table, resolve_device(device, spec.training.precision))


def check_capacity(spec: StudySpec, table: Table, device: torch.device, budget: int | None = None) -> None:
    """Raises DeviceError when some model of the study is predicted to take more than ``budget`` bytes even alone.

    budget: None is what the device has for one process now.
    """
    from tuner.learning.memory import memory_budget

    budget = memory_budget(device) if budget is None else budget
    configs = list(_largest(spec))
    needed, config = max(((_bytes(c, table, device), c) for c in configs), key=lambda pair: pair[0])
    if needed <= budget:
        return
    share = ", a worker for each core" if device.type == "cpu" else ""
    fits, above = 0, config.width
    while above - fits > 1:
        middle = (fits + above) // 2
        if max(_bytes(replace(c, width=middle), table, device) for c in configs) <= budget:
            fits = middle
        else:
            above = middle
    fix = "take fewer features"
    if fits:
        fix = f"at this depth a width up to {fits:,} fits: lower space.width or space.depth"
    raise DeviceError(
        f"a device trains every model of a study, and the largest of {spec.study.name}, {config.depth} x "
        f"{config.width:,} units, needs {_size(needed)} even alone; {device} has {_size(budget)} for it{share}\n"
        f"  {fix}, or use a device with more memory"
    )


def advice(spec: StudySpec, data: DataSummary) -> tuple[str, ...]:
    """Why this machine could not train the study, if so. Others may: it is no error before a device is chosen."""
    try:
        check_device(spec, data, "auto")
    except DeviceError as error:
        return (f"this machine cannot run it: {error}",)
    return ()


def _largest(spec: StudySpec) -> Iterator[TrialConfig]:
    """The largest model of the space in each form that it may have."""
    space = spec.search_space
    values = {name: _values(domain)[-1] for name, domain in space.items()} | {n: _top(space[n]) for n in SIZES}
    for form in product(*(_values(space[name]) for name in FORMS)):
        yield spec.trial_config({**values, **dict(zip(FORMS, form, strict=True))})


def _values(domain: Domain) -> tuple[Value, ...]:
    if isinstance(domain, Choices):
        return domain.choices
    return (domain.value if isinstance(domain, Constant) else domain.top,)


def _top(domain: Domain) -> int:
    return max(int(value) for value in _values(domain))


def _bytes(config: TrialConfig, table: Table, device: torch.device) -> int:
    """Predicted for one trial that trains alone, all its folds."""
    from tuner.learning.memory import pack_bytes

    return pack_bytes(
        [config] * table.folds,
        [table.train] * table.folds,
        table.features,
        table.outputs,
        rows_evaluated=table.val,
        streamed=table.streamed,
        views=table.folds,
        device=device,
    )


def _small(spec: StudySpec, table: Table) -> bool:
    """Whether even the largest model takes next to nothing, by a bound that needs no torch."""
    D, C = table.features, table.outputs
    found = []
    for c in _largest(spec):
        H, B = padded(c.width), min(c.batch_size, table.train)
        parameters = 8 * parameter_count(replace(c, width=H), D, C)
        activations = ((8 * c.depth + 16) * H + 3 * (D + C)) * max(B, 256) + 3 * table.val * C
        found.append(table.folds * (parameters + activations + 16 * table.train))
    return max(found) < SMALL


def _size(number: int) -> str:
    """Bytes in words."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"
