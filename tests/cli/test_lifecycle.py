"""init, check, create, studies, show, stop, delete."""

import json
from pathlib import Path

import pytest

from tests.cli.command import STUDIES, TINY, refused, tuner, tuner_json, write_study
from tuner.errors import BadInputError

pytestmark = pytest.mark.usefixtures("workdir")


def test_check_shows_the_plan() -> None:
    text = tuner("check", STUDIES / "digits.toml", "--trials", "60").stdout
    assert "sklearn:digits, 1,797 rows" in text
    assert "61 numeric; 61 features" in text
    assert "train 1,079 (60 %), validation 359 (20 %), test 359 (20 %), stratified; test stays sealed" in text
    assert "learning_rate  0.0001 to 0.1, log" in text
    assert "weight_decay   0, or 1e-06 to 0.1, log" in text
    assert "label_smoothing" not in text, "what is fixed at its default is not worth a line"
    assert "60 trials, random sampler, Hyperband (η = 3)" in text
    assert "27 to 1, 9 to 3, 3 to 9, 1 to 27" in text
    assert "11 to 1, 3 to 3, 1 to 9, 1 to 27" in text  # the last bracket is short
    assert list(Path().iterdir()) == []


def test_check_of_regression() -> None:
    text = tuner("check", STUDIES / "diabetes.toml").stdout
    assert "target: 152.3 ± 75.27, from 25 to 341 (train rows)" in text
    assert "not stratified" in text


def test_check_as_json_and_csv() -> None:
    plan = tuner_json("check", STUDIES / "digits.toml", "--trials", "60")
    assert (plan["name"], plan["metric"], plan["direction"]) == ("digits", "error", "minimize")
    assert (plan["trials"], plan["epochs"], plan["data"]["n_train"]) == (60, 398, 1079)
    assert plan["brackets"][0] == {
        "s": 3,
        "first": 0,
        "rungs": [{"n": 27, "r": 1}, {"n": 9, "r": 3}, {"n": 3, "r": 9}, {"n": 1, "r": 27}],
    }
    lines = tuner("check", STUDIES / "digits.toml", "--trials", "27", "-f", "csv").stdout.splitlines()
    assert lines == ["bracket,s,rung,n,r", "0,3,0,27,1", "0,3,1,9,3", "0,3,2,3,9", "0,3,3,1,27"]


def test_create_is_idempotent() -> None:
    study = write_study()
    assert tuner("create", study).stdout == "tiny: created, 3 trials in sqlite:///tuner.db\n"
    assert tuner("create", study).stdout == "tiny: there already, 3 trials in sqlite:///tuner.db\n"
    assert tuner("create", study, "--name", "other").stdout.startswith("other: created")
    assert [row["name"] for row in tuner_json("studies")] == ["other", "tiny"]


def test_create_refuses_another_spec() -> None:
    study = write_study()
    tuner("create", study)
    message = tuner("create", study, "--trials", "4", "--seed", "1", code=2).stderr
    assert "study 'tiny' exists with another spec; use another name, or: tuner delete tiny" in message
    assert "study.seed: 0 -> 1" in message
    assert "search.trials: 3 -> 4" in message


