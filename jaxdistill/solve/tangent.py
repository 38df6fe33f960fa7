"""Jacobians of feature maps, and the mean of their Gram matrices.

Pure functions of arrays and of a feature map, safe under jit and vmap.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.features.network import RandomNetwork
from jaxdistill.numerics.linalg import matmul

# Examples whose Jacobians stand for all, where the mean has no closed form.
_FEW = 8
# Features above which random tangents stand for Jacobians, so many times p of them: a fifth of the passes.
_WIDE, _TANGENTS = 1024, 2


def jacobians(
    phi: Callable[[Array], Array], x: Float[Array, "m d"], passes: int | None = None
) -> Float[Array, "m p d"]:
    """Jacobian of phi at every input, one after another, by the mode that needs fewer passes.

    Args:
        phi: Feature map.
        x: Inputs, shape (m, d).
        passes: How many of an input's min(p, d) passes run side by side, where all do not fit; default all.
    """
    p, d = jax.eval_shape(phi, x).shape[-1], x.shape[1]
    if passes is None:
        return jax.lax.map(jax.jacrev(phi) if p <= d else jax.jacfwd(phi), x)

    def one(row: Array) -> Array:
        forward = jax.linearize(phi, row)[1]
        if p > d:
            return jax.lax.map(forward, jnp.eye(d, dtype=row.dtype), batch_size=passes).T
        back = jax.linear_transpose(forward, row)
        return jax.lax.map(lambda unit: back(unit)[0], jnp.eye(p, dtype=row.dtype), batch_size=passes)

    return jax.lax.map(one, x)


def tangent_gram(phi: Callable[[Array], Array], x: Float[Array, "m d"]) -> Float[Array, "p p"]:
    """The mean of ``J_i J_i^T`` over inputs, or what is near enough to precondition with.

    Of a random network in closed form, layer by layer, ``H_l = (W_l H_{l-1} W_l^T) * (S_l^T S_l) / m``
    with S_l the slopes of the activation: exact for one layer. Of any other map from the Jacobians of
    a few inputs; where p is large from random signs v, the mean of ``(J_i v) (J_i v)^T`` over all inputs,
    the same signs at every call.

    Args:
        phi: Feature map.
        x: Inputs, shape (m, d).

    Returns:
        H, shape (p, p).
    """
    if isinstance(phi, RandomNetwork):
        return _network_gram(phi, x)
    p = jax.eval_shape(phi, x).shape[-1]
    return _sampled_gram(phi, x) if p <= _WIDE else _sketched_gram(phi, x, p)


def _network_gram(phi: RandomNetwork, x: Float[Array, "m d"]) -> Float[Array, "p p"]:
    gram, value = None, x
    for weight in phi.weights:
        weight = weight.astype(x.dtype)
        one_layer = RandomNetwork((jnp.eye(len(weight), dtype=x.dtype),), phi.negative_slope, phi.activation)
        below = matmul(value, weight.T)
        value, slopes = jax.jvp(one_layer, (below,), (jnp.ones_like(below),))
        inner = weight if gram is None else matmul(weight, gram)
        gram = matmul(inner, weight.T) * (matmul(slopes.T, slopes) / len(x))
    assert gram is not None
    return gram


def _sampled_gram(phi: Callable[[Array], Array], x: Float[Array, "m d"]) -> Float[Array, "p p"]:
    few = x[:: max(1, len(x) // _FEW)][:_FEW]
    explicit = jacobians(phi, few)
    flat = jnp.moveaxis(explicit, 1, 0).reshape(explicit.shape[1], -1)
    return matmul(flat, flat.T) / len(few)


def _sketched_gram(phi: Callable[[Array], Array], x: Float[Array, "m d"], p: int) -> Float[Array, "p p"]:
    _, forward = jax.linearize(phi, x)

    def tangents(key: Array) -> Array:
        return forward(jax.random.rademacher(key, x.shape, x.dtype))

    rounds = -(-_TANGENTS * p // len(x))
    flat = jax.lax.map(tangents, jax.random.split(jax.random.key(0), rounds)).reshape(-1, p)
    return matmul(flat.T, flat) / len(flat)
