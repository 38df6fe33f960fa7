"""Kernel matrices in tiles: under a memory budget, over all local devices, materialised only when asked.

A tile is a block of rows against a block of columns. What is wanted of it (the block itself, its product with
a vector, its sum of squares) is taken at once, and the tile is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.errors import InputError, MemoryBudgetError
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.kernels.blocks import WORKSPACE
from jaxdistill.kernels.stationary import central_row
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.memory import available_bytes, device_bytes, format_bytes
from jaxdistill.numerics.placement import device_scope, float64_scope
from jaxdistill.numerics.two_sum import TwoSum

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
        num_rows: Rows of the matrix.
        num_columns: Columns of the matrix.
        dtype: Type of its entries.
        memory: Bytes that tiles may take on a device; default a quarter of what is free.
        workspace: Bytes that one entry takes while it is computed.

    Returns:
        Rows and columns of a tile, at most 4096 each; fewer where the workspace of so many is large. With a
        workspace a tile may be larger than a small matrix.

    Raises:
        MemoryBudgetError: the budget cannot hold one tile; names the bytes of the smallest.

    Example:
        >>> plan_tiles(60000, 500, "float32", memory=2**25)
        Tiling(rows=4096, columns=500)
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
    return Tiling(max(1, min(num_rows, _SIDE, entries // columns)), columns)


class Replica(NamedTuple):
    """What one device holds.

    Args:
        kernel: Kernel k.
        x: Inputs of the rows, less the origin where there is one.
        z: Inputs of the columns, in the same way.
        origin: The point that was subtracted, or None: a kernel none of whose parts is stationary.
    """

    kernel: AbstractKernel
    x: Array
    z: Array
    origin: Array | None


@final
@dataclass(frozen=True, eq=False)
class TiledKernel:
    """The matrix ``K = k(x_i, z_j)`` as an operator, on all local devices; made by :meth:`of`.

    Args:
        num_rows: n.
        num_columns: m.
        symmetric: Whether z is x: then half of the tiles do.
        tiling: Size of a tile.
        replicas: Kernel and inputs on each device.
        wide: Whether the devices may hold float64; else sums are taken in two float32 numbers.
        progress: Whether to show bars.

    Example:
        >>> from jaxdistill.kernels import Linear
        >>> operator = TiledKernel.of(Linear(), np.eye(3), 2 * np.ones((2, 3)))
        >>> operator.matmul(np.ones((2, 1))).ravel().tolist()
        [4.0, 4.0, 4.0]
    """

    num_rows: int
    num_columns: int
    symmetric: bool
    tiling: Tiling
    replicas: tuple[Replica, ...]
    wide: bool
    progress: bool = False

    @classmethod
    def of(
        cls,
        kernel: AbstractKernel,
        x: Any,
        z: Any | None = None,
        *,
        dtype: Any = None,
        memory: float | None = None,
        progress: bool = False,
    ) -> TiledKernel:
        """Check the inputs, plan the tiles and put the inputs on the devices.

        For a kernel with a stationary part a point amid z is subtracted from all inputs, once and in the
        wider of the two precisions: an entry is the same in whichever tile it falls, and float64 inputs far
        from the origin keep in float32 tiles what tells them apart.

        Args:
            kernel: Kernel k.
            x: Inputs of the rows, shape (n, d).
            z: Inputs of the columns, shape (m, d); default x.
            dtype: Precision of the tiles, float32 or float64; default that of x.
            memory: Bytes that tiles may take on a device; default a quarter of what is free.
            progress: Whether to show bars.

        Raises:
            InputError: shapes or types that do not fit, values that are not finite.
            MemoryBudgetError: the budget cannot hold one tile.
        """
        x = check_inputs("x", x)
        symmetric = z is None
        other = x if symmetric else check_inputs("z", z, x.shape[1])
        dtype = x.dtype if dtype is None else np.dtype(dtype)
        workspace = kernel.workspace(x.shape[1], dtype)
        with device_scope(dtype, wide_sums=True) as side:
            free = device_bytes(side.devices[0])
        if memory is None and free is not None:
            memory = free / 4
        tiling = plan_tiles(len(x), len(other), dtype, memory, workspace=workspace)
        if symmetric:
            tiling = Tiling(min(tiling), min(tiling))
        origin = central_row(other).astype(dtype) if kernel.stationary else None
        above = _filled(x, tiling.rows, dtype, origin)
        beside = above if symmetric else _filled(other, tiling.columns, dtype, origin)
        with device_scope(dtype, wide_sums=True):
            replicas = []
            for device in side.devices:
                rows = jax.device_put(above, device)
                columns = rows if symmetric else jax.device_put(beside, device)
                own = jax.device_put(kernel, device)
                replicas.append(Replica(own, rows, columns, jax.device_put(origin, device)))
        return cls(len(x), len(other), symmetric, tiling, tuple(replicas), side.wide, progress)

    def _tiles(self, what: str) -> Iterator[tuple[int, int, int]]:
        """Number, first row and first column of every tile; of the upper triangle where that is enough."""
        rows, columns = self.tiling
        places = [
            (i, j)
            for i in range(0, self.num_rows, rows)
            for j in range(i if self.symmetric else 0, self.num_columns, columns)
        ]
        for number, (i, j) in enumerate(tqdm(places, desc=what, disable=not self.progress, leave=False)):
            yield number, i, j

    def _tile(self, which: int, i: int, j: int) -> tuple[Array, int, int]:
        """A tile, its first row and its first column; the last of a line starts early, in the same shape."""
        kernel, x, z, origin = self.replicas[which]
        top, left = min(i, len(x) - self.tiling.rows), min(j, len(z) - self.tiling.columns)
        a = _rows(x, np.int64(top), self.tiling.rows)
        tile = _entries(kernel, a, _rows(z, np.int64(left), self.tiling.columns), origin)
        if self.symmetric and i == j:
            tile = _symmetric(tile, _diagonal(kernel, a, origin))
        return tile, top, left

    def _strip(self, which: int, i: int) -> tuple[Array, int]:
        """Rows of all columns, and the first of them; where it takes several tiles, K^T K is larger."""
        z = self.replicas[which].z
        if self.tiling.columns == len(z):
            return self._tile(which, i, 0)[:2]
        strip, top = jax.device_put(np.zeros((self.tiling.rows, len(z)), z.dtype), z.device), 0
        for j in range(0, self.num_columns, self.tiling.columns):
            tile, top, left = self._tile(which, i, j)
            strip = _place(strip, tile, np.int64(left))
        return strip, top

    def matmul(self, vectors: Any) -> Float[np.ndarray, "n k"]:
        """``K v`` for v of shape (m, k), without K; sums over tiles in float64, or nearly."""
        vectors = np.asarray(vectors, np.float64)
        if vectors.ndim != 2 or len(vectors) != self.num_columns:
            raise InputError(f"vectors have shape {vectors.shape}, expected ({self.num_columns}, k)")
        dtype = self.replicas[0].x.dtype
        shape = len(self.replicas[0].x), vectors.shape[1]
        zeros = np.zeros(shape) if self.wide else TwoSum.zeros(shape, dtype)
        with device_scope(dtype, wide_sums=True):
            held = [
                (
                    jax.device_put(_padded(vectors, len(one.z)).astype(dtype), one.z.device),
                    jax.device_put(zeros, one.x.device),
                )
                for one in self.replicas
            ]
            for number, i, j in self._tiles("kernel times vectors"):
                which = number % len(held)
                wide, total = held[which]
                if number >= len(held):
                    jax.block_until_ready(total)  # one tile a device at a time: memory, and an honest bar
                tile, top, left = self._tile(which, i, j)
                total = _add_product(tile, wide, total, *np.array((i, j, top, left)), self.symmetric)
                held[which] = (wide, total)
            totals = [t.to_float64() if isinstance(t, TwoSum) else np.asarray(t) for _, t in held]
            return np.sum(totals, axis=0)[: self.num_rows]

    def to_matrix(self) -> Float[np.ndarray, "n m"]:
        """K itself, on the host, in the precision of the tiles."""
        dtype = self.replicas[0].x.dtype
        size = self.num_rows * self.num_columns * dtype.itemsize
        if size > available_bytes():
            raise MemoryBudgetError(
                f"a kernel matrix of {self.num_rows} x {self.num_columns} takes {format_bytes(size)} ({size} "
                "bytes), more than is free; use products with it in place of the matrix"
            )
        out = np.empty((self.num_rows, self.num_columns), dtype)
        waiting: list[tuple[Array, int, int]] = []
        with device_scope(dtype, wide_sums=True):
            for number, i, j in self._tiles("kernel matrix"):
                waiting.append(self._tile(number % len(self.replicas), i, j))
                if len(waiting) >= len(self.replicas):
                    self._store(out, *waiting.pop(0))
            for one in waiting:
                self._store(out, *one)
        return out

    def _store(self, out: np.ndarray, tile: Array, top: int, left: int) -> None:
        block = np.asarray(tile)[: self.num_rows - top, : self.num_columns - left]
        rows, columns = block.shape
        out[top : top + rows, left : left + columns] = block
        if self.symmetric:
            out[left : left + columns, top : top + rows] = block.T

    def normal_equations(self, y: Any) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m k"]]:
        """``K^T K`` and ``K^T Y`` for targets of shape (n, k), without K; products and sums in float64."""
        y = np.asarray(y, np.float64)
        m = len(self.replicas[0].z)
        starts = range(0, self.num_rows, self.tiling.rows)
        with float64_scope() as where:
            sums, targets = [], []
            for one in self.replicas:
                # What squares the condition number is formed where float64 lives.
                device = one.x.device if self.wide else where.algebra
                sums.append(jax.device_put((np.zeros((m, m)), np.zeros((m, y.shape[1]))), device))
                targets.append(jax.device_put(_padded(y, len(one.x)), device))
            bar = tqdm(starts, desc="normal equations", disable=not self.progress, leave=False)
            for number, i in enumerate(bar):
                which = number % len(sums)
                jax.block_until_ready(sums[which])
                with device_scope(self.replicas[0].x.dtype, wide_sums=True):
                    strip, top = self._strip(which, i)
                limits = np.array((i, top, self.num_rows))
                strip = jax.device_put(strip, sums[which][0].device)
                sums[which] = _add_squares(strip, targets[which], sums[which], *limits)
            first, second = zip(*(jax.tree.map(np.asarray, pair) for pair in sums), strict=True)
        return (
            np.sum(first, axis=0)[: self.num_columns, : self.num_columns],
            np.sum(second, axis=0)[: self.num_columns],
        )


def kernel_matrix(
    kernel: AbstractKernel,
    x: Any,
    z: Any | None = None,
    *,
    dtype: Any = None,
    memory: float | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "n m"]:
    """The matrix ``k(x_i, z_j)`` on the host, computed in tiles on all local devices.

    Args:
        kernel: Kernel k.
        x: Inputs, shape (n, d).
        z: Inputs, shape (m, d); default x, whose matrix is symmetric to the last bit.
        dtype: Precision; default that of x.
        memory: Bytes that tiles may take; default a quarter of what is free.
        progress: Whether to show a bar.

    Raises:
        InputError: shapes or types that do not fit, values that are not finite.
        MemoryBudgetError: the matrix is larger than what is free, or the budget cannot hold one tile.

    Example:
        >>> from jaxdistill.kernels import NTK
        >>> kernel_matrix(NTK(), np.eye(4, dtype=np.float32)).shape
        (4, 4)
    """
    return TiledKernel.of(kernel, x, z, dtype=dtype, memory=memory, progress=progress).to_matrix()


def check_inputs(name: str, x: Any, dim: int | None = None) -> np.ndarray:
    """Inputs as an array of rows, or an error.

    Raises:
        InputError: names the shape or the type that was expected, or the value that is not finite.
    """
    x = as_floats(name, x)
    if x.ndim != 2 or len(x) == 0 or (dim is not None and x.shape[1] != dim):
        hint = "; flatten images to rows first" if x.ndim > 2 else ""
        raise InputError(f"{name} has shape {x.shape}, expected (n, {'d' if dim is None else dim}){hint}")
    return x


def kernel_diagonal(kernel: AbstractKernel, x: Any) -> Float[np.ndarray, " n"]:
    """``k(x_i, x_i)`` in float64, some inputs at once.

    Args:
        kernel: Kernel k.
        x: Inputs, shape (n, d).

    Example:
        >>> from jaxdistill.kernels import Linear
        >>> kernel_diagonal(Linear(), np.array([[1.0, 2.0], [0.0, 3.0]])).tolist()
        [5.0, 9.0]
    """
    x = np.asarray(x, np.float64)
    size = min(plan_tiles(len(x), len(x), x.dtype, workspace=kernel.workspace(x.shape[1], x.dtype)))
    with float64_scope() as where:
        kernel = jax.device_put(kernel, where.home)
        parts = [
            np.asarray(_diagonal(kernel, _filled(x[i : i + size], size, x.dtype), None))
            for i in range(0, len(x), size)
        ]
    return np.concatenate(parts)[: len(x)]


def _filled(x: np.ndarray, size: int, dtype: Any, origin: np.ndarray | None = None) -> np.ndarray:
    """The inputs less a point, in a precision; again from the first where a tile takes more of them."""
    if origin is not None:
        x = np.subtract(x, origin, dtype=np.result_type(x, dtype))
    x = x.astype(dtype, copy=False)
    return x if len(x) >= size else x[np.arange(size) % len(x)]


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """Zeros below, for the inputs that only fill a tile."""
    return np.pad(array, ((0, size - len(array)), (0, 0)))


@partial(jax.jit, static_argnums=2)
def _rows(x: Array, at: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, at, size)


# Apart from what is done with a tile: kernels that are slow to compile are compiled once a size of tile.
@jax.jit
def _entries(kernel: AbstractKernel, a: Array, b: Array, origin: Array | None) -> Array:
    return kernel.matrix(a, b) if origin is None else kernel.matrix_about(origin, a, b)


@jax.jit
def _diagonal(kernel: AbstractKernel, a: Array, origin: Array | None) -> Array:
    return kernel.diagonal(a if origin is None else a + origin[None])


@jax.jit
def _symmetric(tile: Array, diagonal: Array) -> Array:
    """A tile on the diagonal: the angle of an input with itself is rounding, and its own formula exact."""
    lower = jnp.tril(tile, -1)
    return lower + lower.T + jnp.diag(diagonal)


@partial(jax.jit, static_argnums=7, donate_argnums=2)
def _add_product(
    tile: Array,
    vectors: Array,
    total: Array | TwoSum,
    i: Array,
    j: Array,
    top: Array,
    left: Array,
    symmetric: bool,
) -> Array | TwoSum:
    # What tiles before this one had is left out.
    new_rows = (top + jnp.arange(tile.shape[0]) >= i)[:, None]
    new_columns = (left + jnp.arange(tile.shape[1]) >= j)[:, None]
    beside = jax.lax.dynamic_slice_in_dim(vectors, left, tile.shape[1])
    part = matmul(tile, jnp.where(new_columns, beside, 0))
    total = _add_rows(total, jnp.where(new_rows, part, 0), top)
    if symmetric:
        above = jax.lax.dynamic_slice_in_dim(vectors, top, tile.shape[0])
        mirrored = matmul(tile.T, jnp.where(new_rows, above, 0))
        total = _add_rows(total, jnp.where(new_columns & (i != j), mirrored, 0), left)
    return total


def _add_rows(total: Array | TwoSum, part: Array, at: Array) -> Array | TwoSum:
    there = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, at, part.shape[0]), total)
    more = there.add(part) if isinstance(there, TwoSum) else there + part.astype(there.dtype)
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, at, axis=0), total, more)


@partial(jax.jit, donate_argnums=0)
def _place(strip: Array, tile: Array, left: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(strip, tile, left, axis=1)


@partial(jax.jit, donate_argnums=2)
def _add_squares(
    strip: Array, targets: Array, sums: tuple[Array, Array], i: Array, top: Array, num_rows: Array
) -> tuple[Array, Array]:
    at = top + jnp.arange(strip.shape[0])
    new = (at >= i) & (at < num_rows)
    wide = jnp.where(new[:, None], strip.astype(jnp.float64), 0)
    y = jax.lax.dynamic_slice_in_dim(targets, top, strip.shape[0])
    return sums[0] + matmul(wide.T, wide), sums[1] + matmul(wide.T, y)