def test_show_follows_the_contract() -> None:
    tuner("create", write_study())
    assert tuner_json("show", "tiny") == {
        "name": "tiny",
        "state": "created",
        "metric": "error",
        "direction": "minimize",
        "sampler": "random",
        "pruner": "none",
        "minutes": None,
        "trials": {"total": 3, "complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 3},
        "epochs_trained": 0,
        "seconds": 0.0,
        "best": None,
        "evaluation": None,
    }
    assert (
        "0 of 3 trials done (0 complete, 0 pruned, 0 failed), 0 epochs in 0.0 s, 3 waiting"
        in tuner("show", "tiny").stdout
    )


def test_stop_before_any_worker() -> None:
    tuner("create", write_study())
    assert tuner("stop", "tiny").stdout.startswith("tiny: stopping")
    assert tuner_json("show", "tiny")["state"] == "stopped"


def test_delete_needs_a_yes() -> None:
    tuner("create", write_study())
    message = tuner("delete", "tiny", code=2).stderr
    assert message == "error: delete needs a yes, and there is no terminal to ask on; tuner delete tiny --yes\n"
    assert tuner_json("studies")
    assert tuner("delete", "tiny", "--yes").stdout == "tiny: deleted\n"
    assert tuner_json("studies") == []


def test_delete_asks_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner("create", write_study())
    monkeypatch.setattr("tuner.cli.lifecycle.on_terminal", lambda: True)
    assert "Delete study tiny with the results of 0 trials" in tuner("delete", "tiny", stdin="n\n", code=130).stderr
    assert tuner_json("studies")
    tuner("delete", "tiny", stdin="y\n")
    assert tuner_json("studies") == []


def test_storage_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study()
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///optuna.db")
    assert "sqlite:///optuna.db" in tuner("create", study).stdout
    monkeypatch.setenv("TUNER_STORAGE", "sqlite:///own.db")
    assert "sqlite:///own.db" in tuner("create", study).stdout
    assert "sqlite:///option.db" in tuner("create", study, "--storage", "sqlite:///option.db").stdout


def test_data_path_starts_at_the_study_file() -> None:
    Path("sub").mkdir()
    Path("sub/x.csv").write_text("a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    study = write_study(
        TINY.replace("sklearn:iris", "x.csv").replace("[training]", 'target = "y"\n[training]'), "sub/x.toml"
    )
    assert "x.csv, 20 rows" in tuner("check", study).stdout


def write_pets() -> None:
    """A table in the current directory: pets.csv, whose target is sold."""
    rows = [f"{i},{i % 7},{'ab'[i % 2]},{'yes' if i % 3 else 'no'}" for i in range(60)]
    Path("pets.csv").write_text("\n".join(["id,age,kind,sold", *rows, ""]))


class TestInit:
    def test_a_file_that_runs(self) -> None:
        write_pets()
        assert tuner("init", "pets.csv", "--target", "sold").stdout == (
            "wrote pets.toml; next: tuner check pets.toml, tuner run pets.toml\n"
        )
        plan = tuner_json("check", "pets.toml")
        assert plan["data"]["columns"] == {"numeric": 1, "category": 1}
        assert 'drop    = ["id"]' in Path("pets.toml").read_text()

    def test_a_relative_source_starts_at_the_file(self) -> None:
        write_pets()
        Path("deep").mkdir()
        tuner("init", "pets.csv", "--target", "sold", "-o", "deep/s.toml")
        assert 'source  = "../pets.csv"' in Path("deep/s.toml").read_text()
        tuner("check", "deep/s.toml")

    def test_printed(self) -> None:
        write_pets()
        assert 'metric = "f1"' in tuner("init", "pets.csv", "--target", "sold", "--metric", "f1", "-o", "-").stdout
        assert not Path("pets.toml").exists()

    def test_nothing_is_overwritten(self) -> None:
        write_pets()
        Path("pets.toml").write_text("mine")
        assert "pets.toml: is there already" in refused("init", "pets.csv", "--target", "sold")
        assert Path("pets.toml").read_text() == "mine"
        tuner("init", "pets.csv", "--target", "sold", "--force")
        assert Path("pets.toml").read_text() != "mine"
        Path("link.toml").symlink_to("pets.toml")
        tuner("init", "pets.csv", "--target", "sold", "--force", "--name", "linked", "-o", "link.toml")
        assert Path("link.toml").is_symlink()
        assert 'name   = "linked"' in Path("pets.toml").read_text()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["pets.csv"], "data.target: missing; say which column of pets.csv is the target: id, age, kind, sold"),
            (["pets.csv", "--target", "Sold"], "did you mean 'sold'?"),
            (["none.csv", "--target", "sold"], "no such file"),
            (["pets.csv", "--target", "sold", "--metric", "auc"], "'auc' is none of error, accuracy"),
            (["pets.csv", "--target", "sold", "-o", "no/where.toml"], "no/where.toml: cannot be written"),
        ],
    )
    def test_bad_input(self, words: list[str], message: str) -> None:
        write_pets()
        assert message in refused("init", *words)
        assert list(Path().glob("*.toml")) == []


def test_a_data_file_is_run_as_it_is() -> None:
    write_pets()
    words = ["run", "pets.csv", "--target", "sold", "--trials", "3", "--max-epochs", "3", "-q", "--workers", "1"]
    record = json.loads(tuner(*words, "-f", "json").stdout)
    assert record["name"] == "pets"
    assert record["state"] == "finished"
    assert record["evaluation"]["metric"] == "error"
    again = json.loads(tuner(*words, "-f", "json").stdout)
    assert again["evaluation"]["test"] == record["evaluation"]["test"]


