"""In a process of Ray: the program that a test has written stands in for Python, and so for ``tuner worker``."""

import os
import sys


def take_over() -> None:
    """Ray calls this as each of its processes starts."""
    sys.executable = os.environ["TUNER_TEST_INTERPRETER"]
