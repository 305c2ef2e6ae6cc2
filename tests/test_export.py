"""Export: a folder that holds the evaluated model, whole or not at all."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.models import mixed_table
from tuner import export as export_module
from tuner.data.dataset import load_final_data
from tuner.data.sealed import open_test
from tuner.errors import BadInputError
from tuner.evaluation import evaluate
from tuner.export import export
from tuner.learning import baselines
from tuner.manager import StudyManager
from tuner.model import TunedModel
from tuner.plan import create_study
from tuner.spec import StudySpec, parse_spec
from tuner.worker import run_worker


def write_table(root: Path) -> None:
    """A CSV of every kind of column whose target depends on some of them."""
    table = mixed_table(240)
    far = (pl.col("size") > 50) ^ pl.col("open")
    table.with_columns(kind=pl.when(far).then(pl.lit("far")).otherwise(pl.lit("near"))).write_csv(root / "t.csv")


def study(**sections: dict[str, Any]) -> StudySpec:
    content: dict[str, dict[str, Any]] = {
        "study": {"name": "tiny", "metric": "error", "seed": 5},
        "data": {"source": "t.csv", "target": "kind", "scaling": {"choices": ["standard", "robust", "piecewise"]}},
        "training": {"max_epochs": 9},
        "search": {"trials": 6, "pruner": "none"},
        "space": {
            "learning_rate": {"low": 1e-2, "high": 1e-1, "log": True},
            "batch_size": 16,
            "width": {"low": 4, "high": 40},
            "depth": {"low": 1, "high": 3},
        },
        "final": {"seeds": 2},
    }
    return parse_spec({key: {**content.get(key, {}), **sections.get(key, {})} for key in content | sections})


@pytest.fixture
def manager(tmp_path: Path) -> StudyManager:
    return StudyManager(f"sqlite:///{tmp_path}/study.db")


def finish(manager: StudyManager, spec: StudySpec, root: Path) -> None:
    write_table(root)
    create_study(manager, spec, root)
    run_worker(manager, "tiny", device="cpu", stop=threading.Event())


def error_on_test_rows(model: TunedModel, spec: StudySpec, root: Path) -> float:
    """The model's error on the test rows of the file, through its own preprocessing of the raw rows."""
    fitted = load_final_data(spec, root, model.networks[0].config.scaling).preprocessing
    codes = open_test(spec, root, {"standard": fitted})["standard"].y
    table = pl.read_csv(root / "t.csv")
    final = open_test(spec, root, model.preprocessing)
    sealed = next(iter(model.preprocessing))
    everything = model.preprocessing[sealed].transform(table.drop("kind"))
    rows = [int(np.argmin(np.abs(everything - row).sum(1))) for row in final[sealed].x]
    labels = model.predict(table.drop("kind")[rows])
    return float(np.mean(labels != np.array(model.classes, dtype=object)[codes]))


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("fit_on", ["train", "train+val"])
def test_the_exported_model_scores_as_it_was_evaluated(
    ensemble: bool, fit_on: str, manager: StudyManager, tmp_path: Path
) -> None:
    spec = study(final={"seeds": 2, "fit_on": fit_on})
    finish(manager, spec, tmp_path)
    evaluation = evaluate(manager, "tiny", device="cpu", ensemble=ensemble)
    done = export(manager, "tiny", tmp_path / "m", ensemble=ensemble, device="cpu")
    model = TunedModel.load(tmp_path / "m")
    scored = evaluation["ensemble"] if ensemble else evaluation
    assert error_on_test_rows(model, spec, tmp_path) == pytest.approx(scored["test"]["values"][0])
    metrics = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert metrics["status"] == "evaluated"
    assert metrics["this_model"]["test"] == scored["test"]["values"][0]
    assert metrics["evaluation"] == evaluation
    if ensemble:
        members = {member["trial"]: member["weight"] for member in scored["members"]}
        assert {network.trial: network.weight for network in model.networks} == members
    assert done.files.keys() == {
        "README.md", "config.json", "manifest.json", "metrics.json", "model.safetensors", "preprocessing.skops"
    }  # fmt: skip
    assert manager.evaluation("tiny") == evaluation, "exporting is no peek"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_model_card_says_what_is_known(manager: StudyManager, tmp_path: Path) -> None:
    spec = study()
    finish(manager, spec, tmp_path)
    export(manager, "tiny", tmp_path / "early", device="cpu")
    assert "**Not evaluated.**" in (tmp_path / "early" / "README.md").read_text()
    assert json.loads((tmp_path / "early" / "metrics.json").read_text())["status"] == "not evaluated"
    evaluation = evaluate(manager, "tiny", device="cpu")
    export(manager, "tiny", tmp_path / "late", device="cpu")
    card = (tmp_path / "late" / "README.md").read_text()
    assert f"Test error: **{evaluation['test']['mean']:.4g}** ± " in card
    assert f"its own test error is {evaluation['test']['values'][0]:.4g}." in card
    for told in ("| `shop` | category |", "| logistic regression |", "t.csv: 240 rows", "Classes: `far`, `near`."):
        assert told in card
    assert "| fitted on the same rows | test error |" in card
    assert str(tmp_path) not in card
    assert TunedModel.load(tmp_path / "early").predict(mixed_table(9)).tolist() == (
        TunedModel.load(tmp_path / "late").predict(mixed_table(9)).tolist()
    )


