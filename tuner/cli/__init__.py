"""The command line: parse, call one function, print. One file a verb group; heavy imports inside command bodies.

Results go to standard output, progress and logs to standard error. Exit codes: 0 done, 1 failed, 2 bad usage or bad
input, 3 nothing completed, 130 interrupted with everything saved.
"""

import click

from tuner import __version__
from tuner.cli.diagnosing import diagnose
from tuner.cli.group import DEBUG, ErrorGroup, set_up_logging
from tuner.cli.launching import launch
from tuner.cli.lifecycle import check, create, delete, init, retry, show, stop, studies, workers
from tuner.cli.results import best, evaluate, export, predict, replay, trials
from tuner.cli.running import run, worker
from tuner.cli.seeing import dashboard, demonstrate, report


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="tuner %(version)s")
@click.option("--debug", is_flag=True, help="Show a traceback with every error.")
@click.option("-v", "--verbose", count=True, help="Log what happens to standard error; twice for more.")
@click.pass_context
def main(context: click.Context, /, debug: bool, verbose: int) -> None:
    """Tune regularized multilayer perceptrons, honestly and fast.

    \b
    tuner check studies/digits.toml   what a study would do
    tuner run studies/digits.toml     do it, and report an honest test error

    A study lives in a database, so that any number of workers share it, and an interrupted one goes on where it was.
    """
    context.meta[DEBUG] = debug
    set_up_logging(context, verbose)


for _command in (
    init,
    check,
    create,
    run,
    launch,
    worker,
    studies,
    show,
    workers,
    trials,
    best,
    evaluate,
    diagnose,
    export,
    predict,
    replay,
    report,
    demonstrate,
    dashboard,
    stop,
    retry,
    delete,
):
    main.add_command(_command)
