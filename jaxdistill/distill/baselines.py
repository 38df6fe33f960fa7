"""Small sets without any distillation: what a construction has to beat at the same budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.distill import distill, plan_distillation
from jaxdistill.distill.compiled import stored_labels
from jaxdistill.distill.exact import retrain, retrain_with_intercept
from jaxdistill.distill.labels import self_conditioning_penalty
from jaxdistill.distill.plan import class_rows
from jaxdistill.distill.reference import pick_reference
from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.arrays import as_floats
from jaxdistill.numerics.contrasts import contrasts
from jaxdistill.numerics.keys import checked_key, host_generator
from jaxdistill.numerics.linalg import in_float64, matmul
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.ridge.model import RidgeModel, predict
from jaxdistill.ridge.residual import recorded
from jaxdistill.ridge.targets import TargetKind
from jaxdistill.sets.artifact import DistilledSet

# Candidates for the penalty of hard labels, relative to tr(K_ss) / m.
_RELATIVE_PENALTIES = 10.0 ** np.arange(-6.0, 3.25, 0.25)

Points = Float[np.ndarray, "c d"]


@moving_arrays()
def baseline(
    name: str,
    model: RidgeModel,
    x: Any,
    y: Any,
    *,
    ipc: int | None = None,
    size: int | None = None,
    labels: str = "solved",
    key: Array,
) -> DistilledSet:
    """Make a set by a simple rule, with the best labels or the best penalty that it can have.

    - "random": real examples, balanced over classes;
    - "means": means of random, equal parts of each class;
    - "kmeans": k-means centres of each class (in input space);
    - "herding": real examples of each class whose mean feature follows that of the class, greedily;
    - "label distillation": random real examples with the labels of CHW Theorem 4.2.

    Args:
        name: Which of them.
        model: The full model; its feature map, its moments and its weights.
        x: Training inputs, shape (n, d).
        y: Training targets, shape (n, k).
        ipc: Examples per class; or
        size: examples in all, m.
        labels: "solved", those that predict the training data most like the model does
            (``(Phis G Phis^T)^+ Phis G B``), with the self-conditioning penalty; or "hard", class
            rows, with the penalty of least error on all training data. Label distillation has its own.
        key: Random key.

    Returns:
        The set; ``recipe`` says how it was made.

    Raises:
        InputError: an unknown name, labels or budget, or too few real examples.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (60, 8)))
        >>> y = jd.one_hot(np.arange(60) % 3, 3)
        >>> model = jd.fit_ridge(jd.features.Linear(8), x, y, lam=0.1)
        >>> baseline("means", model, x, y, ipc=2, key=jax.random.key(1)).x.shape
        (6, 8)

    Source: herding, Welling 2009; label distillation, CHW Theorem 4.2.
    """
    check_choice("baseline", name, BASELINES)
    check_choice("labels", labels, ("solved", "hard"))
    plan = plan_distillation(model, ipc=ipc, size=size, realistic="fixed")
    real = model.target_kind is TargetKind.REAL
    if labels == "hard" and real:
        raise InputError("real-valued targets have no hard labels; use labels='solved'")
    x, y = as_floats("x", x), as_floats("y", y)
    if name == "label distillation":
        # Kept in the type of x, as all others are: float64 would promise what no other device repeats.
        told: dict[str, Any] = {"realistic": "fixed", "reference": (x, y), "dtype": x.dtype}
        made = distill(model, size=plan.size, key=key, **told)
        return DistilledSet(**{**made.__dict__, "recipe": {**made.recipe, "construction": name}})
    key_pick, key_choose = jax.random.split(checked_key(key))
    # Also where it is not used: the same checks of the pool, and the same real examples.
    points = pick_reference(model, (x, y), plan.size, key_pick)[0]
    if name != "random":
        named = np.zeros(len(y), int) if real else y.argmax(axis=1)
        step = 1 if real else y.shape[1]
        generator = host_generator(key_choose)
        points = np.empty((plan.size, x.shape[1]), x.dtype)
        for c in range(min(step, plan.size)):
            slots = np.arange(c, plan.size, step)
            points[slots] = _CHOICES[name](model.features, x[named == c], len(slots), generator)
    if labels == "hard":
        rows = class_rows(model, plan.size)
        penalty = _best_penalty(model, points, rows)
    else:
        moments = model.moments_for("a baseline")
        means = (moments.feature_shift, moments.target_shift) if model.has_intercept else None
        given = (model.weights, model.intercept), None, moments.gram, means
        rows, penalty = in_float64(stored_labels, model.features, points, *given)
    return DistilledSet(
        x=points,
        y=rows,
        lam=float(penalty),
        features=model.features,
        weights=np.asarray(model.weights, np.float64),
        intercept=model.intercept,
        recipe={
            "construction": name,
            "labels": labels,
            "targets": model.target_kind.value,
            "rank": plan.rank,
            "lam": model.lam,
            "lam_s": "best on the training data" if labels == "hard" else "auto",
            "num_train": len(x),
            "full_model": recorded(model.solution),
        },
    )


def _best_penalty(model: RidgeModel, x: np.ndarray, rows: np.ndarray) -> float:
    """The penalty with which hard labels have the least squared error on all training data."""
    moments = model.moments_for("the best penalty of a baseline")
    means = None
    if model.has_intercept:
        means = moments.count, moments.feature_shift, moments.target_shift
    arrays = x, rows, moments.gram, moments.cross, means
    lams, errors = in_float64(_score, model.features, *arrays, _RELATIVE_PENALTIES)
    return float(lams[np.argmin(errors)])


@jax.jit
def _score(
    phi: AbstractFeatureMap,
    x: Array,
    rows: Array,
    gram: Array,
    cross: Array,
    means: tuple[Array, Array, Array] | None,
    relative: Array,
) -> tuple[Array, Array]:
    features = phi(x)
    seen = features if means is None else contrasts(features)
    lams = relative * self_conditioning_penalty(seen)

    def error(lam: Array) -> Array:
        weights, level = retrain(features, rows, lam), 0.0
        if means is not None:
            count, middle, target = means
            weights, intercept = retrain_with_intercept(features, rows, lam)
            level = count * jnp.sum((target - matmul(middle, weights) - intercept) ** 2)
        return jnp.sum(weights * (matmul(gram, weights) - 2 * cross)) + level

    return lams, jax.lax.map(error, lams)


def _means(phi: AbstractFeatureMap, x: np.ndarray, count: int, generator: np.random.Generator) -> Points:
    del phi
    parts = np.array_split(generator.permutation(len(x)), count)
    return np.stack([x[part].mean(axis=0, dtype=np.float64) for part in parts])


def _kmeans(phi: AbstractFeatureMap, x: np.ndarray, count: int, generator: np.random.Generator) -> Points:
    from sklearn.cluster import KMeans  # heavy, and needed here only

    del phi
    seed = int(generator.integers(2**31))
    means = KMeans(count, n_init=1, random_state=seed)  # pyright: ignore[reportArgumentType]
    return means.fit(x).cluster_centers_


def _herding(phi: AbstractFeatureMap, x: np.ndarray, count: int, generator: np.random.Generator) -> Points:
    """Greedily ``argmin_i |t mu - sum of the chosen - phi(x_i)|``, none twice."""
    del generator
    features = predict(phi, np.eye(phi.num_features), x)
    squares = np.sum(features**2, axis=1)
    mean = features.mean(axis=0)
    ahead, chosen = np.zeros_like(mean), []
    for _ in range(count):
        ahead += mean
        distance = squares - 2 * (features @ ahead)
        distance[chosen] = np.inf
        chosen.append(int(np.argmin(distance)))
        ahead -= features[chosen[-1]]
    return x[chosen]


_Choice = Callable[[AbstractFeatureMap, np.ndarray, int, np.random.Generator], Points]
_CHOICES: dict[str, _Choice] = {"means": _means, "kmeans": _kmeans, "herding": _herding}
BASELINES = ("random", *_CHOICES, "label distillation")
