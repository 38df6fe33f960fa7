"""The choice of lam: its law, its promise on neighbours, its price, and what it is worth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill.errors import BudgetError
from jaxdistill.privacy import mechanism, tuning
from jaxdistill.privacy.budget import Budget, Neighbours, Spent
from jaxdistill.privacy.clipping import joint_sensitivity
from jaxdistill.privacy.mechanism import fit_private_ridge
from jaxdistill.privacy.spectrum import blind_penalty


def law(scores, epsilon, neighbours):
    """Probabilities of the exponential mechanism, from its definition."""
    rate = epsilon if neighbours is Neighbours.ADD_OR_REMOVE else epsilon / 2
    powers = np.exp(rate * (np.asarray(scores) - np.max(scores)))
    return powers / powers.sum()


@pytest.mark.parametrize("neighbours", Neighbours)
def test_candidates_are_drawn_by_the_law_of_the_exponential_mechanism(neighbours):
    scores, epsilon, runs = [3.0, 5.0, 4.0, 0.0], 0.8, 4000
    drawn = [tuning.exponential_choice(scores, epsilon, neighbours) for _ in range(runs)]
    shares = np.bincount(drawn, minlength=4) / runs
    expected = law(scores, epsilon, neighbours)
    assert np.all(np.abs(shares - expected) < 5 * np.sqrt(expected / runs))


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6),
    st.floats(0.01, 5),
)
def test_neighbours_are_within_the_price(rows, epsilon):
    """Any scores; one example adds numbers in [0, 1] to all, or takes others away beside it."""
    base, first, second = np.array(rows).T
    for neighbours, other in ((Neighbours.ADD_OR_REMOVE, base), (Neighbours.REPLACE_ONE, base + second)):
        ratio = np.log(law(base + first, epsilon, neighbours) / law(other, epsilon, neighbours))
        assert np.max(np.abs(ratio)) <= epsilon * (1 + 1e-9)


@pytest.mark.parametrize("classes", (True, False))
def test_an_example_counts_between_nothing_and_one(classes):
    rng = np.random.default_rng(0)
    x, y, weights = (
        rng.standard_normal((30, 4)),
        np.eye(3)[rng.integers(3, size=30)],
        rng.standard_normal((5, 4, 3)),
    )
    found = tuning.score_weights(jd.features.Linear(4), x, y, weights, classes=classes)
    outputs = [x @ one for one in weights]
    right = [np.sum(f.argmax(1) == y.argmax(1)) for f in outputs]
    near = [np.sum(np.maximum(0, 1 - np.sum((y - f) ** 2, axis=1))) for f in outputs]
    np.testing.assert_allclose(found, right if classes else near, rtol=1e-12)
    one = tuning.score_weights(jd.features.Linear(4), x[:1], y[:1], weights, classes=classes)
    assert one.min() >= 0 and one.max() <= 1


def test_the_choice_is_paid_out_of_the_budget(problem, maps):
    budget = Budget(2.0, 1e-5)
    found = fit_private_ridge(
        maps["linear"], problem["x"], problem["y"], budget=budget, clip=1.0, lam="tuned"
    )
    sigma = joint_sensitivity(budget.neighbours) / Budget(1.8, 1e-5).mu
    assert found.noise == pytest.approx(sigma, rel=1e-9)
    assert found.statement["spent"] == [
        {"what": "lam", "epsilon": pytest.approx(0.2), "delta": 0.0, "mu": 0.0}
    ]
    factor = found.model.lam / blind_penalty(found.noise, 12)
    assert np.isclose(tuning.FACTORS, factor).sum() == 1
    with pytest.raises(BudgetError, match="spent on encoder, lam, and nothing is left"):
        fit_private_ridge(
            maps["linear"],
            problem["x"],
            problem["y"],
            budget=budget,
            clip=1.0,
            lam="tuned",
            spent=[Spent("encoder", epsilon=1.9)],
        )


@pytest.mark.parametrize("kind", ("classes", "real"))
def test_the_best_candidate_is_drawn_where_the_data_say_so(monkeypatch, kind):
    """Weak signal that only the smallest penalty keeps: drawn nearly always, by the data that were fitted."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40_000, 3)) @ np.diag([1.0, 0.02, 0.02])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = jd.one_hot(np.int64(x[:, 1] > 0), 2) if kind == "classes" else x[:, 1:2]
    told = {} if kind == "classes" else {"target_clip": 1.0}
    seen = []
    # Numbers in the middle of the distribution: noise of zero.
    monkeypatch.setattr("secrets.token_bytes", lambda number: bytes([0] * 7 + [128]) * (number // 8))
    monkeypatch.setattr(mechanism, "exponential_choice", lambda s, e, n: seen.append(s) or int(np.argmax(s)))
    found = fit_private_ridge(
        jd.features.Linear(3), x, y, budget=Budget(50.0, 1e-5), clip=1.0, lam="tuned", spectrum="clip", **told
    )
    blind = blind_penalty(found.noise, 3)
    best = min(tuning.FACTORS, key=lambda f: _loss(found.noisy, blind * f, x, y, kind))
    assert found.model.lam == pytest.approx(blind * best) and np.all(np.diff(seen[0]) <= 0)


def _loss(noisy, lam, x, y, kind):
    weights = np.linalg.solve(noisy.gram + lam * np.eye(3), noisy.cross)
    outputs = x @ weights
    if kind == "classes":
        return np.mean(outputs.argmax(1) != y.argmax(1))
    return np.mean((outputs - y) ** 2)
