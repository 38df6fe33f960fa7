"""Solve the spanning equations: choose the method, step until exact, keep the best, report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxdistill.errors import InputError
from jaxdistill.numerics.linalg import check_finite, in_float32, in_float64
from jaxdistill.numerics.memory import require_memory
from jaxdistill.numerics.pace import Pace
from jaxdistill.numerics.placement import moving_arrays, on_accelerator, placement
from jaxdistill.solve.box import checked_box
from jaxdistill.solve.ladder import Rung
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
    LEAST_WIDE,
    FeatureFunction,
    SpanningMethod,
    begin_steps,
    find_directions,
)
from jaxdistill.solve.spanning_walk import Walk, finish_walk, measure_walk, walk_on

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
# Below this residual Newton's method squares it, and one that has not halved in so many steps lacks digits:
# some direction counts less than the rounding of float32. From there on steps are in float64 throughout.
FINE, CREEPING = 1e-5, 5
# Share of the steps and seconds left that a rung of the ladder may use while others follow.
SHARE = 2 / 3
# Rounding of phi(Xs)^T M in float64: a multiple of eps that grows with the size of the sum.
ROUNDING = 64 * float(np.finfo(np.float64).eps)
# Where devices have no float64: residual down to which they step on their own, and steps between two looks in
# float64. It is looked at after a fixed number, so that results do not hang on the clock.
NARROW, NARROW_STEPS = 1e-5, 5


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
    rungs: Sequence[Rung] | None = None,
    mobility: float = 1.0,
    steps: int = 300,
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
        rungs: The ladder, each rung with a sharpness of its own; default the start with ``sharpness`` alone.
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
    rungs = (Rung("start", sharpness),) if rungs is None else tuple(rungs)
    for name, value in (
        *(("sharpness", rung.sharpness) for rung in rungs),
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
        basis = in_float64(orthonormal_basis, weights, rank)
        problem = SpanningProblem(basis, starts, low, high, np.float64(mobility), intercept)
        begins = [partial(begin_rung, phi, problem, rung) for rung in rungs]
        states, outcome, found_on = run.climb(problem, begins)
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
        rung=int(found_on[chosen]) + 1,
        rungs=len(rungs),
        began=rungs[found_on[chosen]].name,
        distance=float(distances[chosen]),
        seconds=perf_counter() - began,
    )
    return SpanningSolution(x[chosen], np.asarray(states.mix)[chosen], report)


class _Run:
    """The loop over walks, with its budget and its bar."""

    def __init__(
        self, phi: FeatureFunction, method: SpanningMethod, tolerance: float, steps: int, deadline: float
    ) -> None:
        self.phi, self.tolerance = phi, tolerance
        self.steps, self.deadline, self.taken = steps, deadline, 0
        self.bar: Any = None
        self.native, self.loop, self.pace = placement().native, on_accelerator(), Pace()
        self.settings: Any = {"method": method, "most_iterations": MOST_ITERATIONS}

    def go(self, problem: SpanningProblem, leg: _Leg, progress: float, most: int, pull: float = 0.0) -> None:
        """Go on with a leg for so many steps at most, or for fewer until the next look at it."""
        walk, began = leg.walk, perf_counter()
        function = partial(walk_on, loop=self.loop, **self.settings)
        how = (pull, leg.uphill, progress)
        if self.native:
            stop = walk.taken + min(most, self.pace.steps if self.loop else 1)
            told = (*how, self.tolerance, INNER_TOLERANCE, stop)
            leg.walk = in_float64(partial(function, wide=leg.wide), self.phi, problem, walk, *told)
        elif self.loop and leg.narrow and not pull and walk.marks[-1] > NARROW:
            ahead = replace(walk, found=np.zeros_like(walk.found))
            told = (*how, max(self.tolerance, NARROW), INNER_TOLERANCE, walk.taken + min(most, NARROW_STEPS))
            ahead = in_float32(function, self.phi, problem, ahead, *told)
            leg.walk, leg.narrow = in_float64(measure_walk, self.phi, problem, walk, ahead)
        else:
            leg.walk = self.refine(problem, walk, leg.uphill, pull)
        steps = int(leg.walk.taken - walk.taken)
        self.pace.took(steps, perf_counter() - began)
        self.taken += steps
        self.bar.update(steps)
        self.bar.set_postfix_str(f"residual {leg.walk.marks[-1]:.1e}", refresh=False)

    def refine(self, problem: SpanningProblem, walk: Walk, uphill: float, pull: float) -> Walk:
        """One step in three parts, of which only the middle one is for devices without float64."""
        function = partial(find_directions, **self.settings)
        right, seen, unturn = in_float64(begin_steps, self.phi, problem, walk.states, pull)
        changes = in_float32(function, self.phi, seen, right, problem.mobility, INNER_TOLERANCE)
        return in_float64(finish_walk, self.phi, problem, walk, changes, unturn, pull, uphill)

    def climb(
        self, problem: SpanningProblem, begins: Sequence[Callable[[], SpanningState | None]]
    ) -> tuple[SpanningState, SpanningOutcome, np.ndarray]:
        """Step until the first start is exact: downhill, then uphill, then uphill from rung after rung.

        Where every rung stalls, the one with the smallest residual goes on until it comes no nearer at all.

        Returns:
            The best state of every start, the outcome, and the rung of every start.
        """
        best: _Best | None = None
        legs: list[_Leg] = []
        outcome = SpanningOutcome.STALLED
        for number, begin in enumerate(begins):
            begun = begin()
            if begun is None:
                continue
            until = self.share(last=number == len(begins) - 1)
            for uphill in (UPHILL,) if legs else (DOWNHILL, UPHILL):
                legs.append(_Leg.begin(number, uphill, begun, best))
                best, outcome = self.advance(problem, legs[-1], best, PROGRESS_DOWNHILL, until)
                if outcome is not SpanningOutcome.STALLED:
                    return best.states, outcome, best.rungs
        assert best is not None
        leg = min(legs[1:], key=lambda leg: leg.walk.marks[-1])
        leg.walk = replace(leg.walk, best=best.states, found=np.zeros_like(leg.walk.found))
        best, outcome = self.advance(problem, leg, best, PROGRESS, (self.steps, self.deadline))
        return best.states, outcome, best.rungs

    def share(self, *, last: bool) -> tuple[float, float]:
        """Steps and time up to which a rung may go on."""
        if last:
            return self.steps, self.deadline
        now = perf_counter()
        return self.taken + SHARE * (self.steps - self.taken), now + SHARE * (self.deadline - now)

    def advance(
        self,
        problem: SpanningProblem,
        leg: _Leg,
        best: _Best | None,
        progress: float,
        until: tuple[float, float],
    ) -> tuple[_Best, SpanningOutcome]:
        """Go on with a leg while it comes nearer and its share of the budget lasts."""
        outcome = SpanningOutcome.STALLED
        while True:
            if self.native and not leg.wide and leg.walk.creeps(FINE, CREEPING):
                leg.widen()
            if leg.walk.stalled(progress):
                break
            now = perf_counter()
            if leg.walk.marks[-1] <= self.tolerance:
                outcome = SpanningOutcome.REACHED
            elif self.taken >= self.steps:
                outcome = SpanningOutcome.STEPS
            elif now >= self.deadline:
                outcome = SpanningOutcome.SECONDS
            elif self.taken < until[0] and now < until[1]:
                self.go(problem, leg, progress, math.ceil(min(self.steps, until[0])) - self.taken)
                continue
            break
        walk = leg.walk
        rungs = np.full(len(walk.found), leg.rung) if best is None else best.rungs
        return _Best(walk.best, np.where(walk.found, leg.rung, rungs)), outcome

    def drawn_back(self, problem: SpanningProblem, states: SpanningState, rounds: int) -> SpanningState:
        """Draw exact sets back to their starts while that brings them nearer, and make them exact again."""
        distance = np.linalg.norm(states.x - problem.start)
        for _ in range(rounds):
            leg = _Leg.begin(0, math.inf, states, None)
            self.go(problem, leg, PROGRESS, 1, pull=1.0)
            tried, outcome, _ = self.climb(problem, [lambda leg=leg: leg.walk.states])
            nearer = np.linalg.norm(tried.x - problem.start)
            if outcome is not SpanningOutcome.REACHED or nearer >= distance:
                break
            states, distance = tried, nearer
        return states


@dataclass
class _Leg:
    """A walk from where a rung begins: downhill, or uphill within a factor of the least residual so far.

    On devices without float64 it is in float32 as long as that has the digits (``narrow``). Where they have
    it, steps are found in float32 until that lacks the digits, and then in float64 (``wide``).
    """

    rung: int
    uphill: float
    walk: Walk
    narrow: Any = True
    wide: bool = False

    @classmethod
    def begin(cls, rung: int, uphill: float, begun: SpanningState, best: _Best | None) -> _Leg:
        return cls(rung, uphill, Walk.begin(begun, None if best is None else best.states, PATIENCE))

    def widen(self) -> None:
        """Go on in float64, with little damping and new patience."""
        states, marks = self.walk.states, self.walk.marks
        damping = np.where(states.residual <= FINE, LEAST_WIDE, states.damping)
        marks = np.append(np.full(len(marks) - 1, np.inf), marks[-1])
        self.walk = replace(self.walk, states=replace(states, damping=damping), marks=marks)
        self.wide = True


class _Best(NamedTuple):
    """Of every start the state of the smallest residual so far, and the rung that it was found on."""

    states: SpanningState
    rungs: np.ndarray


def _checked(weights: Any, start: Any) -> tuple[np.ndarray, np.ndarray]:
    weights, starts = np.asarray(weights, np.float64), np.asarray(start, np.float64)
    if weights.ndim != 2:
        raise InputError(f"weights have shape {weights.shape}, expected (p, k)")
    if starts.ndim not in (2, 3):
        raise InputError(f"start has shape {starts.shape}, expected (m, d) or several, (s, m, d)")
    check_finite("weights", weights)
    check_finite("start", starts)
    return weights, starts if starts.ndim == 3 else starts[None]


def begin_rung(phi: FeatureFunction, problem: SpanningProblem, rung: Rung) -> SpanningState | None:
    """Where every start of a rung stands at first, or None where the rung has none."""
    x = problem.start if rung.make is None else rung.make()
    if x is None:
        return None
    return in_float64(_begin, phi, problem, x, rung.sharpness or 0.0, rung.sharpness is None)


@partial(jax.jit, static_argnums=4)
def _begin(
    phi: FeatureFunction,
    problem: SpanningProblem,
    starts: Float[Array, "s m d"],
    sharpness: Float[Array, ""],
    fitted: bool,
) -> SpanningState:
    """The state of every start."""
    basis, intercept = problem.basis, problem.intercept

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
            iterations=jnp.zeros((), jnp.int32),
        )

    return jax.vmap(begin)(jnp.clip(starts, problem.low[None, None], problem.high[None, None]))


def _best(residuals: np.ndarray, distances: np.ndarray, tolerance: float) -> int:
    """The nearest of those that are exact; where none is, the one with the smallest residual."""
    exact = residuals <= tolerance
    return int(np.argmin(np.where(exact, distances, np.inf))) if exact.any() else int(np.argmin(residuals))
