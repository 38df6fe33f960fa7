"""Ridge regression from one eigendecomposition: every penalty, the training error, the rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Self, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.contrasts import contrasts
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.products import products_of
from jaxdistill.numerics.pytrees import register_pytree
from jaxdistill.ridge.moments import Moments


@final
@register_pytree
@dataclass(frozen=True)
class RidgePath:
    """Factor once, solve for every penalty: ``B(lam) = V diag(1/(g + lam)) V^T C``.

    V and g are the eigenvectors and eigenvalues of G = Phi^T Phi, taken from G itself (primal, n >= p)
    or from the n x n Gram matrix of the examples (dual, n < p): the same path either way.

    Eigenvalues below ``resolution`` are rounding. Their directions are dropped for a penalty that is below
    the resolution too (at lam = 0 this is the pseudo-inverse, the weights of least norm) and kept
    for a larger one, which damps them.

    With an intercept all of it is of centred features and targets.

    Args:
        basis: V, shape (p, r).
        eigenvalues: g, shape (r,).
        projected: V^T C, shape (r, k).
        target_gram: Y^T Y, shape (k, k).
        resolution: Size below which an eigenvalue is rounding.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdistill.ridge.moments import Moments
        >>> phi = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
        >>> y = jnp.array([[1.0], [2.0], [2.0]])
        >>> path = RidgePath.from_moments(Moments.from_features(phi, y))
        >>> bool(jnp.allclose(path.weights(0.0), jnp.ones((2, 1)), atol=1e-5))
        True
    """

    basis: Float[Array, "p r"] | Any
    eigenvalues: Float[Array, " r"] | Any
    projected: Float[Array, "r k"] | Any
    target_gram: Float[Array, "k k"] | Any
    resolution: Float[Array, ""] | Any

    @classmethod
    def from_moments(cls, moments: Moments, product_dtype: Any = None) -> Self:
        """Primal path.

        Args:
            moments: Moments of the training data.
            product_dtype: Precision in which Phi^T Phi was formed; default that of its sums.
        """
        g, v = jnp.linalg.eigh(moments.gram)
        return cls(
            v,
            g,
            matmul(v.T, moments.cross),
            moments.target_gram,
            resolution_of(jnp.max(g, initial=0.0), len(g), moments.gram.dtype, product_dtype),
        )

    @classmethod
    def from_features(cls, features: Float[Array, "n p"], targets: Float[Array, "n k"]) -> Self:
        """Dual path, for fewer examples than features."""
        g, u = jnp.linalg.eigh(matmul(features, features.T))
        resolution = resolution_of(jnp.max(g, initial=0.0), len(g), features.dtype, None)
        root = jnp.sqrt(jnp.where(g > resolution, g, 1.0))
        scale = jnp.where(g > resolution, 1.0 / root, 0.0)
        return cls(
            matmul(features.T, u) * scale,
            g,
            (matmul(u.T, targets).T * jnp.where(g > resolution, root, 0.0)).T,
            matmul(targets.T, targets),
            resolution,
        )

    def kept(self, lam: Float[Array, ""] | float) -> Any:
        """Which directions count for a penalty, shape (r,): those that are more than rounding, or damped."""
        return (self.eigenvalues > self.resolution) | (lam > self.resolution)

    def _filter(self, lam: Float[Array, ""] | float) -> Float[Array, " r"]:
        """The factors 1/(g + lam), zero where nothing but rounding is left."""
        kept = self.kept(lam)
        return jnp.where(kept, 1.0 / jnp.where(kept, self.eigenvalues + lam, 1.0), 0.0)

    def filters(self, lams: Float[Array, " l"]) -> Float[Array, "l r"]:
        """The factors 1/(g + lam) for every penalty."""
        return jax.vmap(self._filter)(lams)

    def weights(self, lam: Float[Array, ""] | float) -> Float[Array, "p k"]:
        """Ridge weights B(lam)."""
        return matmul(self.basis, self._filter(lam)[:, None] * self.projected)

    def weights_path(self, lams: Float[Array, " l"]) -> Float[Array, "l p k"]:
        """Ridge weights for every penalty, in one product."""
        scaled = self.filters(lams)[:, :, None] * self.projected
        flat = jnp.moveaxis(scaled, 0, 1).reshape(len(self.eigenvalues), -1)
        stacked = matmul(self.basis, flat).reshape(self.basis.shape[0], len(lams), -1)
        return jnp.moveaxis(stacked, 1, 0)

    def training_error(self, lam: Float[Array, ""] | float) -> Float[Array, ""]:
        """Sum of squared training errors ``|Y - Phi B(lam)|^2`` in closed form."""
        f = self._filter(lam)
        energy = jnp.sum(self.projected**2, axis=1)
        return jnp.trace(self.target_gram) - jnp.sum(energy * f * (2 - self.eigenvalues * f))

    @property
    def rank(self) -> Int[Array, ""]:
        """Number of eigenvalues above the resolution."""
        return jnp.sum(self.eigenvalues > self.resolution)


def resolution_of(largest: Any, size: int, sum_dtype: Any, product_dtype: Any) -> Any:
    """The largest eigenvalue times the rounding of the products and of the eigendecomposition.

    A Gram matrix inherits a few eps of its products, concentrated along the leading direction
    (measured on MNIST: 3 eps in float32); its eigendecomposition adds p eps of its own precision.
    """
    own = jnp.finfo(sum_dtype).eps
    products = own if product_dtype is None else products_of(product_dtype).eps
    return largest * (8 * products + size * own)


def solve_ridge(moments: Moments, lam: Float[Array, ""] | float) -> Float[Array, "p k"]:
    """Weights for one positive penalty by Cholesky: a tenth of an eigendecomposition.

    Where G + lam I is not positive definite the result is NaN, which the caller must check.
    """
    size = moments.gram.shape[0]
    factor = jnp.linalg.cholesky(moments.gram + lam * jnp.eye(size, dtype=moments.gram.dtype))
    return jax.scipy.linalg.cho_solve((factor, True), moments.cross)


factor_primal = jax.jit(RidgePath.from_moments, static_argnums=1)


@partial(jax.jit, static_argnums=3)
def factor_dual(features: AbstractFeatureMap, x: Array, targets: Array, intercept: bool) -> RidgePath:
    """Dual path of inputs, compiled with their feature map; with an intercept that of their contrasts."""
    rows = features(x), targets
    return RidgePath.from_features(*(contrasts(part) for part in rows) if intercept else rows)


path_weights = jax.jit(RidgePath.weights)
solve = jax.jit(solve_ridge)
