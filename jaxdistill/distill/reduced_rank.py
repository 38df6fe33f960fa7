"""The rank of the weights: how many examples they need, and the best model that fewer can hold.

Pure functions of arrays, safe under jit, vmap and grad.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.numerics.linalg import matmul


def principal_outputs(
    weights: Float[Array, "p k"], gram: Float[Array, "p p"]
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """Energies and directions of the predictions, largest first.

    The eigenvalues and eigenvectors of ``B^T G B``, the Gram matrix of the predictions on the
    training data: the squared singular values and right singular vectors of ``G^(1/2) B``.

    Args:
        weights: B, shape (p, k).
        gram: G = Phi^T Phi, shape (p, p).

    Returns:
        Energies, shape (k,), decreasing, and directions in output space, one a column, shape (k, k).
    """
    predictions = matmul(weights.T, matmul(gram, weights))
    values, vectors = jnp.linalg.eigh((predictions + predictions.T) / 2)
    return values[::-1], vectors[:, ::-1]


def reduce_rank(
    weights: Float[Array, "p k"], gram: Float[Array, "p p"], rank: int
) -> tuple[Float[Array, "p k"], Float[Array, "r k"], Float[Array, ""]]:
    """The weights of rank r whose predictions on the training data are nearest to the full model's.

    ``B_r = B E E^T`` with E the leading r directions of :func:`principal_outputs`.

    Args:
        weights: B, shape (p, k).
        gram: G = Phi^T Phi, shape (p, p).
        rank: r, at most k.

    Returns:
        B_r, shape (p, k); E^T, shape (r, k), the labels that its examples can have; and the share of the
        squared predictions that is lost.

    Source: reduced-rank regression, Izenman 1975.
    """
    energies, directions = principal_outputs(weights, gram)
    kept = directions[:, :rank]
    lost = jnp.sum(energies[rank:]) / jnp.sum(energies)
    return matmul(matmul(weights, kept), kept.T), kept.T, lost
