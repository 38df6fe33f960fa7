"""Kernel matrices in tiles: under a memory budget, over all devices, materialised only when asked.

A tile is a block of rows against a block of columns. What is wanted of it (the block itself, its product
with a vector, its sum of squares) is taken at once, and the tile is gone. Several devices run one program,
each on a tile of its own: rows are split over them, and columns are on all of them; of a symmetric matrix all
inputs are, and each device takes its part of the upper triangle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxdistill.errors import InputError, MemoryBudgetError
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.kernels.stationary import central_row
from jaxdistill.kernels.tiling import (
    Tiling,
    plan_tiles,
    planned_rows,
    rounds,
    strip_rounds,
    triangle_rounds,
    whole_tiles,
)
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.memory import available_bytes, device_bytes, format_bytes
from jaxdistill.numerics.mesh import EACH, SAME, on_each
from jaxdistill.numerics.pace import late
from jaxdistill.numerics.placement import device_scope, float64_scope, over
from jaxdistill.numerics.two_sum import TwoSum


@final
@dataclass(frozen=True, eq=False)
class TiledKernel:
    """The matrix ``K = k(x_i, z_j)`` as an operator, on all devices; made by :meth:`of`.

    Args:
        num_rows: n.
        num_columns: m.
        symmetric: Whether z is x: then half of the tiles do.
        tiling: Size of a tile.
        mesh: The devices where there are several, or None.
        kernel: Kernel k, on all of them.
        x: Inputs of the rows, less the origin where there is one, filled up to whole tiles: split over the
            devices, or all on each of them where the matrix is symmetric.
        z: Inputs of the columns, in the same way, on all devices.
        origin: The point that was subtracted, or None: a kernel none of whose parts is stationary.
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
    mesh: Mesh | None
    kernel: AbstractKernel
    x: Array
    z: Array
    origin: Array | None
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
        parts = len(side.devices)
        tall = planned_rows(len(x), parts, symmetric)
        tiling = plan_tiles(tall, tall if symmetric else len(other), dtype, memory, workspace=workspace)
        if symmetric:
            tiling = Tiling(min(tiling), min(tiling))
        origin = central_row(other).astype(dtype) if kernel.stationary else None
        beside = _filled(other, whole_tiles(len(other), tiling.columns), dtype, origin)
        with device_scope(dtype, wide_sums=True):
            kernel, columns, point = side.everywhere((kernel, beside, origin))
            if symmetric:
                rows = columns
            else:
                rows = side.each(_filled(x, parts * whole_tiles(tall, tiling.rows), dtype, origin))
        mesh = side.mesh if parts > 1 else None
        return cls(
            len(x), len(other), symmetric, tiling, mesh, kernel, rows, columns, point, side.wide, progress
        )

    @property
    def _parts(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def _own_rows(self) -> int:
        """Rows that a device has: its part of them, or all."""
        return len(self.x) if self.symmetric else len(self.x) // self._parts

    def _rounds(self, what: str, strips: bool = False) -> Iterator[Int[np.ndarray, "q 3"]]:
        """First row and first column of every device's next tile, or next strip, and whether it counts."""
        if not self.symmetric:
            wide = self.tiling.columns if strips else self.num_columns
            found = rounds(self._own_rows, wide, self.tiling, self._parts)
        else:
            deal = strip_rounds if strips else triangle_rounds
            found = deal(self.num_rows, self.tiling.rows, self._parts)
        yield from tqdm(found, desc=what, disable=not self.progress, leave=False)

    def _tile(self, places: Int[np.ndarray, "q 3"]) -> Array:
        """Every device's tile, one below the other."""
        a = _rows(self.x, places[:, 0], self.tiling.rows, self.symmetric, self.mesh)
        b = _rows(self.z, places[:, 1], self.tiling.columns, True, self.mesh)
        tile = _entries(self.kernel, a, b, self.origin, self.mesh)
        if self.symmetric and np.any(places[:, 0] == places[:, 1]):
            diagonal = _diagonal(self.kernel, a, self.origin, self.mesh)
            tile = _symmetric(tile, diagonal, places, self.mesh)
        return tile

    def _strip(self, places: Int[np.ndarray, "q 3"]) -> Array:
        """Rows of all columns; where it takes several tiles, K^T K is larger."""
        width, columns = len(self.z), self.tiling.columns
        if columns == width:
            return self._tile(places)
        strip = self._begin(np.zeros((self._parts * self.tiling.rows, width), self.z.dtype))
        for j in range(0, width, columns):
            strip = _place(strip, self._tile(places + np.array([0, j, 0])), np.int64(j))
        return strip

    def _begin(self, zeros: Any) -> Any:
        """What every device adds to, or writes into, on its own."""
        return jax.device_put(zeros, self.z.sharding if self.mesh is None else NamedSharding(self.mesh, EACH))

    def matmul(self, vectors: Any) -> Float[np.ndarray, "n k"]:
        """``K v`` for v of shape (m, k), without K; sums over tiles in float64, or nearly."""
        vectors = np.asarray(vectors, np.float64)
        if vectors.ndim != 2 or len(vectors) != self.num_columns:
            raise InputError(f"vectors have shape {vectors.shape}, expected ({self.num_columns}, k)")
        dtype = self.x.dtype
        shape = self._parts * self._own_rows, vectors.shape[1]
        zeros = np.zeros(shape) if self.wide else TwoSum.zeros(shape, dtype)
        with device_scope(dtype, wide_sums=True):
            held = jax.device_put(_padded(vectors, len(self.z)).astype(dtype), self.z.sharding)
            total = self._begin(zeros)
            for places in self._rounds("kernel times vectors"):
                jax.block_until_ready(total)  # one tile a device at a time: memory, and an honest bar
                tile = self._tile(places)
                total = _add_product(tile, held, total, places, self.symmetric, self.mesh)
            found = total.to_float64() if isinstance(total, TwoSum) else np.asarray(total)
        if self.symmetric:
            return found.reshape(self._parts, self._own_rows, vectors.shape[1]).sum(axis=0)[: self.num_rows]
        return found[: self.num_rows].copy()

    def to_matrix(self) -> Float[np.ndarray, "n m"]:
        """K itself, on the host, in the precision of the tiles."""
        dtype = self.x.dtype
        size = self.num_rows * self.num_columns * dtype.itemsize
        if size > available_bytes():
            raise MemoryBudgetError(
                f"a kernel matrix of {self.num_rows} x {self.num_columns} takes {format_bytes(size)} ({size} "
                "bytes), more than is free; use products with it in place of the matrix"
            )
        out = np.empty((self.num_rows, self.num_columns), dtype)
        with device_scope(dtype, wide_sums=True):
            made = ((places, self._tile(places)) for places in self._rounds("kernel matrix"))
            # Several devices work on the next tiles while these are stored.
            for places, tile in late(made, 0 if self.mesh is None else 1):
                for block, (i, j) in zip(_each_part(tile), self._in_matrix(places), strict=True):
                    self._store(out, block, i, j)
        return out

    def _in_matrix(self, places: Int[np.ndarray, "q 3"]) -> list[tuple[int, int]]:
        """First row and column of every device's tile, counted in the whole matrix."""
        before = 0 if self.symmetric else self._own_rows
        return [(which * before + int(i), int(j)) for which, (i, j, _) in enumerate(places)]

    def _store(self, out: np.ndarray, block: np.ndarray, i: int, j: int) -> None:
        block = block[: max(0, self.num_rows - i), : self.num_columns - j]
        rows, columns = block.shape
        out[i : i + rows, j : j + columns] = block
        if self.symmetric:
            out[j : j + columns, i : i + rows] = block.T

    def normal_equations(self, y: Any) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m k"]]:
        """``K^T K`` and ``K^T Y`` for targets of shape (n, k), without K; products and sums in float64."""
        y = np.asarray(y, np.float64)
        m, k, parts = len(self.z), y.shape[1], self._parts if self.wide else 1
        # What only fills a tile has no weight.
        held = [_padded(a, len(self.x)) for a in (y, np.ones((len(y), 1)))]
        sums = np.zeros((parts * m, m)), np.zeros((parts * m, k))
        with float64_scope() as where:
            # What squares the condition number is formed where float64 lives.
            held = jax.device_put(held, self.x.sharding if self.wide else where.algebra)
            sums = self._begin(sums) if self.wide else jax.device_put(sums, where.algebra)
            for places in self._rounds("normal equations", strips=True):
                jax.block_until_ready(sums)
                with device_scope(self.x.dtype, wide_sums=True):
                    strip = self._strip(places)
                if self.wide:
                    sums = _add_squares(strip, held, sums, places, self.symmetric, self.mesh)
                    continue
                for block, (i, _), live in zip(
                    _each_part(strip), self._in_matrix(places), places[:, 2], strict=True
                ):
                    block = jax.device_put(block, where.algebra)
                    sums = _add_squares(block, held, sums, np.array([[i, 0, live]]))
            square, right = (np.asarray(a).reshape(parts, m, -1).sum(axis=0) for a in sums)
        return square[: self.num_columns, : self.num_columns], right[: self.num_columns]


def kernel_matrix(
    kernel: AbstractKernel,
    x: Any,
    z: Any | None = None,
    *,
    dtype: Any = None,
    memory: float | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "n m"]:
    """The matrix ``k(x_i, z_j)`` on the host, computed in tiles on all devices.

    Args:
        kernel: Kernel k.
        x: Inputs, shape (n, d).
        z: Inputs, shape (m, d); default x, whose matrix is symmetric to the last bit.
        dtype: Precision; default that of x.
        memory: Bytes that tiles may take on a device; default a quarter of what is free.
        mesh: Devices that share the tiles, as for :func:`~jaxdistill.fit_ridge`; default all of this process.
        progress: Whether to show a bar.

    Raises:
        InputError: shapes or types that do not fit, values that are not finite.
        MemoryBudgetError: the matrix is larger than what is free, or the budget cannot hold one tile.

    Example:
        >>> from jaxdistill.kernels import NTK
        >>> kernel_matrix(NTK(), np.eye(4, dtype=np.float32)).shape
        (4, 4)
    """
    with over(mesh):
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
            np.asarray(_diagonal(kernel, _filled(x[i : i + size], size, x.dtype), None, None))
            for i in range(0, len(x), size)
        ]
    return np.concatenate(parts)[: len(x)]


