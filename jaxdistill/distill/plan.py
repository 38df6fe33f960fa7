"""Which construction a request gets: decided in one place, before any work, and open to inspection."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float

from jaxdistill.distill.intercept import check_label_mean
from jaxdistill.errors import InputError, InverseError, PenaltyError, RankError
from jaxdistill.features import DeepLinear, Linear
from jaxdistill.numerics.keys import host_generator
from jaxdistill.numerics.linalg import check_finite, check_squares
from jaxdistill.ridge.fit import check_penalty
from jaxdistill.ridge.model import RidgeModel
from jaxdistill.ridge.targets import TargetKind
from jaxdistill.solve.spanning import spanning_count
from jaxdistill.solve.spanning_solver import choose_method
from jaxdistill.solve.spanning_step import SpanningMethod

REALISTIC = ("closest", "copies", "features", "inverse", "fixed")
Realistic = Literal["closest", "copies", "features", "inverse", "fixed"]
PenaltyRequest = float | Literal["max", "auto"] | None


class Construction(enum.Enum):
    """How the features of the set come about; the value is how it is said to a person."""

    EXACT = "exact, in closed form (CHW Theorems 4.1 and 5.1)"
    REDUCED = "best set below the rank of the weights (reduced-rank regression)"
    SPANNING = "nearest spanning set of real examples"
    INVERSE = "nearest inverse of real examples (CHW Corollary 4.1.1)"
    FIXED = "real examples, new labels (CHW Theorem 4.2)"
    COPIES = "real examples and near copies of them, whose differences span the weights"
    EQUATIONS = "spanning equations, solved from a start by Levenberg-Marquardt"
    PROJECTION = "best set in prediction below the count of the spanning equations"


class LabelKind(enum.Enum):
    """What the labels of the set are; the value is how it is said to a person."""

    HARD = "hard"
    ROWS = "rows"  # real rows that span the outputs, where classes cannot
    GIVEN = "given"
    SOFT = "soft"
    WEIGHTED = "weighted"


@dataclass(frozen=True)
class Plan:
    """What :func:`jaxdistill.distill` will do.

    Args:
        construction: How the features come about.
        labels: What the labels are.
        size: m.
        rank: Numerical rank of the weights.
        count: m*, the number of examples that the construction needs for exactness: the rank in closed form,
            what counting gives for the spanning equations; with an intercept one more than the rank at least;
            for near copies one more than the rank for each of ceil(p / d) images.
        lam_s: The penalty asked for: a number, "max" or "auto".
        method: How the spanning equations will be solved; None for other constructions.
    """

    construction: Construction
    labels: LabelKind
    size: int
    rank: int
    count: int
    lam_s: float | Literal["max", "auto"]
    method: SpanningMethod | None = None

    @property
    def soft(self) -> bool:
        """Whether labels are computed from the inputs as stored."""
        return self.labels in (LabelKind.SOFT, LabelKind.WEIGHTED)

    @property
    def iterative(self) -> bool:
        """Whether inputs are found step by step, and not in closed form."""
        return self.construction in (Construction.COPIES, Construction.EQUATIONS, Construction.PROJECTION)


def plan_distillation(
    model: RidgeModel,
    *,
    ipc: int | None = None,
    size: int | None = None,
    labels: Any = None,
    lam_s: PenaltyRequest = None,
    realistic: Realistic | None = None,
    exact: bool = False,
    starts: int = 1,
    boxed: bool = False,
    dtype: Any = np.float64,
) -> Plan:
    """Decide on the construction for a request; arguments as for :func:`jaxdistill.distill`.

    Every map without a closed-form inverse gets the spanning equations, and every map that is not linear
    where pixels are to stay closest to real ones, a linear one where they are to stay in a box besides;
    below their count, the projection.

    Returns:
        The plan; nothing has been computed but the rank of the weights.

    Raises:
        InputError: the request is malformed or contradicts itself.
        RankError: the labels asked for cannot span the outputs, or exactness is demanded of too few examples.
        InverseError: the construction needs an inverse that the map does not have.
        PenaltyError: the penalty makes no sense for these labels.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.asarray(jax.random.normal(jax.random.key(0), (40, 5)))
        >>> y = jd.one_hot(np.arange(40) % 3, 3)
        >>> model = jd.fit_ridge(jd.features.Linear(5), x, y, lam=1.0)
        >>> plan = plan_distillation(model, ipc=2)
        >>> plan.construction.name, plan.labels.value, plan.size, plan.rank
        ('EXACT', 'hard', 6, 3)
    """
    num_targets = model.weights.shape[1]
    rank = int(np.linalg.matrix_rank(model.weights))
    if rank == 0:
        raise RankError("the model's weights are zero: there is nothing to distil; check the targets")
    check_squares("the model's weights", model.weights)
    m = _size(model, ipc, size)
    if realistic not in (None, *REALISTIC):
        *others, last = map(repr, REALISTIC)
        raise InputError(f"unknown realistic {realistic!r}; choose {', '.join(others)} or {last}")
    if model.has_intercept and m < 2:
        raise RankError("one example fixes an intercept and no weights; use size >= 2")
    construction, count = _construction(model, m, rank, realistic, boxed)
    if exact and m < count:
        raise RankError(
            f"{m} examples are too few for exactness: m* = {count} are needed for weights of rank {rank} and "
            f"{model.features.num_features} features of {model.features.num_inputs} inputs; use "
            f"size >= {count}, or do not demand exactness for the best set of this size"
        )
    # Inputs are no better known than the data they stand for: rounding of either hides the sum of the
    # weights.
    coarser = max(np.dtype(dtype), np.dtype(model.data_dtype), key=lambda kind: np.finfo(kind).eps)
    kind = _label_kind(model, m, rank, num_targets, labels, realistic, construction, coarser)
    soft = kind in (LabelKind.SOFT, LabelKind.WEIGHTED)
    if lam_s is None:
        lam_s = "auto" if soft else 0.0
    if lam_s == "auto" and not soft:
        raise PenaltyError(
            "lam_s='auto' (self-conditioning) needs labels that follow the penalty; pass "
            "labels='soft', or lam_s='max' for the largest that hard labels admit"
        )
    if lam_s == "max" and soft:
        raise PenaltyError(
            "soft labels are exact for every lam_s >= 0, so there is no largest; pass a number or "
            "lam_s='auto'"
        )
    if not isinstance(lam_s, str):
        lam_s = check_penalty("lam_s", lam_s)
    elif lam_s not in ("auto", "max"):
        raise PenaltyError(f"lam_s is {lam_s!r}; it must be a number >= 0, 'max' or 'auto'")
    method = None
    if construction is Construction.EQUATIONS:
        phi = model.features
        method = choose_method(phi.num_features, phi.num_inputs, m, rank, starts)
    return Plan(construction, kind, m, rank, count, lam_s, method)


def class_rows(model: RidgeModel, size: int) -> np.ndarray:
    """Balanced class rows, centred like the targets: class 0, 1, ..., and again from 0."""
    k = model.weights.shape[1]
    rows = np.eye(k)[np.arange(size) % k]
    return rows - 1 / k if model.target_kind is TargetKind.CENTRED else rows


def sums_to_zero(weights: np.ndarray, dtype: Any) -> bool:
    """Whether the weights sum to zero over classes, as far as inputs of this type can tell.

    They do, up to rounding, wherever every input has mean zero over the data: one-hot targets then
    leave a direction of size r = ``|B 1| / (sqrt(k) |B|)``, and hard labels a set of condition number 1/r.
    Rounding the inputs then costs eps / r. Below r = sqrt(eps) soft labels are chosen, on features that span
    the weights without leaning on that direction (:func:`evened`).
    """
    ratio = np.linalg.norm(weights.sum(axis=1)) / (np.sqrt(weights.shape[1]) * np.linalg.norm(weights))
    return bool(ratio < np.sqrt(np.finfo(dtype).eps))


def given_rows(model: RidgeModel, labels: Any, size: int, rank: int) -> np.ndarray:
    """Check labels that the caller gives: shape, values, and that they span the outputs.

    Raises:
        InputError: the shape or a value is wrong.
        RankError: the row space, of rows minus their mean where the model has an intercept, does not cover
            that of the weights; or no features give their mean.
    """
    rows = np.asarray(labels, np.float64)
    k = model.weights.shape[1]
    if rows.shape != (size, k):
        raise InputError(f"labels have shape {rows.shape}, expected ({size}, {k})")
    check_finite("labels", rows)
    seen = rows - rows.mean(axis=0) if model.has_intercept else rows
    projector = np.linalg.pinv(seen) @ seen
    outside = np.linalg.norm(model.weights - model.weights @ projector)
    if outside > 1e-8 * np.linalg.norm(model.weights):
        raise RankError(
            f"the labels have rank {np.linalg.matrix_rank(seen)} and do not span the {rank} "
            "directions of the weights; give rows whose span holds those of the weights"
        )
    if model.has_intercept:
        check_label_mean(model.weights, model.intercept, rows)
    return rows


def _class_rows_serve(model: RidgeModel, size: int, rank: int) -> bool:
    """Whether class rows train to the model: not where outputs have another sum, or too low a rank."""
    try:
        given_rows(model, class_rows(model, size), size, rank)
    except RankError:
        return False
    return True


def spanning_rows(model: RidgeModel, size: int, rank: int, key: Array) -> np.ndarray:
    """Random rows that span the outputs of the model evenly, as large as training targets (one-hot rows) are.

    ``L = O V^T`` with V the right singular vectors of B and O random with orthonormal columns; with an
    intercept the columns of O sum to zero, and the rows are about the mean of the targets.
    """
    right = np.linalg.svd(model.weights, full_matrices=False)[2][:rank]
    columns = host_generator(key).standard_normal((size, rank))
    if model.has_intercept:
        columns -= columns.mean(axis=0)
    columns = np.linalg.qr(columns)[0]
    moments = model.moments
    rms = 1.0 if moments is None else np.sqrt(np.trace(moments.target_gram) / moments.count)
    rows = columns @ right * (rms * np.sqrt(size / rank))
    return rows + label_level(model) if model.has_intercept else rows


def label_level(model: RidgeModel) -> Float[np.ndarray, " k"]:
    """The mean that labels of a model with an intercept best have: that of the targets.

    Of a head without data b itself, which features of mean zero have.
    """
    return np.asarray(model.intercept if model.moments is None else model.moments.target_shift)


def evened(weights: np.ndarray, rank: int) -> np.ndarray:
    """Weights with the same columns' span and equal singular values, of the same size: their polar factor.

    A set for these has features that span B as they do, with the condition number of its labels, however
    small some direction of B is: 1 / s of the smallest it would be for B itself. Soft labels computed from
    such features then return B.

    Args:
        weights: B, shape (p, k).
        rank: Numerical rank of B.

    Example:
        >>> evened(np.diag([2.0, 1e-9]), 2).round(2).tolist()
        [[1.41, 0.0], [0.0, 1.41]]
    """
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    return left[:, :rank] @ right[:rank] * (np.linalg.norm(values) / np.sqrt(rank))


def _size(model: RidgeModel, ipc: int | None, size: int | None) -> int:
    if (ipc is None) == (size is None):
        raise InputError("give either ipc (images per class) or size (examples in all)")
    value, name = (ipc, "ipc") if size is None else (size, "size")
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number >= 1")
    if size is not None:
        return int(size)
    if model.target_kind is TargetKind.REAL:
        raise InputError("real-valued targets have no classes; give size in place of ipc")
    return int(value) * model.weights.shape[1]


def _construction(
    model: RidgeModel, size: int, rank: int, realistic: Realistic | None, boxed: bool
) -> tuple[Construction, int]:
    """Construction, and the number of examples that it needs to be exact."""
    phi = model.features
    closed = phi.construction_obstacle is None
    level = int(model.has_intercept)
    if realistic == "fixed":
        return Construction.FIXED, phi.num_features + level
    if realistic == "copies":
        if size <= rank:
            raise RankError(
                f"{size} examples are too few for near copies: an image and a copy for each of the {rank} "
                f"directions of the weights are {rank + 1}; use size >= {rank + 1}"
            )
        images = -(-phi.num_features // phi.num_inputs)  # whose changes together reach every feature
        return Construction.COPIES, (rank + 1) * images
    fewest = rank + level
    if realistic in ("inverse", "features"):
        if phi.construction_obstacle is not None:
            raise InverseError(phi.construction_obstacle)
        return (Construction.INVERSE if realistic == "inverse" else Construction.SPANNING), fewest
    if closed and realistic is None:
        return (Construction.EXACT if size >= fewest else Construction.REDUCED), fewest
    if closed and isinstance(phi, (Linear, DeepLinear)) and not boxed:  # nearest features are nearest pixels
        return Construction.SPANNING, fewest
    k = model.weights.shape[1]
    count = spanning_count(phi.num_features, phi.num_inputs, k, rank, intercept=model.has_intercept)
    return (Construction.EQUATIONS if size >= count else Construction.PROJECTION), count


def _label_kind(
    model: RidgeModel,
    size: int,
    rank: int,
    num_targets: int,
    labels: Any,
    realistic: Realistic | None,
    construction: Construction,
    dtype: np.dtype,
) -> LabelKind:
    """Labels asked for, or the natural ones: classes where they suffice, soft for real examples."""
    classes = model.target_kind is not TargetKind.REAL
    # Centred rows sum to zero: all but one of them span what they all span, but for an intercept.
    fewest = num_targets - (model.target_kind is TargetKind.CENTRED and not model.has_intercept)
    level = int(model.has_intercept)
    if labels is None:
        if construction is Construction.PROJECTION:
            return LabelKind.WEIGHTED
        if realistic is not None or construction is Construction.EQUATIONS:
            return LabelKind.SOFT
        if not classes or size < fewest or (level and not _class_rows_serve(model, size, rank)):
            return LabelKind.ROWS
        one_hot = model.target_kind is TargetKind.ONE_HOT and not level
        return LabelKind.SOFT if one_hot and sums_to_zero(model.weights, dtype) else LabelKind.HARD
    if not isinstance(labels, str):
        if size < rank + level:
            what = " and an intercept" if level else ""
            raise RankError(
                f"{size} examples cannot hold weights of rank {rank}{what}, so their labels cannot be "
                f"given; use size >= {rank + level}, or leave labels out for the best set of this size"
            )
        kind = LabelKind.GIVEN
    elif labels not in ("hard", "soft", "weighted"):
        raise InputError(f"unknown labels {labels!r}; choose 'hard', 'soft', 'weighted' or rows")
    else:
        kind = LabelKind(labels)
    if kind is LabelKind.HARD and not classes:
        raise InputError("real-valued targets have no hard labels; leave labels out or pass 'soft'")
    if kind is LabelKind.HARD and size < fewest:
        raise RankError(
            f"hard labels need every class to appear, so at least {fewest} examples, not {size}; "
            "leave labels out for the best set of this size"
            + ("" if level else f", or train on centred targets (rank {num_targets - 1})")
        )
    if kind is LabelKind.WEIGHTED and construction not in (Construction.FIXED, Construction.PROJECTION):
        raise InputError("weighted labels are for fixed examples; pass realistic='fixed'")
    theirs = (Construction.EXACT, Construction.REDUCED, Construction.INVERSE)
    if kind in (LabelKind.HARD, LabelKind.GIVEN) and construction not in theirs:
        cure = (
            "leave labels out, or use realistic='inverse' for labels of your own"
            if model.features.construction_obstacle is None
            else "leave labels out"
        )
        asked = "a map without inverse" if realistic is None else f"realistic={realistic!r}"
        raise InputError(f"{asked} computes its own labels; {cure}")
    return kind
