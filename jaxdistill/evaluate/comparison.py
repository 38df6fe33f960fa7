"""Three models on the same test inputs: the full one, the one trained on a set, and that in float32."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdistill.evaluate.scores import accuracy, agreement, read_test_targets, squared_error


@dataclass(frozen=True)
class SetCertificate:
    """What came back when ridge regression was trained on a distilled set: what every certificate says.

    Fields without suffix are of a retraining in float64 from the inputs as they are stored; those
    with ``_float32`` of one wholly in float32, features or kernel included.

    Args:
        relative_weight_error: ``|B_s - B| / |B|`` (Frobenius); of a kernel ``|f_s - f|_H / |f|_H``.
        relative_weight_error_float32: The same in float32.
        cosine: Cosine of the angle between B_s and B, or f_s and f; 0 of zero weights.
        tolerance: Largest relative error that rounding explains.
        condition: Condition number of the distilled features, or of ``K_ss``.
        exact: Whether the full model came back, as far as rounding tells.
        size: m.
        rank: Numerical rank of B, or of the coefficients of f.
        stored: Type of the stored inputs.
        intercept_error: ``|b_s - b|``, relative to the sizes of what b is the difference of, the means of the
            labels and of the predictions without b; None of models without an intercept.
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
            features or outputs; None where it has no training data.
        residual_tolerance: Largest such residual that rounding explains.
        solved_full: Whether the full model is the ridge solution within rounding.
        rank_full: Numerical rank of the features; None of a kernel, which has none.
        dropped_full: Largest share of its squared norm that a feature lost to that rank.
        digest: Fingerprint of the set that was certified.

    Example:
        >>> SetCertificate.__dataclass_fields__["exact"].type
        'bool'
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
    intercept_error: float | None
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


_FIELDS = (
    *("agreement", "agreement_float32", "accuracy_full", "accuracy_distilled", "accuracy_distilled_float32"),
    *("prediction_error", "squared_error_full", "squared_error_distilled"),
)


def cosine(product: Any, norms: Any) -> float:
    """Cosine of an angle, from an inner product and the product of the norms; 0 where a norm is zero."""
    return float(product / norms) if norms else 0.0


def nothing_compared() -> dict[str, Any]:
    """The fields of a certificate that need test inputs, where there are none."""
    return dict.fromkeys(_FIELDS) | {"num_test": 0}


def compare_outputs(
    full: Float[np.ndarray, "t k"] | None,
    wide: Float[np.ndarray, "t k"],
    narrow: Float[np.ndarray, "t k"],
    y_test: Any | None,
    *,
    real: bool,
) -> dict[str, Any]:
    """The fields of a certificate that need test inputs.

    Args:
        full: Predictions of the full model, shape (t, k); None where only the set is there.
        wide: Predictions of the model trained on the set in float64.
        narrow: Predictions of the model trained on the set in float32.
        y_test: Test targets, as :func:`~jaxdistill.evaluate.scores.read_test_targets` reads them, or None.
        real: Whether the models are for real values, which name no classes.

    Raises:
        InputError: test targets that do not fit.

    Example:
        >>> found = compare_outputs(np.eye(2), np.eye(2), np.eye(2), np.array([0, 0]), real=False)
        >>> found["agreement"], found["accuracy_full"], found["num_test"]
        (1.0, 0.5, 2)
    """
    report = nothing_compared() | {"num_test": len(wide)}
    if full is not None:
        with np.errstate(invalid="ignore", over="ignore"):  # float32 may not have held the weights
            report["prediction_error"] = float(np.linalg.norm(wide - full) / np.linalg.norm(full))
        report["agreement"] = agreement(wide, full, real=real)
        report["agreement_float32"] = agreement(narrow, full, real=real)
    if y_test is None:
        return report
    y = read_test_targets(y_test, len(wide), wide.shape[1], real=real)
    report["squared_error_distilled"] = squared_error(wide, y)
    report["accuracy_distilled"] = accuracy(wide, y)
    report["accuracy_distilled_float32"] = accuracy(narrow, y)
    if full is not None:
        report["squared_error_full"] = squared_error(full, y)
        report["accuracy_full"] = accuracy(full, y)
    return report
