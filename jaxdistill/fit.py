"""Fit a ridge model: checks, precision, primal or dual, and the choice of the penalty."""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError, PenaltyError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.keys import host_generator
from jaxdistill.linalg import check_finite, in_float64
from jaxdistill.memory import require_memory
from jaxdistill.moments import CHUNK_BYTES, Moments, accumulate_moments, chunk_rows
from jaxdistill.ridge import (
    RidgeModel,
    RidgePath,
    TargetKind,
    factor_dual,
    factor_primal,
    path_weights,
    solve,
)
from jaxdistill.selection import LamSelection, score_penalties

# Half-decades from 1e-6 to 10^5.5, the grid of CHW's experiments.
LAMS = 10.0 ** np.arange(-6.0, 5.75, 0.5)

# Products below this many operations are formed in float64: it costs less than a second.
CHEAP_FLOPS = 5e10

Validation = float | tuple[Any, Any] | Literal["leave-one-out"]


def fit_ridge(
    features: AbstractFeatureMap,
    x: Any,
    y: Any,
    *,
    lam: float | Literal["auto"] = "auto",
    validation: Validation = "leave-one-out",
    lams: Any = LAMS,
    dtype: Any = None,
    key: Array | None = None,
    progress: bool = False,
) -> RidgeModel:
    """Train ``f(x) = phi(x) B`` by kernel ridge regression.

    ``B = (Phi^T Phi + lam I)^-1 Phi^T Y``, from one pass over the data and one factorisation: of the
    p x p matrix where n >= p, of the n x n matrix where n < p. At lam = 0 it is the solution of least
    norm. The penalty is absolute, never divided by n.

    Args:
        features: Feature map phi, d -> p.
        x: Inputs, shape (n, d), as the feature map sees them.
        y: Targets, shape (n, k): one-hot rows, centred one-hot rows, or real values.
        lam: Penalty, or "auto" to choose it among ``lams``: by the share of wrong answers for one-hot
            targets, by the mean squared error for real ones.
        validation: For "auto": "leave-one-out" (closed form, on all data); a fraction of the
            examples to hold out, drawn with ``key``; or data held out as ``(x, y)``. After the
            choice, a fraction that was held out is trained on too.
        lams: Candidates; default 24 half-decades from 1e-6 to 10^5.5.
        dtype: Precision of features and of the product Phi^T Phi; sums and factorisations are always
            float64. Default: float64 at lam = 0 and wherever the product is cheap, otherwise that of x.
        key: Random key, needed only for a fraction that is held out.
        progress: Whether to show bars.

    Returns:
        The model: weights, penalty, moments, rank, and how the penalty was chosen.

    Raises:
        InputError: shapes that do not fit, values that are not finite, a validation that makes no sense.
        PenaltyError: a penalty that is negative or not finite.
        MemoryBudgetError: the factorisation would not fit.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from jaxdistill.features import Linear
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (50, 3)))
        >>> y = x @ np.array([[1.0], [2.0], [3.0]], np.float32)
        >>> model = fit_ridge(Linear(3), x, y, lam=0.0)
        >>> np.round(model.weights.ravel(), 4).tolist()
        [1.0, 2.0, 3.0]

    Source: Saunders et al. 1998; leave-one-out in closed form, Allen 1974.
    """
    x, y = _checked_pair("", x, y, features.num_inputs)
    chosen_dtype = _product_dtype(dtype, x, features.num_features, lam)
    if lam == "auto":
        return _fit_auto(features, x, y, validation, _checked_lams(lams), chosen_dtype, key, progress)
    lam = check_penalty("lam", lam)
    moments, path = _factor(features, x, y, None, chosen_dtype, progress)
    weights = in_float64(path_weights, path, lam)
    return _model(features, weights, lam, moments, path, None, y)


