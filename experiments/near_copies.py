"""Exact sets of near copies of a few real images, for any differentiable feature map.

Around an image b features are linear: ``phi(b + dx) = phi(b) + J dx``. Where the Jacobian J has rank p, a
change of the image moves its features in any direction at all, and ridge regression with an intercept sees
only differences: r copies of b with ``phi(b + dx_c) - phi(b) = tau q_c``, q_c the columns of an orthonormal
basis of the weights, span them with b, however small tau is. Where J lacks rank, since rectified features
are flat in b, several images share the work, each with copies of its own:

    sum over g of phi(b_g + dx_gc) - phi(b_g) = tau q_c,    dx_gc = J_g^T (sum over g of J_g J_g^T)^-1 tau q_c

to first order, and chord steps with the same Jacobians take up the rest. Columns are independent of each
other: one p x p factorisation serves all. What bounds tau from below is the rounding of the stored images.

Source: this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.distill import distill
from jaxdistill.features import AbstractFeatureMap
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.ridge.model import RidgeModel, predict
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.solve.spanning import least_squares_mix, orthonormal_basis

# Rows of a Jacobian that are computed side by side.
ROWS = 16
# Shift of the p x p matrix, relative to its largest eigenvalue: features that are flat in every image.
SHIFT = 1e-12
# Chord steps at most; what a step has to leave at most, relative to what it found.
STEPS, HARDLY = 12, 0.7
# Root mean square changes to choose from, relative to the spread of the data.
CHANGES = (1e-4, 1e-3, 1e-2)


def near_copies(
    phi: AbstractFeatureMap,
    basis: Float[np.ndarray, "p r"],
    images: Float[np.ndarray, "g d"],
    changes: Sequence[float],
    *,
    tolerance: float = 1e-6,
    progress: bool = False,
) -> tuple[Float[np.ndarray, "m d"], float]:
    """Every image and r near copies of it, whose centred features together span the basis.

    Args:
        phi: Feature map.
        basis: Q, orthonormal columns, shape (p, r).
        images: Real images b_g, shape (g, d).
        changes: Root mean square changes of a copy, in the images' units and to first order, to choose from:
            small ones drown in the rounding of the stored images, large ones leave what is linear.
        tolerance: Residual, relative to tau, at which to stop.
        progress: Whether to show a bar.

    Returns:
        Inputs of m = (r + 1) g examples in float32, the images, then a copy of each, then the next, of the
        change that serves best once rounded; and what the basis then loses, the largest of its columns.
    """
    (count, d), (p, rank) = images.shape, basis.shape
    images = images.astype(np.float32).astype(np.float64)  # kept as they are, beside their copies
    bar = partial(tqdm, disable=not progress, leave=False)
    # Float32 serves: chord steps need a direction, and their residuals are measured in float64.
    slopes = np.stack([_jacobian(phi, jnp.asarray(x, jnp.float32)) for x in bar(images, desc="Jacobians")])
    gram = sum(np.asarray(slope, np.float64) @ slope.T for slope in slopes)
    largest = scipy.linalg.eigvalsh(gram, subset_by_index=[p - 1, p - 1])[0]
    factor = scipy.linalg.cho_factor(gram + SHIFT * largest * np.eye(p), lower=True)

    def moves(gap: Float[np.ndarray, "p r"]) -> Float[np.ndarray, "r g d"]:
        push = scipy.linalg.cho_solve(factor, gap)
        return np.stack([push.T @ slope for slope in slopes], axis=1)

    # The package evaluates products of features, in the precision of the inputs.
    features = partial(predict, phi, np.eye(p))
    still, first = features(images), moves(basis)
    chosen, least = images, np.inf
    for change in bar(changes, desc="sizes of the change"):
        tau = change / np.sqrt(np.mean(first**2))
        moved, best, found = tau * first, np.inf, tau * first
        for _ in range(STEPS):
            there = features((images + moved).reshape(-1, d)).reshape(rank, count, p)
            gap = basis - (there - still).sum(axis=1).T / tau
            residual = np.linalg.norm(gap, axis=0).max()
            if not residual < HARDLY * best:
                break
            best, found = residual, moved
            if best <= tolerance:
                break
            moved = moved + tau * moves(gap)
        x = np.concatenate([images, (images + found).reshape(-1, d)]).astype(np.float32)
        lost = _lost(features(x.astype(np.float64)), basis)
        if lost < least:
            chosen, least = x, lost
    return chosen, least


def copies_of(
    model: RidgeModel, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n k"], m: int, key: Array
) -> tuple[DistilledSet, np.ndarray]:
    """A set of m: real images with near copies, and real ones alone where there is no room for copies.

    Args:
        model: The model.
        x: Real images, shape (n, d).
        y: Their one-hot classes, shape (n, k).
        m: Size, above the rank of the weights.
        key: Random key.

    Returns:
        The set, with soft labels and inputs in float32; and the real images behind its inputs, shape (m, d).
    """
    rank = int(np.linalg.matrix_rank(model.weights))
    basis = in_float64(partial(orthonormal_basis, rank=rank), model.weights)
    count, spare = divmod(m, rank + 1)
    awake = np.abs(predict(model.features, np.eye(len(basis)), x))
    rows = covering_rows(awake, y.argmax(axis=1), count + spare, float(np.mean(awake)))
    bases, others = x[rows[:count]], x[rows[count:]]
    changes = [change * float(x.std()) for change in CHANGES]
    found = np.concatenate([near_copies(model.features, basis, bases, changes)[0], others])
    small = as_set(model, found, key)
    real = np.concatenate([np.tile(bases, (rank + 1, 1)), others])
    nearest = [np.argmin(np.sum((real - one) ** 2, axis=1)) for one in small.x]
    return small, real[nearest]


def as_set(model: RidgeModel, x: Float[np.ndarray, "m d"], key: Array) -> DistilledSet:
    """The set of all these inputs, in float32, in another order within every k-th."""
    k = model.weights.shape[1]
    # Balanced rows are asked for, and labels are computed: any classes in turn do.
    order = np.eye(k)[np.arange(len(x)) % k]
    return distill(model, size=len(x), realistic="fixed", reference=(x, order), dtype=np.float32, key=key)


def _lost(features: Float[np.ndarray, "m p"], basis: Float[np.ndarray, "p r"]) -> float:
    """The largest part of a column that the centred rows do not hold."""
    mix = in_float64(partial(least_squares_mix, intercept=True), features, basis)
    return float(np.linalg.norm(basis - features.T @ mix, axis=0).max())


@jax.jit
def _jacobian(phi: AbstractFeatureMap, x: Float[Array, " d"]) -> Float[Array, "p d"]:
    back = jax.linear_transpose(jax.linearize(phi, x)[1], x)
    eye = jnp.eye(phi.num_features, dtype=x.dtype)
    return jax.lax.map(lambda row: back(row)[0], eye, batch_size=ROWS)


def covering_rows(
    features: Float[np.ndarray, "n p"], classes: np.ndarray, count: int, depth: float
) -> np.ndarray:
    """Rows of real images, balanced over classes, in which together every feature is well above zero.

    Greedily, the image that takes most of what is left, ``sum over j of exp(-sum of f_j / depth) / n_j``,
    n_j the number of images that wake feature j: rare ones come first.

    Args:
        features: Nonnegative features, shape (n, p).
        classes: Class of every image, shape (n,).
        count: Images to choose.
        depth: A feature's size that is well above zero.

    Returns:
        Rows, shape (count,), the j-th of a class of its own among each k in turn.
    """
    number = int(classes.max()) + 1
    left = 1 / np.maximum((features > 0).sum(axis=0), 1)
    shrink = np.exp(-features / depth)
    rows: list[int] = []
    for slot in range(count):
        turn = rows[slot - slot % number :]
        free = ~np.isin(classes, classes[turn])
        free[rows] = False
        gains = np.where(free, (1 - shrink) @ left, -1.0)
        rows.append(int(np.argmax(gains)))
        left = left * shrink[rows[-1]]
    return np.asarray(rows)
