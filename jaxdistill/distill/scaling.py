"""Scale features, labels and penalty together, into the range of a bounded feature map.

``(c Phis, c Ys, c^2 lam_s)`` trains to the same weights for every c > 0. So a map with a bounded range,
such as cosines, recovers the weights themselves, not only their direction. With an intercept this holds for
the centred parts; the means stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from jaxdistill.errors import InputError, InverseError, PenaltyError
from jaxdistill.features.base import AbstractFeatureMap

# Share of the range that is used: arccos is ill conditioned at its ends.
MARGIN = 0.9


class Scaled(NamedTuple):
    """Features and labels after scaling, and the penalty that belongs to them.

    Args:
        features: Phis, shape (m, p).
        labels: Ys, shape (m, k).
        lam_s: Penalty to train with.
        scale: The factor c.
        largest_lam_s: Largest penalty that the labels admit.
    """

    features: np.ndarray
    labels: np.ndarray
    lam_s: float
    scale: float
    largest_lam_s: float


def choose_scale(
    phi: AbstractFeatureMap,
    features_at: Callable[[float], np.ndarray],
    labels: np.ndarray,
    lam_s: float | Literal["max", "auto"],
    largest: float,
    scale: float | None,
    means: tuple[np.ndarray, np.ndarray] | None = None,
) -> Scaled:
    """Choose c so that the features fit the map and the penalty is the one asked for.

    Args:
        phi: The feature map, with its bound.
        features_at: Unscaled features for an unscaled penalty.
        labels: Unscaled labels, shape (m, k).
        lam_s: Penalty asked for, after scaling; or "max".
        largest: Largest unscaled penalty.
        scale: c, or None to choose it: 1 for an unbounded map.
        means: Mean feature vector (p,) and mean label (k,) of a model with an intercept, which are added
            after scaling; features and labels are then centred ones.

    Returns:
        Features and labels times c, with the penalty.

    Raises:
        PenaltyError: lam_s is above the largest admissible.
        InverseError: the scale given, or the mean feature vector, leads outside the range of the map.
    """
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale is {scale!r}; it must be positive and finite")
    bound = phi.feature_bound
    limit = math.inf if bound is None else MARGIN * bound
    middle, level = (0.0, 0.0) if means is None else means
    if bound is not None and np.max(np.abs(middle)) >= bound:
        raise InverseError(
            f"the mean feature vector has an entry of size {np.max(np.abs(middle)):.4g}, outside the range "
            f"[-{bound:.4g}, {bound:.4g}] of the map; use labels='soft', whose mean is that of the targets"
        )
    if scale is None and bound is None:
        scale = 1.0

    def extent(features: np.ndarray) -> float:
        """Size of the features, relative to the room between their mean and the ends of the range."""
        room = 1.0 if bound is None else bound / (bound - np.sign(features) * middle)
        return float(np.max(np.abs(features) * room))

    def scaled(features: np.ndarray, c: float, penalty: float, most: float) -> Scaled:
        return Scaled(middle + c * features, level + c * labels, penalty, c, most)

    if scale is not None:
        most = largest * scale**2
        inner = largest if lam_s == "max" else _admissible(lam_s, most) / scale**2
        features = features_at(min(inner, largest))
        size = scale * extent(features)
        if bound is not None and size > bound:
            raise InverseError(
                f"scale={scale:g} leads to features of size {size:.4g}, outside the range "
                f"[-{bound:.4g}, {bound:.4g}] of the map; use a scale of at most "
                f"{scale * bound / size:.4g}, or leave it out"
            )
        return scaled(features, scale, most if lam_s == "max" else float(lam_s), most)

    def reach(inner: float) -> tuple[np.ndarray, float]:
        features = features_at(inner)
        return features, limit / extent(features)

    if lam_s == 0:
        features, c = reach(0.0)
        return scaled(features, c, 0.0, c * c * largest)
    features, c = reach(largest)
    most = c * c * largest
    if lam_s == "max":
        return scaled(features, c, most, most)
    asked = _admissible(lam_s, most)
    features, c, inner = _match(reach, asked, largest, limit)
    # c^2 inner equals the penalty asked for, to the last bit that matters: it defines c.
    c = math.sqrt(asked / inner)
    return scaled(features, c, asked, most)


def _admissible(lam_s: float | str, most: float) -> float:
    value = float(lam_s)
    if value > most:
        named = float(f"{most:.6g}")
        named = named if named <= most else float(f"{most * (1 - 1e-6):.6g}")  # must itself be admissible
        raise PenaltyError(
            f"lam_s={value:g} is above the largest that these labels admit, {named:.6g}; use at most "
            "that, lam_s='max', or labels='soft', which admit every penalty"
        )
    return value


def _match(
    reach: Callable[[float], tuple[np.ndarray, float]], asked: float, largest: float, limit: float
) -> tuple[np.ndarray, float, float]:
    """Unscaled penalty whose scaled value is near the one asked for, within the range.

    The range is used to MARGIN, so a factor of a few per cent is free: bisection in log space ends as
    soon as ``c = sqrt(asked / inner)`` lies between 0.97 and 1 of what the range allows.
    """
    low, high = 0.0, largest
    inner = largest
    while True:
        features, c = reach(inner)
        ratio = math.sqrt(asked / inner) / c
        if 0.97 <= ratio <= 1.0:
            return features, c, inner
        if ratio < 1.0:
            high = inner  # room to spare: a smaller unscaled penalty, a larger c
        else:
            low = inner
        inner = min(asked / (c * c), (low + high) / 2) if low == 0.0 else math.sqrt(low * high)
