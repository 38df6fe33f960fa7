"""Boxes that inputs must stay in."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxdistill.data.preprocess import AbstractPreprocess
from jaxdistill.data.zca import ZCA
from jaxdistill.errors import InputError


def checked_box(box: tuple[Any, Any] | None, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends of a box as arrays (d,); infinite where there is none.

    Raises:
        InputError: ends that do not fit, are NaN, or leave nothing between them.
    """
    if box is None:
        return np.full(dim, -np.inf), np.full(dim, np.inf)
    if not (isinstance(box, tuple) and len(box) == 2):
        raise InputError("box must be a pair (low, high) of numbers or of rows like an input")
    try:
        low, high = (np.broadcast_to(np.asarray(end, np.float64), (dim,)) for end in box)
    except (TypeError, ValueError):
        raise InputError(f"the ends of box must be numbers or rows of length {dim}") from None
    if not np.all(low < high):
        raise InputError("box leaves nothing between low and high for some input; low must be below high")
    return low, high


def pixel_box(
    preprocess: AbstractPreprocess, low: float = 0.0, high: float = 1.0, dtype: Any = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """The box of inputs whose images stay between two values, rounding included.

    Args:
        preprocess: Transform from images to inputs, one pixel at a time.
        low: Least value of a pixel, in the data's own units.
        high: Largest value.
        dtype: Type in which inputs are stored.

    Returns:
        Ends (low, high) for inputs, shape (d,), float64, which numbers of the type hold exactly.

    Raises:
        InputError: the transform mixes pixels, or there is nothing between the ends.

    Example:
        >>> from jaxdistill.data.preprocess import Identity
        >>> [end.tolist() for end in pixel_box(Identity(shape=(2,)))]
        [[0.0, 0.0], [1.0, 1.0]]
    """
    if isinstance(preprocess, ZCA):
        raise InputError(
            "ZCA mixes pixels, so a box of pixels is no box of inputs; use 'standardize' or 'none'"
        )
    if not low < high:
        raise InputError(f"the box [{low}, {high}] has nothing in it; low must be below high")
    ends = []
    for value, inwards in ((low, np.inf), (high, -np.inf)):
        images = np.full((1, *preprocess.shape), value, dtype)
        row = preprocess.forward(images).astype(dtype)
        # The way back may round across the end by a digit or two: step inwards until it does not.
        for _ in range(16):
            found = preprocess.inverse(row).reshape(row.shape)
            beyond = found < value if inwards > 0 else found > value
            if not beyond.any():
                break
            row = np.where(beyond, np.nextafter(row, np.asarray(inwards, dtype)), row)
        ends.append(row[0].astype(np.float64))
    return ends[0], ends[1]
