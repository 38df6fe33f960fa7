"""The spanning equations: exact sets for any differentiable feature map.

Ridge on the set returns B, with soft labels and for every penalty, if and only if the columns of B lie in the
row space of the features. So images Xs and coefficients M are sought with

    phi(Xs)^T M = Q,      Q (p,r) an orthonormal basis of the columns of B, M (m,r) free.

With an unpenalised intercept it is the centred features whose rows must hold the columns of B: the columns
of M sum to zero.

Pure functions of arrays, safe under jit, vmap and grad; :mod:`jaxdistill.solve.spanning_step` takes one
step towards a solution, :mod:`jaxdistill.solve.spanning_solver` as many as it needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdistill.errors import InputError
from jaxdistill.numerics.contrasts import centred, contrasts, from_contrasts
from jaxdistill.numerics.linalg import matmul, pinv, rank_tolerance
from jaxdistill.numerics.pytrees import register_pytree


def spanning_count(
    num_features: int,
    num_inputs: int,
    num_targets: int,
    rank: int | None = None,
    *,
    intercept: bool = False,
) -> int:
    """Number of examples at which the spanning equations have as many unknowns as equations.

    ``m* = max(r, ceil(p r / (d + r)))``: p r equations for m d + m r unknowns, and at least the rank. It is
    an argument by counting, which experiments confirm to the point for smooth activations, and not a
    theorem; kinks cost a few points more. Inputs that the features do not depend on do not count in d.
    With an intercept the columns of M sum to zero, which takes r unknowns away:
    ``m* = max(r + 1, ceil((p + 1) r / (d + r)))``.

    Args:
        num_features: p.
        num_inputs: d.
        num_targets: k.
        rank: Rank r of the weights; default k.
        intercept: Whether the model has an intercept.

    Returns:
        m*.

    Raises:
        InputError: a number below one.

    Example:
        >>> spanning_count(80, 20, 3), spanning_count(128, 784, 10), spanning_count(3136, 784, 10)
        (11, 10, 40)
        >>> spanning_count(80, 20, 3, intercept=True), spanning_count(128, 784, 10, intercept=True)
        (11, 11)

    Source: this package (counting of unknowns).
    """
    r = num_targets if rank is None else min(rank, num_targets)
    if min(num_features, num_inputs, r) < 1:
        raise InputError(f"p={num_features}, d={num_inputs} and rank {r} must all be at least 1")
    return max(r + intercept, math.ceil((num_features + intercept) * r / (num_inputs + r)))


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class SpanningProblem:
    """What a solution must satisfy, and what it should stay close to.

    Args:
        basis: Q, orthonormal columns, shape (p, r).
        start: Inputs to stay close to, shape (m, d).
        low: Lower ends of the box, shape (d,); minus infinity where there is none.
        high: Upper ends, shape (d,).
        mobility: How easily coefficients move, relative to inputs: the ratio of the traces of their
            parts of the normal equations.
        intercept: Whether features are centred and the columns of M sum to zero.
    """

    basis: Float[Array, "p r"] | Any
    start: Float[Array, "*s m d"] | Any
    low: Float[Array, " d"] | Any
    high: Float[Array, " d"] | Any
    mobility: Float[Array, ""] | Any
    intercept: bool = field(metadata={"static": True})

    def centred(self, rows: Float[Array, "m q"]) -> Float[Array, "m q"]:
        """Rows of features or coefficients as the equations see them: centred with an intercept."""
        return centred(rows) if self.intercept else rows


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class SpanningState:
    """Where the solver stands: one start, or several with a leading axis.

    Args:
        x: Inputs, shape (m, d).
        mix: M, shape (m, r).
        residual: ``|Q - phi(Xs)^T M| / |Q|``.
        damping: mu of the next step, relative to the mean of the diagonal of the normal equations.
        held: Inputs at an end of the box that the last step pushed outwards, shape (m, d).
        iterations: Conjugate gradient iterations so far; 0 with a direct factorisation.
    """

    x: Float[Array, "*s m d"] | Any
    mix: Float[Array, "*s m r"] | Any
    residual: Float[Array, "*s"] | Any
    damping: Float[Array, "*s"] | Any
    held: Bool[Array, "*s m d"] | Any
    iterations: Array | Any


def orthonormal_basis(weights: Float[Array, "p k"], rank: int) -> Float[Array, "p r"]:
    """Leading left singular vectors: an orthonormal basis Q of the columns of B."""
    return jnp.linalg.svd(weights, full_matrices=False)[0][:, :rank]


def spanning_residual(
    features: Float[Array, "m p"], mix: Float[Array, "m r"], basis: Float[Array, "p r"]
) -> Float[Array, "p r"]:
    """The residual ``R = Q - Phis^T M`` of the spanning equations."""
    return basis - matmul(features.T, mix)


def relative_residual(
    features: Float[Array, "m p"], mix: Float[Array, "m r"], basis: Float[Array, "p r"]
) -> Float[Array, ""]:
    """``|Q - Phis^T M| / |Q|``: 0 where the set is exact, 1 for no set at all."""
    return jnp.linalg.norm(spanning_residual(features, mix, basis)) / jnp.sqrt(1.0 * basis.shape[1])


def least_squares_mix(
    features: Float[Array, "m p"], basis: Float[Array, "p r"], *, intercept: bool = False
) -> Float[Array, "m r"]:
    """The coefficients with the smallest residual, ``M = (Phis^T)^+ Q``; of mean zero with an intercept."""
    if intercept:
        return from_contrasts(least_squares_mix(contrasts(features), basis))
    return matmul(pinv(features.T), basis)


def spanning_mix(
    features: Float[Array, "m p"],
    basis: Float[Array, "p r"],
    sharpness: Float[Array, ""] | float,
    *,
    intercept: bool = False,
) -> Float[Array, "m r"]:
    """Coefficients for which a small change of the inputs is enough.

    Those of the nearest spanning set, ``M = c U R / |Phis^T U|``, with U the left singular vectors of
    Phis of its r smallest singular values that are more than rounding (of more examples than features, or
    than units that are awake, the others say nothing) and R the rotation that aligns ``Phis^T U`` with Q.
    Least squares would make M small, and features that must change by R M^+ change all the more; the larger
    c, the nearer the images stay and the longer the solver takes.

    Args:
        features: Features of the start, shape (m, p).
        basis: Q, shape (p, r), r at most m, and below m with an intercept.
        sharpness: c.
        intercept: Whether the model has an intercept: then all of it orthogonal to the ones vector.

    Returns:
        M, shape (m, r), with M^T M a multiple of the identity.

    Source: this package (nearest spanning set); Procrustes rotation, Schoenemann 1966.
    """
    if intercept:
        return from_contrasts(spanning_mix(contrasts(features), basis, sharpness))
    m, r = features.shape[0], basis.shape[1]
    u, s, _ = jnp.linalg.svd(features, full_matrices=False)
    first = jnp.maximum(jnp.sum(s > rank_tolerance(s, features.shape)) - r, 0)
    enough = u.shape[1] >= r
    weakest = jax.lax.dynamic_slice_in_dim(u, first, r, 1) if enough else jnp.eye(m, r, dtype=features.dtype)
    image = matmul(features.T, weakest)
    left, _, right = jnp.linalg.svd(matmul(image.T, basis), full_matrices=False)
    return sharpness * matmul(weakest, matmul(left, right)) / jnp.linalg.norm(image)
