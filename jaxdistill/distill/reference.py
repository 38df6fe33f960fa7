"""Real examples to start from."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.keys import host_generator
from jaxdistill.linalg import check_finite
from jaxdistill.ridge import RidgeModel, TargetKind


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
    x, y = np.asarray(reference[0]), np.asarray(reference[1])
    d, k = model.features.num_inputs, model.weights.shape[1]
    if x.ndim != 2 or x.shape[1] != d or y.shape != (len(x), k):
        raise InputError(f"reference has shapes {x.shape} and {y.shape}, expected (n, {d}) and (n, {k})")
    if len(x) < size:
        raise InputError(f"reference has {len(x)} examples, {size} are asked for; give more")
    order = host_generator(key).permutation(len(x))
    if model.target_kind is TargetKind.REAL:
        rows = order[:size]
    else:
        classes = y.argmax(axis=1)[order]
        rows = np.empty(size, int)
        for c in range(min(k, size)):
            slots = np.arange(c, size, k)
            found = order[classes == c][: len(slots)]
            if len(found) < len(slots):
                raise InputError(
                    f"reference has {len(found)} examples of class {c}, {len(slots)} are needed; "
                    "give more or ask for fewer"
                )
            rows[slots] = found
    check_finite("reference x", x[rows])
    check_finite("reference y", y[rows])
    return x[rows], y[rows]
