"""What a program makes on its way, read from its trace: nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax


def arrays_made(jaxpr: Any) -> Iterator[Any]:
    """Shapes and types of all arrays that a program makes, those of its inner programs included.

    Args:
        jaxpr: The program as ``jax.make_jaxpr`` returns it.

    Example:
        >>> traced = jax.make_jaxpr(jax.jit(lambda a: (a[:, None] * a).sum()))(jax.numpy.ones(5))
        >>> max(array.size for array in arrays_made(traced))
        25
    """
    # Closed or not, and without the types' own names, whose import loads Pallas.
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (made.aval for made in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(value, "eqns"):
                yield from arrays_made(value)
