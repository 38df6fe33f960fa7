"""The few checked factorisations that all rooms share.

Functions of arrays here are pure: safe under jit, vmap and grad, in the precision of what they are
given. :func:`in_float64` is the one door between a caller in any precision and algebra in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.numerics.placement import device_scope, float64_scope

HIGHEST = jax.lax.Precision.HIGHEST


def matmul(a: Array, b: Array, precision: Any = HIGHEST) -> Array:
    """Matrix product in the full precision of its operands, unless another one is asked for.

    GPUs and TPUs multiply float32 with 10 or 8 mantissa bits unless told otherwise; a distilled set
    computed that way is not exact.
    """
    return jnp.matmul(a, b, precision=precision)


def in_float64(function: Callable[..., Any], *args: Any) -> Any:
    """Run ``function(*args)`` in float64, where float64 lives, and return its arrays as NumPy.

    Floating-point leaves of ``args`` become float64. The global x64 flag is untouched. The result is
    NumPy because a float64 array of JAX is not usable outside the scope in which it was made.

    Args:
        function: Function of arrays.
        args: Its arguments; numbers, strings and what is no array pass as they are.

    Example:
        >>> in_float64(jnp.sum, np.ones(3, np.float32)).dtype
        dtype('float64')
    """
    with float64_scope() as where:

        def promote(leaf: Any) -> Any:
            if isinstance(leaf, (bool, int, str)):  # static arguments pass as they are
                return leaf
            floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            if isinstance(leaf, jax.Array):
                leaf = leaf if where.home is None else jax.device_put(leaf, where.home)
                return jnp.asarray(leaf, jnp.float64) if floating else leaf
            # Converted on the host: a program that only changes the type would have to be compiled.
            return np.asarray(leaf, np.float64) if floating else leaf

        leaves, structure = jax.tree.flatten(args)
        leaves = [promote(leaf) for leaf in leaves]
        here = [i for i, leaf in enumerate(leaves) if getattr(leaf, "dtype", None) == np.float64]
        # All at once: each journey to an accelerator has a price of its own.
        for i, leaf in zip(here, jax.device_put([leaves[i] for i in here]), strict=True):
            leaves[i] = leaf
        return to_host(function(*jax.tree.unflatten(structure, leaves)))


def to_host(tree: Any) -> Any:
    """Arrays as NumPy's, their journeys from an accelerator under way at the same time."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return jax.tree.map(np.asarray, tree)


def in_float32(function: Callable[..., Any], *args: Any) -> Any:
    """Run ``function(*args)`` in float32, on the first of the devices, and return its arrays as NumPy.

    What is inexact and corrected afterwards, in float64 where float64 lives: steps of iterations.

    Args:
        function: Function of arrays.
        args: Its arguments; numbers, strings and what is no array pass as they are.

    Example:
        >>> in_float32(jnp.sum, np.ones(3)).dtype
        dtype('float32')
    """

    def demote(leaf: Any) -> Any:
        wide = isinstance(leaf, (float, np.ndarray, np.generic)) and np.result_type(leaf) == np.float64
        return np.asarray(leaf, np.float32) if wide else leaf

    with device_scope(np.float32):
        return to_host(function(*jax.tree.map(demote, args)))


def rank_tolerance(singular_values: Float[Array, " r"], shape: tuple[int, ...]) -> Float[Array, ""]:
    """The size below which a singular value is rounding: eps times the larger side times the largest.

    The rule of LAPACK-based libraries (``numpy.linalg.matrix_rank``).
    """
    largest = jnp.max(singular_values, initial=0.0)
    return jnp.finfo(singular_values.dtype).eps * max(shape) * largest


