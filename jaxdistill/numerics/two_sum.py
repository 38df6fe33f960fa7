"""Sums in two numbers of short precision: what a device without float64 adds up, nearly as float64 would."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float


class TwoSum(NamedTuple):
    """A running sum ``high + low`` of arrays, ``low`` holding what rounding took from ``high``.

    Adding g: ``s = high + g``, and the rounding of this sum, exact in the same precision, goes to ``low``:
    ``low + (high - (s - b)) + (g - b)`` with ``b = s - high``. For float32 numbers of n terms the error is
    of the order of ``n eps^2`` relative to the sum of sizes, where a plain sum loses ``n eps``.

    Args:
        high: The sum as rounded.
        low: What is missing in it.

    Example:
        >>> total = TwoSum.zeros((), np.float32)
        >>> for term in (2.0**24, 1.0, 1.0, 1.0):
        ...     total = total.add(jax.numpy.float32(term))
        >>> float(total.high), float(total.to_float64())
        (16777216.0, 16777219.0)

    Source: Moller 1965; Knuth, The Art of Computer Programming 2, section 4.2.2.
    """

    high: Float[Array, "*shape"] | Any
    low: Float[Array, "*shape"] | Any

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: Any) -> TwoSum:
        """The empty sum, as NumPy arrays: nothing has to be compiled to make it."""
        return cls(np.zeros(shape, dtype), np.zeros(shape, dtype))

    def add(self, term: Float[Array, "*shape"]) -> TwoSum:
        """Add an array of the same shape and precision; pure."""
        total = self.high + term
        b = total - self.high
        rounding = (self.high - (total - b)) + (term - b)
        return TwoSum(total, self.low + rounding)

    def to_float64(self) -> np.ndarray:
        """The sum on the host, in float64."""
        return np.asarray(self.high, np.float64) + np.asarray(self.low, np.float64)


def add_all(totals: Any, terms: Any) -> Any:
    """Add a tree of arrays to a tree of the same structure whose leaves are :class:`TwoSum`."""
    return jax.tree.map(lambda total, term: total.add(term), totals, terms, is_leaf=_is_sum)


def _is_sum(leaf: Any) -> bool:
    return isinstance(leaf, TwoSum)
