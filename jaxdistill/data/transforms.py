"""Transforms by name: fitted on data, and rebuilt from what a file keeps of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike

from jaxdistill.data.pixels import Pixels
from jaxdistill.data.preprocess import (
    AbstractPreprocess,
    ChannelMoments,
    Identity,
    Standardize,
    blocks,
    first_block,
    moments_by_channel,
)
from jaxdistill.data.rows import AbstractRows
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
        x: Training images (n,H,W,C) or a table (n,d); or rows of such, read in one pass.
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
    preprocess: AbstractPreprocess, x: np.ndarray | Pixels, *, name: str, training: bool
) -> Float32[np.ndarray, "n d"] | Pixels:
    """Examples as a model sees them: transformed in their own precision, and only then float32.

    Args:
        preprocess: The transform.
        x: Examples (n,*shape). Images in uint8 stay so for a transform that an accelerator does as the host.
        name: What they are called in a message.
        training: Whether they tell the spread of a column, by which its rounding is judged.

    Raises:
        InputError: A column holds more than float32 can, or loses its values to rounding; names it.

    Example:
        >>> seconds = 1.7e9 + np.arange(5.0)[:, None]
        >>> len(set(to_inputs(Standardize.fit(seconds), seconds, name="x", training=True).ravel()))
        5
    """
    rows = _rows(preprocess, preprocess.forward, x)
    if rows.dtype == np.float32:
        return rows
    inputs = _in_float32(rows, name)
    if training:
        _check_kept(moments_by_channel(rows), ((rows[block], inputs[block]) for block in blocks(rows)), name)
    return inputs


def rows_to_inputs(preprocess: AbstractPreprocess, rows: AbstractRows, *, name: str) -> AbstractRows:
    """Training examples as a model sees them, piece by piece: what :func:`to_inputs` does with an array.

    A table in float64 that is not standardised is read once more, to see that float32 holds its columns.

    Args:
        preprocess: The transform.
        rows: Examples (b,*shape) in every piece.
        name: What they are called in a message.

    Raises:
        InputError: as :func:`to_inputs`; some of it while the rows are read.

    Example:
        >>> from jaxdistill.data.rows import ChunkRows
        >>> rows = ChunkRows([(np.eye(2), np.eye(2))])
        >>> [x.tolist() for x, y in rows_to_inputs(Standardize.fit(rows), rows, name="x").pieces()]
        [[[1.0, -1.0], [-1.0, 1.0]]]
    """
    forward = preprocess.forward_many()
    # Other transforms leave columns of mean zero, which float32 holds as well as any.
    if isinstance(preprocess, Identity) and first_block(rows).dtype != np.float32:
        flat = rows.map(inputs=forward)
        pairs = ((x, _in_float32(x, name, " of its chunk")) for x, _ in flat.pieces())
        _check_kept(moments_by_channel(flat), pairs, name)
    return rows.map(inputs=lambda x: _in_float32(_rows(preprocess, forward, x), name, " of its chunk"))


def _rows(preprocess: AbstractPreprocess, forward: Callable[[Any], np.ndarray], x: Any) -> Any:
    """Rows as a transform makes them; of uint8 images not yet, if an accelerator can do the same."""
    if isinstance(x, Pixels) and isinstance(preprocess, (Identity, Standardize)):
        return Pixels(x.images, preprocess)
    return forward(x)


def _in_float32(rows: np.ndarray, name: str, whose: str = "") -> np.ndarray:
    """Rows in float32, all of which it holds."""
    if rows.dtype == np.float32:
        return rows
    with np.errstate(over="ignore"):
        inputs = rows.astype(np.float32)
    beyond = np.argwhere(~np.isfinite(inputs) & ~np.isnan(rows))
    if beyond.size:
        row, column = beyond[0]
        raise InputError(
            f"{name}: column {column} is {rows[row, column]:.3g} in row {row}{whose} after preprocessing, "
            "more than float32 holds; rescale the column or leave it out"
        )
    return inputs


def _check_kept(found: ChannelMoments, pairs: Iterable[tuple[np.ndarray, np.ndarray]], name: str) -> None:
    """Raise where a column of a table loses its values to rounding: of rows as they were and as they are."""
    rounding = np.zeros_like(found.squares)
    for rows, inputs in pairs:
        rounding += np.square(inputs - rows).sum(axis=0)
    lost = np.flatnonzero((rounding > _LOST**2 * found.squares) & (found.squares > 0))
    if lost.size:
        spread, change = (np.sqrt(part[lost[0]] / found.number) for part in (found.squares, rounding))
        raise InputError(
            f"{name}: column {lost[0]} loses its values in float32: its standard deviation is {spread:.3g} "
            f"and rounding changes it by {change:.3g}; standardise it, or subtract an offset"
        )


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
