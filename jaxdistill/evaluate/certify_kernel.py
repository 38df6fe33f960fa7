"""The certificate of a kernel set: how far its model is from the full one, in the kernel's own space."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError, KernelError
from jaxdistill.evaluate.comparison import SetCertificate, compare_outputs, cosine, nothing_compared
from jaxdistill.evaluate.full_model import full_residual
from jaxdistill.evaluate.scores import is_real
from jaxdistill.kernels.tiles import TiledKernel, check_inputs, kernel_diagonal, kernel_matrix
from jaxdistill.numerics.contrasts import contrasts, contrasts_of_gram, from_contrasts
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.numerics.placement import device_scope
from jaxdistill.ridge.kernel_fit import KernelModel
from jaxdistill.sets.kernel_set import KernelSet


@final
@dataclass(frozen=True)
class KernelCertificate(SetCertificate):
    """What came back when kernel ridge regression was trained on the distilled set.

    The fields of every certificate (:class:`~jaxdistill.evaluate.comparison.SetCertificate`), and three: in
    the space of the kernel the weights are the function (without its intercept), so the relative weight
    error is ``|f_s - f|_H / |f|_H``, exact and computed from the kernel alone. A set is exact where it is
    within the tolerance, an intercept too, the tolerance is below 1.3e-4, the fourth root of eps (distances
    are differences of squares), and the full model is solved as far as is known.

    Args:
        best_weight_error: The smallest that any labels reach with these points.
        gap_bound: No prediction on a test input differs by more: ``|f - f_s|_H max sqrt(k(x, x)) + |b -
            b_s|``.
        largest_gap: The largest difference on a test input, in the Euclidean norm of outputs.

    Example: see :func:`certify_kernel`, which makes it.

        >>> KernelCertificate.__dataclass_fields__["exact"].type
        'bool'
    """

    best_weight_error: float
    gap_bound: float | None
    largest_gap: float | None


def certify_kernel(
    model: KernelModel | None,
    small: KernelSet,
    x_test: Any | None = None,
    y_test: Any | None = None,
    *,
    progress: bool = False,
) -> KernelCertificate:
    """Retrain on the set alone and measure the distance to the full model in the space of the kernel.

    ``|f - f_s|^2 = |f|^2 - 2 tr(b^T f(Xs)) + tr(b^T K_ss b)`` with ``b = (K_ss + lam_s I)^-1 Ys``: exact,
    from what the set carries; no training data are needed. With an intercept the
    coefficients sum to zero, and the distance is that of the functions without theirs.

    Args:
        model: The full model, for predictions; None where only the set is there.
        small: The distilled set.
        x_test: Test inputs, shape (t, d); default none.
        y_test: Test targets: one-hot rows (t, k) or classes (t,) for accuracies, or real values (t, k).
        progress: Whether to show bars.

    Returns:
        The certificate.

    Raises:
        InputError: shapes that do not fit, or values that are not finite.
        KernelError: ``K_ss + lam_s I`` is not positive definite.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (60, 5)))
        >>> y = jd.one_hot(np.arange(60) % 3, 3)
        >>> model = jd.fit_kernel_ridge(jd.kernels.NTK(), x, y, lam=1.0)
        >>> small = jd.distill_kernel(model, x, y, ipc=2, key=jax.random.key(1))
        >>> found = certify_kernel(model, small, x, y)
        >>> found.exact, found.largest_gap <= found.gap_bound
        (False, True)

    Source: Nguyen, Chen and Lee 2021 for retraining; the distance is the reproducing property.
    """
    if model is not None and (
        model.alpha.shape[1] != small.y.shape[1] or model.squared_norm != small.squared_norm
    ):
        raise InputError("the set was made for another model; certify against the model that was distilled")
    gram = kernel_matrix(small.kernel, small.x, dtype=np.float64)
    level = small.intercept is not None
    wide, best, condition = in_float64(_retrain, gram, small.y, small.values, small.lam, level)
    narrow, gram_float32 = _retrain_float32(small)
    for name, found in (("float64", wide), ("float32", narrow)):
        if not np.all(np.isfinite(found)):
            lowest = float(np.linalg.eigvalsh(gram)[0])
            raise KernelError(
                f"K_ss + lam_s I is not positive definite in {name}: K_ss has an eigenvalue of {lowest:.3g}, "
                f"lam_s is {small.lam:.3g}; use a larger lam_s or fewer points"
            )

    def distance(beta: np.ndarray) -> tuple[float, float]:
        """Squared distance, and what rounding may have changed in it."""
        inner, own = np.sum(beta * small.values), np.sum(beta * (gram @ beta))
        size = np.sum(np.abs(beta) * (np.abs(gram) @ np.abs(beta)))
        slack = 32 * np.finfo(np.float64).eps * float(size + 2 * np.sum(np.abs(beta * small.values)))
        return float(small.squared_norm - 2 * inner + own), slack + small.resolution * small.squared_norm

    squared, resolution = distance(wide)
    relative = [
        np.sqrt(max(part, 0.0) / small.squared_norm)
        for part in (squared, distance(narrow)[0], distance(best)[0] if np.all(np.isfinite(best)) else 0.0)
    ]
    own_norm = np.sqrt(np.sum(wide * (gram @ wide)))
    tolerance = float(np.sqrt(resolution / small.squared_norm))
    original = full_residual(small if model is None else model)
    exact = relative[0] <= tolerance and tolerance <= np.finfo(np.float64).eps ** 0.25
    levels, intercept_error, apart = None, None, 0.0
    if small.intercept is not None:
        levels = [_intercept(small, gram, wide), _intercept(small, gram_float32, narrow)]
        apart = float(np.linalg.norm(levels[0] - small.intercept))
        sizes = np.linalg.norm(small.y.mean(axis=0)) + np.linalg.norm((gram @ wide).mean(axis=0))
        intercept_error = apart / float(sizes)
        exact = exact and intercept_error <= tolerance
    distances = float(squared + resolution), apart
    report = _on_test(model, small, (wide, narrow), levels, distances, x_test, y_test, progress)
    return KernelCertificate(
        relative_weight_error=float(relative[0]),
        relative_weight_error_float32=float(relative[1]),
        best_weight_error=float(relative[2]),
        cosine=cosine(np.sum(wide * small.values), own_norm * np.sqrt(small.squared_norm)),
        tolerance=tolerance,
        condition=float(condition),
        exact=bool(exact and original["solved_full"] is not False),
        size=len(small.x),
        rank=int(small.recipe.get("rank", small.y.shape[1])),
        stored=small.x.dtype.name,
        intercept_error=intercept_error,
        digest=small.digest,
        **original,
        **report,
    )


@partial(jax.jit, static_argnums=4)
def _retrain(gram: Array, y: Array, values: Array, lam: Array, intercept: bool) -> tuple[Array, Array, Array]:
    """Coefficients of the set, those of the projection, and the condition number of the kernel matrix."""
    if intercept:
        seen = contrasts_of_gram(gram), contrasts(y), contrasts(values)
        wide, best, condition = _retrain(*seen, lam, False)
        return from_contrasts(wide), from_contrasts(best), condition
    eigenvalues = jnp.linalg.eigvalsh(gram)
    return _solve(gram, y, lam), _solve(gram, values, 0.0 * lam), eigenvalues[-1] / eigenvalues[0]


def _solve(gram: Array, right: Array, lam: Array) -> Array:
    shifted = gram + lam * jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(shifted), True), right)


@partial(jax.jit, static_argnums=3)
def _coefficients(gram: Array, y: Array, lam: Array, intercept: bool) -> Array:
    if intercept:
        return from_contrasts(_solve(contrasts_of_gram(gram), contrasts(y), lam))
    return _solve(gram, y, lam)


def _retrain_float32(small: KernelSet) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients from a retraining in float32, and its kernel matrix."""
    gram = kernel_matrix(small.kernel, small.x.astype(np.float32))
    with device_scope(np.float32):
        narrow = np.float32(gram), np.float32(small.y), np.float32(small.lam)
        found = _coefficients(*narrow, small.intercept is not None)
        return np.asarray(found, np.float64), gram


