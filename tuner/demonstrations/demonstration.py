"""A demonstration: what was measured, whether the lecture's claim holds of it, and the sentence that says so."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, cast

from tuner import strict_json
from tuner.demonstrations.lab import Lab
from tuner.drawing import Figure
from tuner.errors import BadInputError
from tuner.learning.device import resolve_device
from tuner.learning.trainer import single_thread
from tuner.manager import StudyManager
from tuner.refits import candidates
from tuner.spec import Shown
from tuner.words import whole_sentence

Data = dict[str, Any]  # what was measured: JSON


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Whether the data show what the slide says, and a sentence with the numbers; where they do not, why."""

    holds: bool
    sentence: str

    @classmethod
    def unless(cls, numbers: str, failures: Mapping[str, bool]) -> Claim:
        """A claim of several parts: it holds unless one of them fails, and then the first that did is the reason.

        failures: whether a part fails, by the sentence that says so.
        """
        failed = [reason for reason, fails in failures.items() if fails]
        if failed:
            return cls(holds=False, sentence=f"not all of it did appear, because {failed[0]}: {numbers}")
        return cls(holds=True, sentence=numbers)


class Exhibit(Protocol):
    """A module of this package that is a demonstration: see :mod:`tuner.demonstrations`."""

    TITLE: str
    SLIDE: str

    def measure(self, lab: Lab) -> Data:
        """What the figure shows."""

    def claim(self, data: Mapping[str, Any]) -> Claim:
        """What the data say of the slide."""

    def draw(self, data: Mapping[str, Any]) -> Figure:
        """The figure."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One demonstration of one study. data: as JSON has them, everything that the figure shows."""

    study: str
    name: Shown
    title: str
    slide: str
    holds: bool
    sentence: str
    data: Mapping[str, Any]

    @classmethod
    def of(cls, study: str, name: Shown, data: Data) -> Demonstration:
        """Judged by its data alone."""
        shown = exhibit(name)
        data = strict_json.finite(data)
        found = shown.claim(data)
        return cls(
            study=study,
            name=name,
            title=shown.TITLE,
            slide=shown.SLIDE,
            holds=found.holds,
            sentence=found.sentence,
            data=data,
        )

    def as_dict(self) -> dict[str, Any]:
        """The machine-readable form."""
        return asdict(self)

    def figure(self) -> Figure:
        """Drawn from its data, with its sentence below."""
        return replace(exhibit(self.name).draw(self.data), told=whole_sentence(self.sentence))


def exhibit(name: Shown) -> Exhibit:
    """The demonstration's module."""
    return cast(Exhibit, importlib.import_module(f"tuner.demonstrations.{name}"))


def demonstrate(
    manager: StudyManager,
    name: str,
    shown: Shown | None = None,
    *,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> Demonstration:
    """Measure, judge and store a demonstration of a study; left out, the one that its file names.

    Raises StudyNotFoundError; BadInputError while the search is not over, or when the demonstration is not for such a
    study; NothingCompletedError without a winner; DataError.
    """
    spec = manager.spec(name)
    shown = shown or spec.study.shows
    if shown is None:
        raise BadInputError(f"study {name!r} names no demonstration (study.shows); say which: tuner demonstrate --help")
    if (state := manager.summary(name).state) not in ("finished", "stopped"):
        raise BadInputError(
            f"study {name!r} is {state}: a demonstration begins when the search is over; "
            f"finish it with tuner run or tuner worker, or end it with: tuner stop {name}"
        )
    place = resolve_device(device, spec.training.precision, double=True)
    if place.type == "cpu":
        single_thread()
    lab = Lab(spec=spec, root=manager.data_root(name), ranked=candidates(manager, name), device=place, say=say)
    manager.check_digests(name, data=lab.data.data_digest, split=lab.data.split_digest)
    found = Demonstration.of(name, shown, exhibit(shown).measure(lab))
    manager.store_demonstration(name, shown, found.as_dict())
    return found
