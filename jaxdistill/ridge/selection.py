"""The choice of the ridge penalty: held-out data, or leave-one-out in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill.features.base import AbstractFeatureMap
from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.pace import late
from jaxdistill.numerics.placement import device_scope, float64_scope
from jaxdistill.numerics.processes import summed
from jaxdistill.numerics.products import products_of
from jaxdistill.numerics.pytrees import register_pytree
from jaxdistill.ridge.crossing import Kept, crossing
from jaxdistill.ridge.moments import Moments
from jaxdistill.ridge.source import AbstractSource


@final
@register_pytree
@dataclass(frozen=True)
class LamSelection:
    """How the penalty was chosen.

    Classes are judged by the share of wrong answers, and by the squared error among equals; real
    targets by the squared error alone.

    Args:
        lams: Candidates in increasing order, shape (l,).
        squared_errors: Mean squared error of each, shape (l,): held out, leave-one-out, or generalised.
        error_rates: Share of wrong classes of each, shape (l,); None for real-valued targets.
        method: "validation", "leave-one-out" or "generalised cross-validation".
    """

    lams: np.ndarray
    squared_errors: np.ndarray
    error_rates: np.ndarray | None
    method: str = field(metadata={"static": True})

    @property
    def index(self) -> int:
        """Position of the best candidate."""
        rates = np.zeros(len(self.lams)) if self.error_rates is None else self.error_rates
        return int(np.lexsort((self.squared_errors, rates))[0])

    @property
    def lam(self) -> float:
        """The chosen penalty."""
        return float(self.lams[self.index])

    @property
    def at_edge(self) -> bool:
        """Whether the best candidate is the first or the last: then a wider grid may do better."""
        return self.index in (0, len(self.lams) - 1)


@jax.jit
def _filters(path: Any, lams: Array) -> Array:
    return path.filters(lams)


def _errors(prediction: Array, y: Array, mask: Array) -> tuple[Array, Array]:
    squared = jnp.sum(jnp.where(mask > 0, jnp.sum((prediction - y) ** 2, axis=1), 0.0))
    wrong = jnp.argmax(prediction, axis=1) != jnp.argmax(y, axis=1)
    return squared, jnp.sum(jnp.where(wrong, mask, 0.0))


@partial(jax.jit, static_argnums=0)
def _score_chunk(
    left_out: bool,
    features: AbstractFeatureMap,
    basis: Float[Array, "p r"],
    filters: Float[Array, "l r"],
    projected: Float[Array, "r k"],
    means: tuple[Array, Array],
    base: Array,
    x: Array,
    y: Array,
    mask: Array,
) -> tuple[Array, Array]:
    """Errors of every candidate on a chunk: as predicted, or as predicted were each example left out."""
    z = matmul(features(x) - means[0][None], basis)
    leverages = base + matmul(filters, (z**2).T) if left_out else None
    # Nearer to one than this, a leverage is one, and the residual over the gap rounding over rounding: eps
    # of this precision, and of float64, in which the path was factored, once an eigenvector.
    rounding = 64 * float(jnp.finfo(z.dtype).eps + basis.shape[1] * jnp.finfo(jnp.float64).eps)

    def one(factor_and_leverage: tuple[Array, Array | None]) -> tuple[Array, Array]:
        factor, h = factor_and_leverage
        prediction = matmul(z, factor[:, None] * projected) + means[1][None]
        if h is None:
            return _errors(prediction, y, mask)
        gap = (1 - h)[:, None]
        lost = gap <= rounding
        residual = jnp.where(lost, jnp.inf, (y - prediction) / jnp.where(lost, 1.0, gap))
        return _errors(y - residual, y, mask)

    return jax.lax.map(one, (filters, leverages))


def score_penalties(
    method: str,
    path: Any,
    features: AbstractFeatureMap,
    source: AbstractSource,
    lams: np.ndarray,
    *,
    centre: Moments | None = None,
    classes: bool,
    dtype: Any,
    kept: Kept | None = None,
    progress: bool = False,
) -> LamSelection:
    """Score every penalty on the given examples, in one pass over them.

    "validation" takes examples that the path was not trained on. "leave-one-out" takes the training
    examples: the residual of example i, were it left out, is ``(y_i - f(x_i)) / (1 - h_i)`` with the
    leverage ``h_i = sum_j (phi_i V)_j^2 / (g_j + lam)``; a leverage of one scores infinity. With an intercept
    phi_i is centred, and its leverage 1/n more.

    Args:
        method: "validation" or "leave-one-out".
        path: A :class:`~jaxdistill.ridge.path.RidgePath`.
        features: Feature map phi.
        source: Inputs and targets.
        lams: Candidates, shape (l,).
        centre: Moments of the training data about their means, for a model with an intercept.
        classes: Whether the largest target is the class.
        dtype: Precision of features and predictions.
        kept: As for :func:`~jaxdistill.ridge.moments.accumulate_moments`, of these examples.
        progress: Whether to show a bar.

    Returns:
        The scores, and with them the choice.
    """
    left_out = {"validation": False, "leave-one-out": True}[method]
    squared, wrong, rows = np.zeros(len(lams)), np.zeros(len(lams)), 0
    means, base = (np.zeros(path.basis.shape[0]), np.zeros(source.num_targets)), 0.0
    if centre is not None:  # zeros change no bit
        means, base = (centre.feature_shift, centre.target_shift), 1 / centre.count
    with float64_scope():
        filters = np.asarray(_filters(path, lams))
    with device_scope(dtype, wide_sums=True) as side:
        fixed: list[Any] = [jnp.asarray(a, dtype) for a in (path.basis, filters, path.projected)]
        fixed += [tuple(jnp.asarray(a, dtype) for a in means), jnp.asarray(base, dtype)]
        features, fixed = side.everywhere((features, fixed))
        chunks = crossing(source, side, dtype, kept=kept, progress=method if progress else None)

        def blocks() -> Iterator[tuple[list[Array], int]]:
            for (x, y), mask in chunks:
                yield side.by_row([x, *(a.astype(dtype, copy=False) for a in (y, mask))]), int(mask.sum())

        scores = (
            (_score_chunk(left_out, features, *fixed, *block), number)
            for block, number in late(blocks(), side.ahead)
        )
        for (more_squared, more_wrong), more_rows in late(scores):
            squared += np.asarray(more_squared, np.float64)
            wrong += np.asarray(more_wrong, np.float64)
            rows += more_rows
    squared, wrong, rows = summed(squared), summed(wrong), int(summed(np.asarray(rows)))
    # Infinite for a leverage of one: such an example says nothing of the rest.
    squared = np.where(np.isfinite(squared), squared / rows, np.inf)
    rates = np.where(np.isfinite(squared), wrong / rows, np.inf)
    return LamSelection(lams, squared, rates if classes else None, method)


def score_generalised(
    path: Any, lams: np.ndarray, count: Any, *, intercept: bool, dtype: Any
) -> LamSelection:
    """Score every penalty by generalised cross-validation: from the path alone, without any example.

    ``(|Y - Phi B|^2 / n) / (1 - tr(H) / n)^2`` with ``tr(H) = sum_j g_j / (g_j + lam)``, and 1 more with an
    intercept: leave-one-out with the mean leverage in place of each. Classes too are judged by their squared
    error. An error that the rounding of the products hides counts as large as that; where the leverages are
    one, the score is infinite.

    Args:
        path: A :class:`~jaxdistill.ridge.path.RidgePath`.
        lams: Candidates, shape (l,).
        count: n.
        intercept: Whether the path is of centred features and targets.
        dtype: Precision in which the products were formed.

    Returns:
        The scores, and with them the choice.

    Source: Golub, Heath and Wahba 1979.
    """
    with float64_scope():
        filters = np.asarray(_filters(path, lams))
    g, projected = np.asarray(path.eigenvalues), np.asarray(path.projected)
    size = float(np.trace(np.asarray(path.target_gram)))
    left = size - (filters * (2 - g * filters)) @ np.sum(projected**2, axis=1)
    gap = 1 - (filters @ g + intercept) / count
    lost = gap <= 64 * len(g) * np.finfo(np.float64).eps
    errors = np.maximum(left, products_of(dtype).eps * size) / count
    scores = np.where(lost, np.inf, errors / np.where(lost, 1.0, gap) ** 2)
    return LamSelection(lams, scores, None, "generalised cross-validation")
