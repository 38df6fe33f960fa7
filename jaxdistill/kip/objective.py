"""The losses of KIP, as pure functions of matrices: safe under jit, vmap and grad.

A distilled set predicts ``f(x) = k(x, Xs) a``. Its labels enter only through the coefficients a:
given labels by ridge regression, solved labels by least squares. Where the kernel has finitely many
features, ``f(x) = phi(x) h`` with ``h = Phis^T a``, and the moments of the data replace the data.

Callers give matrices in float64 wherever they may, whatever the precision of the inputs: the systems square
the condition number of the features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.numerics.linalg import matmul


class Quadratic(NamedTuple):
    """The squared error of every linear model on a data set, without the data.

    ``1/2n |Y - Phi h|^2 = 1/2 (T - 2 <h, C> + <h, G h>)`` with moments divided by n.

    Args:
        gram: G / n, shape (p, p).
        cross: C / n, shape (p, k).
        trace: tr(T) / n, a scalar.
        means: Mean feature (p,) and mean target (k,) of a model with an intercept, whose moments are about
            them; None of one without.
    """

    gram: Float[Array, "p p"] | Any
    cross: Float[Array, "p k"] | Any
    trace: Float[Array, ""] | Any
    means: tuple[Float[Array, " p"] | Any, Float[Array, " k"] | Any] | None = None

    def loss(
        self, weights: Float[Array, "p k"], intercept: Float[Array, " k"] | None = None
    ) -> Float[Array, ""]:
        """Half the mean squared error of ``phi(x) h``; O(p^2 k), whatever n is.

        With an intercept b that of ``phi(x) h + b``; of moments with means, and no b, that with the best one.
        """
        change = matmul(self.gram, weights) - 2 * self.cross
        about = (self.trace + jnp.sum(weights * change)) / 2
        if self.means is None or intercept is None:
            return about
        return about + jnp.sum((self.best_intercept(weights) - intercept) ** 2) / 2

    def best_intercept(self, weights: Float[Array, "p k"]) -> Float[Array, " k"]:
        """``mean(Y) - mean(Phi) h``, of moments with means."""
        assert self.means is not None
        return self.means[1] - matmul(self.means[0], weights)


def squared_loss(
    prediction: Float[Array, "b k"], targets: Float[Array, "b k"], weight: Float[Array, " b"] | None = None
) -> Float[Array, ""]:
    """Half the mean over examples of the squared error, ``1/2b |F - Y|^2``; weight zero leaves some out."""
    squares = (prediction - targets) ** 2
    if weight is None:
        return jnp.sum(squares) / (2 * targets.shape[0])
    return jnp.sum(weight[:, None] * squares) / (2 * jnp.sum(weight))


def trace_penalty(k_ss: Float[Array, "m m"], reg: float | Array) -> Float[Array, ""]:
    """The penalty ``reg tr(K_ss) / m`` that a set is trained with."""
    return reg * jnp.trace(k_ss) / k_ss.shape[0]


def ridge_coefficients(
    k_ss: Float[Array, "m m"], labels: Float[Array, "m k"], reg: float | Array
) -> Float[Array, "m k"]:
    """Coefficients of given labels, ``a = (K_ss + reg tr(K_ss)/m I)^-1 Ys``.

    By Cholesky: where the matrix is not positive definite the result is NaN, which the caller must
    check.

    Args:
        k_ss: Kernel matrix of the set, shape (m, m).
        labels: Ys, shape (m, k).
        reg: Penalty relative to the mean of the diagonal.

    Returns:
        a, shape (m, k).

    Example:
        >>> import jax.numpy as jnp
        >>> ridge_coefficients(2 * jnp.eye(2), jnp.array([[4.0], [8.0]]), 1.0).ravel().tolist()
        [1.0, 2.0]

    Source: Nguyen, Chen and Lee, 2021 (KIP).
    """
    return _cholesky_solve(k_ss, trace_penalty(k_ss, reg), labels)


def solved_coefficients(
    system: Float[Array, "m m"], right: Float[Array, "m k"], ridge: float = 0.0
) -> Float[Array, "m k"]:
    """Coefficients of the best labels, ``a = argmin |Y - K_ts a|^2``, from the normal equations.

    Every penalty admits labels that train to any coefficients, so the best ones do not depend on it.

    Args:
        system: ``K_ts^T K_ts``, or ``Phis G Phis^T``, shape (m, m).
        right: ``K_ts^T Y``, or ``Phis C``, shape (m, k).
        ridge: Stated ridge on the coefficients, relative to the mean of the diagonal. At 0 a singular
            system gives NaN.

    Returns:
        a, shape (m, k).

    Source: Label Solve (Nguyen, Chen and Lee, 2021).
    """
    return _cholesky_solve(system, trace_penalty(system, ridge), right)


def moments_loss(features: Float[Array, "m p"], data: Quadratic, ridge: float = 0.0) -> Float[Array, ""]:
    """Full-data loss of features with solved labels, from the moments alone.

    ``1/2n (tr T - tr(C^T Phis^T (Phis G Phis^T)^-1 Phis C))``, one product of m p^2 whatever n is. The
    labels are optimal, so the gradient is that of the loss with its coefficients held fixed (envelope
    theorem): exact, and nothing is differentiated through the factorisation. Second derivatives
    are not those of the loss.

    Args:
        features: Phis, shape (m, p).
        data: Moments of the data.
        ridge: As for :func:`solved_coefficients`; its share of the loss is left out of the value, and
            the gradient is then that of the model with these coefficients.

    Returns:
        The loss; NaN where the features are dependent.

    Source: this package (MATH section 7); KIP on all n examples, without the examples.
    """
    fixed = jax.lax.stop_gradient(features)
    a = solved_from_moments(fixed, data, ridge)
    return data.loss(matmul(features.T, a))


def solved_from_moments(
    features: Float[Array, "m p"], data: Quadratic, ridge: float = 0.0
) -> Float[Array, "m k"]:
    """Coefficients of the best labels on all data, ``(Phis G Phis^T)^-1 Phis C``."""
    system = matmul(matmul(features, data.gram), features.T)
    return solved_coefficients(system, matmul(features, data.cross), ridge)


def _cholesky_solve(matrix: Array, penalty: Array, right: Array) -> Array:
    shifted = matrix + penalty * jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    # By Cholesky, and differentiated as a linear solve with the same factor: half the time of
    # differentiating the factorisation.
    return jax.scipy.linalg.solve(shifted, right, assume_a="pos")
