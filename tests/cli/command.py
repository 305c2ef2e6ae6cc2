"""Running ``tuner`` in tests: inside this process where that will do, as a process of its own where it must."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from tuner.cli import main

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "studies"
DEADLINE_S = 120.0

TINY = """
[study]
name = "tiny"
metric = "error"
[data]
source = "sklearn:iris"
[training]
max_epochs = 4
[search]
sampler = "random"
pruner = "none"
trials = 3
[space]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
batch_size = 32
width = 8
depth = 1
[final]
seeds = 2
"""


def write_study(content: str = TINY, name: str = "tiny.toml") -> Path:
    """A study file in the current directory."""
    path = Path(name)
    path.write_text(content)
    return path


def tuner(*words: str | Path, code: int = 0, stdin: str | None = None) -> Result:
    """Run a command in this process, and check its exit code."""
    result = CliRunner().invoke(main, [str(word) for word in words], input=stdin, prog_name="tuner")
    assert result.exit_code == code, (words, result.exit_code, result.stdout, result.stderr, result.exception)
    return result


def tuner_json(*words: str | Path) -> Any:
    """What a command writes with ``-f json``, which must be JSON and nothing else."""
    return strict_json(tuner(*words, "-f", "json").stdout)


def strict_json(text: str) -> Any:
    """Parse JSON without Python's NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def start(*words: str | Path) -> subprocess.Popen[str]:
    """Start a command as a process of its own, in the current directory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "tuner", *map(str, words)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(
    condition: Callable[[], bool], *, process: subprocess.Popen[str] | None = None, within_s: float = DEADLINE_S
) -> None:
    """Look again and again until ``condition`` holds; fails at a deadline, and when ``process`` ends before."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert process is None or process.poll() is None, process.communicate() if process else None
        time.sleep(0.02)


def refused(*words: str | Path, code: int = 2) -> str:
    """The message of a command that fails: nothing on standard output, no traceback."""
    result = tuner(*words, code=code)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr
