"""Transforms by name: fitted on data, and rebuilt from what a file keeps of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike

from jaxdistill.data.preprocess import (
    AbstractPreprocess,
    Identity,
    Standardize,
    blocks,
    moments_by_channel,
)
from jaxdistill.data.zca import ZCA
from jaxdistill.errors import InputError
from jaxdistill.numerics.names import check_choice

KINDS: dict[str, type[Identity] | type[Standardize] | type[ZCA]] = {
    cls.kind: cls for cls in (Identity, Standardize, ZCA)
}
# Rounding that is larger than this share of a column's spread has cost it its values.
_LOST = 1e-3


def fit_preprocess(kind: str, x: Any, *, reg: float | None = None) -> AbstractPreprocess:
    """Fit a transform by name.

    Args:
        kind: ``"standardize"``, ``"zca"`` or ``"none"``.
        x: Training images (n,H,W,C) or a table (n,d).
        reg: Regulariser of ZCA, see ``ZCA.fit``; None for its default.

    Raises:
        InputError: The name is unknown, or ``reg`` is given to a transform that has none.

    Example:
        >>> fit_preprocess("standardize", np.eye(3)).kind
        'standardize'
    """
    check_choice("preprocessing", kind, KINDS)
    if reg is None:
        return KINDS[kind].fit(x)
    if KINDS[kind] is not ZCA:
        raise InputError(f"preprocessing {kind!r} takes no reg; leave it out, or use 'zca'")
    return ZCA.fit(x, reg=reg)


def to_inputs(
    preprocess: AbstractPreprocess, x: np.ndarray, *, name: str, training: bool
) -> Float32[np.ndarray, "n d"]:
    """Examples as a model sees them: transformed in their own precision, and only then float32.

    Args:
        preprocess: The transform.
        x: Examples (n,*shape).
        name: What they are called in a message.
        training: Whether they tell the spread of a column, by which its rounding is judged.

    Raises:
        InputError: A column holds more than float32 can, or loses its values to rounding; names it.

    Example:
        >>> seconds = 1.7e9 + np.arange(5.0)[:, None]
        >>> len(set(to_inputs(Standardize.fit(seconds), seconds, name="x", training=True).ravel()))
        5
    """
    rows = preprocess.forward(x)
    if rows.dtype == np.float32:
        return rows
    with np.errstate(over="ignore"):
        inputs = rows.astype(np.float32)
    beyond = np.argwhere(~np.isfinite(inputs))
    if beyond.size:
        row, column = beyond[0]
        raise InputError(
            f"{name}: column {column} is {rows[row, column]:.3g} in row {row} after preprocessing, more than "
            "float32 holds; rescale the column or leave it out"
        )
    if not training:
        return inputs
    count, _, squares = moments_by_channel(rows)
    rounding = np.zeros_like(squares)
    for block in blocks(rows):
        rounding += np.square(inputs[block] - rows[block]).sum(axis=0)
    lost = np.flatnonzero((rounding > _LOST**2 * squares) & (squares > 0))
    if lost.size:
        spread, change = np.sqrt(squares[lost[0]] / count), np.sqrt(rounding[lost[0]] / count)
        raise InputError(
            f"{name}: column {lost[0]} loses its values in float32: its standard deviation is {spread:.3g} "
            f"and rounding changes it by {change:.3g}; standardise it, or subtract an offset"
        )
    return inputs


def rebuild_preprocess(
    kind: str, settings: Mapping[str, Any], arrays: Mapping[str, ArrayLike]
) -> AbstractPreprocess:
    """Rebuild a transform from its kind, settings and arrays, as they were saved.

    Args:
        kind: The transform's ``kind``.
        settings: What ``settings()`` gave.
        arrays: What ``arrays()`` gave.

    Raises:
        InputError: A part is missing, or does not fit.

    Example:
        >>> pre = Standardize.fit(np.array([[1.0], [3.0]]))
        >>> rebuild_preprocess(pre.kind, pre.settings(), pre.arrays()).forward(np.array([[5.0]]))
        array([[3.]])
    """
    check_choice("preprocessing", kind, KINDS)
    try:
        return KINDS[kind].from_parts(settings, arrays)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the parts of preprocessing {kind!r} are damaged ({type(error).__name__}: {error}); "
            "save the transform again"
        ) from error
