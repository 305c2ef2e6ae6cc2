"""The study file: TOML in, one frozen :class:`StudySpec` out, or every problem of the file at once."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from tuner.errors import BadInputError, SpecError
from tuner.space import Choices, Constant, Domain, Range, Space, parse_domain
from tuner.trial import HYPERPARAMETERS, Keep, Precision, Task, TrialConfig, Value

Metric = Literal["error", "accuracy", "balanced_accuracy", "f1", "roc_auc", "log_loss", "rmse", "mse", "mae", "r2"]
Sampler = Literal["grid", "random", "tpe", "qmc"]
Pruner = Literal["none", "successive_halving", "asha", "hyperband"]
Direction = Literal["minimize", "maximize"]
# What a study may show of the lecture: each a module of tuner/demonstrations.
Shown = Literal[
    "law_of_large_numbers",
    "bias_variance",
    "rademacher",
    "complexity",
    "random_labels",
    "weight_decay",
    "dropout",
    "swa",
    "double_descent",
    "implicit_regularization",
]
# Those that count errors.
OF_CLASSES: tuple[Shown, ...] = (
    "rademacher",
    "complexity",
    "random_labels",
    "dropout",
    "double_descent",
    "implicit_regularization",
)
Corruption = Literal["random_labels", "shuffled_pixels", "random_pixels", "gaussian_inputs"]
Distribution = Literal["gaussian_mixture", "linear_noise", "two_moons"]

Vector = tuple[float, ...]
Location = tuple[str, ...]  # the keys that lead to a place in the file: ("data", "split", "train")

MAX_TRIALS = 10_000_000
MAX_MINUTES = 525_600.0  # a year
# How many trials a study has at most that says only how long it may take: more than a GPU gets through in the time, few
# enough that inserting their slots takes less than a hundredth of it.
TRIALS_A_MINUTE = 10_000
TRIALS_IN_TIME = (1_000, 500_000)


@dataclass(frozen=True, kw_only=True)
class MetricRule:
    """What a metric is for and which way is up; how it is computed: :func:`tuner.learning.metrics.score`.

    zero_one: the mean over rows of a number that is 0 or 1, which is what Wilson's interval and Hoeffding's bound need.
    probabilities: it reads outputs as probabilities, so the loss has to train some.
    """

    task: Task
    direction: Direction
    zero_one: bool = False
    probabilities: bool = False


METRICS: Mapping[Metric, MetricRule] = {
    "error": MetricRule(task="classification", direction="minimize", zero_one=True),
    "accuracy": MetricRule(task="classification", direction="maximize", zero_one=True),
    "balanced_accuracy": MetricRule(task="classification", direction="maximize"),
    "f1": MetricRule(task="classification", direction="maximize"),
    "roc_auc": MetricRule(task="classification", direction="maximize"),
    "log_loss": MetricRule(task="classification", direction="minimize", probabilities=True),
    "rmse": MetricRule(task="regression", direction="minimize"),
    "mse": MetricRule(task="regression", direction="minimize"),
    "mae": MetricRule(task="regression", direction="minimize"),
    "r2": MetricRule(task="regression", direction="maximize"),
}


def metrics_for(task: Task) -> str:
    """The names of a task's metrics, for a message."""
    return ", ".join(name for name, rule in METRICS.items() if rule.task == task)


