"""A set whose pixels are rounded to what an image file holds, with labels that follow."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.data.preprocess import AbstractPreprocess
from jaxdistill.data.zca import ZCA
from jaxdistill.distill.compiled import stored_labels
from jaxdistill.errors import InputError
from jaxdistill.numerics.contrasts import from_contrasts
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import in_float64, matmul
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.pictures import pixel_levels
from jaxdistill.solve.box import pixel_box
from jaxdistill.solve.given_mix import inputs_for_mix
from jaxdistill.solve.ladder import softer
from jaxdistill.solve.spanning import (
    least_squares_mix,
    orthonormal_basis,
    spanning_count,
    spanning_mix,
    spanning_residual,
)
from jaxdistill.solve.spanning_solver import solve_spanning

# Feedback: levels by which a pixel moves, in the root mean square, to take up the first rounding; how much
# smaller the coefficients of each further group are; room in levels that its whitest pixels are given.
TRAVEL, GRADE, ROOM = 3.0, 3.0, 16
# Sharpness of the images that carry the weights; residual that is small enough, in levels.
SHARPNESS, ENOUGH = 3.0, 0.1
# Rounding spreads evenly over a level.
_SPREAD = 12**-0.5


def round_pixels(small: DistilledSet, *, bits: int = 8, rounds: int = 0, key: Array) -> DistilledSet:
    """The set with pixels rounded to 8 or 16 bits, and soft labels computed from the pixels as rounded.

    For m >= p nothing is lost. Below, rounding moves the span of the features off the weights, and the labels
    return the nearest that is left: what is lost, only :func:`~jaxdistill.certify` says. Feedback works like
    the places of a number: the images stand in groups whose coefficients M in ``phi(X)^T M = Q`` fall
    by a factor from group to group. The first carries the weights; each further one, of
    ``max(r + 1, p r / d)`` images, takes up by whole levels what rounding those before it left, and leaves
    that much less itself. The rows of a group's M sum to zero and span the outputs, so black pixels need
    only become lighter.

    Args:
        small: A set of images in [0, 1], whose preprocessing treats each pixel by itself.
        bits: 8 or 16.
        rounds: Groups that take up rounding; 0 rounds all pixels as they are.
        key: Random key: the directions of the groups' M.

    Returns:
        The rounded set; ``recipe["rounded"]`` says how.

    Raises:
        InputError: pixels outside [0, 1], no images, preprocessing that mixes pixels, or more rounds than
            there are images for.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.random.default_rng(0).random((40, 2, 2, 1)).astype("float32")
        >>> prepare = jd.Standardize.fit(x)
        >>> rows, y = prepare.forward(x), jd.one_hot(np.arange(40) % 2, 2)
        >>> model = jd.fit_ridge(jd.features.Linear(4), rows, y, lam=1.0)
        >>> small = jd.distill(model, size=6, realistic="fixed", reference=(rows, y), key=jax.random.key(0))
        >>> small = round_pixels(small.with_context(prepare, None), key=jax.random.key(1))
        >>> bool(np.allclose(255 * small.images, np.rint(255 * small.images), atol=1e-3))
        True
        >>> jd.certify(model, small).exact
        True

    Source: this package.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise InputError(f"rounds is {rounds!r}; it must be a whole number >= 0")
    prepare = small.preprocess
    if prepare is None or isinstance(prepare, ZCA):
        raise InputError(
            "rounding pixels needs a set that knows its pixels one by one; use with_context, and "
            "'standardize' or 'none'"
        )
    pixel_levels(small.images, bits)  # refuses early
    rounded = partial(_rounded, prepare, bits, small.x.dtype)
    x = _with_feedback(small, prepare, bits, rounded, rounds, key) if rounds else rounded(small.x)
    model = small.weights, small.intercept
    y, lam = in_float64(stored_labels, small.features, x, model, None)
    recipe: dict[str, Any] = small.recipe | {"labels": "soft", "rounded": {"bits": bits, "rounds": rounds}}
    return replace(small, x=x, y=y, lam=float(lam), recipe=recipe, certificate=None)


