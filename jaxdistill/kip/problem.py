"""The objective of one run: features or a kernel, moments or targets, and the kind of labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
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
from jaxdistill.numerics.contrasts import contrasts, contrasts_of_gram, from_contrasts
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.mesh import COLUMNS, EACH, SAME, on_each

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


class Predictor(NamedTuple):
    """``f(x) = k(x, Xs) a + b``.

    Args:
        coefficients: a, shape (m, k); of sum zero with an intercept.
        intercept: b, shape (k,), or None.
    """

    coefficients: Float[Array, "m k"]
    intercept: Float[Array, " k"] | None


@dataclass(frozen=True)
class Problem:
    """Loss, coefficients and predictions of a set, as pure functions.

    Factorisations are in float64 inside x64. Outside, on a device that has none, they are in float32, and the
    penalties are larger by 4 m eps: a set of m examples descends to a loss that is a little smoother.

    Several devices share the examples while their features are computed; then the columns of features and G
    where the data are moments, and else the rows of the targets. What is m x m is done by all of them. A step
    on moments takes ``2 m p^2 + 4 p^2 k + 2 m^2 p`` operations beside the features' own: columns divide them
    all, and the memory of G. Sharing the examples here too would leave ``4 p^2 k`` to every device, at m = k
    two thirds of the work.

    Args:
        kernel: Kernel matrix ``k(X, X')``, used where the context has no feature map.
        solved: Whether labels are solved; otherwise they are given.
        reg: Penalty of given labels, relative to ``tr(K_ss) / m``.
        ridge: Relative ridge of solved labels.
        embedded: Whether target rows are features already.
        augment: Random changes of the targets, or None.
        intercept: Whether the predictor has an intercept; its coefficients then sum to zero.
        mesh: The devices that share the work where there are several, or None.
    """

    kernel: Kernel | None
    solved: bool
    reg: float
    ridge: float
    embedded: bool
    augment: Augmentation | None
    intercept: bool = False
    mesh: Mesh | None = None

    def loss(self, params: Params, labels: Array, context: Context, key: Array) -> Float[Array, ""]:
        """Loss on the targets of one step; labels are those of ``params`` where these hold any."""
        x, labels = params["x"], params.get("y", labels)
        if isinstance(context.source, TargetRows):
            batch = self._shared(*self._batch(context, key))
            return self._loss_on_rows(x, labels, context, *batch)
        features = self._features(x, context, context.source)
        if self.solved:
            return moments_loss(self._seen(features), context.source, _stated(self.ridge, x))
        a, level = self._given(matmul(features, features.T), labels)
        return context.source.loss(matmul(features.T, a), level)

    def coefficients(self, params: Params, labels: Array, context: Context) -> Predictor:
        """The predictor, on all targets where labels are solved; float64 inside x64."""
        x, labels = params["x"], params.get("y", labels)
        if not self.solved:
            return self._given(self.gram(x, context), labels)
        source = context.source
        if isinstance(source, Quadratic):
            features = self._features(x, context, source)
            a = self._rows_of(solved_from_moments(self._seen(features), source, _stated(self.ridge, x)))
            return Predictor(a, source.best_intercept(matmul(features.T, a)) if self.intercept else None)
        support = x.astype(source.rows.dtype)

        def add(rows: Array, values: Array, weight: Array) -> tuple[Array, ...]:
            rows, values, weights = self._shared(rows, values, weight)
            return self._sums(self._cross(rows, support, context), values, weights)

        m, k = x.shape[0], source.values.shape[1]
        shapes = ((m, m), (m, k), *(((m,), (k,), ()) if self.intercept else ()))
        sums = source.fold(add, tuple(jnp.zeros(shape) for shape in shapes))
        return self._from_sums(*sums)

    def gram(self, x: Float[Array, "m d"], context: Context) -> Float[Array, "m m"]:
        """K_ss, in float64 inside x64."""
        if context.phi is not None:
            features = _wide(context.phi(x))
            return matmul(features, features.T)
        # In float64 from the start: the penalty is about as small as the rounding of float32.
        wide = _wide(x)
        return self._pairs(wide, wide)

    def predict(self, params: Params, found: Predictor, context: Context, rows: Array) -> Float[Array, "t k"]:
        """Predictions for rows of the kind that the targets are."""
        k_ts = self._cross(self._split(rows), params["x"].astype(rows.dtype), context)
        outputs = matmul(_wide(k_ts), found.coefficients)[: len(rows)]
        return outputs if found.intercept is None else outputs + found.intercept

    def finish(self, params: Params, labels: Array, context: Context) -> tuple[Array, Array]:
        """Labels and penalty that train to the predictor, for inputs in float64."""
        k_ss = self.gram(params["x"], context)
        lam = trace_penalty(contrasts_of_gram(k_ss) if self.intercept else k_ss, self.reg)
        if not self.solved:
            return _wide(params.get("y", labels)), lam
        a, level = self.coefficients(params, labels, context)
        y = matmul(k_ss, a) + lam * a
        return y if level is None else y + level, lam

    def _seen(self, rows: Array) -> Array:
        """Features, labels or columns of a kernel as the algebra sees them."""
        return contrasts(rows) if self.intercept else rows

    def _rows_of(self, coefficients: Array) -> Array:
        """A row an example, from what the algebra found."""
        return from_contrasts(coefficients) if self.intercept else coefficients

    def _given(self, k_ss: Array, labels: Array) -> Predictor:
        """The predictor of given labels."""
        labels, reg = _wide(labels), _stated(self.reg, labels)
        if not self.intercept:
            return Predictor(ridge_coefficients(k_ss, labels, reg), None)
        a = from_contrasts(ridge_coefficients(contrasts_of_gram(k_ss), contrasts(labels), reg))
        return Predictor(a, jnp.mean(labels, axis=0) - matmul(jnp.mean(k_ss, axis=0), a))

    def _from_sums(
        self,
        system: Array,
        right: Array,
        columns: Array | None = None,
        targets: Array | None = None,
        count: Array | None = None,
    ) -> Predictor:
        """The predictor of the best labels, from sums over targets, those of means with an intercept."""
        ridge = _stated(self.ridge, right)
        if columns is None or targets is None or count is None:
            return Predictor(solved_coefficients(system, right, ridge), None)
        middle, level = columns / count, targets / count
        system = contrasts_of_gram(system - columns[:, None] * middle)
        right = contrasts(right - columns[:, None] * level)
        a = from_contrasts(solved_coefficients(system, right, ridge))
        return Predictor(a, level - matmul(middle, a))

    def _loss_on_rows(
        self, x: Array, labels: Array, context: Context, rows: Array, y: Array, weight: Array | None
    ) -> Array:
        if context.phi is None:
            k_ts = self._cross(rows, x, context)
            a, level = self._row_coefficients(k_ts, x, labels, y, weight, context)
            return squared_loss(_outputs(k_ts, a, level), y, weight)
        # phi(x) (Phis^T a) costs k columns where (phi(x) Phis^T) a costs m, forward and backward.
        features, targets = self._embed_set(x, context.phi), self._embed(rows, context)
        if self.solved:
            k_ts = matmul(targets, jax.lax.stop_gradient(features).T)
            a, level = self._row_coefficients(k_ts, x, labels, y, weight, context)
        else:
            wide = _wide(features)
            a, level = self._given(matmul(wide, wide.T), labels)
        return squared_loss(_outputs(targets, matmul(_wide(features).T, a), level), y, weight)

    def _row_coefficients(
        self, k_ts: Array, x: Array, labels: Array, y: Array, weight: Array | None, context: Context
    ) -> Predictor:
        if not self.solved:
            return self._given(self.gram(x, context), labels)
        # Envelope theorem: the best labels are held fixed, and the gradient is exact.
        return self._from_sums(*self._sums(jax.lax.stop_gradient(k_ts), y, weight))

    def _sums(self, k_ts: Array, y: Array, weight: Array | None) -> tuple[Array, ...]:
        """What solved labels need to know of targets, each of weight one or zero."""
        k_ts, y = _wide(k_ts), _wide(y)
        count = jnp.asarray(len(y), k_ts.dtype)
        if weight is not None:
            k_ts, y, count = k_ts * _wide(weight)[:, None], y * _wide(weight)[:, None], jnp.sum(_wide(weight))
        sums = matmul(k_ts.T, k_ts), matmul(k_ts.T, y)
        return (*sums, jnp.sum(k_ts, axis=0), jnp.sum(y, axis=0), count) if self.intercept else sums

    def _cross(self, rows: Array, x: Array, context: Context) -> Array:
        if context.phi is not None:
            return matmul(self._embed(rows, context), self._embed_set(x, context.phi).T)
        return self._pairs(rows, x)

    def _pairs(self, rows: Array, x: Array) -> Array:
        """Kernel of rows, some on every device, and inputs."""
        assert self.kernel is not None
        return on_each(self.mesh, self.kernel, (EACH, SAME), EACH)(self._split(rows), x)[: len(rows)]

    def _features(self, x: Array, context: Context, data: Quadratic) -> Array:
        """Features in float64: some columns on every device, and zeros for what G has more."""
        assert context.phi is not None
        features = _wide(self._embed_set(x, context.phi))
        if self.mesh is None:
            return features
        features = jnp.pad(features, ((0, 0), (0, data.gram.shape[0] - features.shape[1])))
        return jax.lax.with_sharding_constraint(features, NamedSharding(self.mesh, COLUMNS))

    def _embed_set(self, x: Array, phi: AbstractFeatureMap) -> Array:
        """Features of the set, of some examples on every device."""
        return phi(self._split(x))[: len(x)]

    def _split(self, rows: Array) -> Array:
        """Some rows on every device; where they are not as many on all, the first is there again."""
        if self.mesh is None:
            return rows
        more = -len(rows) % self.mesh.size
        rows = jnp.concatenate([rows, jnp.broadcast_to(rows[:1], (more, *rows.shape[1:]))])
        return jax.lax.with_sharding_constraint(rows, NamedSharding(self.mesh, EACH))

    def _shared(
        self, rows: Array, values: Array, weight: Array | None = None
    ) -> tuple[Array, Array, Array | None]:
        """Targets, some on every device, and their weights: none where all of them count."""
        number, rows, values = len(rows), self._split(rows), self._split(values)
        if len(rows) > number:
            weight = jnp.ones(number, values.dtype) if weight is None else weight
            weight = jnp.pad(weight, (0, len(rows) - number))
        return rows, values, weight

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


def _outputs(rows: Array, weights: Array, level: Array | None) -> Array:
    """Predictions in the precision of the rows."""
    outputs = matmul(rows, weights.astype(rows.dtype))
    return outputs if level is None else outputs + level.astype(rows.dtype)


def _wide(array: Any) -> Array:
    """In float64, where that is allowed."""
    return array.astype(jnp.result_type(float))


def _stated(penalty: float, x: Array) -> float:
    """A relative penalty as the run states it, and more in float32."""
    limits = jnp.finfo(jnp.result_type(float))
    return penalty if limits.bits == 64 else penalty + _STABLE * len(x) * float(limits.eps)
