"""Every shell block of the README runs as it stands, one after the other, on small studies and a database of its own.

What is not here is stood in for: cloning copies this repository, make's virtual environment is this interpreter's, the
database's host and the GPUs are this machine, clusters get a dry run, and docker only notes down what it is asked; what
would be submitted or started there is run by tests/launch and tests/test_compose.py.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.cli.command import ROOT
from tests.storage.servers import fresh_database
from tuner.manager import StudyManager

README = (ROOT / "README.md").read_text()
SMALL = {r"^trials *= .*": "trials = 9", r"^max_epochs *= .*": "max_epochs = 3", r"^seeds *= .*": "seeds = 1"}
STAND_INS = {
    "git": 'test "$1" = clone && cp -r "$CHECKOUT" "$(basename "$2" .git)"',
    # As if the environment had been made and everything installed; the whole suite would run this very test.
    "make": 'exec "$MAKE" -o .venv/.installed -o .venv/.installed-test BIN="$(dirname "$TUNER")" '
    'ARGS="$(test "$1" = test && echo "-n 0 tests/report/test_study.py")" "$@"',
    "docker": 'echo "$@" >> "$NOTES"',
    "tuner": 'exec "$PYTHON" -m tuner "$@"',
}


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment(workdir: Path, tmp_path: Path) -> dict[str, str]:
    """What a shell needs to find the stand-ins, and a small checkout in the current directory."""
    programs, checkout = tmp_path / "programs", tmp_path / "checkout"
    programs.mkdir()
    make = shutil.which("make")
    assert make is not None
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.db", "tuner-artifacts")
    shutil.copytree(ROOT, checkout, ignore=hidden)
    for study in (checkout / "studies").rglob("*.toml"):
        content = study.read_text()
        for usual, small in SMALL.items():
            content = re.sub(usual, small, content, flags=re.MULTILINE)
        study.write_text(content)
    shutil.copytree(checkout / "studies", workdir / "studies")
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "CHECKOUT": str(checkout),
        "MAKE": make,
        "NOTES": str(tmp_path / "notes"),
        "PYTHON": sys.executable,
        "TUNER": shutil.which("tuner", path=str(Path(sys.executable).parent)) or "",
        "PYTHONPATH": str(ROOT),
    }
    for name, script in STAND_INS.items():
        program = programs / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return environment


def run(block: str, environment: dict[str, str]) -> str:
    """What a block prints; each of its commands must succeed."""
    command = ["sh", "-euc", block]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(600)
def test_every_shell_block_runs(environment: dict[str, str], workdir: Path, tmp_path: Path) -> None:
    assert environment["TUNER"], "tuner is installed beside this interpreter"
    seen: defaultdict[str, str] = defaultdict(str)
    with fresh_database("postgresql", tmp_path) as url:
        for block in blocks():
            here = block.replace("postgresql://tuner@db.example.com/tuner", url).replace("--gpus all", "--workers 1")
            if "make demo" in block:
                seen["demo"] += run(here, environment)
                shutil.copy(workdir / "tuner" / "tuner.db", workdir)  # the later blocks go on from there
            elif "tuner launch" in block:  # what it would submit; tests/launch submits it
                here = re.sub(r"^(tuner launch [^#\n]*)", r"\1 --dry-run ", here, flags=re.MULTILINE)
                seen["launch"] += run(here.replace("s3://bucket/tuner", f"{tmp_path}/artifacts"), environment)
            elif "TUNER_STORAGE" in block:
                seen["server"] += run(here, environment)
                with StudyManager(url) as manager:
                    assert manager.summary("digits").state == "finished"
            elif "churn.csv" in block:
                rows = [f"{i % 7},{i * 37 % 11},{'yes' if i % 3 else 'no'}" for i in range(90)]
                Path("churn.csv").write_text("\n".join(["months,calls,churned", *rows]) + "\n")
                seen["churn"] += run(here.replace("--minutes 5", "--minutes 0.05"), environment)
            elif "docker" in block:
                run(here, environment)
                seen["docker"] = Path(environment["NOTES"]).read_text()
            else:
                if "rows.csv" in block:
                    header = ",".join(f"pixel_{i}_{j}" for i in range(8) for j in range(8))
                    Path("rows.csv").write_text(f"{header}\n{','.join(['0'] * 64)}\n")
                seen[shlex.split(block)[1]] += run(here, environment)
    assert "test error" in seen["demo"]
    assert "passed" in seen["demo"], "make test"
    assert "test error" in seen["churn"]
    assert "left" in seen["server"]
    assert "#SBATCH" in seen["launch"]
    assert seen["docker"].splitlines() == [
        "compose --profile cpu up --build --detach --scale worker=2",
        "compose run --rm worker tuner run /studies/digits.toml",
    ]
    assert (workdir / "secrets" / "db_password").stat().st_size > 40
    assert Path("predictions.csv").read_text().startswith("prediction,")
    assert len(seen) >= 4, "none was overlooked"