def _rounded(prepare: AbstractPreprocess, bits: int, dtype: Any, x: np.ndarray) -> np.ndarray:
    """Inputs of the rounded images, in the type that inputs are stored in."""
    images = prepare.inverse(x.astype(np.float64))
    pixels = (pixel_levels(images, bits) / (2**bits - 1)).astype(dtype)
    return np.asarray(prepare.forward(pixels)).astype(dtype)


def _with_feedback(
    small: DistilledSet, prepare: AbstractPreprocess, bits: int, rounded: Any, rounds: int, key: Array
) -> np.ndarray:
    """Rounded inputs: the images that carry the weights first, then group after group."""
    phi, level = small.features, small.intercept is not None
    x, most = small.x.copy(), 2**bits - 1
    rank = int(np.linalg.matrix_rank(small.weights))
    basis = in_float64(orthonormal_basis, small.weights, rank)
    groups, first = _groups(small, basis, rounds)
    fine, carry = groups.ravel(), np.delete(np.arange(len(x)), groups)
    drawn = host_generator(key).standard_normal((rounds, groups.shape[1] - 1, rank))
    simplices = [in_float64(from_contrasts, q) for q in np.linalg.qr(drawn)[0]]
    mix = np.concatenate([first * GRADE**-i * simplex for i, simplex in enumerate(simplices)])

    images = np.minimum(prepare.inverse(x[fine]), 1 - ROOM / most)
    x[fine] = rounded(np.asarray(prepare.forward(images)))
    box, tolerance = pixel_box(prepare, dtype=x.dtype), ENOUGH / most
    rest = basis - in_float64(_products, phi, x[fine], mix)
    told: dict[str, Any] = {"rank": rank, "intercept": level, "box": box, "tolerance": tolerance}
    x[carry] = rounded(solve_spanning(phi, rest, x[carry], rungs=softer(SHARPNESS), **told).x)
    for i in range(rounds):
        done = basis - in_float64(_products, phi, x[fine], mix)
        left = in_float64(_fitted, phi, x[carry], done, level)[1]
        scale, start = first * GRADE**-i, i * groups.shape[1]
        # Those that are rounded already stay where they are, since nothing of them is in the equations.
        moving = np.where(np.arange(len(fine))[:, None] < start, 0.0, mix / scale)
        target = left / scale + in_float64(_products, phi, x[fine], moving)
        found = inputs_for_mix(phi, target, moving, x[fine], box, tolerance=tolerance)
        x[fine[start:]] = found[start:]
        x[groups[i]] = rounded(x[groups[i]])
    return x


def _groups(small: DistilledSet, basis: np.ndarray, rounds: int) -> tuple[np.ndarray, float]:
    """Examples of every group, shape (rounds, g), those that carry least; size of the first one's M."""
    level, (p, rank) = small.intercept is not None, basis.shape
    m, d = small.x.shape
    count = spanning_count(p, d, rank, intercept=level)
    group = max(rank + 1, math.ceil(p * rank / d))
    if m < count + rounds * group:
        raise InputError(
            f"of {m} examples {count} must carry the weights and a round of feedback takes {group}: there is "
            f"room for {max(0, m - count) // group}, not {rounds}; ask for fewer, or for a larger set"
        )
    mix = in_float64(_fitted, small.features, small.x, basis, level)[0]
    order = np.argsort(-np.linalg.norm(mix, axis=1))
    cut = m - rounds * group
    size = in_float64(_size_of_mix, small.features, small.x[order[:cut]], basis, level)
    left = _SPREAD * float(size) / np.sqrt(2 * rank)
    return order[cut:].reshape(rounds, group), left * np.sqrt(group / rank) / TRAVEL


@partial(jax.jit, static_argnums=3)
def _fitted(phi: Any, x: Array, target: Array, intercept: bool) -> tuple[Array, Array]:
    """The coefficients of least residual, and the residual."""
    features = phi(x)
    mix = least_squares_mix(features, target, intercept=intercept)
    return mix, spanning_residual(features, mix, target)


@partial(jax.jit, static_argnums=3)
def _size_of_mix(phi: Any, x: Array, basis: Array, intercept: bool) -> Array:
    """Size of the M that the solver begins with, and about that of the one it finds."""
    return jnp.linalg.norm(spanning_mix(phi(x), basis, SHARPNESS, intercept=intercept))


@jax.jit
def _products(phi: Any, x: Array, mix: Array) -> Array:
    return matmul(phi(x).T, mix)
