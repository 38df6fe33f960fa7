"""Activations by name: forward, slope below zero, range, and the inverse of those that have one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.numerics.names import check_choice

_Elementwise = Callable[[Array], Array]


@dataclass(frozen=True)
class _Known:
    """A function of one number: itself, its inverse where it is strictly monotone, the ends of its range."""

    forward: _Elementwise
    inverse: _Elementwise | None = None
    low: float = -math.inf
    high: float = math.inf


_KNOWN: dict[str, _Known] = {
    "identity": _Known(lambda z: z, lambda a: a),
    "relu": _Known(jax.nn.relu, None, 0.0),
    "gelu": _Known(jax.nn.gelu, None, -0.17),
    "silu": _Known(jax.nn.silu, None, -0.279),
    "tanh": _Known(jnp.tanh, jnp.arctanh, -1.0, 1.0),
    "sigmoid": _Known(jax.nn.sigmoid, lambda a: jnp.log(a) - jnp.log1p(-a), 0.0, 1.0),
    # log(exp(a) - 1) without overflow of the exponential.
    "softplus": _Known(jax.nn.softplus, lambda a: a + jnp.log(-jnp.expm1(-a)), 0.0),
    "elu": _Known(jax.nn.elu, lambda a: jnp.where(a < 0, jnp.log1p(jnp.minimum(a, 0.0)), a), -1.0),
    "asinh": _Known(jnp.arcsinh, jnp.sinh),
    "cosine": _Known(jnp.cos, None, -1.0, 1.0),
    "sine": _Known(jnp.sin, None, -1.0, 1.0),
}
ACTIVATIONS = ("leaky_relu", *_KNOWN)


@dataclass(frozen=True)
class Activation:
    """An elementwise function, ``a = act(z)``, with what is known of its inverse.

    Args:
        name: One of ``ACTIVATIONS``.
        negative_slope: Slope below zero, in [0, 1]; of "leaky_relu" only.

    Raises:
        InputError: an unknown name, with the nearest known one, or a slope out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> act = Activation("tanh")
        >>> bool(jnp.allclose(act.inverse(act(jnp.arange(3.0))), jnp.arange(3.0), atol=1e-5))
        True
        >>> Activation("gelu").invertible
        False
    """

    name: str = "leaky_relu"
    negative_slope: float = 0.1

    def __post_init__(self) -> None:
        check_choice("activation", self.name, ACTIVATIONS)
        if not 0 <= self.negative_slope <= 1:
            raise InputError(f"negative_slope is {self.negative_slope}; choose it in [0, 1]")

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Apply the function."""
        if self.name == "leaky_relu":
            return jnp.where(z < 0, self.negative_slope * z, z)
        return _KNOWN[self.name].forward(z)

    @property
    def invertible(self) -> bool:
        """Whether the function is strictly monotone."""
        if self.name == "leaky_relu":
            return self.negative_slope > 0
        return _KNOWN[self.name].inverse is not None

    @property
    def range(self) -> tuple[float, float]:
        """Ends of the open interval of its values (lower bounds of GELU and SiLU to three digits)."""
        if self.name == "leaky_relu":
            return (0.0 if self.negative_slope == 0 else -math.inf), math.inf
        known = _KNOWN[self.name]
        return known.low, known.high

    @property
    def onto(self) -> bool:
        """Whether every real number is a value."""
        return self.range == (-math.inf, math.inf)

    def inverse(self, a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Undo the function; NaN or infinity outside its range.

        Raises:
            InputError: it has no inverse.
        """
        if not self.invertible:
            raise InputError(f"{self.title} has no inverse")
        if self.name == "leaky_relu":
            return jnp.where(a < 0, a / self.negative_slope, a)
        inverse = _KNOWN[self.name].inverse
        assert inverse is not None
        return inverse(a)

    @property
    def title(self) -> str:
        """How it is said to a person."""
        if self.name != "leaky_relu":
            return self.name
        return "ReLU (negative_slope 0)" if self.negative_slope == 0 else "LeakyReLU"

    @property
    def obstacle(self) -> str | None:
        """Why a network of it has no closed-form inverse, or None where it has."""
        if self.invertible:
            return None
        if self.range[0] == 0:
            return (
                f"a {self.title} network loses what is below zero and has no inverse; "
                "use leaky_relu with a positive slope, such as 0.1"
            )
        return (
            f"{self.title} is not monotone, so a network of it has no closed-form inverse; "
            "use leaky_relu, tanh or asinh"
        )

    @property
    def bound(self) -> float | None:
        """Largest magnitude of a value, or None where there is none."""
        low, high = self.range
        size = max(-low, high)
        return None if math.isinf(size) else size

    def construction_obstacle(self, layers: int) -> str | None:
        """Why the closed-form constructions cannot use so many layers of it, or None where they can.

        They choose features of both signs, which are scaled into [-c, c]; a range on one side of zero never
        holds them. Below a second bounded layer, nothing keeps the values inside the range.
        """
        low, high = self.range
        if self.onto or (low == -high and layers == 1):
            return None
        if low == -high:
            return (
                f"inside a network of {layers} layers {self.title} would have to take values outside its "
                f"range ({low:g}, {high:g}); use one layer, or leaky_relu"
            )
        return (
            f"{self.title} reaches only ({low:g}, {high:g}) and constructed features have both signs and "
            "any size; use leaky_relu, tanh or asinh"
        )

    def domain_violation(self, features: np.ndarray) -> str | None:
        """Why these features lie outside the range, or None where they do not."""
        low, high = self.range
        outside = features[(features <= low) | (features >= high)]
        if outside.size == 0:
            return None
        return (
            f"a feature of {outside.flat[0]:.4g} is outside the range ({low:g}, {high:g}) of {self.title}; "
            "scale features, labels and lam_s together, or choose features inside it"
        )
