"""How well a model solves the problem it was trained on: the residual of its own normal equations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from jaxdistill.errors import InputError
from jaxdistill.numerics.products import products_of
from jaxdistill.ridge.moments import Moments

# What summing a chunk makes of the rounding of its products: blocks of some 256 rows, as libraries sum them
# (measured on MNIST in float32: 10).
_GROWTH = 16


@final
@dataclass(frozen=True)
class ModelResidual:
    """What a full model leaves of its normal equations, and what rounding explains.

    Args:
        value: Residual, relative to the sizes of features and targets, with what the rounding of the
            products may hide.
        tolerance: Largest residual that rounding explains, where it is nearest to being exceeded.
        solved: Whether every feature is within what rounding explains.
        rank: Numerical rank of the features; None for a kernel, which has none.
        dropped: Largest share of its squared norm that a feature lost to that rank.
    """

    value: float
    tolerance: float
    solved: bool
    rank: int | None
    dropped: float

    def to_dict(self) -> dict[str, Any]:
        """All fields, in types that JSON keeps."""
        return asdict(self)


def recorded(solution: ModelResidual | None) -> dict[str, Any] | None:
    """What a file keeps of how well a model was solved; nothing of a head without data."""
    return None if solution is None else solution.to_dict()


def column_sizes(gram: Float[np.ndarray, "p p"]) -> Float[np.ndarray, " p"]:
    """Norms of the columns of the features, from the diagonal of their Gram matrix.

    Raises:
        InputError: a column whose square float64 cannot hold.
    """
    squares = np.diagonal(gram)
    if not np.all(np.isfinite(squares)):
        raise InputError(
            f"the square of feature {int(np.argmin(np.isfinite(squares)))} is more than float64 can hold; "
            "rescale it"
        )
    return np.sqrt(squares)


def model_residual(
    moments: Moments,
    weights: Float[np.ndarray, "p k"],
    lam: float,
    *,
    product_dtype: Any,
    resolution: float,
    rank: int,
    dropped: float,
) -> ModelResidual:
    """Measure ``|phi_j^T (Y - Phi B) - lam B_j| / (|phi_j| |Y|)``, the worst of all features.

    Relative to the size of every feature by itself: beside a column of size 1e8 a plain norm would hide any
    error in the rest. From the moments, in float64: their products err by eps of ``|phi_i| |phi_j|``,
    which is the rounding of ``Y - Phi B`` itself where they were formed in float64. What their rounding may
    hide, some 1e-6 where they were formed in float32, is added to the value.

    Rounding explains 16 eps of the products, and 8 (8 + p) eps of float64 for the solution, times
    ``1 + |S B| / |Y| + lam |B_j| / (|phi_j| |Y|)`` with S the sizes of the features; where G was decomposed
    also the backward error of that, ``(8 + p) eps |G| |B|``. At most sqrt(eps).

    Args:
        moments: G, C, T of the training data.
        weights: B, shape (p, k).
        lam: Penalty.
        product_dtype: Precision in which the products of the moments were formed.
        resolution: Size below which an eigenvalue of G is rounding; 0 where G was not decomposed.
        rank: Numerical rank of the features, for the report.
        dropped: What the rank lost, for the report.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.eye(3)[:, :2]
        >>> moments = Moments.from_features(x, x)
        >>> told = {"product_dtype": "float64", "resolution": 0.0, "rank": 2, "dropped": 0.0}
        >>> model_residual(moments, np.eye(2), 0.0, **told).solved
        True
        >>> model_residual(moments, 1.001 * np.eye(2), 0.0, **told).solved
        False
    """
    gram, cross, target_gram = (
        np.asarray(a, np.float64) for a in (moments.gram, moments.cross, moments.target_gram)
    )
    own = float(np.finfo(np.float64).eps)
    eps = products_of(product_dtype).eps
    sizes, targets = column_sizes(gram), np.sqrt(np.trace(target_gram))
    # A feature or target of zeros has no size to compare with, and nothing to be wrong in.
    unit = np.where(sizes > 0, sizes, 1.0) * (targets if targets > 0 else 1.0)
    damped = lam * weights
    found = np.linalg.norm(cross - gram @ weights - damped, axis=1) / unit
    products = 1 + np.linalg.norm(sizes[:, None] * weights) / (targets if targets > 0 else 1.0)
    rounding = _GROWTH * eps + 8 * (8 + len(gram)) * own
    explained = rounding * (products + np.linalg.norm(damped, axis=1) / unit)
    if resolution > 0:
        with np.errstate(over="ignore"):  # then the other bound holds
            explained += (8 + len(gram)) * own * np.linalg.norm(gram) * np.linalg.norm(weights) / unit
    explained = np.minimum(explained, np.sqrt(eps))
    worst = int(np.argmax(found / explained))
    return ModelResidual(
        value=float(found.max() + _GROWTH * eps * products),
        tolerance=float(explained[worst]),
        solved=bool(np.all(found <= explained)),
        rank=rank,
        dropped=dropped,
    )
