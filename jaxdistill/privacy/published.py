"""The published calibration (CHW Theorem 6.2), with its assumptions checked and its limits said."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from jaxdistill.distill.exact import exact_features
from jaxdistill.errors import AssumptionError, BudgetError, InputError
from jaxdistill.features import Linear
from jaxdistill.numerics.linalg import check_finite, in_float64
from jaxdistill.privacy.budget import Budget
from jaxdistill.privacy.noise import secure_normal
from jaxdistill.ridge.fit import check_penalty
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.source import ArraySource
from jaxdistill.sets.artifact import DistilledSet

COVERS = "each row of D by itself, to whoever does not know the labels"
NOT_COVERED = (
    "the released pair of inputs and labels: retraining on it returns the weights, which have no noise"
)


@final
@dataclass(frozen=True)
class PublishedNoise:
    """The noise of the published theorem, and what it rests on.

    Args:
        sigma: Standard deviation of the entries of Z.
        radius: R, a bound on the norm of an input.
        smallest: s0, a bound below on the singular values of the inputs.
        size: m, more than k.
        epsilon: Below one.
        delta: In (0, 1).
    """

    sigma: float
    radius: float
    smallest: float
    size: int
    epsilon: float
    delta: float


def published_noise(
    x: Any, y: Any, labels: Any, *, lam: float, epsilon: float, delta: float, radius: float, smallest: float
) -> PublishedNoise:
    """Noise for which each row of D is private by itself, ``D = (X^+ Y L^+)^T + (I - L L^+) Z``.

    ``sigma = max_i 2 sqrt(ln(1.25 / delta)) R |[(L^+)^T Y^T]_i| / (s0^2 epsilon |P_i|)``, P = I - L L^+. It
    holds for a linear model at lam = 0, labels L that are drawn without the data **and stay secret**. It does
    not cover the pair that is released: retraining on it returns B, and B was not perturbed. Use
    :func:`~jaxdistill.privacy.mechanism.fit_private_ridge` for a promise that covers what is released.

    Args:
        x: Inputs X, shape (n, d).
        y: Targets, shape (n, k).
        labels: L, shape (m, k), drawn without the data.
        lam: Penalty of the full model.
        epsilon: In (0, 1).
        delta: In (0, 1).
        radius: R, fixed without the data.
        smallest: s0, fixed without the data.

    Returns:
        The noise.

    Raises:
        AssumptionError: an assumption of the theorem fails; the message names it.
        BudgetError: epsilon or delta out of range.
        InputError: shapes that do not fit, or what is no number.

    Example:
        >>> import numpy as np
        >>> x, labels = np.eye(6), np.ones((3, 1))
        >>> told = {"lam": 0.0, "epsilon": 0.5, "delta": 1e-5, "radius": 1.0, "smallest": 0.9}
        >>> round(published_noise(x, np.eye(6, 1), labels, **told).sigma, 2)
        6.91

    Source: CHW, Theorem 6.2.
    """
    Budget(epsilon, delta)
    if epsilon >= 1:
        raise BudgetError(f"epsilon is {epsilon:g}; Theorem 6.2 holds below 1 only")
    source = ArraySource.of(x, y, breadth=1, num_inputs=None)
    rows = np.asarray(labels, np.float64)
    k = source.num_targets
    if rows.ndim != 2 or rows.shape[1] != k:
        raise InputError(f"labels have shape {rows.shape}, expected (m, {k})")
    check_finite("labels", rows)
    for name, value in (("radius", radius), ("smallest", smallest)):
        if not isinstance(value, (int, float, np.number)):
            raise InputError(f"{name} is {value!r}; give a number")
    if check_penalty("lam", lam) != 0:
        raise AssumptionError(
            f"Theorem 6.2 needs lam = 0, and the model has lam = {lam:g}; fit it with lam=0"
        )
    if len(rows) <= k:
        raise AssumptionError(
            f"Theorem 6.2 needs m > k, and m = {len(rows)}, k = {k}: there is no room for noise; ask for more"
        )
    inputs = np.asarray(source.x, np.float64)
    norm = float(np.max(np.linalg.norm(inputs, axis=1)))
    if not (math.isfinite(radius) and norm <= radius):
        raise AssumptionError(
            f"Theorem 6.2 needs |x| <= R, and an input has norm {norm:.4g}, R = {radius:g}; clip the inputs"
        )
    values = np.linalg.svd(inputs, compute_uv=False)
    least = float(values[-1]) if len(inputs) >= inputs.shape[1] else 0.0
    if not (smallest > 0 and least > smallest):
        raise AssumptionError(
            f"Theorem 6.2 needs the smallest singular value of the inputs above s0 = {smallest:g}, and it is "
            f"{least:.4g}; constant pixels make it 0: leave them out"
        )
    pseudo = np.linalg.pinv(rows)
    free = np.linalg.norm(np.eye(len(rows)) - rows @ pseudo, axis=1)
    none = np.flatnonzero(free < 1e-12)
    if none.size:
        raise AssumptionError(
            f"Theorem 6.2 needs noise on every row: P_i = 0 for row {none[0]} of labels; draw them at random"
        )
    fixed = np.linalg.norm(pseudo.T @ np.asarray(source.y, np.float64).T, axis=1)
    ratio = float(np.max(fixed / free))
    sigma = 2 * math.sqrt(math.log(1.25 / delta)) * radius * ratio / (smallest**2 * epsilon)
    return PublishedNoise(sigma, float(radius), float(smallest), len(rows), float(epsilon), float(delta))


def distill_published(
    model: RidgeModel,
    x: Any,
    y: Any,
    *,
    size: int,
    epsilon: float,
    delta: float,
    radius: float,
    smallest: float,
) -> DistilledSet:
    """A set with the noise of :func:`published_noise`: its recipe says that the pair is not covered.

    Args:
        model: A linear model of (x, y) at lam = 0.
        x: Inputs, shape (n, d).
        y: Targets, shape (n, k).
        size: m, more than k.
        epsilon: In (0, 1).
        delta: In (0, 1).
        radius: R, fixed without the data.
        smallest: s0, fixed without the data.

    Returns:
        The set. Its labels are in it, so no privacy is promised of the file.

    Raises:
        AssumptionError: an assumption of the theorem fails; the message names it.
        InputError: a size that makes no sense, or examples that do not fit the model.

    Example:
        >>> import numpy as np
        >>> import jaxdistill as jd
        >>> x = np.random.default_rng(0).uniform(-0.5, 0.5, (90, 4))
        >>> model = jd.fit_ridge(jd.features.Linear(4), x, x[:, :1], lam=0.0)
        >>> small = distill_published(
        ...     model, x, x[:, :1], size=3, epsilon=0.9, delta=1e-5, radius=1.0, smallest=1.0
        ... )
        >>> small.recipe["privacy"]["not_covered"].split(":")[0]
        'the released pair of inputs and labels'

    Source: CHW, Theorem 6.2.
    """
    source = ArraySource.of(x, y, breadth=1, num_inputs=model.features.num_inputs)
    if not (isinstance(size, int) and size > 0):
        raise InputError(f"size is {size!r}; ask for a number of examples, more than k")
    if not isinstance(model.features, Linear):
        raise AssumptionError(
            f"Theorem 6.2 is for linear models, and the features are {model.features.kind}; use Linear"
        )
    if model.has_intercept:
        raise AssumptionError(
            "Theorem 6.2 is for models without an intercept; fit the model with intercept=False"
        )
    moments, lam = model.moments_for("Theorem 6.2"), model.lam
    assert lam is not None  # a model of data has a penalty
    labels = secure_normal(size, model.weights.shape[1])
    noise = published_noise(
        source.x,
        source.y,
        labels,
        lam=lam,
        epsilon=epsilon,
        delta=delta,
        radius=radius,
        smallest=smallest,
    )
    free = noise.sigma * secure_normal(size, model.features.num_features)
    inputs = in_float64(exact_features, model.weights, labels, free)
    told = {"covers": COVERS, "not_covered": NOT_COVERED, "mechanism": "CHW Theorem 6.2"} | asdict(noise)
    return DistilledSet(
        x=inputs,
        y=labels,
        lam=0.0,
        features=model.features,
        weights=np.asarray(model.weights, np.float64),
        recipe={
            "construction": "exact",
            "labels": "given",
            "targets": model.target_kind.value,
            "rank": int(np.linalg.matrix_rank(model.weights)),
            "lam": 0.0,
            "lam_s": 0.0,
            "num_train": int(moments.count),
            "privacy": told,
        },
    )
