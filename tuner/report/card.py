"""A model card (Mitchell et al. 2019): what a model is, how good, on what data, and how to use it. In Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuner import __version__
from tuner.data import DataSummary
from tuner.report.layout import count, number
from tuner.report.study import fitted, sampled, simpler_models, told
from tuner.spec import METRICS, StudySpec

Record = Mapping[str, Any]

COLUMNS_SHOWN = 40


def model_card(
    spec: StudySpec, data: DataSummary, model: Record, metrics: Record, evaluation: Record | None, *, trials: int
) -> str:
    """model: as :func:`tuner.export.model_facts` gives it; metrics: the content of ``metrics.json``; trials: how many
    the study began.
    """
    networks = model["networks"]
    what = "An ensemble of multilayer perceptrons" if len(networks) > 1 else "A multilayer perceptron"
    goal = f"one of {len(model['classes'])} classes" if model["classes"] else "a number"
    parts = [
        f"# {model['name']}",
        (
            f"{what} that predicts `{model['target']}` ({goal}) from {count(len(model['columns']), 'column')}. "
            f"Tuned, trained and exported by Tuner {__version__}."
        ),
        "## How good it is",
        *_performance(metrics, evaluation),
        "## How to use it",
        _usage(model),
        "## Data",
        _data(spec, data, model),
        "## The network" if len(networks) == 1 else "## The networks",
        _networks(spec, networks, trials),
        "## Limits",
        _limits(model),
    ]
    return "\n\n".join(parts) + "\n"


def _performance(metrics: Record, evaluation: Record | None) -> list[str]:
    if metrics["status"] != "evaluated" or evaluation is None:
        unknown = "**Not evaluated.** No test score is known for this model. The validation score that picked it is "
        return [unknown + "optimistic; `tuner evaluate` opens the test set once and measures an honest one."]
    scored = evaluation["ensemble"] if metrics["model"] == "ensemble" else evaluation
    test, metric = scored["test"], evaluation["metric"]
    spread = "" if test["sd"] is None else f" ± {number(test['sd'])} over {evaluation['seeds']} refits"
    interval = f"{100 * test['confidence']:g} % interval {number(test['low'])} to {number(test['high'])}"
    better = "smaller is better" if METRICS[metric].direction == "minimize" else "larger is better"
    apart = f"on {evaluation['test_rows']:,} rows that were kept apart until the end"
    own = number(metrics["this_model"]["test"])
    lines = [
        f"Test {metric}: **{number(test['mean'])}**{spread}, {interval} ({better}), {apart}.",
        f"This model is the first of these refits; its own test {metric} is {own}.",
    ]
    rows = [f"| {b['title']}{sampled(b, evaluation)} | {number(b['test']['mean'])} |" for b in evaluation["baselines"]]
    lines.append("\n".join([f"| {fitted(evaluation)} | test {metric} |", "|---|---|", *rows]))
    if metrics["model"] == "winner":
        lines += simpler_models(evaluation)
    if evaluation["peeks"]:
        lines.append(f"The result was looked at again {count(evaluation['peeks'], 'time')} since the set was opened.")
    return lines


def _usage(model: Record) -> str:
    proba = "\nmodel.predict_proba(rows)     # one column for each of model.classes" if model["probabilities"] else ""
    return (
        "```python\nfrom tuner.model import TunedModel\nfrom tuner.predict import read_rows\n\n"
        'model = TunedModel.load(".")   # this folder; every file is checked against its hash\n'
        'rows = read_rows(model, "rows.csv")   # missing values as in training; or a frame of your own\n'
        f"model.predict(rows){proba}\n```\n\n"
        "Or, for files of any size: `tuner predict FOLDER rows.csv -o predictions.csv`."
    )


def _data(spec: StudySpec, data: DataSummary, model: Record) -> str:
    fitted = "train and validation rows" if spec.fit_on == "train+val" else "train rows"
    shown = [f"| `{name}` | {kind} |" for name, kind in model["columns"][:COLUMNS_SHOWN]]
    more = len(model["columns"]) - COLUMNS_SHOWN
    parts = f"{data.n_train:,} trained, {data.n_val:,} validated and {data.n_test:,} tested; split {data.dealt}"
    lines = [
        f"{spec.data.source}: {count(data.rows, 'row')}, of which {parts}.",
        f"Model and preprocessing were fitted on the {fitted}.",
        "",
        "| column | read as |",
        "|---|---|",
        *shown,
    ]
    if more > 0:
        lines += ["", f"… and {count(more, 'more column')}, all in `config.json`."]
    if model["classes"]:
        lines += ["", f"Classes: {', '.join(f'`{label}`' for label in model['classes'][:COLUMNS_SHOWN])}."]
    return "\n".join(lines)


def _networks(spec: StudySpec, networks: Sequence[Record], trials: int) -> str:
    if len(networks) == 1:
        (network,) = networks
        params = {k: v for k, v in network["config"].items() if k in spec.search_space}
        rows = [f"| {key} | {number(value)} |" for key, value in told(params).items()]
        head = f"Trial {network['trial']}, of {count(trials, 'trial')} begun; {network['parameters']:,} parameters."
        return "\n".join([head, "", "| hyperparameter | value |", "|---|---|", *rows])
    rows = [
        f"| {n['trial']} | {n['weight']} | {n['config']['width']} × {n['config']['depth']} | {n['parameters']:,} |"
        for n in networks
    ]
    head = "Their answers are averaged by weight. All hyperparameters are in `config.json`."
    return "\n".join([head, "", "| trial | weight | width × depth | parameters |", "|---|---|---|---|", *rows])


def _limits(model: Record) -> str:
    lines = [
        "- The test score holds for rows like those that were tested on; rows from elsewhere or later may be harder.",
        "- A category that no training row had counts as one of its column's rare ones; where none is rare, as none.",
        "- A value that cannot be read counts as missing.",
    ]
    if model["probabilities"]:
        lines.append("- Probabilities are the networks' own: nothing has calibrated them.")
    return "\n".join(lines)
