"""A trained ridge model, and its predictions in batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.errors import InputError
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.pytrees import register_pytree
from jaxdistill.ridge.moments import Moments
from jaxdistill.ridge.residual import ModelResidual, model_residual
from jaxdistill.ridge.selection import LamSelection
from jaxdistill.ridge.source import chunk_rows, padded, row_chunks
from jaxdistill.ridge.targets import TargetKind


@final
@register_pytree
@dataclass(frozen=True)
class RidgeModel:
    """A trained model ``f(x) = phi(x) B``, with the moments that constructions need.

    Args:
        features: Feature map phi.
        weights: B, shape (p, k), float64 on the host.
        lam: Penalty it was trained with.
        moments: G, C, T and n of the training data, float64 on the host.
        rank: Numerical rank of the features.
        resolution: Size below which an eigenvalue of G is rounding.
        selection: How lam was chosen, or None where it was given.
        target_kind: What the targets were.
        dropped: Largest share of its squared norm that a feature lost to the rank.
        product_dtype: Precision in which the products of the moments were formed.
        data_dtype: The coarsest type that holds the inputs: what rounding they come with.

    Example:
        >>> import jax, numpy as np
        >>> import jaxdistill as jd
        >>> x = np.linspace(-1.0, 1.0, 20).reshape(10, 2)
        >>> model = jd.fit_ridge(jd.features.Linear(2), x, x @ np.ones((2, 1)), lam=0.0)
        >>> model.weights.round(6).ravel().tolist(), model.rank
        ([1.0, 1.0], 2)
        >>> jax.grad(lambda z: model(z).sum())(jax.numpy.ones(2)).shape
        (2,)
    """

    features: AbstractFeatureMap
    weights: Float[np.ndarray, "p k"] | Any
    lam: float
    moments: Moments
    rank: int
    resolution: float
    selection: LamSelection | None
    target_kind: TargetKind = field(metadata={"static": True})
    dropped: float = 0.0
    product_dtype: str = field(default="float64", metadata={"static": True})
    data_dtype: str = field(default="float64", metadata={"static": True})

    @property
    def residual(self) -> float:
        """Residual of the normal equations, relative to features and targets, the worst of all features."""
        return self.solution.value

    @property
    def solution(self) -> ModelResidual:
        """How well the weights solve the normal equations of the model's own moments, measured now."""
        return model_residual(
            self.moments,
            self.weights,
            self.lam,
            product_dtype=self.product_dtype,
            resolution=self.resolution,
            rank=self.rank,
            dropped=self.dropped,
        )

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch k"]:
        """Prediction as a pure function of arrays: use it inside jit, vmap and grad."""
        return matmul(self.features(x), jnp.asarray(self.weights, x.dtype))

    def predict(self, x: Any, *, progress: bool = False) -> np.ndarray:
        """Predictions for any number of inputs, in batches, in the precision of the inputs.

        Args:
            x: Inputs, shape (n, d).
            progress: Whether to show a bar.

        Returns:
            Predictions, shape (n, k).

        Raises:
            InputError: the inputs have another shape, or are not floating point.
        """
        return predict(self.features, self.weights, x, progress=progress)


@jax.jit
def _predict_chunk(features: AbstractFeatureMap, weights: Array, x: Array) -> Array:
    return matmul(features(x), weights.astype(x.dtype))


def predict(features: AbstractFeatureMap, weights: Any, x: Any, *, progress: bool = False) -> np.ndarray:
    """Evaluate ``phi(x) B`` in batches of one shape, in the precision of ``x``."""
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != features.num_inputs or not np.issubdtype(x.dtype, np.floating):
        raise InputError(
            f"inputs have shape {x.shape} and type {x.dtype}, expected (n, {features.num_inputs}) in "
            "float32 or float64"
        )
    size = chunk_rows(features.num_features, max(len(x), 1))
    chunks = padded(row_chunks(x, size), size, total=len(x), progress="predict" if progress else None)
    parts: Iterable[np.ndarray]
    with jax.enable_x64(x.dtype == np.float64):
        weights = np.asarray(weights, x.dtype)
        features = jax.device_put(features)
        parts = [np.asarray(_predict_chunk(features, weights, chunk[0])) for chunk, _ in chunks]
    return np.concatenate([*parts, np.zeros((0, weights.shape[1]), x.dtype)])[: len(x)]
