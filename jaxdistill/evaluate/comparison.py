"""Three models on the same test inputs: the full one, the one trained on a set, and that in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdistill.evaluate.scores import accuracy, agreement, read_test_targets, squared_error

_FIELDS = (
    *("agreement", "agreement_float32", "accuracy_full", "accuracy_distilled", "accuracy_distilled_float32"),
    *("prediction_error", "squared_error_full", "squared_error_distilled"),
)


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
