"""The type checker of the import hook in conftest: shapes of arrays, and nothing else.

Protocols, literals and ``Self`` are pyright's business; beartype refuses some of them outside classes.
"""

import re
from collections.abc import Callable
from typing import Any

import beartype

SHAPED = re.compile(r"\b(Float|Float32|Float64|Int|Bool)\[")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the annotations of a function that jaxtyping has prepared, where they name shapes."""
    inner = function
    while True:
        hints = inner.__annotations__
        inner.__annotations__ = {
            name: hint if SHAPED.search(str(hint)) else object for name, hint in hints.items()
        }
        if not hasattr(inner, "__wrapped__"):
            return beartype.beartype(function)
        inner = inner.__wrapped__
