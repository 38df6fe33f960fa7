"""From a model to a distilled set: choose the construction, invert, hand over."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxdistill.artifact import DistilledSet
from jaxdistill.distill.compiled import (
    features_of_factors,
    noisy_factors,
    real_factors,
    reduced,
    spanning_features,
    stored_labels,
)
from jaxdistill.distill.deep_linear import within_range
from jaxdistill.distill.plan import (
    Construction,
    LabelKind,
    PenaltyRequest,
    Plan,
    Realistic,
    class_rows,
    given_rows,
    plan_distillation,
    spanning_rows,
)
from jaxdistill.distill.reference import pick_reference
from jaxdistill.distill.scaling import Scaled, choose_scale
from jaxdistill.errors import InputError, InverseError
from jaxdistill.linalg import in_float64
from jaxdistill.memory import require_memory
from jaxdistill.ridge import RidgeModel


@within_range
def distill(
    model: RidgeModel,
    *,
    ipc: int | None = None,
    size: int | None = None,
    labels: Any = None,
    lam_s: PenaltyRequest = None,
    larger_root: Any = True,
    realistic: Realistic | None = None,
    reference: tuple[Any, Any] | None = None,
    noise: float = 1.0,
    sharpness: float = 10.0,
    scale: float | None = None,
    dtype: Any = np.float64,
    key: Array,
) -> DistilledSet:
    """Construct m examples from which ridge regression returns the weights of the model.

    Exact wherever m reaches the rank of the weights; below it, the best set of its size in mean squared
    prediction, with the share that is lost in ``recipe["lost"]``. What was done is in ``recipe``;
    whether it is exact, only :func:`~jaxdistill.certify` says.

    Args:
        model: A trained model.
        ipc: Examples per class; or
        size: examples in all, m. Give one of the two.
        labels: "hard", class rows like the training targets; "soft", computed from the inputs as stored,
            which admits every penalty; "weighted", soft labels that predict the training data
            best, for fixed examples; or rows (m, k) of your own. Default: hard where classes
            suffice, rows of full rank otherwise, soft for real examples
            and where the weights sum to zero over classes.
        lam_s: Penalty to retrain with: a number, "max" for the largest that the labels admit, or
            "auto" for the self-conditioning ``tr(Phis Phis^T) / m`` of soft labels. Default: "auto" for soft
            labels, 0 otherwise.
        larger_root: Which root of ``s / (s^2 + lam_s) = s'`` to take, one for all or one per singular
            value in decreasing order; the smaller exists for lam_s > 0 only.
        realistic: None for noise; "closest", the nearest spanning set of real examples; "inverse",
            the nearest inverse (CHW Corollary 4.1.1); "fixed", real examples with new labels.
        reference: Real examples ``(x, y)``, shapes (n, d) and (n, k), of which m are drawn. Needed
            for ``realistic``; without it, where the inverse of the map chooses the nearest solution.
        noise: Size of the random part of sets with m > k, relative to the fixed part.
        sharpness: c of the nearest spanning set: larger is nearer to the real examples and worse
            conditioned.
        scale: Factor on features and labels (their penalty is lam_s all the same). Default: 1, or
            what brings the features into the range of a bounded map.
        dtype: Type in which the inputs are stored. Soft labels are computed from the stored inputs.
        key: Random key.

    Returns:
        The distilled set.

    Raises:
        InputError: the request is malformed or contradicts itself.
        PenaltyError: lam_s is above the largest admissible, which the message names.
        RankError: the labels cannot span the outputs, or the weights lie outside the range of deep linear
            features.
        InverseError: the feature map has no closed-form inverse, or the scale leaves its range.
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
    plan = plan_distillation(
        model, ipc=ipc, size=size, labels=labels, lam_s=lam_s, realistic=realistic, dtype=stored
    )
    if not (np.isfinite(noise) and noise > 0 and np.isfinite(sharpness) and sharpness > 0):
        raise InputError(f"noise={noise} and sharpness={sharpness} must be positive and finite")
    phi = model.features
    if plan.construction is not Construction.FIXED and phi.construction_obstacle is not None:
        raise InverseError(phi.construction_obstacle)
    m, p = plan.size, phi.num_features
    require_memory(
        8 * (6 * m * p + 4 * min(m, p) ** 2 + 3 * p * phi.num_inputs),
        f"constructing {m} examples with {p} features in float64",
        "ask for fewer examples or use fewer features",
    )
    key_pick, key_labels, key_noise = jax.random.split(key, 3)
    if realistic is not None and reference is None:
        raise InputError(f"realistic={realistic!r} needs real examples; pass reference=(x, y)")
    real = None if reference is None else pick_reference(model, reference, m, key_pick)[0]

    target, lost = model.weights, 0.0
    rows: np.ndarray | None = None
    if m < plan.rank and plan.construction is not Construction.FIXED:
        target, rows, lost = in_float64(reduced, model.weights, model.moments.gram, m)
    if plan.construction is Construction.FIXED:
        assert real is not None
        inputs, scaled, fixed_labels = real.astype(np.float64), None, None
    else:
        if rows is None:
            rows = _label_rows(model, plan, labels, stored, key_labels)
        scaled = _features(phi, target, plan, rows, real, noise, sharpness, scale, larger_root, key_noise)
        inputs, fixed_labels = phi.inverse(scaled.features, real), scaled.labels

    x = inputs.astype(stored)
    if plan.soft or fixed_labels is None:
        y, penalty = _labels_as_stored(model, plan, x, target)
    else:
        assert scaled is not None
        y, penalty = fixed_labels, scaled.lam_s
    return DistilledSet(
        x=x,
        y=y,
        lam=float(penalty),
        features=phi,
        weights=np.asarray(model.weights, np.float64),
        recipe={
            "construction": plan.construction.name.lower(),
            "labels": plan.labels.value,
            "targets": model.target_kind.value,
            "rank": plan.rank,
            "lost": float(lost),
            "lam": float(model.lam),
            "lam_s": plan.lam_s,
            "largest_lam_s": None if plan.soft or scaled is None else scaled.largest_lam_s,
            "scale": None if scaled is None else scaled.scale,
            "num_train": int(model.moments.count),
        },
    )


