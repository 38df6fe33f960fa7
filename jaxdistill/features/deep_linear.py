"""Deep linear networks: a product of matrices, of any widths, and what it can reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, Self, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap, check_inputs
from jaxdistill.features.random_matrix import orthogonal_rows
from jaxdistill.numerics.keys import checked_key
from jaxdistill.numerics.linalg import matmul, pinv
from jaxdistill.numerics.names import check_choice
from jaxdistill.numerics.placement import moving_arrays
from jaxdistill.numerics.pytrees import register_pytree


@final
@register_pytree
@dataclass(frozen=True, eq=False)
class DeepLinear(AbstractFeatureMap):
    """A linear network of several layers, ``phi(x) = A x`` with ``A = W_L ... W_1`` (p, d).

    The pre-image nearest to a reference is ``x0 + A^+ (phi - A x0)``. It is exact for features in the range
    of A: all of them where A has rank p, and a subspace of dimension rank(A) where p > d or a layer is
    narrow. Exact sets stay inside it; see :mod:`jaxdistill.distill.deep_linear`.

    Args:
        weights: One (d_l, d_{l-1}) matrix a layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> phi = DeepLinear.create(3, widths=(8, 5), key=jax.random.key(0))
        >>> x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
        >>> bool(jnp.allclose(phi.inverse(phi(x)), x, atol=1e-5))
        True

    Source: CHW section 5.2.
    """

    weights: tuple[Float[Array, "_ _"] | Float[np.ndarray, "_ _"], ...]
    kind = "deep-linear"

    @classmethod
    @moving_arrays()
    def create(
        cls,
        dim: int,
        *,
        widths: Sequence[int],
        weights: Literal["gaussian", "orthogonal"] = "gaussian",
        key: Array,
    ) -> Self:
        """Draw a network.

        Args:
            dim: Length d of an input.
            widths: Width of each layer; the last is the number p of features.
            weights: "gaussian", entries N(0, 1/fan_in); or "orthogonal", unit rows, orthogonal in blocks.
            key: Random key.

        Returns:
            The network, parameters in float32.

        Raises:
            InputError: a size is not positive, or the kind is unknown.
        """
        sizes = (dim, *widths)
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(
                f"sizes must be positive with at least one layer, got dim={dim}, widths={tuple(widths)}"
            )
        check_choice("weights", weights, ("gaussian", "orthogonal"))
        layers = []
        for layer_key, fan_in, fan_out in zip(
            jax.random.split(checked_key(key), len(widths)), sizes[:-1], sizes[1:], strict=True
        ):
            if weights == "gaussian":
                draw = jax.random.normal(layer_key, (fan_out, fan_in), jnp.float32)
                layers.append(draw / np.float32(math.sqrt(fan_in)))
            else:
                layers.append(orthogonal_rows(layer_key, fan_out, fan_in))
        return cls(tuple(layers))

    @property
    def num_inputs(self) -> int:
        """Length d of an input."""
        return self.weights[0].shape[1]

    @property
    def num_features(self) -> int:
        """Number p of features."""
        return self.weights[-1].shape[0]

    def product(self, dtype: Any) -> Float[Array, "p d"]:
        """A, multiplied in a precision."""
        return reduce(lambda below, w: matmul(w, below), (jnp.asarray(w, dtype) for w in self.weights))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Features ``A x``, layer by layer."""
        check_inputs(x, self.num_inputs)
        return reduce(lambda h, w: matmul(h, jnp.asarray(w, x.dtype).T), self.weights, x)

    @property
    def inverse_obstacle(self) -> str | None:
        """None; features outside the range of A are named by :meth:`domain_violation`."""
        return None

    def domain_violation(self, features: np.ndarray) -> str | None:
        """Named where features lie outside the range of A by more than rounding."""
        left = self.range_factors()[0]
        outside = np.linalg.norm(features - features @ left @ left.T)
        share = float(outside / max(np.linalg.norm(features), np.finfo(np.float64).tiny))
        # Features may come from a float32 forward pass; more than its rounding is another matter.
        if share <= np.finfo(np.float32).eps * max(left.shape[0], self.num_inputs):
            return None
        return (
            f"{100 * share:.2g} % of the features lie outside the range of the deep linear map (rank "
            f"{left.shape[1]} of {self.num_features}) and have no pre-image; give features of inputs"
        )

    def within_span(self, weights: Float[np.ndarray, "p k"]) -> Float[np.ndarray, "p k"]:
        """The weights within the range of A."""
        left = self.range_factors()[0]
        return left @ (left.T @ weights)

    def range_factors(self) -> tuple[np.ndarray, np.ndarray]:
        """``A = U R`` in float64 on the host: U (p, r) an orthonormal basis of the range, R (r, d)."""
        matrix = reduce(lambda below, w: np.float64(w) @ below, self.weights, np.eye(self.num_inputs))
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        kept = values > np.finfo(np.float64).eps * max(matrix.shape) * values[0]
        return left[:, kept], values[kept, None] * right[kept]

    def pull_back(
        self, features: Float[Array, "*batch p"], reference: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch d"]:
        """Pre-image nearest to the reference, ``x0 + A^+ (phi - A x0)``; least squares outside the range."""
        matrix = self.product(features.dtype)
        return reference + matmul(features - matmul(reference, matrix.T), pinv(matrix).T)

    def settings(self) -> dict[str, Any]:
        """Number of layers."""
        return {"layers": len(self.weights)}

    def arrays(self) -> dict[str, np.ndarray]:
        """One matrix a layer."""
        return {f"weights_{i}": np.asarray(w) for i, w in enumerate(self.weights)}

    @classmethod
    def from_parts(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild from :meth:`settings` and :meth:`arrays`."""
        return cls(tuple(jnp.asarray(arrays[f"weights_{i}"]) for i in range(settings["layers"])))
