"""Solve the spanning equations: choose the method, step until exact, keep the best, report."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.errors import InputError
from jaxdistill.numerics.linalg import check_finite, in_float32, in_float64
from jaxdistill.numerics.memory import require_memory
from jaxdistill.numerics.placement import moving_arrays, placement
from jaxdistill.solve.box import checked_box
from jaxdistill.solve.spanning import (
    SpanningProblem,
    SpanningState,
    least_squares_mix,
    orthonormal_basis,
    relative_residual,
    spanning_count,
    spanning_mix,
)
from jaxdistill.solve.spanning_report import SpanningOutcome, SpanningReport, SpanningSolution
from jaxdistill.solve.spanning_step import (
    FeatureFunction,
    SpanningMethod,
    begin_steps,
    find_directions,
    finish_steps,
    spanning_steps,
)

# Unknowns p r up to which the matrix of a step is formed: 8 * 2560^2 bytes, 0.1 s to factorise on two cores.
DIRECT_LIMIT = 2560
# Bytes of explicit float32 Jacobians up to which they are formed.
JACOBIAN_BYTES = 2**29
# Conjugate gradient iterations of a step, and the residual at which they stop.
MOST_ITERATIONS = 200
INNER_TOLERANCE = 1e-2
# Damping of the first step.
FIRST_DAMPING = 1e-2
# A solver that has not come 5% nearer in so many steps has stalled. One that only descends gives up sooner,
# if it has not come twice as near: where the slopes of phi jump (LeakyReLU), descent creeps along the kinks.
# Then it begins anew, and takes steps that raise the residual to at most so many times the best so far. They
# find more sets, which are further from where they started.
PATIENCE, PROGRESS, PROGRESS_DOWNHILL = 30, 0.95, 0.5
DOWNHILL, UPHILL = 1.0, 2.0
# Rounding of phi(Xs)^T M in float64: a multiple of eps that grows with the size of the sum.
ROUNDING = 64 * float(np.finfo(np.float64).eps)


def choose_method(
    num_features: int, num_inputs: int, size: int, rank: int, starts: int = 1
) -> SpanningMethod:
    """The method for given shapes: direct where the matrix and the Jacobians are small.

    Example:
        >>> choose_method(128, 784, 100, 10).name, choose_method(784, 784, 100, 10).name
        ('DIRECT', 'MATRIX_FREE')
    """
    small = num_features * rank <= DIRECT_LIMIT
    jacobian = 4 * starts * size * num_features * num_inputs
    return SpanningMethod.DIRECT if small and jacobian <= JACOBIAN_BYTES else SpanningMethod.MATRIX_FREE


def peak_bytes(
    method: SpanningMethod, num_features: int, num_inputs: int, size: int, rank: int, starts: int
) -> int:
    """Memory that the solver takes at its peak; no matrix of order p r above the direct limit."""
    p, d, m = num_features, num_inputs, size
    sets = 8 * m * (12 * d + 6 * p)
    if method is SpanningMethod.DIRECT:
        return starts * (sets + 8 * m * p * d + 4 * m * p * p + 24 * (p * rank) ** 2)
    return starts * (sets + 16 * p * p) + 32 * p * max(p, d)


@moving_arrays()
def solve_spanning(
    phi: FeatureFunction,
    weights: Any,
    start: Any,
    *,
    rank: int | None = None,
    intercept: bool = False,
    box: tuple[Any, Any] | None = None,
    pull: int = 0,
    sharpness: float | None = 10.0,
    mobility: float = 1.0,
    steps: int = 200,
    seconds: float | None = None,
    tolerance: float | None = None,
    method: SpanningMethod | None = None,
    progress: bool = False,
) -> SpanningSolution:
    """Find inputs near the start whose features span the weights: ``phi(Xs)^T M = Q``.

    By Levenberg-Marquardt with steps of least norm, so that inputs move little. Several starts run side by
    side until the first is exact; the best is returned, exact or not.

    Args:
        phi: Feature map, (..., d) to (..., p), differentiable.
        weights: B, shape (p, k).
        start: Inputs to start from, shape (m, d), or several starts, shape (s, m, d).
        rank: Rank r of B; default its numerical rank.
        intercept: Whether the model has an unpenalised intercept: the columns of M then sum to zero.
        box: Ends (low, high) between which inputs must stay, numbers or arrays (d,).
        pull: Rounds in which an exact set is drawn back towards its start and made exact again; the
            nearest is kept.
        sharpness: c of the first coefficients, those of the nearest spanning set: the larger, the nearer
            the inputs stay and the more steps it takes. None for least squares.
        mobility: How easily coefficients move in place of inputs.
        steps: Steps at most.
        seconds: Time after which to stop with the best so far; default no limit.
        tolerance: Relative residual that counts as exact; default that of rounding in float64.
        method: How linear equations are solved; default by :func:`choose_method`.
        progress: Whether to show a bar.

    Returns:
        Inputs, coefficients and report.

    Raises:
        InputError: a shape or a number that makes no sense.
        MemoryBudgetError: it would not fit.

    Example:
        >>> import jax, numpy as np
        >>> from jaxdistill.features import RandomNetwork
        >>> phi = RandomNetwork.create(6, widths=(18,), activation="gelu", key=jax.random.key(0))
        >>> rng = np.random.default_rng(0)
        >>> found = solve_spanning(phi, rng.standard_normal((18, 2)), rng.standard_normal((8, 6)))
        >>> found.report.reached, found.report.count, found.report.method.name
        (True, 5, 'DIRECT')

    Source: this package (spanning equations); Levenberg 1944, Marquardt 1963.
    """
    began = perf_counter()
    weights, starts = _checked(weights, start)
    low, high = checked_box(box, starts.shape[-1])
    for name, value in (
        ("sharpness", sharpness),
        ("mobility", mobility),
        ("seconds", seconds),
        ("tolerance", tolerance),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; it must be positive and finite")
    for name, value in (("steps", steps), ("pull", pull)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{name} is {value!r}; it must be a whole number >= 0")
    rank = int(np.linalg.matrix_rank(weights)) if rank is None else rank
    number, m, d = starts.shape
    p = len(weights)
    least = rank + intercept
    if m < least:
        what = " and an intercept" if intercept else ""
        raise InputError(
            f"{m} examples cannot span weights of rank {rank}{what}; start from at least {least}"
        )
    method = choose_method(p, d, m, rank, number) if method is None else method
    require_memory(
        peak_bytes(method, p, d, m, rank, number),
        f"solving the spanning equations for {m} examples with {p} features",
        "use fewer examples, features or starts",
    )
    run = _Run(
        phi,
        method,
        tolerance or ROUNDING * math.sqrt(p),
        steps,
        math.inf if seconds is None else began + seconds,
    )
    with tqdm(total=steps, desc="spanning", disable=not progress, leave=False) as bar:
        run.bar = bar
        problem, states = in_float64(
            _prepare,
            phi,
            weights,
            starts,
            low,
            high,
            mobility,
            sharpness or 0.0,
            rank,
            sharpness is None,
            intercept,
        )
        states, outcome = run.until_reached(problem, states)
        if outcome is SpanningOutcome.REACHED and pull:
            states = run.drawn_back(problem, states, pull)
    x, residuals = np.asarray(states.x), np.asarray(states.residual)
    distances = np.sqrt(np.mean((x - starts) ** 2, axis=(1, 2)))
    chosen = _best(residuals, distances, run.tolerance)
    report = SpanningReport(
        outcome=outcome,
        residual=float(residuals[chosen]),
        tolerance=run.tolerance,
        size=m,
        count=spanning_count(p, d, weights.shape[1], rank, intercept=intercept),
        method=method,
        steps=run.taken,
        iterations=int(states.iterations[chosen]),
        starts=number,
        chosen=chosen,
        distance=float(distances[chosen]),
        seconds=perf_counter() - began,
    )
    return SpanningSolution(x[chosen], np.asarray(states.mix)[chosen], report)


class _Run:
    """The loop over steps, with its budget and its bar."""

    def __init__(
        self, phi: FeatureFunction, method: SpanningMethod, tolerance: float, steps: int, deadline: float
    ) -> None:
        self.phi, self.method, self.tolerance = phi, method, tolerance
        self.steps, self.deadline, self.taken = steps, deadline, 0
        self.bar: Any = None

    def step(
        self, problem: SpanningProblem, states: SpanningState, ceilings: np.ndarray, pull: float = 0.0
    ) -> SpanningState:
        settings: Any = {"method": self.method, "most_iterations": MOST_ITERATIONS}
        if placement().native:
            function = partial(spanning_steps, **settings)
            states = in_float64(function, self.phi, problem, states, pull, ceilings, INNER_TOLERANCE)
        else:  # the same in three parts: only the middle one is for devices without float64
            function = partial(find_directions, **settings)
            right, seen, unturn = in_float64(begin_steps, self.phi, problem, states, pull)
            changes = in_float32(function, self.phi, seen, right, problem.mobility, INNER_TOLERANCE)
            states = in_float64(finish_steps, self.phi, problem, states, changes, unturn, pull, ceilings)
        self.taken += 1
        self.bar.update()
        self.bar.set_postfix_str(f"residual {np.min(states.residual):.1e}", refresh=False)
        return states

    def until_reached(
        self, problem: SpanningProblem, begun: SpanningState
    ) -> tuple[SpanningState, SpanningOutcome]:
        """Step until the first start is exact: downhill, then with steps uphill; the best states are kept."""
        kept = states = begun

        def end(outcome: SpanningOutcome) -> tuple[SpanningState, SpanningOutcome]:
            return dataclasses.replace(kept, iterations=states.iterations), outcome

        for uphill, progress in ((DOWNHILL, PROGRESS_DOWNHILL), (UPHILL, PROGRESS)):
            states = dataclasses.replace(begun, iterations=states.iterations)
            lowest = np.asarray(begun.residual)
            marks = [lowest.min()]
            while len(marks) <= PATIENCE or marks[-1] <= progress * marks[-1 - PATIENCE]:
                if marks[-1] <= self.tolerance:
                    return end(SpanningOutcome.REACHED)
                if self.taken >= self.steps:
                    return end(SpanningOutcome.STEPS)
                if perf_counter() >= self.deadline:
                    return end(SpanningOutcome.SECONDS)
                states = self.step(problem, states, uphill * lowest)
                kept = _nearer(states, kept)
                lowest = np.minimum(lowest, states.residual)
                marks.append(lowest.min())
        return end(SpanningOutcome.STALLED)

    def drawn_back(self, problem: SpanningProblem, states: SpanningState, rounds: int) -> SpanningState:
        """Draw exact sets back to their starts while that brings them nearer, and make them exact again."""
        distance = np.linalg.norm(states.x - problem.start)
        for _ in range(rounds):
            tried = self.step(problem, states, np.full(len(states.residual), np.inf), pull=1.0)
            tried, outcome = self.until_reached(problem, tried)
            nearer = np.linalg.norm(tried.x - problem.start)
            if outcome is not SpanningOutcome.REACHED or nearer >= distance:
                break
            states, distance = tried, nearer
        return states


def _checked(weights: Any, start: Any) -> tuple[np.ndarray, np.ndarray]:
    weights, starts = np.asarray(weights, np.float64), np.asarray(start, np.float64)
    if weights.ndim != 2:
        raise InputError(f"weights have shape {weights.shape}, expected (p, k)")
    if starts.ndim not in (2, 3):
        raise InputError(f"start has shape {starts.shape}, expected (m, d) or several, (s, m, d)")
    check_finite("weights", weights)
    check_finite("start", starts)
    return weights, starts if starts.ndim == 3 else starts[None]


@partial(jax.jit, static_argnums=(7, 8, 9))
def _prepare(
    phi: FeatureFunction,
    weights: Float[Array, "p k"],
    starts: Float[Array, "s m d"],
    low: Float[Array, " d"],
    high: Float[Array, " d"],
    mobility: Float[Array, ""],
    sharpness: Float[Array, ""],
    rank: int,
    fitted: bool,
    intercept: bool,
) -> tuple[SpanningProblem, SpanningState]:
    """The problem, and the state of every start."""
    problem = SpanningProblem(orthonormal_basis(weights, rank), starts, low, high, mobility, intercept)
    basis = problem.basis

    def begin(x: Array) -> SpanningState:
        features = problem.centred(phi(x))
        if fitted:
            mix = least_squares_mix(features, basis, intercept=intercept)
        else:
            mix = spanning_mix(features, basis, sharpness, intercept=intercept)
        return SpanningState(
            x=x,
            mix=mix,
            residual=relative_residual(features, mix, basis),
            damping=jnp.asarray(FIRST_DAMPING, x.dtype),
            held=jnp.zeros(x.shape, bool),
            iterations=jnp.zeros((), jnp.int64),
        )

    return problem, jax.vmap(begin)(jnp.clip(starts, low[None, None], high[None, None]))


def _nearer(states: SpanningState, kept: SpanningState) -> SpanningState:
    """Of every start the state of the smaller residual; in NumPy, which keeps float64."""
    lower = np.asarray(states.residual) < np.asarray(kept.residual)
    if lower.all() or not lower.any():
        return states if lower.all() else kept

    def choose(new: Any, old: Any) -> np.ndarray:
        return np.where(lower.reshape(-1, *[1] * (np.ndim(new) - 1)), new, old)

    return jax.tree.map(choose, states, kept)


def _best(residuals: np.ndarray, distances: np.ndarray, tolerance: float) -> int:
    """The nearest of those that are exact; where none is, the one with the smallest residual."""
    exact = residuals <= tolerance
    return int(np.argmin(np.where(exact, distances, np.inf))) if exact.any() else int(np.argmin(residuals))
