"""Sums, products, multiples and normalisations of kernels, which are kernels again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.kernels.base import AbstractKernel, check_number, like


class AbstractPair(AbstractKernel):
    """Two kernels and what joins them."""

    left: AbstractKernel
    right: AbstractKernel

    def workspace(self, dim: int, dtype: Any) -> int:
        """That of both, which may be computed at once."""
        return self.left.workspace(dim, dtype) + self.right.workspace(dim, dtype)

    def settings(self) -> dict[str, Any]:
        """Kinds and settings of both."""
        return {"left": parts_of(self.left), "right": parts_of(self.right)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of both."""
        return _below("left/", self.left) | _below("right/", self.right)

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""
        sides = (rebuild(settings[side], _under(f"{side}/", arrays), **code) for side in ("left", "right"))
        return cls(*sides)  # pyright: ignore[reportCallIssue]


@final
@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Sum(AbstractPair):
    """The sum ``k1(x, x') + k2(x, x')``; also written ``k1 + k2``.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdistill.kernels import Linear
        >>> float(Sum(Linear(), Linear())(jnp.ones(3), jnp.ones(3)))
        6.0
    """

    left: AbstractKernel
    right: AbstractKernel
    kind = "sum"

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The sum for one pair of inputs."""
        return self.left(x, x2) + self.right(x, x2)

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """The sum of both matrices."""
        return self.left.matrix(x, z) + self.right.matrix(x, z)

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """The sum of both diagonals."""
        return self.left.diagonal(x) + self.right.diagonal(x)


@final
@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Product(AbstractPair):
    """The product ``k1(x, x') k2(x, x')``; also written ``k1 * k2``.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdistill.kernels import Linear
        >>> float(Product(Linear(), Linear())(jnp.ones(3), jnp.ones(3)))
        9.0
    """

    left: AbstractKernel
    right: AbstractKernel
    kind = "product"

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The product for one pair of inputs."""
        return self.left(x, x2) * self.right(x, x2)

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """The elementwise product of both matrices."""
        return self.left.matrix(x, z) * self.right.matrix(x, z)

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """The product of both diagonals."""
        return self.left.diagonal(x) * self.right.diagonal(x)


@final
@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Scaled(AbstractKernel):
    """A positive multiple ``factor k(x, x')``; also written ``factor * k``.

    Raises:
        InputError: a factor that is not positive and finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdistill.kernels import Linear
        >>> float(Scaled(Linear(), 0.5)(jnp.ones(3), jnp.ones(3)))
        1.5
    """

    kernel: AbstractKernel
    factor: float
    kind = "scaled"

    def __post_init__(self) -> None:
        check_number("factor", self.factor)

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The multiple for one pair of inputs."""
        value = self.kernel(x, x2)
        return like(self.factor, value) * value

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """The multiple of the matrix."""
        return like(self.factor, x) * self.kernel.matrix(x, z)

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """The multiple of the diagonal."""
        return like(self.factor, x) * self.kernel.diagonal(x)

    def workspace(self, dim: int, dtype: Any) -> int:
        """That of the kernel."""
        return self.kernel.workspace(dim, dtype)

    def settings(self) -> dict[str, Any]:
        """The factor, and kind and settings of the kernel."""
        return {"factor": float(self.factor), "kernel": parts_of(self.kernel)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of the kernel."""
        return _below("kernel/", self.kernel)

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""
        return cls(rebuild(settings["kernel"], _under("kernel/", arrays), **code), float(settings["factor"]))


@final
@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Normalised(AbstractKernel):
    """A kernel of unit diagonal, ``k(x, x') / sqrt(k(x, x) k(x', x'))``; zero where k(x, x) is.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdistill.kernels import Linear
        >>> float(Normalised(Linear())(jnp.array([3.0, 4.0]), jnp.array([5.0, 0.0]))).__round__(4)
        0.6
    """

    kernel: AbstractKernel
    kind = "normalised"

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The cosine of one pair of inputs in the feature space."""
        return self.kernel(x, x2) * _inverse_root(self.kernel(x, x)) * _inverse_root(self.kernel(x2, x2))

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """The matrix, divided by the roots of both diagonals."""
        left, right = (_inverse_root(self.kernel.diagonal(rows)) for rows in (x, z))
        return self.kernel.matrix(x, z) * left[:, None] * right[None, :]

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """Ones, and zeros where the kernel is zero."""
        values = self.kernel.diagonal(x)
        return values * _inverse_root(values) ** 2

    def workspace(self, dim: int, dtype: Any) -> int:
        """That of the kernel."""
        return self.kernel.workspace(dim, dtype)

    def settings(self) -> dict[str, Any]:
        """Kind and settings of the kernel."""
        return {"kernel": parts_of(self.kernel)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of the kernel."""
        return _below("kernel/", self.kernel)

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""
        return cls(rebuild(settings["kernel"], _under("kernel/", arrays), **code))


def parts_of(kernel: AbstractKernel) -> dict[str, Any]:
    """Kind and settings of a kernel, as JSON keeps them."""
    return {"kind": kernel.kind, "settings": kernel.settings()}


def rebuild(parts: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> AbstractKernel:
    """The kernel of :func:`parts_of` and its arrays, and of a flax module where it has one inside."""
    from jaxdistill.kernels import KINDS

    return KINDS[parts["kind"]].from_parts(parts["settings"], arrays, **code)


def _inverse_root(values: Array) -> Array:
    positive = values > 0
    return jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, values, 1.0)), 0.0)


def _below(prefix: str, kernel: AbstractKernel) -> dict[str, np.ndarray]:
    return {prefix + name: value for name, value in kernel.arrays().items()}


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
