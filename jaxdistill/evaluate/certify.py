"""The certificate: retrain from the distilled set, compare, report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol, final, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.distill.exact import retrain_with_values
from jaxdistill.errors import InputError
from jaxdistill.evaluate.certify_kernel import KernelCertificate, certify_kernel
from jaxdistill.evaluate.comparison import compare_outputs, nothing_compared
from jaxdistill.evaluate.full_model import full_residual
from jaxdistill.evaluate.scores import is_real
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.linalg import check_squares, in_float64
from jaxdistill.numerics.placement import device_scope
from jaxdistill.ridge.kernel_fit import KernelModel
from jaxdistill.ridge.model import predict
from jaxdistill.sets.artifact import DistilledSet
from jaxdistill.sets.kernel_set import KernelSet


class HasWeights(Protocol):
    """Anything that predicts with ``phi(x) B``: a ridge model, or the weights kept in a file."""

    @property
    def features(self) -> AbstractFeatureMap:
        """Feature map phi."""
        ...

    @property
    def weights(self) -> Any:
        """B, shape (p, k)."""
        ...


@final
@dataclass(frozen=True)
class Certificate:
    """What came back when ridge regression was trained on the distilled set.

    Fields without suffix are of a retraining in float64 from the inputs as they are stored; those
    with ``_float32`` of one wholly in float32, features included.

    Args:
        relative_weight_error: ``|B_s - B| / |B|`` (Frobenius).
        relative_weight_error_float32: The same in float32.
        cosine: Cosine of the angle between B_s and B.
        tolerance: Largest relative error that rounding explains: 100 eps of the stored inputs, or of the
            features where those are computed in less, times what the feature map makes of rounding (of the
            inputs, or of its own in float32, whichever is more), times the condition number of the features;
            at most sqrt(eps).
        condition: Condition number of the distilled features.
        exact: Whether the error is within the tolerance, m reaches the rank of B, and the full model is the
            ridge solution as far as is known (``solved_full`` is not False).
        size: m.
        rank: Numerical rank of B: the number of examples that exactness needs.
        stored: Type of the stored inputs.
        precision: What the features are computed in: "float64", or "float32" where the map is made so, and
            then exact means to float32's rounding.
        agreement: Share of test inputs on which the two models name the same class; None for real values.
        agreement_float32: The same for the model retrained in float32.
        accuracy_full: Test accuracy of the full model, in [0, 1].
        accuracy_distilled: Test accuracy of the retrained model.
        accuracy_distilled_float32: Test accuracy of the model retrained in float32.
        prediction_error: Root mean square difference of the predictions, relative to the full model's.
        squared_error_full: Mean squared error of the full model on the test targets.
        squared_error_distilled: Mean squared error of the retrained model.
        num_test: Number of test examples; 0 where none were given, and all of the above from ``agreement``
            on are None.
        residual_full: Residual of the full model in its own normal equations, relative and the worst of all
            features (:func:`~jaxdistill.ridge.residual.model_residual`); None where it has no training data.
        residual_tolerance: Largest such residual that rounding explains.
        solved_full: Whether the full model is the ridge solution within rounding.
        rank_full: Numerical rank of the features.
        dropped_full: Largest share of its squared norm that a feature lost to that rank.
        digest: Fingerprint of the set that was certified.

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

    relative_weight_error: float
    relative_weight_error_float32: float
    cosine: float
    tolerance: float
    condition: float
    exact: bool
    size: int
    rank: int
    stored: str
    precision: str
    agreement: float | None
    agreement_float32: float | None
    accuracy_full: float | None
    accuracy_distilled: float | None
    accuracy_distilled_float32: float | None
    prediction_error: float | None
    squared_error_full: float | None
    squared_error_distilled: float | None
    num_test: int
    residual_full: float | None
    residual_tolerance: float | None
    solved_full: bool | None
    rank_full: int | None
    dropped_full: float | None
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """All fields, in types that JSON keeps."""
        return asdict(self)


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
    decomposition; nothing that the construction knew is used. The full model is judged too: how well its
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
    check_squares("the model's weights", full)
    # Changes of random sign: what rounding of the inputs looks like. Drawn here, since the program that
    # draws them would take longer to compile than all the rest.
    signs = np.random.default_rng(0).choice((-1.0, 1.0), small.x.shape)
    wide, condition, amplification, phi = in_float64(
        _retrain, small.features, small.x, signs, small.y, small.lam
    )
    narrow, phi_float32 = _retrain_float32(small, signs)
    rank = int(np.linalg.matrix_rank(full))
    error = _relative(wide, full)
    precision = small.features.precision
    eps = float(max(np.finfo(small.x.dtype).eps, np.finfo(precision).eps))
    # A map whose layers cancel rounds more than its inputs do; float32 beside float64 shows by how much.
    own = _relative(phi_float32, phi) / float(np.finfo(np.float32).eps)
    growth = max(float(amplification), own) if np.isfinite(own) else float(amplification)
    tolerance = min(100 * eps * float(condition) * growth, math.sqrt(eps))
    original = full_residual(model)
    tests = _compare_on_test(small, full, wide, narrow, x_test, y_test, progress)
    return Certificate(
        relative_weight_error=error,
        relative_weight_error_float32=_relative(narrow, full),
        cosine=float(np.vdot(wide, full) / (np.linalg.norm(wide) * np.linalg.norm(full))),
        tolerance=tolerance,
        condition=float(condition),
        exact=bool(error <= tolerance and len(small.x) >= rank and original["solved_full"] is not False),
        size=len(small.x),
        rank=rank,
        stored=small.x.dtype.name,
        precision=precision,
        digest=small.digest,
        **original,
        **tests,
    )


