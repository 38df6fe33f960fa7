"""Kernel matrices in tiles: under a memory budget, over all local devices, materialised only when asked.

A tile is a block of rows against a block of columns. What is wanted of it (the block itself, its product with
a vector, its sum of squares) is taken at once, and the tile is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.errors import InputError, MemoryBudgetError
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.linalg import check_finite, matmul
from jaxdistill.memory import available_bytes, format_bytes

# A tile, the products it is made of, and what is taken of it live at once.
_COPIES = 4
# Matrix products run at full speed from here on; larger tiles would only fill caches.
_SIDE = 4096
_SMALLEST = 16


class Tiling(NamedTuple):
    """Rows and columns of a tile."""

    rows: int
    columns: int


def plan_tiles(num_rows: int, num_columns: int, dtype: Any, memory: float | None = None) -> Tiling:
    """Choose the size of tiles.

    Args:
        num_rows: Rows of the matrix.
        num_columns: Columns of the matrix.
        dtype: Type of its entries.
        memory: Bytes that tiles may take on a device; default a quarter of what is free.

    Returns:
        Rows and columns of a tile, at most 4096 each.

    Raises:
        MemoryBudgetError: the budget cannot hold one tile; names the bytes of the smallest.

    Example:
        >>> plan_tiles(60000, 500, "float32", memory=2**25)
        Tiling(rows=4096, columns=500)
    """
    budget = available_bytes() / 4 if memory is None else memory
    entries = int(budget // (_COPIES * np.dtype(dtype).itemsize))
    smallest = min(_SMALLEST, num_rows) * min(_SMALLEST, num_columns)
    if entries < smallest:
        size = smallest * _COPIES * np.dtype(dtype).itemsize
        raise MemoryBudgetError(
            f"a memory budget of {format_bytes(budget)} ({int(budget)} bytes) cannot hold one tile of "
            f"the kernel matrix, {size} bytes; give a larger budget, or free memory"
        )
    columns = max(1, min(num_columns, _SIDE, max(math.isqrt(entries), entries // num_rows)))
    return Tiling(max(1, min(num_rows, _SIDE, entries // columns)), columns)


@final
@dataclass(frozen=True, eq=False)
class TiledKernel:
    """The matrix ``K = k(x_i, z_j)`` as an operator, on all local devices; made by :meth:`of`.

    Args:
        num_rows: n.
        num_columns: m.
        symmetric: Whether z is x: then half of the tiles do.
        tiling: Size of a tile.
        replicas: Kernel, x and z on each device.
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
    replicas: tuple[tuple[AbstractKernel, Array, Array], ...]
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
        tiling = plan_tiles(len(x), len(other), dtype, memory)
        with jax.enable_x64(True):
            replicas = []
            for device in jax.local_devices():
                rows = jax.device_put(x.astype(dtype, copy=False), device)
                columns = rows if symmetric else jax.device_put(other.astype(dtype, copy=False), device)
                replicas.append((jax.device_put(kernel, device), rows, columns))
        if symmetric:
            tiling = Tiling(min(tiling), min(tiling))
        return cls(len(x), len(other), symmetric, tiling, tuple(replicas), progress)

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

    def matmul(self, vectors: Any) -> Float[np.ndarray, "n k"]:
        """``K v`` for v of shape (m, k), without K; sums over tiles in float64."""
        vectors = np.asarray(vectors, np.float64)
        if vectors.ndim != 2 or len(vectors) != self.num_columns:
            raise InputError(f"vectors have shape {vectors.shape}, expected ({self.num_columns}, k)")
        with jax.enable_x64(True):
            held = [
                (jax.device_put(vectors.astype(r[1].dtype), r[1].device), _zeros(self.num_rows, vectors, r))
                for r in self.replicas
            ]
            for number, i, j in self._tiles("kernel times vectors"):
                which = number % len(held)
                wide, total = held[which]
                if number >= len(held):
                    jax.block_until_ready(total)  # one tile a device at a time: memory, and an honest bar
                total = _add_product(self.replicas[which], wide, total, i, j, self.tiling, self.symmetric)
                held[which] = (wide, total)
            return np.sum([np.asarray(total) for _, total in held], axis=0)

    def to_matrix(self) -> Float[np.ndarray, "n m"]:
        """K itself, on the host, in the precision of the tiles."""
        dtype = self.replicas[0][1].dtype
        size = self.num_rows * self.num_columns * dtype.itemsize
        if size > available_bytes():
            raise MemoryBudgetError(
                f"a kernel matrix of {self.num_rows} x {self.num_columns} takes {format_bytes(size)} ({size} "
                "bytes), more than is free; use products with it in place of the matrix"
            )
        out = np.empty((self.num_rows, self.num_columns), dtype)
        waiting: list[tuple[int, int, Array]] = []
        with jax.enable_x64(True):
            for number, i, j in self._tiles("kernel matrix"):
                replica = self.replicas[number % len(self.replicas)]
                waiting.append((i, j, _tile(replica, i, j, self.tiling, self.symmetric)[0]))
                if len(waiting) >= len(self.replicas):
                    self._store(out, waiting.pop(0))
            for one in waiting:
                self._store(out, one)
        return out

    def _store(self, out: np.ndarray, one: tuple[int, int, Array]) -> None:
        i, j, tile = one
        rows, columns = self.tiling
        # The last tile of a row or a column starts early, so that every tile has one shape.
        i, j = min(i, self.num_rows - rows), min(j, self.num_columns - columns)
        block = np.asarray(tile)
        out[i : i + rows, j : j + columns] = block
        if self.symmetric:
            out[j : j + columns, i : i + rows] = block.T

    def normal_equations(self, y: Any) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m k"]]:
        """``K^T K`` and ``K^T Y`` for targets of shape (n, k), without K; products and sums in float64."""
        y = np.asarray(y, np.float64)
        m = self.num_columns
        whole = replace(self, tiling=Tiling(self._rows_of_all_columns(), m), symmetric=False)
        with jax.enable_x64(True):
            sums = [
                jax.device_put((np.zeros((m, m)), np.zeros((m, y.shape[1]))), r[1].device)
                for r in self.replicas
            ]
            targets = [jax.device_put(y, r[1].device) for r in self.replicas]
            for number, i, _ in whole._tiles("normal equations"):
                which = number % len(sums)
                jax.block_until_ready(sums[which])
                sums[which] = _add_squares(self.replicas[which], targets[which], sums[which], i, whole.tiling)
            first, second = zip(*(jax.tree.map(np.asarray, pair) for pair in sums), strict=True)
        return np.sum(first, axis=0), np.sum(second, axis=0)

    def _rows_of_all_columns(self) -> int:
        entries = self.tiling.rows * self.tiling.columns
        return max(1, min(self.num_rows, entries // self.num_columns))


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
    x = np.asarray(x)
    if x.ndim != 2 or len(x) == 0 or (dim is not None and x.shape[1] != dim):
        hint = "; flatten images to rows first" if x.ndim > 2 else ""
        raise InputError(f"{name} has shape {x.shape}, expected (n, {'d' if dim is None else dim}){hint}")
    if x.dtype not in (np.float32, np.float64):
        raise InputError(f"{name} has type {x.dtype}; convert it to float32 or float64")
    check_finite(name, x)
    return x


def _zeros(rows: int, like: np.ndarray, replica: Any) -> Array:
    return jax.device_put(np.zeros((rows, like.shape[1])), replica[1].device)


@partial(jax.jit, static_argnums=(3, 4))
def _tile(
    replica: Any, i: Array, j: Array, tiling: Tiling, symmetric: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """A tile, where it starts, and which of its rows and columns no tile before it had."""
    kernel, x, z = replica
    (rows, columns), i, j = tiling, jnp.asarray(i, jnp.int64), jnp.asarray(j, jnp.int64)
    at = jnp.minimum(i, x.shape[0] - rows), jnp.minimum(j, z.shape[0] - columns)
    a = jax.lax.dynamic_slice_in_dim(x, at[0], rows)
    tile = kernel.matrix(a, jax.lax.dynamic_slice_in_dim(z, at[1], columns))
    if symmetric:
        tile = jax.lax.cond(i == j, lambda: _symmetric(tile, kernel.diagonal(a)), lambda: tile)
    return tile, at[0], at[1], at[0] + jnp.arange(rows) >= i, at[1] + jnp.arange(columns) >= j


def _symmetric(tile: Array, diagonal: Array) -> Array:
    """A tile on the diagonal: the angle of an input with itself is rounding, and its own formula exact."""
    lower = jnp.tril(tile, -1)
    return lower + lower.T + jnp.diag(diagonal)


@partial(jax.jit, static_argnums=(5, 6), donate_argnums=2)
def _add_product(
    replica: Any, vectors: Array, total: Array, i: Array, j: Array, tiling: Tiling, symmetric: bool
) -> Array:
    tile, top, left, new_rows, new_columns = _tile(replica, i, j, tiling, symmetric)
    beside = jax.lax.dynamic_slice_in_dim(vectors, left, tiling.columns)
    part = matmul(tile, jnp.where(new_columns[:, None], beside, 0)).astype(total.dtype)
    total = _add_rows(total, jnp.where(new_rows[:, None], part, 0), top)
    if symmetric:
        above = jax.lax.dynamic_slice_in_dim(vectors, top, tiling.rows)
        mirrored = matmul(tile.T, jnp.where(new_rows[:, None], above, 0)).astype(total.dtype)
        mirrored = jnp.where(new_columns[:, None] & (jnp.asarray(i) != jnp.asarray(j)), mirrored, 0)
        total = _add_rows(total, mirrored, left)
    return total


def _add_rows(total: Array, part: Array, at: Array) -> Array:
    there = jax.lax.dynamic_slice_in_dim(total, at, part.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(total, there + part, at, axis=0)


@partial(jax.jit, static_argnums=4, donate_argnums=2)
def _add_squares(
    replica: Any, targets: Array, sums: tuple[Array, Array], i: Array, tiling: Tiling
) -> tuple[Array, Array]:
    tile, top, _, new_rows, _ = _tile(replica, i, np.int64(0), tiling, False)
    wide = jnp.where(new_rows[:, None], tile.astype(jnp.float64), 0)
    y = jax.lax.dynamic_slice_in_dim(targets, top, tiling.rows)
    return sums[0] + matmul(wide.T, wide), sums[1] + matmul(wide.T, y)
