"""Sums over the rows of a block that take little beside its product Phi^T Phi."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdistill.numerics.gram import gram_strips, join_strips
from jaxdistill.numerics.linalg import HIGHEST

# Rows that are summed in the precision of the features, before float64 takes over.
_ROWS = 128
# Targets whose products take less time than to see whether they are classes.
_FEW = 128


def column_sums(rows: Float[Array, "n p"], weight: Float[Array, " n"], dtype: Any) -> Float[Array, " p"]:
    """Weighted sum of rows: of a few in their precision, of those in ``dtype``; pure."""
    n, p = rows.shape
    blocks = -(-n // _ROWS)
    more = blocks * _ROWS - n
    rows = jnp.pad(rows, ((0, more), (0, 0))).reshape(blocks, _ROWS, p)
    weight = jnp.pad(weight.astype(rows.dtype), (0, more)).reshape(blocks, _ROWS)
    partial_sums = jnp.einsum("br,brp->bp", weight, rows, precision=HIGHEST)
    return jnp.sum(partial_sums.astype(dtype), axis=0)


def mean_of(rows: Any, mask: Any) -> Any:
    """Mean of the rows of a chunk, in their own precision, from the first row, which is no padding.

    So a column that is constant is met to the last bit. Of NumPy or JAX.
    """
    weight = mask.astype(rows.dtype)[:, None]
    return rows[0] + (weight * (rows - rows[:1])).sum(axis=0) / weight.sum()


def target_gram(
    targets: Float[Array, "n k"], point: Float[Array, " k"], weight: Float[Array, " n"]
) -> Float[Array, "k k"]:
    """``T = sum_i w_i (y_i - t) (y_i - t)^T``, in the precision of t and w; pure.

    Of a thousand classes this product, in float64, would take half as long as that of the features. Class
    rows need none: products of different columns are zero, and the diagonal counts, ``diag(c) - c t^T -
    t c^T + n t t^T`` with ``c = sum_i w_i y_i``.

    Args:
        targets: Y, shape (n, k).
        point: t, shape (k,).
        weight: w, shape (n,).

    Example:
        >>> classes = jnp.eye(200)[jnp.array([3, 3, 5])]
        >>> found = target_gram(classes, jnp.zeros(200), jnp.ones(3))
        >>> float(found[3, 3]), float(found[5, 5]), float(found.sum())
        (2.0, 1.0, 3.0)
    """

    def multiplied(targets: Array, point: Array, weight: Array) -> Array:
        return join_strips(
            gram_strips((targets.astype(point.dtype) - point[None]) * jnp.sqrt(weight)[:, None])
        )

    if targets.shape[1] < _FEW:
        return multiplied(targets, point, weight)
    return jax.lax.cond(are_classes(targets), gram_of_classes, multiplied, targets, point, weight)


def target_gram_on_host(
    targets: Float[np.ndarray, "n k"], point: Any, weight: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "k k"]:
    """What :func:`target_gram` returns, by NumPy, of weights that are zero or one."""
    if targets.shape[1] >= _FEW and are_classes(targets):
        return gram_of_classes(targets, point, weight)
    about = (targets - point) * weight[:, None]
    return about.T @ about


def are_classes(targets: Any) -> Bool[Any, ""]:
    """Whether every row is zero but for a one in one place at most, to the last bit."""
    return ((targets == 0) | (targets == 1)).all() & (targets.sum(axis=1) <= 1).all()


def gram_of_classes(targets: Any, point: Any, weight: Any) -> Any:
    """T of class rows, of NumPy or JAX; arguments as for :func:`target_gram`."""
    counts, n = (weight[:, None] * targets.astype(weight.dtype)).sum(axis=0), weight.sum()
    both = counts[:, None] * point
    diagonal = np.diag if isinstance(targets, np.ndarray) else jnp.diag
    return diagonal(counts) + (n * (point[:, None] * point) - (both + both.T))
