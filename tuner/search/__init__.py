"""Search: who proposes configurations and who survives a rung. Coordination: never imports torch.

Names load on first use, so that ``tuner check`` prints brackets without importing optuna and scipy. The function
``distributions`` is imported from its module, which bears the same name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tuner.search.hyperband import (
    Bracket,
    Rung,
    brackets,
    deal,
    largest_bracket,
    plan,
    promotable,
    rounds,
    slot_place,
    slots,
    survivors,
    total_epochs,
)

if TYPE_CHECKING:
    from tuner.search.distributions import decode, distributions_for, encode, suggest
    from tuner.search.samplers import Sampler, make_sampler

__all__ = [
    "Bracket",
    "Rung",
    "Sampler",
    "brackets",
    "deal",
    "decode",
    "distributions_for",
    "encode",
    "largest_bracket",
    "make_sampler",
    "plan",
    "promotable",
    "rounds",
    "slot_place",
    "slots",
    "suggest",
    "survivors",
    "total_epochs",
]

_LATE = {
    "decode": "tuner.search.distributions",
    "distributions_for": "tuner.search.distributions",
    "encode": "tuner.search.distributions",
    "suggest": "tuner.search.distributions",
    "Sampler": "tuner.search.samplers",
    "make_sampler": "tuner.search.samplers",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
