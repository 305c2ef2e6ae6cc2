"""The top of the command line: how every error becomes one or two lines and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from tuner.errors import TunerError

DEBUG = "tuner.debug"  # where a context keeps whether errors show a traceback

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_PIPE = 141  # 128 + SIGPIPE: whoever read our output has gone


class ErrorGroup(click.Group):
    """A group that lists its commands in the order they were added, and turns errors into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known = f"{args[0]!r} is no command; known: {', '.join(self.commands)}"
            raise click.UsageError(known, ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            _abandon_stdout()
            ctx.exit(EXIT_PIPE)
        except TunerError as error:
            if ctx.meta.get(DEBUG):
                traceback.print_exc()
            _say(f"error: {error}")
            ctx.exit(error.exit_code)
        except Exception as error:
            if ctx.meta.get(DEBUG):
                traceback.print_exc()
            told = " ".join(str(error).split())
            _say(f"error: {type(error).__name__}{': ' if told else ''}{told}")
            if not ctx.meta.get(DEBUG):
                _say("this should not happen: tuner --debug … shows where it did")
            ctx.exit(EXIT_FAILED)

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        try:
            code = super().main(args, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            _say(error.format_message())
            code = error.exit_code
        except click.UsageError as error:
            _say(f"error: {error.format_message()}")
            if error.ctx is not None:
                _say(f"see: {error.ctx.command_path} --help")
            code = error.exit_code
        except click.ClickException as error:
            _say(f"error: {error.format_message()}")
            code = error.exit_code
        except click.Abort:
            _say("interrupted; nothing that was stored is lost")
            code = EXIT_INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


class _StandardError(logging.Handler):
    """Writes to what ``sys.stderr`` is at the moment, which a live display may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)  # click.echo would write past the display


def set_up_logging(context: click.Context, verbose: int) -> None:
    """Log to standard error until the command ends: warnings, with ``-v`` what happens, with ``-vv`` more of it."""
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if verbose else "%(message)s"))
    logger = logging.getLogger("tuner")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
    context.call_on_close(lambda: logger.setLevel(level))
    context.call_on_close(lambda: logger.removeHandler(handler))


def _say(text: str) -> None:
    click.echo(text, err=True)


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere, instead of into the broken pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
