"""The identity feature map: linear ridge regression."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self, final

import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap, check_inputs
from jaxdistill.numerics.pytrees import register_pytree


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class Linear(AbstractFeatureMap):
    """The map ``phi(x) = x``; its inverse is exact everywhere.

    Args:
        dim: Length d of an input.

    Example:
        >>> import jax.numpy as jnp
        >>> Linear(3)(jnp.ones((2, 3))).shape
        (2, 3)

    Source: CHW, Theorem 4.1 with a linear kernel.
    """

    dim: int = field(metadata={"static": True})
    kind = "linear"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise InputError(f"dim is {self.dim}; an input has at least one coordinate")

    @property
    def num_inputs(self) -> int:
        """Length d of an input."""
        return self.dim

    @property
    def num_features(self) -> int:
        """Length p = d of a feature vector."""
        return self.dim

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Return ``x`` itself."""
        check_inputs(x, self.dim)
        return x

    @property
    def inverse_obstacle(self) -> None:
        """None: the inverse always exists."""
        return

    def pull_back(
        self, features: Float[Array, "*batch d"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """Return the features themselves: there is nothing to choose."""
        del reference
        return features

    def settings(self) -> dict[str, Any]:
        """The dimension."""
        return {"dim": self.dim}

    def arrays(self) -> dict[str, np.ndarray]:
        """No parameters."""
        return {}

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild from :meth:`settings`."""
        del arrays
        return cls(int(settings["dim"]))
