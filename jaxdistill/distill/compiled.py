"""The pure constructions, compiled once a shape: what :mod:`jaxdistill.distill.build` calls in float64."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdistill.distill.exact import InverseFactors, inverse_features, mean_features
from jaxdistill.distill.labels import self_conditioning_penalty, soft_labels, weighted_labels
from jaxdistill.distill.realistic import nearest_inverse, nearest_spanning
from jaxdistill.distill.reduced_rank import reduce_rank
from jaxdistill.features import AbstractFeatureMap
from jaxdistill.numerics.contrasts import contrasts, from_contrasts
from jaxdistill.numerics.linalg import matmul

mean_of = jax.jit(mean_features)


@partial(jax.jit, static_argnums=(2, 3))
def reduced(weights: Array, gram: Array, rank: int, intercept: bool) -> tuple[Array, Array, Array]:
    """Weights of a rank, labels for them (about zero with an intercept), and the share that is lost."""
    target, rows, lost = reduce_rank(weights, gram, rank)
    return target, from_contrasts(rows) if intercept else rows, lost


@partial(jax.jit, static_argnums=3)
def features_of_factors(factors: InverseFactors, lam_s: Array, larger: Array, intercept: bool) -> Array:
    """Features whose ridge inverse the factors are; with an intercept the centred ones."""
    features = factors.features(lam_s, larger)
    return from_contrasts(features) if intercept else features


@partial(jax.jit, static_argnums=(3, 5))
def noisy_factors(
    target: Array, rows: Array, noise: Array, rank: int, key: Array, intercept: bool
) -> InverseFactors:
    """Factors of D with a random free part whose singular values are about those of the fixed part."""
    rows = contrasts(rows) if intercept else rows
    fixed = inverse_features(target, rows)
    if rows.shape[0] <= rank:  # labels of full rank leave nothing free
        return InverseFactors.of(fixed)
    std = noise * jnp.linalg.norm(fixed) / jnp.sqrt(1.0 * rank * target.shape[0])
    free = std * jax.random.normal(key, fixed.shape, fixed.dtype)
    return InverseFactors.of(inverse_features(target, rows, free))


@partial(jax.jit, static_argnums=(5, 6))
def real_factors(
    phi: AbstractFeatureMap,
    target: Array,
    rows: Array,
    real: Array,
    lam_s: Array,
    own_labels: bool,
    intercept: bool,
) -> tuple[InverseFactors, Array, Array]:
    """Factors of the D nearest to the inverse of real features, its labels (Corollary 4.1.1), their mean."""
    features = phi(real)
    labels = matmul(features, target) if own_labels else rows
    parts = (contrasts(labels), contrasts(features)) if intercept else (labels, features)
    return InverseFactors.of(nearest_inverse(target, *parts, lam_s)), labels, jnp.mean(features, axis=0)


@partial(jax.jit, static_argnums=(3, 5))
def spanning_features(
    phi: AbstractFeatureMap, target: Array, real: Array, rank: int, sharpness: Array, intercept: bool
) -> Array:
    """Features of the nearest spanning set of real inputs."""
    return nearest_spanning(target, phi(real), rank, sharpness, intercept=intercept)


@jax.jit
def stored_labels(
    phi: AbstractFeatureMap,
    x: Array,
    model: tuple[Array, Array | None],
    lam_s: Array | None,
    gram: Array | None = None,
    means: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Soft labels of stored inputs with their penalty, of ``(B, b)``; None asks for the usual one.

    With a Gram matrix of the training data they are the weighted ones.
    """
    features, (target, intercept) = phi(x), model
    seen = features if intercept is None else contrasts(features)
    lam = self_conditioning_penalty(seen) if lam_s is None else lam_s
    if gram is not None:
        return weighted_labels(features, target, gram, lam, means=means), lam
    return soft_labels(features, target, lam, intercept=intercept), lam
