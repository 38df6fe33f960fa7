"""How predictions are judged: by classes where targets name any, by squared error where they are rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.numerics.arrays import as_array
from jaxdistill.numerics.linalg import check_finite
from jaxdistill.ridge.targets import TargetKind, detect_targets


def classes_of(labels: np.ndarray) -> np.ndarray | None:
    """Class numbers of the labels of a set, one-hot, centred or scaled; None for any other rows.

    Class rows hold one value in one place, another elsewhere, and both are the same in every row.

    Example:
        >>> classes_of(np.eye(3)[[2, 0]] - 1 / 3).tolist(), classes_of(np.array([[1.0, 2.0], [5.0, 3.0]]))
        ([2, 0], None)
    """
    named = labels.argmax(axis=1)
    cold = labels[0].min()
    rows = np.where(np.eye(labels.shape[1], dtype=bool)[named], labels.max(), cold)
    return named if labels.max() > cold and np.all(labels == rows) else None


def is_real(recipe: dict[str, Any]) -> bool:
    """Whether a set was made for a model of real-valued targets, which has no classes to agree on."""
    return recipe.get("targets") == TargetKind.REAL.value


class TestTargets(NamedTuple):
    """Test targets, as far as they are there.

    Args:
        rows: Shape (t, k), float64: what the squared error is taken to; None for class numbers.
        classes: Shape (t,): what the accuracy is counted by; None for real values.
    """

    __test__ = False  # for pytest, which collects what is called so

    rows: np.ndarray | None
    classes: np.ndarray | None


def read_test_targets(y_test: Any, num_test: int, num_outputs: int, *, real: bool) -> TestTargets:
    """Tell class numbers, class rows and real values, or say what the targets are.

    Args:
        y_test: Class numbers (t,) of 0..k-1; rows (t, k), one-hot (also of integers or truth values) or real;
            of a single output, its values (t,).
        num_test: t.
        num_outputs: k.
        real: Whether the model was trained on real values: then rows are real values too.

    Raises:
        InputError: another shape; labels that are text, truth values, fractions or outside 0..k-1, of which
            the first is named; values that are not finite.

    Example:
        >>> read_test_targets(np.eye(2)[[1, 0]], 2, 2, real=False).classes.tolist()
        [1, 0]
        >>> read_test_targets([0, 5], 2, 2, real=False)
        Traceback (most recent call last):
        jaxdistill.errors.InputError: y_test[1] is 5, outside 0..1; number the classes as the model's outputs
    """
    y = as_array("y_test", y_test)
    if y.dtype.kind not in "biuf":
        told = repr(y.flat[0].item()) if y.size and y.dtype.kind in "US" else f"of type {y.dtype}"
        raise InputError(f"y_test is {told}; number the classes 0..{num_outputs - 1}, or give real values")
    if y.ndim == 1 and len(y) == num_test and num_outputs == 1 and y.dtype.kind in "iuf":
        y = y[:, None]  # the values of a single output
    if len(np.atleast_1d(y)) != num_test or y.ndim not in (1, 2) or y.shape[1:] not in ((), (num_outputs,)):
        raise InputError(
            f"y_test has shape {y.shape}, expected ({num_test}, {num_outputs}) or classes ({num_test},)"
        )
    if y.ndim == 1:
        return TestTargets(None, _class_numbers(y, num_outputs))
    rows = y.astype(np.float64)
    check_finite("y_test", rows)
    if num_outputs > 1 and y.dtype.kind == "b":
        wrong = np.flatnonzero(y.sum(axis=1) != 1)
        if wrong.size:
            raise InputError(
                f"y_test[{wrong[0]}] holds {y[wrong[0]].sum()} true values; a one-hot row holds one"
            )
    named = not real and num_outputs > 1 and detect_targets(rows) is not TargetKind.REAL
    return TestTargets(rows, rows.argmax(axis=1) if named else None)


def _class_numbers(y: np.ndarray, num_classes: int) -> np.ndarray:
    """Classes (t,), or an error that names the first that is none."""
    if y.dtype.kind not in "iu":
        what = "a truth value" if y.dtype.kind == "b" else "no integer"
        raise InputError(
            f"y_test[0] is {y[0]}, {what}; give classes as integers 0..{num_classes - 1}, or rows "
            f"({len(y)}, {num_classes})"
        )
    outside = np.flatnonzero((y < 0) | (y >= num_classes))
    if outside.size:
        raise InputError(
            f"y_test[{outside[0]}] is {y[outside[0]]}, outside 0..{num_classes - 1}; number the classes as "
            "the model's outputs"
        )
    return y


def accuracy(outputs: np.ndarray, targets: TestTargets) -> float | None:
    """Share of rows whose largest output is the class; None where there are no classes to name.

    Args:
        outputs: Predictions, shape (t, k).
        targets: What they should be.

    Example:
        >>> accuracy(np.eye(2), read_test_targets([0, 0], 2, 2, real=False))
        0.5
    """
    if targets.classes is None:
        return None
    return float(np.mean(outputs.argmax(axis=1) == targets.classes))


def squared_error(outputs: np.ndarray, targets: TestTargets) -> float | None:
    """Mean squared error; None where the targets are class numbers.

    Args:
        outputs: Predictions, shape (t, k).
        targets: What they should be.
    """
    return None if targets.rows is None else float(np.mean((outputs - targets.rows) ** 2))


def agreement(outputs: np.ndarray, others: np.ndarray, *, real: bool) -> float | None:
    """Share of rows for which two models name the same class; None for real values and a single output.

    Args:
        outputs: Predictions, shape (t, k).
        others: Those of another model.
        real: Whether they are real values.
    """
    if real or outputs.shape[1] == 1:
        return None
    return float(np.mean(outputs.argmax(axis=1) == others.argmax(axis=1)))
