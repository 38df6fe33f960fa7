"""Budgets against independent computations: the integral, the published algorithm, composition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import erfc
from scipy.stats import kstest, norm

from jaxdistill.errors import BudgetError, InputError
from jaxdistill.privacy.budget import (
    Budget,
    Neighbours,
    Spent,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    remaining_mu,
)
from jaxdistill.privacy.noise import secure_normal, symmetric_noise

EPSILONS = (0.1, 0.5, 1.0, 3.0, 8.0)


def balle_wang(epsilon, delta):
    """Algorithm 1 of Balle and Wang as it is printed, by bisection over v, with the error function."""

    def phi(t):
        return 0.5 * erfc(-t / math.sqrt(2))

    def b_plus(v):
        return phi(math.sqrt(epsilon * v)) - math.exp(epsilon) * phi(-math.sqrt(epsilon * (v + 2)))

    def b_minus(u):
        return phi(-math.sqrt(epsilon * u)) - math.exp(epsilon) * phi(-math.sqrt(epsilon * (u + 2)))

    start = b_plus(0)
    small = delta >= start
    low, high = 0.0, 1.0
    inside = (lambda v: b_plus(v) <= delta) if small else (lambda u: b_minus(u) > delta)
    while inside(high):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    sign = -1 if small else 1
    alpha = math.sqrt(1 + low / 2) + sign * math.sqrt(low / 2)
    return alpha / math.sqrt(2 * epsilon)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("delta", (1e-3, 1e-5, 1e-7))
def test_the_noise_is_that_of_the_published_algorithm(epsilon, delta):
    assert 1 / gaussian_mu(epsilon, delta) == pytest.approx(balle_wang(epsilon, delta), rel=1e-6)


@pytest.mark.parametrize("mu", (0.1, 0.5, 2.0))
@pytest.mark.parametrize("epsilon", (0.0, 0.3, 2.0))
def test_delta_is_the_hockey_stick_divergence(epsilon, mu):
    crossing = epsilon / mu + mu / 2  # above it the shifted density is more than e^eps times the other

    def gap(t):
        return norm.pdf(t - mu) - math.exp(epsilon) * norm.pdf(t)

    assert gaussian_delta(epsilon, mu) == pytest.approx(
        quad(gap, crossing, crossing + 40)[0], rel=1e-6, abs=1e-13
    )


@given(st.floats(0.05, 10), st.floats(1e-9, 0.1))
def test_the_promise_is_kept_and_no_noise_is_wasted(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    assert gaussian_delta(epsilon, mu) <= delta < gaussian_delta(epsilon, mu * (1 + 1e-6))
    assert gaussian_epsilon(delta, mu) == pytest.approx(epsilon, rel=1e-6)


def test_it_is_less_noise_than_the_classical_calibration():
    assert 1 / gaussian_mu(0.5, 1e-5) < math.sqrt(2 * math.log(1.25e5)) / 0.5


@given(st.floats(0.1, 5), st.floats(0.01, 0.99))
def test_gaussian_mechanisms_compose_in_squares(epsilon, share):
    budget = Budget(epsilon, 1e-5)
    first = Spent.gaussian("first", sensitivity=math.sqrt(share) * budget.mu, noise=1.0)
    left = remaining_mu(budget, [first])
    assert math.hypot(first.mu, left) == pytest.approx(budget.mu, rel=1e-9)


def test_other_mechanisms_compose_by_addition():
    left = remaining_mu(Budget(1.0, 1e-5), [Spent("encoder", epsilon=0.25, delta=4e-6)])
    assert left == pytest.approx(gaussian_mu(0.75, 6e-6), rel=1e-9)


@pytest.mark.parametrize(
    ("epsilon", "delta", "told"),
    [
        (0, 1e-5, "epsilon is 0"),
        (-1, 1e-5, "epsilon is -1"),
        (math.inf, 1e-5, "epsilon is inf"),
        (math.nan, 1e-5, "epsilon is nan"),
        ("much", 1e-5, "epsilon is 'much'"),
        (1, 0, "delta is 0"),
        (1, 1, "delta is 1"),
        (1, math.nan, "delta is nan"),
        (1, None, "delta is None"),
    ],
)
def test_numbers_out_of_range_are_refused(epsilon, delta, told):
    with pytest.raises(BudgetError, match=told):
        Budget(epsilon, delta)


@pytest.mark.parametrize(
    "spent", [Spent("a", epsilon=1.0), Spent("a", delta=1e-5), Spent("a", mu=1.0), Spent("a", epsilon=2.0)]
)
def test_a_budget_that_is_gone_is_named(spent):
    with pytest.raises(BudgetError, match="spent on a, and nothing is left"):
        remaining_mu(Budget(1.0, 1e-5), [spent])


def test_what_was_spent_is_a_number():
    with pytest.raises(BudgetError, match="epsilon spent on a is -1"):
        Spent("a", epsilon=-1)
    with pytest.raises(BudgetError, match="noise 0 spent on a"):
        Spent.gaussian("a", sensitivity=1.0, noise=0.0)


def test_neighbours_have_names():
    assert Neighbours.named("replace-one") is Neighbours.REPLACE_ONE
    with pytest.raises(InputError, match="did you mean 'replace-one'"):
        Neighbours.named("replace-on")


def test_noise_is_standard_normal_and_never_the_same():
    drawn = secure_normal(200_000)
    assert kstest(drawn, "norm").pvalue > 1e-6 and np.abs(drawn).max() < 8.3
    assert not np.any(drawn[:1000] == secure_normal(1000))


def test_noise_follows_the_entropy_of_the_system_alone(monkeypatch):
    edges = {0: -1, 255: 1}
    for byte, sign in edges.items():
        monkeypatch.setattr("secrets.token_bytes", lambda number, byte=byte: bytes([byte]) * number)
        end = secure_normal(3)
        assert np.all(np.isfinite(end)) and np.all(sign * end > 8)


def test_symmetric_noise_has_half_the_variance_beside_the_diagonal():
    noise = symmetric_noise(600)
    np.testing.assert_array_equal(noise, noise.T)
    beside = noise[np.triu_indices(600, 1)]
    assert beside.std() == pytest.approx(np.sqrt(0.5), rel=0.02)
    assert np.diag(noise).std() == pytest.approx(1.0, rel=0.25)
    # The edge of the semicircle, sqrt(2 p): what the rule for lam rests on.
    assert np.linalg.eigvalsh(noise)[-1] == pytest.approx(np.sqrt(2 * 600), rel=0.05)
