"""Gaussian noise that nobody can repeat: every number comes from the operating system's entropy.

Floating-point Gaussian noise has a known weakness: the numbers that a sum of data and noise can take are
not the same for neighbouring data sets, so that the lowest bits may tell them apart (Mironov 2012). What is
promised here is the promise of exact arithmetic. What is released went through an eigendecomposition and a
pseudo-inverse, which nobody has shown to remove the weakness.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtri


def secure_uniform(*shape: int) -> Float64[np.ndarray, ...]:
    """Independent numbers in (0, 1), 53 bits each, from the operating system's entropy; there is no seed.

    A key of JAX would be 64 bits that lie in a script or a log; whoever has it subtracts the noise.

    Args:
        *shape: Shape of the array.

    Example:
        >>> drawn = secure_uniform(100)
        >>> bool(drawn.min() > 0), bool(drawn.max() < 1)
        (True, True)
    """
    raw = np.frombuffer(secrets.token_bytes(8 * math.prod(shape)), np.uint64)
    # The middle of one of 2^53 equal steps: never 0 or 1. The shift first, so that halves stay exact.
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.minimum(uniform, 1 - 2.0**-53).reshape(shape)


def secure_normal(*shape: int) -> Float64[np.ndarray, ...]:
    """Independent standard normal numbers from the operating system's entropy; there is no seed.

    Through the inverse of the distribution function, so tails to 8.2 standard deviations.

    Args:
        *shape: Shape of the array.

    Example:
        >>> secure_normal(2, 3).shape, bool((secure_normal(4) == secure_normal(4)).any())
        ((2, 3), False)
    """
    return ndtri(secure_uniform(*shape))


def symmetric_noise(size: int) -> Float64[np.ndarray, "p p"]:
    """``(N + N^T) / 2`` for N independent standard normal: variance 1 on the diagonal, 1/2 beside it.

    Adding it to a symmetric matrix is what is left of adding N once the result is made symmetric, so the
    sensitivity is that of the Frobenius norm, and half of the noise is gone.

    Args:
        size: p.

    Example:
        >>> noise = symmetric_noise(3)
        >>> bool((noise == noise.T).all())
        True
    """
    noise = secure_normal(size, size)
    return (noise + noise.T) / 2
