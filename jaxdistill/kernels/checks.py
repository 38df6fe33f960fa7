"""Checks of the inputs and settings of kernels, and settings in the precision of inputs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError


def check_rows(x: Any, z: Any) -> None:
    """Raise unless both are rows of floats of one length.

    Raises:
        InputError: names the shapes, and what to do with images.
    """
    for rows in (x, z):
        if rows.ndim != 2:
            hint = "flatten images to rows first" if rows.ndim > 2 else "for one pair call kernel(x, x2)"
            raise InputError(f"inputs of a kernel matrix have shape {rows.shape}, expected (n, d); {hint}")
        if not jnp.issubdtype(rows.dtype, jnp.floating):
            raise InputError(f"inputs have type {rows.dtype}; convert them to float32 or float64")
    if x.shape[1] != z.shape[1] or x.dtype != z.dtype:
        raise InputError(
            f"inputs have shapes {x.shape} and {z.shape} and types {x.dtype} and {z.dtype}; a kernel "
            "compares rows of one length and one type"
        )


def check_number(name: str, value: Any, *, zero: bool = False) -> None:
    """Raise unless a setting is a positive, finite number; traced values pass.

    Args:
        name: The setting.
        value: Its value.
        zero: Whether zero is allowed.

    Raises:
        InputError: names the setting and its value.
    """
    if isinstance(value, (bool, str)) or value is None:
        raise InputError(f"{name} is {value!r:.60}; it must be a number")
    if not isinstance(value, (int, float, np.number)):
        return
    if not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise InputError(f"{name} is {value}; it must be finite and {'>= 0' if zero else 'positive'}")


def like(value: Any, array: Array) -> Array:
    """A setting in the precision of the inputs, so that no promotion happens in silence."""
    return jnp.asarray(value).astype(array.dtype)
