"""The study file: TOML in, one frozen :class:`StudySpec` out, or every problem of the file at once."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tuner.errors import BadInputError, SpecError
from tuner.space import Constant, Domain, Space, parse_domain
from tuner.trial import HYPERPARAMETERS, Keep, Task, TrialConfig, Value

Metric = Literal["error", "accuracy", "log_loss", "rmse", "mse", "mae"]
Sampler = Literal["grid", "random", "tpe", "qmc"]
Pruner = Literal["none", "successive_halving", "hyperband"]
Direction = Literal["minimize", "maximize"]

_TASK: Mapping[str, Task] = {
    "error": "classification",
    "accuracy": "classification",
    "log_loss": "classification",
    "rmse": "regression",
    "mse": "regression",
    "mae": "regression",
}


def _setting(name: str) -> Any:
    """The pydantic type of one hyperparameter: parsed by its own rule, dumped as it was written."""
    return Annotated[
        Domain,
        BeforeValidator(lambda written: written if isinstance(written, Domain) else parse_domain(name, written)),
        PlainSerializer(lambda domain: domain.as_written()),
    ]


def _default(name: str) -> Constant:
    value = HYPERPARAMETERS[name].default
    assert value is not None
    return Constant(value=value)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class StudySection(_Section):
    """``[study]``: the name, the metric that trials are judged by, and the seed of everything random."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\s/\\]+$")
    metric: Metric
    seed: int = Field(default=0, ge=0, lt=2**63)


class SplitSection(_Section):
    """``[data] split``: shares of the rows. Left out, the size decides: 60/20/20, or 98/1/1 above a million rows."""

    train: float = Field(gt=0, lt=1)
    val: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    stratify: bool | None = None  # None: stratified for classification

    @model_validator(mode="after")
    def _adds_up(self) -> SplitSection:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + val + test must be 1, they add up to {total:g}")
        return self


class DataSection(_Section):
    """``[data]``: where the rows come from. A relative path is relative to the study file's folder."""

    source: str = Field(min_length=1)
    target: str | None = None
    split: SplitSection | None = None


class ModelSection(_Section):
    """``[model]``: the network's form; each key is a value or a domain to search."""

    activation: _setting("activation") = _default("activation")  # type: ignore[valid-type]


class TrainingSection(_Section):
    """``[training]``: how a trial trains. Hyperparameters may be a domain to search; the others are fixed."""

    optimizer: _setting("optimizer") = _default("optimizer")  # type: ignore[valid-type]
    momentum: _setting("momentum") = _default("momentum")  # type: ignore[valid-type]
    schedule: _setting("schedule") = _default("schedule")  # type: ignore[valid-type]
    warmup: _setting("warmup") = _default("warmup")  # type: ignore[valid-type]
    label_smoothing: _setting("label_smoothing") = _default("label_smoothing")  # type: ignore[valid-type]
    max_epochs: int = Field(default=81, ge=1, le=1_000_000)
    patience: int = Field(default=0, ge=0)  # epochs; 0 never stops early
    keep: Keep | None = None  # None: best with patience, else last

    @model_validator(mode="after")
    def _keep_fits_patience(self) -> TrainingSection:
        if self.patience > 0 and self.keep == "last":
            raise ValueError("patience keeps the best epoch's weights; set keep = 'best' or leave it out")
        return self


class SearchSection(_Section):
    """``[search]``: who proposes configurations, who stops them early, and how many there are in total."""

    sampler: Sampler = "random"
    pruner: Pruner = "hyperband"
    trials: int | None = Field(default=None, ge=1, le=10_000_000)  # None only for a grid: its number of points
    eta: int = Field(default=3, ge=2, le=100)  # Hyperband's η: one of η configurations survives a rung
    min_epochs: int = Field(default=1, ge=1)  # Hyperband's smallest resource


class SpaceSection(_Section):
    """``[space]``: the six hyperparameters of the lecture; each a value or a domain to search."""

    learning_rate: _setting("learning_rate")  # type: ignore[valid-type]
    batch_size: _setting("batch_size")  # type: ignore[valid-type]
    weight_decay: _setting("weight_decay") = _default("weight_decay")  # type: ignore[valid-type]
    dropout: _setting("dropout") = _default("dropout")  # type: ignore[valid-type]
    width: _setting("width")  # type: ignore[valid-type]
    depth: _setting("depth")  # type: ignore[valid-type]


class FinalSection(_Section):
    """``[final]``: how the winner is refitted before the test set is opened once."""

    seeds: int = Field(default=5, ge=1, le=1000)
    fit_on: Literal["train", "train+val"] = "train"
    confidence: float = Field(default=0.95, gt=0, lt=1)


