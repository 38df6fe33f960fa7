"""What a mechanism is at least: a lower bound on epsilon from how well an attack tells two worlds apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from jaxdistill.errors import InputError
from jaxdistill.privacy.rates import clopper_pearson

# Thresholds that are tried on the first half of the runs.
_THRESHOLDS = 129


@final
@dataclass(frozen=True)
class Audit:
    """A lower bound on epsilon.

    Args:
        epsilon: With the confidence given, no smaller epsilon holds; 0 where nothing was shown.
        delta: The delta that was granted.
        confidence: Probability with which the bound is true.
        trials: Runs of the mechanism, both worlds together.
    """

    epsilon: float
    delta: float
    confidence: float
    trials: int

    def contradicts(self, epsilon: float) -> bool:
        """Whether a promise of this epsilon is shown to be broken."""
        return self.epsilon > epsilon


def audit_scores(present: np.ndarray, absent: np.ndarray, *, delta: float, confidence: float = 0.95) -> Audit:
    """A lower bound on epsilon from scores of runs with and without an example.

    For every event E a private mechanism has ``P(E) <= e^eps P'(E) + delta``, either way round. The event, a
    threshold and a direction, is chosen on the first half of the runs and judged on the second, both shares
    by Clopper and Pearson: so ``log((low - delta) / high)`` is a bound with the confidence stated.

    Args:
        present: Scores of runs with the example, shape (a,), in the order of the runs.
        absent: Scores of runs without it, shape (b,).
        delta: The delta that is granted.
        confidence: Of the bound.

    Raises:
        InputError: fewer than four runs of either kind, or numbers out of range.

    Example:
        >>> import numpy as np
        >>> draws = np.random.default_rng(0).standard_normal((2, 2000))
        >>> audit_scores(draws[0] + 4.0, draws[1], delta=1e-5).contradicts(1.0)
        True

    Source: Jagielski, Ullman and Oprea 2020.
    """
    present, absent = np.asarray(present, np.float64), np.asarray(absent, np.float64)
    if min(len(present), len(absent)) < 4 or present.ndim != 1 or absent.ndim != 1:
        raise InputError(
            f"scores have shapes {present.shape} and {absent.shape}; run each world 4 times or more"
        )
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise InputError(f"delta={delta:g} must lie in [0, 1) and confidence={confidence:g} between 0 and 1")
    a, b = len(present) // 2, len(absent) // 2
    thresholds = np.quantile(np.concatenate([present[:a], absent[:b]]), np.linspace(0, 1, _THRESHOLDS))
    best, chosen = -math.inf, (1.0, False, thresholds[:1])
    for sign, swap in itertools.product((1.0, -1.0), (False, True)):
        found = _bounds(present[:a], absent[:b], sign, swap, thresholds, delta, confidence)
        place = int(found.argmax())
        if found[place] > best:
            best, chosen = found[place], (sign, swap, thresholds[place : place + 1])
    bound = float(_bounds(present[a:], absent[b:], *chosen, delta, confidence)[0])
    return Audit(max(bound, 0.0), delta, confidence, len(present) + len(absent))


def audit(run: Callable[[bool], float], *, trials: int, delta: float, confidence: float = 0.95) -> Audit:
    """Run a mechanism on two neighbours, and bound epsilon by how well its scores tell them apart.

    Args:
        run: One run of the mechanism and of the attack: from whether the example is there to a score.
        trials: Runs of each world.
        delta: The delta that is granted.
        confidence: Of the bound.

    Raises:
        InputError: as :func:`audit_scores`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> audit(lambda there: there + 10 * rng.standard_normal(), trials=200, delta=1e-5).contradicts(1.0)
        False
    """
    scores = np.array([[run(there) for there in (True, False)] for _ in range(trials)]).reshape(-1, 2)
    return audit_scores(scores[:, 0], scores[:, 1], delta=delta, confidence=confidence)


def _bounds(
    present: np.ndarray,
    absent: np.ndarray,
    sign: float,
    swap: bool,
    thresholds: np.ndarray,
    delta: float,
    confidence: float,
) -> np.ndarray:
    """``log((low - delta) / high)`` for the events that a score passes a threshold, -inf for empty ones."""
    likely, rare = (absent, present) if swap else (present, absent)
    passed = [np.sum(sign * one[:, None] > sign * thresholds, axis=0) for one in (likely, rare)]
    # Two shares, each wrong on one side with half of what the confidence leaves: together the stated one.
    low, _ = clopper_pearson(passed[0], len(likely), confidence)
    _, high = clopper_pearson(passed[1], len(rare), confidence)
    shown = low > delta
    return np.where(shown, np.log(np.where(shown, low - delta, 1.0) / high), -math.inf)
