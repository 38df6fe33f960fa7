"""Expectations of ReLU units: the arc-cosine functions, with derivatives that stay finite."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# A cosine within so many eps of 1 is 1: inner products of some hundred numbers are off by up to 40.
COINCIDENT = 64


@jax.custom_jvp
def arc_cosine(cosine: Array) -> tuple[Array, Array]:
    """Arc-cosine functions of order 0 and 1 of the angle t between two inputs.

    ``kappa_0 = (pi - t) / pi`` and ``kappa_1 = (sin t + (pi - t) cos t) / pi``: twice the expectations of
    ``step(u) step(v)`` and ``relu(u) relu(v)`` for standard normal u, v of the given correlation.

    kappa_0 has a kink of infinite slope where inputs coincide; its derivative there is the mean of those
    from both sides, zero, as central differences find it.

    Args:
        cosine: cos t, of any shape; values outside [-1, 1] are rounding.

    Returns:
        kappa_0 and kappa_1, of the same shape.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(value), 3) for value in arc_cosine(jnp.array(0.0))]
        [0.5, 0.318]

    Source: Cho and Saul 2009.
    """
    size = jnp.abs(cosine)
    near = jnp.sqrt(jnp.maximum(1 - size, 0))
    near = jnp.where(1 - size <= COINCIDENT * jnp.finfo(cosine.dtype).eps, 0, near)
    sine = near * jnp.sqrt(1 + size)
    # A polynomial costs a third of the library's arctangent, at the same accuracy in this precision.
    short = cosine.dtype == jnp.float32
    angle = near * _horner(size) if short else jnp.arctan2(sine, size)
    rest = jnp.where(cosine < 0, angle, jnp.pi - angle)
    return rest / jnp.pi, (sine + rest * cosine) / jnp.pi


@arc_cosine.defjvp
def _arc_cosine_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    (cosine,), (change,) = primals, tangents
    values = arc_cosine(cosine)
    gap = 1 - jnp.abs(cosine)
    apart = gap > COINCIDENT * jnp.finfo(cosine.dtype).eps
    square = jnp.where(apart, gap * (1 + jnp.abs(cosine)), 1.0)
    slope = jnp.where(apart, 1 / (jnp.pi * jnp.sqrt(square)), 0.0)
    return values, (slope * change, values[0] * change)


def _horner(x: Array) -> Array:
    value = jnp.zeros_like(x)
    for coefficient in _coefficients():
        value = value * x + coefficient
    return value


@cache
def _coefficients() -> tuple[float, ...]:
    """Of ``arccos(x) / sqrt(1 - x)`` on [0, 1], which is smooth: degree 8 is off by 4e-9, a tenth of eps."""

    def smooth(x: np.ndarray) -> np.ndarray:
        half = np.sqrt((1 - x) / 2)  # arccos x = 2 arcsin(half)
        return np.sqrt(2) * np.arcsin(half) / half

    fit = np.polynomial.Chebyshev.interpolate(smooth, 8, domain=[0, 1])
    plain = fit.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1])
    return tuple(float(c) for c in plain.coef[::-1])
