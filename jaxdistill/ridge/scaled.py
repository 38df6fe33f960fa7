"""Columns of different units: a factorisation that never squares their sizes.

The Gram matrix holds the squares of the sizes of the columns, and an eigendecomposition of it loses every
column below 1e-8 of the largest. A QR factorisation of the features errs by a few eps of each column, and
one-sided Jacobi finds the singular values of a scaled matrix to full relative accuracy. So there is one
factorisation for every penalty here too, whatever the units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.contrasts import contrasts
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.numerics.processes import gathered, shared_mesh
from jaxdistill.ridge.moments import Moments
from jaxdistill.ridge.path import RidgePath
from jaxdistill.ridge.residual import column_sizes
from jaxdistill.ridge.source import AbstractSource, padded

_EPS = float(np.finfo(np.float64).eps)


@final
@dataclass(frozen=True, eq=False)
class ScaledFactor:
    """The path of badly scaled features, and what its rank was decided on.

    Args:
        path: V, g and V^T C; every direction in it counts, so its resolution is zero.
        sizes: Norms of the columns, shape (p,).
        order: Columns in the order of the pivots, shape (p,).
        pivots: Distance of each unit column from the span of those before it, in that order.
        rounding: Size below which a pivot is rounding.
        dropped: Largest share of its squared norm that a column lost to the rank.
    """

    path: RidgePath
    sizes: Float[np.ndarray, " p"]
    order: Int[np.ndarray, " p"]
    pivots: Float[np.ndarray, " r"]
    rounding: float
    dropped: float

    def weak_columns(self, lam: float) -> Int[np.ndarray, " w"]:
        """Columns so near the span of the others that float64 keeps a quarter of its digits at most.

        Args:
            lam: Penalty; what it damps is not weak.
        """
        kept = len(self.path.eigenvalues)
        columns = self.order[:kept]
        left = np.hypot(self.pivots[:kept], np.sqrt(lam) / self.sizes[columns])
        return np.sort(columns[left < self.rounding / _EPS**0.25])


def badly_scaled(gram: Float[np.ndarray, "p p"] | Any, resolution: Any = 0.0) -> bool:
    """Whether an eigendecomposition costs some column more than two fifths of its digits, or all of them.

    Rounding of the largest column is ``eps ratio^2`` of the smallest: the limit for the ratio of their sizes
    is eps^(-1/5) = 1351.

    Args:
        gram: G, shape (p, p).
        resolution: Size below which an eigenvalue is rounding: so is a column whose square is less.

    Example:
        >>> badly_scaled(np.diag([1e8, 1.0, 0.0])), badly_scaled(np.eye(2))
        (True, False)
    """
    sizes = column_sizes(gram)
    sizes = sizes[sizes > 0]  # a column of zeros has no weight, in any units
    if not sizes.size:
        return False
    return bool(sizes.max() > sizes.min() * _EPS**-0.2 or sizes.min() ** 2 < resolution)


@jax.jit
def _add_rows(
    triangle: Array, features: AbstractFeatureMap, x: Array, y: Array, mask: Array, point: Any
) -> Array:
    parts = [features(x), y]
    if point is not None:
        # Behind a column of ones the triangle is that of centred columns, and near the mean to all digits.
        parts = [jnp.ones((len(x), 1)), *(rows - middle for rows, middle in zip(parts, point, strict=True))]
    rows = jnp.concatenate(parts, axis=1) * mask[:, None]
    return jnp.linalg.qr(jnp.concatenate([triangle, rows]), mode="r")


@partial(jax.jit, static_argnums=3)
def _rows(features: AbstractFeatureMap, x: Array, y: Array, intercept: bool) -> tuple[Array, Array]:
    rows = features(x), y
    return (contrasts(rows[0]), contrasts(y)) if intercept else rows


def _triangle(
    features: AbstractFeatureMap, source: AbstractSource, point: Any, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """R and Q^T Y of ``Phi = Q R``, in one pass: the rows seen so far never take more than a triangle.

    About a point, which is to be near the means, those of centred features and targets.
    """
    first = 0 if point is None else 1
    end = first + features.num_features
    triangle: np.ndarray = np.zeros((end + source.num_targets,) * 2)
    bar = "QR factorisation" if progress else None
    for arrays, mask in padded(source.chunks(), source.chunk_size, total=source.num_rows, progress=bar):
        triangle = in_float64(_add_rows, triangle, features, *arrays, mask, point)
    if shared_mesh() is not None:
        # Of the rows of all processes: from their triangles, in the same order in all.
        triangle = np.asarray(np.linalg.qr(np.concatenate(list(gathered(triangle))), mode="r"))
    return triangle[first:end, first:end], triangle[first:end, end:]


def factor_scaled(
    features: AbstractFeatureMap,
    source: AbstractSource,
    moments: Moments,
    *,
    intercept: bool = False,
    progress: bool = False,
) -> ScaledFactor:
    """The ridge path from a QR factorisation of the features, with the rank decided on unit columns.

    With S the sizes of the columns, ``Phi S^-1 = Q R`` by pivoted QR, cut where a unit column is rounding
    beside those before it: the rows of ``R S`` are independent, whatever the units. ``(R S)^T = U T`` by
    pivoted QR with the largest rows first, which errs by a few eps of every row, and the triangle
    ``T^T = W diag(s) Z^T`` by one-sided Jacobi, to full relative accuracy: ``Phi = Q W diag(s) (U Z)^T``. At
    lam = 0 the weights are those of least norm, in the units as given.

    Args:
        features: Feature map phi.
        source: Inputs and targets.
        moments: Moments of these examples; with an intercept about their means.
        intercept: Whether features and targets are centred.
        progress: Whether to show a bar.

    Returns:
        The path, and the pivots that its rank was decided on.

    Source: Demmel and Veselic 1992; Cox and Higham 1998; Drmac and Veselic 2008 (LAPACK's gejsv).
    """
    import scipy.linalg  # heavy, and needed here only

    n, p = int(moments.count), features.num_features
    if n >= p:
        point = (moments.feature_shift, moments.target_shift) if intercept else None
        triangle, right = _triangle(features, source, point, progress)
    else:
        triangle, right = in_float64(_rows, features, *source.arrays(), intercept)
    sizes = np.linalg.norm(triangle, axis=0)
    units = np.where(sizes > 0, sizes, 1.0)
    pivoted: Any = scipy.linalg.qr
    q, r, order = pivoted(triangle / units, mode="economic", pivoting=True)
    pivots = np.abs(np.diagonal(r))
    rounding = _EPS * max(n, p) * float(pivots.max(initial=0.0))
    rank = int(np.sum(pivots > rounding))
    basis, values, left = _singular(r[:rank] * units[order])
    projected = values[:, None] * (left.T @ (q[:, :rank].T @ np.asarray(right, np.float64)))
    in_order = np.empty_like(basis)
    in_order[order] = basis
    path = RidgePath(in_order, values**2, projected, np.asarray(moments.target_gram), np.float64(0.0))
    lost = float(np.sum(r[rank:] ** 2, axis=0).max(initial=0.0))
    return ScaledFactor(path, units, order, pivots, rounding, lost)


def _singular(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V, s, U of ``rows = U diag(s) V^T``, s increasing, for independent rows with columns of any size."""
    import scipy.linalg
    import scipy.linalg.lapack

    rank, p = rows.shape
    if rank == 0:
        return np.zeros((p, 0)), np.zeros(0), np.zeros((0, 0))
    pivoted: Any = scipy.linalg.qr
    jacobi: Any = getattr(scipy.linalg.lapack, "dgejsv")  # noqa: B009 - its stubs lack it
    largest = np.argsort(-np.linalg.norm(rows, axis=0), kind="stable")
    u, t, order = pivoted(rows[:, largest].T, mode="economic", pivoting=True)
    # Columns of any size (joba 0: C), small ones kept (jobr 0: N), no transpose (jobt 1: N).
    found = jacobi(np.asfortranarray(t.T), joba=0, jobu=0, jobv=0, jobr=0, jobt=1, jobp=1)
    values, w, z, scale, _, failed = found
    if failed:
        raise InputError(f"LAPACK's gejsv did not find the singular values of the features ({failed})")
    right, left = np.empty((p, rank)), np.empty((rank, rank))
    right[largest], left[order] = u @ z, w
    # Of T^T, the left vectors belong to the rows and the right ones to the columns.
    return right[:, ::-1], (values * (scale[0] / scale[1]))[::-1], left[:, ::-1]