def _label_rows(model: RidgeModel, plan: Plan, labels: Any, stored: np.dtype, key: Array) -> np.ndarray:
    """Labels for the construction; soft ones start from the natural rows."""
    if plan.labels is LabelKind.GIVEN:
        return given_rows(model, labels, plan.size, plan.rank)
    if plan.labels is LabelKind.HARD:
        return class_rows(model, plan.size)
    natural = plan_distillation(model, size=plan.size, dtype=stored).labels
    if natural in (LabelKind.HARD, LabelKind.SOFT):
        return class_rows(model, plan.size, centred=natural is LabelKind.SOFT)
    return spanning_rows(model, plan.size, plan.rank, key)


def _features(
    phi: Any,
    target: np.ndarray,
    plan: Plan,
    rows: np.ndarray,
    real: np.ndarray | None,
    noise: float,
    sharpness: float,
    scale: float | None,
    larger_root: Any,
    key: Array,
) -> Scaled:
    """Features, with labels and penalty, inside the range of the map."""
    # Soft labels follow afterwards, for any penalty; the features are best built without one.
    lam_s = 0.0 if plan.soft else plan.lam_s
    if plan.construction is Construction.SPANNING:
        rank = min(plan.rank, plan.size)
        features = in_float64(spanning_features, phi, target, real, rank, sharpness)
        return choose_scale(phi, lambda lam: features, rows, 0.0, np.inf, scale)
    if plan.construction is Construction.INVERSE:
        assumed = 0.0 if isinstance(lam_s, str) else lam_s
        factors, rows = in_float64(real_factors, phi, target, rows, real, assumed, plan.soft)
    else:
        factors = in_float64(noisy_factors, target, rows, noise, plan.rank, key)

    def features_at(lam: float) -> np.ndarray:
        return in_float64(features_of_factors, factors, lam, np.asarray(larger_root))

    largest = 0.25 / float(np.max(factors.values)) ** 2
    return choose_scale(phi, features_at, rows, lam_s, largest, scale)


def _labels_as_stored(
    model: RidgeModel, plan: Plan, x: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, float]:
    """Soft labels and their penalty from the inputs as they are stored, rounding included."""
    lam_s = np.nan if plan.lam_s == "auto" else plan.lam_s
    weighted = plan.labels is LabelKind.WEIGHTED
    y, lam = in_float64(stored_labels, model.features, x, target, model.moments.gram, lam_s, weighted)
    return y, float(lam)
