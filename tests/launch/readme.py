"""The README's own commands, as tests run them: at the size of a test, without GPUs, on the database of the test."""

from pathlib import Path

from tests.cli.command import ROOT
from tests.test_docs import commands

SIZE = {"--workers": "1"}
ELSEWHERE = ("--gpus-per-worker", "--address")  # options of a cluster that is not here


def launch_command(place: str, study: Path, storage: str) -> list[str]:
    """``tuner launch … --on place`` of the README, after ``tuner``."""
    found = [words for words in commands((ROOT / "README.md").read_text()) if {"launch", place} <= set(words)]
    (words,) = found
    command, pairs = words[1:2], iter(words[3:])
    for option in pairs:
        value = next(pairs)
        assert option.startswith("--"), words
        if option not in ELSEWHERE and value != "partition=gpu":
            command += [option, SIZE.get(option, value)]
    return [*command, str(study), "--storage", storage]
