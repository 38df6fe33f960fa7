"""Kernels of the distance ``r = |x - x'|``: Gaussian, Laplace, Matern, rational quadratic."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.kernels.base import AbstractNumericKernel
from jaxdistill.kernels.checks import check_number, check_rows, like
from jaxdistill.kernels.products import squared_norms
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.pytrees import register_pytree

# Rounding leaves at most so much of the distance of a row to itself, in eps of the squared norms: 13 were
# seen, for 12 288 numbers.
_COINCIDENT = 64
# Rows whose median is the point that is subtracted.
_LOOKED_AT = 9


@dataclass(frozen=True, eq=False)
class AbstractStationary(AbstractNumericKernel):
    """A function of ``s = |x - x'|^2 / lengthscale^2``.

    A matrix takes its distances from norms and one matrix product. Far from the origin these cancel, so a
    point amid the inputs (:func:`central_row`) is subtracted first, which changes no distance. What is left
    of rounding is that of the inputs' spread, and rows that coincide have a distance of exactly zero: values
    are at most 1, and the diagonal is 1. In float32, inputs nearer than about 1/2000 of the spread are not
    told apart, such as those within clusters that lie thousands of lengthscales from each other.
    """

    lengthscale: float

    def __post_init__(self) -> None:
        check_number("lengthscale", self.lengthscale)

    @property
    def stationary(self) -> bool:
        """A function of differences."""
        return True

    @abc.abstractmethod
    def of_square(self, s: Array) -> Array:
        """The kernel of the scaled squared distance ``s >= 0``: at most 1, and 1 at zero."""

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The kernel of one pair of inputs, from their difference."""
        return self._of_distance(squared_norms(x - x2))

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """All pairs of (n, d) and (m, d) inputs, by one matrix product about a point amid those of z."""
        check_rows(x, z)
        origin = jax.lax.stop_gradient(central_row(z))
        return self.matrix_about(origin, x - origin[None], z - origin[None])

    def matrix_about(self, origin: Float[Array, " d"], x: Array, z: Array) -> Float[Array, "n m"]:
        """All pairs of inputs less a point, whose place is of no account."""
        del origin
        check_rows(x, z)
        return self._of_distance(_squared_distances(x, z))

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """Ones: the kernel of no distance."""
        check_rows(x, x)
        return self._of_distance(jnp.zeros_like(x, shape=x.shape[0]))

    def _of_distance(self, square: Array) -> Array:
        return self.of_square(square / like(self.lengthscale, square) ** 2)


