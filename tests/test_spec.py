"""Study files: what a good one means, and what each bad one is told."""

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spaces import spaces, study, written
from tuner.errors import BadInputError, SpecError
from tuner.space import Constant
from tuner.spec import METRICS, SearchSection, StudySpec, load_spec, parse_spec
from tuner.trial import HYPERPARAMETERS

SMALLEST = """
[study]
name = "s"
metric = "error"
[data]
source = "sklearn:digits"
[search]
trials = 9
[space]
learning_rate = { low = 1e-5, high = 1e-1, log = true }
batch_size = 32
width = 8
depth = 1
"""


def problems(content: dict[str, Any], **overrides: Any) -> list[str]:
    """What a study file with this content is told."""
    with pytest.raises(SpecError) as caught:
        parse_spec(content, **overrides)
    assert len(str(caught.value).splitlines()) == 1 + len(caught.value.problems)
    return caught.value.problems


def _synthetic(name: str, **keys: Any) -> dict[str, Any]:
    """Sections of a study on a synthetic source."""
    metric = "mse" if name == "linear_noise" else "error"
    return {"study": {"metric": metric}, "data": {"source": f"synthetic:{name}", "synthetic": keys}}


def smallest(**sections: Any) -> dict[str, Any]:
    """The smallest study file with some keys added or replaced."""
    content = tomllib.loads(SMALLEST)
    return {
        key: {**content.get(key, {}), **sections.get(key, {})}
        if isinstance(sections.get(key, {}), dict)
        else sections[key]
        for key in content | sections
    }


