"""Rows without their mean: what an intercept leaves of features and labels.

An unpenalised intercept makes ridge regression one on centred rows, that is, within the subspace
orthogonal to the ones vector. In coordinates of that subspace it is ordinary ridge regression on m - 1
rows, so every construction for models without an intercept serves there as it is. Centred rows themselves
hold a singular value that is zero but for rounding; their coordinates do not, and derivatives stay finite.

Pure functions of arrays, safe under jit, vmap and grad.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def centred(rows: Float[Array, "m q"]) -> Float[Array, "m q"]:
    """Rows minus their mean, ``P1 A`` with ``P1 = I - 1 1^T / m``.

    The first row is subtracted first: a mean much larger than the spread costs no digits.
    """
    moved = rows - rows[:1]
    return moved - jnp.mean(moved, axis=0, keepdims=True)


def contrasts(rows: Float[Array, "m q"]) -> Float[Array, "m-1 q"]:
    """Coordinates of the centred rows in an orthonormal basis H of what is orthogonal to ones.

    ``H^T A``, with ``H H^T = I - 1 1^T / m`` and ``H^T H = I``: H holds all but the first column of the
    Householder reflection that takes the ones vector to the first axis. It costs one pass over the rows, and
    a mean much larger than the spread costs no digits.

    Args:
        rows: A, shape (m, q).

    Returns:
        ``H^T A``, shape (m - 1, q).

    Example:
        >>> import jax.numpy as jnp
        >>> a = jnp.array([[1.0], [2.0], [6.0]])
        >>> c = contrasts(a)
        >>> c.shape, bool(jnp.allclose(c.T @ c, centred(a).T @ centred(a)))
        ((2, 1), True)

    Source: Householder 1958.
    """
    moved = rows[1:] - rows[:1]
    return moved - jnp.sum(moved, axis=0, keepdims=True) / _pivot(len(rows))


def from_contrasts(coordinates: Float[Array, "n q"]) -> Float[Array, "n+1 q"]:
    """The rows ``H C`` of mean zero with these coordinates, inverse of :func:`contrasts` up to the mean.

    Args:
        coordinates: C, shape (m - 1, q).

    Returns:
        Rows, shape (m, q).

    Example:
        >>> import jax.numpy as jnp
        >>> a = jnp.array([[1.0], [2.0], [6.0]])
        >>> bool(jnp.allclose(from_contrasts(contrasts(a)), a - 3, atol=1e-6))
        True
    """
    m = len(coordinates) + 1
    total = jnp.sum(coordinates, axis=0)
    return jnp.concatenate([-total[None] / math.sqrt(m), coordinates - total[None] / _pivot(m)])


def contrasts_of_gram(gram: Float[Array, "m m"]) -> Float[Array, "m-1 m-1"]:
    """The Gram matrix ``H^T K H`` of contrasts, from that of the rows.

    Args:
        gram: K, shape (m, m), symmetric.

    Returns:
        Shape (m - 1, m - 1), symmetric.

    Example:
        >>> import jax.numpy as jnp
        >>> a = jnp.array([[1.0], [2.0], [6.0]])
        >>> c = contrasts(a)
        >>> bool(jnp.allclose(contrasts_of_gram(a @ a.T), c @ c.T, atol=1e-5))
        True
    """
    inner = contrasts(contrasts(gram).T)
    return (inner + inner.T) / 2


def _pivot(size: int) -> float:
    return size + math.sqrt(size)
