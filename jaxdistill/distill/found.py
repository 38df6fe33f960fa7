"""What constructions hand back that find inputs step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Found(NamedTuple):
    """Inputs, the share of the predictions that they lose, and the report in types that JSON keeps.

    Args:
        x: Inputs, shape (m, d), float64.
        lost: Share of the squared predictions that is lost; 0 where the equations are solved for.
        report: What the solver did.
    """

    x: np.ndarray
    lost: float
    report: dict[str, Any]