class TestGood:
    def test_smallest(self, tmp_path: Path) -> None:
        path = tmp_path / "s.toml"
        path.write_text(SMALLEST)
        spec = load_spec(path)
        assert spec.total_trials == 9
        assert spec.task == "classification"
        assert spec.direction == "minimize"
        assert spec.search == SearchSection(sampler="random", pruner="hyperband", trials=9, eta=3, min_epochs=1)
        assert list(spec.search_space) == list(HYPERPARAMETERS)
        assert list(spec.search_space.searched) == ["learning_rate"]
        assert spec.search_space["optimizer"] == Constant(value="adamw")

    @pytest.mark.parametrize(("minutes", "trials"), [(0.01, 1_000), (5, 50_000), (10_000, 500_000)])
    def test_time_alone_bounds_the_trials(self, minutes: float, trials: int) -> None:
        content = tomllib.loads(SMALLEST)
        del content["search"]["trials"]
        spec = parse_spec(content, minutes=minutes)
        assert (spec.search.minutes, spec.total_trials) == (minutes, trials)
        assert parse_spec(content, minutes=minutes, trials=7).total_trials == 7
        assert parse_spec(json.loads(spec.as_json())) == spec

    @pytest.mark.parametrize(
        ("metric", "task", "direction"),
        [
            ("error", "classification", "minimize"),
            ("accuracy", "classification", "maximize"),
            ("log_loss", "classification", "minimize"),
            ("rmse", "regression", "minimize"),
            ("mse", "regression", "minimize"),
            ("mae", "regression", "minimize"),
        ],
    )
    def test_metric(self, metric: str, task: str, direction: str) -> None:
        spec = parse_spec(smallest(study={"metric": metric}))
        assert (spec.task, spec.direction) == (task, direction)

    @pytest.mark.parametrize(
        ("training", "keep"),
        [
            ({}, "last"),
            ({"patience": 3}, "best"),
            ({"keep": "best"}, "best"),
            ({"patience": 3, "keep": "best"}, "best"),
        ],
    )
    def test_keep(self, training: dict[str, Any], keep: str) -> None:
        assert parse_spec(smallest(training=training)).keep == keep

    def test_trial_config(self) -> None:
        spec = parse_spec(smallest(training={"max_epochs": 27, "patience": 4}))
        config = spec.trial_config(spec.search_space.from_unit([0.5]))
        assert config.learning_rate == pytest.approx(1e-3)
        assert (config.max_epochs, config.patience, config.keep, config.width) == (27, 4, "best", 8)

    def test_a_grid_says_how_many(self) -> None:
        assert study("grid").total_trials == 48
        assert study("grid", search={"trials": 48}).total_trials == 48

    def test_overrides(self) -> None:
        spec = parse_spec(smallest(), name="other", seed=3, trials=4, max_epochs=5)
        assert (spec.study.name, spec.study.seed, spec.total_trials, spec.training.max_epochs) == ("other", 3, 4, 5)
        assert parse_spec(smallest(), name=None, trials=None) == parse_spec(smallest())

    def test_overrides_of_what_is_missing(self) -> None:
        content = smallest()
        del content["search"]
        assert parse_spec(content, trials=4).total_trials == 4

    def test_the_content_is_left_alone(self) -> None:
        content = smallest()
        parse_spec(content, trials=4)
        assert content == smallest()

    def test_frozen(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            study().study.seed = 3


class TestStored:
    @pytest.mark.parametrize(
        "data",
        [
            {"corrupt": "random_labels"},
            {"corrupt": {"kind": "random_labels", "fraction": 0.5, "seed": 3}},
            {"source": "synthetic:gaussian_mixture", "synthetic": {"means": [1, 2], "variances": [1, 4.5]}},
            {"source": "synthetic:gaussian_mixture", "synthetic": {"means": [[1, 2], [3, 4]], "prior": 0.2}},
            {"source": "synthetic:two_moons", "synthetic": {"rows": 7, "noise": 0.1, "label_noise": 0.2}},
        ],
        ids=str,
    )
    def test_data_round_trip(self, data: dict[str, Any]) -> None:
        spec = parse_spec(smallest(study={"shows": "random_labels"}, data=data))
        assert parse_spec(json.loads(spec.as_json())) == spec
        assert spec.digest != parse_spec(smallest(study={"shows": "random_labels"})).digest

    @pytest.mark.parametrize("sampler", ["random", "grid", "tpe", "qmc"])
    def test_round_trip(self, sampler: str) -> None:
        spec = study(sampler, data={"split": {"train": 0.5, "val": 0.25, "test": 0.25}, "target": "y"})
        again = parse_spec(json.loads(spec.as_json()))
        assert again == spec
        assert again.as_json() == spec.as_json()
        assert again.digest == spec.digest
        assert len(spec.digest) == 64

    @hypothesis.settings(max_examples=50)
    @given(spaces())
    def test_any_space_round_trips(self, space: Any) -> None:
        content = smallest(study={"metric": "error"})
        for name, domain in space.items():
            content.setdefault(HYPERPARAMETERS[name].section, {})[name] = domain.as_written()
        hypothesis.assume(space.searched)
        try:
            spec = parse_spec(content)
        except SpecError as error:  # keys that do not go together are another test's matter
            hypothesis.assume("label_smoothing" not in str(error) and "nesterov" not in str(error))
            raise
        assert spec.search_space == space
        assert parse_spec(json.loads(spec.as_json())).as_json() == spec.as_json()

    def test_the_order_of_keys_does_not_matter(self) -> None:
        content = written()
        backwards = {key: dict(reversed(value.items())) for key, value in reversed(content.items())}
        assert parse_spec(backwards).digest == parse_spec(content).digest

    def test_a_default_written_out_is_the_same_study(self) -> None:
        assert (
            parse_spec(smallest(search={"eta": 3}, training={"max_epochs": 81})).digest == parse_spec(smallest()).digest
        )

    def test_any_difference_changes_the_digest(self) -> None:
        digests = {
            parse_spec(smallest(**change)).digest
            for change in ({}, {"study": {"seed": 1}}, {"space": {"width": 9}}, {"final": {"seeds": 6}})
        }
        assert len(digests) == 4

    def test_differences(self) -> None:
        mine = parse_spec(smallest())
        given = parse_spec(smallest(space={"width": {"low": 8, "high": 16}}, study={"seed": 4}, data={"target": "y"}))
        assert mine.differences(given) == [
            "study.seed: 0 -> 4",
            'data.target: null -> "y"',
            'space.width: 8 -> {"low": 8, "high": 16}',
        ]
        assert mine.differences(mine) == []


class TestBad:
    @pytest.mark.parametrize(
        ("sections", "told"),
        [
            ({"study": {"metrc": 1}}, "study.metrc: unknown key; did you mean metric?"),
            ({"studdy": {}}, "studdy: unknown key; did you mean study?"),
            ({"search": {"max_epochs": 3}}, "search.max_epochs: unknown key; it belongs in [training]"),
            ({"space": {"optimizer": "sgd"}}, "space.optimizer: unknown key; it belongs in [training]"),
            ({"seed": 3}, "seed: unknown key; it belongs in [study]"),
            ({"final": {"zzz": 3}}, "final.zzz: unknown key; known here: seeds, fit_on, confidence"),
            (
                {"data": {"split": {"train": 0.6, "val": 0.2, "test": 0.2, "stratfy": True}}},
                "data.split.stratfy: unknown key; did you mean stratify?",
            ),
            ({"study": 3}, "study: needs a table, got 3"),
            ({"data": {"split": 0.6}}, "data.split: needs a table, got 0.6"),
            (
                {"data": {"split": {"train": 0.6, "val": 0.2, "test": 0.3}}},
                "data.split: train + val + test must be 1, they add up to 1.1",
            ),
            (
                {"data": {"split": {"train": 0.8, "val": 0, "test": 0.2}}},
                "data.split.val: should be greater than 0, got 0",
            ),
            (
                {"data": {"split": {"column": "part", "file": "parts.json"}}},
                "data.split: column and file are two ways to split; keep one of them",
            ),
            (
                {"data": {"split": {"column": "part", "test": 0.2}}},
                "data.split: column says where each row belongs; drop test",
            ),
            (
                {"data": {"split": {"folds": 5, "val": 0.2}}},
                "data.split: folds share what is not test, so each row validates once; drop val",
            ),
            (
                {"data": {"split": {"folds": 1}}},
                "data.split.folds: one fold leaves no rows to train on; give 2 or more, or leave folds out",
            ),
            (
                {"data": {"split": {"train": 0.8}}},
                "data.split: train, val and test belong together; give all three shares, or none",
            ),
            (
                {"data": {"split": {"group": "a", "time": "b"}}},
                "data.split: group and time are two ways to split; keep one of them",
            ),
            (
                {"data": {"split": {"time": "b", "stratify": True}}},
                "data.split: stratify: is for a random split, this one is by time; drop one of them",
            ),
            (
                {"data": {"split": {"folds": 3}}, "final": {"fit_on": "train"}},
                "final.fit_on: with folds every row is a train row of some fold; drop fit_on",
            ),
            (
                {"data": {"split": {"folds": 3}}, "training": {"patience": 5}},
                "data.split.folds: the refit on train+val leaves no rows to stop early on; drop training.patience",
            ),
            (
                {"study": {"metric": "auc"}},
                f"study.metric: 'auc' is not one of {', '.join(METRICS)}",
            ),
            ({"search": {"sampler": "cmaes"}}, "search.sampler: 'cmaes' is not one of grid, random, tpe, qmc"),
            (
                {"search": {"pruner": "median"}},
                "search.pruner: 'median' is not one of none, successive_halving, asha, hyperband",
            ),
            ({"study": {"seed": -1}}, "study.seed: should be greater than or equal to 0, got -1"),
            ({"study": {"seed": "5"}}, "study.seed: should be a valid integer, got '5'"),
            ({"search": {"trials": True}}, "search.trials: should be a valid integer, got True"),
            ({"search": {"trials": 0}}, "search.trials: should be greater than or equal to 1, got 0"),
            ({"search": {"eta": 1}}, "search.eta: should be greater than or equal to 2, got 1"),
            (
                {"search": {"min_epochs": 100}},
                "search.min_epochs: 100 is above training.max_epochs 81; lower it, or train longer",
            ),
            (
                {"search": {"sampler": "random", "trials": None}},
                "search.trials: missing; say how many trials the study has in total, or give search.minutes",
            ),
            (
                {"search": {"trials": None, "minutes": 10, "pruner": "successive_halving"}},
                "search.trials: missing; the one bracket of successive_halving is as large as the study: give trials",
            ),
            (
                {"search": {"trials": None, "minutes": 10, "refine": {"rounds": 2, "keep": 0.5}}},
                "search.trials: missing; the rounds of refine are shares of the trials: give trials beside minutes",
            ),
            ({"search": {"minutes": 0}}, "search.minutes: should be greater than 0, got 0"),
            ({"search": {"minutes": math.nan}}, "search.minutes: should be a finite number, got nan"),
            ({"search": {"minutes": "10"}}, "search.minutes: should be a valid number, got '10'"),
            ({"search": {"minutes": 1e6}}, "search.minutes: should be less than or equal to 525600, got 1000000.0"),
            (
                {"search": {"sampler": "grid"}},
                "space.learning_rate: a grid needs a step, or a list of choices; search.sampler is grid",
            ),
            (
                {"search": {"sampler": "grid"}, "space": {"learning_rate": {"choices": [0.1, 0.2]}}},
                "search.trials: the grid has 2 points, not 9; leave trials out",
            ),
            (
                {
                    "search": {"sampler": "grid", "trials": None},
                    "space": {
                        "learning_rate": 0.1,
                        "batch_size": {"low": 1, "high": 4096},
                        "width": {"low": 1, "high": 4096},
                    },
                },
                "search.sampler: the grid has 16777216 points, at most 10000000 fit; list fewer values, or use random",
            ),
            (
                {"space": {"learning_rate": 0.1}},
                "space: nothing to search; give at least one hyperparameter a range or choices",
            ),
            (
                {"space": {"learning_rate": {"low": 1, "high": 0.1}}},
                "space.learning_rate: low 1.0 is above high 0.1; swap them",
            ),
            (
                {"space": {"dropout": {"low": 0.0, "high": 0.5, "log": True}}},
                "space.dropout: log needs low > 0, got 0.0; give a small positive low, or or_zero = true",
            ),
            (
                {"model": {"activation": "swish"}},
                "model.activation: 'swish' is not one of relu, leaky_relu, gelu, silu, tanh, sigmoid, step",
            ),
            (
                {"training": {"patience": 3, "keep": "last"}},
                "training.keep: patience keeps the best epoch's weights, not the last; set keep = 'best'",
            ),
            (
                {"training": {"patience": 3}, "final": {"fit_on": "train+val"}},
                "final.fit_on: the refit on train+val leaves no rows to stop early on; drop training.patience",
            ),
            (
                {"training": {"keep": "best"}, "final": {"fit_on": "train+val"}},
                "final.fit_on: the refit on train+val leaves no rows to pick the best epoch on; drop training.keep",
            ),
            (
                {"training": {"label_smoothing": 0.1}, "study": {"metric": "rmse"}},
                "training.label_smoothing: is for classification; metric rmse is regression; drop it",
            ),
            (
                {"model": {"loss": "hinge"}, "study": {"metric": "rmse"}},
                "model.loss: hinge is for classification; metric rmse is regression; use square or auto",
            ),
            (
                {"model": {"loss": {"choices": ["auto", "square"]}}, "study": {"metric": "log_loss"}},
                "model.loss: square trains no probabilities, which metric log_loss needs; use cross_entropy or auto",
            ),
            (
                {"model": {"loss": "hinge"}, "training": {"label_smoothing": 0.1}},
                "training.label_smoothing: is for cross_entropy; model.loss may be hinge; drop one of them",
            ),
            (
                {"training": {"optimizer": "nesterov", "momentum": {"low": 0.0, "high": 0.9}}},
                "training.momentum: nesterov needs momentum above 0; raise it, or use sgd",
            ),
            (
                {"search": {"refine": {"rounds": 1, "keep": 0.2}}},
                "search.refine.rounds: should be greater than or equal to 2",
            ),
            ({"search": {"refine": {"rounds": 2, "keep": 1.0}}}, "search.refine.keep: should be less than 1"),
            (
                {
                    "search": {"sampler": "grid", "trials": None, "refine": {"rounds": 2, "keep": 0.5}},
                    "space": {"learning_rate": {"choices": [0.1, 0.2]}},
                },
                "search.refine: a grid's points are all listed before it starts; drop refine, or use random",
            ),
            ({"search": {"refine": {"rounds": 2}}}, "search.refine.keep: missing"),
            (
                {"search": {"trials": 3, "refine": {"rounds": 4, "keep": 0.5}}},
                "search.refine: 4 rounds need at least as many trials, search.trials is 3; give more trials, or fewer",
            ),
            ({"study": {"shows": "magic"}}, "study.shows: 'magic' is not one of law_of_large_numbers, bias_variance, "),
            (
                {"study": {"shows": "random_labels", "metric": "mse"}},
                "study.shows: random_labels is of classes; metric mse is of numbers; use error, or drop shows",
            ),
            (
                {"study": {"shows": "law_of_large_numbers"}},
                "study.shows: law_of_large_numbers needs a known truth; data.source is sklearn:digits; use one of",
            ),
            (
                {
                    "study": {"shows": "law_of_large_numbers"},
                    "data": {"source": "synthetic:two_moons", "corrupt": "random_labels"},
                },
                "study.shows: law_of_large_numbers needs a known truth, and corrupted data have none; drop data",
            ),
            (
                {"data": {"synthetic": {"rows": 9}}},
                "data.synthetic: is for synthetic: sources; data.source is sklearn:digits; drop it",
            ),
            (_synthetic("two_moons", rows=2), "data.synthetic.rows: should be greater than or equal to 3, got 2"),
            (_synthetic("two_moons", mean=1), "data.synthetic.mean: unknown key; did you mean means?"),
            (
                _synthetic("two_moons", theta=[1]),
                "data.synthetic.theta: is for linear_noise; data.source is synthetic:",
            ),
            (_synthetic("gaussian_mixture", noise=1.0), "data.synthetic.noise: is for linear_noise and two_moons; "),
            (
                _synthetic("gaussian_mixture", means=[1]),
                "data.synthetic.means: needs two, of class 0 and of class 1, each",
            ),
            (
                _synthetic("gaussian_mixture", means=["a", 2]),
                "data.synthetic.means: needs a number or a list of numbers",
            ),
            (_synthetic("gaussian_mixture", means=[1, math.inf]), "data.synthetic.means: needs finite numbers"),
            (
                _synthetic("gaussian_mixture", means=[[1, 2], [1, 2, 3]]),
                "data.synthetic: sizes differ: means[0] is of 2, means[1] is of 3",
            ),
            (
                _synthetic("linear_noise", theta=[1, 2], dimension=3),
                "data.synthetic: sizes differ: theta is of 2, dimension is of 3",
            ),
            (_synthetic("gaussian_mixture", variances=[1, 0]), "data.synthetic.variances: needs two numbers above 0"),
            (
                _synthetic("two_moons", label_noise=0.6),
                "data.synthetic.label_noise: should be less than or equal to 0.5",
            ),
            (
                {"data": {"corrupt": "labels"}},
                "data.corrupt.kind: 'labels' is not one of random_labels, shuffled_pixels",
            ),
            ({"data": {"corrupt": {"fraction": 0.5}}}, "data.corrupt.kind: missing; this key is required"),
            (
                {"data": {"corrupt": {"kind": "random_pixels", "fraction": 0.5}}},
                "data.corrupt: fraction is for random_labels; random_pixels spoils every row: drop it",
            ),
            ({"data": {"drop": [1]}}, "data.drop.0: should be a valid string, got 1"),
        ],
    )
    def test_told(self, sections: dict[str, Any], told: str) -> None:
        (problem,) = problems(smallest(**sections))
        assert problem.startswith(told)

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "..", ".a", "-a", "a\\b", "a\n", "a\x00", "x" * 201])
    def test_not_a_name(self, name: str) -> None:
        (problem,) = problems(smallest(study={"name": name}))
        assert problem.startswith(f"study.name: {name!r} is not a name: up to 200 letters")

    @pytest.mark.parametrize("name", ["a", "digits-2", "größe", "run_1.5", "2024:a+b=c@d", "x" * 200])
    def test_a_name(self, name: str) -> None:
        assert parse_spec(smallest(study={"name": name})).study.name == name

    @pytest.mark.parametrize(
        ("section", "key"), [("study", "name"), ("study", "metric"), ("data", "source"), ("space", "width")]
    )
    def test_missing_key(self, section: str, key: str) -> None:
        content = smallest()
        del content[section][key]
        assert problems(content) == [f"{section}.{key}: missing; this key is required"]

    @pytest.mark.parametrize("section", ["study", "data", "space"])
    def test_missing_section(self, section: str) -> None:
        content = smallest()
        del content[section]
        assert problems(content) == [f"{section}: missing; this key is required"]

    def test_all_at_once(self) -> None:
        """Broken keys, a missing one, unknown ones, and the conflicts of the keys that are sound."""
        content = smallest(
            study={"metric": "auc"},
            data={"split": {"train": 0.9, "val": 0.2, "test": 0.1, "shuffle": True}},
            training={"optimizer": "adagrad", "patience": 3, "keep": "last"},
            search={"min_epochs": 100},
            space={"dropout": 1.5, "lr": 0.1},
            final={"fit_on": "train+val"},
        )
        del content["space"]["depth"]
        assert sorted(problem.split(":")[0] for problem in problems(content)) == [
            "data.split",
            "data.split.shuffle",
            "final.fit_on",
            "search.min_epochs",
            "space.depth",
            "space.dropout",
            "space.lr",
            "study.metric",
            "training.keep",
            "training.optimizer",
        ]

    @pytest.mark.parametrize(
        ("sections", "told"),
        [
            # max_epochs is unknown, so whether min_epochs fits is unknown as well
            ({"training": {"max_epochs": "x"}, "search": {"min_epochs": 100}}, ["training.max_epochs"]),
            # a broken domain may be the one that was to be searched
            ({"space": {"learning_rate": {"low": 1}}}, ["space.learning_rate"]),
            # or may be what the number of grid points depends on
            ({"space": {"learning_rate": {"low": 1}}, "search": {"sampler": "grid"}}, ["space.learning_rate"]),
            ({"search": {"sampler": "x", "trials": None}}, ["search.sampler"]),
            ({"study": {"metric": "x"}, "training": {"label_smoothing": 0.1}}, ["study.metric"]),
            ({"training": {"patience": -1, "keep": "last"}}, ["training.patience"]),
            ({"data": {"split": {"train": 2, "val": 0.2, "test": 0.2}}}, ["data.split.train"]),
            ({"search": 3}, ["search"]),
            ({"space": 3}, ["space"]),
        ],
    )
    def test_nothing_is_blamed_for_a_broken_key(self, sections: dict[str, Any], told: list[str]) -> None:
        assert [problem.split(":")[0] for problem in problems(smallest(**sections))] == told

    def test_an_override_is_checked(self) -> None:
        assert problems(smallest(search={"min_epochs": 5}), max_epochs=3) == [
            "search.min_epochs: 5 is above training.max_epochs 3; lower it, or train longer"
        ]
        assert problems(smallest(), trials=0) == ["search.trials: should be greater than or equal to 1, got 0"]

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(
                        [*StudySpec.model_fields, *HYPERPARAMETERS, "low", "high", "choices", "split", "x"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
        ).filter(lambda content: isinstance(content, dict))
    )
    def test_any_content_is_read_or_told(self, content: dict[str, Any]) -> None:
        try:
            parse_spec({**smallest(), **content})
        except SpecError as error:
            told = error.problems
        else:
            return
        assert told
        assert all(problem and "\n" not in problem for problem in told)


