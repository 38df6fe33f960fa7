"""How rows come to the devices: to an accelerator in the fewest bytes, and once where they are read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.data.preprocess import Identity, Standardize
from jaxdistill.numerics.memory import device_bytes
from jaxdistill.numerics.mesh import DATA
from jaxdistill.numerics.placement import Side
from jaxdistill.ridge.source import AbstractSource, padded

# Of the memory that is free on an accelerator, the part that rows may stay in: 1 / _SHARE.
_SHARE = 4


@final
@dataclass(eq=False)
class Kept:
    """Inputs of one source that stay on an accelerator from one pass to the next: those that have room.

    Args:
        chunks: By their first row and their type.
        room: Bytes that are left of a quarter of the memory that was free; None before the first chunk.
    """

    chunks: dict[tuple[int, str], Any] = field(default_factory=dict)
    room: int | None = None

    def sent(self, side: Side, row: int, x: np.ndarray) -> Any:
        """A chunk on the devices, which crosses if it is not there."""
        place = row, x.dtype.name
        if place in self.chunks:
            return self.chunks[place]
        if self.room is None:
            self.room = (device_bytes(side.devices[0]) or 0) // _SHARE
        there, size = side.by_row(x), x.nbytes // side.mesh.shape[DATA]
        if size <= self.room:
            self.room -= size
            self.chunks[place] = there
        return there


@partial(jax.jit, static_argnums=2)
def _prepare(constants: Any, x: Array, dtype: str) -> Array:
    """Inputs in the precision of the work, of rows as they crossed."""
    if constants is not None:
        white, mean, std = (jnp.broadcast_to(a, x.shape) for a in constants)
        # Or the compiler multiplies by their inverses, which rounds otherwise than the host does.
        white, std = jax.lax.optimization_barrier((white, std))
        x = (x.astype(jnp.float32) / white - mean) / std
    return x.astype(dtype)


def _constants(preprocess: Identity | Standardize | None) -> Any:
    """255, mean and std for every number of a row, in float32."""
    if preprocess is None:
        return None
    if isinstance(preprocess, Standardize):
        mean, std = preprocess.row_constants()
    else:
        mean, std = np.zeros(preprocess.num_inputs), np.ones(preprocess.num_inputs)
    return np.float32(255), np.asarray(mean, np.float32), np.asarray(std, np.float32)


@final
class Crossing:
    """The way of inputs to where features are made of them.

    To the CPU they go in the precision of the work. To an accelerator they go in their own where it has fewer
    bytes: images as uint8, which it prepares in float32 by the operations of the host, one after the other.

    Args:
        side: Where the work runs.
        dtype: Its precision.
        preprocess: What makes inputs of images in uint8; None for inputs as they are.
        kept: What stays there for another pass; None for nothing.
    """

    def __init__(
        self, side: Side, dtype: Any, preprocess: Identity | Standardize | None, kept: Kept | None = None
    ) -> None:
        self.side, self.dtype, self.kept = side, np.dtype(dtype), kept
        self.constants = side.everywhere(_constants(preprocess))

    def __call__(self, x: np.ndarray, row: int = 0) -> Any:
        """Inputs of a chunk, which is kept by its first row."""
        if not self.side.far:
            return x.astype(self.dtype, copy=False)
        if x.dtype.itemsize > self.dtype.itemsize:
            x = x.astype(self.dtype)
        there = self.side.by_row(x) if self.kept is None else self.kept.sent(self.side, row, x)
        return there if x.dtype == self.dtype else _prepare(self.constants, there, self.dtype.name)


def crossing(
    source: AbstractSource,
    side: Side,
    dtype: Any,
    *,
    start: int = 0,
    kept: Kept | None = None,
    progress: str | None = None,
) -> Iterator[tuple[tuple[Any, np.ndarray], np.ndarray]]:
    """Chunks of one size, inputs on their way, targets and mask on the host; in every pass these cross anew.

    Args:
        source: Inputs and targets.
        side: Where the work runs.
        dtype: Its precision.
        start: The row to begin at.
        kept: As for :class:`Crossing`.
        progress: Title of a bar; default none.
    """
    size, total = side.whole_rows(source.chunk_size), source.num_rows
    total = None if total is None else total - start
    chunks, preprocess = source.unprepared(start) if side.far else (source.chunks(start), None)
    across = Crossing(side, dtype, preprocess, kept)
    for number, ((x, y), mask) in enumerate(padded(chunks, size, total=total, progress=progress)):
        yield (across(x, start + number * size), y), mask
