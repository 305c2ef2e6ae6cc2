"""A study's plan: what it will train, on which rows, and how far. Nothing here trains, and nothing opens the test set.

Where data meets search before the worker joins them for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner import capacity
from tuner.data import DataSummary, summarize
from tuner.data.shift import ShiftReport, check_shift
from tuner.search import Bracket, plan, slots, total_epochs
from tuner.space import Choices, Constant, Range
from tuner.spec import StudySpec

if TYPE_CHECKING:
    from tuner.manager import StudyManager

# Up to which the parts of a new study are compared without being asked: a few seconds, more of them for wide tables.
SHIFT_CELLS, SHIFT_COLUMNS = 2_000_000, 200


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A study before it runs. brackets: as dealt to its trials, the last may be short (see :mod:`tuner.search`).

    limits: why this machine could not train it, if so.
    """

    spec: StudySpec
    data: DataSummary
    shift: ShiftReport
    brackets: tuple[Bracket, ...]
    limits: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """N: how many trials the study has in total; with a time budget, at most."""
        return self.spec.total_trials

    @property
    def epochs(self) -> int:
        """How many epochs the study costs, all trials together, when none diverges or stops early.

        Asha promotes a few more: those that were among the best when they were looked at.
        """
        return total_epochs(self.brackets)

    @property
    def advice(self) -> list[str]:
        """What the lecture advises against and the study does, and what its data make of its settings."""
        return advice(self.spec, self.data, self.limits)

    def rounds(self) -> Iterator[tuple[int, Bracket]]:
        """Each different bracket once, with how many of it there are, in the order of the deal."""
        counts: dict[Bracket, int] = {}
        for bracket in self.brackets:
            counts[bracket] = counts.get(bracket, 0) + 1
        for bracket, count in counts.items():
            yield count, bracket

    def rungs(self) -> list[dict[str, Any]]:
        """One record a rung of every dealt bracket, in order: who trains how far."""
        return [
            {"bracket": i, "s": bracket.index, "rung": j, "n": rung.size, "r": rung.epochs}
            for i, bracket in enumerate(self.brackets)
            for j, rung in enumerate(bracket.rungs)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form. A bracket lists its rungs as Hyperband's n_i and r_i."""
        space = self.spec.search_space
        return {
            "name": self.spec.study.name,
            "metric": self.spec.study.metric,
            "direction": self.spec.direction,
            "sampler": self.spec.search.sampler,
            "pruner": self.spec.search.pruner,
            "refine": None if (rules := self.spec.search.refine) is None else rules.model_dump(),
            "minutes": self.spec.search.minutes,
            "trials": self.trials,
            "epochs": self.epochs,
            "data": asdict(self.data),
            "shift": self.shift.as_dict(),
            "space": {name: domain.as_written() for name, domain in space.items()},
            "advice": self.advice,
            "brackets": [
                {
                    "s": bracket.index,
                    "first": numbers.start,
                    "rungs": [{"n": rung.size, "r": rung.epochs} for rung in bracket.rungs],
                }
                for bracket, numbers in zip(self.brackets, slots(self.brackets), strict=True)
            ],
        }


def advice(spec: StudySpec, data: DataSummary, limits: Sequence[str] = ()) -> list[str]:
    """What the lecture advises against and a study does, and what its data make of its settings, a line each.

    limits: as :attr:`StudyPlan.limits`.
    """
    domain = spec.search_space["batch_size"]
    sizes = [int(value) for value in domain.choices] if isinstance(domain, Choices) else []
    if isinstance(domain, Constant):
        sizes = [int(domain.value)]
    elif isinstance(domain, Range):
        sizes = [int(domain.high)]
    given = [*spec.advice, *limits]
    if max(sizes) <= data.n_train:
        return given
    return [*given, f"space.batch_size: above {data.n_train:,} training rows a batch is the whole training set"]


def remarks(spec: StudySpec, data: DataSummary) -> list[str]:
    """What whoever starts the study should know of its columns and settings, a line each."""
    return [*(f"note: {note}" for note in data.notes), *(f"advice: {line}" for line in advice(spec, data))]


def shift_remarks(spec: StudySpec, root: Path, data: DataSummary) -> list[str]:
    """A line where the inputs of the study's parts differ. Of a table beyond ``SHIFT_CELLS`` (rows times columns) or
    ``SHIFT_COLUMNS``, which takes long, a line that says they were not compared.
    """
    columns = sum(data.columns.values())
    if columns > SHIFT_COLUMNS or data.rows * columns > SHIFT_CELLS:
        return ["shift: the parts of so large a table are not compared here; tuner check STUDY.toml does"]
    found = check_shift(spec, root)
    return [found.verdict] if found.shifted else []


def plan_study(spec: StudySpec, root: Path) -> StudyPlan:
    """Read, split, summarize and compare the parts of a study's data, and deal its brackets; a relative data path
    starts at ``root``.

    Raises DataError when the data cannot be used.
    """
    data = summarize(spec, root)
    shift, limits = check_shift(spec, root), capacity.advice(spec, data)
    return StudyPlan(spec=spec, data=data, shift=shift, brackets=plan(spec), limits=limits)


def create_study(
    manager: StudyManager,
    spec: StudySpec,
    root: Path,
    *,
    device: str | None = None,
    told: Callable[[DataSummary], object] | None = None,
) -> bool:
    """Create the study in the manager's storage, unless it is there; whether it was created now.

    device: where it will be trained, by name; None: elsewhere, and who trains it looks. told: of the data, once it was
    created now. Raises DataError when the data cannot be used, DeviceError when the device is not here or cannot train
    every model, SpecMismatchError when the name belongs to another spec.
    """
    data = summarize(spec, root)
    if device is not None:
        capacity.check_device(spec, data, device)
    created = manager.create(
        spec, data_root=root.absolute(), data_digest=data.data_digest, split_digest=data.split_digest
    )
    if created and told is not None:
        told(data)
    return created


def create_or_resume(
    manager: StudyManager,
    spec: StudySpec,
    root: Path,
    *,
    device: str | None = None,
    told: Callable[[DataSummary], object] | None = None,
) -> None:
    """Create the study, or let workers go on with the one that is there. Raises as :func:`create_study` does; one that
    is finished needs no device.
    """
    name = spec.study.name
    if name in manager.names() and manager.summary(name).state == "finished":
        device = None
    if not create_study(manager, spec, root, device=device, told=told):
        manager.resume(name)
