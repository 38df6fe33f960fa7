"""Randomly pivoted Cholesky: a few points whose kernel columns explain the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxdistill.errors import InputError, KernelError
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.kernels.tiles import check_inputs, kernel_diagonal
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.memory import require_memory
from jaxdistill.numerics.placement import float64_scope

# Points proposed at once: enough for matrix products, few enough that most are accepted.
_PROPOSALS = 64


@final
@dataclass(frozen=True, eq=False)
class PivotedCholesky:
    """A low-rank approximation ``K ~ F F^T``, exact in the rows and columns of the pivots.

    Args:
        factor: F, shape (n, r), float64.
        pivots: The chosen points in the order of their choice, shape (r,).
        unexplained: Share of tr(K) that F F^T leaves.
    """

    factor: Float[np.ndarray, "n r"]
    pivots: Int[np.ndarray, " r"]
    unexplained: float


def pivoted_cholesky(
    kernel: AbstractKernel, x: Any, rank: int, *, key: Array, progress: bool = False
) -> PivotedCholesky:
    """Choose points at random, each in proportion to what the earlier ones leave of its diagonal.

    Proposals are drawn in blocks and accepted or rejected, which gives the very distribution of one at a
    time. r (n + r) evaluations of the kernel and O(n r^2) operations; K is never formed.

    Args:
        kernel: Kernel k.
        x: Inputs, shape (n, d).
        rank: Number r of points, at most n; fewer come back where fewer explain everything.
        key: Random key.
        progress: Whether to show a bar.

    Returns:
        Factor, pivots and what is left unexplained.

    Raises:
        InputError: a rank below 1 or above n, or inputs of another shape.
        KernelError: the diagonal of the kernel is negative or not finite.
        MemoryBudgetError: the factor would not fit.

    Example:
        >>> from jaxdistill.kernels import Linear
        >>> found = pivoted_cholesky(Linear(), np.eye(5)[[0, 1, 1, 2]], 3, key=jax.random.key(0))
        >>> np.allclose(found.factor @ found.factor.T, np.eye(5)[[0, 1, 1, 2]] @ np.eye(5)[:, [0, 1, 1, 2]])
        True

    Source: Chen, Epperly, Tropp and Webber 2022; blocks with rejection, Epperly, Tropp and Webber 2024.
    """
    x = check_inputs("x", x)
    n = len(x)
    if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)) or not 1 <= rank <= n:
        raise InputError(f"rank is {rank!r}; it must be a whole number from 1 to the {n} examples")
    block = min(_PROPOSALS, n)
    require_memory(
        8 * n * (2 * (rank + block) + 3 * block + x.shape[1]),
        f"a pivoted Cholesky factor of rank {rank} of {n} examples",
        "use a smaller rank or fewer examples",
    )
    generator = host_generator(key)
    with float64_scope() as where:
        wide = jnp.asarray(x, jnp.float64)
        kernel = jax.device_put(kernel, where.home)
        diagonal = kernel_diagonal(kernel, x)
        if not np.all(np.isfinite(diagonal)) or diagonal.min() < 0 or diagonal.max() == 0:
            worst = int(np.argmin(np.where(np.isfinite(diagonal), diagonal, -np.inf)))
            raise KernelError(
                f"k(x, x) is {diagonal[worst]:g} at example {worst}; the diagonal of a kernel must be "
                "finite, >= 0 and not all zero"
            )
        trace = float(diagonal.sum())
        floor = 8 * n * np.finfo(np.float64).eps * float(diagonal.max())
        factor = jnp.zeros((n, rank + block), jnp.float64)
        pivots: list[int] = []
        with tqdm(total=int(rank), desc="pivots", disable=not progress, leave=False) as bar:
            while len(pivots) < rank and diagonal.max() > floor:
                proposed = generator.choice(n, block, p=diagonal / diagonal.sum())
                here = factor[proposed]
                left = np.array(_residual(kernel, wide[proposed], here))
                chosen, lower = _accept(left, diagonal[proposed], generator, rank - len(pivots))
                if not chosen:  # what seemed to be left of these was rounding
                    diagonal[proposed] = np.maximum(np.diag(left), 0)
                    continue
                solve = np.zeros((block, block))
                solve[: len(chosen), : len(chosen)] = np.linalg.inv(lower)
                slots = proposed[(chosen + [chosen[0]] * block)[:block]]
                factor, squares = _extend(
                    kernel, wide, factor, wide[slots], factor[slots], solve, len(pivots)
                )
                pivots += [int(p) for p in proposed[chosen]]
                # What is below zero now is rounding, and a pivot has nothing left.
                diagonal = np.maximum(diagonal - np.asarray(squares), 0)
                diagonal[pivots] = 0
                bar.update(len(chosen))
        done = np.asarray(factor[:, : len(pivots)])
    return PivotedCholesky(done, np.array(pivots), float(diagonal.sum()) / trace)


def _accept(
    left: np.ndarray, proposed: np.ndarray, generator: np.random.Generator, most: int
) -> tuple[list[int], np.ndarray]:
    """Accepted proposals, each with the chance that what was accepted before leaves it, and their factor."""
    original, left = left, left.copy()
    chosen: list[int] = []
    for at, draw in enumerate(generator.random(len(left))):
        if len(chosen) == most:
            break
        if draw * proposed[at] < left[at, at] and left[at, at] > 1e-10 * proposed[at]:
            column = left[:, at] / np.sqrt(left[at, at])
            left = left - np.outer(column, column)
            chosen.append(at)
    return chosen, np.linalg.cholesky(original[np.ix_(chosen, chosen)])


@jax.jit
def _residual(kernel: AbstractKernel, x: Array, factor: Array) -> Array:
    return kernel.matrix(x, x) - matmul(factor, factor.T)


@partial(jax.jit, donate_argnums=2)
def _extend(
    kernel: AbstractKernel, x: Array, factor: Array, points: Array, rows: Array, solve: Array, at: Array
) -> tuple[Array, Array]:
    """The factor with the columns of new pivots, and the squares of their rows."""
    columns = matmul(kernel.matrix(x, points) - matmul(factor, rows.T), solve.T)
    return jax.lax.dynamic_update_slice_in_dim(factor, columns, at, axis=1), jnp.sum(columns**2, axis=1)