def reciprocal(values: Float[Array, " r"], keep: Array) -> Float[Array, " r"]:
    """Reciprocal ``1 / values`` where ``keep``, exactly zero elsewhere, with finite derivatives."""
    return jnp.where(keep, 1.0 / jnp.where(keep, values, 1.0), 0.0)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def pinv(matrix: Float[Array, "a b"], cut: float | None = None) -> Float[Array, "b a"]:
    """Moore-Penrose pseudo-inverse, with the cut of :func:`rank_tolerance` or one relative to the largest.

    Its derivative (Golub and Pereyra 1973) holds where the rank is constant. That of the singular value
    decomposition underneath would be wrong where singular values coincide, as those of one-hot labels do.
    Where all that are not zero coincide, as for balanced class rows, the inverse is ``A^T / s^2`` without a
    decomposition, which takes seconds for a thousand classes.
    """

    def decomposed(matrix: Array) -> Array:
        u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
        lowest = rank_tolerance(s, matrix.shape) if cut is None else cut * jnp.max(s, initial=0.0)
        return matmul(vt.T * reciprocal(s, s > lowest)[None], u.T)

    tall = matrix.shape[0] > matrix.shape[1]
    gram = matmul(matrix.T, matrix) if tall else matmul(matrix, matrix.T)
    total = jnp.trace(gram)
    square = jnp.sum(gram**2) / jnp.where(total > 0, total, 1.0)  # s^2, if there is one
    cube = matmul(matrix, gram) if tall else matmul(gram, matrix)
    rounding = 8 * jnp.finfo(matrix.dtype).eps * square * jnp.sqrt(total)
    alike = (total > 0) & (jnp.linalg.norm(cube - square * matrix) <= rounding)
    return jax.lax.cond(alike, lambda a: a.T / square, decomposed, matrix)


@pinv.defjvp
def _pinv_jvp(cut: float | None, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (a,), (change,) = primals, tangents
    inverse = pinv(a, cut)
    outside = change.T - matmul(matmul(change.T, a), inverse)
    beside = change.T - matmul(inverse, matmul(a, change.T))
    return inverse, (
        matmul(inverse, matmul(inverse.T, outside))
        + matmul(matmul(beside, inverse.T), inverse)
        - matmul(matmul(inverse, change), inverse)
    )


def least_change(matrix: Float[Array, "p d"], residual: Float[Array, "*batch p"]) -> Float[Array, "*batch d"]:
    """Smallest ``dx`` with ``matrix @ dx = residual``, for a matrix of full row rank.

    With ``matrix.T = Q R``: ``dx = Q R^-T residual``. The condition number enters once; the
    textbook ``A^T (A A^T)^-1`` would square it.
    """
    q, r = jnp.linalg.qr(matrix.T)
    flat = residual.reshape(-1, residual.shape[-1])
    solved = jax.scipy.linalg.solve_triangular(r, flat.T, trans="T")
    return matmul(q, solved).T.reshape(*residual.shape[:-1], matrix.shape[1])


def check_finite(name: str, array: Any) -> None:
    """Raise if ``array`` holds a NaN or an infinity, naming the first place.

    Raises:
        InputError: the first offending index and value.
    """
    values = np.asarray(array)
    # One pass without a temporary the size of the data: NaN and infinity survive products and sums. Squares
    # by the BLAS are a quarter of the time; where they overflow, a sum in float64 cannot on float32 data.
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype.kind == "f" and values.flags.c_contiguous:
            flat = values.reshape(-1)
            if np.isfinite(np.dot(flat, flat)):
                return
        if np.isfinite(np.sum(values, dtype=np.float64)):
            return
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size == 0:
        return
    index = tuple(int(i) for i in np.unravel_index(bad[0], values.shape))
    raise InputError(
        f"{name} holds {bad.size} values that are not finite, the first ({values[index]}) at index "
        f"{index}; remove or replace them before fitting"
    )


def check_squares(name: str, array: Any) -> None:
    """Raise if float64 cannot hold the squares of the largest entries: norms and certificates need them.

    Raises:
        InputError: names the size.

    Example:
        >>> check_squares("b", np.array([1e-200]))
        Traceback (most recent call last):
        jaxdistill.errors.InputError: b are of size 1e-200, whose square float64 cannot hold; ...
    """
    largest, limits = float(np.max(np.abs(array), initial=0.0)), np.finfo(np.float64)
    # With room for the eps^2 that an error of rounding adds, and for sums.
    if largest > 0 and not np.sqrt(limits.tiny) / limits.eps < largest < np.sqrt(limits.max) * limits.eps:
        raise InputError(
            f"{name} are of size {largest:.0e}, whose square float64 cannot hold; use a penalty and targets "
            "of more moderate size"
        )
