"""Inputs that are found step by step: starts, the spanning equations, the projection below their count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxdistill.distill.compiled import features_of_factors, noisy_factors
from jaxdistill.distill.copies import find_copies
from jaxdistill.distill.found import Found
from jaxdistill.distill.options import SolverOptions
from jaxdistill.distill.plan import Construction, Plan, spanning_rows
from jaxdistill.distill.reference import pick_reference
from jaxdistill.errors import ConvergenceError, InputError, InverseError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.solve.derivative import check_derivative
from jaxdistill.solve.invert import invert
from jaxdistill.solve.ladder import Rung, softer
from jaxdistill.solve.projection import project
from jaxdistill.solve.small_features import small_features
from jaxdistill.solve.spanning_solver import ROUNDING, solve_spanning

# Inputs whose derivatives are checked before any work.
_CHECKED = 4
# Share of the rounding of the stored inputs at which the equations are solved well enough.
_BELOW_ROUNDING = 1e-2
# Examples, relative to the rank of the weights, below which small features are a rung of the ladder.
_FEW = 3


def find_inputs(
    model: RidgeModel,
    plan: Plan,
    reference: Any,
    options: SolverOptions,
    *,
    box: tuple[Any, Any] | None,
    sharpness: float,
    near: bool,
    exact: bool,
    stored: np.dtype,
    progress: bool,
    key_pick: Array,
    key_noise: Array,
) -> Found:
    """Solve the spanning equations, or descend below their count, from the starts asked for.

    Where these stall at the sharpness asked for, smaller ones are tried, and then other starts, unless the
    set is to stay near to its start.

    Raises:
        InputError: a start that does not fit.
        InverseError: a map without a derivative, or a closed-form start without a closed form.
        ConvergenceError: exactness was demanded and not reached.
    """
    if plan.construction is Construction.COPIES:
        told: dict[str, Any] = {"box": box, "exact": exact, "stored": stored, "progress": progress}
        return find_copies(model, plan, reference, options, key=key_pick, **told)
    starts = choose_starts(model, plan, reference, options, key_pick, key_noise)
    check_derivative(model.features, starts[0, :_CHECKED])
    phi, seconds = model.features, options.seconds
    shared: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    shared["intercept"] = model.has_intercept
    if plan.construction is Construction.PROJECTION:
        what = f"a set of {plan.size} examples, fewer than m* = {plan.count},"
        gram = model.moments_for(what).gram
        tries = [
            project(phi, model.weights, gram, x, box=box, seconds=seconds, progress=progress, **shared)
            for x in starts
        ]
        best = min(tries, key=lambda found: found.report.loss)
        return Found(best.x, best.report.loss, best.report.to_dict())
    solution = solve_spanning(
        phi,
        model.weights,
        starts,
        rank=plan.rank,
        box=box,
        pull=options.pull,
        rungs=_ladder(model, plan, reference, options, starts, sharpness, near, key_pick, key_noise),
        mobility=options.mobility,
        seconds=seconds,
        tolerance=_tolerance(phi, stored),
        method=plan.method,
        progress=progress,
        **shared,
    )
    report = solution.report
    if exact and not report.reached:
        raise ConvergenceError(
            f"no exact set was found: {report.steps} steps on {report.rungs} rungs leave a residual of "
            f"{report.residual:.2g} with m = {report.size} (m* = {report.count}); {report.outcome.value}",
            solution,
        )
    return Found(solution.x, 0.0, report.to_dict())


def _ladder(
    model: RidgeModel,
    plan: Plan,
    reference: Any,
    options: SolverOptions,
    starts: np.ndarray,
    sharpness: float,
    near: bool,
    key_pick: Array,
    key_noise: Array,
) -> tuple[Rung, ...]:
    """The nearest way to begin first, the surest last; small features first where nothing is to spare."""
    phi, down = model.features, softer(sharpness)
    if near:
        return down
    key_small, key_other = jax.random.split(jax.random.fold_in(key_noise, len(starts)))

    def small() -> np.ndarray | None:
        keys = jax.random.split(key_small, len(starts))
        pairs = zip(starts, keys, strict=True)
        told: dict[str, Any] = {"rank": plan.rank, "intercept": model.has_intercept}
        made = [small_features(phi, model.weights, x, key=key, **told) for x, key in pairs]
        found = [x for x in made if x is not None]
        return np.stack(found) if len(found) == len(starts) else None

    def noise() -> np.ndarray:
        noisy = replace(options, start="noise", starts=len(starts))
        return choose_starts(model, plan, reference, noisy, key_pick, key_other)

    last = Rung("noise", down[-1].sharpness, noise)
    if phi.num_inputs < phi.num_features or plan.size >= _FEW * plan.rank:
        return (*down, last)
    few = Rung("small features", None, small)
    tight = plan.size == plan.rank + model.has_intercept
    return (few, *down, last) if tight and options.start is None else (*down, few, last)


def _tolerance(phi: AbstractFeatureMap, stored: Any) -> float:
    """Residual below which an inexact set cannot be told from an exact one, stored and computed as it is."""
    digits = float(np.finfo(phi.precision).eps / np.finfo(np.float64).eps)
    return max(_BELOW_ROUNDING * float(np.finfo(stored).eps), digits * ROUNDING * phi.num_features**0.5)


def choose_starts(
    model: RidgeModel, plan: Plan, reference: Any, options: SolverOptions, key_pick: Array, key_noise: Array
) -> np.ndarray:
    """Inputs to start from, shape (s, m, d); the first real start is the one that closed forms use."""
    m, d, s = plan.size, model.features.num_inputs, options.starts
    start = options.start
    if start is not None and not isinstance(start, str):
        given = np.asarray(start, np.float64)
        if given.shape[-2:] != (m, d) or given.ndim not in (2, 3):
            raise InputError(f"start has shape {given.shape}, expected ({m}, {d}) or (s, {m}, {d})")
        return given.reshape(-1, m, d)
    if start is None:
        start = "noise" if reference is None else "real"
    if start == "real" and reference is None:
        raise InputError("start='real' needs real examples; pass reference=(x, y)")
    if start == "closed":
        return np.stack([_closed_form(model, plan, jax.random.fold_in(key_noise, i)) for i in range(s)])
    if reference is None:
        first = host_generator(key_noise).standard_normal((s, m, d))
    else:
        keys = [key_pick, *(jax.random.fold_in(key_pick, i) for i in range(1, s))]
        first = np.stack([pick_reference(model, reference, m, one)[0] for one in keys]).astype(np.float64)
        if start == "noise":  # of the mean and the size that real examples have
            noise = host_generator(key_noise).standard_normal((s, m, d))
            first = first.mean(axis=1, keepdims=True) + first.std(axis=(1, 2), keepdims=True) * noise
    if start == "preimages":
        for i in range(s):
            wanted = _closed_features(model, plan, jax.random.fold_in(key_noise, i))
            first[i] = invert(model.features, wanted, first[i]).x
    return first


def _closed_features(model: RidgeModel, plan: Plan, key: Array) -> np.ndarray:
    """Features of a closed-form set with a random free part, of the mean size of the training data's.

    With an intercept of their size about the mean feature, and then about it.
    """
    level = model.has_intercept
    rows = spanning_rows(model, plan.size, plan.rank, key)
    factors = in_float64(noisy_factors, model.weights, rows, 1.0, plan.rank, key, level)
    features = in_float64(features_of_factors, factors, 0.0, np.asarray(True), level)
    moments = model.moments_for("a start of the size of the training features")
    size = np.sqrt(np.trace(moments.gram) / moments.count)
    return features * (size * np.sqrt(plan.size) / np.linalg.norm(features)) + moments.feature_shift


def _closed_form(model: RidgeModel, plan: Plan, key: Array) -> np.ndarray:
    phi = model.features
    if phi.construction_obstacle is not None:
        raise InverseError(phi.construction_obstacle)
    features = _closed_features(model, plan, key)
    bound = phi.feature_bound
    if bound is not None:
        middle = features.mean(axis=0) if model.has_intercept else 0.0
        room = 0.9 * (bound - np.abs(middle))
        features = middle + (features - middle) * np.min(room / np.max(np.abs(features - middle), axis=0))
    return phi.inverse(features)