class StudySpec(_Section):
    """Everything a study is: two equal specs are the same study. Built by :func:`load_spec` or :func:`parse_spec`."""

    study: StudySection
    data: DataSection
    model: ModelSection = Field(default_factory=ModelSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    search: SearchSection = Field(default_factory=SearchSection)
    space: SpaceSection
    final: FinalSection = Field(default_factory=FinalSection)

    @model_validator(mode="after")
    def _fits_together(self) -> StudySpec:
        problems = []
        domains = self.search_space
        if self.search.sampler == "grid":
            problems += _grid_problems(self)
        elif self.search.trials is None:
            problems.append("search.trials: missing; say how many trials the study has in total")
        elif not domains.searched:
            problems.append("space: nothing to search; give at least one hyperparameter a range or choices")
        if self.search.min_epochs > self.training.max_epochs:
            problems.append(
                f"search.min_epochs: {self.search.min_epochs} is above training.max_epochs {self.training.max_epochs}"
            )
        if self.task == "regression" and domains["label_smoothing"] != _default("label_smoothing"):
            problems.append(
                f"training.label_smoothing: is for classification; metric {self.study.metric} is regression"
            )
        if self.final.fit_on == "train+val" and self.training.patience > 0:
            problems.append("final.fit_on: train+val leaves no rows to stop early on; drop training.patience")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def task(self) -> Task:
        return _TASK[self.study.metric]

    @property
    def direction(self) -> Direction:
        return "maximize" if self.study.metric == "accuracy" else "minimize"

    @property
    def search_space(self) -> Space:
        """The domain of every hyperparameter, wherever the file wrote it."""
        sections: Mapping[str, BaseModel] = {"model": self.model, "training": self.training, "space": self.space}
        return Space({name: getattr(sections[rule.section], name) for name, rule in HYPERPARAMETERS.items()})

    @property
    def total_trials(self) -> int:
        """N: how many trials the study has, whatever the number of workers."""
        if self.search.trials is not None:
            return self.search.trials
        return self.search_space.grid_size

    @property
    def keep(self) -> Keep:
        return self.training.keep or ("best" if self.training.patience > 0 else "last")

    def trial_config(self, params: Mapping[str, Value]) -> TrialConfig:
        """The configuration of one trial; ``params`` holds every hyperparameter (see :meth:`Space.complete`)."""
        fixed = {"max_epochs": self.training.max_epochs, "patience": self.training.patience, "keep": self.keep}
        return TrialConfig.from_values({**params, **fixed})

    def as_json(self) -> str:
        """Canonical JSON: equal specs give equal text; :func:`parse_spec` of its content gives the spec again."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()

    def differences(self, given: StudySpec) -> list[str]:
        """``key: mine -> given`` for every key that differs, dotted."""
        mine, other = _flatten(self.model_dump(mode="json")), _flatten(given.model_dump(mode="json"))
        return [
            f"{key}: {json.dumps(mine.get(key))} -> {json.dumps(other.get(key))}"
            for key in sorted(mine.keys() | other.keys())
            if mine.get(key) != other.get(key)
        ]


def load_spec(path: Path, **overrides: Any) -> StudySpec:
    """Read a study file. ``overrides`` as in :func:`parse_spec`.

    Raises BadInputError when the file cannot be read or is not TOML, SpecError with all its problems otherwise.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        written = tomllib.loads(text)
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such study file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(f"{path}: not valid TOML: {error}") from None
    return parse_spec(written, source=str(path), **overrides)


def parse_spec(
    written: Mapping[str, Any],
    *,
    source: str = "study",
    name: str | None = None,
    seed: int | None = None,
    trials: int | None = None,
    max_epochs: int | None = None,
) -> StudySpec:
    """Validate the content of a study file; the keyword arguments, where given, override what it says.

    Raises SpecError with one line for each problem: dotted path, rule, fact and fix.
    """
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in written.items()}
    overrides = {
        ("study", "name"): name,
        ("study", "seed"): seed,
        ("search", "trials"): trials,
        ("training", "max_epochs"): max_epochs,
    }
    for (section, key), value in overrides.items():
        if value is not None:
            target = merged.setdefault(section, {})
            if isinstance(target, dict):
                target[key] = value
    try:
        return StudySpec.model_validate(merged)
    except ValidationError as error:
        problems = [line for detail in error.errors() for line in _problem_lines(detail)]
        raise SpecError(problems, source=source) from None


def _grid_problems(spec: StudySpec) -> list[str]:
    problems = []
    for name, domain in spec.search_space.searched.items():
        try:
            domain.grid()
        except ValueError as error:
            problems.append(f"{HYPERPARAMETERS[name].section}.{name}: {error}; search.sampler is grid")
    if not problems and spec.search.trials not in (None, spec.search_space.grid_size):
        problems.append(
            f"search.trials: the grid has {spec.search_space.grid_size} points, not {spec.search.trials}; leave trials out"
        )
    return problems


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf
        for name, item in value.items()
        for key, leaf in _flatten(item, f"{prefix}.{name}".lstrip(".")).items()
    }


def _problem_lines(detail: ErrorDetails) -> list[str]:
    """One pydantic error as lines of ``dotted.path: rule, fact, fix``."""
    path = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    if detail["type"] == "extra_forbidden":
        return [f"{path}: unknown key{_near_key(detail['loc'])}"]
    if detail["type"] == "missing":
        return [f"{path}: missing; this key is required"]
    if detail["type"] == "value_error":
        if not path:
            return message.splitlines()
        return [f"{path}: {message}"]
    if detail["type"] == "literal_error":
        expected = detail["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        return [f"{path}: {given!r} is not one of {expected}"]
    return [f"{path}: {message[:1].lower()}{message[1:]}, got {given!r}"]


def _near_key(location: tuple[int | str, ...]) -> str:
    """``; did you mean x?`` or the list of keys known at that place."""
    model: Any = StudySpec
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        models = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        model = models[0]
    known = list(model.model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    homes = [rule.section for name, rule in HYPERPARAMETERS.items() if name == location[-1]]
    if near:
        return f"; did you mean {near[0]}?"
    if homes:
        return f"; it belongs in [{homes[0]}]"
    return f"; known here: {', '.join(known)}"