def _filled(x: np.ndarray, size: int, dtype: Any, origin: np.ndarray | None = None) -> np.ndarray:
    """The inputs less a point, in a precision; again from the first where tiles take more of them."""
    if origin is not None:
        x = np.subtract(x, origin, dtype=np.result_type(x, dtype))
    x = x.astype(dtype, copy=False)
    return x if len(x) == size else x[np.arange(size) % len(x)]


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """Zeros below, for the inputs that only fill a tile."""
    return np.pad(array, ((0, size - len(array)), (0, 0)))


def _each_part(tile: Array) -> list[np.ndarray]:
    """What every device holds, in the order of the rows."""
    parts = sorted(tile.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return [np.asarray(shard.data) for shard in parts]


@partial(jax.jit, static_argnums=(2, 3, 4))
def _rows(x: Array, at: Array, size: int, whole: bool, mesh: Mesh | None) -> Array:
    """Rows of what every device has of x."""

    def own(x: Array, at: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, at[0], size)

    return on_each(mesh, own, (SAME if whole else EACH, EACH), EACH)(x, at)


# Apart from what is done with a tile: kernels that are slow to compile are compiled once a size of tile.
@partial(jax.jit, static_argnums=4)
def _entries(kernel: AbstractKernel, a: Array, b: Array, origin: Array | None, mesh: Mesh | None) -> Array:
    def own(kernel: AbstractKernel, a: Array, b: Array, origin: Array | None) -> Array:
        return kernel.matrix(a, b) if origin is None else kernel.matrix_about(origin, a, b)

    return on_each(mesh, own, (SAME, EACH, EACH, SAME), EACH)(kernel, a, b, origin)


@partial(jax.jit, static_argnums=3)
def _diagonal(kernel: AbstractKernel, a: Array, origin: Array | None, mesh: Mesh | None) -> Array:
    def own(kernel: AbstractKernel, a: Array, origin: Array | None) -> Array:
        return kernel.diagonal(a if origin is None else a + origin[None])

    return on_each(mesh, own, (SAME, EACH, SAME), EACH)(kernel, a, origin)


@partial(jax.jit, static_argnums=3)
def _symmetric(tile: Array, diagonal: Array, places: Array, mesh: Mesh | None) -> Array:
    """A tile on the diagonal: the angle of an input with itself is rounding, and its own formula exact."""

    def own(tile: Array, diagonal: Array, places: Array) -> Array:
        i, j, _ = places[0]
        lower = jnp.tril(tile, -1)
        mirrored = lower + lower.T + jnp.diag(diagonal)
        return mirrored if mesh is None else jnp.where(i == j, mirrored, tile)  # one device knows its tile

    return on_each(mesh, own, (EACH, EACH, EACH), EACH)(tile, diagonal, places)


@partial(jax.jit, static_argnums=(4, 5), donate_argnums=2)
def _add_product(
    tile: Array,
    vectors: Array,
    total: Array | TwoSum,
    places: Array,
    symmetric: bool,
    mesh: Mesh | None,
) -> Array | TwoSum:
    def own(tile: Array, vectors: Array, total: Array | TwoSum, places: Array) -> Array | TwoSum:
        i, j, live = places[0]
        beside = jax.lax.dynamic_slice_in_dim(vectors, j, tile.shape[1])
        total = _add_rows(total, jnp.where(live > 0, matmul(tile, beside), 0), i)
        if not symmetric:
            return total
        above = jax.lax.dynamic_slice_in_dim(vectors, i, tile.shape[0])
        mirrored = (live > 0) & (i != j)
        return _add_rows(total, jnp.where(mirrored, matmul(tile.T, above), 0), j)

    return on_each(mesh, own, (EACH, SAME, EACH, EACH), EACH)(tile, vectors, total, places)


def _add_rows(total: Array | TwoSum, part: Array, at: Array) -> Array | TwoSum:
    there = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, at, part.shape[0]), total)
    more = there.add(part) if isinstance(there, TwoSum) else there + part.astype(there.dtype)
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, at, axis=0), total, more)


@partial(jax.jit, donate_argnums=0)
def _place(strip: Array, tile: Array, left: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(strip, tile, left, axis=1)


@partial(jax.jit, static_argnums=(4, 5), donate_argnums=2)
def _add_squares(
    strip: Array,
    held: list[Array],
    sums: tuple[Array, Array],
    places: Array,
    whole: bool = True,
    mesh: Mesh | None = None,
) -> tuple[Array, Array]:
    def own(strip: Array, held: list[Array], sums: tuple[Array, Array], places: Array) -> tuple[Array, Array]:
        i, _, live = places[0]
        y, real = (jax.lax.dynamic_slice_in_dim(a, i, strip.shape[0]) for a in held)
        rows = jnp.where((live > 0) & (real > 0), strip.astype(jnp.float64), 0)
        return sums[0] + matmul(rows.T, rows), sums[1] + matmul(rows.T, y)

    there = SAME if whole else EACH
    return on_each(mesh, own, (EACH, there, EACH, EACH), EACH)(strip, held, sums, places)
