"""Waiting for an engine to say that a worker is lost."""

from tests.cli.command import wait_until
from tuner.launch.engine import Engine, WorkersLostError


def until_lost(workers: Engine) -> WorkersLostError:
    """What ``alive`` raises in the end."""
    lost: list[WorkersLostError] = []

    def happened() -> bool:
        try:
            workers.alive()
        except WorkersLostError as error:
            lost.append(error)
        return bool(lost)

    wait_until(happened)
    return lost[0]
