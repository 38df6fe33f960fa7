"""Pooling of images over squares that do not overlap."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

POOLS = ("none", "average", "max")


def pool(images: Float[Array, "*n h w c"], kind: str, size: int = 2) -> Float[Array, "*n hp wp c"]:
    """Average or maximum over squares; rows and columns that fill no square are left out.

    Example:
        >>> import jax.numpy as jnp
        >>> pool(jnp.arange(8.0).reshape(1, 2, 4, 1), "average").ravel().tolist()
        [2.5, 4.5]
    """
    if kind == "none":
        return images
    *batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    cut = images[..., : rows * size, : columns * size, :]
    squares = cut.reshape(*batch, rows, size, columns, size, channels)
    return (jnp.mean if kind == "average" else jnp.max)(squares, axis=(-4, -2))
