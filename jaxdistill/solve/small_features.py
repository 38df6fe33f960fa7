"""Inputs of small features to start the spanning equations from, where few examples leave little slack.

Where m is the rank of the weights, every feature vector of an exact set lies in the span of their columns,
and features of one sign, as GELU's and SiLU's nearly are, look like few vectors of it: from real examples or
noise the solver stalls. But a set may have any scale, since soft labels follow it, and near zero such
features take both signs and are as good as linear. So small features are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.numerics.contrasts import from_contrasts
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import in_float64, matmul
from jaxdistill.solve.invert import invert
from jaxdistill.solve.spanning import orthonormal_basis

# Root mean square of the targets, relative to that of the features at the inputs that are given.
SMALL = 0.01
# Size of the inputs that pre-images are sought from, relative to those that are given.
NEAR_ZERO = 0.01
# Steps of Levenberg-Marquardt: what can be reached takes 6 (GELU) to 26 (tanh with biases).
STEPS = 40
# Relative residual up to which the solver goes on from where they stand; LeakyReLU's kinks leave 0.4. A map
# that has no small features of both signs leaves more than 0.5.
NEAR_ENOUGH = 0.5


def small_features(
    phi: Callable[[Array], Array],
    weights: Float[np.ndarray, "p k"],
    inputs: Float[np.ndarray, "m d"],
    *,
    rank: int,
    intercept: bool = False,
    key: Array,
) -> Float[np.ndarray, "m d"] | None:
    """Inputs whose features are small and span the weights: pre-images of ``eps (O Q^T + (I - O O^T) Z)``.

    Q is an orthonormal basis of the columns of B, O random with orthonormal columns and Z noise, so that the
    features are as well conditioned as random ones. With an intercept the columns of O sum to zero and c,
    the mean of the features that are given, is added: only their spread need be small, so that features
    which cannot be negative (softplus, sigmoid) stay positive.

    Args:
        phi: Feature map, (..., d) to (..., p), differentiable, with d at least p: fewer inputs do not reach
            every small vector.
        weights: B, shape (p, k).
        inputs: Inputs of ordinary size, shape (m, d): they tell what is small.
        rank: Rank r of B, at most m, and below m with an intercept.
        intercept: Whether the model has an unpenalised intercept.
        key: Random key.

    Returns:
        Inputs, shape (m, d), float64: an exact set where the pre-images were found, else near enough to begin
        at; None where the map has no such features, as ReLU has none of both signs.

    Raises:
        InputError: fewer inputs than features, or fewer examples than the rank.

    Example:
        >>> import jax, numpy as np
        >>> from jaxdistill.features import RandomNetwork
        >>> phi = RandomNetwork.create(9, widths=(8,), activation="gelu", key=jax.random.key(0))
        >>> rng = np.random.default_rng(0)
        >>> weights, inputs = rng.standard_normal((8, 3)), rng.standard_normal((3, 9))
        >>> x = small_features(phi, weights, inputs, rank=3, key=jax.random.key(1))
        >>> f = np.asarray(phi(jax.numpy.asarray(x, "float32")))
        >>> held = np.linalg.pinv(f) @ (f @ weights)
        >>> bool(np.allclose(held, weights, atol=1e-3))
        True

    Source: this package.
    """
    (m, d), p = inputs.shape, len(weights)
    if d < p:
        raise InputError(f"{p} features of {d} inputs do not take every small value; start from examples")
    if m < rank + intercept:
        raise InputError(f"{m} examples cannot span weights of rank {rank}; give at least {rank + intercept}")
    random = host_generator(key).standard_normal((m, d + rank + p))
    columns = np.linalg.qr(random[: m - intercept, d : d + rank])[0]
    targets, moved = in_float64(
        _targets, phi, weights, inputs, columns, random[:, d + rank :], rank, intercept
    )
    near = inputs if intercept else NEAR_ZERO * np.std(inputs) * random[:, :d]
    found = invert(phi, targets, near, steps=STEPS)
    missed = found.report.residual * np.linalg.norm(targets, axis=1)
    return found.x if np.linalg.norm(missed) <= NEAR_ENOUGH * np.linalg.norm(moved) else None


@partial(jax.jit, static_argnums=(5, 6))
def _targets(
    phi: Callable[[Array], Array],
    weights: Float[Array, "p k"],
    inputs: Float[Array, "m d"],
    columns: Float[Array, "n r"],
    noise: Float[Array, "m p"],
    rank: int,
    intercept: bool,
) -> tuple[Float[Array, "m p"], Float[Array, "m p"]]:
    """The targets, and without their mean c; of O the contrasts are given where there is an intercept."""
    features = phi(inputs)
    left = from_contrasts(columns) if intercept else columns
    basis = orthonormal_basis(weights, rank)
    rows = matmul(left, basis.T) + (noise - matmul(left, matmul(left.T, noise))) / jnp.sqrt(1.0 * len(basis))
    rows *= SMALL * jnp.linalg.norm(features) / jnp.linalg.norm(rows)
    return rows + jnp.mean(features, axis=0) if intercept else rows, rows