def test_results_are_of_the_file_that_was_given() -> None:
    """Two files of one name in two folders are two studies."""
    for folder, shift in (("a", 0), ("b", 5)):
        Path(folder).mkdir()
        rows = [f"{(i + shift) % 11},{i % 2}" for i in range(60)]
        Path(folder, "data.csv").write_text("\n".join(["x,y", *rows, ""]))
    words = ["--target", "y", "--trials", "2", "--max-epochs", "2", "-q", "--workers", "1"]
    first = json.loads(tuner("run", "a/data.csv", *words, "-f", "json").stdout)
    message = refused("run", "b/data.csv", *words)
    assert "study 'data' exists with another spec; use another name, or: tuner delete data" in message
    assert f"data.source: {Path('a/data.csv').resolve()} -> {Path('b/data.csv').resolve()}" in message
    other = json.loads(tuner("run", "b/data.csv", *words, "--name", "other", "-f", "json").stdout)
    assert (first["name"], other["name"]) == ("data", "other")
    assert json.loads(tuner("run", "a/data.csv", *words, "-f", "json").stdout) == first


@pytest.mark.parametrize(("cuda", "words", "workers"), [(3, [], 3), (0, [], 5), (3, ["--workers", "2"], 2)])
def test_the_time_is_shared_by_the_workers_that_there_will_be(
    cuda: int, words: list[str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pets()
    monkeypatch.setattr("tuner.launch.local._cuda_devices", lambda: cuda)
    monkeypatch.setattr("tuner.launch.local.usable_cores", lambda: 5)
    asked: list[int] = []

    def written(*_: object, **more: int) -> None:
        asked.append(more["workers"])
        raise BadInputError("enough")

    monkeypatch.setattr("tuner.recipe.write_recipe", written)
    tuner("init", "pets.csv", "--target", "sold", *words, code=2)
    tuner("run", "pets.csv", "--target", "sold", "-q", *words, code=2)
    tuner("run", "pets.csv", "--target", "sold", "-q", "--trials", "2", "--minutes", "1", *words, code=2)
    assert asked == [workers, workers, 2]


def test_a_new_study_is_remarked_on() -> None:
    """By create and run, once: what check would have said of its columns, its settings and its split."""
    rows = [
        f"{i},{i % 7},9,{'yes' if i % 3 else 'no'},{'test' if i > 160 else 'val' if i > 120 else 'train'}"
        for i in range(200)
    ]
    Path("t.csv").write_text("\n".join(["number,age,same,sold,part", *rows, ""]))
    source = 'source = "t.csv"\ntarget = "sold"\nsplit = { column = "part" }'
    study = write_study(TINY.replace('source = "sklearn:iris"', source).replace("batch_size = 32", "batch_size = 150"))
    columns = [
        "tiny: note: column 'same': dropped: constant on the train rows",
        "tiny: note: column 'number': looks like an identifier: if it only names the row, list it in data.drop",
    ]
    advice = "tiny: advice: space.batch_size: above 121 training rows a batch is the whole training set"
    created = tuner("create", study)
    assert sorted(created.stderr.splitlines()) == sorted([*columns, advice])
    assert created.stdout.startswith("tiny: created")
    assert tuner("create", study).stderr == "", "it is there already"
    tuner("delete", "tiny", "--yes")

    said = tuner("run", study, "--workers", "1", "--device", "cpu").stderr.splitlines()
    assert sorted(said[1:4]) == sorted([*columns, advice])
    assert said[4].startswith("tiny: warning: train and validation differ in number; train and test differ in number")
    assert said[5] == "tiny: starting 1 worker"
    assert len(tuner("run", study).stderr.splitlines()) == 1
    assert tuner("run", study, "--name", "other", "--workers", "1", "-q").stderr == ""


def test_of_a_data_file_what_is_left_out_is_said() -> None:
    write_pets()
    words = ["run", "pets.csv", "--target", "sold", "--trials", "2", "--max-epochs", "2", "--workers", "1"]
    said = tuner(*words).stderr.splitlines()
    assert said[1] == (
        "pets: note: column 'id': left out, only naming rows by the look of it; tuner init writes a file to change"
    )
    assert said[2] == "pets: starting 1 worker"


@pytest.mark.parametrize(("limit", "most"), [("SHIFT_CELLS", 150 * 4 - 1), ("SHIFT_COLUMNS", 3)])
def test_the_parts_of_a_large_table_are_not_compared_without_being_asked(
    limit: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"tuner.plan.{limit}", most)
    monkeypatch.setattr("tuner.plan.check_shift", lambda *_: pytest.fail("it takes long"))
    said = tuner("run", write_study(), "--workers", "1", "--device", "cpu").stderr
    assert "tiny: shift: the parts of so large a table are not compared here; tuner check STUDY.toml does\n" in said


def test_a_target_is_for_a_data_file() -> None:
    study = write_study()
    assert "--target and --metric are for a data file" in refused("run", study, "--target", "y")
