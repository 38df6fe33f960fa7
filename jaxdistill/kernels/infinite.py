"""Infinitely wide, fully connected networks in closed form: NNGP and NTK."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.errors import InputError
from jaxdistill.kernels.arc_cosine import arc_cosine
from jaxdistill.kernels.checks import check_number, like
from jaxdistill.kernels.products import AbstractProductKernel
from jaxdistill.numerics.pytrees import register_pytree


@dataclass(frozen=True, eq=False)
class AbstractWideNetwork(AbstractProductKernel):
    """What NNGP and NTK share: the network, and one pass through its layers.

    Every layer is ``h -> sqrt(weight_variance / width) W h + sqrt(bias_variance) b`` with standard normal
    parameters; between layers acts ReLU, or LeakyReLU of a slope. Far from the origin all inputs point the
    same way; in float32 angles below 0.004 are zero (:func:`~jaxdistill.kernels.arc_cosine.arc_cosine`).
    """

    depth: int = field(default=1, metadata={"static": True})
    weight_variance: float = 2.0
    bias_variance: float = 0.01
    negative_slope: float = 0.0
    # Which of the two that the recursion gives.
    tangent: ClassVar[bool]

    def __post_init__(self) -> None:
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise InputError(f"depth is {self.depth!r:.60}; it must be a whole number >= 1 of hidden layers")
        check_number("weight_variance", self.weight_variance)
        check_number("bias_variance", self.bias_variance, zero=True)
        if isinstance(self.negative_slope, (int, float)) and not np.isfinite(self.negative_slope):
            raise InputError(f"negative_slope is {self.negative_slope}; it must be finite")

    def of_products(self, dot: Array, left: Array, right: Array, dim: int) -> Array:
        """The NNGP or the NTK from inner products."""
        return self._propagate(dot, left, right, dim)[self.tangent]

    def diagonal(self, x: Array) -> Array:
        """Every input with itself, from its norm alone."""
        return self._diagonal(x)[self.tangent]

    def _propagate(self, dot: Array, left: Array, right: Array, dim: int) -> tuple[Array, Array]:
        """NNGP and NTK of the output, by the recursion over layers."""
        weight, bias = like(self.weight_variance, dot), like(self.bias_variance, dot)
        slope = like(self.negative_slope, dot)
        # LeakyReLU is ``slope u + (1 - slope) relu(u)``; with (1 - slope)^2 come the arc-cosine terms.
        bend, kept = (1 - slope) ** 2 / 2, weight * (1 + slope**2) / 2
        nngp, left, right = (weight * product / dim + bias for product in (dot, left, right))
        ntk = nngp
        for _ in range(self.depth):
            (root, inverse), (root2, inverse2) = _root(left), _root(right)
            step, ramp = arc_cosine(nngp * inverse * inverse2)
            ntk = weight * (slope + bend * step) * ntk
            nngp = weight * (slope * nngp + bend * root * root2 * ramp) + bias
            ntk = nngp + ntk
            left, right = kept * left + bias, kept * right + bias
        return nngp, ntk

    def _diagonal(self, x: Array) -> tuple[Array, Array]:
        """NNGP and NTK of every input with itself, without an angle."""
        weight, bias = like(self.weight_variance, x), like(self.bias_variance, x)
        slope = like(self.negative_slope, x)
        kept = weight * (1 + slope**2) / 2
        nngp = weight * jnp.sum(x * x, axis=-1) / x.shape[-1] + bias
        ntk = nngp
        for _ in range(self.depth):
            nngp = kept * nngp + bias
            ntk = nngp + kept * ntk
        return nngp, ntk


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class NNGP(AbstractWideNetwork):
    """Covariance of the outputs of an infinitely wide network at its initialisation.

    ``q' = weight_variance E[act(u) act(v)] + bias_variance`` layer by layer, where (u, v) is Gaussian with
    the covariance of the layer before, and ``q = weight_variance x . x' / d + bias_variance`` at the first.

    It depends on angles at the origin, so a shift of all inputs changes it, and far away float32 cannot tell
    them apart. Subtract the mean of the inputs first (:class:`~jaxdistill.Standardize`).

    Args:
        depth: Number of hidden layers.
        weight_variance: Of the weights, divided by the width; 2 keeps the size of a ReLU network's outputs.
        bias_variance: Of the biases.
        negative_slope: Of LeakyReLU; 0 is ReLU.

    Raises:
        InputError: a setting that makes no network.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = NNGP(depth=3, weight_variance=2.0, bias_variance=0.0)
        >>> kernel.diagonal(jnp.array([[1.0, 1.0], [2.0, 0.0]])).tolist()
        [2.0, 4.0]

    Source: Cho and Saul 2009; Lee et al. 2018.
    """

    kind = "nngp"
    tangent = False


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class NTK(AbstractWideNetwork):
    """Neural tangent kernel: what gradient descent on an infinitely wide network regresses with.

    ``t' = q' + weight_variance E[act'(u) act'(v)] t`` layer by layer, beside the recursion of :class:`NNGP`
    for q, and ``t = q`` at the first.

    It depends on angles at the origin, so a shift of all inputs changes it, and far away float32 cannot tell
    them apart. Subtract the mean of the inputs first (:class:`~jaxdistill.Standardize`).

    Args:
        depth: Number of hidden layers.
        weight_variance: Of the weights, divided by the width.
        bias_variance: Of the biases.
        negative_slope: Of LeakyReLU; 0 is ReLU.

    Raises:
        InputError: a setting that makes no network.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> kernel = NTK(depth=1, weight_variance=2.0, bias_variance=0.0)
        >>> x = jnp.array([1.0, 1.0])
        >>> round(float(kernel(x, x)), 4), jax.grad(kernel)(x, x).round(3).tolist()
        (4.0, [2.0, 2.0])

    Source: Jacot, Gabriel and Hongler 2018.
    """

    kind = "ntk"
    tangent = True


def _root(squares: Array) -> tuple[Array, Array]:
    """Square root and its inverse, both zero, and their slopes, at zero: an input of zeros has no angle."""
    positive = squares > 0
    root = jnp.sqrt(jnp.where(positive, squares, 1.0))
    return jnp.where(positive, root, 0.0), jnp.where(positive, 1 / root, 0.0)
