"""Kernel ridge regression without a finite feature map: Cholesky, or conjugate gradients in tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxdistill.errors import InputError, KernelError, PenaltyError
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.kernels.pivoted import pivoted_cholesky
from jaxdistill.kernels.tiles import TiledKernel, check_inputs, kernel_diagonal, kernel_matrix
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.contrasts import contrasts, contrasts_of_gram, from_contrasts
from jaxdistill.numerics.keys import checked_key
from jaxdistill.numerics.linalg import check_finite, in_float64
from jaxdistill.numerics.memory import available_bytes, require_memory
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.placement import float64_scope, moving_arrays, over
from jaxdistill.numerics.processes import refuse_shares
from jaxdistill.ridge.conjugate_gradients import Preconditioner, conjugate_gradients, not_positive
from jaxdistill.ridge.fit import LAMS, Validation, check_penalty
from jaxdistill.ridge.kernel_selection import choose_penalty
from jaxdistill.ridge.residual import ModelResidual
from jaxdistill.ridge.selection import LamSelection
from jaxdistill.ridge.source import NO_CLASSES
from jaxdistill.ridge.targets import TargetKind, detect_targets

SOLVERS = ("auto", "cholesky", "cg")

# Matrices of n x n float64 numbers that a Cholesky solve holds at its peak.
_COPIES = 3
_MOST_RANK = 1000


@final
@dataclass(frozen=True, eq=False)
class KernelModel:
    """A trained model ``f(x) = k(x, X) alpha``, or ``k(x, X) alpha + b``.

    Args:
        kernel: Kernel k.
        x: Training inputs X, shape (n, d).
        alpha: Coefficients, shape (n, k), float64; with an intercept they sum to zero.
        fitted: ``K alpha``, predictions for the training inputs without intercept, shape (n, k), float64.
        lam: Penalty it was trained with.
        selection: How lam was chosen, or None where it was given.
        target_kind: What the targets were.
        solver: "cholesky" or "cg".
        residual: ``|Y - (K + lam I) alpha| / |Y|`` of the worst column.
        residual_tolerance: Largest such residual that rounding explains:
            ``(16 + n) eps (1 + (tr(K) + lam) |alpha| / |Y|)``, at most sqrt(eps).
        steps: Products with K that the solve took; 0 for Cholesky.
        resolution: What rounding of the kernel may have changed in ``|f|^2``, relative to it.
        intercept: b, shape (k,), float64; None of a model without.

    Example:
        >>> import numpy as np
        >>> from jaxdistill.kernels import RBF
        >>> x = np.linspace(0.0, 6.0, 30)[:, None]
        >>> model = fit_kernel_ridge(RBF(1.0), x, np.sin(x), lam=1e-6)
        >>> bool(np.abs(model.predict(x + 0.01) - np.sin(x + 0.01)).max() < 1e-3)
        True
    """

    kernel: AbstractKernel
    x: Float[np.ndarray, "n d"]
    alpha: Float[np.ndarray, "n k"]
    fitted: Float[np.ndarray, "n k"]
    lam: float
    selection: LamSelection | None
    target_kind: TargetKind
    solver: str
    residual: float
    residual_tolerance: float
    steps: int
    resolution: float
    intercept: Float[np.ndarray, " k"] | None = None

    @property
    def has_intercept(self) -> bool:
        """Whether the model has an intercept."""
        return self.intercept is not None

    @property
    def solution(self) -> ModelResidual:
        """How well the coefficients solve their system, as measured when they were fitted."""
        solved = self.residual <= self.residual_tolerance
        return ModelResidual(self.residual, self.residual_tolerance, solved, rank=None, dropped=0.0)

    @property
    def squared_norm(self) -> float:
        """``|f|_H^2 = tr(alpha^T K alpha)``, summed over outputs; of f minus its intercept."""
        return float(np.sum(self.alpha * self.fitted))

    @moving_arrays()
    def predict(
        self, x: Any, *, dtype: Any = None, mesh: Mesh | None = None, progress: bool = False
    ) -> Float[np.ndarray, "t k"]:
        """Predictions in tiles.

        Args:
            x: Inputs, shape (t, d).
            dtype: Precision of the kernel; default that of x.
            mesh: Devices that share the rows, as for :func:`~jaxdistill.fit_ridge`.
            progress: Whether to show a bar.

        Raises:
            InputError: inputs of another shape or type.
        """
        x = check_inputs("x", x, self.x.shape[1])
        with over(mesh):
            operator = TiledKernel.of(self.kernel, x, self.x, dtype=dtype or x.dtype, progress=progress)
            outputs = operator.matmul(self.alpha)
        return outputs if self.intercept is None else outputs + self.intercept


@moving_arrays()
def fit_kernel_ridge(
    kernel: AbstractKernel,
    x: Any,
    y: Any,
    *,
    lam: float | Literal["auto"] = "auto",
    validation: Validation = "leave-one-out",
    lams: Any = LAMS,
    intercept: bool = False,
    solver: str = "auto",
    rank: int | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 500,
    dtype: Any = None,
    memory: float | None = None,
    key: Array | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> KernelModel:
    """Train ``f(x) = k(x, X) alpha`` with ``alpha = (K + lam I)^-1 Y``.

    With an intercept b, which no penalty holds down, ``f(x) = k(x, X) alpha + b`` with alpha of sum zero:
    ``(K + lam I) alpha + 1 b^T = Y``.

    By Cholesky in float64 where the n x n matrix fits in memory; otherwise by conjugate gradients with a
    randomly pivoted Cholesky preconditioner and kernel tiles on the fly, whose memory is O(n (d + r)).

    Args:
        kernel: Kernel k.
        x: Inputs, shape (n, d).
        y: Targets, shape (n, k): one-hot rows, centred one-hot rows, or real values.
        lam: Penalty, absolute and never divided by n, or "auto" to choose it among ``lams``.
        validation: For "auto": "leave-one-out" (closed form); a fraction to hold out, drawn with ``key``;
            or data held out as ``(x, y)``. Above 4096 examples the choice is made on 4096 of them, drawn
            with ``key``, and ``selection.method`` says so.
        lams: Candidates; default half-decades from 1e-6 to 10^5.5.
        intercept: Whether the model has an intercept.
        solver: "cholesky", "cg" or "auto".
        rank: Rank of the preconditioner; default a tenth of n, at most 1000.
        tolerance: Residual that conjugate gradients reach, relative to Y.
        max_steps: Most products with K.
        dtype: Precision of the tiles of "cg"; default that of x. Cholesky is always float64.
        memory: Bytes that the solve may take; default what is free.
        key: Random key, for what is drawn.
        mesh: Devices that share the tiles, as for :func:`~jaxdistill.fit_ridge`; default all of this process.
        progress: Whether to show bars.

    Returns:
        The model, with the residual that was reached.

    Raises:
        InputError: shapes, types or values that do not fit, a key that is missing, or a mesh of several
            processes, of which each would have to hold all examples.
        PenaltyError: a penalty that is negative or not finite, or zero where "cg" needs a positive one.
        KernelError: the matrix is not positive definite (its eigenvalue is named), or the tolerance was not
            reached.
        MemoryBudgetError: Cholesky was asked for and does not fit, or one tile does not.

    Example:
        >>> import jax, numpy as np
        >>> from jaxdistill.kernels import NTK
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (200, 6)))
        >>> y = np.sin(x[:, :1])
        >>> model = fit_kernel_ridge(NTK(), x, y, lam=0.1, solver="cg", key=jax.random.key(1))
        >>> model.solver, model.residual < 1e-3
        ('cg', True)

    Source: Saunders et al. 1998; the preconditioner, Diaz, Epperly, Frangella, Tropp and Webber 2023.
    """
    check_choice("solver", solver, SOLVERS)
    if key is not None:
        checked_key(key)
    with over(mesh):
        refuse_shares("a kernel fit")
        x, y = _checked(x, y)
        n = len(x)
        if intercept and n < 2:
            raise InputError("one example fixes an intercept and nothing else; give at least 2")
        selection = None
        if lam == "auto":
            selection = choose_penalty(kernel, x, y, validation, lams, key, progress, intercept=intercept)
            lam = selection.lam
        lam = check_penalty("lam", lam)
        size, budget = _COPIES * 8 * n * n, available_bytes() if memory is None else memory
        if solver == "auto":
            solver = "cholesky" if size <= budget else "cg"
        if solver == "cholesky":
            require_memory(
                size, f"a Cholesky factor of {n} x {n} in float64", "use solver='cg' or fewer examples"
            )
            alpha, fitted, residual = _by_cholesky(kernel, x, y, lam, intercept, progress)
            steps = 0
        else:
            if lam == 0:
                raise PenaltyError(
                    "lam is 0; conjugate gradients need a positive penalty, or use solver='cholesky'"
                )
            if key is None:
                raise InputError("the preconditioner is drawn at random; pass key=jax.random.key(...)")
            rank = min(_MOST_RANK, -(-n // 10)) if rank is None else rank
            found = pivoted_cholesky(kernel, x, rank, key=jax.random.fold_in(key, 1), progress=progress)
            # Tiles take what the factor leaves, and not more than full speed needs.
            spare = None if memory is None else max(memory - 24 * n * rank, 0)
            operator = TiledKernel.of(kernel, x, dtype=dtype, memory=spare, progress=progress)
            with float64_scope():
                factor = found.factor - found.factor.mean(axis=0) if intercept else found.factor
                del found
                preconditioner = Preconditioner.of(factor, lam)
                limits = {"tolerance": tolerance, "max_steps": max_steps, "progress": progress}
                solution = conjugate_gradients(
                    operator, y, lam, preconditioner, intercept=intercept, **limits
                )
            alpha, fitted = solution.alpha, solution.product
            residual, steps = solution.residual, solution.steps
        precision = np.float64 if steps == 0 else dtype or x.dtype
        trace = float(np.sum(kernel_diagonal(kernel, x)))
        return KernelModel(
            kernel=kernel,
            x=x,
            alpha=alpha,
            fitted=fitted,
            lam=lam,
            selection=selection,
            target_kind=detect_targets(y),
            solver=solver,
            residual=residual,
            residual_tolerance=_residual_tolerance(y, alpha, trace + lam, precision),
            steps=steps,
            resolution=_resolution(trace, alpha, fitted, precision),
            intercept=np.mean(y - fitted, axis=0) if intercept else None,
        )


def _residual_tolerance(y: np.ndarray, alpha: np.ndarray, size: float, dtype: Any) -> float:
    """The smallest of all columns; ``size`` bounds the norm of K + lam I."""
    eps, sizes = float(np.finfo(dtype).eps), np.linalg.norm(y, axis=0)
    growth = size * np.linalg.norm(alpha, axis=0) / np.where(sizes > 0, sizes, 1.0)
    return float(min((16 + len(y)) * eps * (1 + growth.min()), np.sqrt(eps)))


def _resolution(trace: float, alpha: np.ndarray, fitted: np.ndarray, dtype: Any) -> float:
    """``8 eps tr(K) |alpha|^2 / (sqrt(n) |f|^2)``: entries off by a few eps of random sign."""
    size = 8 * np.finfo(dtype).eps * trace * float(np.sum(alpha**2)) / np.sqrt(len(alpha))
    norm = float(np.sum(alpha * fitted))
    return float(size / norm) if norm > 0 else np.inf


def _by_cholesky(
    kernel: AbstractKernel, x: np.ndarray, y: np.ndarray, lam: float, intercept: bool, progress: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    gram = kernel_matrix(kernel, x, dtype=np.float64, progress=progress)
    alpha = in_float64(_solve, gram, y, lam, intercept)
    if not np.all(np.isfinite(alpha)):
        check_finite("the kernel matrix", gram)
        raise not_positive(in_float64(_of_contrasts, gram) if intercept else gram, lam)
    fitted = gram @ alpha
    left = y - fitted - lam * alpha
    if intercept:
        left = left - left.mean(axis=0)
    size = np.linalg.norm(y, axis=0)
    errors = np.linalg.norm(left, axis=0) / np.where(size > 0, size, 1.0)
    if errors.max() > np.sqrt(np.finfo(np.float64).eps):
        raise KernelError(
            f"the kernel matrix is too close to singular for lam = {lam:.3g}: solving leaves a residual of "
            f"{errors.max():.1e}; use a larger lam, or remove repeated examples"
        )
    return alpha, fitted, float(errors.max())


_of_contrasts = jax.jit(contrasts_of_gram)


@partial(jax.jit, static_argnums=3)
def _solve(gram: Array, y: Array, lam: Array, intercept: bool) -> Array:
    if intercept:
        return from_contrasts(_solve(contrasts_of_gram(gram), contrasts(y), lam, False))
    factor = jnp.linalg.cholesky(gram + lam * jnp.eye(gram.shape[0], dtype=gram.dtype))
    return jax.scipy.linalg.cho_solve((factor, True), y)


def _checked(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = check_inputs("x", x), as_floats("y", y, cure=NO_CLASSES)
    if y.ndim != 2 or len(y) != len(x):
        raise InputError(f"y has shape {y.shape}, expected ({len(x)}, k): one row of targets an example")
    return x, y.astype(np.float64)
