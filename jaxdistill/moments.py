"""One pass over the data: the sums that everything later is computed from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.linalg import matmul

# Bytes of float32 features in one chunk: large enough for the matrix product to run at full speed,
# small beside the Gram matrix of a wide map.
CHUNK_BYTES = 2**24


@final
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Sums over examples: G = Phi^T Phi, C = Phi^T Y, T = Y^T Y and n.

    They add over chunks, devices and hosts, and are all that ridge regression, reduced rank, data-weighted
    labels and full-data KIP need to know of the data.

    Args:
        gram: G, shape (p, p).
        cross: C, shape (p, k).
        target_gram: T, shape (k, k).
        count: n, a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> phi, y = jnp.ones((4, 2)), jnp.ones((4, 1))
        >>> moments = Moments.zeros(2, 1).update(phi, y)
        >>> float(moments.merge(moments).count)
        8.0
    """

    gram: Float[Array, "p p"] | Any
    cross: Float[Array, "p k"] | Any
    target_gram: Float[Array, "k k"] | Any
    count: Float[Array, ""] | Any

    @classmethod
    def zeros(cls, num_features: int, num_targets: int, dtype: Any = None) -> Self:
        """Moments of no examples, in ``dtype`` (default: JAX's default float)."""
        return cls(
            jnp.zeros((num_features, num_features), dtype),
            jnp.zeros((num_features, num_targets), dtype),
            jnp.zeros((num_targets, num_targets), dtype),
            jnp.zeros((), dtype),
        )

    @classmethod
    def from_features(
        cls,
        features: Float[Array, "n p"],
        targets: Float[Array, "n k"],
        weight: Float[Array, " n"] | None = None,
        dtype: Any = None,
    ) -> Self:
        """Moments of one block: products in the precision of the features, sums in ``dtype``; pure.

        Args:
            features: Phi, shape (n, p).
            targets: Y, shape (n, k).
            weight: Weight of each example, shape (n,); zero leaves a padding row out.
            dtype: Type of the sums; default that of the features.
        """
        dtype = features.dtype if dtype is None else dtype
        y = targets.astype(dtype)
        if weight is not None:
            root = jnp.sqrt(weight)[:, None]
            features = features * root.astype(features.dtype)
            y = y * root.astype(dtype)
        count = jnp.asarray(features.shape[0], dtype) if weight is None else jnp.sum(weight)
        return cls(
            matmul(features.T, features).astype(dtype),
            matmul(features.T, y.astype(features.dtype)).astype(dtype),
            matmul(y.T, y),
            count.astype(dtype),
        )

    def update(self, features: Float[Array, "n p"], targets: Float[Array, "n k"]) -> Moments:
        """Add a block of examples."""
        return self.merge(Moments.from_features(features, targets, dtype=self.gram.dtype))

    def merge(self, other: Moments) -> Moments:
        """Add the moments of other examples."""
        return jax.tree.map(lambda a, b: a + b, self, other)


def chunk_rows(num_features: int, num_rows: int) -> int:
    """Rows in one chunk: a multiple of the device count, bounded by memory and by the data."""
    devices = jax.local_device_count()
    rows = max(256, min(16384, CHUNK_BYTES // (4 * num_features)))
    rows = min(rows, num_rows)
    return -(-rows // devices) * devices


def padded_chunks(
    arrays: tuple[np.ndarray, ...],
    size: int,
    rows: np.ndarray | None = None,
    progress: str | None = None,
) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """Chunks of equal size, the last padded with zeros, so that one compilation serves all.

    Args:
        arrays: Arrays with the same number of rows.
        size: Rows in a chunk.
        rows: Rows to visit, in order; default all.
        progress: Title of a progress bar; default none.

    Yields:
        The chunk of every array, and a float32 mask of shape (size,) that is zero on padding.
    """
    total = len(arrays[0]) if rows is None else len(rows)
    starts = range(0, total, size)
    for start in tqdm(starts, desc=progress, disable=progress is None, leave=False):
        stop = min(start + size, total)
        where = slice(start, stop) if rows is None else rows[start:stop]
        mask = np.zeros(size, np.float32)
        mask[: stop - start] = 1
        chunk = tuple(a[where] for a in arrays)
        if stop - start < size:
            chunk = tuple(
                np.concatenate([c, np.zeros((size - len(c), *c.shape[1:]), c.dtype)]) for c in chunk
            )
        yield chunk, mask


def _shardings() -> tuple[NamedSharding, NamedSharding]:
    """Rows split over the local devices, and copies on all of them."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("rows",))
    return NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())


@partial(jax.jit, donate_argnums=0)
def _add_chunk(moments: Moments, features: AbstractFeatureMap, x: Array, y: Array, mask: Array) -> Moments:
    return moments.merge(Moments.from_features(features(x), y, mask, moments.gram.dtype))


def accumulate_moments(
    features: AbstractFeatureMap,
    x: np.ndarray,
    y: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    dtype: Any = np.float32,
    chunk_size: int | None = None,
    progress: bool = False,
) -> Moments:
    """Moments of a data set, streamed in chunks over all local devices; sums in float64.

    Args:
        features: Feature map phi.
        x: Inputs, shape (n, d).
        y: Targets, shape (n, k).
        rows: Rows to use; default all.
        dtype: Precision of the features and of the product Phi^T Phi.
        chunk_size: Rows in a chunk, a multiple of the number of devices; default by memory.
        progress: Whether to show a bar.

    Returns:
        Moments as float64 NumPy arrays.
    """
    total = len(x) if rows is None else len(rows)
    size = chunk_rows(features.num_features, total) if chunk_size is None else chunk_size
    by_row, everywhere = _shardings()
    with jax.enable_x64(True):
        features = jax.device_put(features, everywhere)
        moments = jax.device_put(Moments.zeros(features.num_features, y.shape[1], jnp.float64), everywhere)
        bar = "moments" if progress else None
        for (cx, cy), mask in padded_chunks((x, y), size, rows, bar):
            block = (cx.astype(dtype, copy=False), cy, mask)
            if jax.local_device_count() > 1:  # one device takes the rows without a copy
                block = jax.device_put(block, by_row)
            # Rows are read while the device works, but only one chunk ahead of it.
            jax.block_until_ready(moments)
            moments = _add_chunk(moments, features, *block)
        return jax.tree.map(np.asarray, moments)
