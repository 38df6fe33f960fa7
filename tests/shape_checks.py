"""The import hook of conftest: shapes of arrays are checked where functions name them, and nothing else.

Protocols, literals and ``Self`` are pyright's business; beartype refuses some of them outside classes.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

SHAPED = re.compile(r"\b(Float|Float32|Float64|Int|Bool)\[")


def install() -> None:
    """From here on, what is imported of the package checks shapes when it is called.

    jaxtyping's hook would wrap every function; six of seven name no shapes, and half of the time of an
    import went into checks of nothing.
    """
    wrap = jaxtyping.jaxtyped

    def where_shaped(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
        return lambda thing: wrap(thing, typechecker=typechecker) if names_shapes(thing) else thing

    jaxtyping.jaxtyped = where_shaped  # the hook writes this name over every function and class
    jaxtyping.install_import_hook("jaxdistill", "shape_checks.check")


def names_shapes(thing: Any) -> bool:
    """Whether a function, method, property or class has an annotation with a shape."""
    if isinstance(thing, property):
        return any(names_shapes(part) for part in (thing.fget, thing.fset, thing.fdel) if part is not None)
    hints = getattr(inspect.unwrap(getattr(thing, "__func__", thing)), "__annotations__", {})
    return any(SHAPED.search(str(hint)) for hint in hints.values())


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
