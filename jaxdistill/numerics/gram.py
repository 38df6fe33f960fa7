"""The symmetric product ``A^T A`` from its upper triangle in blocks: two thirds of the full one's time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.numerics.linalg import HIGHEST, matmul
from jaxdistill.numerics.placement import on_accelerator


def num_blocks(num_columns: int) -> int:
    """Blocks of columns, by what was measured on two cores: of fewer than 1000 they lose what they save.

    Accelerators wait for the copies of the rows, and compile the product of every strip for seconds: one.
    """
    if on_accelerator():
        return 1
    return 1 if num_columns < 1024 else 4


def cut_strips(matrix: Any, blocks: int | None = None) -> tuple[Any, ...]:
    """The upper triangle of a matrix, as strips: each from its block on the diagonal to the right edge.

    Args:
        matrix: A symmetric matrix, shape (p, p); only what the strips hold is read.
        blocks: Number of strips; default :func:`num_blocks`.
    """
    edges = _edges(len(matrix), blocks)
    return tuple(matrix[a:b, a:] for a, b in pairwise(edges))


def gram_strips(
    rows: Float[Array, "n p"], blocks: int | None = None, precision: Any = HIGHEST
) -> tuple[Array, ...]:
    """Strips of ``A^T A``, of :func:`cut_strips`; with one block the full product; pure.

    Args:
        rows: A, shape (n, p).
        blocks: Number of strips; default :func:`num_blocks`.
        precision: Of the products.

    Example:
        >>> strips = gram_strips(jnp.arange(8.0).reshape(2, 4), 2)
        >>> [strip.shape for strip in strips], join_strips(strips).shape
        ([(2, 4), (2, 2)], (4, 4))
    """
    edges = _edges(rows.shape[1], blocks)
    return tuple(matmul(rows[:, a:b].T, rows[:, a:], precision) for a, b in pairwise(edges))


def join_strips(strips: tuple[Array, ...]) -> Float[Array, "p p"]:
    """The symmetric matrix of strips; what they hold stays as it is, bit for bit; pure."""
    if len(strips) == 1:
        return strips[0]
    lines = []
    for i, strip in enumerate(strips):
        height, rest = strip.shape
        # Strips end at the same edge: these columns of those above are as far from it as this strip begins.
        above = [s[:, s.shape[1] - rest : s.shape[1] - rest + height].T for s in strips[:i]]
        lines.append(jnp.concatenate([*above, strip], axis=1))
    return jnp.concatenate(lines, axis=0)


def _edges(num_columns: int, blocks: int | None) -> list[int]:
    blocks = num_blocks(num_columns) if blocks is None else blocks
    return [i * num_columns // blocks for i in range(blocks + 1)]
