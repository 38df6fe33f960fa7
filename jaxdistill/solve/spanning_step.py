"""One Levenberg-Marquardt step towards a solution of the spanning equations.

With J_i the Jacobian of phi at x_i, restricted to the inputs that are free to move, M_i the i-th row of M and
R the residual, the step of least norm that solves the linearised equations is

    sum_i J_i J_i^T Lambda M_i^T M_i + s Phis^T Phis Lambda M^T M + mu Lambda M^T M = R
    dx_i = J_i^T Lambda M_i^T,      dM = s Phis Lambda M^T M

In the basis T of the outputs in which M^T M = I all columns of Lambda have the same mean operator

    H + s Phis^T Phis + mu I,      H the mean of the J_i J_i^T,

so that one Cholesky factor preconditions them all. Small systems are factorised outright.

With an intercept M has columns of sum zero, and so has dM: it is enough to read Phis as the centred features
wherever it stands here, preconditioner included. J_i is what it was, since M^T sees no mean.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.numerics.linalg import matmul
from jaxdistill.solve.spanning import SpanningProblem, SpanningState, relative_residual, spanning_residual
from jaxdistill.solve.tangent import jacobians, tangent_gram

FeatureFunction = Callable[[Array], Array]

# Eigenvalues of M^T M below this share of the largest count as this share: beyond it, float32 has no digits.
_FLATTEST = 1e-6
# Added to the preconditioner alone, relative to the mean diagonal: keeps its float32 Cholesky factor real.
_STABLE = 1e-4
# Damping after a step: much less where it halved the residual, a little less where it helped at all, more
# where it went uphill, much more where it was not taken. The least, and the least after a step that was not
# taken, are of the order of the rounding of float32, and of float64 where a step is wide.
_SHRINK, _EASE, _CLIMB, _GROW = 0.1, 0.5, 2.0, 8.0
_LEAST_DAMPING, _LEAST_REJECTED = 1e-8, 1e-6
LEAST_WIDE, _LEAST_REJECTED_WIDE = 1e-15, 1e-12


class SpanningMethod(enum.Enum):
    """How the linear equations of a step are solved; the value is how it is said to a person."""

    DIRECT = "explicit Jacobians and a Cholesky factor of the p r x p r matrix"
    MATRIX_FREE = "preconditioned conjugate gradients, Jacobians only applied"


@partial(jax.jit, static_argnames=("method", "most_iterations", "wide"))
def spanning_steps(
    phi: FeatureFunction,
    problem: SpanningProblem,
    states: SpanningState,
    pull: Array,
    ceilings: Array,
    tolerance: Array,
    *,
    method: SpanningMethod,
    most_iterations: int,
    wide: bool = False,
) -> SpanningState:
    """One step of every start, compiled once a shape; arguments of :func:`spanning_step`, a ceiling each."""

    def one(state: SpanningState, start: Array, ceiling: Array) -> SpanningState:
        own = dataclasses.replace(problem, start=start)
        return spanning_step(phi, own, state, pull, ceiling, tolerance, method, most_iterations, wide)

    return jax.vmap(one)(states, problem.start, ceilings)


@jax.jit
def begin_steps(
    phi: FeatureFunction, problem: SpanningProblem, states: SpanningState, pull: Array
) -> tuple[Array, Any, Array]:
    """The first part of :func:`spanning_steps`, in the precision of the states."""

    def one(state: SpanningState, start: Array) -> tuple[Array, Any, Array]:
        return _begin(phi, dataclasses.replace(problem, start=start), state, pull)

    return jax.vmap(one)(states, problem.start)


@partial(jax.jit, static_argnames=("method", "most_iterations"))
def find_directions(
    phi: FeatureFunction,
    seen: Any,
    right: Array,
    mobility: Array,
    tolerance: Array,
    *,
    method: SpanningMethod,
    most_iterations: int,
) -> Any:
    """The second part, all in float32."""

    def one(seen: Any, right: Array) -> Any:
        return spanning_direction(phi, seen, right, mobility, tolerance, method, most_iterations)

    return jax.vmap(one)(seen, right)


@jax.jit
def finish_steps(
    phi: FeatureFunction,
    problem: SpanningProblem,
    states: SpanningState,
    changes: Any,
    unturn: Array,
    pull: Array,
    ceilings: Array,
) -> SpanningState:
    """The last part, in the precision of the states."""

    def one(state: SpanningState, start: Array, change: Any, unturn: Array, ceiling: Array) -> SpanningState:
        own = dataclasses.replace(problem, start=start)
        return _finish(phi, own, state, change, unturn, pull, ceiling)

    return jax.vmap(one)(states, problem.start, changes, unturn, ceilings)


def spanning_step(
    phi: FeatureFunction,
    problem: SpanningProblem,
    state: SpanningState,
    pull: Float[Array, ""],
    ceiling: Float[Array, ""],
    tolerance: Float[Array, ""],
    method: SpanningMethod,
    most_iterations: int,
    wide: bool = False,
) -> SpanningState:
    """Take the step if it keeps the residual below a ceiling; damp the next by whether it helped.

    The residual is computed in the precision of the state, everything about the step in float32: an
    inexact step costs a few more steps and no accuracy. Only where some direction hardly counts beside
    the others, below float32's rounding, has the step to be as precise as the state.

    Args:
        phi: Feature map.
        problem: Basis, start and box.
        state: Where to step from.
        pull: Share of the way back to the start that the step takes within the solutions of the linearised
            equations.
        ceiling: The step is taken if its residual is smaller; infinity takes all that are finite.
        tolerance: Relative residual at which conjugate gradients stop.
        method: How the linear equations are solved.
        most_iterations: Conjugate gradient iterations at most.
        wide: Whether all of the step is in the precision of the state.

    Returns:
        The next state.
    """
    right, seen, unturn = _begin(phi, problem, state, pull, wide)
    change = spanning_direction(phi, seen, right, problem.mobility, tolerance, method, most_iterations)
    return _finish(phi, problem, state, change, unturn, pull, ceiling, wide)


class _Seen(NamedTuple):
    """What a direction is found from, in the precision in which it is found.

    Args:
        x: Inputs, shape (m, d).
        features: Phis as the equations see them, shape (m, p).
        mix: M T, of orthonormal columns, shape (m, r).
        back: Change of the inputs that is taken in any case, shape (m, d).
        free: 1 for inputs that may move, 0 for the others, shape (m, d).
        damping: mu.
    """

    x: Array
    features: Array
    mix: Array
    back: Array
    free: Array
    damping: Array


class _Change(NamedTuple):
    """A step, in the precision of its right side: changes of X and of M T, and iterations."""

    x: Array
    mix: Array
    iterations: Array


def _begin(
    phi: FeatureFunction, problem: SpanningProblem, state: SpanningState, pull: Array, wide: bool = False
) -> tuple[Array, _Seen, Array]:
    """The residual in the basis T, in the precision of the state; what the direction needs; T back."""
    features = problem.centred(phi(state.x))
    turn, unturn = _whitening(state.mix)
    right = matmul(spanning_residual(features, state.mix, problem.basis), turn)
    parts = (
        state.x,
        features,
        matmul(state.mix, turn),
        pull * (problem.start - state.x),
        jnp.where(state.held, 0.0, 1.0),
        state.damping,
    )
    kind = right.dtype if wide else jnp.float32
    return right, _Seen(*(part.astype(kind) for part in parts)), unturn


def spanning_direction(
    phi: FeatureFunction,
    seen: _Seen,
    right: Float[Array, "p r"],
    mobility: Float[Array, ""],
    tolerance: Float[Array, ""],
    method: SpanningMethod,
    most_iterations: int,
) -> _Change:
    """Solve the linearised equations: the part of a step that need not be precise, in the type of ``seen``.

    Args:
        phi: Feature map.
        seen: Where to step from.
        right: The residual, shape (p, r); the change has its type.
        mobility: How easily coefficients move.
        tolerance: Relative residual at which conjugate gradients stop.
        method: How the linear equations are solved.
        most_iterations: Conjugate gradient iterations at most.
    """
    x, features, mix, back, free, damping = seen
    _, forward = jax.linearize(phi, x)
    backward = jax.linear_transpose(forward, x)
    right -= matmul(forward(back).T, mix).astype(right.dtype)
    size = jnp.linalg.norm(right)
    size = jnp.where(size > 0, size, 1.0)
    unit = (right / size).astype(x.dtype)

    if method is SpanningMethod.DIRECT:
        explicit = jacobians(phi, x) * free[:, None, :]
        gram = jnp.einsum("ipd,iqd->ipq", explicit, explicit, precision=jax.lax.Precision.HIGHEST)
        mean = jnp.trace(gram.sum(0)) / gram.shape[1] / gram.shape[0]
    else:
        gram = tangent_gram(phi, x)
        mean = jnp.trace(gram) / len(gram)
    # Traces of the parts of images and coefficients stand in the ratio of the mobility.
    moved = mobility.astype(x.dtype) * mean * gram.shape[-1] / jnp.sum(features**2)
    damping = damping * mean

    def push(multiplier: Array) -> Array:
        return backward(matmul(mix, multiplier.T))[0]

    if method is SpanningMethod.DIRECT:
        square = _square(gram, features, mix, moved, damping)
        multiplier, iterations = _factorised(square, unit, tolerance, most_iterations)
    else:

        def normal(multiplier: Array) -> Array:
            images = matmul(forward(free * push(multiplier)).T, mix)
            return images + moved * matmul(features.T, matmul(features, multiplier)) + damping * multiplier

        operator = gram + moved * matmul(features.T, features)
        shift = (damping + _STABLE * mean) * jnp.eye(len(gram), dtype=x.dtype)
        factor = jnp.linalg.cholesky(operator + shift)
        multiplier, iterations = _conjugate_gradients(
            normal,
            lambda r: jax.scipy.linalg.cho_solve((factor, True), r),
            unit,
            tolerance.astype(x.dtype),
            most_iterations,
        )
    images, coefficients = push(multiplier), moved * matmul(features, multiplier)
    return _Change(images.astype(right.dtype) * size, coefficients.astype(right.dtype) * size, iterations)


def _finish(
    phi: FeatureFunction,
    problem: SpanningProblem,
    state: SpanningState,
    change: _Change,
    unturn: Array,
    pull: Array,
    ceiling: Array,
    wide: bool = False,
) -> SpanningState:
    """Take the step or leave it, by the residual in the precision of the state."""
    direction = change.x + pull * (problem.start - state.x)
    proposed = state.x + jnp.where(state.held, 0.0, direction)
    low, high = problem.low[None], problem.high[None]
    new_x = jnp.clip(proposed, low, high)
    # The change has mean zero to float32's rounding only.
    new_mix = problem.centred(state.mix + matmul(change.mix, unturn))
    residual = relative_residual(problem.centred(phi(new_x)), new_mix, problem.basis)
    taken = residual < ceiling
    held = ((new_x <= low) & (direction < 0)) | ((new_x >= high) & (direction > 0))
    eased = jnp.where(residual < state.residual, _EASE, _CLIMB)
    eased = jnp.where(residual < 0.5 * state.residual, _SHRINK, eased)
    least = LEAST_WIDE if wide else _LEAST_DAMPING
    least_rejected = _LEAST_REJECTED_WIDE if wide else _LEAST_REJECTED
    return SpanningState(
        x=jnp.where(taken, new_x, state.x),
        mix=jnp.where(taken, new_mix, state.mix),
        residual=jnp.where(taken, residual, state.residual),
        damping=jnp.where(
            taken,
            jnp.maximum(eased * state.damping, least),
            jnp.maximum(_GROW * state.damping, least_rejected),
        ),
        held=jnp.where(jnp.isfinite(residual), held, state.held),
        iterations=state.iterations + change.iterations.astype(state.iterations.dtype),
    )


def _whitening(mix: Float[Array, "m r"]) -> tuple[Float[Array, "r r"], Float[Array, "r r"]]:
    """T with ``(M T)^T M T = I``, and what turns a change of M T into one of M."""
    values, vectors = jnp.linalg.eigh(matmul(mix.T, mix))
    roots = jnp.sqrt(jnp.maximum(values, _FLATTEST * values[-1]))
    return vectors / roots[None], (vectors * roots[None]).T


def _square(
    grams: Float[Array, "m p p"],
    features: Float[Array, "m p"],
    mix: Float[Array, "m r"],
    moved: Float[Array, ""],
    damping: Float[Array, ""],
) -> Float[Array, "q q"]:
    """The matrix of the normal equations, of order p r; in float64 inside x64, from float32 products."""
    (m, p), r = features.shape, mix.shape[1]
    pairs = (mix[:, :, None] * mix[:, None, :]).reshape(m, r * r)
    images = matmul(grams.reshape(m, p * p).T, pairs).reshape(p, p, r, r)
    coefficients = moved * matmul(features.T, features)
    whole = images + coefficients[:, :, None, None] * jnp.eye(r, dtype=mix.dtype)[None, None]
    square = whole.transpose(0, 2, 1, 3).reshape(p * r, p * r).astype(jnp.result_type(float))
    return square + damping.astype(square.dtype) * jnp.eye(p * r, dtype=square.dtype)


def _factorised(
    square: Float[Array, "q q"], right: Float[Array, "p r"], tolerance: Float[Array, ""], most: int
) -> tuple[Float[Array, "p r"], Array]:
    """Solve by a Cholesky factor in float64; solution and iterations, which are none.

    The least damping is far below float32's rounding: there, the factor is of a little more, and conjugate
    gradients correct it.
    """

    def solve(matrix: Array) -> Callable[[Array], Array]:
        factor = jnp.linalg.cholesky(matrix)
        return lambda r: jax.scipy.linalg.cho_solve((factor, True), r)

    flat = right.reshape(-1).astype(square.dtype)
    if square.dtype == jnp.float64:
        solved, iterations = solve(square)(flat), jnp.zeros((), int)
    else:
        more = _STABLE * jnp.trace(square) / len(square) * jnp.eye(len(square), dtype=square.dtype)
        near = solve(square + more)
        solved, iterations = _conjugate_gradients(
            lambda v: matmul(square, v), near, flat, tolerance.astype(square.dtype), most
        )
    return solved.reshape(right.shape).astype(right.dtype), iterations


def _conjugate_gradients(
    operator: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    right: Float[Array, "*shape"],
    tolerance: Float[Array, ""],
    most: int,
) -> tuple[Float[Array, "*shape"], Array]:
    """Preconditioned conjugate gradients for a right-hand side of norm one; solution and iterations."""

    def unfinished(carry: tuple[Array, ...]) -> Array:
        return (carry[4] < most) & (jnp.linalg.norm(carry[1]) > tolerance)

    def iterate(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        solution, rest, search, product, count = carry
        image = operator(search)
        length = product / jnp.vdot(search, image)
        solution, rest = solution + length * search, rest - length * image
        near = precondition(rest)
        following = jnp.vdot(rest, near)
        return solution, rest, near + following / product * search, following, count + 1

    near = precondition(right)
    begin = (jnp.zeros_like(right), right, near, jnp.vdot(right, near), jnp.zeros((), int))
    solution, _, _, _, count = jax.lax.while_loop(unfinished, iterate, begin)
    return solution, count
