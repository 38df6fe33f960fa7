"""The certificate: retrain from the distilled set, compare, report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, final, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.data.pixels import Pixels
from jaxdistill.distill.exact import intercept_of, retrain_with_values
from jaxdistill.errors import InputError
from jaxdistill.evaluate.certify_kernel import KernelCertificate, certify_kernel
from jaxdistill.evaluate.comparison import SetCertificate, compare_outputs, cosine, nothing_compared
from jaxdistill.evaluate.full_model import full_residual
from jaxdistill.evaluate.scores import is_real
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.contrasts import contrasts
from jaxdistill.numerics.linalg import check_squares, in_float64
from jaxdistill.numerics.placement import device_scope, moving_arrays
from jaxdistill.ridge.kernel_fit import KernelModel
from jaxdistill.ridge.model import RidgeModel, predict
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.kernel_set import KernelSet

# A change of the predictions that nobody sees, whatever rounding explains.
_SEEN = 0.1 * math.sqrt(float(np.finfo(np.float64).eps))


class HasWeights(Protocol):
    """Anything that predicts with ``phi(x) B + b``: a ridge model, or the weights kept in a file."""

    @property
    def features(self) -> AbstractFeatureMap:
        """Feature map phi."""
        ...

    @property
    def weights(self) -> Any:
        """B, shape (p, k)."""
        ...

    @property
    def intercept(self) -> Any | None:
        """b, shape (k,), or None."""
        ...


@final
@dataclass(frozen=True)
class Certificate(SetCertificate):
    """What came back when ridge regression was trained on a distilled set of a feature map.

    The fields of every certificate (:class:`~jaxdistill.evaluate.comparison.SetCertificate`), and two.
    Rounding explains 100 eps of the stored inputs, or of the features where those are computed in less,
    times what the feature map makes of rounding (of the inputs, or of its own in float32, whichever is
    more), times the condition number of the features; at most sqrt(eps). A set is exact where weights and
    intercept are within that, the training error too (or within 1.5e-9, a tenth of half the digits of
    float64), m reaches the rank of B (and one more for an intercept), and the full model is the ridge
    solution as far as is known (``solved_full`` is not False).

    Args:
        precision: What the features are computed in: "float64", or "float32" where the map is made so, and
            then exact means to float32's rounding.
        training_error: Distance from the full model in what ridge regression minimises on the training data
            (:meth:`~jaxdistill.RidgeModel.distance`): the change of its predictions there. Of a saved set
            what its certificate records; None where there were no data.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (40, 5)))
        >>> y = jd.one_hot(np.arange(40) % 3, 3)
        >>> model = jd.fit_ridge(jd.features.Linear(5), x, y, lam=1.0)
        >>> small = jd.distill(model, size=2, key=jax.random.key(1))  # one fewer than the rank
        >>> certificate = jd.certify(model, small)
        >>> certificate.exact, certificate.size, certificate.rank
        (False, 2, 3)
    """

    precision: str
    training_error: float | None


@overload
def certify(
    model: HasWeights,
    small: DistilledSet,
    x_test: Any | None = None,
    y_test: Any | None = None,
    *,
    progress: bool = False,
) -> Certificate: ...


@overload
def certify(
    model: KernelModel | KernelSet,
    small: KernelSet,
    x_test: Any | None = None,
    y_test: Any | None = None,
    *,
    progress: bool = False,
) -> KernelCertificate: ...


@moving_arrays()
def certify(
    model: Any,
    small: Any,
    x_test: Any | None = None,
    y_test: Any | None = None,
    *,
    progress: bool = False,
) -> Certificate | KernelCertificate:
    """Retrain on the distilled set alone and compare with the full model.

    ``B_s = Phis^T (Phis Phis^T + lam_s I)^-1 Ys`` from ``small.x`` as stored, by the singular value
    decomposition, or where the model has an intercept the same of centred parts with ``b_s = mean(Ys) -
    mean(Phis) B_s``; nothing that the construction knew is used. The full model is judged too: how well its
    weights solve the ridge problem that they are said to solve, from its moments, or as the file tells.

    Args:
        model: The full model, or a loaded :class:`~jaxdistill.DistilledSet`, which carries its weights.
        small: The distilled set; one of a kernel is certified by :mod:`jaxdistill.evaluate.certify_kernel`.
        x_test: Test inputs, shape (t, d), as the model sees them; default none.
        y_test: Test targets, shape (t, k): one-hot rows or classes (t,) for accuracies, real values.
        progress: Whether to show a bar.

    Returns:
        The certificate.

    Raises:
        InputError: shapes that do not fit, or values that are not finite.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (40, 5)))
        >>> y = jd.one_hot(np.arange(40) % 3, 3)
        >>> model = jd.fit_ridge(jd.features.Linear(5), x, y, lam=1.0)
        >>> cert = jd.certify(model, jd.distill(model, ipc=1, key=jax.random.key(1)), x, y)
        >>> cert.exact, cert.relative_weight_error < 1e-12, cert.agreement
        (True, True, 1.0)

    Source: CHW, section 6 (retraining); the rest is arithmetic.
    """
    if isinstance(small, KernelSet):
        full_model = model if isinstance(model, KernelModel) else None
        return certify_kernel(full_model, small, x_test, y_test, progress=progress)
    full = np.asarray(model.weights, np.float64)
    if full.shape != small.weights.shape:
        raise InputError(
            f"the model's weights have shape {full.shape}, the set was made for "
            f"{small.weights.shape}; certify against the model that was distilled"
        )
    if (model.intercept is None) != (small.intercept is None):
        raise InputError(
            "of model and set one has an intercept and the other has none; certify against the model that "
            "was distilled"
        )
    level = None if model.intercept is None else np.asarray(model.intercept, np.float64)
    check_squares("the model's weights", full)
    # Changes of random sign: what rounding of the inputs looks like. Drawn here, since the program that
    # draws them would take longer to compile than all the rest.
    signs = np.random.default_rng(0).choice((-1.0, 1.0), small.x.shape)
    told = small.features, small.x, signs, small.y, small.lam, level is not None
    wide, b_wide, condition, amplification, phi = in_float64(_retrain, *told)
    narrow, b_narrow, phi_float32 = _retrain_float32(small, signs)
    rank = int(np.linalg.matrix_rank(full))
    error = _relative(wide, full)
    precision = small.features.precision
    eps = float(max(np.finfo(small.x.dtype).eps, np.finfo(precision).eps))
    # A map whose layers cancel rounds more than its inputs do; float32 beside float64 shows by how much.
    own = _relative(phi_float32, phi) / float(np.finfo(np.float32).eps)
    growth = max(float(amplification), own) if np.isfinite(own) else float(amplification)
    tolerance = min(100 * eps * float(condition) * growth, math.sqrt(eps))
    errors, needed = [error], rank
    intercept_error = None
    if level is not None:
        target = small.y.mean(axis=0)
        # mean(Phis) B is what the mean of the labels has beside b.
        sizes = np.linalg.norm(target) + np.linalg.norm(target - b_wide)
        intercept_error = float(np.linalg.norm(b_wide - level) / sizes)
        errors.append(intercept_error)
        needed += 1
    seen = _training_error(model, small, wide, b_wide)
    within = max(errors) <= tolerance and (seen is None or seen <= max(tolerance, _SEEN))
    original = full_residual(model)
    models = (full, level), (wide, b_wide), (narrow, b_narrow)
    tests = _compare_on_test(small, models, x_test, y_test, progress)
    return Certificate(
        relative_weight_error=error,
        relative_weight_error_float32=_relative(narrow, full),
        cosine=cosine(np.vdot(wide, full), np.linalg.norm(wide) * np.linalg.norm(full)),
        tolerance=tolerance,
        condition=float(condition),
        exact=bool(within and len(small.x) >= needed and original["solved_full"] is not False),
        size=len(small.x),
        rank=rank,
        stored=small.x.dtype.name,
        intercept_error=intercept_error,
        precision=precision,
        training_error=seen,
        digest=small.digest,
        **original,
        **tests,
    )


def _training_error(model: Any, small: DistilledSet, weights: np.ndarray, level: np.ndarray) -> float | None:
    """From the moments of the model; of a saved set what was measured while they were there."""
    if isinstance(model, RidgeModel):
        return model.distance(weights, level)
    told = small.certificate
    return None if model is not small or told is None else told.get("training_error")


@partial(jax.jit, static_argnums=5)
def _retrain(
    features: AbstractFeatureMap, x: Array, signs: Array, y: Array, lam: Array, intercept: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """B_s and b_s, the features' condition, the growth of a relative change of inputs, the features seen."""
    phi, response = jax.jvp(features, (x,), (x * signs,))
    level = jnp.zeros(y.shape[1], y.dtype)
    seen, labels = phi, y
    if intercept:  # what rounding changes of features far from zero is much of what is left about their mean
        seen, labels, response = contrasts(phi), contrasts(y), contrasts(response)
    weights, s = retrain_with_values(seen, labels, lam)
    if intercept:
        level = intercept_of(phi, y, weights)
    growth = jnp.linalg.norm(response) / jnp.linalg.norm(seen)
    return weights, level, s[0] / jnp.min(jnp.where(s > 0, s, s[0])), jnp.maximum(growth, 1.0), seen