# Values for the required keys, so that the rest of a file can be checked while one of them is broken.
_STAND_INS: Mapping[str, Mapping[str, Value]] = {
    "study": {"name": "study", "metric": "error"},
    "data": {"source": "stand-in"},
    "space": {"learning_rate": 0.1, "batch_size": 1, "width": 1, "depth": 1},
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
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class StudySection(_Section):
    """``[study]``: the name, the metric that trials are judged by, and the seed of everything random.

    ``shows`` names what the study is to demonstrate once its search is over, see :mod:`tuner.demonstrations`.
    """

    name: str
    metric: Metric
    seed: int = Field(default=0, ge=0, lt=2**63)
    shows: Shown | None = None

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        """A name is an argument on the command line, a folder and a database key."""
        if not re.fullmatch(r"\w[\w.:=+@-]{0,199}", name):
            raise ValueError(
                f"{name!r} is not a name: up to 200 letters, digits and _ . : = + @ -, the first a letter, a digit or _"
            )
        return name


class SplitSection(_Section):
    """``[data] split``: which rows train, validate and test.

    Shares of the rows (left out, the size decides: 60/20/20, or 98/1/1 above a million rows), dealt at random, by
    ``group`` or by ``time``; or ``folds``, with a share to test on; or the parts are given, by a ``column`` of the
    table or a ``file`` of row numbers.
    """

    train: float | None = Field(default=None, gt=0, lt=1)
    val: float | None = Field(default=None, gt=0, lt=1)
    test: float | None = Field(default=None, ge=0, lt=1)  # 0: no test rows, for what is tested elsewhere
    stratify: bool | None = None  # None: stratified for classification, unless dealt by group or time
    group: str | None = None  # rows that agree in this column stay in one part
    time: str | None = None  # this column orders the rows: train before validation before test
    folds: int = Field(default=0, ge=0, le=100)  # 0: one validation part
    column: str | None = None  # it says train, val or test in every row
    file: str | None = None  # a JSON or NPZ file with the row numbers of train, val and test

    @field_validator("folds")
    @classmethod
    def _is_several(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold leaves no rows to train on; give 2 or more, or leave folds out")
        return folds

    @property
    def fractions(self) -> tuple[float, float, float] | None:
        """Shares of train, validation and test; None where the size decides."""
        if self.train is None or self.val is None or self.test is None:
            return None
        return self.train, self.val, self.test

    @model_validator(mode="after")
    def _is_one_rule(self, info: ValidationInfo) -> SplitSection:
        if any(
            location == ("data", "split", key) for location in info.context or () for key in type(self).model_fields
        ):
            return self  # one of its keys was taken out
        ways = [key for key in ("column", "file", "time", "folds") if getattr(self, key)]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are two ways to split; keep one of them")
        shares = [key for key in ("train", "val", "test") if getattr(self, key) is not None]
        if ways and ways[0] in ("column", "file"):
            if given := [*shares, *(key for key in ("stratify", "group") if getattr(self, key) is not None)]:
                raise ValueError(f"{ways[0]} says where each row belongs; drop {', '.join(given)}")
        elif self.folds:
            if given := [key for key in shares if key != "test"]:
                raise ValueError(f"folds share what is not test, so each row validates once; drop {', '.join(given)}")
        elif shares and len(shares) < 3:
            raise ValueError("train, val and test belong together; give all three shares, or none")
        elif (fractions := self.fractions) is not None and abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(f"train + val + test must be 1, they add up to {sum(fractions):g}")
        if self.time is not None and self.group is not None:
            raise ValueError("group and time are two ways to split; keep one of them")
        for key in ("time", "group"):
            if self.stratify and getattr(self, key) is not None:
                raise ValueError(f"stratify: is for a random split, this one is by {key}; drop one of them")
        return self


def _vector(written: Any) -> Vector | None:
    """A number, or a list of numbers."""
    if written is None:
        return None
    numbers = written if isinstance(written, list | tuple) else [written]
    if not numbers or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise ValueError(f"needs a number or a list of numbers, got {written!r}")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"needs finite numbers, got {written!r}")
    return tuple(map(float, numbers))


def _two_vectors(written: Any) -> tuple[Vector, Vector] | None:
    """One for each class."""
    if written is None:
        return None
    if not isinstance(written, list | tuple) or len(written) != 2:
        raise ValueError(f"needs two, of class 0 and of class 1, each a number or a list of numbers, got {written!r}")
    first, second = map(_vector, written)
    if first is None or second is None:
        raise ValueError(f"needs two, of class 0 and of class 1, got {written!r}")
    return first, second


def _two_variances(written: Any) -> tuple[float, float] | None:
    if written is None:
        return None
    numbers = _vector(written)
    if numbers is None or len(numbers) != 2 or min(numbers) <= 0:
        raise ValueError(f"needs two numbers above 0, of class 0 and of class 1, got {written!r}")
    return numbers[0], numbers[1]


def _checked_by(rule: Callable[[Any], Any]) -> tuple[PlainValidator, PlainSerializer]:
    """How pydantic reads a key that one function checks as a whole, and writes it as it is."""
    return PlainValidator(rule), PlainSerializer(lambda value: value)


class SyntheticSection(_Section):
    """``[data.synthetic]``: the parameters of a ``synthetic:`` source, see :mod:`tuner.data.synthetic`.

    None is the distribution's own default. ``rows`` and ``seed`` are for all of them; each other key names those that
    it is for in :data:`SYNTHETIC_KEYS`.
    """

    rows: int = Field(default=1000, ge=3, le=100_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    dimension: int | None = Field(default=None, ge=1, le=10_000)
    means: Annotated[tuple[Vector, Vector] | None, *_checked_by(_two_vectors)] = None  # of class 0 and of class 1
    variances: Annotated[tuple[float, float] | None, *_checked_by(_two_variances)] = None
    prior: float | None = Field(default=None, gt=0, lt=1)  # P(y = 1)
    label_noise: float | None = Field(default=None, ge=0, le=0.5)  # P(a label is the other class's)
    theta: Annotated[Vector | None, *_checked_by(_vector)] = None
    noise: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # standard deviation

    @model_validator(mode="after")
    def _fits_together(self) -> SyntheticSection:
        vectors = {"theta": self.theta} if self.theta else {}
        vectors |= {f"means[{i}]": mean for i, mean in enumerate(self.means or ()) if len(mean) > 1}
        lengths = {key: len(vector) for key, vector in vectors.items()}
        if self.dimension is not None:
            lengths["dimension"] = self.dimension
        if len(set(lengths.values())) > 1:
            raise ValueError(f"sizes differ: {', '.join(f'{key} is of {n}' for key, n in lengths.items())}")
        return self


SYNTHETIC_KEYS: Mapping[str, tuple[Distribution, ...]] = {
    "dimension": ("gaussian_mixture", "linear_noise"),
    "means": ("gaussian_mixture",),
    "variances": ("gaussian_mixture",),
    "prior": ("gaussian_mixture", "two_moons"),
    "label_noise": ("gaussian_mixture", "two_moons"),
    "theta": ("linear_noise",),
    "noise": ("linear_noise", "two_moons"),
}


class CorruptSection(_Section):
    """``[data] corrupt``: what is spoiled on purpose, see :mod:`tuner.data.corruption`."""

    kind: Corruption
    fraction: float | None = Field(default=None, ge=0, le=1)  # of random labels; None: all of them
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _has_labels(self) -> CorruptSection:
        if self.fraction is not None and self.kind != "random_labels":
            raise ValueError(f"fraction is for random_labels; {self.kind} spoils every row: drop it")
        return self


class DataSection(_Section):
    """``[data]``: where the rows come from. A relative path is relative to the study file's folder.

    ``drop`` names columns that are not features; ``categorical`` names columns whose numbers are only names (007 is
    not 7 where a CSV's train rows have zeros in front).
    """

    source: str = Field(min_length=1)
    target: str | None = None
    synthetic: SyntheticSection | None = None
    corrupt: CorruptSection | None = None  # a kind alone is short for a table of it
    split: SplitSection | None = None
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    scaling: _setting("scaling") = _default("scaling")  # type: ignore[valid-type]

    @field_validator("drop", "categorical", mode="before")
    @classmethod
    def _is_a_list(cls, names: Any) -> Any:
        return tuple(names) if isinstance(names, list) else names

    @field_validator("corrupt", mode="before")
    @classmethod
    def _is_a_kind(cls, written: Any) -> Any:
        return {"kind": written} if isinstance(written, str) else written

    @property
    def folds(self) -> int:
        """How many folds a trial is trained on; 1 without folds."""
        return self.split.folds or 1 if self.split is not None else 1


class ModelSection(_Section):
    """``[model]``: the network's form; each key is a value or a domain to search."""

    activation: _setting("activation") = _default("activation")  # type: ignore[valid-type]
    loss: _setting("loss") = _default("loss")  # type: ignore[valid-type]
    initialization: _setting("initialization") = _default("initialization")  # type: ignore[valid-type]
    norm: _setting("norm") = _default("norm")  # type: ignore[valid-type]
    residual: _setting("residual") = _default("residual")  # type: ignore[valid-type]
    input_dropout: _setting("input_dropout") = _default("input_dropout")  # type: ignore[valid-type]


class TrainingSection(_Section):
    """``[training]``: how a trial trains. Hyperparameters may be a domain to search; the others are fixed."""

    optimizer: _setting("optimizer") = _default("optimizer")  # type: ignore[valid-type]
    momentum: _setting("momentum") = _default("momentum")  # type: ignore[valid-type]
    beta2: _setting("beta2") = _default("beta2")  # type: ignore[valid-type]
    l2: _setting("l2") = _default("l2")  # type: ignore[valid-type]
    decay_biases: _setting("decay_biases") = _default("decay_biases")  # type: ignore[valid-type]
    clip_norm: _setting("clip_norm") = _default("clip_norm")  # type: ignore[valid-type]
    schedule: _setting("schedule") = _default("schedule")  # type: ignore[valid-type]
    warmup: _setting("warmup") = _default("warmup")  # type: ignore[valid-type]
    decay: _setting("decay") = _default("decay")  # type: ignore[valid-type]
    decay_epochs: _setting("decay_epochs") = _default("decay_epochs")  # type: ignore[valid-type]
    reference_batch_size: _setting("reference_batch_size") = _default("reference_batch_size")  # type: ignore[valid-type]
    label_smoothing: _setting("label_smoothing") = _default("label_smoothing")  # type: ignore[valid-type]
    class_weight: _setting("class_weight") = _default("class_weight")  # type: ignore[valid-type]
    averaging: _setting("averaging") = _default("averaging")  # type: ignore[valid-type]
    averaging_start: _setting("averaging_start") = _default("averaging_start")  # type: ignore[valid-type]
    ema_decay: _setting("ema_decay") = _default("ema_decay")  # type: ignore[valid-type]
    max_epochs: int = Field(default=81, ge=1, le=1_000_000)
    patience: int = Field(default=0, ge=0)  # epochs; 0 never stops early
    keep: Keep | None = None  # None: best with patience, else last
    precision: Precision = "float32"  # of matrix products, on every device that works on the study


class RefineSection(_Section):
    """``[search] refine``: coarse to fine. Each round of trials draws from around the best of the one before."""

    rounds: int = Field(ge=2, le=100)
    keep: float = Field(gt=0, lt=1)  # the best share of a round's trials, which the next round's ranges surround


class SearchSection(_Section):
    """``[search]``: who proposes configurations, who stops them early, and how many there are in total."""

    sampler: Sampler = "random"
    pruner: Pruner = "hyperband"
    trials: int | None = Field(default=None, ge=1, le=MAX_TRIALS)  # None: a grid's points, or what minutes allow
    # The time budget: during which at least one worker is at work. Whichever is reached first, trials or minutes.
    minutes: float | None = Field(default=None, gt=0, le=MAX_MINUTES, allow_inf_nan=False)
    eta: int = Field(default=3, ge=2, le=100)  # Hyperband's η: one of η configurations survives a rung
    min_epochs: int = Field(default=1, ge=1)  # Hyperband's smallest resource
    refine: RefineSection | None = None  # None: all trials draw from the whole space


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
    fit_on: Literal["train", "train+val"] | None = None  # None: train, or all of both where they were folds
    confidence: float = Field(default=0.95, gt=0, lt=1)


class LogSection(_Section):
    """``[log]``: where the trials that are over are logged as well, for those who look at them in other tools.

    mlflow: the address of a tracking server or database, or a folder. tensorboard: a folder. A relative folder is
    relative to the study file's. What a study is does not depend on them: they may change at any time.
    """

    mlflow: str | None = Field(default=None, min_length=1)
    tensorboard: str | None = Field(default=None, min_length=1)

    @field_validator("mlflow")
    @classmethod
    def _has_no_password(cls, place: str | None) -> str | None:
        if place is not None and re.match(r"[^/]*://[^/]*:[^/]*@", place):
            raise ValueError(
                "a password would be stored with the study; leave it out, and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        return place

    @field_validator("tensorboard")
    @classmethod
    def _is_a_folder(cls, place: str | None) -> str | None:
        if place is not None and "://" in place:
            raise ValueError(f"{place!r} is no folder; TensorBoard's files are written to a folder")
        return place


class StudySpec(_Section):
    """Everything a study is: two equal specs are the same study. Built by :func:`load_spec` or :func:`parse_spec`."""

    study: StudySection
    data: DataSection
    model: ModelSection = Field(default_factory=ModelSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    search: SearchSection = Field(default_factory=SearchSection)
    space: SpaceSection
    final: FinalSection = Field(default_factory=FinalSection)
    log: LogSection = Field(default_factory=LogSection, exclude=True)  # no part of the JSON, and so of the digest

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> StudySpec:
        if problems := list(_conflicts(self, info.context or frozenset())):
            raise ValueError("\n".join(problems))
        return self

    @property
    def task(self) -> Task:
        return METRICS[self.study.metric].task

    @property
    def direction(self) -> Direction:
        return METRICS[self.study.metric].direction

    @property
    def search_space(self) -> Space:
        """The domain of every hyperparameter, wherever the file wrote it."""
        sections: Mapping[str, BaseModel] = {
            "data": self.data,
            "model": self.model,
            "training": self.training,
            "space": self.space,
        }
        return Space({name: getattr(sections[rule.section], name) for name, rule in HYPERPARAMETERS.items()})

    @property
    def total_trials(self) -> int:
        """N: how many trials the study has, whatever the number of workers; with ``search.minutes``, at most."""
        if self.search.trials is not None:
            return self.search.trials
        if self.search.sampler == "grid" or self.search.minutes is None:
            return self.search_space.grid_size
        fewest, most = TRIALS_IN_TIME
        return max(fewest, min(round(TRIALS_A_MINUTE * self.search.minutes), most))

    @property
    def fit_on(self) -> Literal["train", "train+val"]:
        """The rows that the winner is refitted on."""
        return self.final.fit_on or ("train+val" if self.data.folds > 1 else "train")

    @property
    def has_test_rows(self) -> bool:
        """Whether there will be a test error."""
        return self.data.split is None or self.data.split.test != 0

    @property
    def keep(self) -> Keep:
        return self.training.keep or ("best" if self.training.patience > 0 else "last")

    @property
    def advice(self) -> list[str]:
        """What the lecture advises against and the spec does: one line each."""
        dropout = any(d != _default("dropout") for d in (self.space.dropout, self.model.input_dropout))
        if dropout and "batch" in _listed(self.model.norm):
            return ["model.norm: batch normalisation and dropout disturb each other; the lecture advises one of them"]
        return []

    def trial_config(self, params: Mapping[str, Value]) -> TrialConfig:
        """The configuration of one trial; ``params`` holds every hyperparameter (see :meth:`Space.complete`)."""
        fixed = {name: getattr(self.training, name) for name in ("max_epochs", "patience", "precision")}
        return TrialConfig.from_values({**params, **fixed, "keep": self.keep})

    def as_json(self) -> str:
        """Canonical JSON: equal specs give equal text; :func:`parse_spec` of its content gives the spec again."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()

    def differences(self, given: StudySpec) -> list[str]:
        """``key: mine -> given`` for every key that differs, dotted."""
        mine, other = _keys(self), _keys(given)
        return [
            f"{key}: {json.dumps(mine[key])} -> {json.dumps(other[key])}" for key in mine if mine[key] != other[key]
        ]


def known_shown(name: str) -> Shown:
    """A demonstration's name. Raises BadInputError with those there are."""
    for known in get_args(Shown):
        if name == known:
            return known  # type: ignore[no-any-return]
    near = difflib.get_close_matches(name, get_args(Shown), n=1)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(get_args(Shown))}"
    raise BadInputError(f"no demonstration {name!r}; {fix}")


def load_spec(path: Path, **overrides: Any) -> StudySpec:
    """Read a study file. ``overrides`` as in :func:`parse_spec`.

    Raises BadInputError when the file cannot be read or is not TOML, SpecError with all its problems otherwise.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such study file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read: {error}") from None
    try:
        written = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or a number of more digits than Python reads
        raise BadInputError(f"{path}: not valid TOML: {error}") from None
    return parse_spec(written, source=str(path), **overrides)


def parse_spec(
    written: Mapping[str, Any],
    *,
    source: str = "study",
    name: str | None = None,
    seed: int | None = None,
    trials: int | None = None,
    minutes: float | None = None,
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
        ("search", "minutes"): minutes,
        ("training", "max_epochs"): max_epochs,
    }
    for (section, key), value in overrides.items():
        if value is not None:
            target = merged.setdefault(section, {})
            if isinstance(target, dict):
                target[key] = value
    return _validated(merged, source)


def _validated(written: Mapping[str, Any], source: str) -> StudySpec:
    """The spec, or SpecError with every problem.

    Pydantic checks keys, then the keys of a table together, then the tables together, and stops where the first of
    these fails. So the broken keys are taken out, required ones replaced by a stand-in, and the rest is checked again,
    until nothing is left unchecked.
    """
    problems: list[str] = []
    broken: frozenset[Location] = frozenset()
    content = written
    while () not in broken:
        try:
            spec = StudySpec.model_validate(content, context=broken)
        except ValidationError as error:
            details = error.errors()
        else:
            if not problems:
                return spec
            break
        fresh = [detail for detail in details if _location(detail) not in broken]
        problems += [line for detail in fresh for line in _problem_lines(detail)]
        # Where nothing is fresh, a table cannot do without a key that was taken out: it goes as a whole.
        broken |= {_location(detail) for detail in fresh} or {_above(_location(detail), broken) for detail in details}
        content = _without(written, broken)
        for section, stand_ins in _STAND_INS.items():
            content[section] = {**stand_ins, **content.get(section, {})}
    raise SpecError(problems, source=source)


def _conflicts(spec: StudySpec, broken: frozenset[Location]) -> Iterator[str]:
    """What each key alone allows and the keys together do not. A rule that reads a broken key is not applied."""

    def sound(*paths: str) -> bool:
        return not any(_touches(tuple(path.split(".")), location) for path in paths for location in broken)

    sections = ("data.scaling", "model", "training", "space")
    search, training = spec.search, spec.training
    if spec.data.synthetic is not None and sound("data.source", "data.synthetic"):
        yield from _synthetic_problems(spec.data.source, spec.data.synthetic)
    if search.sampler == "grid":
        if sound("search.sampler", "search.trials", *sections):
            yield from _grid_problems(spec)
    elif sound("search.sampler"):
        if search.trials is None and search.minutes is None and sound("search.trials", "search.minutes"):
            yield "search.trials: missing; say how many trials the study has in total, or give search.minutes"
        elif search.trials is None and sound("search.trials", "search.minutes"):
            yield from _unbounded_problems(search, sound)
        if not spec.search_space.searched and sound(*sections):
            yield "space: nothing to search; give at least one hyperparameter a range or choices"
    if search.refine is not None and sound("search.refine"):
        if search.sampler == "grid" and sound("search.sampler"):
            yield "search.refine: a grid's points are all listed before it starts; drop refine, or use random"
        elif search.trials is not None and search.trials < search.refine.rounds and sound("search.trials"):
            yield (
                f"search.refine: {search.refine.rounds} rounds need at least as many trials, search.trials is "
                f"{search.trials}; give more trials, or fewer rounds"
            )
    if spec.study.shows is not None and sound("study", "data.source", "data.corrupt"):
        yield from _shown_problems(spec, spec.study.shows)
    if search.min_epochs > training.max_epochs and sound("search.min_epochs", "training.max_epochs"):
        yield (
            f"search.min_epochs: {search.min_epochs} is above training.max_epochs {training.max_epochs}; "
            "lower it, or train longer"
        )
    if sound("study.metric", "model.loss", "training.label_smoothing", "training.class_weight"):
        yield from _loss_problems(spec)
    momentum = training.momentum
    lowest = momentum.low if isinstance(momentum, Range) else min(_listed(momentum))
    if "nesterov" in _listed(training.optimizer) and lowest == 0 and sound("training.optimizer", "training.momentum"):
        yield "training.momentum: nesterov needs momentum above 0; raise it, or use sgd"
    if training.patience > 0 and training.keep == "last" and sound("training.patience", "training.keep"):
        yield "training.keep: patience keeps the best epoch's weights, not the last; set keep = 'best' or leave it out"
    if spec.data.folds > 1 and spec.final.fit_on == "train" and sound("data.split", "final.fit_on"):
        yield "final.fit_on: with folds every row is a train row of some fold; drop fit_on"
    if spec.fit_on == "train+val" and sound("final.fit_on"):
        key = "data.split.folds" if spec.data.folds > 1 else "final.fit_on"
        if training.patience > 0 and sound("training.patience"):
            yield f"{key}: the refit on train+val leaves no rows to stop early on; drop training.patience"
        if training.keep == "best" and sound("training.keep"):
            yield f"{key}: the refit on train+val leaves no rows to pick the best epoch on; drop training.keep"


def _shown_problems(spec: StudySpec, shows: Shown) -> Iterator[str]:
    """What a demonstration needs of a study and the file already denies."""
    if shows in OF_CLASSES and spec.task != "classification":
        yield f"study.shows: {shows} is of classes; metric {spec.study.metric} is of numbers; use error, or drop shows"
    if shows == "law_of_large_numbers" and not spec.data.source.startswith("synthetic:"):
        yield f"study.shows: {shows} needs a known truth; data.source is {spec.data.source}; use one of synthetic:"
    elif shows == "law_of_large_numbers" and spec.data.corrupt is not None:
        yield f"study.shows: {shows} needs a known truth, and corrupted data have none; drop data.corrupt"


def _synthetic_problems(source: str, section: SyntheticSection) -> Iterator[str]:
    """Parameters of a source that has none, or that are another distribution's. An unknown name is refused when the
    source is read, as any unknown source.
    """
    scheme, _, name = source.partition(":")
    if scheme != "synthetic":
        yield f"data.synthetic: is for synthetic: sources; data.source is {source}; drop it"
        return
    for key, owners in SYNTHETIC_KEYS.items():
        if getattr(section, key) is not None and name in get_args(Distribution) and name not in owners:
            yield f"data.synthetic.{key}: is for {' and '.join(owners)}; data.source is {source}; drop it"


def _unbounded_problems(search: SearchSection, sound: Callable[..., bool]) -> Iterator[str]:
    """What cannot be planned where the time alone says how many trials there are."""
    if search.pruner == "successive_halving" and sound("search.pruner"):
        yield (
            "search.trials: missing; the one bracket of successive_halving is as large as the study: give trials "
            "beside minutes, or use hyperband or asha"
        )
    if search.refine is not None and sound("search.refine"):
        yield "search.trials: missing; the rounds of refine are shares of the trials: give trials beside minutes"


def _listed(domain: Domain) -> tuple[Value, ...]:
    """The values of a constant or of choices; none of a range."""
    if isinstance(domain, Constant):
        return (domain.value,)
    return domain.choices if isinstance(domain, Choices) else ()


def _loss_problems(spec: StudySpec) -> Iterator[str]:
    metric, losses = spec.study.metric, _listed(spec.model.loss)
    smoothed = spec.training.label_smoothing != _default("label_smoothing")
    if spec.task == "regression":
        for loss in sorted({"cross_entropy", "hinge"} & set(losses)):
            yield f"model.loss: {loss} is for classification; metric {metric} is regression; use square or auto"
        if smoothed:
            yield f"training.label_smoothing: is for classification; metric {metric} is regression; drop it"
        if "balanced" in _listed(spec.training.class_weight):
            yield f"training.class_weight: is for classification; metric {metric} is regression; drop it"
        return
    for loss in sorted({"square", "hinge"} & set(losses)):
        if METRICS[metric].probabilities:
            yield f"model.loss: {loss} trains no probabilities, which metric {metric} needs; use cross_entropy or auto"
        if smoothed:
            yield f"training.label_smoothing: is for cross_entropy; model.loss may be {loss}; drop one of them"


def _grid_problems(spec: StudySpec) -> Iterator[str]:
    listed = True
    for name, domain in spec.search_space.searched.items():
        try:
            _ = domain.grid_size
        except ValueError as error:
            listed = False
            yield f"{HYPERPARAMETERS[name].section}.{name}: {error}; search.sampler is grid"
    if not listed:
        return
    size, trials = spec.search_space.grid_size, spec.search.trials
    if size > MAX_TRIALS:
        yield f"search.sampler: the grid has {size} points, at most {MAX_TRIALS} fit; list fewer values, or use random"
    elif trials not in (None, size):
        yield f"search.trials: the grid has {size} points, not {trials}; leave trials out"


def _location(detail: ErrorDetails) -> Location:
    return tuple(str(part) for part in detail["loc"])


def _above(location: Location, broken: frozenset[Location]) -> Location:
    """The nearest table around a location that has not been taken out yet."""
    while location in broken:
        location = location[:-1]
    return location


def _touches(path: Location, other: Location) -> bool:
    """Whether one is the other, or a table that holds it."""
    shared = min(len(path), len(other))
    return path[:shared] == other[:shared]


def _without(table: Mapping[str, Any], locations: frozenset[Location], prefix: Location = ()) -> dict[str, Any]:
    """A copy of nested tables without the keys at some locations."""
    return {
        key: _without(value, locations, (*prefix, key)) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if (*prefix, key) not in locations
    }


def _keys(spec: StudySpec) -> dict[str, Any]:
    """``section.key`` and its value for every key of a spec."""
    sections = spec.model_dump(mode="json")
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def _problem_lines(detail: ErrorDetails) -> list[str]:
    """One pydantic error as lines of ``dotted.path: rule, fact, fix``."""
    path = ".".join(_location(detail))
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = detail.get("input")
    if detail["type"] == "extra_forbidden":
        return [f"{path}: unknown key{_near_key(_location(detail))}"]
    if detail["type"] == "missing":
        return [f"{path}: missing; this key is required"]
    if detail["type"] == "value_error":
        if not path:
            return message.splitlines()
        return [f"{path}: {message}"]
    if detail["type"] == "model_type":
        return [f"{path}: needs a table, got {given!r}"]
    if detail["type"] == "literal_error":
        expected = detail["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        return [f"{path}: {given!r} is not one of {expected}"]
    return [f"{path}: {message[:1].lower()}{message[1:]}, got {given!r}"]


def _near_key(location: Location) -> str:
    """What an unknown key may stand for: a key of another section, a misspelt one, or else the list of known ones."""
    model: type[BaseModel] = StudySpec
    for part in location[:-1]:
        model = _section(model, part)
    key, known = location[-1], list(model.model_fields)
    homes = [name for name in StudySpec.model_fields if key in _section(StudySpec, name).model_fields]
    if homes:
        return f"; it belongs in [{homes[0]}]"
    if near := difflib.get_close_matches(key, known, n=1):
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(known)}"


def _section(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The model of a table inside a table."""
    annotation = model.model_fields[name].annotation
    return next(a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel))
