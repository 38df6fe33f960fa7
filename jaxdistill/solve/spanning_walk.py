"""Walks of the solver: many steps in one compiled call, and what must be remembered between them.

A walk goes on by itself until it is exact, comes no nearer, or has taken the steps that it was given: whoever
started it need not look on. On a CPU, whose convolutions are slow inside a compiled loop, a call is one step.

Where the devices have no float64, some steps at a time are taken in float32 there, and measured in float64
where it lives; once float32 has no more digits to give, residuals are in float64 at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdistill.numerics.pytrees import register_pytree
from jaxdistill.solve.spanning import SpanningProblem, SpanningState, relative_residual
from jaxdistill.solve.spanning_step import FeatureFunction, SpanningMethod, finish_steps, spanning_steps

# Residuals of float32 that are further than this share from those of float64 are rounding.
_ALIKE = 0.1


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Walk:
    """A walk of several starts side by side, and what it has found.

    Args:
        states: Where every start stands.
        best: Of every start the state of the smallest residual so far, of this walk or an earlier one;
            iterations are those of all.
        found: Whether it is of this walk, shape (s,).
        lowest: The smallest residual of this walk, shape (s,).
        marks: The smallest of all after each of the last steps, oldest first; infinite before the first.
        taken: Steps that were taken.
    """

    states: SpanningState
    best: SpanningState
    found: Bool[Array, " s"] | Any
    lowest: Float[Array, " s"] | Any
    marks: Float[Array, " q"] | Any
    taken: Array | Any

    @classmethod
    def begin(cls, states: SpanningState, best: SpanningState | None, patience: int) -> Walk:
        """A walk without steps, in NumPy, beside the best of earlier ones.

        Args:
            states: Where it begins.
            best: The best of earlier walks.
            patience: Number of steps over which it must come nearer.
        """
        if best is None:
            kept, found = states, np.ones(len(states.residual), bool)
        else:
            kept, found = nearer(best, states, np)
        marks = np.append(np.full(patience, np.inf), _least(states.residual, np))
        return cls(states, kept, found, states.residual, marks, np.int32(0))

    def stalled(self, progress: Any) -> Any:
        """Whether it has not come nearer by this factor of late."""
        return ~(self.marks[-1] < progress * self.marks[0])

    def creeps(self, fine: float, steps: int) -> bool:
        """Whether it is this near and has not come twice as near in so many steps."""
        before, now = self.marks[-1 - min(steps, len(self.marks) - 1)], self.marks[-1]
        return bool(now <= fine and now > 0.5 * before)

    def after(self, states: SpanningState) -> Walk:
        """The walk after a step to these states."""
        spent = states.iterations - self.states.iterations
        best, closer = nearer(self.best, states, jnp, spent)
        lowest = jnp.minimum(self.lowest, states.residual)
        marks = jnp.append(self.marks[1:], _least(lowest, jnp))
        return Walk(states, best, self.found | closer, lowest, marks, self.taken + 1)


def nearer(
    best: SpanningState, states: SpanningState, xp: Any, spent: Any = 0
) -> tuple[SpanningState, Bool[Array, " s"] | Any]:
    """The better of two for every start, and whether it is the second; iterations add up.

    Args:
        best: The first.
        states: The second.
        xp: NumPy, which keeps float64 anywhere, or JAX's.
        spent: Iterations on the way from the one to the other.
    """
    old = best.residual
    lower = (states.residual < old) | xp.isnan(old)

    def choose(new: Any, old: Any) -> Any:
        return xp.where(lower.reshape(-1, *[1] * (xp.ndim(new) - 1)), new, old)

    kept = jax.tree.map(choose, states, best)
    return replace(kept, iterations=best.iterations + spent), lower


def _least(residuals: Any, xp: Any) -> Any:
    """The smallest residual; infinite where none is a number."""
    return xp.min(xp.where(xp.isnan(residuals), xp.inf, residuals))


def _ceilings(walk: Walk, uphill: Array) -> Array:
    """Residuals up to which a step is taken."""
    return jnp.where(jnp.isinf(uphill), uphill, uphill * walk.lowest)


@partial(jax.jit, static_argnames=("method", "most_iterations", "loop", "wide"))
def walk_on(
    phi: FeatureFunction,
    problem: SpanningProblem,
    walk: Walk,
    pull: Array,
    uphill: Array,
    progress: Array,
    exact: Array,
    inner: Array,
    stop: Array,
    *,
    method: SpanningMethod,
    most_iterations: int,
    loop: bool,
    wide: bool = False,
) -> Walk:
    """Steps, one at least, in the precision of the walk, until it is exact or has stalled.

    Args:
        phi: Feature map.
        problem: Basis, starts and box.
        walk: Where to go on.
        pull: Share of the way back to the start in every step.
        uphill: A step is taken if its residual is below so many times the lowest so far; infinity takes all.
        progress: As for :meth:`Walk.stalled`.
        exact: Residual at which to stop.
        inner: Relative residual at which conjugate gradients stop.
        stop: Number of steps of the walk after which to return.
        method: How linear equations are solved.
        most_iterations: Conjugate gradient iterations at most.
        loop: Whether to take them all in this call, or one.
        wide: Whether all of a step is in the precision of the walk, and not in float32.
    """
    settings: Any = {"method": method, "most_iterations": most_iterations, "wide": wide}

    def step(walk: Walk) -> Walk:
        ceilings = _ceilings(walk, uphill)
        return walk.after(spanning_steps(phi, problem, walk.states, pull, ceilings, inner, **settings))

    def unfinished(now: Walk) -> Array:
        going = (now.taken < stop) & (now.marks[-1] > exact) & ~now.stalled(progress)
        return (now.taken == walk.taken) | going

    return jax.lax.while_loop(unfinished, step, walk) if loop else step(walk)


@jax.jit
def finish_walk(
    phi: FeatureFunction,
    problem: SpanningProblem,
    walk: Walk,
    changes: Any,
    unturn: Array,
    pull: Array,
    uphill: Array,
) -> Walk:
    """The last part of one step, in the precision of the walk."""
    ceilings = _ceilings(walk, uphill)
    return walk.after(finish_steps(phi, problem, walk.states, changes, unturn, pull, ceilings))


@jax.jit
def measure_walk(
    phi: FeatureFunction, problem: SpanningProblem, before: Walk, after: Walk
) -> tuple[Walk, Array]:
    """A walk that went on in float32, measured in float64.

    Args:
        phi: Feature map.
        problem: Basis, starts and box.
        before: The walk in float64, from where it went on.
        after: What came of it, whose best was found before where ``found`` is false.

    Returns:
        The walk in float64, and whether float32 had the digits to measure its nearest start.
    """

    def measure(states: SpanningState) -> SpanningState:
        x = jnp.clip(states.x, problem.low, problem.high)  # float32 may round across an end
        mix = jax.vmap(problem.centred)(states.mix)

        def one(x: Array, mix: Array) -> Array:
            return relative_residual(problem.centred(phi(x)), mix, problem.basis)

        return replace(states, x=x, mix=mix, residual=jax.vmap(one)(x, mix))

    states, best = measure(after.states), measure(after.best)
    candidate = replace(best, residual=jnp.where(after.found, best.residual, jnp.inf))
    kept, closer = nearer(before.best, candidate, jnp)
    kept = replace(kept, iterations=after.best.iterations)
    lowest = jnp.minimum(jnp.minimum(before.lowest, states.residual), candidate.residual)
    least = _least(lowest, jnp)
    at = jnp.argmin(jnp.where(jnp.isnan(states.residual), jnp.inf, states.residual))
    alike = jnp.abs(after.states.residual - states.residual)[at] <= _ALIKE * states.residual[at]
    # Marks fall: what float32 took for nearer than it was does not count.
    marks = jnp.append(jnp.maximum(after.marks, least)[:-1], least)
    return Walk(states, kept, before.found | closer, lowest, marks, after.taken), alike
