"""Distilled sets for kernels: support points without a step of descent, labels in closed form."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.distill.reference import balanced_rows
from jaxdistill.errors import InputError, KernelError
from jaxdistill.kernels.pivoted import pivoted_cholesky
from jaxdistill.kernels.tiles import TiledKernel, check_inputs, kernel_matrix
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.contrasts import contrasts, contrasts_of_gram, from_contrasts
from jaxdistill.numerics.keys import checked_key, host_generator
from jaxdistill.numerics.linalg import in_float64, matmul, reciprocal
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.ridge.fit import check_penalty
from jaxdistill.ridge.kernel_fit import KernelModel
from jaxdistill.ridge.residual import recorded
from jaxdistill.ridge.source import NO_CLASSES
from jaxdistill.ridge.targets import TargetKind
from jaxdistill.sets.kernel_set import KernelSet

SUPPORTS = ("balanced", "pivoted", "kmeans")
LABELS = ("solved", "projected", "hard")

# Hard labels have no natural penalty; this one, relative to tr(K_ss)/m, only keeps the system regular.
_HARD_PENALTY = 1e-6


@moving_arrays()
def distill_kernel(
    model: KernelModel,
    x: Any,
    y: Any,
    *,
    ipc: int | None = None,
    size: int | None = None,
    support: str = "balanced",
    labels: str = "solved",
    lam_s: float | None = None,
    dtype: Any = None,
    key: Array,
    progress: bool = False,
) -> KernelSet:
    """Choose m examples and labels whose kernel ridge model is near the full one, or predicts as it does.

    No small set is exact for a kernel without finitely many features, unless the model lies in the span of
    its points; :func:`~jaxdistill.certify` says how far it is.

    Args:
        model: The full model f.
        x: Real inputs to choose from, and to predict with solved labels, shape (n, d); they may be more
            than the model was trained on.
        y: Their targets, shape (n, k).
        ipc: Examples per class; or
        size: examples in all, m. Give one of the two.
        support: "balanced", random examples of every class; "pivoted", randomly pivoted Cholesky, which
            takes points that the kernel cannot yet explain; "kmeans", centres of each class.
        labels: "solved", those whose model has the least squared error on all of (x, y): Label Solve;
            "projected", those whose model is the projection of f on the points, the nearest there is in the
            kernel's space; "hard", class rows.
        lam_s: Penalty to retrain with. Default: ``tr(K_ss) / m`` for solved and projected labels, with which
            retraining is immune to rounding; 1e-6 of that for hard ones.
        dtype: Type in which the inputs are stored; default that of x.
        key: Random key.
        progress: Whether to show bars.

    Returns:
        The set; ``recipe`` says how it was made.

    Raises:
        InputError: shapes, names or a budget that make no sense, or too few real examples.
        PenaltyError: a penalty that is negative or not finite.
        KernelError: points that the kernel cannot tell apart.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (60, 5)))
        >>> y = jd.one_hot(np.arange(60) % 3, 3)
        >>> model = jd.fit_kernel_ridge(jd.kernels.NTK(), x, y, lam=1.0)
        >>> everything = jd.distill_kernel(model, x, y, size=60, labels="projected", key=jax.random.key(1))
        >>> jd.certify(model, everything).exact  # the span of all points holds the model
        True

    Source: Nguyen, Chen and Lee 2021 (Label Solve); Chen, Epperly, Tropp and Webber 2022 (pivots); the
    projection is elementary.
    """
    check_choice("support", support, SUPPORTS)
    check_choice("labels", labels, LABELS)
    checked_key(key)
    x = check_inputs("x", x, model.x.shape[1])
    y = as_floats("y", y, cure=NO_CLASSES).astype(np.float64)
    k = model.alpha.shape[1]
    if y.shape != (len(x), k):
        raise InputError(f"y has shape {y.shape}, expected ({len(x)}, {k}): one row of targets an example")
    classes = model.target_kind is not TargetKind.REAL
    size = _size(ipc, size, k, classes)
    if labels == "hard" and not classes:
        raise InputError("real-valued targets have no hard labels; use labels='solved' or 'projected'")
    if model.has_intercept and size < 2:
        raise InputError("one example fixes an intercept and nothing else; use size >= 2")
    points, rows = _support(model, x, y, size, support, classes, key, progress)
    stored = points.astype(x.dtype if dtype is None else np.dtype(dtype))
    gram = kernel_matrix(model.kernel, stored, dtype=np.float64)
    values = model.predict(stored, dtype=np.float64, progress=progress)
    if model.intercept is not None:
        values = values - model.intercept
    level = model.has_intercept
    scale = float(np.trace(gram) - level * gram.sum() / size) / (size - level)
    relative = _HARD_PENALTY if labels == "hard" else 1.0
    lam = relative * scale if lam_s is None else check_penalty("lam_s", lam_s)
    if labels == "hard":
        found = rows
    else:
        middle = model.intercept
        if labels == "projected":
            beta = in_float64(_projected, gram, values, level)
        else:
            tiles = TiledKernel.of(model.kernel, x, stored.astype(x.dtype), progress=progress)
            if model.intercept is None:
                beta = in_float64(_least_squares, *tiles.normal_equations(y))
            else:
                beta, middle = _with_intercept(tiles, y)
        if not np.all(np.isfinite(beta)):
            raise KernelError(
                f"the kernel cannot tell the {size} points apart; ask for fewer, or use support='pivoted'"
            )
        found = gram @ beta + lam * beta + (0.0 if middle is None else middle)
    return KernelSet(
        x=stored,
        y=found,
        lam=lam,
        kernel=model.kernel,
        values=values,
        squared_norm=model.squared_norm,
        resolution=model.resolution,
        intercept=model.intercept,
        recipe={
            "construction": support,
            "labels": labels,
            "targets": model.target_kind.value,
            "rank": int(np.linalg.matrix_rank(model.alpha)),
            "lam": float(model.lam),
            "lam_s": "auto" if lam_s is None else lam,
            "num_train": len(model.x),
            "num_targets": len(x),
            "full_model": recorded(model.solution),
        },
    )


def _size(ipc: int | None, size: int | None, k: int, classes: bool) -> int:
    if (ipc is None) == (size is None):
        raise InputError("give either ipc (images per class) or size (examples in all)")
    if ipc is not None and not classes:
        raise InputError("real-valued targets have no classes; give size in place of ipc")
    count = size if ipc is None else ipc
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise InputError(f"{'size' if ipc is None else 'ipc'} is {count!r}; it must be a whole number >= 1")
    return int(count) if ipc is None else int(count) * k


def _support(
    model: KernelModel,
    x: np.ndarray,
    y: np.ndarray,
    size: int,
    support: str,
    classes: bool,
    key: Array,
    progress: bool,
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "m k"]]:
    """Points, and targets of their class."""
    if support == "pivoted":
        pivots = pivoted_cholesky(model.kernel, x, min(size, len(x)), key=key, progress=progress).pivots
        if len(pivots) < size:
            raise KernelError(
                f"{len(pivots)} points explain the kernel of all {len(x)}; ask for no more, not for {size}"
            )
        return x[pivots], y[pivots]
    chosen = balanced_rows(y, size, classes, key)
    if support == "balanced":
        return x[chosen], y[chosen]
    from sklearn.cluster import KMeans  # heavy, and needed here only

    generator = host_generator(key)
    named = y.argmax(axis=1) if classes else np.zeros(len(y), int)
    points = np.empty((size, x.shape[1]), np.float64)
    for c in np.unique(named[chosen]):
        slots = np.flatnonzero(named[chosen] == c)
        means = KMeans(len(slots), n_init=1, random_state=int(generator.integers(2**31)))  # pyright: ignore[reportArgumentType]
        points[slots] = means.fit(x[named == c]).cluster_centers_
    return points, y[chosen]


@partial(jax.jit, static_argnums=2)
def _projected(
    gram: Float[Array, "m m"], values: Float[Array, "m k"], intercept: bool
) -> Float[Array, "m k"]:
    """``K_ss^-1 f(Xs)``, of sum zero with an intercept: NaN where the points are dependent."""
    if intercept:
        return from_contrasts(_projected(contrasts_of_gram(gram), contrasts(values), False))
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(gram), True), values)


@jax.jit
def _least_squares(system: Float[Array, "m m"], right: Float[Array, "m k"]) -> Float[Array, "m k"]:
    """Coefficients of least norm among those of least error, ``(K_Xs^T K_Xs)^+ K_Xs^T Y``."""
    values, vectors = jnp.linalg.eigh(system)
    kept = values > system.shape[0] * jnp.finfo(system.dtype).eps * values[-1]
    return matmul(vectors, reciprocal(values, kept)[:, None] * matmul(vectors.T, right))


def _with_intercept(tiles: TiledKernel, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of sum zero, and the intercept, of least squared error: from one pass, means included."""
    n, ones = len(y), np.ones((len(y), 1))
    system, right = tiles.normal_equations(np.hstack([y, ones]))
    right, sums = right[:, :-1], right[:, -1:]
    middle, target = sums / n, y.mean(axis=0)
    told = system - sums @ middle.T, right - sums * target
    beta = in_float64(_least_squares_of_contrasts, *told)
    return beta, target - middle[:, 0] @ beta


@jax.jit
def _least_squares_of_contrasts(system: Array, right: Array) -> Array:
    return from_contrasts(_least_squares(contrasts_of_gram(system), contrasts(right)))
