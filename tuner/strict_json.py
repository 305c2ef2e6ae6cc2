"""JSON that any parser reads: NaN and infinity, which it does not have, are null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def finite(content: Any) -> Any:
    """Content as JSON has it: every float that is not finite is None, every sequence a list.

    >>> finite({"a": (0.1, float("nan"))})
    {'a': [0.1, None]}
    """
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def dumps(content: Any, **options: Any) -> str:
    """:func:`json.dumps` of what is finite; floats read back equal."""
    return json.dumps(finite(content), allow_nan=False, **options)
