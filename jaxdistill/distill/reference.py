"""Real examples to start from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from jaxdistill.data.rows import AbstractRows
from jaxdistill.errors import InputError
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import check_finite
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.stream import StreamSource
from jaxdistill.ridge.targets import TargetKind


def pick_reference(
    model: RidgeModel, reference: Any, size: int, key: Array, *, fewer: bool = False
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "m k"]]:
    """Choose m real examples at random, balanced over classes in the order 0, 1, ..., 0, 1, ...

    Args:
        model: The model whose targets tell classes from real values.
        reference: Pool ``(x, y)`` with x of shape (n, d) and y of shape (n, k); or a stream of such chunks,
            which is read once and never held.
        size: m.
        key: Random key.
        fewer: Whether fewer will do where there are not so many, or not of every class.

    Returns:
        Inputs (m, d) and targets (m, k).

    Raises:
        InputError: the pool is malformed, too small, or has too few examples of a class.
    """
    d, k = model.features.num_inputs, model.weights.shape[1]
    classes = model.target_kind is not TargetKind.REAL
    if isinstance(reference, (AbstractRows, Iterator, list)) or callable(reference):
        return _pick_from_stream(reference, size, classes, (d, k), key, fewer)
    if not (isinstance(reference, tuple) and len(reference) == 2):
        raise InputError("reference must be a pair (x, y) of real inputs and targets, or a stream of such")
    x = as_floats("reference x", reference[0], finite=False)  # of many, the few that are picked are checked
    y = as_floats("reference y", reference[1], finite=False)
    if x.ndim != 2 or x.shape[1] != d or y.shape != (len(x), k):
        raise InputError(f"reference has shapes {x.shape} and {y.shape}, expected (n, {d}) and (n, {k})")
    rows = balanced_rows(y, size, classes, key, fewer=fewer)
    check_finite("reference x", x[rows])
    check_finite("reference y", y[rows])
    return x[rows], y[rows]


def _pick_from_stream(
    reference: Any, size: int, classes: bool, shape: tuple[int, int], key: Array, fewer: bool
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "m k"]]:
    """Reservoir sampling: every example draws a number, and those of the smallest stay, as many as needed.

    The numbers are drawn in the order of the rows: the same key picks the same ones however they are cut.
    """
    d, k = shape
    source = StreamSource.of(reference, num_inputs=d, breadth=1)
    if source.num_targets != k:
        raise InputError(f"reference has targets of {source.num_targets} columns, expected {k}")
    slots = [np.arange(c, size, k) for c in range(min(k, size))] if classes else [np.arange(size)]
    draws = host_generator(key)
    kept = [(np.zeros(0), np.zeros((0, d), source.dtype), np.zeros((0, k))) for _ in slots]
    for x, y in source.chunks():
        drawn = draws.random(len(x))
        named = y.argmax(axis=1) if classes else np.zeros(len(y), int)
        for c, places in enumerate(slots):
            full = len(kept[c][0]) == len(places)
            found = np.flatnonzero((named == c) & (drawn < (kept[c][0][-1] if full else np.inf)))
            if len(found):
                more = (drawn[found], x[found], y[found])
                pool = [np.concatenate(both) for both in zip(kept[c], more, strict=True)]
                smallest = np.argsort(pool[0], kind="stable")[: len(places)]
                kept[c] = (pool[0][smallest], pool[1][smallest], pool[2][smallest])
    x, y = np.empty((size, d), source.dtype), np.empty((size, k), kept[0][2].dtype)
    filled = np.zeros(size, bool)
    for c, places in enumerate(slots):
        if not fewer:
            check_enough(len(kept[c][0]), len(places), c if classes else None)
        there = places[: len(kept[c][0])]
        x[there], y[there] = kept[c][1:]
        filled[there] = True
    return x[filled], y[filled]


def check_enough(found: int, wanted: int, c: int | None) -> None:
    """Raise where there are fewer examples than asked for, of all or of a class."""
    if found < wanted:
        whose = "" if c is None else f" of class {c}"
        raise InputError(
            f"there are {found} real examples{whose}, {wanted} are asked for; give more or ask for fewer"
        )


def balanced_rows(
    y: Float[np.ndarray, "n k"], size: int, classes: bool, key: Array, *, fewer: bool = False
) -> Int[np.ndarray, " m"]:
    """Rows of m examples at random; of classes, balanced in the order 0, 1, ..., 0, 1, ...

    Args:
        y: Targets, shape (n, k).
        size: m.
        classes: Whether targets are classes.
        key: Random key.
        fewer: Whether fewer will do.

    Raises:
        InputError: there are too few examples, or too few of a class.
    """
    if not fewer:
        check_enough(len(y), size, None)
    order = host_generator(key).permutation(len(y))
    if not classes:
        return order[:size]
    k = y.shape[1]
    named = y.argmax(axis=1)[order]
    rows = np.full(size, -1)
    for c in range(min(k, size)):
        slots = np.arange(c, size, k)
        found = order[named == c][: len(slots)]
        if not fewer:
            check_enough(len(found), len(slots), c)
        rows[slots[: len(found)]] = found
    return rows[rows >= 0]
