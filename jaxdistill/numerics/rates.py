"""How fast this machine is at what large jobs consist of: measured in a second, to say how long they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.numerics.linalg import matmul
from jaxdistill.numerics.placement import device_scope, float64_scope

# Operations of an eigendecomposition with its vectors, in units of p^3, as LAPACK's syevd counts them.
EIGH = 9
_SIDE, _EIGH_SIDE, _REPEATS = 1024, 384, 3


@dataclass(frozen=True)
class Rates:
    """Operations a second, by kind of work.

    Args:
        float32: Of matrix products in float32.
        float64: Of matrix products in float64.
        eigh: Of eigendecompositions in float64, of :data:`EIGH` p^3 operations each.

    Example:
        >>> rates = Rates(1e11, 5e10, 1e10)
        >>> rates.seconds(2e11, "float32")
        2.0
    """

    float32: float
    float64: float
    eigh: float

    def seconds(self, operations: float, kind: str) -> float:
        """Time that so many operations take."""
        return operations / float(getattr(self, kind))


def measure_rates() -> Rates:
    """Time small products and a small factorisation; larger ones run somewhat faster."""
    product, factor = jax.jit(lambda a: matmul(a.T, a)), jax.jit(jnp.linalg.eigh)
    square = np.random.default_rng(0).standard_normal((_SIDE, _SIDE))
    with device_scope(np.float32) as side:
        float32 = _fastest(product, jax.device_put(square.astype(np.float32), side.home))
    with float64_scope() as where:
        float64 = _fastest(product, jax.device_put(square, where.home))
        small = square[:_EIGH_SIDE] @ square[:_EIGH_SIDE].T
        eigh = _fastest(factor, jax.device_put(small, where.home))
    operations = 2.0 * _SIDE**3
    return Rates(operations / float32, operations / float64, EIGH * _EIGH_SIDE**3 / eigh)


def _fastest(function: Callable[..., Any], array: Any) -> float:
    """Seconds of the fastest of some runs, after one that compiles."""
    jax.block_until_ready(function(array))
    times = []
    for _ in range(_REPEATS):
        start = perf_counter()
        jax.block_until_ready(function(array))
        times.append(perf_counter() - start)
    return min(times)
