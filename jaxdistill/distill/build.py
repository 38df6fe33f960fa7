"""From a model to a distilled set: choose the construction, invert, hand over."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array

from jaxdistill.distill.compiled import (
    features_of_factors,
    mean_of,
    noisy_factors,
    real_factors,
    reduced,
    spanning_features,
    stored_labels,
)
from jaxdistill.distill.deep_linear import within_range
from jaxdistill.distill.iterative import find_inputs
from jaxdistill.distill.options import SolverOptions
from jaxdistill.distill.plan import (
    Construction,
    LabelKind,
    PenaltyRequest,
    Plan,
    Realistic,
    class_rows,
    evened,
    given_rows,
    label_level,
    plan_distillation,
    spanning_rows,
)
from jaxdistill.distill.reference import pick_reference
from jaxdistill.distill.scaling import Scaled, choose_scale
from jaxdistill.errors import InputError
from jaxdistill.numerics.keys import checked_key, split_key
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.numerics.memory import require_memory
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.residual import recorded
from jaxdistill.sets.artifact import DistilledSet


@within_range
@moving_arrays()
def distill(
    model: RidgeModel,
    *,
    ipc: int | None = None,
    size: int | None = None,
    labels: Any = None,
    lam_s: PenaltyRequest = None,
    larger_root: Any = True,
    realistic: Realistic | None = None,
    reference: Any | None = None,
    noise: float = 1.0,
    sharpness: float = 10.0,
    scale: float | None = None,
    exact: bool = False,
    box: tuple[Any, Any] | None = None,
    solver: SolverOptions | None = None,
    dtype: Any = np.float64,
    progress: bool = False,
    key: Array,
) -> DistilledSet:
    """Construct m examples from which ridge regression returns the weights of the model.

    In closed form where the feature map has an inverse: exact wherever m reaches the rank of the weights.
    For any other map by the spanning equations, ``phi(Xs)^T M = Q``, solved from real examples or noise:
    exact from about m* = p k / (d + k) examples (:func:`~jaxdistill.solve.spanning.spanning_count`). Below,
    the best set of its size in mean squared prediction, with the share that is lost in ``recipe["lost"]``.
    Of a model with an intercept ridge regression with an intercept returns both, from one example more than
    the rank of the weights: one per class of classes. What was done is in ``recipe``; whether it is exact,
    only :func:`~jaxdistill.certify` says.

    Args:
        model: A trained model.
        ipc: Examples per class; or
        size: examples in all, m. Give one of the two.
        labels: "hard", class rows like the training targets; "soft", computed from the inputs as stored,
            which admits every penalty; "weighted", soft labels that predict the training data
            best, for fixed examples; or rows (m, k) of your own. Default: hard where classes
            suffice, rows of full rank otherwise, soft for real examples
            and where the weights sum to zero over classes within the rounding of the data.
        lam_s: Penalty to retrain with: a number, "max" for the largest that the labels admit, or
            "auto" for the self-conditioning ``tr(Phis Phis^T) / m`` of soft labels. Default: "auto" for soft
            labels, 0 otherwise.
        larger_root: Which root of ``s / (s^2 + lam_s) = s'`` to take, one for all or one per singular
            value in decreasing order; the smaller exists for lam_s > 0 only.
        realistic: None for noise; "closest", exact near real examples, in closed form for linear maps
            without a box and by the spanning equations for others; "copies", a few real examples and near
            copies of them (:func:`~jaxdistill.solve.near_copies.near_copies`), exact in seconds for any map
            whose features they move, from (rank + 1) ceil(p / d) on; "features", the nearest spanning set
            in features, inverted; "inverse", the nearest inverse (CHW Corollary 4.1.1); "fixed", real
            examples with new labels.
        reference: Real examples ``(x, y)``, shapes (n, d) and (n, k), of which m are drawn; or a stream of
            such chunks, as for :func:`~jaxdistill.fit_ridge`, in one pass over it. Needed for ``realistic``;
            without it, where the inverse of the map chooses the nearest solution, and where the solver
            starts.
        noise: Size of the random part of sets with m > k, relative to the fixed part.
        sharpness: c of the nearest spanning set and of the first coefficients of the spanning equations:
            larger is nearer to the real examples, worse conditioned and slower. Where the equations are
            not solved at it, they are at smaller ones and, unless ``realistic`` says to stay near, from
            other starts: ``recipe["solver"]`` says at which rung of this ladder.
        scale: Factor on features and labels (their penalty is lam_s all the same). Default: 1, or
            what brings the features into the range of a bounded map.
        exact: Whether to refuse what cannot be exact: too few examples, equations that are not solved.
        box: Ends (low, high) between which inputs must stay, numbers or rows (d,), for constructions that
            solve for inputs; :func:`~jaxdistill.solve.box.pixel_box` makes them from pixels. A box that no
            exact set fits gives the best set found: ``recipe["solver"]`` says how far it is from exact.
        solver: Settings of the constructions that find inputs step by step.
        dtype: Type in which the inputs are stored. Soft labels are computed from the stored inputs.
        progress: Whether to show a bar.
        key: Random key.

    Returns:
        The distilled set.

    Raises:
        InputError: the request is malformed or contradicts itself.
        PenaltyError: lam_s is above the largest admissible, which the message names.
        RankError: the labels cannot span the outputs, the weights lie outside the range of deep linear
            features, or exactness is demanded of fewer than m* examples, which the message names.
        InverseError: the feature map has no derivative, or no closed-form inverse where one is asked for, or
            the scale leaves its range.
        ConvergenceError: exactness is demanded and the equations were not solved.
        MemoryBudgetError: the construction would not fit.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (60, 8)))
        >>> y = jd.one_hot(np.arange(60) % 3, 3)
        >>> phi = jd.features.RandomNetwork.create(8, widths=(8,), key=jax.random.key(1))
        >>> model = jd.fit_ridge(phi, x, y, lam=0.1)
        >>> small = jd.distill(model, ipc=2, lam_s="max", key=jax.random.key(2))
        >>> jd.certify(model, small).exact
        True

    Source: CHW, Theorems 4.1, 4.2 and 5.1, Corollaries 4.1.1 and 5.1.1; reduced rank, soft labels,
    self-conditioning and the nearest spanning set are this package's.
    """
    stored = np.dtype(dtype)
    if stored not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"dtype is {stored}; inputs are stored in float32 or float64")
    options = SolverOptions() if solver is None else solver
    plan = plan_distillation(
        model,
        ipc=ipc,
        size=size,
        labels=labels,
        lam_s=lam_s,
        realistic=realistic,
        exact=exact,
        starts=options.starts,
        boxed=box is not None,
        dtype=stored,
    )
    if not (np.isfinite(noise) and noise > 0 and np.isfinite(sharpness) and sharpness > 0):
        raise InputError(f"noise={noise} and sharpness={sharpness} must be positive and finite")
    if box is not None and not plan.iterative:
        raise InputError(
            "a box needs a construction that solves for inputs, and this request gets: "
            f"{plan.construction.value}; use realistic='closest', or leave box out"
        )
    phi = model.features
    m, p = plan.size, phi.num_features
    require_memory(
        8 * (6 * m * p + 4 * min(m, p) ** 2 + 3 * p * phi.num_inputs),
        f"constructing {m} examples with {p} features in float64",
        "ask for fewer examples or use fewer features",
    )
    key_pick, key_labels, key_noise = split_key(checked_key(key), 3)
    copies = plan.construction is Construction.COPIES  # of examples that may be the start
    if realistic is not None and reference is None and not copies:
        raise InputError(f"realistic={realistic!r} needs real examples; pass reference=(x, y)")
    solved = None
    if plan.iterative:
        solved = find_inputs(
            model,
            plan,
            reference,
            options,
            box=box,
            sharpness=sharpness,
            near=realistic is not None,
            exact=exact,
            stored=stored,
            progress=progress,
            key_pick=key_pick,
            key_noise=key_noise,
        )
    real = None if solved or reference is None else pick_reference(model, reference, m, key_pick)[0]

    target, level, lost = model.weights, model.intercept, 0.0
    rows: np.ndarray | None = None
    even = False
    held = m - model.has_intercept  # the rank that m examples can hold
    if held < plan.rank and plan.construction is not Construction.FIXED and solved is None:
        moments = model.moments_for(f"a set of {m} examples for weights of rank {plan.rank}")
        arguments = model.weights, moments.gram, held, model.has_intercept
        target, rows, lost = in_float64(reduced, *arguments)
        if model.has_intercept:
            level = moments.target_shift - moments.feature_shift @ target
            rows = np.asarray(rows) + moments.target_shift
    if solved is not None:
        inputs, scaled, fixed_labels, lost = solved.x, None, None, solved.lost
    elif plan.construction is Construction.FIXED:
        assert real is not None
        inputs, scaled, fixed_labels = real.astype(np.float64), None, None
    else:
        if rows is None:
            rows, even = _label_rows(model, plan, labels, stored, key_labels)
        span = evened(target, plan.rank) if even else target
        chosen = noise, sharpness, scale, larger_root
        scaled = _features(model, plan, (span, level), rows, real, *chosen, key_noise)
        inputs, fixed_labels = phi.inverse(scaled.features, real), scaled.labels

    x = _stored(inputs, stored)
    if plan.soft or fixed_labels is None:
        y, penalty = _labels_as_stored(model, plan, x, target, level)
    else:
        assert scaled is not None
        y, penalty = fixed_labels, scaled.lam_s
    return DistilledSet(
        x=x,
        y=y,
        lam=float(penalty),
        features=phi,
        weights=np.asarray(model.weights, np.float64),
        intercept=model.intercept,
        recipe={
            "construction": plan.construction.name.lower(),
            "labels": plan.labels.value,
            "targets": model.target_kind.value,
            "rank": plan.rank,
            "count": plan.count,
            "lost": float(lost),
            "lam": model.lam,
            "lam_s": plan.lam_s,
            "largest_lam_s": None if plan.soft or scaled is None else scaled.largest_lam_s,
            "scale": None if scaled is None else scaled.scale,
            "num_train": None if model.moments is None else int(model.moments.count),
            "full_model": recorded(model.solution),
            "solver": None if solved is None else solved.report,
        },
    )


def _stored(inputs: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Inputs in the type that they are kept in.

    Raises:
        InputError: their size is beyond that type.
    """
    with np.errstate(over="ignore"):
        x = inputs.astype(dtype)
    largest, limits = float(np.max(np.abs(inputs))), np.finfo(dtype)
    if not float(limits.tiny) / float(limits.eps) < largest < float(limits.max):
        raise InputError(
            f"the examples are of size {largest:.0e}, which {dtype} cannot hold; use dtype='float64', or a "
            "penalty and targets of more moderate size"
        )
    return x


