"""Convolutions of one channel in float64, without XLA's own, which on JAX 0.10 may crash the process."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def convolve(lhs: Array, rhs: Array, window_strides: Any, padding: Any, **more: Any) -> Array:
    """``jax.lax.conv_general_dilated``; in float64 and of one channel, as a sum of shifted inputs.

    On a CPU neural-tangents' kernels of convolutions are such convolutions. XLA of jaxlib 0.10 reads outside
    the input of one that is padded and 8, 16 or 32 wide (seen on x86-64 with AVX-512; 0.11 does not): the
    process crashes if that memory is not its own. As a sum it takes the same time there.
    """
    one = lhs.dtype == np.float64 and set(more) <= {"dimension_numbers", "feature_group_count"}
    layout = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, more.get("dimension_numbers"))
    channels = lhs.shape[layout.lhs_spec[1]], *(rhs.shape[axis] for axis in layout.rhs_spec[:2])
    if not one or channels != (1, 1, 1):
        return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **more)
    images = jnp.transpose(lhs, layout.lhs_spec)  # (n, 1, ...)
    filters = jnp.transpose(rhs, layout.rhs_spec)[0, 0]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(images.shape[2:], filters.shape, window_strides, padding)
    padded = jnp.pad(images, ((0, 0), (0, 0), *padding))
    room = np.subtract(padded.shape[2:], filters.shape)

    def shifted(tap: tuple[int, ...]) -> Array:
        ends = np.add(tap, room) + 1
        return padded[(..., *map(slice, tap, ends, window_strides))]

    total = sum(filters[tap] * shifted(tap) for tap in np.ndindex(*filters.shape))
    return jnp.transpose(jnp.asarray(total), np.argsort(layout.out_spec).tolist())
