"""One penalty where no direction of the features is rounding: a Cholesky factor, no eigendecomposition.

Nor a randomised low rank, of however many features: two products of G with r columns take as many operations,
p^3 / 3, at r = p / 12, and what they leave out is no ridge regression on these features any more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.numerics.linalg import in_float64
from jaxdistill.numerics.products import products_of
from jaxdistill.ridge.moments import Moments
from jaxdistill.ridge.path import resolution_of, solve
from jaxdistill.ridge.scaled import badly_scaled

# Of fewer features an eigendecomposition takes less time than other programs take to be compiled.
_FEWEST = 1024


class CholeskyFactor(NamedTuple):
    """Weights of one penalty by Cholesky, and what is known of the spectrum.

    Args:
        weights: B(lam), shape (p, k).
        rank: Numerical rank of the features.
        resolution: Size below which an eigenvalue of G is rounding.
        resolved: Whether all directions count, so far above the resolution that half of their digits are
            left.
    """

    weights: Float[np.ndarray, "p k"]
    rank: int
    resolution: float
    resolved: bool


def factor_definite(moments: Moments, lam: float, product_dtype: Any) -> CholeskyFactor | None:
    """The weights of one penalty by Cholesky, a tenth of an eigendecomposition, where that decides nothing.

    An eigendecomposition tells the rank and which directions are rounding. Where ``G - r I`` too has a
    Cholesky factor, with the resolution r, every eigenvalue is above r: the rank is p, and all directions
    count. In r the largest eigenvalue is no more than the Frobenius norm of G.

    Args:
        moments: Of the examples.
        lam: Penalty.
        product_dtype: Precision in which Phi^T Phi was formed.

    Returns:
        None where the features are so few that nothing is saved, where products are of float64, which tell
        more than this asks for, or where some direction is or may be rounding, as it is of fewer examples.

    Example:
        >>> factor_definite(Moments.zeros(3, 1), 1.0, np.float32) is None
        True
    """
    gram = moments.gram
    if not _FEWEST <= len(gram) <= moments.count or products_of(product_dtype).name == "float64":
        return None
    resolution = float(resolution_of(np.linalg.norm(gram), len(gram), gram.dtype, product_dtype))
    if badly_scaled(gram, resolution):
        return None
    if not in_float64(_is_definite, gram, resolution):
        return None
    return CholeskyFactor(in_float64(solve, moments, lam), len(gram), resolution, True)


@jax.jit
def _is_definite(gram: Array, shift: Array) -> Array:
    """Whether ``G - shift I`` is positive definite; of others the factor holds NaN."""
    shifted = gram - shift * jnp.eye(len(gram), dtype=gram.dtype)
    return jnp.all(jnp.isfinite(jnp.diagonal(jnp.linalg.cholesky(shifted, symmetrize_input=False))))
