"""Fit a ridge model: checks, precision, primal or dual, and the choice of the penalty."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxdistill.errors import ConditioningWarning, InputError, PenaltyError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.keys import checked_key
from jaxdistill.numerics.linalg import check_finite, in_float64
from jaxdistill.numerics.memory import require_memory, return_freed_memory
from jaxdistill.numerics.placement import moving_arrays, on_accelerator, over
from jaxdistill.numerics.processes import shared_mesh
from jaxdistill.numerics.products import Products, check_products, products_of
from jaxdistill.ridge.crossing import Kept
from jaxdistill.ridge.definite import CholeskyFactor, factor_definite
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.moments import Moments, accumulate_moments
from jaxdistill.ridge.moments_source import MomentsSource
from jaxdistill.ridge.path import RidgePath, factor_dual, factor_primal, path_weights, solve
from jaxdistill.ridge.residual import ModelResidual
from jaxdistill.ridge.scaled import ScaledFactor, badly_scaled, factor_scaled
from jaxdistill.ridge.selection import LamSelection, score_generalised, score_penalties
from jaxdistill.ridge.shares import SharedSource
from jaxdistill.ridge.source import AbstractSource, chunk_bytes
from jaxdistill.ridge.stream import source_of
from jaxdistill.ridge.targets import TargetKind

# Half-decades from 1e-6 to 10^5.5, the grid of CHW's experiments.
LAMS = 10.0 ** np.arange(-6.0, 5.75, 0.5)

# Products below this many operations are formed in float64: it costs less than a second.
CHEAP_FLOPS = 5e10

# What a model says it was factored by.
_NAMES = {RidgePath: "eigendecomposition", CholeskyFactor: "Cholesky", ScaledFactor: "QR, then Jacobi"}

Validation = float | tuple[Any, Any] | Literal["leave-one-out", "generalised"]


@dataclass(frozen=True)
class _Problem:
    """What is fitted, to what, and in which precision its products are formed."""

    features: AbstractFeatureMap
    source: AbstractSource
    intercept: bool
    products: Products
    progress: bool = False

    def moments(self, kept: Kept | None = None) -> Moments:
        """Sums over the source; with an intercept, about a point amid the data."""
        if isinstance(self.source, MomentsSource):
            return self.source.moments if self.intercept else self.source.moments.about(0.0, 0.0)
        told = {"dtype": self.products, "shifted": self.intercept, "progress": self.progress}
        return accumulate_moments(self.features, self.source, kept=kept, **told)


@moving_arrays()
def fit_ridge(
    features: AbstractFeatureMap,
    x: Any,
    y: Any = None,
    *,
    lam: float | Literal["auto"] = "auto",
    validation: Validation = "leave-one-out",
    lams: Any = LAMS,
    intercept: bool = False,
    dtype: Any = None,
    key: Array | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> RidgeModel:
    """Train ``f(x) = phi(x) B``, or ``phi(x) B + b``, by kernel ridge regression.

    ``B = (Phi^T Phi + lam I)^-1 Phi^T Y``, from one pass over the data and one factorisation: of the
    p x p matrix where n >= p, of the n x n matrix where n < p. At lam = 0 it is the solution of least
    norm. The penalty is absolute, never divided by n. The factorisation is an eigendecomposition, which
    serves every penalty; for one that is given, of a thousand features or more, by products in float32, a
    Cholesky factor where it shows that they have full rank (``model.factorisation``).

    Where columns of features differ so much in size that the Gram matrix would lose the small ones, or the
    weights do not solve their normal equations (``model.residual``), the factorisation is one of the features
    themselves, in float64 and free of their units.

    With an intercept b, which no penalty holds down, all of this is of features and targets minus their
    means, and ``b = mean(Y) - mean(Phi) B``.

    Args:
        features: Feature map phi, d -> p.
        x: Inputs, shape (n, d), as the feature map sees them; of images in uint8
            :class:`~jaxdistill.data.pixels.Pixels`, which cross to an accelerator so. Or, with y left out, a
            stream of chunks ``(x, y)`` that need not fit into memory:
            :func:`~jaxdistill.data.stored.open_rows` of files, an iterable, or a function that returns a
            fresh iterator. Or the ``source()`` of saved moments.
        y: Targets, shape (n, k): one-hot rows, centred one-hot rows, or real values.
        lam: Penalty, or "auto" to choose it among ``lams``: by the share of wrong answers for one-hot
            targets, by the mean squared error for real ones.
        validation: For "auto": "leave-one-out" (closed form, on all data); a fraction of the
            examples to hold out, drawn with ``key``; data held out as ``(x, y)``; or "generalised", the
            cross-validation of that name, which needs moments alone and judges by squared error. After the
            choice, a fraction that was held out is trained on too.
        lams: Candidates; default 24 half-decades from 1e-6 to 10^5.5.
        intercept: Whether the model has an intercept. Without one, targets away from zero are met only as far
            as the features hold a constant.
        dtype: Precision of features and of the product Phi^T Phi; sums and factorisations are always
            float64. Default: float64 at lam = 0 and wherever the product is cheap, otherwise that of x. On
            GPUs and TPUs also "bfloat16_x6" or "bfloat16_x3": features in float32, multiplied in parts, with
            the digits of float32 or with 14 bits (``jaxdistill info`` measures each).
        key: Random key, needed only for a fraction that is held out.
        mesh: Devices that share the work, as of :func:`~jaxdistill.make_mesh`: rows are split over its axis
            "data", columns of features over its axis "features". Default: all devices of this process share
            the rows. Of a mesh that spans several processes (``jax.distributed``) each gives its own
            share of the examples, and all get the same model, bit for bit.
        progress: Whether to show bars.

    Returns:
        The model: weights, penalty, moments, rank, and how the penalty was chosen.

    Raises:
        InputError: shapes that do not fit, values that are not finite, a validation that makes no sense.
        PenaltyError: a penalty that is negative or not finite.
        MemoryBudgetError: the factorisation would not fit.
        ProcessError: another process of the job is gone, or has other data.

    Warns:
        ConditioningWarning: float64 cannot tell some features apart; names them, and the rank.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from jaxdistill.features import Linear
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (50, 3)))
        >>> y = x @ np.array([[1.0], [2.0], [3.0]], np.float32)
        >>> model = fit_ridge(Linear(3), x, y, lam=0.0)
        >>> np.round(model.weights.ravel(), 4).tolist()
        [1.0, 2.0, 3.0]
        >>> fit_ridge(Linear(3), lambda: iter([(x[:20], y[:20]), (x[20:], y[20:])]), lam=0.0).rank
        3
        >>> fit_ridge(Linear(3), x, y + 5, lam=0.0, intercept=True).intercept.round(4).tolist()
        [5.0]

    Source: Saunders et al. 1998; leave-one-out in closed form, Allen 1974.
    """
    if key is not None:
        checked_key(key)
    with over(mesh):
        source = source_of(x, y, num_inputs=features.num_inputs, breadth=features.breadth)
        if shared_mesh() is not None:
            source = SharedSource.of(source)
        if intercept and source.num_rows == 1:
            raise InputError(
                "one example fixes an intercept and no weights; give at least 2, or intercept=False"
            )
        products = _products(dtype, source, features.num_features, lam)
        problem = _Problem(features, source, intercept, products, progress)
        if lam == "auto":
            return _fit_auto(problem, validation, _checked_lams(lams), key)
        lam = check_penalty("lam", lam)
        moments = _moments(problem)
        definite = factor_definite(moments, lam, products)
        return _model(problem, lam, moments, _path(problem, moments) if definite is None else definite)


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


def _checked_lams(lams: Any) -> np.ndarray:
    lams = np.asarray(lams, np.float64)
    if lams.ndim != 1 or lams.size == 0:
        raise PenaltyError(f"lams has shape {lams.shape}; give a non-empty list of penalties")
    for value in lams:
        check_penalty("lams", value)
    return np.sort(lams)


def _products(dtype: Any, source: AbstractSource, num_features: int, lam: Any) -> Products:
    if isinstance(source, MomentsSource):  # whose products are formed
        own = source.products
        if dtype is not None and products_of(dtype) != own:
            raise InputError(
                f"dtype is {products_of(dtype).name}, and these moments are of {own.name}; leave it out"
            )
        return own
    return products_of(
        default_dtype(source.num_rows, num_features, lam, source.dtype) if dtype is None else dtype
    )


def default_dtype(num_rows: int | None, num_features: int, lam: Any, dtype: Any) -> np.dtype:
    """Precision of the product Phi^T Phi where none is asked for.

    Args:
        num_rows: n, or None where it is not known.
        num_features: p.
        lam: Penalty, or "auto".
        dtype: Type of the inputs.

    Example:
        >>> default_dtype(1000, 64, "auto", "float32"), default_dtype(10**6, 3072, 1.0, "float32")
        (dtype('float64'), dtype('float32'))
    """
    n = num_rows
    cheap = n is not None and 2.0 * n * num_features * min(n, num_features) <= CHEAP_FLOPS
    exact = lam != "auto" and lam == 0
    return np.dtype(np.float64) if cheap or exact else np.dtype(dtype)


def factor_bytes(num_rows: int, num_features: int) -> int:
    """Bytes that sums and factorisation take beside the data, at their peak."""
    n, p = num_rows, num_features
    # eigh holds its input, the eigenvectors and work of twice that size; the sums are donated.
    return 8 * (5 * min(n, p) ** 2 + 2 * p**2) + 4 * chunk_bytes(p) + (8 * 2 * n * p if n < p else 0)


def _moments(problem: _Problem, kept: Kept | None = None) -> Moments:
    """Moments of what is fitted, after a look at the memory that their factorisation takes."""
    p = problem.features.num_features
    n = p if problem.source.num_rows is None else problem.source.num_rows
    side = min(n, p)
    require_memory(
        factor_bytes(n, p),
        f"factorising a {side} x {side} Gram matrix of {p} features in float64",
        "use fewer features, fewer examples, or a machine with more memory",
    )
    moments = problem.moments(kept)
    if problem.intercept:
        moments = moments.centred()
    # Chunks of the pass, and what its sums took beside G; on an accelerator that is not the host's memory.
    if 8 * p**2 >= chunk_bytes(p) and not on_accelerator():
        return_freed_memory()
    return moments


def _path(problem: _Problem, moments: Moments) -> RidgePath | ScaledFactor:
    """The path by the smaller of the two Gram matrices, or by the features where it must be."""
    features, source, intercept = problem.features, problem.source, problem.intercept
    path = None
    if not badly_scaled(moments.gram):
        if moments.count >= features.num_features:
            path = in_float64(factor_primal, moments, problem.products.name)
        else:
            path = in_float64(factor_dual, features, *source.arrays(), intercept)
    if path is None or badly_scaled(moments.gram, path.resolution):
        return factor_scaled(features, source, moments, intercept=intercept)
    return path


def _fit_auto(problem: _Problem, validation: Validation, lams: np.ndarray, key: Array | None) -> RidgeModel:
    """The penalty that scores best: left out one by one, or by data held out, which are then trained on."""
    train, held, intercept = problem, problem.source, problem.intercept
    if isinstance(validation, tuple):
        held = problem.source.like(*validation, name="validation ")
        if isinstance(problem.source, MomentsSource):  # whose own were formed elsewhere
            cure = "choose lam without data held out: validation='generalised', or give lam"
            check_products(problem.products, cure)
    elif validation not in ("leave-one-out", "generalised"):
        if isinstance(validation, str):
            raise InputError(
                f"unknown validation {validation!r}; use 'leave-one-out', 'generalised', a fraction or (x, y)"
            )
        rest, held = problem.source.hold_out(validation, key)
        train = dataclasses.replace(problem, source=rest)
    method = "leave-one-out" if held is problem.source else "validation"
    # Rows that are read twice: for moments, and for the scores.
    kept = Kept()
    moments = _moments(train, kept if held is train.source else None)
    path = _path(train, moments)
    scaled = isinstance(path, ScaledFactor)
    inner = path.path if isinstance(path, ScaledFactor) else path
    if validation == "generalised":
        selection = score_generalised(inner, lams, moments.count, intercept=intercept, dtype=problem.products)
        return _model(problem, selection.lam, moments, path, selection)
    # A model that interpolates has leverages near one; float32 cannot hold their distance from it.
    interpolates = method == "leave-one-out" and moments.count < problem.features.num_features
    selection = score_penalties(
        method,
        inner,
        problem.features,
        held,
        lams,
        centre=moments if intercept else None,
        classes=problem.source.target_kind is not TargetKind.REAL,
        dtype=np.dtype(np.float64) if interpolates or scaled else problem.products.dtype,
        kept=kept,
        progress=problem.progress,
    )
    lam = selection.lam
    if train is problem:
        return _model(problem, lam, moments, path, selection)

    # About zero both add as they are; moving sums about another point costs several passes over G.
    more = dataclasses.replace(problem, source=held, progress=False).moments(kept)
    everything = moments.merge(more).centred() if intercept else moments.plus(more)
    if not isinstance(path, ScaledFactor):
        definite = moments.count >= problem.features.num_features and path.eigenvalues[0] > path.resolution
        if definite or lam > path.resolution:
            told = _rank(path), float(path.resolution), _resolved(path, lam, problem.products)
            factor = CholeskyFactor(in_float64(solve, everything, lam), *told)
            return _model(problem, lam, everything, factor, selection)
    # No Cholesky factor to rely on: the weights of least norm, from a path on all data.
    return _model(problem, lam, everything, _path(problem, everything), selection)


def _model(
    problem: _Problem,
    lam: float,
    moments: Moments,
    factor: RidgePath | ScaledFactor | CholeskyFactor,
    selection: LamSelection | None = None,
) -> RidgeModel:
    """The model, its weights measured; where they do not solve the problem, from the features themselves."""
    features, source, intercept = problem.features, problem.source, problem.intercept
    kind, products = source.target_kind, problem.products
    if isinstance(factor, CholeskyFactor):  # which drops nothing
        found, rank, resolution, resolved = factor
        dropped = 0.0
    else:
        scaled = isinstance(factor, ScaledFactor)
        path = factor.path if scaled else factor
        found, resolution = in_float64(path_weights, path, lam), float(path.resolution)
        rank = _rank(path)
        dropped = factor.dropped if scaled else _dropped(path, lam, moments.gram)
        resolved = scaled or _resolved(path, lam, products)
    if kind is TargetKind.CENTRED or (intercept and kind is TargetKind.ONE_HOT):
        # Rows of Y, centred ones or minus their mean, sum to zero, so rows of B do; rounding must not hide
        # that its rank is k - 1.
        found = found - found.mean(axis=1, keepdims=True)
    check_finite("the ridge weights", found)
    found = features.within_span(found)
    model = RidgeModel(
        features=features,
        weights=found,
        lam=lam,
        moments=moments,
        rank=rank,
        resolution=resolution,
        selection=selection,
        target_kind=kind,
        dropped=dropped,
        product_dtype=products.name,
        data_dtype=source.data_dtype.name,
        intercept=moments.target_shift - moments.feature_shift @ found if intercept else None,
        factorisation=_NAMES[type(factor)],
    )
    solution = model.solution
    assert solution is not None  # it has moments
    if isinstance(factor, ScaledFactor):
        weak = factor.weak_columns(lam)
        # Weights may be so large that their own rounding takes half of the digits of what they predict.
        if len(weak) or not solution.solved or solution.value > np.sqrt(products.eps):
            _warn(model, solution, weak)
    elif not (solution.solved and resolved):
        again = factor_scaled(features, source, moments, intercept=intercept)
        return _model(problem, lam, moments, again, selection)
    return model


def _rank(path: RidgePath) -> int:
    """Directions that are more than rounding; by NumPy, since JAX would compare in float32 here."""
    return int(np.sum(path.eigenvalues > path.resolution))


def _resolved(path: RidgePath, lam: float, products: Products) -> bool:
    """Whether all directions count, so far above the resolution that half of their digits are left.

    What a Gram matrix of float32 products does not resolve is not in it; its model says what it dropped.
    """
    if products.name != "float64":
        return True
    damped = np.asarray(path.eigenvalues) + lam
    return bool(np.all(path.kept(lam)) and np.all(damped * np.sqrt(products.eps) > path.resolution))


def _dropped(path: RidgePath, lam: float, gram: Any) -> float:
    """Largest share of its squared norm that a feature lost with the directions that were dropped."""
    counts = path.kept(lam)
    if np.all(counts):
        return 0.0
    kept = np.where(counts, path.eigenvalues, 0.0)
    squares = np.diagonal(gram)
    left = np.asarray(path.basis) ** 2 @ kept / np.where(squares > 0, squares, 1.0)
    return float(np.max(np.where(squares > 0, 1 - left, 0.0), initial=0.0))


def _warn(model: RidgeModel, found: ModelResidual, weak: np.ndarray) -> None:
    p = model.features.num_features
    about = f"(rank {model.rank} of {p}, lam = {model.lam:.3g})"
    named = ", ".join(map(str, weak[:8])) + (", ..." if len(weak) > 8 else "")
    warnings.warn(
        f"features {named} lie so near the span of the others that float64 keeps a quarter of the digits of "
        f"their weights at most {about}; use a larger lam, or leave features out"
        if len(weak)
        else f"the weights leave a residual of {found.value:.1e} in their equations, and rounding explains "
        f"{found.tolerance:.0e} {about}; use features, targets and lam of more moderate size",
        ConditioningWarning,
        stacklevel=4,
    )
