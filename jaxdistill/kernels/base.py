"""What every kernel offers to the rest of the package."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.linalg import matmul


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
        from jaxdistill.kernels.compose import Normalised

        return Normalised(self)

    def __add__(self, other: AbstractKernel) -> AbstractKernel:
        """Sum of two kernels."""
        from jaxdistill.kernels.compose import Sum

        return Sum(self, other) if isinstance(other, AbstractKernel) else NotImplemented

    def __mul__(self, other: AbstractKernel | float) -> AbstractKernel:
        """Product of two kernels, or a positive multiple."""
        from jaxdistill.kernels.compose import Product, Scaled

        return Product(self, other) if isinstance(other, AbstractKernel) else Scaled(self, other)

    def __rmul__(self, factor: float) -> AbstractKernel:
        """Return a positive multiple."""
        return self * factor


class AbstractProductKernel(AbstractKernel):
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


def squared_norms(x: Array) -> Float[Array, " n"]:
    """``|x_i|^2`` of rows."""
    return jnp.sum(x * x, axis=-1)


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
        raise InputError(f"{name} is {value!r}; it must be a number")
    if not isinstance(value, (int, float, np.number)):
        return
    if not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise InputError(f"{name} is {value}; it must be finite and {'>= 0' if zero else 'positive'}")


def like(value: Any, array: Array) -> Array:
    """A setting in the precision of the inputs, so that no promotion happens in silence."""
    return jnp.asarray(value).astype(array.dtype)
