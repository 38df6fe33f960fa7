"""The spanning equations with coefficients that are given: inputs alone move."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.numerics.linalg import in_float64
from jaxdistill.solve.box import checked_box
from jaxdistill.solve.spanning import SpanningProblem, SpanningState, relative_residual
from jaxdistill.solve.spanning_solver import (
    FIRST_DAMPING,
    INNER_TOLERANCE,
    MOST_ITERATIONS,
    choose_method,
)
from jaxdistill.solve.spanning_step import FeatureFunction, spanning_steps

# Steps at most. After so many in a row that hardly help no more are taken: one alone may have found only
# which inputs are at an end of the box.
STEPS, PATIENCE, HARDLY = 30, 3, 0.95


def inputs_for_mix(
    phi: FeatureFunction,
    target: Float[np.ndarray, "p r"],
    mix: Float[np.ndarray, "m r"],
    start: Float[np.ndarray, "m d"],
    box: tuple[Any, Any] | None = None,
    *,
    tolerance: float,
) -> Float[np.ndarray, "m d"]:
    """Inputs near the start with ``phi(X)^T M = T``, for coefficients M that stay what they are.

    Args:
        phi: Feature map, (..., d) to (..., p), differentiable.
        target: T, shape (p, r).
        mix: M, shape (m, r); inputs of a row of zeros do not move.
        start: Inputs to start from, shape (m, d).
        box: Ends (low, high) between which inputs must stay, numbers or arrays (d,).
        tolerance: Residual ``|T - phi(X)^T M| / sqrt(r)`` that is small enough.

    Returns:
        Inputs, shape (m, d), float64: as near to a solution as the steps come.

    Example:
        >>> import numpy as np
        >>> from jaxdistill.features import Linear
        >>> rng = np.random.default_rng(0)
        >>> mix, start, target = (rng.standard_normal(shape) for shape in ((5, 2), (5, 6), (6, 2)))
        >>> x = inputs_for_mix(Linear(6), target, mix, start, tolerance=1e-9)
        >>> bool(np.allclose(x.T @ mix, target))
        True
    """
    (m, d), (p, r) = start.shape, target.shape
    low, high = checked_box(box, d)
    problem = SpanningProblem(target, np.asarray(start, np.float64)[None], low, high, np.float64(0.0), False)
    states = SpanningState(
        x=problem.start,
        mix=mix[None],
        residual=in_float64(_residual, phi, start, mix, target)[None],
        damping=np.full(1, FIRST_DAMPING),
        held=np.zeros((1, m, d), bool),
        iterations=np.zeros(1, np.int32),
    )
    step = partial(spanning_steps, method=choose_method(p, d, m, r), most_iterations=MOST_ITERATIONS)
    taken = idle = 0
    while states.residual[0] > tolerance and taken < STEPS and idle < PATIENCE:
        before = states.residual
        states = in_float64(step, phi, problem, states, 0.0, before, INNER_TOLERANCE)
        taken, idle = taken + 1, idle + 1 if states.residual[0] > HARDLY * before[0] else 0
    return np.asarray(states.x)[0]


@jax.jit
def _residual(phi: FeatureFunction, x: Array, mix: Array, target: Array) -> Array:
    return relative_residual(phi(x), mix, target)
