"""Exact sets in feature space, for any feature map (CHW Theorems 4.1 and 5.1).

Pure functions of arrays: they work in the precision of what they are given, and under jit, vmap and
grad. Inputs outside the domain give NaN here and typed errors in :func:`jaxdistill.distill`.

With an intercept, ``f(x) = phi(x) B + b``, the same algebra holds for the contrasts of features, labels and
free part (:mod:`jaxdistill.numerics.contrasts`), which see no mean; the means follow from
``mean(Ys) = mean(Phis) B + b``. What takes no intercept here is to be given contrasts.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdistill.numerics.contrasts import contrasts, from_contrasts
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
    # A compiler may compute the discriminant twice, fused in two ways, and come to two signs of a zero: what
    # stands in for the negative ones has a root of about zero too.
    tiny = jnp.finfo(d_values.dtype).tiny
    root = jnp.where(inside, jnp.sqrt(jnp.where(inside, discriminant, tiny)), 0.0)
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
        return matmul(self.left * s[None], self.right)


def exact_features(
    weights: Float[Array, "p k"],
    labels: Float[Array, "m k"],
    free: Float[Array, "m p"] | None = None,
    lam_s: Float[Array, ""] | float = 0.0,
    larger: Bool[Array, ...] | bool = True,
    *,
    intercept: Float[Array, " k"] | None = None,
    near: Float[Array, " p"] | None = None,
) -> Float[Array, "m p"]:
    """Features from which ridge regression with penalty ``lam_s`` returns the weights, exactly.

    With ``D = inverse_features(B, L, Z) = V diag(s') U^T``: ``Phis = V diag(s) U^T``, where s solves
    ``s / (s^2 + lam_s) = s'``; at lam_s = 0 this is ``(D^+)^T``. Singular values of D that are rounding
    stay zero.

    With an intercept the same within what is orthogonal to the ones vector, and then one shift:
    ``D = (B Lc^+)^T + (P1 - Lc Lc^+) Z`` with ``Lc = P1 L``, ``P1 = I - 1 1^T / m``, and ``Phis + 1 c^T``
    with c of :func:`mean_features`.

    Args:
        weights: B, shape (p, k).
        labels: L, shape (m, k), with a row space (of L, or of Lc) that covers that of B.
        free: Z, shape (m, p), or None for zero.
        lam_s: Penalty of the retraining, at most ``1 / (4 s'_max^2)``.
        larger: Which root, one for all or one per singular value (in decreasing order).
        intercept: b, shape (k,), with ``mean(L) - b`` in the row space of B
            (:func:`~jaxdistill.distill.intercept.check_label_mean`); None for a model without.
        near: Feature vector that the mean of the features stays near, shape (p,); default zero.

    Returns:
        Phis, shape (m, p). NaN where lam_s is not admissible.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> b = jax.random.normal(jax.random.key(0), (5, 2))
        >>> phis = exact_features(b, jnp.eye(2))
        >>> bool(jnp.allclose(jnp.linalg.pinv(phis) @ jnp.eye(2), b, atol=1e-5))
        True

    Source: CHW, Theorems 4.1 and 5.1; roots per singular value, Appendix; the intercept, this package.
    """
    if intercept is None:
        return InverseFactors.of(inverse_features(weights, labels, free)).features(lam_s, larger)
    inner = exact_features(
        weights, contrasts(labels), None if free is None else contrasts(free), lam_s, larger
    )
    return from_contrasts(inner) + mean_features(weights, jnp.mean(labels, axis=0) - intercept, near)[None]


def mean_features(
    weights: Float[Array, "p k"], offset: Float[Array, " k"], near: Float[Array, " p"] | None = None
) -> Float[Array, " p"]:
    """The mean feature vector c with which a set returns its intercept: ``c B = mean(Ys) - b``.

    ``c = mu + (mean(Ys) - b - mu B) B^+``: of all solutions the one nearest to mu. Of labels whose mean is
    that of the training targets, and mu the mean feature of the training data, it is mu itself. Singular
    values of B below sqrt(eps) of the largest are left out: c would lean on them out of all proportion. (The
    weights of one-hot targets have rounding where their rows should sum to zero.)

    Args:
        weights: B, shape (p, k).
        offset: ``mean(Ys) - b``, shape (k,), in the row space of B.
        near: mu, shape (p,), or None for zero: the solution of least norm.

    Returns:
        c, shape (p,).
    """
    inverse = pinv(weights, math.sqrt(jnp.finfo(weights.dtype).eps))
    if near is None:
        return matmul(offset, inverse)
    return near + matmul(offset - matmul(near, weights), inverse)


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


def retrain_with_intercept(
    features: Float[Array, "m p"], labels: Float[Array, "m k"], lam_s: Float[Array, ""] | float
) -> tuple[Float[Array, "p k"], Float[Array, " k"]]:
    """Ridge weights and unpenalised intercept of a small set.

    The weights of the centred set, and ``b = mean(Ys) - mean(Phis) B``.

    Args:
        features: Phis, shape (m, p), m at least 2.
        labels: Ys, shape (m, k).
        lam_s: Penalty, on the weights alone.

    Returns:
        Weights, shape (p, k), and intercept, shape (k,).

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0], [1.0], [2.0]])
        >>> weights, intercept = retrain_with_intercept(x, 2 * x + 5, 0.0)
        >>> round(float(weights[0, 0]), 4), round(float(intercept[0]), 4)
        (2.0, 5.0)
    """
    weights = retrain(contrasts(features), contrasts(labels), lam_s)
    return weights, intercept_of(features, labels, weights)


def intercept_of(
    features: Float[Array, "m p"], labels: Float[Array, "m k"], weights: Float[Array, "p k"]
) -> Float[Array, " k"]:
    """The intercept that belongs to weights: ``mean(Y) - mean(Phi) B``."""
    return jnp.mean(labels, axis=0) - matmul(jnp.mean(features, axis=0), weights)


def retrain_with_values(
    features: Float[Array, "m p"], labels: Float[Array, "m k"], lam_s: Float[Array, ""] | float
) -> tuple[Float[Array, "p k"], Float[Array, " r"]]:
    """What :func:`retrain` returns, and the singular values of the features."""
    u, s, vt = jnp.linalg.svd(features, full_matrices=False)
    return matmul(vt.T * ridge_filter(s, features.shape, lam_s)[None], matmul(u.T, labels)), s


def ridge_filter(
    values: Float[Array, " r"], shape: tuple[int, ...], lam: Float[Array, ""] | float
) -> Float[Array, " r"]:
    """The factors ``s / (s^2 + lam)``, zero where s is rounding that lam does not damp."""
    tolerance = rank_tolerance(values, shape)
    kept = (values > tolerance) | (lam > tolerance**2)
    return jnp.where(kept, values, 0.0) * reciprocal(values**2 + lam, kept)
