"""Deep linear features: what can be recovered, and with how many points (CHW Theorem 5.3, corrected).

For ``phi(x) = A x`` with A of rank r < p, features and with them retrained weights lie in range(A):
``B_s = Phis^T a = A Xs^T a``. So B is recoverable if and only if col(B) lies in range(A). Weights that ridge
learned through the same A always do, for every penalty, being of the form ``Phi^T a`` themselves.

CHW's sufficient condition for k + 1 points where p > d asks that a block of p of the right singular vectors
of a full-rank H has full rank, which makes all p coordinates of the features free. They are not: a point
moves in range(A) alone, so the condition forces rank(A) = p and never holds for p > d. Nor can a further
point help. Every set that recovers B is the ridge inverse of a D with ``L^T D = B^T``; with N the projector
on the complement of range(A), features inside the range mean ``D N = 0``, hence ``N B = (L^T D N)^T = 0``,
whatever the number of points and whatever is free in D.

What holds: with ``A = U R``, U an orthonormal basis of the range and R of full row rank, the model is that
of the features ``R x`` with the weights ``U^T B``. R is surjective, so rank(B) <= k points suffice, and
all that the package offers for surjective maps is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from jaxdistill.errors import RankError
from jaxdistill.features.deep_linear import DeepLinear
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.moments import Moments
from jaxdistill.sets.artifact import DistilledSet

_Construct = TypeVar("_Construct", bound=Callable[..., DistilledSet])


def share_outside(phi: DeepLinear, weights: Any) -> float:
    """Share of the weights outside the range of A, ``|(I - A A^+) B| / |B|``: what no set can recover.

    Args:
        phi: Deep linear features.
        weights: B, shape (p, k).

    Returns:
        A number in [0, 1].

    Example:
        >>> import jax, numpy as np
        >>> phi = DeepLinear.create(3, widths=(9,), key=jax.random.key(0))
        >>> share_outside(phi, np.asarray(phi.weights[0])) < 1e-7, share_outside(phi, np.eye(9)) > 0.5
        (True, True)
    """
    left = phi.range_factors()[0]
    matrix = np.asarray(weights, np.float64)
    return float(np.linalg.norm(matrix - left @ (left.T @ matrix)) / np.linalg.norm(matrix))


def within_range(construct: _Construct) -> _Construct:
    """Let a construction for surjective maps serve deep linear features of any width.

    The wrapped function is called with the model of the features R x, weights U^T B, and its set is handed
    back with the features and weights of the model itself.

    Raises:
        RankError: the weights lie outside the range of A; names the share.
    """

    @wraps(construct)
    def distill(model: RidgeModel, **request: Any) -> DistilledSet:
        phi = model.features
        if not isinstance(phi, DeepLinear):
            return construct(model, **request)
        left, right = phi.range_factors()
        if left.shape[1] == phi.num_features:
            return construct(model, **request)
        outside = share_outside(phi, model.weights)
        if outside > np.sqrt(np.finfo(np.float64).eps):  # a fit leaves rounding only
            raise RankError(
                f"{100 * outside:.2g} % of the weights lie outside the range of the deep linear map (rank "
                f"{left.shape[1]} of {phi.num_features}), which no set of any size can recover; use "
                "weights that were trained through the same map"
            )
        small = construct(_inside(model, left, right), **request)
        recipe = small.recipe | {"outside_range": outside}
        return replace(small, features=phi, weights=np.asarray(model.weights, np.float64), recipe=recipe)

    return cast(_Construct, distill)


def _inside(model: RidgeModel, left: np.ndarray, right: np.ndarray) -> RidgeModel:
    """The same model in coordinates of the range: ``f(x) = (R x)^T (U^T B)``."""
    moments = model.moments
    return replace(
        model,
        features=DeepLinear((right,)),
        weights=left.T @ np.asarray(model.weights, np.float64),
        moments=None
        if moments is None
        else Moments(
            left.T @ np.asarray(moments.gram) @ left,
            left.T @ np.asarray(moments.cross),
            moments.target_gram,
            moments.count,
            left.T @ np.asarray(moments.feature_sum),
            moments.target_sum,
            left.T @ np.asarray(moments.feature_shift),
            moments.target_shift,
        ),
    )
