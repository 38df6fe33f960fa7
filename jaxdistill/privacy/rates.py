"""How well a score tells members from others: area under the curve, and hits at few false alarms."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
from scipy.special import ndtri
from scipy.stats import beta, rankdata

from jaxdistill.errors import InputError

FALSE_POSITIVE_RATES = (0.001, 0.01)


@final
@dataclass(frozen=True)
class Rate:
    """A share with its confidence interval.

    Args:
        value: The share that was found.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True)
class AttackScore:
    """What an attack that scores examples gets out of a set.

    Args:
        auc: Probability that a member scores higher than another example; 1/2 is guessing.
        tpr_at_0_1_percent: Share of members found where at most 0.1 % of the others are taken for one.
        tpr_at_1_percent: The same at 1 %.
        num_members: Members that were scored.
        num_others: Others that were scored; below 1000 no false alarm at all is allowed at 0.1 %.
    """

    auc: Rate
    tpr_at_0_1_percent: Rate
    tpr_at_1_percent: Rate
    num_members: int
    num_others: int

    def to_dict(self) -> dict[str, Any]:
        """All fields, in types that JSON keeps."""
        return asdict(self)


def clopper_pearson(hits: Any, trials: int, confidence: float = 0.95) -> tuple[Any, Any]:
    """Exact confidence interval of a share, or of several.

    Args:
        hits: Successes, a number or an array of them.
        trials: Trials, at least one.
        confidence: Probability with which the interval holds the share; half of the rest on either side.

    Returns:
        Lower and upper ends, of the shape of ``hits``.

    Example:
        >>> [round(float(end), 4) for end in clopper_pearson(0, 100)]
        [0.0, 0.0362]

    Source: Clopper and Pearson 1934.
    """
    rest = (1 - confidence) / 2
    low = np.where(hits == 0, 0.0, beta.ppf(rest, hits, trials - hits + 1))
    high = np.where(hits == trials, 1.0, beta.ppf(1 - rest, hits + 1, trials - hits))
    return low[()], high[()]


def area_under_curve(members: np.ndarray, others: np.ndarray, confidence: float = 0.95) -> Rate:
    """The probability that a member scores higher than another, ties half, with DeLong's interval.

    Args:
        members: Scores of members, shape (a,); higher means more like a member.
        others: Scores of others, shape (b,).
        confidence: Of the interval.

    Example:
        >>> area_under_curve(np.array([2.0, 3.0]), np.array([0.0, 1.0])).value
        1.0

    Source: DeLong, DeLong and Clarke-Pearson 1988.
    """
    a, b = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    of_members = (ranks[:a] - rankdata(members)) / b
    of_others = 1 - (ranks[a:] - rankdata(others)) / a
    value = float(of_members.mean())
    variance = of_members.var(ddof=1) / a + of_others.var(ddof=1) / b if min(a, b) > 1 else math.inf
    reach = float(ndtri((1 + confidence) / 2)) * math.sqrt(variance)
    return Rate(value, max(0.0, value - reach), min(1.0, value + reach))


def hits_at(members: np.ndarray, others: np.ndarray, rate: float, confidence: float = 0.95) -> Rate:
    """Share of members above the threshold that at most a share of the others passes.

    The interval is Clopper and Pearson's for that threshold.

    Args:
        members: Scores of members, shape (a,).
        others: Scores of others, shape (b,).
        rate: Largest share of false alarms.
        confidence: Of the interval.

    Example:
        >>> hits_at(np.arange(10.0), np.arange(-5.0, 5.0), 0.1).value  # above the second largest of the rest
        0.6
    """
    allowed = math.floor(rate * len(others))
    threshold = np.sort(others)[::-1][allowed]  # this one and all below it pass for others
    hits = int(np.sum(members > threshold))
    low, high = clopper_pearson(hits, len(members), confidence)
    return Rate(hits / len(members), float(low), float(high))


def score_attack(members: np.ndarray, others: np.ndarray) -> AttackScore:
    """All rates of an attack.

    Args:
        members: Scores of members, shape (a,); higher means more like a member.
        others: Scores of others, shape (b,).

    Raises:
        InputError: there are no members, or no others, or a score is not a number.

    Example:
        >>> score_attack(np.arange(5.0) + 10, np.arange(5.0)).tpr_at_1_percent.value
        1.0
    """
    for name, scores in (("members", members), ("others", others)):
        if scores.ndim != 1 or len(scores) == 0 or np.any(np.isnan(scores)):
            raise InputError(f"scores of {name} have shape {scores.shape}; give numbers, at least one")
    rare, few = (hits_at(members, others, rate) for rate in FALSE_POSITIVE_RATES)
    return AttackScore(area_under_curve(members, others), rare, few, len(members), len(others))
