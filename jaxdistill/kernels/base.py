"""What every kernel offers to the rest of the package, and the kernels that are made of others."""

from __future__ import annotations

import abc
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.kernels.checks import check_number, check_rows, like
from jaxdistill.numerics.pytrees import register_pytree


class AbstractKernel(abc.ABC):
    """A positive semidefinite function k(x, x') of two inputs; a frozen pytree, compared by identity.

    A kernel writes the formula for one pair of points. Matrices follow by vmap, or by a fused block form
    where a kernel has one; sums, products and multiples of kernels are kernels. Everything is pure, in the
    precision of the inputs: safe under jit, vmap and grad, at coincident points too.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdistill.kernels import RBF, Linear
        >>> kernel = 0.5 * RBF(2.0) + Linear() * Linear()
        >>> float(kernel(jnp.ones(2), jnp.ones(2))), kernel.matrix(jnp.ones((3, 2)), jnp.ones((4, 2))).shape
        (4.5, (3, 4))
    """

    kind: ClassVar[str]

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The kernel of one pair of inputs."""

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """All pairs of two sets of inputs.

        Args:
            x: Inputs, shape (n, d).
            z: Inputs, shape (m, d).

        Returns:
            ``k(x_i, z_j)``, shape (n, m).

        Raises:
            InputError: inputs that are not rows of floats of one length.
        """
        check_rows(x, z)
        return jax.vmap(lambda a: jax.vmap(lambda b: self(a, b))(z))(x)

    @property
    def stationary(self) -> bool:
        """Whether it, or a part of it, depends on ``x - x'`` alone: then inputs lose least about a point."""
        return False

    def matrix_about(self, origin: Float[Array, " d"], x: Array, z: Array) -> Float[Array, "n m"]:
        """All pairs of inputs that are given less a point, ``k(x_i + origin, z_j + origin)``.

        Args:
            origin: The point, shape (d,).
            x: Inputs less the point, shape (n, d).
            z: Inputs less the point, shape (m, d).
        """
        return self.matrix(x + origin[None], z + origin[None])

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """Every input with itself, ``k(x_i, x_i)``, from x of shape (n, d)."""
        check_rows(x, x)
        return jax.vmap(lambda a: self(a, a))(x)

    def workspace(self, dim: int, dtype: Any) -> int:
        """Bytes that one entry of a matrix takes while it is computed, beside the entry itself.

        Args:
            dim: Length d of an input.
            dtype: Type of the inputs.
        """
        del dim, dtype
        return 0

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that JSON can hold; with :meth:`arrays` they rebuild the kernel.

        Raises:
            ArtifactError: the kernel is code that no file can hold.
        """

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name, as stored in an artifact."""
        return {}

    @classmethod
    @abc.abstractmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Rebuild the kernel from what :meth:`settings` and :meth:`arrays` returned.

        Args:
            settings: The settings.
            arrays: The arrays.
            code: ``module`` and ``variables`` of flax, for a kernel that has a module inside; the others
                pass over them.
        """

    def normalised(self) -> AbstractKernel:
        """The kernel of unit diagonal, ``k(x, x') / sqrt(k(x, x) k(x', x'))``."""
        return Normalised(self)

    def __add__(self, other: AbstractKernel) -> AbstractKernel:
        """Sum of two kernels."""
        return Sum(self, other) if isinstance(other, AbstractKernel) else NotImplemented

    def __mul__(self, other: AbstractKernel | float) -> AbstractKernel:
        """Product of two kernels, or a positive multiple."""
        return Product(self, other) if isinstance(other, AbstractKernel) else Scaled(self, other)

    def __rmul__(self, factor: float) -> AbstractKernel:
        """Return a positive multiple."""
        return self * factor


class AbstractNumericKernel(AbstractKernel):
    """A kernel whose fields are all numbers, which are its settings."""

    def settings(self) -> dict[str, Any]:
        """The fields, whole numbers as they are."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]
        return {name: value if isinstance(value, int) else float(value) for name, value in told.items()}

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Rebuild from :meth:`settings`."""
        del arrays, code
        return cls(**settings)


class AbstractComposite(AbstractKernel):
    """A kernel made of others: the fields that ``parts`` names, in the order of its arguments."""

    parts: ClassVar[tuple[str, ...]]

    def _each(self) -> list[AbstractKernel]:
        return [getattr(self, part) for part in self.parts]

    @property
    def stationary(self) -> bool:
        """Whether one of the parts is."""
        return any(part.stationary for part in self._each())

    def workspace(self, dim: int, dtype: Any) -> int:
        """That of all parts, which may be computed at once."""
        return sum(part.workspace(dim, dtype) for part in self._each())

    def settings(self) -> dict[str, Any]:
        """Kinds and settings of the parts."""
        return {name: parts_of(part) for name, part in zip(self.parts, self._each(), strict=True)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of the parts."""
        return {
            f"{name}/{own}": value
            for name, part in zip(self.parts, self._each(), strict=True)
            for own, value in part.arrays().items()
        }

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Put together again, from settings in which every part is a kernel already."""
        del arrays, code
        return cls(**settings)


class AbstractElementwise(AbstractComposite):
    """A kernel whose every value follows from those of its parts."""

    @abc.abstractmethod
    def combine(self, *values: Array) -> Array:
        """The kernel from values of its parts, elementwise."""

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The kernel of one pair of inputs, from its parts."""
        return self.combine(*(part(x, x2) for part in self._each()))

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """All pairs of inputs, from the matrices of the parts."""
        return self.combine(*(part.matrix(x, z) for part in self._each()))

    def matrix_about(self, origin: Float[Array, " d"], x: Array, z: Array) -> Float[Array, "n m"]:
        """All pairs of inputs less a point, from the matrices of the parts."""
        return self.combine(*(part.matrix_about(origin, x, z) for part in self._each()))

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """Every input with itself, from the diagonals of the parts."""
        return self.combine(*(part.diagonal(x) for part in self._each()))


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Sum(AbstractElementwise):
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
    parts = ("left", "right")

    def combine(self, *values: Array) -> Array:
        """The sum."""
        left, right = values
        return left + right


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Product(AbstractElementwise):
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
    parts = ("left", "right")

    def combine(self, *values: Array) -> Array:
        """The product."""
        left, right = values
        return left * right


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Scaled(AbstractElementwise):
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
    parts = ("kernel",)

    def __post_init__(self) -> None:
        check_number("factor", self.factor)

    def combine(self, *values: Array) -> Array:
        """The multiple."""
        return like(self.factor, values[0]) * values[0]

    def settings(self) -> dict[str, Any]:
        """The factor, and kind and settings of the kernel."""
        return {"factor": float(self.factor)} | super().settings()


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Normalised(AbstractComposite):
    """A kernel of unit diagonal, ``k(x, x') / sqrt(k(x, x) k(x', x'))``; zero where k(x, x) is.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdistill.kernels import Linear
        >>> float(Normalised(Linear())(jnp.array([3.0, 4.0]), jnp.array([5.0, 0.0]))).__round__(4)
        0.6
    """

    kernel: AbstractKernel
    kind = "normalised"
    parts = ("kernel",)

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The cosine of one pair of inputs in the feature space."""
        return self.kernel(x, x2) * _inverse_root(self.kernel(x, x)) * _inverse_root(self.kernel(x2, x2))

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """The matrix, divided by the roots of both diagonals."""
        return self._divided(self.kernel.matrix(x, z), x, z)

    def matrix_about(self, origin: Float[Array, " d"], x: Array, z: Array) -> Float[Array, "n m"]:
        """The matrix of inputs less a point, divided by the roots of both diagonals."""
        values = self.kernel.matrix_about(origin, x, z)
        return self._divided(values, x + origin[None], z + origin[None])

    def _divided(self, values: Array, x: Array, z: Array) -> Array:
        left, right = (_inverse_root(self.kernel.diagonal(rows)) for rows in (x, z))
        return values * left[:, None] * right[None, :]

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """Ones, and zeros where the kernel is zero."""
        return jnp.where(self.kernel.diagonal(x) > 0, like(1.0, x), like(0.0, x))


def parts_of(kernel: AbstractKernel) -> dict[str, Any]:
    """Kind and settings of a kernel, as JSON keeps them."""
    return {"kind": kernel.kind, "settings": kernel.settings()}


def _inverse_root(values: Array) -> Array:
    positive = values > 0
    return jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, values, 1.0)), 0.0)
