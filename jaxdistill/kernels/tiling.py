"""How a kernel matrix is cut: the size of its tiles under a memory budget, and which device takes which."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxdistill.errors import MemoryBudgetError
from jaxdistill.kernels.blocks import WORKSPACE
from jaxdistill.numerics.memory import available_bytes, format_bytes

# A tile, the products it is made of, and what is taken of it live at once.
_COPIES = 4
# Matrix products run at full speed from here on; larger tiles would only fill caches.
_SIDE = 4096
_SMALLEST = 16
# Kernels whose entries need a workspace take seconds to compile: sizes from here on are powers of two, which
# matrices of many sizes share. The smaller ones repeat inputs to fill a tile.
_SHARED = 32


class Tiling(NamedTuple):
    """Rows and columns of a tile."""

    rows: int
    columns: int


def plan_tiles(
    num_rows: int, num_columns: int, dtype: Any, memory: float | None = None, *, workspace: int = 0
) -> Tiling:
    """Choose the size of tiles.

    Args:
        num_rows: Rows of the matrix, or of what one device has of it.
        num_columns: Columns of the matrix.
        dtype: Type of its entries.
        memory: Bytes that tiles may take on a device; default a quarter of what is free.
        workspace: Bytes that one entry takes while it is computed.

    Returns:
        Rows and columns of a tile, at most 4096 each, and so many that all tiles are about full; fewer where
        the workspace of so many is large. With a workspace a tile may be larger than a small matrix.

    Raises:
        MemoryBudgetError: the budget cannot hold one tile; names the bytes of the smallest.

    Example:
        >>> plan_tiles(60000, 500, "float32", memory=2**25)
        Tiling(rows=4000, columns=500)
    """
    budget = available_bytes() / 4 if memory is None else memory
    entry = _COPIES * np.dtype(dtype).itemsize + workspace
    entries, smallest = int(budget // entry), 1
    if workspace:
        entries = min(entries, max(1, WORKSPACE // workspace))
        num_rows, num_columns = (max(_SHARED, 1 << (n - 1).bit_length()) for n in (num_rows, num_columns))
    else:
        smallest = min(_SMALLEST, num_rows) * min(_SMALLEST, num_columns)
    if entries < smallest:
        size = smallest * entry
        raise MemoryBudgetError(
            f"a memory budget of {format_bytes(budget)} ({int(budget)} bytes) cannot hold one tile of "
            f"the kernel matrix, {size} bytes; give a larger budget, or free memory"
        )
    columns = max(1, min(num_columns, _SIDE, max(math.isqrt(entries), entries // num_rows)))
    if not workspace:
        columns = _even(num_columns, columns)
    rows = max(1, min(num_rows, _SIDE, entries // columns))
    return Tiling(rows if workspace else _even(num_rows, rows), columns)


def _even(size: int, most: int) -> int:
    """The side of as few tiles as can be, all alike: the last one of a line would else be mostly filling."""
    tiles = -(-size // most)
    return min(most, -(-size // (tiles * _SMALLEST)) * _SMALLEST)


def whole_tiles(size: int, side: int) -> int:
    """A number of rows or columns, or as many more as fill the last tile."""
    return -(-size // side) * side


def rounds(num_rows: int, num_columns: int, tiling: Tiling, devices: int) -> list[Int[np.ndarray, "q 3"]]:
    """What every device does next: first row and column of a tile, for rows of which each has its own.

    Args:
        num_rows: Rows of one device.
        num_columns: Columns.
        tiling: Size of a tile.
        devices: Number q of devices.

    Returns:
        Arrays of lines (row, column, 1), one a device and all alike.

    Example:
        >>> [each.tolist() for each in rounds(4, 6, Tiling(4, 3), devices=2)]
        [[[0, 0, 1], [0, 0, 1]], [[0, 3, 1], [0, 3, 1]]]
    """
    places = [(i, j) for i in range(0, num_rows, tiling.rows) for j in range(0, num_columns, tiling.columns)]
    return [np.array([(i, j, 1)] * devices) for i, j in places]


def triangle_rounds(size: int, side: int, devices: int) -> list[Int[np.ndarray, "q 3"]]:
    """What every device does next of the upper triangle of a symmetric matrix, whose rows all of them have.

    Tiles on the diagonal come first, in rounds of their own.

    Args:
        size: Rows and columns.
        side: Of a tile.
        devices: Number q of devices.

    Returns:
        Arrays of lines (row, column, 1), one a device, and (row, column, 0) for what another one does too:
        the last round may have fewer tiles than there are devices.

    Example:
        >>> [each.tolist() for each in triangle_rounds(4, 2, devices=2)]
        [[[0, 0, 1], [2, 2, 1]], [[0, 2, 1], [0, 2, 0]]]
    """
    starts = range(0, size, side)
    lines = [(i, i) for i in starts], [(i, j) for i in starts for j in starts if i < j]
    return [each for places in lines for each in _dealt(places, devices)]


def strip_rounds(size: int, side: int, devices: int) -> list[Int[np.ndarray, "q 3"]]:
    """Strips of rows that all devices have, dealt as :func:`triangle_rounds` deals tiles; columns from 0."""
    return _dealt([(i, 0) for i in range(0, size, side)], devices)


def _dealt(places: list[tuple[int, int]], devices: int) -> list[Int[np.ndarray, "q 3"]]:
    """So many at once; what is missing in the last round are copies that do not count."""
    short = -len(places) % devices
    filled = [(i, j, 1) for i, j in places] + [(*places[-1], 0)] * short if places else []
    return [np.array(filled[at : at + devices]) for at in range(0, len(filled), devices)]


def planned_rows(num_rows: int, devices: int, symmetric: bool) -> int:
    """Rows to plan tiles for: one device's, or so few that the triangle has as many tiles for each.

    A triangle of b rows of tiles has b (b + 1) / 2 of them, which 2 q devices' worth of rows, or a multiple,
    divides by q: q (2 q + 1).

    Example:
        >>> planned_rows(1000, 8, False), planned_rows(1000, 8, True), planned_rows(1000, 1, True)
        (125, 63, 1000)
    """
    return -(-num_rows // (2 * devices if symmetric and devices > 1 else devices))
