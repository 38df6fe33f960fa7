"""The ridge penalty of a kernel model: leave-one-out or held-out data, from one eigendecomposition."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError, KernelError
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.kernels.tiles import check_inputs, kernel_matrix
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.contrasts import contrasts_of_gram, from_contrasts
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import check_finite, in_float64, matmul
from jaxdistill.ridge.fit import Validation, check_penalty
from jaxdistill.ridge.selection import LamSelection
from jaxdistill.ridge.source import NO_CLASSES
from jaxdistill.ridge.targets import TargetKind, detect_targets

# Above this an eigendecomposition takes minutes; the best penalty hardly changes with n.
MOST_EXAMPLES = 4096


def choose_penalty(
    kernel: AbstractKernel,
    x: np.ndarray,
    y: np.ndarray,
    validation: Validation,
    lams: Any,
    key: Array | None,
    progress: bool,
    most: int | None = None,
    intercept: bool = False,
) -> LamSelection:
    """Score every penalty in closed form, on a limited number of training examples.

    Args:
        kernel: Kernel k.
        x: Inputs, shape (n, d).
        y: Targets, shape (n, k), float64.
        validation: As for :func:`~jaxdistill.ridge.kernel_fit.fit_kernel_ridge`.
        lams: Candidates.
        key: Random key, where something is drawn.
        progress: Whether to show a bar.
        most: Examples that are used at most; default 4096.
        intercept: Whether the model has an intercept.

    Returns:
        The scores, and with them the choice.

    Raises:
        InputError: a validation that makes no sense, or a missing key.
        KernelError: the kernel is not positive semidefinite; names the eigenvalue.
        PenaltyError: a candidate that is no penalty.
    """
    lams = np.sort(np.array([check_penalty("lams", value) for value in np.ravel(lams)]))
    n, held = len(x), None
    if isinstance(validation, tuple):
        held_x = check_inputs("validation x", validation[0], x.shape[1])
        held = held_x, as_floats("validation y", validation[1], cure=NO_CLASSES).astype(np.float64)
        if held[1].shape != (len(held[0]), y.shape[1]):
            raise InputError(
                f"validation y has shape {held[1].shape}, expected ({len(held[0])}, {y.shape[1]})"
            )
    elif isinstance(validation, float):
        if not 0 < round(validation * n) < n:
            raise InputError(
                f"validation is {validation}; a fraction of {n} must leave examples on both sides"
            )
        order = _drawn(key, n, "holding out a fraction")
        kept = order[: round(validation * n)]
        held, x, y = (x[kept], y[kept]), x[order[len(kept) :]], y[order[len(kept) :]]
    elif validation != "leave-one-out":
        raise InputError(f"unknown validation {validation!r}; use 'leave-one-out', a fraction or (x, y)")
    method = "leave-one-out" if held is None else "validation"
    most = MOST_EXAMPLES if most is None else most
    if len(x) > most:
        rows = np.sort(_drawn(key, len(x), f"choosing lam on {most} of {n} examples")[:most])
        x, y = x[rows], y[rows]
        method += f" on {most} of {n} examples"
    gram = kernel_matrix(kernel, x, dtype=np.float64, progress=progress)
    check_finite("the kernel matrix", gram)
    values, vectors = in_float64(_factor, gram, intercept)
    rounding = len(x) * np.finfo(np.float64).eps * values[-1]
    if values[0] < -8 * rounding:
        raise KernelError(
            f"the kernel is not positive semidefinite: its smallest eigenvalue is {values[0]:.3g}, its "
            f"largest {values[-1]:.3g}; use another kernel"
        )
    if held is None:
        squared, wrong = in_float64(_leave_one_out, values, vectors, y, lams)
    else:
        cross = kernel_matrix(kernel, held[0], x, dtype=np.float64, progress=progress)
        level = np.zeros(y.shape[1])
        if intercept:  # b = mean(Y) - mean(K) alpha
            cross, level = cross - gram.mean(axis=0), y.mean(axis=0)
        squared, wrong = in_float64(_held_out, values, vectors, y, lams, cross, held[1], level)
    # Below the rounding of the eigenvalues a penalty decides nothing but what rounding is blown up.
    usable = np.isfinite(squared) & (values[0] + lams > rounding)
    squared = np.where(usable, squared, np.inf)
    rates = np.where(usable, wrong, np.inf) if detect_targets(y) is not TargetKind.REAL else None
    return LamSelection(lams, squared, rates, method)


def _drawn(key: Array | None, n: int, what: str) -> np.ndarray:
    if key is None:
        raise InputError(f"{what} is random; pass key=jax.random.key(...)")
    return host_generator(key).permutation(n)


@partial(jax.jit, static_argnums=1)
def _factor(gram: Array, intercept: bool) -> tuple[Array, Array]:
    """Eigenvalues and vectors; with an intercept those within what is orthogonal to the ones vector."""
    if not intercept:
        values, vectors = jnp.linalg.eigh(gram)
        return values, vectors
    values, vectors = jnp.linalg.eigh(contrasts_of_gram(gram))
    return values, from_contrasts(vectors)


@jax.jit
def _leave_one_out(
    values: Float[Array, " r"],
    vectors: Float[Array, "n r"],
    y: Float[Array, "n k"],
    lams: Float[Array, " l"],
) -> tuple[Array, Array]:
    """Residuals ``alpha_i / [(K + lam I)^-1]_ii``: each example, were it left out.

    With an intercept the inverse is that of the system bordered by ones (Cawley and Talbot 2004).
    """
    projected, squares = matmul(vectors.T, y), vectors**2

    def one(lam: Array) -> tuple[Array, Array]:
        factors = 1 / (values + lam)
        alpha = matmul(vectors, factors[:, None] * projected)
        residual = alpha / matmul(squares, factors)[:, None]
        return _errors(y - residual, y)

    return jax.lax.map(one, lams)


@jax.jit
def _held_out(
    values: Array,
    vectors: Array,
    y: Array,
    lams: Array,
    cross: Float[Array, "t n"],
    targets: Array,
    level: Float[Array, " k"],
) -> tuple[Array, Array]:
    seen, projected = matmul(cross, vectors), matmul(vectors.T, y)

    def one(lam: Array) -> tuple[Array, Array]:
        return _errors(matmul(seen, projected / (values + lam)[:, None]) + level[None], targets)

    return jax.lax.map(one, lams)


def _errors(prediction: Array, y: Array) -> tuple[Array, Array]:
    wrong = jnp.argmax(prediction, axis=1) != jnp.argmax(y, axis=1)
    return jnp.mean(jnp.sum((prediction - y) ** 2, axis=1)), jnp.mean(wrong.astype(y.dtype))
