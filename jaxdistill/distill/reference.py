"""Real examples to start from."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from jaxdistill.errors import InputError
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import check_finite
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.targets import TargetKind


def pick_reference(
    model: RidgeModel, reference: Any, size: int, key: Array
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "m k"]]:
    """Choose m real examples at random, balanced over classes in the order 0, 1, ..., 0, 1, ...

    Args:
        model: The model whose targets tell classes from real values.
        reference: Pool ``(x, y)`` with x of shape (n, d) and y of shape (n, k).
        size: m.
        key: Random key.

    Returns:
        Inputs (m, d) and targets (m, k).

    Raises:
        InputError: the pool is malformed, too small, or has too few examples of a class.
    """
    if not (isinstance(reference, tuple) and len(reference) == 2):
        raise InputError("reference must be a pair (x, y) of real inputs and targets")
    x = as_floats("reference x", reference[0], finite=False)  # of many, the few that are picked are checked
    y = as_floats("reference y", reference[1], finite=False)
    d, k = model.features.num_inputs, model.weights.shape[1]
    if x.ndim != 2 or x.shape[1] != d or y.shape != (len(x), k):
        raise InputError(f"reference has shapes {x.shape} and {y.shape}, expected (n, {d}) and (n, {k})")
    rows = balanced_rows(y, size, model.target_kind is not TargetKind.REAL, key)
    check_finite("reference x", x[rows])
    check_finite("reference y", y[rows])
    return x[rows], y[rows]


def balanced_rows(y: Float[np.ndarray, "n k"], size: int, classes: bool, key: Array) -> Int[np.ndarray, " m"]:
    """Rows of m examples at random; of classes, balanced in the order 0, 1, ..., 0, 1, ...

    Args:
        y: Targets, shape (n, k).
        size: m.
        classes: Whether targets are classes.
        key: Random key.

    Raises:
        InputError: there are too few examples, or too few of a class.
    """
    if len(y) < size:
        raise InputError(
            f"there are {len(y)} real examples, {size} are asked for; give more or ask for fewer"
        )
    order = host_generator(key).permutation(len(y))
    if not classes:
        return order[:size]
    k = y.shape[1]
    named = y.argmax(axis=1)[order]
    rows = np.empty(size, int)
    for c in range(min(k, size)):
        slots = np.arange(c, size, k)
        found = order[named == c][: len(slots)]
        if len(found) < len(slots):
            raise InputError(
                f"there are {len(found)} real examples of class {c}, {len(slots)} are asked for; "
                "give more or ask for fewer"
            )
        rows[slots] = found
    return rows
