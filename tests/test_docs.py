"""What the documentation says is so: docstrings are there, their examples run, and the README's commands exist."""

import ast
import doctest
import importlib
import itertools
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]


def module_name(path: Path) -> str:
    """The dotted name of a source file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(path): path for path in sorted((ROOT / "tuner").rglob("*.py"))}


def undocumented(source: str, name: str) -> list[str]:
    """The module, public classes and public functions of ``source`` that have no docstring."""
    module = ast.parse(source)
    places: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]] = [(name, module)]
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            places.append((f"{name}.{node.name}", node))
    return [place for place, node in places if not ast.get_docstring(node)]


@pytest.mark.parametrize("name", SOURCES)
def test_public_names_have_docstrings(name: str) -> None:
    assert undocumented(SOURCES[name].read_text(), name) == []


def test_undocumented_notices() -> None:
    source = "class A:\n    pass\nasync def f(): ...\ndef _g(): ...\nclass B:\n    'said'\n"
    assert undocumented(source, "m") == ["m", "m.A", "m.f"]


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.endswith("__main__")])
@pytest.mark.usefixtures("workdir")
def test_docstring_examples_run(name: str) -> None:
    if name == "tuner.learning.kernels.cuda" and find_spec("triton") is None:
        assert sys.platform != "linux" or platform.machine() != "x86_64", "the test extra brings triton here"
        pytest.skip("triton is not made for this machine")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def commands(markdown: str) -> Iterator[list[str]]:
    """The words of each ``tuner`` and ``make`` command in the sh and console blocks of a page."""
    for language, block in re.findall(r"^```(sh|console)\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if language == "console" and not line.startswith("$ "):
                continue
            line_words = shlex.split(line.removeprefix("$ "), comments=True)
            for joined, words in itertools.groupby(line_words, lambda word: word in ("&&", "||", "|", ";")):
                command = list(itertools.dropwhile(lambda word: re.match(r"\w+=", word), words))
                if not joined and command and command[0] in ("tuner", "make"):
                    yield command


def refusal(command: list[str]) -> str | None:
    """Why ``command`` cannot be typed in the repository: no such target, command, option or study file."""
    program, *words = command
    for word in words:
        if word.startswith("studies/") and not (ROOT / word).exists():
            return f"no such study file: {word}"
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return next((f"no such target: {word}" for word in words if "=" not in word and word not in targets), None)
    main = importlib.import_module("tuner.cli").main
    try:
        context = main.make_context("tuner", words)
        name, subcommand, rest = main.resolve_command(context, [*context._protected_args, *context.args])
        subcommand.make_context(name, rest, parent=context)
    except click.NoSuchOption as error:
        return error.format_message()
    except click.BadParameter:  # a file or study of the reader's own, which is not here
        return None
    except click.UsageError as error:
        return error.format_message()
    except click.exceptions.Exit:  # --help
        return None
    return None


def test_commands_are_found() -> None:
    page = """
```console
$ A=1 B=2 tuner run x.toml --trials 9  # why
make of the output
$ tuner trials x -f json | head
```
```toml
tuner = "not a command"
```
```sh
git clone x && cd x
make demo \\
  ARGS='-k a'
```
"""
    assert list(commands(page)) == [
        ["tuner", "run", "x.toml", "--trials", "9"],
        ["tuner", "trials", "x", "-f", "json"],
        ["make", "demo", "ARGS=-k a"],
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("make demo ARGS=-v", None),
        ("make coffee", "target: coffee"),
        ("tuner run studies/digits.toml", None),
        ("tuner brew", "brew"),
        ("tuner run --no-such-option x.toml", "--no-such-option"),
        ("tuner run studies/none.toml", "studies/none.toml"),
    ],
)
def test_refusal(line: str, reason: str | None) -> None:
    given = refusal(line.split())
    assert given is None if reason is None else given is not None and reason in given


def test_readme_commands_exist() -> None:
    found = list(commands((ROOT / "README.md").read_text()))
    assert ["make", "demo"] in found
    assert {shlex.join(command): why for command in found if (why := refusal(command))} == {}