def _label_rows(
    model: RidgeModel, plan: Plan, labels: Any, stored: np.dtype, key: Array
) -> tuple[np.ndarray, bool]:
    """Labels for the construction, soft ones from the natural rows; and whether to even the weights out.

    Where the weights sum to zero over classes, a set that class rows train to the weights themselves is as
    badly conditioned as they are; soft labels need features that span them, no more.
    """
    if plan.labels is LabelKind.GIVEN:
        return given_rows(model, labels, plan.size, plan.rank), False
    if plan.labels is LabelKind.HARD:
        rows = class_rows(model, plan.size)
        return given_rows(model, rows, plan.size, plan.rank) if model.has_intercept else rows, False
    natural = plan_distillation(model, size=plan.size, dtype=stored).labels
    if natural in (LabelKind.HARD, LabelKind.SOFT):
        return class_rows(model, plan.size), natural is LabelKind.SOFT
    return spanning_rows(model, plan.size, plan.rank, key), False


def _features(
    model: RidgeModel,
    plan: Plan,
    target: tuple[np.ndarray, np.ndarray | None],
    rows: np.ndarray,
    real: np.ndarray | None,
    noise: float,
    sharpness: float,
    scale: float | None,
    larger_root: Any,
    key: Array,
) -> Scaled:
    """Features, with labels and penalty, inside the range of the map; ``target`` holds B and b."""
    phi, (weights, intercept) = model.features, target
    level = intercept is not None
    # Soft labels follow afterwards, for any penalty; the features are best built without one.
    lam_s = 0.0 if plan.soft else plan.lam_s
    if plan.construction is Construction.SPANNING:
        rank = min(plan.rank, plan.size - level)
        features = in_float64(spanning_features, phi, weights, real, rank, sharpness, level)
        means = None
        if level:  # the labels follow, whatever their mean
            means = features.mean(axis=0), label_level(model)
            features = features - means[0]
        return choose_scale(phi, lambda lam: features, rows, 0.0, np.inf, scale, means)
    near = None
    if level and model.moments is not None:
        near = np.asarray(model.moments.feature_shift)
    if plan.construction is Construction.INVERSE:
        assumed = 0.0 if isinstance(lam_s, str) else lam_s
        kind = assumed, plan.soft, level
        factors, rows, near = in_float64(real_factors, phi, weights, rows, real, *kind)
    else:
        factors = in_float64(noisy_factors, weights, rows, noise, plan.rank, key, level)

    def features_at(lam: float) -> np.ndarray:
        return in_float64(features_of_factors, factors, lam, np.asarray(larger_root), level)

    means = None
    if level:
        means = _means(weights, intercept, rows, near, plan.soft)
        rows = rows - means[1]
    largest = 0.25 / float(np.max(factors.values)) ** 2
    return choose_scale(phi, features_at, rows, lam_s, largest, scale, means)


def _means(
    weights: np.ndarray, intercept: np.ndarray, rows: np.ndarray, near: np.ndarray | None, soft: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mean feature and mean label of a set that returns the intercept."""
    level = rows.mean(axis=0)
    if soft and near is not None:  # whose labels follow the mean of the features, wherever it is
        return near, level
    return in_float64(mean_of, weights, level - intercept, near), level


def _labels_as_stored(
    model: RidgeModel, plan: Plan, x: np.ndarray, target: np.ndarray, level: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """Soft labels and their penalty from the inputs as they are stored, rounding included."""
    lam_s = None if plan.lam_s == "auto" else plan.lam_s
    data: tuple[Any, ...] = ()
    if plan.labels is LabelKind.WEIGHTED:
        moments = model.moments_for("weighted labels")
        means = moments.feature_shift, moments.target_shift
        data = moments.gram, means if model.has_intercept else None
    y, lam = in_float64(stored_labels, model.features, x, (target, level), lam_s, *data)
    return y, float(lam)
