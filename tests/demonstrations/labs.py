"""Labs of the lecture's studies: as their files say, with the winner given instead of searched."""

import tomllib
from collections.abc import Mapping
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


def small_lab(name: str, changes: Mapping[str, Mapping[str, Any]]) -> Lab:
    """The lab of ``studies/lecture/NAME.toml`` with other keys by section; the first point of its space has won."""
    content = tomllib.loads((STUDIES / "lecture" / f"{name}.toml").read_text())
    spec = parse_spec({**content, **{section: {**content[section], **keys} for section, keys in changes.items()}})
    config = spec.trial_config(spec.search_space.from_unit([0.0] * len(spec.search_space.searched)))
    winner = Member(trial=0, params={}, config=config, value=0.0, epochs=config.max_epochs)
    return Lab(spec=spec, root=STUDIES / "lecture", ranked=[winner], device=torch.device("cpu"))
