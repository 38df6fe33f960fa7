"""Budgets of differential privacy, and the noise of the Gaussian mechanism that keeps within one.

A Gaussian mechanism is told by one number, mu = sensitivity / noise. Mechanisms run on the same data compose
exactly: their mu add in squares. That is all the composition that this room needs, so no accountant is a
dependency: dp-accounting (Apache-2.0) agrees, and asks for older versions of other packages.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, final

from scipy.optimize import brentq
from scipy.special import log_ndtr

from jaxdistill.errors import BudgetError
from jaxdistill.numerics.names import check_choice

# Relative step by which a solved mu is made smaller until its delta is certainly kept.
_STEP = 1e-12


class Neighbours(enum.Enum):
    """Which two data sets must look alike; the value is how it is said to a person."""

    ADD_OR_REMOVE = "add-or-remove"
    REPLACE_ONE = "replace-one"

    @classmethod
    def named(cls, name: str | Neighbours) -> Neighbours:
        """The relation of a name.

        Raises:
            InputError: an unknown name, with the nearest known one.
        """
        if isinstance(name, cls):
            return name
        check_choice("neighbours", name, [one.value for one in cls])
        return cls(name)


@final
@dataclass(frozen=True)
class Budget:
    """A promise (epsilon, delta): no event is more than e^epsilon times likelier, plus delta.

    Args:
        epsilon: At most this much can be learned of one example, positive and finite.
        delta: Probability that is left out, in (0, 1); well below one over the number of examples.
        neighbours: What is hidden: that an example is there at all, or which one it is.

    Raises:
        BudgetError: a number out of its range.

    Example:
        >>> budget = Budget(1.0, 1e-5)
        >>> round(budget.mu, 4), round(gaussian_delta(1.0, budget.mu), 7)
        (0.2681, 1e-05)

    Source: Dwork and Roth 2014.
    """

    epsilon: float
    delta: float
    neighbours: Neighbours = Neighbours.ADD_OR_REMOVE

    def __post_init__(self) -> None:
        epsilon = _number("epsilon", self.epsilon, "a positive, finite number such as 1")
        delta = _number("delta", self.delta, "a number between 0 and 1 such as 1e-5")
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise BudgetError(f"epsilon is {epsilon:g}; give a positive, finite number such as 1")
        if not 0 < delta < 1:
            raise BudgetError(
                f"delta is {delta:g}; Gaussian noise needs a number between 0 and 1, such as 1e-5"
            )

    @property
    def mu(self) -> float:
        """The largest mu = sensitivity / noise of a Gaussian mechanism that keeps the promise."""
        return gaussian_mu(self.epsilon, self.delta)


@final
@dataclass(frozen=True)
class Spent:
    """What was spent on the same data before: on an encoder, on preprocessing, on choosing a number.

    Args:
        what: What it was spent on.
        epsilon: Of any mechanism, composed by addition.
        delta: Of any mechanism, composed by addition.
        mu: Of a Gaussian mechanism, composed exactly.

    Example:
        >>> Spent("encoder, DP-SGD", epsilon=0.5, delta=1e-6).mu
        0.0
    """

    what: str
    epsilon: float = 0.0
    delta: float = 0.0
    mu: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta", "mu"):
            value = _number(name, getattr(self, name), "a number of at least 0")
            if not (math.isfinite(value) and value >= 0):
                raise BudgetError(f"{name} spent on {self.what} is {value:g}; give a number of at least 0")

    @classmethod
    def gaussian(cls, what: str, *, sensitivity: float, noise: float) -> Self:
        """What a Gaussian mechanism of this sensitivity and standard deviation spends."""
        if not (sensitivity >= 0 and noise > 0):
            raise BudgetError(
                f"sensitivity {sensitivity:g} and noise {noise:g} spent on {what} must be positive"
            )
        return cls(what, mu=sensitivity / noise)


def _number(name: str, value: Any, wanted: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BudgetError(f"{name} is {value!r}; give {wanted}") from None


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The exact delta of a Gaussian mechanism: ``N(mu/2 - eps/mu) - e^eps N(-mu/2 - eps/mu)``.

    Args:
        epsilon: The epsilon promised.
        mu: Sensitivity over standard deviation of the noise.

    Returns:
        The smallest delta, for N the normal distribution function.

    Example:
        >>> round(gaussian_delta(0.0, 2.0), 4)  # the total variation distance of two Gaussians
        0.6827

    Source: Balle and Wang 2018, Theorem 8.
    """
    if mu == 0:
        return 0.0
    # Logarithms: e^eps overflows where its factor underflows, and delta is a small difference.
    left = float(log_ndtr(mu / 2 - epsilon / mu))
    right = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return math.exp(left) * -math.expm1(min(right - left, 0.0))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose :func:`gaussian_delta` is at most delta: the analytic Gaussian mechanism.

    Args:
        epsilon: Positive.
        delta: In (0, 1).

    Returns:
        mu; noise of standard deviation sensitivity / mu keeps (epsilon, delta).

    Example:
        >>> round(1 / gaussian_mu(0.5, 1e-5), 3), round(1 / gaussian_mu(8.0, 1e-5), 3)
        (7.032, 0.6)

    Source: Balle and Wang 2018, Algorithm 1.
    """
    high = 1.0
    while gaussian_delta(epsilon, high) < delta:
        high *= 2
    low = high / 2
    while gaussian_delta(epsilon, low) > delta:
        low /= 2
    mu = _root(lambda value: gaussian_delta(epsilon, value) - delta, low, high)
    while gaussian_delta(epsilon, mu) > delta:
        mu *= 1 - _STEP
    return mu


def gaussian_epsilon(delta: float, mu: float) -> float:
    """The smallest epsilon that a Gaussian mechanism, or a composition of some, keeps with delta.

    Args:
        delta: In (0, 1).
        mu: Sensitivity over standard deviation; of a composition the root of the sum of squares.

    Example:
        >>> round(gaussian_epsilon(1e-5, gaussian_mu(2.0, 1e-5)), 9)
        2.0
    """
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(high, mu) > delta:
        high *= 2
    return _root(lambda value: gaussian_delta(value, mu) - delta, 0.0, high)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return brentq(function, low, high, xtol=1e-15)  # pyright: ignore[reportReturnType]


def remaining_mu(budget: Budget, spent: Iterable[Spent]) -> float:
    """The mu that is left for one more Gaussian mechanism on the same data.

    Gaussian mechanisms compose in squares, others by adding epsilon and delta.

    Args:
        budget: What is promised in all.
        spent: What was spent before.

    Raises:
        BudgetError: nothing is left.

    Example:
        >>> budget = Budget(1.0, 1e-5)
        >>> half = Spent("preprocessing", mu=budget.mu * 0.6)
        >>> round(remaining_mu(budget, [half]) / budget.mu, 6)
        0.8
    """
    spent = tuple(spent)
    epsilon = budget.epsilon - sum(one.epsilon for one in spent)
    delta = budget.delta - sum(one.delta for one in spent)
    squares = sum(one.mu**2 for one in spent)
    left = gaussian_mu(epsilon, delta) ** 2 - squares if epsilon > 0 and delta > 0 else 0.0
    if left <= 0:
        names = ", ".join(one.what for one in spent)
        raise BudgetError(
            f"the budget (epsilon {budget.epsilon:g}, delta {budget.delta:g}) was spent on {names}, and "
            "nothing is left for the model; promise a larger epsilon, or spend less before"
        )
    return math.sqrt(left)
