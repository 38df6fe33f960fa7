"""Which real images wake every feature: what is flat in all of them, no small change can reach."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxdistill.numerics.linalg import in_float32

# Share of the usual size of a slope that counts as none.
LEAST = 1e-2
# Random directions in which slopes are measured, and images that are looked at together.
DIRECTIONS, BATCH = 2, 32


def slope_sizes(
    phi: Callable[[Array], Array], x: Float[np.ndarray, "n d"], *, progress: bool = False
) -> Float[np.ndarray, "n p"]:
    """How much each feature moves with an image: about ``|grad phi_j(x_i)|``, from a few random directions.

    Root mean squares of ``J_i v`` over random signs v, the same ones for every image: exactly zero where a
    rectified or saturated feature is flat, and a passage forward a direction in place of a Jacobian.

    Args:
        phi: Feature map, (..., d) to (..., p), differentiable.
        x: Images, shape (n, d).
        progress: Whether to show a bar.

    Returns:
        Sizes, shape (n, p), float32.

    Example:
        >>> from jaxdistill.features import RandomNetwork
        >>> phi = RandomNetwork((jnp.eye(2),), 0.0, "relu")
        >>> slope_sizes(phi, np.array([[1.0, -1.0], [-1.0, 1.0]])).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    starts = range(0, len(x), BATCH)
    bar = tqdm(starts, desc="slopes of features", disable=not progress, leave=False)
    return np.concatenate([in_float32(_slopes, phi, x[i : i + BATCH]) for i in bar])


@jax.jit
def _slopes(phi: Callable[[Array], Array], x: Float[Array, "n d"]) -> Float[Array, "n p"]:
    forward = jax.linearize(phi, x)[1]
    signs = jax.random.rademacher(jax.random.key(0), (DIRECTIONS, x.shape[1]), x.dtype)
    moved = jax.lax.map(lambda v: forward(jnp.broadcast_to(v, x.shape)), signs)
    return jnp.sqrt(jnp.mean(moved**2, axis=0))


def covering_rows(
    sizes: Float[np.ndarray, "n p"], classes: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, " g"]:
    """Rows of images, balanced over classes, in which together every feature moves.

    Greedily, the image that leaves the least ``sum over j of (e^2 + sum of s_j^2)^-2``, sums over the images
    chosen and e a hundredth of what is usual: the features that move least count most.

    Args:
        sizes: How much features move, not negative, shape (n, p).
        classes: Class of every image, shape (n,); all the same where there are none.
        count: Images to choose, at most n.

    Returns:
        Rows, shape (count,), in the order in which they were chosen: the k of a turn are of k classes, as far
        as there are images.

    Example:
        >>> sizes = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> covering_rows(sizes, np.array([1, 1, 0, 0]), 2).tolist()
        [0, 2]
    """
    names, classes = np.unique(classes, return_inverse=True)
    squares = (sizes / np.sqrt(np.mean(sizes.astype(np.float64) ** 2))) ** 2
    total = np.full(squares.shape[1], LEAST**2)
    rows: list[int] = []
    for slot in range(count):
        turn = rows[slot - slot % len(names) :]
        free = np.ones(len(sizes), bool)
        free[rows] = False
        others = free & ~np.isin(classes, classes[turn])
        usable = np.flatnonzero(others if others.any() else free)
        rows.append(int(usable[np.argmin(np.sum((total + squares[usable]) ** -2, axis=1))]))
        total += squares[rows[-1]]
    return np.asarray(rows)
