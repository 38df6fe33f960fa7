"""Kernels of the distance ``r = |x - x'|``: Gaussian, Laplace, Matern, rational quadratic."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, Self, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdistill.kernels.checks import check_number, like
from jaxdistill.kernels.products import AbstractProductKernel
from jaxdistill.numerics.pytrees import register_pytree


class AbstractStationary(AbstractProductKernel):
    """A function of ``s = |x - x'|^2 / lengthscale^2``."""

    lengthscale: Any

    def __post_init__(self) -> None:
        check_number("lengthscale", self.lengthscale)

    @abc.abstractmethod
    def of_square(self, s: Array) -> Array:
        """The kernel of the scaled squared distance; rounding may have made s a little negative."""

    def of_products(self, dot: Array, left: Array, right: Array, dim: int) -> Array:
        """The kernel from ``|x - x'|^2 = |x|^2 + |x'|^2 - 2 x . x'``."""
        del dim
        return self.of_square((left + right - 2 * dot) / like(self.lengthscale, dot) ** 2)

    def settings(self) -> dict[str, Any]:
        """The lengthscale."""
        return {"lengthscale": float(self.lengthscale)}

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Rebuild from :meth:`settings`."""
        del arrays, code
        return cls(**{name: float(value) for name, value in settings.items()})


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

    lengthscale: float
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

    lengthscale: float
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

    lengthscale: float
    kind = "matern32"

    def of_square(self, s: Array) -> Array:
        """The Matern kernel."""
        u = _root(3 * s)
        return (1 + u) * jnp.exp(-u)


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

    lengthscale: float
    kind = "matern52"

    def of_square(self, s: Array) -> Array:
        """The Matern kernel."""
        u = _root(5 * s)
        return (1 + u + 5 * s / 3) * jnp.exp(-u)


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

    lengthscale: float
    alpha: float = 1.0
    kind = "rational_quadratic"

    def __post_init__(self) -> None:
        check_number("lengthscale", self.lengthscale)
        check_number("alpha", self.alpha)

    def of_square(self, s: Array) -> Array:
        """The rational function."""
        alpha = like(self.alpha, s)
        return jnp.exp(-alpha * jnp.log1p(s / (2 * alpha)))

    def settings(self) -> dict[str, Any]:
        """Lengthscale and alpha."""
        return {"lengthscale": float(self.lengthscale), "alpha": float(self.alpha)}


def _root(s: Array) -> Array:
    """Square root, zero with a zero derivative where rounding leaves nothing positive."""
    positive = s > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, s, 1.0)), 0.0)
