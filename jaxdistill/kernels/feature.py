"""The kernel of a feature map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.features.stored import parts_of, rebuild
from jaxdistill.kernels.base import AbstractKernel
from jaxdistill.kernels.checks import check_rows
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.pytrees import register_pytree


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class FeatureKernel(AbstractKernel):
    """The inner product of features, ``k(x, x') = phi(x) . phi(x')``.

    Args:
        features: Feature map phi.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdistill.features import Linear
        >>> float(FeatureKernel(Linear(2))(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
        11.0
    """

    features: AbstractFeatureMap
    kind = "features"

    def __call__(self, x: Float[Array, " d"], x2: Float[Array, " d"]) -> Float[Array, ""]:
        """The inner product for one pair of inputs."""
        return matmul(self.features(x), self.features(x2))

    def matrix(self, x: Array, z: Array) -> Float[Array, "n m"]:
        """``Phi(x) Phi(z)^T``: features once a row, one product."""
        check_rows(x, z)
        return matmul(self.features(x), self.features(z).T)

    def diagonal(self, x: Array) -> Float[Array, " n"]:
        """Squared norms of the features."""
        return jnp.sum(self.features(x) ** 2, axis=-1)

    def settings(self) -> dict[str, Any]:
        """Kind and settings of the feature map."""
        return parts_of(self.features)

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters of the feature map."""
        return self.features.arrays()

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], **code: Any) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""
        return cls(rebuild(settings, arrays, **code))
