"""Labs of the lecture's studies: as their files say, with the winner given instead of searched."""

import tomllib
from typing import Any

import torch

from tests.cli.command import STUDIES
from tuner.demonstrations import Lab
from tuner.refits import Member
from tuner.spec import parse_spec


def lab_of(name: str, **changes: Any) -> Lab:
    """The lab of ``studies/lecture/NAME.toml``; changes: of the first configuration of its grid."""
    spec = parse_spec(tomllib.loads((STUDIES / "lecture" / f"{name}.toml").read_text()))
    params = {**spec.search_space.grid_point(0), **changes}
    config = spec.trial_config(params)
    if "max_epochs" in changes:
        config = type(config)(**{**vars(config), "max_epochs": changes["max_epochs"]})
    winner = Member(trial=0, params=params, config=config, value=0.5, epochs=config.max_epochs)
    return Lab(spec=spec, root=STUDIES / "lecture", ranked=[winner], device=torch.device("cpu"))
