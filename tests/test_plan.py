"""Plans: the brackets and their cost before anything runs, and the study they become."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.cli.command import TINY
from tuner.data.shift import compare_inputs
from tuner.errors import BadInputError, DataError
from tuner.manager import StudyManager
from tuner.plan import create_or_resume, create_study, plan_study
from tuner.report.plan import plan_text
from tuner.spec import StudySpec, load_spec


def spec_of(tmp_path: Path, content: str = TINY, **overrides: int) -> StudySpec:
    path = tmp_path / "study.toml"
    path.write_text(content)
    return load_spec(path, **overrides)


HYPERBAND = TINY.replace('pruner = "none"', 'pruner = "hyperband"')


def test_plan_counts_what_will_be_trained(tmp_path: Path) -> None:
    plan = plan_study(spec_of(tmp_path, HYPERBAND, trials=20, max_epochs=9), tmp_path)
    assert (plan.trials, plan.data.n_train) == (20, 90)
    assert [bracket.size for bracket in plan.brackets] == [9, 5, 3, 3]
    # 9·1 + 3·2 + 1·6, then 5·3 + 1·6, then 3·9, then a short first bracket: 3·1 + 1·2 + 1·6
    assert plan.epochs == 21 + 21 + 27 + 11
    assert sum(row["n"] for row in plan.rungs() if row["rung"] == 0) == 20


def test_equal_brackets_are_counted(tmp_path: Path) -> None:
    plan = plan_study(spec_of(tmp_path, HYPERBAND, trials=34, max_epochs=9), tmp_path)
    assert [(times, bracket.index) for times, bracket in plan.rounds()] == [(2, 2), (2, 1), (2, 0)]


def test_plan_as_json(tmp_path: Path) -> None:
    plan = plan_study(spec_of(tmp_path, HYPERBAND, trials=20, max_epochs=9), tmp_path).as_dict()
    plain = {key: json.loads(json.dumps(plan[key])) for key in ("data", "shift")}
    assert json.loads(json.dumps(plan)) == {**plan, **plain}
    assert [bracket["first"] for bracket in plan["brackets"]] == [0, 9, 14, 17]
    assert plan["space"]["learning_rate"] == {"low": 1e-3, "high": 1e-1, "log": True}


def test_refinement_is_part_of_the_plan(tmp_path: Path) -> None:
    content = HYPERBAND.replace("[space]", "refine = { rounds = 2, keep = 0.25 }\n[space]")
    plan = plan_study(spec_of(tmp_path, content, trials=19, max_epochs=9), tmp_path)
    assert [bracket.size for bracket in plan.brackets] == [9, 1, 9]
    assert plan.as_dict()["refine"] == {"rounds": 2, "keep": 0.25}
    text = plan_text(plan)
    assert "refine: 2 rounds of 10 or 9 trials; each draws from around the best 25 % of the one before" in text
    assert "refine" not in plan_text(plan_study(spec_of(tmp_path, HYPERBAND, trials=19), tmp_path))


def test_asha_is_one_bracket(tmp_path: Path) -> None:
    content = TINY.replace('pruner = "none"', 'pruner = "asha"')
    plan = plan_study(spec_of(tmp_path, content, trials=20, max_epochs=9), tmp_path)
    assert [[(rung.size, rung.epochs) for rung in bracket.rungs] for bracket in plan.brackets] == [
        [(20, 1), (6, 3), (2, 9)]
    ]
    text = plan_text(plan)
    assert "20 trials, random sampler, asynchronous successive halving (η = 3)" in text
    assert "cost: 44 epochs or so (180 without pruning)" in text


def test_create_once(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    with StudyManager(f"sqlite:///{tmp_path}/t.db") as manager:
        assert create_study(manager, spec, tmp_path)
        assert not create_study(manager, spec, tmp_path)
        assert manager.data_root("tiny") == tmp_path
        plan = plan_study(spec, tmp_path)
        digests = manager.digests("tiny")
        assert (digests.data, digests.split) == (plan.data.data_digest, plan.data.split_digest)


def test_data_root_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with StudyManager("sqlite:///t.db") as manager:
        create_study(manager, spec_of(tmp_path), Path())
        assert manager.data_root("tiny") == tmp_path


def test_resume_lets_workers_in_again(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    with StudyManager(f"sqlite:///{tmp_path}/t.db") as manager:
        create_or_resume(manager, spec, tmp_path)
        worker = manager.ledger("tiny").register("host", 1, "cpu", "0")
        manager.ledger("tiny").leave(worker)
        manager.stop("tiny")
        assert manager.summary("tiny").state == "stopped"
        create_or_resume(manager, spec, tmp_path)
        assert manager.summary("tiny").state == "interrupted"


def test_nothing_is_created_without_data(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, TINY.replace("sklearn:iris", "none.csv"))
    with StudyManager(f"sqlite:///{tmp_path}/t.db") as manager:
        with pytest.raises(DataError, match=r"none\.csv"):
            create_study(manager, spec, tmp_path)
        assert manager.names() == []


def test_changed_data_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i % 2}\n" for i in range(20))
    (tmp_path / "x.csv").write_text(f"a,y\n{rows}")
    spec = spec_of(tmp_path, TINY.replace("sklearn:iris", "x.csv").replace("[training]", 'target = "y"\n[training]'))
    with StudyManager(f"sqlite:///{tmp_path}/t.db") as manager:
        create_study(manager, spec, tmp_path)
        (tmp_path / "x.csv").write_text(f"a,y\n{rows}20,0\n")
        with pytest.raises(BadInputError, match=r"the data of study .* changed since it was created"):
            create_study(manager, spec, tmp_path)


def test_a_batch_larger_than_the_training_set_is_said_so(tmp_path: Path) -> None:
    large = TINY.replace("batch_size = 32", "batch_size = 128")
    assert large != TINY
    plan = plan_study(spec_of(tmp_path, large), tmp_path)
    assert plan.advice == ["space.batch_size: above 90 training rows a batch is the whole training set"]
    assert f"advice: {plan.advice[0]}" in plan_text(plan)
    assert plan_study(spec_of(tmp_path), tmp_path).advice == []


def test_a_shift_between_the_parts_is_a_warning(tmp_path: Path) -> None:
    assert "shift: train, validation and test inputs look alike" in plan_text(plan_study(spec_of(tmp_path), tmp_path))
    frame = pl.DataFrame({"a": [float(i) for i in range(300)], "b": [float(i % 7) for i in range(300)]})
    parts = {"train": frame[:180], "validation": frame[180:240], "test": frame[240:]}
    plan = replace(
        plan_study(spec_of(tmp_path), tmp_path), shift=compare_inputs(parts, {"a": "numeric", "b": "numeric"})
    )
    text = plan_text(plan)
    assert "warning: train and validation differ in a; train and test differ in a; validation and test" in text
    (line,) = [line for line in text.splitlines() if line.split()[:4] == ["a", "validation", "-", "test"]]
    assert line.split()[4:6] == ["distribution", "1"]
    assert json.loads(json.dumps(plan.as_dict()))["shift"]["shifted"]
