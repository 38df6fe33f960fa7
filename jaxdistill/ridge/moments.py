"""One pass over the data: the sums that everything later is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.linalg import matmul
from jaxdistill.ridge.source import AbstractSource, padded


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


def _shardings() -> tuple[NamedSharding, NamedSharding]:
    """Rows split over the local devices, and copies on all of them."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("rows",))
    return NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())


@partial(jax.jit, donate_argnums=0)
def _add_chunk(moments: Moments, features: AbstractFeatureMap, x: Array, y: Array, mask: Array) -> Moments:
    return moments.merge(Moments.from_features(features(x), y, mask, moments.gram.dtype))


def accumulate_moments(
    features: AbstractFeatureMap,
    source: AbstractSource,
    *,
    dtype: Any = np.float32,
    progress: bool = False,
) -> Moments:
    """Moments of a data set, streamed in chunks over all local devices; sums in float64.

    Args:
        features: Feature map phi.
        source: Inputs and targets.
        dtype: Precision of the features and of the product Phi^T Phi.
        progress: Whether to show a bar.

    Returns:
        Moments as float64 NumPy arrays.
    """
    by_row, everywhere = _shardings()
    size, bar = source.chunk_size, "moments" if progress else None
    with jax.enable_x64(True):
        features = jax.device_put(features, everywhere)
        p, k = features.num_features, source.num_targets
        # From the host: JAX would compile a program for each array of zeros.
        zeros = Moments(*(np.zeros(shape) for shape in ((p, p), (p, k), (k, k), ())))
        moments = jax.device_put(zeros, everywhere)
        for (x, y), mask in padded(source.chunks(), size, total=source.num_rows, progress=bar):
            block = (x.astype(dtype, copy=False), y, mask)
            if jax.local_device_count() > 1:  # one device takes the rows without a copy
                block = jax.device_put(block, by_row)
            # Rows are read while the device works, but only one chunk ahead of it.
            jax.block_until_ready(moments)
            moments = _add_chunk(moments, features, *block)
        return jax.tree.map(np.asarray, moments)
