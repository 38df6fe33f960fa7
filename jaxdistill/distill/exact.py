"""Exact sets in feature space, for any feature map (CHW Theorems 4.1 and 5.1).

Pure functions of arrays: they work in the precision of what they are given, and under jit, vmap and
grad. Inputs outside the domain give NaN here and typed errors in :func:`jaxdistill.distill`.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdistill.numerics.linalg import matmul, pinv, rank_tolerance, reciprocal


def inverse_features(
    weights: Float[Array, "p k"],
    labels: Float[Array, "m k"],
    free: Float[Array, "m p"] | None = None,
) -> Float[Array, "m p"]:
    """The matrix ``D = (B L^+)^T + (I - L L^+) Z`` whose pseudo-inverse is the set.

    Every D with ``L^T D = B^T`` has this form; Z moves only what the labels L do not see.

    Args:
        weights: B, shape (p, k).
        labels: L, shape (m, k), with a row space that covers that of B.
        free: Z, shape (m, p), or None for zero; of no effect where m = k.

    Returns:
        D, shape (m, p).

    Source: CHW, proofs of Theorems 4.1 and 5.1.
    """
    pseudo = pinv(labels)
    fixed = matmul(weights, pseudo).T
    if free is None:
        # Not only cheaper: XLA on the CPU (jaxlib 0.10 to 0.12) turns a compiled product with a
        # constant zero matrix into NaN when its result is used beside others.
        return fixed
    return fixed + free - matmul(labels, matmul(pseudo, free))


def recover_singular_values(
    d_values: Float[Array, " r"],
    lam_s: Float[Array, " #r"] | Float[Array, ""] | float,
    larger: Bool[Array, ...] | bool = True,
) -> Float[Array, " r"]:
    """Solve ``s / (s^2 + lam_s) = s'`` for every singular value.

    ``s = (1 +- sqrt(1 - 4 lam_s s'^2)) / (2 s')``. Both roots train to the same weights; the larger one
    is better conditioned. At lam_s = 0 only the larger exists (the other is zero and recovers
    nothing). The smaller is computed as ``2 lam_s s' / (1 + sqrt(...))``, without cancellation.

    Args:
        d_values: s', shape (r,), positive.
        lam_s: Penalty, one for all or one per singular value.
        larger: Which root to take, one for all or one per singular value.

    Returns:
        s, shape (r,); NaN where lam_s is above ``1 / (4 s'^2)`` by more than rounding.
    """
    discriminant = 1 - 4 * lam_s * d_values**2
    # At the largest admissible penalty the discriminant is zero up to rounding of either sign.
    rounding = 16 * jnp.finfo(d_values.dtype).eps
    inside = discriminant > 0
    root = jnp.where(inside, jnp.sqrt(jnp.where(inside, discriminant, 1.0)), 0.0)
    root = jnp.where(discriminant < -rounding, jnp.nan, root)
    return jnp.where(larger, (1 + root) / (2 * d_values), 2 * lam_s * d_values / (1 + root))


class InverseFactors(NamedTuple):
    """Singular value decomposition ``D = V diag(s') U^T``: factor once, solve for every penalty.

    Args:
        left: V, shape (m, r).
        values: s' in decreasing order, shape (r,); zero where D holds only rounding.
        right: U^T, shape (r, p).
    """

    left: Float[Array, "m r"]
    values: Float[Array, " r"]
    right: Float[Array, "r p"]

    @classmethod
    def of(cls, d: Float[Array, "m p"]) -> Self:
        """Decompose D."""
        left, values, right = jnp.linalg.svd(d, full_matrices=False)
        return cls(left, jnp.where(values > rank_tolerance(values, d.shape), values, 0.0), right)

    @property
    def largest_penalty(self) -> Float[Array, ""]:
        """Largest penalty that exact features admit, ``1 / (4 s'_max^2)`` (CHW, Theorem 4.1)."""
        return 0.25 / jnp.max(self.values) ** 2

    def features(
        self,
        lam_s: Float[Array, ""] | float = 0.0,
        larger: Bool[Array, ...] | bool = True,
    ) -> Float[Array, "m p"]:
        """Features ``V diag(s) U^T`` whose ridge inverse at ``lam_s`` is D."""
        kept = self.values > 0
        # A dropped direction stays zero; solving it at s' = 1 and lam_s = 0 keeps derivatives finite.
        values, lam = jnp.where(kept, self.values, 1.0), jnp.where(kept, lam_s, 0.0)
        s = jnp.where(kept, recover_singular_values(values, lam, larger), 0.0)
        return matmul(self.left * s, self.right)


def exact_features(
    weights: Float[Array, "p k"],
    labels: Float[Array, "m k"],
    free: Float[Array, "m p"] | None = None,
    lam_s: Float[Array, ""] | float = 0.0,
    larger: Bool[Array, ...] | bool = True,
) -> Float[Array, "m p"]:
    """Features from which ridge regression with penalty ``lam_s`` returns the weights, exactly.

    With ``D = inverse_features(B, L, Z) = V diag(s') U^T``: ``Phis = V diag(s) U^T``, where s solves
    ``s / (s^2 + lam_s) = s'``; at lam_s = 0 this is ``(D^+)^T``. Singular values of D that are rounding
    stay zero.

    Args:
        weights: B, shape (p, k).
        labels: L, shape (m, k), with a row space that covers that of B.
        free: Z, shape (m, p), or None for zero.
        lam_s: Penalty of the retraining, at most ``1 / (4 s'_max^2)``.
        larger: Which root, one for all or one per singular value (in decreasing order).

    Returns:
        Phis, shape (m, p). NaN where lam_s is not admissible.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> b = jax.random.normal(jax.random.key(0), (5, 2))
        >>> phis = exact_features(b, jnp.eye(2))
        >>> bool(jnp.allclose(jnp.linalg.pinv(phis) @ jnp.eye(2), b, atol=1e-5))
        True

    Source: CHW, Theorems 4.1 and 5.1; roots per singular value, Appendix.
    """
    return InverseFactors.of(inverse_features(weights, labels, free)).features(lam_s, larger)


def retrain(
    features: Float[Array, "m p"], labels: Float[Array, "m k"], lam_s: Float[Array, ""] | float
) -> Float[Array, "p k"]:
    """Ridge weights of a small set: ``Phis^T (Phis Phis^T + lam_s I)^+ Ys``.

    By the singular value decomposition, so that the condition number is never squared. Singular values
    that are rounding are left out where the penalty does not damp them; at lam_s = 0 this gives the
    weights of least norm.

    Args:
        features: Phis, shape (m, p).
        labels: Ys, shape (m, k).
        lam_s: Penalty.

    Returns:
        Weights, shape (p, k).
    """
    return retrain_with_values(features, labels, lam_s)[0]


def retrain_with_values(
    features: Float[Array, "m p"], labels: Float[Array, "m k"], lam_s: Float[Array, ""] | float
) -> tuple[Float[Array, "p k"], Float[Array, " r"]]:
    """What :func:`retrain` returns, and the singular values of the features."""
    u, s, vt = jnp.linalg.svd(features, full_matrices=False)
    return matmul(vt.T * ridge_filter(s, features.shape, lam_s), matmul(u.T, labels)), s


def ridge_filter(
    values: Float[Array, " r"], shape: tuple[int, ...], lam: Float[Array, ""] | float
) -> Float[Array, " r"]:
    """The factors ``s / (s^2 + lam)``, zero where s is rounding that lam does not damp."""
    tolerance = rank_tolerance(values, shape)
    kept = (values > tolerance) | (lam > tolerance**2)
    return jnp.where(kept, values, 0.0) * reciprocal(values**2 + lam, kept)
