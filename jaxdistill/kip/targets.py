"""The targets of KIP on the device: all of them, or balanced batches at the price of a copy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.pytrees import register_pytree

# Rows in one step of a pass over all targets.
_CHUNK = 8192


@final
@register_pytree
@dataclass(frozen=True)
class TargetRows:
    """Targets, sorted by class and shuffled within it, with what is known of each.

    A batch is one window of every class, at a random place: every example is as likely as any other
    of its class, none appears twice, and reading it is a copy of contiguous memory, where a random
    choice of rows would need a sort and a gather. Each class ends with a repetition of its beginning,
    so that windows wrap around.

    Args:
        rows: Features (or inputs, where features cannot be kept) of the targets, shape (N, r).
        values: Targets, shape (N, k).
        weight: 1, and 0 on repeated rows, shape (N,).
        starts: First row of each class.
        sizes: Number of examples of each class.
        counts: Examples of each class in a batch; empty for a batch of all.
    """

    rows: Float[Array, "N r"] | Any
    values: Float[Array, "N k"] | Any
    weight: Float[Array, " N"] | Any
    starts: tuple[int, ...] = field(metadata={"static": True})
    sizes: tuple[int, ...] = field(metadata={"static": True})
    counts: tuple[int, ...] = field(metadata={"static": True})

    def batch(self, key: Array) -> tuple[Array, Array]:
        """Rows and targets of one batch; all of them where no batch was asked for."""
        if not self.counts:
            return self.rows, self.values
        draws = jax.random.uniform(key, (len(self.counts),))
        sizes = jnp.asarray(self.sizes, jnp.float32)
        places = jnp.minimum(draws.astype(jnp.float32) * sizes, sizes - 1).astype(jnp.int32)
        windows = [
            (start + places[c], count)
            for c, (start, count) in enumerate(zip(self.starts, self.counts, strict=True))
        ]
        rows, values = (
            jnp.concatenate([jax.lax.dynamic_slice_in_dim(a, at, size) for at, size in windows])
            for a in (self.rows, self.values)
        )
        return rows, values

    def fold(self, add: Any, initial: Any) -> Any:
        """Sum ``add(rows, values, weight)`` over all targets, a chunk at a time."""
        total = self.rows.shape[0]
        size = min(_CHUNK, total)

        def body(i: Array, sums: Any) -> Any:
            # The last chunk starts early enough to be full; what it repeats has weight zero.
            start = jnp.minimum(i * size, total - size)
            parts = (jax.lax.dynamic_slice_in_dim(a, start, size) for a in (self.rows, self.values))
            fresh = start + jnp.arange(size) >= i * size
            weight = jax.lax.dynamic_slice_in_dim(self.weight, start, size)
            more = add(*parts, jnp.where(fresh, weight, 0))
            return jax.tree.map(jnp.add, sums, more)

        return jax.lax.fori_loop(0, -(-total // size), body, initial)


@dataclass(frozen=True)
class Order:
    """Where each target goes: the rows in order, repetitions included, and their layout."""

    rows: np.ndarray
    weight: np.ndarray
    starts: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()


def batch_order(classes: np.ndarray, batch: int | str, key: Array) -> Order:
    """Lay targets out for batches.

    Args:
        classes: Class of each example, shape (n,); all zero for real-valued targets.
        batch: Examples in a batch, or "all".
        key: Random key of the shuffle.

    Raises:
        InputError: a batch larger than the data.
    """
    n = len(classes)
    if isinstance(batch, str):
        return Order(np.arange(n), np.ones(n))
    if batch > n:
        raise InputError(f"a batch of {batch} is larger than the data, {n} examples; use batch='all'")
    shuffled = host_generator(key).permutation(n)
    groups = [shuffled[classes[shuffled] == c] for c in np.unique(classes)]
    counts = balanced_counts([len(group) for group in groups], batch)
    parts, starts, weight = [], [], []
    used = [(group, count) for group, count in zip(groups, counts, strict=True) if count]
    for group, count in used:
        starts.append(sum(map(len, parts)))
        parts.append(np.concatenate([group, group[: count - 1]]))
        weight.append(np.arange(len(group) + count - 1) < len(group))
    return Order(
        np.concatenate(parts),
        np.concatenate(weight).astype(np.float64),
        tuple(starts),
        tuple(len(group) for group, _ in used),
        tuple(count for _, count in used),
    )


def balanced_counts(sizes: list[int], batch: int) -> list[int]:
    """Split a batch over classes as evenly as their sizes allow.

    Example:
        >>> balanced_counts([100, 2, 100], 11)
        [5, 2, 4]
    """
    counts = [0] * len(sizes)
    left = batch
    while left:
        available = [c for c, size in enumerate(sizes) if counts[c] < size]
        share = max(1, left // len(available))
        for c in available:
            take = min(share, sizes[c] - counts[c], left)
            counts[c] += take
            left -= take
    return counts
