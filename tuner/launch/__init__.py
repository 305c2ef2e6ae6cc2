"""Launch: starting workers, here or elsewhere. Every engine starts ``tuner worker`` and leaves the rest to it."""

from typing import Literal

Place = Literal["local", "ray", "slurm", "kubernetes"]