def _retrain_float32(small: DistilledSet, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # What float32 cannot hold becomes infinite, and shows as an error of the weights retrained from it.
    with device_scope(np.float32), np.errstate(over="ignore"):
        narrow = [np.float32(a) for a in (small.x, signs, small.y, small.lam)]
        weights, level, _, _, phi = _retrain(small.features, *narrow, small.intercept is not None)
        return np.asarray(weights, np.float64), np.asarray(level, np.float64), np.asarray(phi, np.float64)


def _relative(weights: np.ndarray, full: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):  # float32 may not have held them
        return float(np.linalg.norm(weights - full) / np.linalg.norm(full))


def _compare_on_test(
    small: DistilledSet,
    models: tuple[tuple[np.ndarray, np.ndarray | None], ...],
    x_test: Any | None,
    y_test: Any | None,
    progress: bool,
) -> dict[str, Any]:
    """Weights and intercepts of the full model, of the retrained one and of that in float32, on test data."""
    if x_test is None:
        return nothing_compared()
    features = small.features
    x = x_test if isinstance(x_test, Pixels) else as_floats("x_test", x_test)
    if x.ndim != 2 or x.shape[1] != features.num_inputs or len(x) == 0:
        raise InputError(f"x_test has shape {x.shape}, expected (t, {features.num_inputs}) with t > 0")
    weights, levels = zip(*models, strict=True)
    intercept = None if levels[0] is None else np.concatenate(levels)
    # One pass over the test features serves all three models.
    outputs = predict(features, np.hstack(weights), x, intercept=intercept, progress=progress)
    f_full, f_wide, f_narrow = np.split(outputs, 3, axis=1)
    return compare_outputs(f_full, f_wide, f_narrow, y_test, real=is_real(small.recipe))
