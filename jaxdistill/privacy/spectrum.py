"""What to do with the eigenvalues of a noisy Gram matrix: post-processing, which costs no privacy.

The noise ``sigma (N + N^T) / 2`` has eigenvalues in a semicircle that ends at ``sigma sqrt(2 p)``. An
eigenvalue l of G shows as ``l + sigma^2 p / (2 l)`` where l is above half that edge, and not at all below.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.numerics.linalg import matmul
from jaxdistill.ridge.path import RidgePath

SPECTRA = ("shrink", "clip")
Spectrum = Literal["shrink", "clip"]


def noise_edge(sigma: float, num_features: int) -> float:
    """Where the eigenvalues of symmetric noise end, ``sigma sqrt(2 p)``.

    Example:
        >>> noise_edge(2.0, 8)
        8.0

    Source: Wigner's semicircle.
    """
    return sigma * math.sqrt(2 * num_features)


def blind_penalty(sigma: float, num_features: int) -> float:
    """The penalty that is chosen without the data: the smallest eigenvalue that is seen through the noise.

    ``lam = sigma sqrt(p / 2)``, half of :func:`noise_edge`. It needs the budget and p alone.

    Example:
        >>> blind_penalty(2.0, 8)
        4.0

    Source: the threshold, Baik, Ben Arous and Peche 2005; that it makes a good penalty is measured.
    """
    return noise_edge(sigma, num_features) / 2


def mend_spectrum(
    eigenvalues: Float[Array, " p"], edge: Float[Array, ""] | float, spectrum: str
) -> Float[Array, " p"]:
    """Eigenvalues of a positive semidefinite matrix from those of a noisy one; pure.

    "clip" puts negative ones to zero, which projects on the nearest such matrix. "shrink" also takes the
    noise out of the others, ``(g + sqrt(g^2 - edge^2)) / 2`` above the edge and zero below it.

    Args:
        eigenvalues: g, shape (p,).
        edge: :func:`noise_edge`.
        spectrum: "shrink" or "clip".

    Example:
        >>> import jax.numpy as jnp
        >>> mend_spectrum(jnp.array([-1.0, 2.0, 5.0]), 3.0, "shrink").tolist()
        [0.0, 0.0, 4.5]

    Source: Gavish and Donoho 2017, for symmetric noise.
    """
    if spectrum == "clip":
        return jnp.maximum(eigenvalues, 0.0)
    seen = eigenvalues > edge
    inside = jnp.where(seen, eigenvalues**2 - edge**2, 0.0)
    return jnp.where(seen, (eigenvalues + jnp.sqrt(inside)) / 2, 0.0)


def mended_path(
    gram: Float[Array, "p p"],
    cross: Float[Array, "p k"],
    target_gram: Float[Array, "k k"],
    edge: Float[Array, ""] | float,
    spectrum: str,
    rank: int,
) -> tuple[RidgePath, Float[Array, "p p"]]:
    """Ridge path of the mended moments, and the mended Gram matrix.

    Args:
        gram: Noisy G, shape (p, p).
        cross: Noisy C, shape (p, k).
        target_gram: Y^T Y, shape (k, k).
        edge: :func:`noise_edge`.
        spectrum: "shrink" or "clip".
        rank: Leading directions that are kept; p for all.
    """
    values, vectors = jnp.linalg.eigh(gram)
    start = gram.shape[0] - rank
    kept, basis = mend_spectrum(values, edge, spectrum)[start:], vectors[:, start:]
    path = RidgePath(basis, kept, matmul(basis.T, cross), target_gram, jnp.zeros((), gram.dtype))
    return path, matmul(basis * kept, basis.T)


factor_mended = jax.jit(mended_path, static_argnums=(4, 5))
