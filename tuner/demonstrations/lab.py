"""The lab: a finished study as a demonstration works with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from tuner.data.dataset import Rows, TrainingData, View, load_final_data, load_training_data
from tuner.data.preprocessing import Preprocessing
from tuner.data.synthetic import Truth, known_truth
from tuner.errors import BadInputError
from tuner.learning.device import DeviceData
from tuner.learning.ensemble import votes
from tuner.learning.lanes import Lane
from tuner.learning.metrics import head_of
from tuner.learning.randomness import lane_key
from tuner.refits import Member
from tuner.space import Choices, Constant
from tuner.spec import Corruption, CorruptSection, StudySpec
from tuner.trial import TrialConfig

Floats = npt.NDArray[np.float64]

WIDTHS = 8  # at most, where the search space has a range of them
SHOWN = 2  # the second part of a demonstration's key paths; a trial's has one part, a refit's second is 1


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A study whose search is over. ranked: its completed trials, the best first, no two of one configuration.

    say: hears what goes on, a few words at a time.
    """

    spec: StudySpec
    root: Path
    ranked: Sequence[Member]
    device: torch.device
    say: Callable[[str], None] = lambda _: None

    @property
    def winner(self) -> Member:
        return self.ranked[0]

    @cached_property
    def data(self) -> TrainingData:
        """The study's train and validation rows."""
        return load_training_data(self.spec, self.root)

    @property
    def view(self) -> View:
        """The rows as the winner sees them, of the first fold."""
        return self.data.views[self.winner.config.scaling, 0]

    @property
    def n_features(self) -> int:
        """D of the rows as the winner sees them."""
        return int(self.view.train.x.shape[1])

    @property
    def placed(self) -> DeviceData:
        """:attr:`data` on the device."""
        return DeviceData.place(self.data, self.device)

    @cached_property
    def fitted(self) -> Preprocessing:
        """Fitted on the train rows: what made :attr:`view` ready, and makes any other row so."""
        final = self.spec.final.model_copy(update={"fit_on": "train"})
        spec = self.spec.model_copy(update={"final": final})
        return load_final_data(spec, self.root, self.winner.config.scaling).preprocessing

    def ready(self, x: Floats) -> npt.NDArray[np.float32]:
        """Rows of a synthetic source as the winner sees them: (n, dimensions) -> (n, D)."""
        frame = pl.DataFrame({f"x{i}": column for i, column in enumerate(np.ascontiguousarray(x.T))})
        return self.fitted.transform(frame)

    def rows(self, x: Floats, y: Floats) -> Rows:
        """Rows of a synthetic source ready to be trained or judged on."""
        return Rows(x=self.ready(x), y=self.fitted.transform_target(y))

    def values(self, outputs: Tensor) -> Floats:
        """Outputs as estimates of E[y|x]: numbers in the target's own unit, or probabilities of the second of two
        classes: (…, n, C) -> (…, n). Raises BadInputError for more classes.
        """
        if self.spec.task == "regression":
            found = outputs[..., 0].double() * self.fitted.target_sd + self.fitted.target_mean
        elif outputs.shape[-1] == 2:
            found = votes(head_of(self.winner.config.loss, self.spec.task), outputs)[..., 1].double()
        else:
            raise BadInputError(f"study {self.spec.study.name!r}: this demonstration is of two classes, or of numbers")
        values: Floats = found.cpu().numpy()
        return values

    @property
    def truth(self) -> Truth:
        """The distribution of the rows. Raises BadInputError where nobody knows it."""
        truth = known_truth(self.spec.data)
        if truth is None:
            spoiled = "" if self.spec.data.corrupt is None else ", corrupted"
            raise BadInputError(
                f"study {self.spec.study.name!r}: this demonstration needs data of a known truth, and its source is "
                f"{self.spec.data.source}{spoiled}; use one such as synthetic:gaussian_mixture"
            )
        return truth

    def classification_only(self) -> None:
        """Raises BadInputError where the target is a number."""
        if self.spec.task != "classification":
            raise BadInputError(
                f"study {self.spec.study.name!r}: this demonstration is of classes, and metric "
                f"{self.spec.study.metric} is of numbers; use a study of a metric such as error"
            )

    def corrupted(self, kind: Corruption | None, fraction: float | None = None, seed: int = 0) -> View:
        """The winner's view of the study's data under another corruption, or none."""
        section = None if kind is None else CorruptSection(kind=kind, fraction=fraction, seed=seed)
        data = self.spec.data.model_copy(update={"corrupt": section})
        spec = self.spec.model_copy(update={"data": data})
        return load_training_data(spec, self.root).views[self.winner.config.scaling, 0]

    def config(self, **changes: Any) -> TrialConfig:
        """The winner's configuration with changes."""
        return replace(self.winner.config, **changes)

    def unregularized(self, **changes: Any) -> TrialConfig:
        """The winner's configuration without anything that holds it back from fitting its rows, with changes."""
        free: Mapping[str, Any] = {
            "weight_decay": 0.0,
            "l2": 0.0,
            "dropout": 0.0,
            "input_dropout": 0.0,
            "label_smoothing": 0.0,
            "averaging": "none",
        }
        return replace(self.winner.config, **{**free, **changes})

    def widths(self) -> list[int]:
        """Widths to sweep: those of the search space, some of a range; of a fixed width, powers of two up to it."""
        domain = self.spec.search_space["width"]
        if isinstance(domain, Choices):
            return sorted(int(width) for width in domain.choices)
        if isinstance(domain, Constant):
            high = int(domain.value)
            return [2**i for i in range(high.bit_length()) if 2**i < high] + [high]
        return sorted({round(width) for width in np.geomspace(domain.low, domain.high, WIDTHS)})

    def lane(self, number: int, config: TrialConfig, *, seed: int, fold: int = 0) -> Lane:
        """A lane whose random streams are those of (study seed, ``seed``), unlike any trial's or refit's."""
        return Lane(number=number, config=config, key=lane_key(self.spec.study.seed, seed, SHOWN), fold=fold)