def central_row(rows: Any) -> Any:
    """A point amid rows: in every column the median of nine rows, spread evenly.

    A mean would follow a single row that lies far off, and spoil the distances of all others.

    Args:
        rows: Shape (n, d), of NumPy or JAX.

    Returns:
        The point, shape (d,), in the precision of the rows.

    Example:
        >>> central_row(np.array([[2000.0, 0.0], [2010.0, 1.0], [1e30, 2.0]])).tolist()
        [2010.0, 1.0]
    """
    namespace = np if isinstance(rows, np.ndarray) else jnp
    if rows.shape[0] == 0:
        return namespace.zeros_like(rows, shape=rows.shape[1])
    spread = np.linspace(0, rows.shape[0] - 1, _LOOKED_AT).round().astype(int)
    return namespace.sort(rows[spread], axis=0)[_LOOKED_AT // 2]


def _squared_distances(x: Array, z: Array) -> Float[Array, "n m"]:
    """``|x_i|^2 + |z_j|^2 - 2 x_i . z_j``, and zero for rows that are the same."""
    left, right = squared_norms(x)[:, None], squared_norms(z)[None, :]
    square = left + right - 2 * matmul(x, z.T)
    near = square <= _COINCIDENT * jnp.finfo(square.dtype).eps * (left + right)
    same = near & (_fingerprints(x)[:, None] == _fingerprints(z)[None, :])
    # Zero with the derivative of the expression, which is right there too.
    return jnp.where(same | (square < 0), square - jax.lax.stop_gradient(square), square)


def _fingerprints(rows: Array) -> Array:
    """A number for every row, from its bits: the same for the same rows, whatever the order of summation."""
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(rows), f"uint{8 * rows.dtype.itemsize}")
    bits = bits.astype("uint64" if rows.dtype.itemsize == 8 else "uint32")
    # High bits fold onto low ones, which round values leave empty; odd factors tell the columns apart.
    factors = 2 * jnp.arange(rows.shape[-1], dtype=bits.dtype) + 1
    factors = factors[(None,) * (bits.ndim - 1)]
    return jnp.sum((bits ^ (bits >> (bits.dtype.itemsize * 4))) * factors, axis=-1, dtype=bits.dtype)


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class RBF(AbstractStationary):
    """The Gaussian kernel, ``k = exp(-r^2 / (2 lengthscale^2))``.

    Args:
        lengthscale: Positive number, in the units of the inputs.

    Raises:
        InputError: it is not.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(RBF(2.0)(jnp.array([0.0]), jnp.array([2.0]))), 4)
        0.6065
    """

    kind = "rbf"

    def of_square(self, s: Array) -> Array:
        """The Gaussian."""
        return jnp.exp(-s / 2)


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Laplace(AbstractStationary):
    """The exponential kernel (Matern 1/2), ``k = exp(-r / lengthscale)``.

    It has a kink at r = 0; its derivative there is the mean of those from both sides, zero.

    Args:
        lengthscale: Positive number, in the units of the inputs.

    Raises:
        InputError: it is not.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Laplace(2.0)(jnp.array([0.0]), jnp.array([2.0]))), 4)
        0.3679
    """

    kind = "laplace"

    def of_square(self, s: Array) -> Array:
        """The exponential."""
        return jnp.exp(-_root(s))


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Matern32(AbstractStationary):
    """The Matern kernel of smoothness 3/2, ``k = (1 + u) exp(-u)`` with ``u = sqrt(3) r / lengthscale``.

    Args:
        lengthscale: Positive number, in the units of the inputs.

    Raises:
        InputError: it is not.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Matern32(2.0)(jnp.array([0.0]), jnp.array([2.0]))), 4)
        0.4834
    """

    kind = "matern32"

    def of_square(self, s: Array) -> Array:
        """The Matern kernel."""
        u = _root(3 * s)
        # As one exponential: rounding cannot bring it above 1.
        return jnp.exp(jnp.log1p(u) - u)


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Matern52(AbstractStationary):
    """The Matern kernel of smoothness 5/2, ``k = (1 + u + u^2/3) exp(-u)``, ``u = sqrt(5) r / lengthscale``.

    Args:
        lengthscale: Positive number, in the units of the inputs.

    Raises:
        InputError: it is not.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Matern52(2.0)(jnp.array([0.0]), jnp.array([2.0]))), 4)
        0.524
    """

    kind = "matern52"

    def of_square(self, s: Array) -> Array:
        """The Matern kernel."""
        u = _root(5 * s)
        return jnp.exp(jnp.log1p(u + 5 * s / 3) - u)


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class RationalQuadratic(AbstractStationary):
    """A mixture of Gaussians of all widths, ``k = (1 + r^2 / (2 alpha lengthscale^2))^-alpha``.

    Args:
        lengthscale: Positive number, in the units of the inputs.
        alpha: Positive number; infinity is the Gaussian.

    Raises:
        InputError: one of them is not.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(RationalQuadratic(2.0, 1.0)(jnp.array([0.0]), jnp.array([2.0]))), 4)
        0.6667
    """

    alpha: float = 1.0
    kind = "rational_quadratic"

    def __post_init__(self) -> None:
        check_number("lengthscale", self.lengthscale)
        check_number("alpha", self.alpha)

    def of_square(self, s: Array) -> Array:
        """The rational function."""
        alpha = like(self.alpha, s)
        return jnp.exp(-alpha * jnp.log1p(s / (2 * alpha)))


def _root(s: Array) -> Array:
    """Square root, and zero with a zero derivative at zero."""
    positive = s > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, s, 1.0)), 0.0)