def check_penalty(name: str, value: Any) -> float:
    """Return a penalty as a float, or raise where it is negative or not finite.

    Raises:
        PenaltyError: names the value.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise PenaltyError(f"{name} is {value!r}; it must be a number >= 0") from None
    if not (np.isfinite(number) and number >= 0):
        raise PenaltyError(f"{name} is {number:g}; a ridge penalty must be finite and >= 0")
    return number


def detect_targets(y: np.ndarray) -> TargetKind:
    """Tell one-hot rows from centred one-hot rows and from real values."""
    num_targets = y.shape[1]
    tolerance = 4 * np.finfo(y.dtype).eps
    for kind, shift in ((TargetKind.ONE_HOT, 0.0), (TargetKind.CENTRED, 1 / num_targets)):
        row = y[0] + shift
        if num_targets > 1 and np.all((np.abs(row) <= tolerance) | (np.abs(row - 1) <= tolerance)):
            shifted = y + shift
            hot = np.abs(shifted - 1) <= tolerance
            if np.all(hot.sum(axis=1) == 1) and np.all(hot | (np.abs(shifted) <= tolerance)):
                return kind
    return TargetKind.REAL


def _checked_pair(which: str, x: Any, y: Any, dim: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if not np.issubdtype(x.dtype, np.floating) or not np.issubdtype(y.dtype, np.floating):
        raise InputError(
            f"{which}x has type {x.dtype} and {which}y {y.dtype}; both must be floating point "
            "(turn class numbers into rows with jaxdistill.one_hot)"
        )
    if x.ndim != 2 or x.shape[1] != dim:
        raise InputError(f"{which}x has shape {x.shape}, expected (n, {dim}) as the features take it")
    if y.ndim != 2 or len(y) != len(x) or len(x) == 0:
        raise InputError(
            f"{which}y has shape {y.shape}, expected ({len(x)}, k): one row of targets an example"
        )
    check_finite(f"{which}x", x)
    check_finite(f"{which}y", y)
    return x, y


def _checked_lams(lams: Any) -> np.ndarray:
    lams = np.asarray(lams, np.float64)
    if lams.ndim != 1 or lams.size == 0:
        raise PenaltyError(f"lams has shape {lams.shape}; give a non-empty list of penalties")
    for value in lams:
        check_penalty("lams", value)
    return np.sort(lams)


def _product_dtype(dtype: Any, x: np.ndarray, num_features: int, lam: Any) -> Any:
    if dtype is not None:
        return np.dtype(dtype)
    cheap = 2.0 * len(x) * num_features * min(len(x), num_features) <= CHEAP_FLOPS
    exact = lam != "auto" and lam == 0
    return np.dtype(np.float64) if cheap or exact else x.dtype


def _factor(
    features: AbstractFeatureMap,
    x: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray | None,
    dtype: Any,
    progress: bool,
) -> tuple[Moments, RidgePath]:
    """Moments and path of some rows, by the smaller of the two Gram matrices."""
    n = len(x) if rows is None else len(rows)
    p = features.num_features
    side = min(n, p)
    # eigh holds its input, the eigenvectors and work of twice that size; the sums are donated.
    require_memory(
        8 * (5 * side**2 + 2 * p**2) + 4 * CHUNK_BYTES + (8 * 2 * n * p if n < p else 0),
        f"factorising a {side} x {side} Gram matrix of {p} features in float64",
        "use fewer features, fewer examples, or a machine with more memory",
    )
    moments = accumulate_moments(features, x, y, rows=rows, dtype=dtype, progress=progress)
    return moments, _path(features, moments, x, y, rows, dtype)


def _path(
    features: AbstractFeatureMap,
    moments: Moments,
    x: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray | None,
    dtype: Any,
) -> RidgePath:
    if moments.count >= features.num_features:
        return in_float64(factor_primal, moments, dtype.name)
    select = slice(None) if rows is None else rows
    return in_float64(factor_dual, features, x[select], y[select])


def _fit_auto(
    features: AbstractFeatureMap,
    x: np.ndarray,
    y: np.ndarray,
    validation: Validation,
    lams: np.ndarray,
    dtype: Any,
    key: Array | None,
    progress: bool,
) -> RidgeModel:
    classes = detect_targets(y) is not TargetKind.REAL

    def select(method: str, path: RidgePath, x: np.ndarray, y: np.ndarray) -> LamSelection:
        # A model that interpolates has leverages near one; float32 cannot hold their distance from it.
        interpolates = method == "leave-one-out" and len(x) < features.num_features
        precision = np.dtype(np.float64) if interpolates else dtype
        return score_penalties(
            method, path, features, x, y, lams, classes=classes, dtype=precision, progress=progress
        )

    if isinstance(validation, (str, tuple)):
        if isinstance(validation, str) and validation != "leave-one-out":
            raise InputError(f"unknown validation {validation!r}; use 'leave-one-out', a fraction or (x, y)")
        moments, path = _factor(features, x, y, None, dtype, progress)
        if isinstance(validation, str):
            selection = select("leave-one-out", path, x, y)
        else:
            held = _checked_pair("validation ", *validation, features.num_inputs)
            selection = select("validation", path, *held)
        weights = in_float64(path_weights, path, selection.lam)
        return _model(features, weights, selection.lam, moments, path, selection, y)

    train, kept = _split(len(x), validation, key)
    moments, path = _factor(features, x, y, train, dtype, progress)
    selection = select("validation", path, x[kept], y[kept])
    size = chunk_rows(features.num_features, len(train))  # of the training part: already compiled
    held_moments = accumulate_moments(features, x, y, rows=kept, dtype=dtype, chunk_size=size)
    everything = jax.tree.map(np.add, moments, held_moments)
    lam = selection.lam
    definite = len(train) >= features.num_features and path.eigenvalues[0] > path.resolution
    if definite or lam > path.resolution:
        weights = in_float64(solve, everything, lam)
    else:  # no Cholesky factor to rely on: the weights of least norm, from a path on all data
        path = _path(features, everything, x, y, None, dtype)
        weights = in_float64(path_weights, path, lam)
    return _model(features, weights, lam, everything, path, selection, y)


def _split(n: int, fraction: Any, key: Array | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to hold out, each sorted, so that reading them stays sequential."""
    if not isinstance(fraction, float) or not 0 < fraction < 1:
        raise InputError(f"validation is {fraction!r}; a fraction must lie between 0 and 1")
    if key is None:
        raise InputError("holding out a fraction is random; pass key=jax.random.key(...)")
    size = round(fraction * n)
    if not 0 < size < n:
        raise InputError(f"validation={fraction} of {n} examples leaves a part without any")
    order = host_generator(key).permutation(n)
    return np.sort(order[size:]), np.sort(order[:size])


def _model(
    features: AbstractFeatureMap,
    weights: np.ndarray,
    lam: float,
    moments: Moments,
    path: RidgePath,
    selection: LamSelection | None,
    y: np.ndarray,
) -> RidgeModel:
    kind = detect_targets(y)
    if kind is TargetKind.CENTRED:
        # Rows of Y sum to zero, so rows of B do; rounding must not hide that its rank is k - 1.
        weights = weights - weights.mean(axis=1, keepdims=True)
    check_finite("the ridge weights", weights)
    weights = features.within_span(weights)
    return RidgeModel(
        features=features,
        weights=weights,
        lam=lam,
        moments=moments,
        rank=int(np.sum(path.eigenvalues > path.resolution)),
        resolution=float(path.resolution),
        selection=selection,
        target_kind=kind,
    )
