"""How predictions are judged: by classes where targets name any, by squared error where they are rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.numerics.linalg import check_finite


def classes_of(y: np.ndarray) -> np.ndarray | None:
    """Class numbers of integer or one-hot (or centred one-hot) targets; None for real targets.

    Example:
        >>> classes_of(np.eye(3)[[2, 0]] - 1 / 3).tolist(), classes_of(np.ones((2, 3)))
        ([2, 0], None)
    """
    if y.ndim == 1:
        return y if np.issubdtype(y.dtype, np.integer) else None
    # A class row holds two values only, one of them once.
    hot = y == y.max(axis=1, keepdims=True)
    two = np.ptp(np.where(hot, y.min(axis=1, keepdims=True), y), axis=1)
    return y.argmax(axis=1) if np.all(hot.sum(axis=1) == 1) and np.all(two == 0) else None


def check_test_targets(y_test: Any, num_test: int, num_outputs: int) -> np.ndarray:
    """Test targets as an array, or an error.

    Args:
        y_test: Classes (t,), or rows (t, k).
        num_test: t.
        num_outputs: k.

    Raises:
        InputError: another shape, or values that are not finite.
    """
    y = np.asarray(y_test)
    if len(y) != num_test or not (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == num_outputs)):
        raise InputError(
            f"y_test has shape {y.shape}, expected ({num_test}, {num_outputs}) or classes ({num_test},)"
        )
    if y.ndim == 2:
        check_finite("y_test", y)
    return y


def accuracy(outputs: np.ndarray, y: np.ndarray) -> float | None:
    """Share of rows whose largest output is the class; None where there are no classes to name.

    Args:
        outputs: Predictions, shape (t, k).
        y: Targets, as for :func:`check_test_targets`.

    Example:
        >>> accuracy(np.eye(2), np.array([0, 0])), accuracy(np.eye(2), np.ones((2, 2)))
        (0.5, None)
    """
    named = classes_of(y)
    if named is None or outputs.shape[1] == 1:
        return None
    return float(np.mean(outputs.argmax(axis=1) == named))


def squared_error(outputs: np.ndarray, y: np.ndarray) -> float | None:
    """Mean squared error; None where the targets are class numbers.

    Args:
        outputs: Predictions, shape (t, k).
        y: Targets, as for :func:`check_test_targets`.
    """
    return float(np.mean((outputs - y) ** 2)) if y.ndim == 2 else None


def agreement(outputs: np.ndarray, others: np.ndarray) -> float | None:
    """Share of rows for which two models name the same class; None for a single output."""
    if outputs.shape[1] == 1:
        return None
    return float(np.mean(outputs.argmax(axis=1) == others.argmax(axis=1)))
