"""The objective of one run: features or a kernel, moments or targets, and the kind of labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.data.augment import Augmentation
from jaxdistill.data.preprocess import AbstractPreprocess
from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.kip.objective import (
    Quadratic,
    moments_loss,
    ridge_coefficients,
    solved_coefficients,
    solved_from_moments,
    squared_loss,
    trace_penalty,
)
from jaxdistill.kip.targets import TargetRows
from jaxdistill.numerics.linalg import matmul

Kernel = Callable[[Array, Array], Array]
Params = dict[str, Any]

# Where there is no float64: what float32 takes from a kernel matrix whose entries are all alike, in eps of
# its trace. Added to either penalty while descending, and for no labels that are returned.
_STABLE = 4


class Context(NamedTuple):
    """Everything that a step reads and does not change; an argument of the compiled step.

    Args:
        phi: Feature map, or None for a kernel without one.
        source: Moments of the targets, or the targets.
        preprocess: Transform from images to inputs; needed for augmentation only.
    """

    phi: AbstractFeatureMap | None
    source: Quadratic | TargetRows
    preprocess: AbstractPreprocess | None


@dataclass(frozen=True)
class Problem:
    """Loss, coefficients and predictions of a set, as pure functions.

    Factorisations are in float64 inside x64. Outside, on a device that has none, they are in float32, and the
    penalties are larger by 4 m eps: a set of m examples descends to a loss that is a little smoother.

    Args:
        kernel: Kernel matrix ``k(X, X')``, used where the context has no feature map.
        solved: Whether labels are solved; otherwise they are given.
        reg: Penalty of given labels, relative to ``tr(K_ss) / m``.
        ridge: Relative ridge of solved labels.
        embedded: Whether target rows are features already.
        augment: Random changes of the targets, or None.
    """

    kernel: Kernel | None
    solved: bool
    reg: float
    ridge: float
    embedded: bool
    augment: Augmentation | None

    def loss(self, params: Params, labels: Array, context: Context, key: Array) -> Float[Array, ""]:
        """Loss on the targets of one step; labels are those of ``params`` where these hold any."""
        x, labels = params["x"], params.get("y", labels)
        if isinstance(context.source, TargetRows):
            rows, values = self._batch(context, key)
            return self._loss_on_rows(x, labels, context, rows, values)
        assert context.phi is not None
        features = _wide(context.phi(x))
        if self.solved:
            return moments_loss(features, context.source, _stated(self.ridge, x))
        a = ridge_coefficients(matmul(features, features.T), _wide(labels), _stated(self.reg, x))
        return context.source.loss(matmul(features.T, a))

    def coefficients(self, params: Params, labels: Array, context: Context) -> Float[Array, "m k"]:
        """Coefficients a of the predictor, on all targets where labels are solved; float64 inside x64."""
        x, labels = params["x"], params.get("y", labels)
        if not self.solved:
            return ridge_coefficients(self.gram(x, context), _wide(labels), _stated(self.reg, x))
        source = context.source
        if isinstance(source, Quadratic):
            assert context.phi is not None
            return solved_from_moments(_wide(context.phi(x)), source, _stated(self.ridge, x))
        support = x.astype(source.rows.dtype)

        def add(rows: Array, values: Array, weight: Array) -> tuple[Array, Array]:
            k_ts = _wide(self._cross(rows, support, context)) * weight[:, None]
            return matmul(k_ts.T, k_ts), matmul(k_ts.T, _wide(values))

        m, k = x.shape[0], source.values.shape[1]
        system, right = source.fold(add, (jnp.zeros((m, m)), jnp.zeros((m, k))))
        return solved_coefficients(system, right, _stated(self.ridge, x))

    def gram(self, x: Float[Array, "m d"], context: Context) -> Float[Array, "m m"]:
        """K_ss, in float64 inside x64."""
        if context.phi is not None:
            features = _wide(context.phi(x))
            return matmul(features, features.T)
        assert self.kernel is not None
        # In float64 from the start: the penalty is about as small as the rounding of float32.
        wide = _wide(x)
        return self.kernel(wide, wide)

    def predict(self, params: Params, a: Array, context: Context, rows: Array) -> Float[Array, "t k"]:
        """Predictions for rows of the kind that the targets are."""
        k_ts = self._cross(rows, params["x"].astype(rows.dtype), context)
        return matmul(_wide(k_ts), a)

    def finish(self, params: Params, labels: Array, context: Context) -> tuple[Array, Array]:
        """Labels and penalty that train to the predictor, for inputs in float64."""
        k_ss = self.gram(params["x"], context)
        lam = trace_penalty(k_ss, self.reg)
        if not self.solved:
            return _wide(params.get("y", labels)), lam
        a = self.coefficients(params, labels, context)
        return matmul(k_ss, a) + lam * a, lam

    def _loss_on_rows(self, x: Array, labels: Array, context: Context, rows: Array, y: Array) -> Array:
        if context.phi is None:
            k_ts = self._cross(rows, x, context)
            a = self._row_coefficients(k_ts, x, labels, y, context)
            return squared_loss(matmul(k_ts, a.astype(k_ts.dtype)), y)
        # phi(x) (Phis^T a) costs k columns where (phi(x) Phis^T) a costs m, forward and backward.
        features, targets = context.phi(x), self._embed(rows, context)
        if self.solved:
            k_ts = matmul(targets, jax.lax.stop_gradient(features).T)
            a = self._row_coefficients(k_ts, x, labels, y, context)
        else:
            wide = _wide(features)
            a = ridge_coefficients(matmul(wide, wide.T), _wide(labels), _stated(self.reg, x))
        weights = matmul(_wide(features).T, a)
        return squared_loss(matmul(targets, weights.astype(targets.dtype)), y)

    def _row_coefficients(self, k_ts: Array, x: Array, labels: Array, y: Array, context: Context) -> Array:
        if not self.solved:
            return ridge_coefficients(self.gram(x, context), _wide(labels), _stated(self.reg, x))
        # Envelope theorem: the best labels are held fixed, and the gradient is exact.
        wide = _wide(jax.lax.stop_gradient(k_ts))
        return solved_coefficients(matmul(wide.T, wide), matmul(wide.T, _wide(y)), _stated(self.ridge, x))

    def _cross(self, rows: Array, x: Array, context: Context) -> Array:
        if context.phi is not None:
            return matmul(self._embed(rows, context), context.phi(x).T)
        assert self.kernel is not None
        return self.kernel(rows, x)

    def _embed(self, rows: Array, context: Context) -> Array:
        if self.embedded or context.phi is None:
            return rows
        return context.phi(rows)

    def _batch(self, context: Context, key: Array) -> tuple[Array, Array]:
        assert isinstance(context.source, TargetRows)
        key_batch, key_augment = jax.random.split(key)
        rows, values = context.source.batch(key_batch)
        if self.augment is None:
            return rows, values
        assert context.preprocess is not None
        images = context.preprocess.inverse(rows)
        return context.preprocess.forward(self.augment(images, key_augment)), values


def _wide(array: Any) -> Array:
    """In float64, where that is allowed."""
    return array.astype(jnp.result_type(float))


def _stated(penalty: float, x: Array) -> float:
    """A relative penalty as the run states it, and more in float32."""
    limits = jnp.finfo(jnp.result_type(float))
    return penalty if limits.bits == 64 else penalty + _STABLE * len(x) * float(limits.eps)