class TestFile:
    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match=r"nothing\.toml: no such study file"):
            load_spec(tmp_path / "nothing.toml")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="cannot be read: "):
            load_spec(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"[study", "not valid TOML: "),
            (b"a = 1\na = 2", "not valid TOML: "),
            (b"a = " + b"9" * 5000, "not valid TOML: "),
            (b"\xff\xfe", "cannot be read: "),
        ],
    )
    def test_not_toml(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "bad.toml"
        path.write_bytes(content)
        with pytest.raises(BadInputError, match=message) as caught:
            load_spec(path)
        assert str(path) in str(caught.value)

    def test_problems_name_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.toml"
        path.write_text(SMALLEST.replace("trials = 9", "trials = 0\neta = 1"))
        with pytest.raises(SpecError) as caught:
            load_spec(path)
        assert str(caught.value).splitlines() == [
            f"{path}: 2 problems",
            "  search.trials: should be greater than or equal to 1, got 0",
            "  search.eta: should be greater than or equal to 2, got 1",
        ]
        assert caught.value.exit_code == 2


def test_advice_against_dropout_with_batch_normalisation() -> None:
    assert parse_spec(smallest()).advice == []
    both = parse_spec(smallest(model={"norm": "batch"}, space={"dropout": {"low": 0.0, "high": 0.5}}))
    assert both.advice == [
        "model.norm: batch normalisation and dropout disturb each other; the lecture advises one of them"
    ]
    assert parse_spec(smallest(model={"norm": "batch"})).advice == []
