"""The pure constructions, compiled once a shape: what :mod:`jaxdistill.distill.build` calls in float64."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdistill.distill.exact import InverseFactors, inverse_features
from jaxdistill.distill.labels import self_conditioning_penalty, soft_labels, weighted_labels
from jaxdistill.distill.realistic import nearest_inverse, nearest_spanning
from jaxdistill.distill.reduced_rank import reduce_rank
from jaxdistill.features import AbstractFeatureMap
from jaxdistill.numerics.linalg import matmul

reduced = jax.jit(reduce_rank, static_argnums=2)
features_of_factors = jax.jit(InverseFactors.features)


@partial(jax.jit, static_argnums=3)
def noisy_factors(target: Array, rows: Array, noise: Array, rank: int, key: Array) -> InverseFactors:
    """Factors of D with a random free part whose singular values are about those of the fixed part."""
    fixed = inverse_features(target, rows)
    if rows.shape[0] <= rank:  # labels of full rank leave nothing free
        return InverseFactors.of(fixed)
    std = noise * jnp.linalg.norm(fixed) / jnp.sqrt(1.0 * rank * target.shape[0])
    free = std * jax.random.normal(key, fixed.shape, fixed.dtype)
    return InverseFactors.of(inverse_features(target, rows, free))


@partial(jax.jit, static_argnums=5)
def real_factors(
    phi: AbstractFeatureMap, target: Array, rows: Array, real: Array, lam_s: Array, own_labels: bool
) -> tuple[InverseFactors, Array]:
    """Factors of the D nearest to the inverse of real features, and its labels (Corollary 4.1.1)."""
    features = phi(real)
    labels = matmul(features, target) if own_labels else rows
    return InverseFactors.of(nearest_inverse(target, labels, features, lam_s)), labels


@partial(jax.jit, static_argnums=3)
def spanning_features(
    phi: AbstractFeatureMap, target: Array, real: Array, rank: int, sharpness: Array
) -> Array:
    """Features of the nearest spanning set of real inputs."""
    return nearest_spanning(target, phi(real), rank, sharpness)


@partial(jax.jit, static_argnums=5)
def stored_labels(
    phi: AbstractFeatureMap, x: Array, target: Array, gram: Array, lam_s: Array, weighted: bool
) -> tuple[Array, Array]:
    """Soft labels of stored inputs with their penalty; NaN asks for the self-conditioning one."""
    features = phi(x)
    lam = jnp.where(jnp.isnan(lam_s), self_conditioning_penalty(features), lam_s)
    if weighted:
        return weighted_labels(features, target, gram, lam), lam
    return soft_labels(features, target, lam), lam