def _intercept(small: KernelSet, gram: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """``b_s = mean(Ys) - mean(K_ss b)``."""
    return small.y.mean(axis=0) - gram.astype(np.float64).mean(axis=0) @ beta


def _on_test(
    model: KernelModel | None,
    small: KernelSet,
    coefficients: tuple[np.ndarray, np.ndarray],
    levels: list[np.ndarray] | None,
    distances: tuple[float, float],
    x_test: Any | None,
    y_test: Any | None,
    progress: bool,
) -> dict[str, Any]:
    gaps: dict[str, Any] = dict.fromkeys(("gap_bound", "largest_gap"))
    if x_test is None:
        return gaps | nothing_compared()
    x = check_inputs("x_test", x_test, small.x.shape[1])
    squared, apart = distances
    gaps["gap_bound"] = apart + float(np.sqrt(max(squared, 0.0) * kernel_diagonal(small.kernel, x).max()))
    cross = TiledKernel.of(small.kernel, x, small.x, dtype=np.float64, progress=progress)
    outputs = cross.matmul(np.concatenate(coefficients, axis=1))
    if levels is not None:
        outputs = outputs + np.concatenate(levels)
    f_small, f_narrow = np.split(outputs, 2, axis=1)
    f_full = None if model is None else model.predict(x, dtype=np.float64, progress=progress)
    if f_full is not None:
        gaps["largest_gap"] = float(np.max(np.linalg.norm(f_small - f_full, axis=1)))
    return gaps | compare_outputs(f_full, f_small, f_narrow, y_test, real=is_real(small.recipe))
