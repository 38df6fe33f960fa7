"""The audit: its bound is valid, the broken mechanism is caught, the real one never in twenty runs."""

import math

import numpy as np
import pytest
from helpers import source_of

import jaxdistill as jd
from jaxdistill.errors import InputError
from jaxdistill.privacy import mechanism
from jaxdistill.privacy.audit import audit, audit_scores
from jaxdistill.privacy.budget import Budget, Neighbours, gaussian_mu
from jaxdistill.privacy.clipping import ClippedFeatures, joint_sensitivity
from jaxdistill.ridge.moments import accumulate_moments

BUDGET = Budget(1.0, 1e-5)


def worlds(neighbours, p=4, k=2, n=6):
    """Two neighbours as far apart as the sensitivity, and the direction that tells them apart best."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, p))
    y = jd.one_hot(np.arange(n) % k, k)
    first = np.eye(1, p)
    # Replaced by a row at 120 degrees with the same class: s = 1, t = -1/2.
    second = -0.5 * first + math.sqrt(0.75) * np.eye(1, p, 1)
    row = np.eye(1, k)
    if neighbours is Neighbours.REPLACE_ONE:
        pairs = (np.r_[x, first], np.r_[y, row]), (np.r_[x, second], np.r_[y, row])
    else:
        pairs = (np.r_[x, first], np.r_[y, row]), (x, y)
    parts = (first.T @ first, first.T @ row), (second.T @ second, second.T @ row)
    other = parts[1] if neighbours is Neighbours.REPLACE_ONE else (0, 0)
    return pairs, (parts[0][0] - other[0], parts[0][1] - other[1])


def fit(data, budget):
    return mechanism.fit_private_ridge(jd.features.Linear(4), *data, budget=budget, clip=1.0)


def score(noisy, direction):
    """Released moments along the difference of the two worlds: the best that anyone can do."""
    return float(np.sum(noisy.gram * direction[0]) + np.sum(noisy.cross * direction[1]))


def attack(budget, shrink=1.0):
    """One run of the step that adds the noise, on the moments of either world, with noise shrunk."""
    pairs, direction = worlds(budget.neighbours)
    sigma, phi = fit(pairs[0], budget).noise, ClippedFeatures(jd.features.Linear(4), 1.0)
    exact = [accumulate_moments(phi, source_of(*pair), dtype=np.float64) for pair in pairs]

    def run(there):
        return score(mechanism._release(exact[not there], sigma * shrink, budget.neighbours), direction)

    return run


@pytest.mark.parametrize("neighbours", Neighbours)
def test_the_neighbours_of_the_audit_are_as_far_apart_as_any(neighbours):
    _, (gram, cross) = worlds(neighbours)
    assert math.hypot(np.linalg.norm(gram), np.linalg.norm(cross)) == pytest.approx(
        joint_sensitivity(neighbours)
    )


@pytest.mark.parametrize("neighbours", Neighbours)
def test_the_real_mechanism_is_never_caught_and_noise_too_small_by_ten_always(neighbours):
    budget = Budget(1.0, 1e-5, neighbours)
    real, broken = attack(budget), attack(budget, shrink=0.1)
    assert not any(audit(real, trials=300, delta=1e-5).contradicts(budget.epsilon) for _ in range(20))
    assert all(audit(broken, trials=300, delta=1e-5).contradicts(budget.epsilon) for _ in range(5))


@pytest.mark.long
def test_a_broken_generator_is_caught_through_the_whole_mechanism(monkeypatch):
    normal, symmetric = mechanism.secure_normal, mechanism.symmetric_noise
    monkeypatch.setattr(mechanism, "secure_normal", lambda *shape: normal(*shape) / 10)
    monkeypatch.setattr(mechanism, "symmetric_noise", lambda size: symmetric(size) / 10)
    pairs, direction = worlds(BUDGET.neighbours)
    # Enough that chance does not hide what is 2.7 standard deviations apart: nobody can seed this noise.
    found = audit(lambda there: score(fit(pairs[not there], BUDGET).noisy, direction), trials=500, delta=1e-5)
    assert found.contradicts(BUDGET.epsilon) and found.confidence == 0.95


def test_nor_is_its_law_in_twenty_long_ones():
    """What the mechanism's scores are, drawn directly: mu apart, as many as an attacker could wish."""
    rng, mu = np.random.default_rng(0), gaussian_mu(BUDGET.epsilon, BUDGET.delta)
    found = [
        audit_scores(*(rng.standard_normal((2, 5000)) + np.array([[mu], [0]])), delta=1e-5).epsilon
        for _ in range(20)
    ]
    assert 0 < max(found) <= BUDGET.epsilon


@pytest.mark.parametrize("sign", (1, -1))
def test_the_bound_is_true_and_not_empty(sign):
    """Randomised response: present answers yes with probability 3/4, absent with 1/4, so epsilon is log 3."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(40):
        present, absent = (rng.random(2000) < share for share in (0.75, 0.25))
        held.append(audit_scores(sign * present, sign * absent, delta=0.0).epsilon)
    assert np.mean(np.array(held) <= math.log(3)) >= 0.95 and np.mean(held) > 0.8


def test_runs_and_numbers_are_checked():
    with pytest.raises(InputError, match="run each world 4 times or more"):
        audit_scores(np.ones(3), np.ones(9), delta=0.0)
    with pytest.raises(InputError, match="delta=1 must lie"):
        audit_scores(np.ones(8), np.ones(8), delta=1.0)
