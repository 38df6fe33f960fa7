"""Ways to begin the spanning equations, from the one that stays nearest to the one that is surest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

# Sharpness of further rungs: where 10 stalls, 3 and 1 are mostly exact, and further from the start.
SOFTER = (3.0, 1.0)


@final
@dataclass(frozen=True, eq=False)
class Rung:
    """One way to begin.

    Args:
        name: How it is said to a person.
        sharpness: c of the first coefficients, or None for least squares.
        make: Makes the inputs to begin at, shape (s, m, d), or None where it finds none. Default: the start
            that was asked for.
    """

    name: str
    sharpness: float | None
    make: Callable[[], np.ndarray | None] | None = None


def softer(sharpness: float | None) -> tuple[Rung, ...]:
    """The start that was asked for at the sharpness that was asked for, then at every smaller one.

    Example:
        >>> [rung.name for rung in softer(10.0)]
        ['sharpness 10', 'sharpness 3', 'sharpness 1']
        >>> [rung.name for rung in softer(1.0)]
        ['sharpness 1']
    """
    if sharpness is None:
        return (Rung("least squares", None),)
    steps = (sharpness, *(c for c in SOFTER if c < sharpness))
    return tuple(Rung(f"sharpness {c:.4g}", c) for c in steps)
