"""Labels for features that are given (CHW Theorem 4.2; Label Solve), and soft labels.

Pure functions of arrays, safe under jit, vmap and grad.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.numerics.contrasts import contrasts, from_contrasts
from jaxdistill.numerics.linalg import matmul, pinv, rank_tolerance, reciprocal


def self_conditioning_penalty(features: Float[Array, "m p"]) -> Float[Array, ""]:
    """The penalty ``tr(Phis Phis^T) / m``: retraining does not suffer from the features' condition.

    The system ``Phis Phis^T + lam_s I`` then has a condition number below m + 1, whatever the features. Soft
    labels make any penalty exact, so this one is free. What is left is the rounding of the labels, eps
    times ``|Phis| |a| / |B|`` with ``B = Phis^T a``: small unless B leans on the set's weak directions.

    For a model with an intercept, give the contrasts of the features: the trace of the centred Gram
    matrix, over the m - 1 directions that it has.
    """
    return jnp.sum(features**2) / features.shape[0]


def soft_labels(
    features: Float[Array, "m p"],
    weights: Float[Array, "p k"],
    lam_s: Float[Array, ""] | float,
    *,
    intercept: Float[Array, " k"] | None = None,
) -> Float[Array, "m k"]:
    """Labels with which the given features train to the weights, or as near as they can.

    ``Ys = (Phis Phis^T + lam_s I) (Phis^T)^+ B``. Retraining returns the projection of B on the row
    space of Phis: B itself, for every lam_s >= 0, exactly where that space holds the columns of B; always
    where m >= p and Phis has rank p.

    With an intercept ``Ys = (Kc + lam_s I) a + 1 (b + mean(Phis) B)``, ``a = (Phic^T)^+ B``, of centred
    features Phic and their Gram matrix Kc: B and b, exactly where the rows of Phic hold the columns of B.
    Where they do not, the retrained model agrees with the full one at the mean of the set.

    Args:
        features: Phis, shape (m, p).
        weights: B, shape (p, k).
        lam_s: Penalty of the retraining.
        intercept: b, shape (k,); None for a model without.

    Returns:
        Ys, shape (m, k).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdistill.distill.exact import retrain
        >>> phis = jax.random.normal(jax.random.key(0), (6, 4))
        >>> b = jnp.ones((4, 2))
        >>> bool(jnp.allclose(retrain(phis, soft_labels(phis, b, 3.0), 3.0), b, atol=1e-4))
        True

    Source: CHW, Theorem 4.2 (label distillation); the bound on lam_s falls away with soft labels.
    """
    if intercept is not None:
        level = intercept + matmul(jnp.mean(features, axis=0), weights)
        return from_contrasts(soft_labels(contrasts(features), weights, lam_s)) + level[None]
    return labels_of_coefficients(features, matmul(pinv(features.T), weights), lam_s)


def weighted_labels(
    features: Float[Array, "m p"],
    weights: Float[Array, "p k"],
    gram: Float[Array, "p p"],
    lam_s: Float[Array, ""] | float,
    *,
    means: tuple[Float[Array, " p"], Float[Array, " k"]] | None = None,
) -> Float[Array, "m k"]:
    """Labels whose model predicts the training data best, where it cannot be exact.

    Minimises ``|G^(1/2) (B - Phis^T a)|`` in place of ``|B - Phis^T a|``:
    ``a = (Phis G Phis^T)^+ Phis G B``.

    With an intercept the same of centred features, and the intercept is the best one for the
    weights Bs that come out, ``mean(Y) - mean(Phi) Bs``.

    Args:
        features: Phis, shape (m, p).
        weights: B, shape (p, k).
        gram: G = Phi^T Phi of the training data, shape (p, p); with an intercept, of its centred features.
        lam_s: Penalty of the retraining.
        means: Mean feature (p,) and mean target (k,) of the training data, for a model with an
            intercept; None for one without.

    Returns:
        Ys, shape (m, k).

    Source: Label Solve (Nguyen, Chen and Lee 2021), written with G.
    """
    seen = features if means is None else contrasts(features)
    weighted = matmul(seen, gram)
    system = matmul(weighted, seen.T)
    values, vectors = jnp.linalg.eigh((system + system.T) / 2)
    inverse = reciprocal(values, values > rank_tolerance(values, system.shape))
    right = matmul(vectors.T, matmul(weighted, weights))
    coefficients = matmul(vectors * inverse[None], right)
    labels = labels_of_coefficients(seen, coefficients, lam_s)
    if means is None:
        return labels
    feature_mean, target_mean = means
    away = jnp.mean(features, axis=0) - feature_mean
    return from_contrasts(labels) + (target_mean + matmul(matmul(away, seen.T), coefficients))[None]


def labels_of_coefficients(
    features: Float[Array, "m p"],
    coefficients: Float[Array, "m k"],
    lam_s: Float[Array, ""] | float,
) -> Float[Array, "m k"]:
    """Labels that train to ``Phis^T a``: ``Ys = (Phis Phis^T + lam_s I) a``."""
    return matmul(features, matmul(features.T, coefficients)) + lam_s * coefficients
