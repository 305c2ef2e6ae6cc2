"""The import contracts of pyproject.toml hold, and each of them notices when it is broken."""

import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

NUMERICS = "Numerics never imports coordination"
COORDINATION = "Coordination never imports numerics"
SEALED = "Only evaluation opens the sealed test set"
UNSPLIT = "Rows that still hold the test set stay inside the data room"
LAYERS = "Each layer imports only from those below it"
VOCABULARY = "The vocabulary needs no library of either stem"

# For each contract, lines that break it: file of the package -> what is appended to it.
BREACHES: list[tuple[str, dict[str, str]]] = [
    (NUMERICS, {"learning/breach.py": "import optuna"}),
    (NUMERICS, {"data/breach.py": "import tuner.storage"}),
    (NUMERICS, {"data/breach.py": "import tuner.between", "between.py": "from sqlalchemy import text"}),
    (NUMERICS, {"theory/breach.py": "import optuna"}),
    (COORDINATION, {"search/breach.py": "import torch"}),
    (COORDINATION, {"search/breach.py": "import tuner.theory"}),
    (COORDINATION, {"storage/breach.py": "def lazily():\n    from tuner.learning import mlp"}),
    (COORDINATION, {"manager.py": "import tuner.between", "between.py": "import tuner.data"}),
    (SEALED, {"worker.py": "import tuner.data.sealed"}),
    (SEALED, {"worker.py": "from tuner.data import sealed"}),
    (SEALED, {"worker.py": "import tuner.between", "between.py": "def lazily():\n    import tuner.data.sealed"}),
    (SEALED, {"learning/breach.py": "from tuner.data.sealed import *"}),
    (SEALED, {"cli/__init__.py": "import tuner.data.sealed"}),
    (UNSPLIT, {"worker.py": "import tuner.data._prepare"}),
    (LAYERS, {"worker.py": "import tuner.evaluation", "evaluation.py": ""}),
    (LAYERS, {"worker.py": "import tuner.between", "between.py": "import tuner.evaluation", "evaluation.py": ""}),
    (LAYERS, {"manager.py": "import tuner.worker", "worker.py": ""}),
    (LAYERS, {"refits.py": "import tuner.demonstrations"}),
    (SEALED, {"demonstrations/breach.py": "import tuner.data.sealed"}),
    (LAYERS, {"trial.py": "import tuner.search"}),
    (VOCABULARY, {"errors.py": "import torch"}),
]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package and its contracts, free to be spoiled."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return shutil.copytree(ROOT / "tuner", tmp_path / "tuner", ignore=shutil.ignore_patterns("__pycache__"))


def broken_contracts(project: Path) -> set[str]:
    """The names of the contracts that the package in this folder breaks."""
    linter = shutil.which("lint-imports", path=sysconfig.get_path("scripts"))
    assert linter, "import-linter is not installed; pip install -e '.[test]'"
    environment = {**os.environ, "PYTHONPATH": str(project), "COLUMNS": "200", "NO_COLOR": "1"}
    run = subprocess.run(
        [linter, "--no-cache", "--no-logo"], cwd=project, env=environment, capture_output=True, text=True, timeout=60
    )
    verdicts = dict(re.findall(r"^(.+) (KEPT|BROKEN)$", run.stdout, flags=re.MULTILINE))
    assert verdicts.keys() == contract_names(), run.stdout + run.stderr
    broken = {name for name, verdict in verdicts.items() if verdict == "BROKEN"}
    assert (run.returncode != 0) == bool(broken), run.stdout + run.stderr
    return broken


def contract_names() -> set[str]:
    """The names of all contracts in pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return {contract["name"] for contract in tomllib.load(file)["tool"]["importlinter"]["contracts"]}


def test_contracts_hold() -> None:
    assert broken_contracts(ROOT) == set()


@pytest.mark.parametrize(("contract", "breach"), BREACHES)
def test_contract_notices(contract: str, breach: dict[str, str], package: Path) -> None:
    for name, line in breach.items():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(f"\n{line}\n")
    assert contract in broken_contracts(package.parent)


def test_every_contract_has_a_breach() -> None:
    assert {contract for contract, _ in BREACHES} == contract_names()
