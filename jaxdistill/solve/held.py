"""The spanning equations where some inputs may not move."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxdistill.numerics.linalg import in_float64
from jaxdistill.solve.box import checked_box
from jaxdistill.solve.ladder import Rung
from jaxdistill.solve.spanning import SpanningProblem, orthonormal_basis
from jaxdistill.solve.spanning_solver import (
    INNER_TOLERANCE,
    MOST_ITERATIONS,
    ROUNDING,
    begin_rung,
    choose_method,
)
from jaxdistill.solve.spanning_step import FeatureFunction, spanning_steps

# Steps at most. Near a solution the residual falls tenfold a step; one that does not halve it is the last.
STEPS = 12


def spanning_with_held(
    phi: FeatureFunction,
    weights: Float[np.ndarray, "p k"],
    start: Float[np.ndarray, "m d"],
    held: Bool[np.ndarray, "m d"],
    box: tuple[Any, Any] | None = None,
    *,
    intercept: bool = False,
) -> Float[np.ndarray, "m d"]:
    """Inputs near the start that span the weights as well as those that are not held can make them.

    Args:
        phi: Feature map, (..., d) to (..., p), differentiable.
        weights: B, shape (p, k).
        start: Inputs to start from, shape (m, d).
        held: Which of them keep their value, shape (m, d).
        box: Ends (low, high) between which inputs must stay, numbers or arrays (d,).
        intercept: Whether the model has an unpenalised intercept.

    Returns:
        Inputs, shape (m, d), float64.

    Example:
        >>> import numpy as np
        >>> from jaxdistill.features import Linear
        >>> rng = np.random.default_rng(0)
        >>> weights, start = rng.standard_normal((6, 2)), rng.standard_normal((5, 6))
        >>> held = np.arange(30).reshape(5, 6) % 2 == 0
        >>> x = spanning_with_held(Linear(6), weights, start, held)
        >>> bool((x[held] == start[held]).all())
        True
        >>> bool(np.allclose(np.linalg.pinv(x) @ (x @ weights), weights))
        True
    """
    (m, d), (p, _) = start.shape, weights.shape
    rank = int(np.linalg.matrix_rank(weights))
    low, high = checked_box(box, d)
    starts = np.asarray(start, np.float64)[None]
    basis = in_float64(orthonormal_basis, weights, rank)
    problem = SpanningProblem(basis, starts, low, high, np.float64(1.0), intercept)
    method = choose_method(p, d, m, rank)
    states = begin_rung(phi, problem, Rung("held", None))
    assert states is not None
    step = partial(spanning_steps, method=method, most_iterations=MOST_ITERATIONS)
    for _ in range(STEPS):
        before = states.residual
        states = dataclasses.replace(states, held=states.held | held)
        states = in_float64(step, phi, problem, states, 0.0, before, INNER_TOLERANCE)
        if states.residual[0] <= ROUNDING * np.sqrt(p) or states.residual[0] > 0.5 * before[0]:
            break
    return np.asarray(states.x)[0]
