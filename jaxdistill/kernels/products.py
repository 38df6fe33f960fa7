"""Kernels of the inner product: linear and polynomial."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import final

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.kernels.base import AbstractNumericKernel
from jaxdistill.kernels.checks import check_number, check_rows, like
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.pytrees import register_pytree


class AbstractProductKernel(AbstractNumericKernel):
    """A kernel that is a function of ``x . x'``, ``|x|^2`` and ``|x'|^2``.

    Its matrix is one matrix product and elementwise work, which the compiler fuses into one pass.
    """

    @abc.abstractmethod
    def of_products(self, dot: Array, left: Array, right: Array, dim: int) -> Array:
        """The kernel from inner products.

        Args:
            dot: ``x . x'``, of any shape.
            left: ``|x|^2``, which broadcasts against it.
            right: ``|x'|^2``, which broadcasts against it.
            dim: Length d of an input.
        """

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The kernel of one pair of inputs."""
        return self.of_products(matmul(x, x2), matmul(x, x), matmul(x2, x2), x.shape[0])

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """All pairs of (n, d) and (m, d) inputs, by one matrix product."""
        check_rows(x, z)
        left, right = squared_norms(x)[:, None], squared_norms(z)[None, :]
        return self.of_products(matmul(x, z.T), left, right, x.shape[1])

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """Every input with itself, from its norm alone."""
        check_rows(x, x)
        squares = squared_norms(x)
        return self.of_products(squares, squares, squares, x.shape[1])


def squared_norms(x: Array) -> Float[Array, " *n"]:
    """``|x_i|^2`` of rows, or of one."""
    return jnp.sum(x * x, axis=-1)


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Linear(AbstractProductKernel):
    """The inner product, ``k(x, x') = x . x'``.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Linear()(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
        11.0
    """

    kind = "linear"

    def of_products(self, dot: Array, left: Array, right: Array, dim: int) -> Array:
        """Return the inner product itself."""
        del left, right, dim
        return dot


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Polynomial(AbstractProductKernel):
    """The polynomial kernel, ``k(x, x') = (x . x' / d + offset)^degree``.

    It changes when all inputs are shifted: far from the origin all its values are alike, and their
    differences rounding. Subtract the mean of the inputs first (:class:`~jaxdistill.Standardize`).

    Args:
        degree: Whole number >= 1.
        offset: Number >= 0; 0 leaves the terms of the highest degree alone.

    Raises:
        InputError: a degree or an offset that makes no kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> float(Polynomial(2, 1.0)(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
        9.0
    """

    degree: int = field(default=2, metadata={"static": True})
    offset: float = 1.0
    kind = "polynomial"

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, int) or self.degree < 1:
            raise InputError(f"degree is {self.degree!r:.60}; it must be a whole number >= 1")
        check_number("offset", self.offset, zero=True)

    def of_products(self, dot: Array, left: Array, right: Array, dim: int) -> Array:
        """The power of the inner product."""
        del left, right
        return (dot / dim + like(self.offset, dot)) ** self.degree
