"""Bounds on what one example can add to the moments, and the sensitivity that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Self, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.features import KINDS
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.pytrees import register_pytree
from jaxdistill.privacy.budget import Neighbours
from jaxdistill.ridge.targets import TargetKind

# Squares of the largest Frobenius distance of (phi phi^T, phi y^T) for |phi|, |y| <= 1, with and without an
# example, and for two examples a, b: with t = a.b and s = y_a.y_b it is 2 - 2 t^2 + 2 - 2 t s, largest at
# s = -1, t = 1/2. It grows with the norms, so shorter rows are no worse.
_SQUARED = {Neighbours.ADD_OR_REMOVE: 2.0, Neighbours.REPLACE_ONE: 4.5}


def joint_sensitivity(neighbours: Neighbours) -> float:
    """The most that one example moves (G, C), in Frobenius norm, for rows of norm at most one.

    ``sqrt(|phi|^4 + |phi|^2 |y|^2) <= sqrt(2)`` where it is added or removed, and ``3 / sqrt(2)`` where it is
    replaced: less than the ``2 sqrt(2)`` of removing one and adding another.

    Args:
        neighbours: Which data sets must look alike.

    Example:
        >>> round(joint_sensitivity(Neighbours.REPLACE_ONE), 4)
        2.1213
    """
    return math.sqrt(_SQUARED[neighbours])


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class ClippedFeatures(AbstractFeatureMap):
    """Features in the unit ball, ``phi(x) min(1 / c, 1 / |phi(x)|)``: what private moments are made of.

    A little inside, by p eps, so that rounding of the norm never leads out.

    Args:
        base: The feature map phi.
        clip: c, the largest norm that is kept.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdistill.features import Linear
        >>> phi = ClippedFeatures(Linear(2), 10.0)
        >>> [round(float(jnp.linalg.norm(phi(jnp.array(x)))), 3) for x in ([3.0, 4.0], [30.0, 40.0])]
        [0.5, 1.0]
    """

    base: AbstractFeatureMap
    clip: float = field(metadata={"static": True})
    kind = "clipped"

    @property
    def num_inputs(self) -> int:
        """Length d of an input."""
        return self.base.num_inputs

    @property
    def num_features(self) -> int:
        """Length p of a feature vector."""
        return self.base.num_features

    @property
    def breadth(self) -> int:
        """That of the map itself."""
        return self.base.breadth

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Features of norm at most one."""
        phi = self.base(x)
        norm = jnp.linalg.norm(phi, axis=-1, keepdims=True)
        inside = 1 - self.num_features * jnp.finfo(phi.dtype).eps
        return phi * (inside / jnp.maximum(norm, jnp.asarray(self.clip, phi.dtype)))

    @property
    def inverse_obstacle(self) -> str | None:
        """That of the map itself."""
        return self.base.inverse_obstacle

    def domain_violation(self, features: np.ndarray) -> str | None:
        """Named where a row lies outside the unit ball, or c times it outside the range of the map."""
        largest = float(np.max(np.linalg.norm(features, axis=-1), initial=0.0))
        if largest > 1:
            return f"features have norm {largest:.4g}, and clipped ones at most 1; scale them down"
        return self.base.domain_violation(self.clip * features)

    def pull_back(
        self, features: Float[Array, "*batch p"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """Pre-image of features inside the ball."""
        inside = 1 - self.num_features * jnp.finfo(features.dtype).eps
        return self.base.pull_back(features * (self.clip / inside), reference)

    def settings(self) -> dict[str, Any]:
        """The norm that is kept, and the settings of the map."""
        return {"clip": self.clip, "kind": self.base.kind, "base": self.base.settings()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Those of the map."""
        return self.base.arrays()

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""
        return cls(KINDS[settings["kind"]].from_parts(settings["base"], arrays), float(settings["clip"]))


def feature_clip(features: AbstractFeatureMap, clip: float | None) -> float:
    """The norm that features are clipped to: as given, or the largest that they can have.

    Raises:
        InputError: no norm is given and the features have no bound, or the norm makes no sense.
    """
    if clip is None:
        bound = features.feature_bound
        if bound is None:
            raise InputError(
                f"{features.kind} features have no bound, so one example could add anything; give clip=..., "
                "the largest norm that is kept, chosen without the data"
            )
        return bound * math.sqrt(features.num_features)
    return _positive("clip", clip)


def clipped_targets(
    y: np.ndarray, kind: TargetKind, target_clip: float | None
) -> tuple[Float[np.ndarray, "n k"], float]:
    """Targets in the unit ball, and the norm that was made one: 1 for classes, as given for real values.

    Raises:
        InputError: real-valued targets without a norm, or one that makes no sense.
    """
    if kind is not TargetKind.REAL:
        if target_clip is not None:
            raise InputError(f"{kind.value} targets have norm at most 1; leave target_clip out")
        return np.asarray(y, np.float64), 1.0
    if target_clip is None:
        raise InputError(
            "real-valued targets have no bound; give target_clip=..., the largest norm that is kept, chosen "
            "without the data"
        )
    most = _positive("target_clip", target_clip)
    norm = np.linalg.norm(y, axis=1, keepdims=True)
    return y / np.maximum(norm, most), most


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{name} is {value!r}; give a positive, finite number")
    return number
