"""Help: every command has it, it is quick, and the README names every command."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from tests.cli.command import ROOT, tuner
from tuner import __version__
from tuner.cli import main

VERBS = [
    "init",
    "check",
    "create",
    "run",
    "launch",
    "worker",
    "studies",
    "show",
    "workers",
    "trials",
    "best",
    "evaluate",
    "diagnose",
    "export",
    "predict",
    "replay",
]
VERBS += ["report", "demonstrate", "dashboard", "stop", "retry", "delete"]
HEAVY = ("torch", "numba", "optuna", "sqlalchemy", "sklearn", "scipy", "numpy", "polars", "pydantic", "rich")


def options() -> Iterator[tuple[str, click.Option]]:
    """Every option of every command."""
    for name, command in [("tuner", main), *main.commands.items()]:
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield f"{name} {parameter.opts[-1]}", parameter


def test_help_lists_every_command() -> None:
    listed = tuner("--help").stdout.partition("Commands:")[2].splitlines()[1:]
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []  # not cut off
    assert [line.split()[0] for line in listed] == VERBS
    assert list(main.commands) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_command_has_help(verb: str) -> None:
    command = main.commands[verb]
    assert command.help
    assert command.get_short_help_str(limit=200).endswith(".")
    assert tuner(verb, "--help").stdout.startswith(f"Usage: tuner {verb} ")


def test_every_option_has_help() -> None:
    assert [name for name, option in options() if not option.help] == []


@pytest.mark.parametrize("verb", VERBS)
def test_readme_names_command(verb: str) -> None:
    assert f"tuner {verb}" in (ROOT / "README.md").read_text()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tuner.cli import main; main(['--help'], standalone_mode=False); "
        f"sys.exit(', '.join(sorted(set(sys.modules) & set({HEAVY!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == "\n" or done.stderr == ""


def test_version() -> None:
    assert tuner("--version").stdout == f"tuner {__version__}\n"


def test_no_command_shows_help() -> None:
    assert tuner(code=2).stderr.startswith("Usage: tuner ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["brew"], "error: 'brew' is no command; known: init, check, create, run, launch"),
        (["show"], "error: Missing argument 'NAME'.\nsee: tuner show --help"),
        (["show", "a", "--colour"], "error: No such option '--colour'"),
        (["trials", "a", "-f", "xml"], "'xml' is not one of 'table', 'json', 'csv'"),
        (["run", "a.toml", "--workers", "0"], "0 is not in the range x>=1"),
        (["--nope"], "error: No such option '--nope'"),
    ],
)
def test_bad_usage(words: list[str], message: str) -> None:
    result = tuner(*words, code=2)
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 2
