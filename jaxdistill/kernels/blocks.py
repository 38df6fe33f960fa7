"""Kernel matrices whose every entry takes much memory: how much, and in blocks of a few entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.numerics.traces import arrays_made

Block = Callable[[Array, Array], Array]

# Bytes that the entries of a block may take while they are computed.
WORKSPACE = 2**28


def largest_array(function: Callable[..., Any], *args: jax.ShapeDtypeStruct) -> int:
    """Bytes of the largest array that a function computes on its way; nothing is computed.

    Args:
        function: Function of arrays.
        args: Shapes and types of its arguments.

    Example:
        >>> largest_array(lambda a: jnp.sum(a[:, None] * a), jax.ShapeDtypeStruct((5,), jnp.float32))
        100
    """
    made = arrays_made(jax.make_jaxpr(function)(*args))
    return max((math.prod(array.shape) * array.dtype.itemsize for array in made), default=0)


def in_blocks(block: Block, x: Array, z: Array, entries: int) -> Float[Array, "n m"]:
    """The matrix ``block(x, z)``, at most so many entries at once; derivatives compute blocks anew.

    Args:
        block: Function of (a, d) and (b, d) inputs, of values (a, b).
        x: Inputs of the rows, shape (n, d).
        z: Inputs of the columns, shape (m, d).
        entries: Most entries of a block.

    Example:
        >>> x = jnp.arange(6.0).reshape(3, 2)
        >>> in_blocks(lambda a, b: a @ b.T, x, x, entries=2).tolist()
        [[1.0, 3.0, 5.0], [3.0, 13.0, 23.0], [5.0, 23.0, 41.0]]
    """
    n, m = x.shape[0], z.shape[0]
    columns = max(1, min(m, max(math.isqrt(entries), entries // n)))
    tall, wide = -(-n // max(1, entries // columns)), -(-m // columns)
    if tall == wide == 1:
        return block(x, z)
    # Blocks of one shape, as even as can be: the last repeats the first inputs.
    rows, columns = -(-n // tall), -(-m // wide)
    above = x[jnp.arange(tall * rows) % n].reshape(tall, rows, *x.shape[1:])
    beside = z[jnp.arange(wide * columns) % m].reshape(wide, columns, *z.shape[1:])
    compute = jax.checkpoint(block)
    blocks = jax.lax.map(lambda at: compute(above[at // wide], beside[at % wide]), jnp.arange(tall * wide))
    whole = blocks.reshape(tall, wide, rows, columns).swapaxes(1, 2).reshape(tall * rows, wide * columns)
    return whole[:n, :m]