def test_what_a_model_card_says_in_python_reads_rows_as_in_training(
    manager: StudyManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(manager, study(), tmp_path)
    export(manager, "tiny", tmp_path / "m", device="cpu")
    monkeypatch.chdir(tmp_path / "m")
    rows = mixed_table(30, seed=3)
    rows.write_csv("rows.csv", null_value="NA")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", Path("README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    said: dict[str, Any] = {}
    exec(snippet, said)
    assert said["rows"]["shop"].null_count() > 0
    assert np.array_equal(said["model"].predict_proba(said["rows"]), said["model"].predict_proba(rows))


def test_a_model_card_says_which_baselines_had_fewer_rows(
    manager: StudyManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(manager, study(), tmp_path)
    monkeypatch.setattr(baselines, "_sample", lambda x, y, *_: (x[:100], y[:100]))
    evaluate(manager, "tiny", device="cpu")
    export(manager, "tiny", tmp_path / "m", device="cpu")
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| fitted on the same rows where nothing else is said | test error |" in card
    assert "| logistic regression (fitted on 100 of the 144 rows) | " in card


def test_an_ensemble_may_be_exported_without_an_evaluation(manager: StudyManager, tmp_path: Path) -> None:
    finish(manager, study(), tmp_path)
    done = export(manager, "tiny", tmp_path / "m", ensemble=True, device="cpu")
    assert not done.evaluated
    again = evaluate(manager, "tiny", device="cpu", ensemble=True)["ensemble"]["members"]
    assert [(member.trial, member.weight) for member in done.members] == [(m["trial"], m["weight"]) for m in again]


def test_what_is_there_stays_as_it_is(manager: StudyManager, tmp_path: Path) -> None:
    finish(manager, study(), tmp_path)
    (tmp_path / "empty").mkdir()
    export(manager, "tiny", tmp_path / "empty", device="cpu")
    with pytest.raises(BadInputError, match="is there already"):
        export(manager, "tiny", tmp_path / "empty", device="cpu")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInputError, match="is there already"):
        export(manager, "tiny", tmp_path / "file", device="cpu")
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_half_written(manager: StudyManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(manager, study(), tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(BadInputError, match="'shop', 'day' are read as categories or dates"):
        export(manager, "tiny", tmp_path / "m", onnx=True, device="cpu")
    monkeypatch.setattr(export_module, "write_manifest", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(manager, "tiny", tmp_path / "m", device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_no_model_before_the_search_is_over(manager: StudyManager, tmp_path: Path) -> None:
    write_table(tmp_path)
    create_study(manager, study(), tmp_path)
    stop = threading.Event()
    stop.set()
    run_worker(manager, "tiny", device="cpu", stop=stop)
    with pytest.raises(BadInputError, match="a model is exported when the search is over"):
        export(manager, "tiny", tmp_path / "m", device="cpu")