@jax.jit
def _retrain(
    features: AbstractFeatureMap, x: Array, signs: Array, y: Array, lam: Array
) -> tuple[Array, Array, Array, Array]:
    """Weights, condition number of the features, the growth of a relative change of inputs, the features."""
    phi, response = jax.jvp(features, (x,), (x * signs,))
    weights, s = retrain_with_values(phi, y, lam)
    growth = jnp.linalg.norm(response) / jnp.linalg.norm(phi)
    return weights, s[0] / jnp.min(jnp.where(s > 0, s, s[0])), jnp.maximum(growth, 1.0), phi


def _retrain_float32(small: DistilledSet, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # What float32 cannot hold becomes infinite, and shows as an error of the weights retrained from it.
    with device_scope(np.float32), np.errstate(over="ignore"):
        narrow = [np.float32(a) for a in (small.x, signs, small.y, small.lam)]
        weights, _, _, phi = _retrain(small.features, *narrow)
        return np.asarray(weights, np.float64), np.asarray(phi, np.float64)


def _relative(weights: np.ndarray, full: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):  # float32 may not have held them
        return float(np.linalg.norm(weights - full) / np.linalg.norm(full))


def _compare_on_test(
    small: DistilledSet,
    full: np.ndarray,
    wide: np.ndarray,
    narrow: np.ndarray,
    x_test: Any | None,
    y_test: Any | None,
    progress: bool,
) -> dict[str, Any]:
    if x_test is None:
        return nothing_compared()
    features = small.features
    x = as_floats("x_test", x_test)
    if x.ndim != 2 or x.shape[1] != features.num_inputs or len(x) == 0:
        raise InputError(f"x_test has shape {x.shape}, expected (t, {features.num_inputs}) with t > 0")
    # One pass over the test features serves all three models.
    outputs = predict(features, np.hstack([full, wide, narrow]), x, progress=progress)
    f_full, f_wide, f_narrow = np.split(outputs, 3, axis=1)
    return compare_outputs(f_full, f_wide, f_narrow, y_test, real=is_real(small.recipe))
