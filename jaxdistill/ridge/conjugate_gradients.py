"""Linear systems in a kernel matrix that is never formed: preconditioned conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.errors import KernelError
from jaxdistill.kernels.tiles import TiledKernel
from jaxdistill.numerics.linalg import matmul


@final
@dataclass(frozen=True, eq=False)
class Solution:
    """What conjugate gradients found.

    Args:
        alpha: Solution, shape (n, k).
        product: ``K alpha``, shape (n, k).
        residual: ``|Y - (K + lam I) alpha| / |Y|``, both minus their means with an intercept, of the worst
            column, from one more product at the end.
        steps: Products with K, that one included.
    """

    alpha: Float[np.ndarray, "n k"]
    product: Float[np.ndarray, "n k"]
    residual: float
    steps: int


@final
@dataclass(frozen=True, eq=False)
class Preconditioner:
    """The inverse of ``F F^T + lam I``, applied through an orthonormal basis of range(F); see :meth:`of`."""

    basis: Array
    factors: Array
    lam: float

    @classmethod
    def of(cls, factor: Float[np.ndarray, "n r"], lam: float) -> Preconditioner:
        """Factor once: ``F = U S V^T``, from the r x r matrix ``F^T F``; inside x64.

        Args:
            factor: F, shape (n, r), such as of :func:`~jaxdistill.kernels.pivoted.pivoted_cholesky`.
            lam: Positive penalty.
        """
        basis, factors = _orthogonal(jnp.asarray(factor), jnp.asarray(lam, jnp.float64))
        return cls(basis, factors, lam)

    def apply(self, v: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """``lam (F F^T + lam I)^-1 v = v - U (S^2 / (S^2 + lam)) U^T v``."""
        return np.asarray(_apply(self.basis, self.factors, jnp.asarray(v)))


@jax.jit
def _orthogonal(factor: Array, lam: Array) -> tuple[Array, Array]:
    squares, v = jnp.linalg.eigh(matmul(factor.T, factor))
    kept = squares > jnp.finfo(factor.dtype).eps * factor.shape[0] * squares[-1]
    basis = matmul(factor, v) * jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, squares, 1.0)), 0.0)
    return basis, jnp.where(kept, squares / (squares + lam), 0.0)


@jax.jit
def _apply(basis: Array, factors: Array, v: Array) -> Array:
    return v - matmul(basis, factors[:, None] * matmul(basis.T, v))


def conjugate_gradients(
    kernel: TiledKernel,
    y: Float[np.ndarray, "n k"],
    lam: float,
    precondition: Preconditioner | None,
    *,
    intercept: bool = False,
    tolerance: float,
    max_steps: int,
    progress: bool = False,
) -> Solution:
    """Solve ``(K + lam I) alpha = Y`` for all columns at once, with one product with K a step.

    With an intercept ``P (K + lam I) alpha = P Y`` for alpha of sum zero, ``P = I - 1 1^T / n``: nothing
    leaves the subspace where it begins.

    Args:
        kernel: K as an operator, shape (n, n).
        y: Right sides, shape (n, k).
        lam: Penalty.
        precondition: An approximate inverse, or None; with an intercept, one that keeps sums zero.
        intercept: Whether the model has an intercept.
        tolerance: Residual to reach, relative to Y, in every column.
        max_steps: Most products with K.
        progress: Whether to show a bar.

    Returns:
        The solution with its true residual.

    Raises:
        KernelError: K + lam I is not positive definite, and what eigenvalue shows it; or the tolerance was
            not reached.

    Source: Hestenes and Stiefel 1952; the preconditioner, Diaz, Epperly, Frangella, Tropp and Webber 2023.
    """
    project = _centred if intercept else np.asarray
    y = project(y)
    size = np.linalg.norm(y, axis=0)
    size = np.where(size > 0, size, 1.0)
    apply = (lambda v: v) if precondition is None else precondition.apply
    alpha, residual = np.zeros_like(y), y.copy()
    z = apply(residual)
    direction, weight = z, np.sum(residual * z, axis=0)
    steps, error = 0, 1.0
    with tqdm(total=max_steps, desc="conjugate gradients", disable=not progress, leave=False) as bar:
        while error > tolerance and steps < max_steps - 1:
            image = project(kernel.matmul(direction)) + lam * direction
            curvature = np.sum(direction * image, axis=0)
            squares = np.sum(direction**2, axis=0)
            active = squares > 0
            if np.any(curvature[active] <= 0) or not np.all(np.isfinite(curvature)):
                lowest = float(np.min(curvature[active] / squares[active])) - lam
                raise KernelError(
                    f"the kernel matrix has an eigenvalue of at most {lowest:.3g}, and lam = {lam:.3g}: "
                    "their sum is not positive definite; use a larger lam, dtype='float64', or a kernel that "
                    "is positive semidefinite"
                )
            step = np.where(active, weight / np.where(active, curvature, 1.0), 0.0)
            alpha = alpha + step * direction
            residual = residual - step * image
            z = apply(residual)
            new = np.sum(residual * z, axis=0)
            direction = z + np.where(weight > 0, new / np.where(weight > 0, weight, 1.0), 0.0) * direction
            weight = new
            steps += 1
            error = float(np.max(np.linalg.norm(residual, axis=0) / size))
            bar.update()
            bar.set_postfix(residual=f"{error:.1e}")
        product = kernel.matmul(alpha)
    true = float(np.max(np.linalg.norm(y - project(product) - lam * alpha, axis=0) / size))
    # In exact arithmetic both are equal; a true residual above this is rounding of the tiles.
    if not true <= 10 * tolerance:
        raise KernelError(
            f"conjugate gradients stopped at a residual of {true:.1e} after {steps} steps, {tolerance:.0e} "
            "was asked for; use a larger rank of the preconditioner, a larger lam, more steps, or "
            "dtype='float64'"
        )
    return Solution(alpha, product, true, steps + 1)


def _centred(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(axis=0)


def not_positive(kernel: Any, lam: float) -> KernelError:
    """The error for a matrix whose Cholesky factorisation failed, with its smallest eigenvalue."""
    import scipy.linalg

    lowest = float(scipy.linalg.eigh(kernel, eigvals_only=True, subset_by_index=(0, 0))[0])
    return KernelError(
        f"the kernel matrix has an eigenvalue of {lowest:.3g}, and lam = {lam:.3g}: their sum is not "
        "positive definite; use a larger lam, other points, or a kernel that is positive semidefinite"
    )
