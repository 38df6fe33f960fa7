"""Pre-images under maps without a closed-form inverse, by Levenberg-Marquardt, judged one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from jaxdistill.errors import InputError
from jaxdistill.features.base import check_num_features
from jaxdistill.numerics.linalg import check_finite, in_float32, in_float64, matmul
from jaxdistill.numerics.memory import require_memory
from jaxdistill.numerics.placement import moving_arrays, placement

# Relative residual that counts as reached: rounding in float64, of sums of ordinary length.
REACHED = 1e-12
# Damping of the first step, relative to the mean diagonal of J J^T; its changes; its bounds.
FIRST_DAMPING = 1e-2
SHRINK, GROW = 0.2, 6.0
LEAST_DAMPING, MOST_DAMPING = 1e-14, 1e12
# Steps of one compiled block, between two looks at the bar.
BLOCK = 10


@final
@dataclass(frozen=True, eq=False)
class InversionReport:
    """What was reached, example by example; every array has shape (m,).

    Args:
        residual: ``|phi(x) - target| / |target|``.
        steps: Steps that were taken before the residual was reached or all were used.
        reached: Whether the residual is that of rounding.
        distance: Root mean square change from the start.
    """

    residual: Float[np.ndarray, " m"]
    steps: Int[np.ndarray, " m"]
    reached: Bool[np.ndarray, " m"]
    distance: Float[np.ndarray, " m"]


class Inversion(NamedTuple):
    """Pre-images and their report.

    Args:
        x: Inputs, shape (m, d), float64.
        report: What was reached.
    """

    x: np.ndarray
    report: InversionReport


@moving_arrays()
def invert(
    phi: Callable[[Array], Array],
    features: Any,
    start: Any,
    *,
    steps: int = 100,
    tolerance: float = REACHED,
    progress: bool = False,
) -> Inversion:
    """Find inputs near the start with the given features, each by itself: ``phi(x_i) = phi_i``.

    Levenberg-Marquardt with steps of least norm, ``dx = J^T (J J^T + mu I)^-1 (phi_i - phi(x))``, all
    examples at once. A wide map reaches only a surface of dimension d: what cannot be reached is left at the
    smallest residual found, and the report says so.

    Args:
        phi: Feature map, (..., d) to (..., p), differentiable.
        features: Targets, shape (m, p).
        start: Inputs to start from and stay near, shape (m, d).
        steps: Steps at most.
        tolerance: Relative residual that counts as reached.
        progress: Whether to show a bar.

    Returns:
        Inputs and report.

    Raises:
        InputError: a shape or a number that makes no sense.
        MemoryBudgetError: the Jacobians would not fit.

    Example:
        >>> import jax, numpy as np
        >>> from jaxdistill.features import RandomNetwork
        >>> phi = RandomNetwork.create(8, widths=(12, 6), activation="tanh", key=jax.random.key(0))
        >>> rng = np.random.default_rng(0)
        >>> wanted = np.asarray(phi(jax.numpy.asarray(rng.standard_normal((3, 8)), "float32")))
        >>> found = invert(phi, wanted, np.zeros((3, 8)))
        >>> found.report.reached.tolist()
        [True, True, True]

    Source: Levenberg 1944, Marquardt 1963; steps of least norm.
    """
    target, x = np.asarray(features, np.float64), np.asarray(start, np.float64)
    if target.ndim != 2 or x.ndim != 2 or len(x) != len(target):
        raise InputError(
            f"features and start have shapes {target.shape} and {x.shape}, expected (m, p) and (m, d)"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"steps is {steps!r}; it must be a whole number >= 0")
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance is {tolerance}; it must be positive and finite")
    check_finite("features", target)
    check_finite("start", x)
    (m, p), d = target.shape, x.shape[1]
    check_num_features(phi, d, p, "the targets")
    require_memory(
        16 * m * p * (d + 2 * min(p, d)),
        f"Jacobians of {m} examples with {p} features",
        "invert fewer examples at once",
    )
    state = in_float64(_begin, phi, target, x)
    with tqdm(total=steps, desc="pre-images", disable=not progress, leave=False) as bar:
        for done in range(0, steps, BLOCK):
            if np.all(state.residual <= tolerance):
                break
            block = min(BLOCK, steps - done)
            if placement().native:
                state = in_float64(partial(_advance, block=block), phi, target, state, tolerance)
            else:
                for _ in range(block):
                    state = _step_in_parts(phi, target, state, tolerance)
            bar.update(block)
    report = InversionReport(
        residual=state.residual,
        steps=state.steps,
        reached=state.residual <= tolerance,
        distance=np.sqrt(np.mean((state.x - x) ** 2, axis=1)),
    )
    return Inversion(state.x, report)


class _State(NamedTuple):
    """Inputs, relative residuals, dampings and steps of all examples."""

    x: Any
    residual: Any
    damping: Any
    steps: Any


def inversion_step(
    phi: Callable[[Array], Array],
    x: Float[Array, " d"],
    target: Float[Array, " p"],
    damping: Float[Array, ""],
) -> Float[Array, " d"]:
    """One damped step of least norm for one example; pure.

    The smaller of the matrices J J^T and J^T J is factorised: they give the same step.

    Args:
        phi: Feature map.
        x: Where to step from.
        target: Features that are wanted.
        damping: mu, relative to the mean diagonal of J J^T.

    Returns:
        The change of x.
    """
    return _least_norm(phi, x, target - phi(x), damping)


def _least_norm(phi: Callable[[Array], Array], x: Array, gap: Array, damping: Array) -> Array:
    """The change of x that is nearest to closing a gap in the features."""
    p, d = len(gap), len(x)
    jacobian = (jax.jacrev if p <= d else jax.jacfwd)(phi)(x)
    shift = damping * jnp.sum(jacobian**2) / p
    if p <= d:
        factor = jnp.linalg.cholesky(matmul(jacobian, jacobian.T) + shift * jnp.eye(p, dtype=x.dtype))
        return matmul(jacobian.T, jax.scipy.linalg.cho_solve((factor, True), gap))
    factor = jnp.linalg.cholesky(matmul(jacobian.T, jacobian) + shift * jnp.eye(d, dtype=x.dtype))
    return jax.scipy.linalg.cho_solve((factor, True), matmul(jacobian.T, gap))


@jax.jit
def _begin(phi: Callable[[Array], Array], target: Array, x: Array) -> _State:
    one = jnp.full(len(x), FIRST_DAMPING, x.dtype)
    return _State(x, _residuals(phi, x, target), one, jnp.zeros(len(x), jnp.int64))


def _residuals(phi: Callable[[Array], Array], x: Array, target: Array) -> Array:
    size = jnp.linalg.norm(target, axis=-1)
    return jnp.linalg.norm(phi(x) - target, axis=-1) / jnp.where(size > 0, size, 1.0)


@partial(jax.jit, static_argnames="block")
def _advance(
    phi: Callable[[Array], Array], target: Array, state: _State, tolerance: Array, *, block: int
) -> _State:
    """A block of steps of every example; one that has arrived, or would get worse, stays."""

    def step(state: _State, _: None) -> tuple[_State, None]:
        change = jax.vmap(partial(inversion_step, phi))(state.x, target, state.damping)
        return _judged(phi, target, state, change, tolerance), None

    return jax.lax.scan(step, state, None, length=block)[0]


def _judged(
    phi: Callable[[Array], Array], target: Array, state: _State, change: Array, tolerance: Array
) -> _State:
    """The next state: changes are taken where they help and are needed."""
    tried = state.x + change
    residual = _residuals(phi, tried, target)
    under_way = state.residual > tolerance
    better = under_way & (residual < state.residual)
    damping = jnp.where(better, SHRINK, GROW) * state.damping
    return _State(
        x=jnp.where(better[:, None], tried, state.x),
        residual=jnp.where(better, residual, state.residual),
        damping=jnp.clip(damping, LEAST_DAMPING, MOST_DAMPING),
        steps=state.steps + under_way.astype(state.steps.dtype),
    )


def _step_in_parts(phi: Callable[[Array], Array], target: Any, state: _State, tolerance: float) -> _State:
    """A step for devices without float64: they solve in float32 what float64 measures and judges."""
    gaps = in_float64(_gaps, phi, target, state.x)
    size = np.linalg.norm(gaps, axis=1, keepdims=True)
    size = np.where(size > 0, size, 1.0)
    change = in_float32(_changes, phi, state.x, gaps / size, state.damping)
    return in_float64(_judge, phi, target, state, change * size, tolerance)


@jax.jit
def _gaps(phi: Callable[[Array], Array], target: Array, x: Array) -> Array:
    return target - phi(x)


@jax.jit
def _changes(phi: Callable[[Array], Array], x: Array, gaps: Array, damping: Array) -> Array:
    return jax.vmap(partial(_least_norm, phi))(x, gaps, damping)


_judge = jax.jit(_judged)
