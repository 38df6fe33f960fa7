"""Exact sets that stay close to real examples.

Pure functions of arrays, safe under jit, vmap and grad.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.distill.exact import inverse_features, ridge_filter
from jaxdistill.numerics.contrasts import contrasts, from_contrasts
from jaxdistill.numerics.linalg import matmul, pinv
from jaxdistill.solve.spanning import orthonormal_basis, spanning_mix, spanning_residual


def nearest_inverse(
    weights: Float[Array, "p k"],
    labels: Float[Array, "m k"],
    features: Float[Array, "m p"],
    lam_s: Float[Array, ""] | float,
) -> Float[Array, "m p"]:
    """The admissible D nearest to the ridge inverse of real features.

    With ``E = (Phi^ Phi^^T + lam_s I)^-1 Phi^`` (at lam_s = 0 the transposed pseudo-inverse) in the role of
    Z in :func:`~jaxdistill.distill.exact.inverse_features`. Near in the inverse, which is not the same
    as near in the picture: prefer :func:`nearest_spanning` where looks matter. With an intercept, give
    the contrasts of labels and features, and get those of D.

    Args:
        weights: B, shape (p, k).
        labels: Ys, shape (m, k); best ``Phi^ B``.
        features: Phi^, features of the real examples, shape (m, p).
        lam_s: Penalty of the retraining.

    Returns:
        D, shape (m, p).

    Source: CHW, Corollary 4.1.1.
    """
    u, s, vt = jnp.linalg.svd(features, full_matrices=False)
    inverse = matmul(u * ridge_filter(s, features.shape, lam_s)[None], vt)
    return inverse_features(weights, labels, inverse)


def nearest_spanning(
    weights: Float[Array, "p k"],
    features: Float[Array, "m p"],
    rank: int,
    sharpness: Float[Array, ""] | float = 10.0,
    *,
    intercept: bool = False,
) -> Float[Array, "m p"]:
    """Features whose rows span the weights, by almost the smallest change of real ones.

    With labels ``Ys = Phis B`` (or soft labels for any penalty) recovery needs only some M with
    ``Phis^T M = Q``, Q an orthonormal basis of the columns of B. For a given M the smallest change is
    ``Phis^T = Phi^^T + (Q - Phi^^T M) M^+``. M is taken along the left singular vectors U of Phi^ with
    the smallest singular values, turned by the rotation R that aligns ``Phi^^T U`` with Q and scaled:
    ``M = c U R / |Phi^^T U|``. As c grows the change tends to the root of the sum of the smallest
    squared singular values, while the conditioning of the labels worsens in proportion to c.

    Where the real features have rank p, their rows span everything and nothing changes. With an intercept
    all of this within what is orthogonal to the ones vector, and the mean of the features stays.

    Args:
        weights: B, shape (p, k).
        features: Phi^, features of the real examples, shape (m, p).
        rank: Rank r of B, at most m, and below m with an intercept.
        sharpness: c; about 10 is the knee.
        intercept: Whether the model has an intercept.

    Returns:
        Phis, shape (m, p).

    Source: this package (MATH: nearest spanning set); Procrustes rotation, Schoenemann 1966.
    """
    if intercept:
        near = nearest_spanning(weights, contrasts(features), rank, sharpness)
        return from_contrasts(near) + jnp.mean(features, axis=0, keepdims=True)
    m, p = features.shape
    if m >= p:
        return features
    basis = orthonormal_basis(weights, rank)
    mix = spanning_mix(features, basis, sharpness)
    return features + matmul(spanning_residual(features, mix, basis), pinv(mix)).T
