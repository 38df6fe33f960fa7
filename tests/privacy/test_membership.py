"""Closed forms of membership attacks against refits, one by one."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from jaxdistill.errors import InputError
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.privacy.membership import _shadow, influence, likelihood_ratios

KEY = jax.random.key(0)


def refit(phi, y, lam):
    return Ridge(alpha=lam, fit_intercept=False).fit(phi, y).coef_.reshape(y.shape[1], -1).T


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((24, 7)), rng.standard_normal((24, 2))


def test_influence_is_what_leaving_out_changes(data):
    phi, y = data
    full, found = refit(phi, y, 0.5), influence(phi, y, 0.5)
    for i in range(24):
        rest = refit(np.delete(phi, i, 0), np.delete(y, i, 0), 0.5)
        assert found.weights[i] == pytest.approx(np.linalg.norm(full - rest), rel=1e-9)
        assert found.prediction[i] == pytest.approx(np.linalg.norm(phi[i] @ (full - rest)), rel=1e-9)


def test_a_shadow_answers_for_every_example_in_and_out(data):
    phi, y = data
    chosen = np.arange(24) % 2 == 0
    inside, outside = in_float64(_shadow, phi, y, chosen.astype(float), 0.5)
    for i in range(24):
        with_it, without = chosen.copy(), chosen.copy()
        with_it[i], without[i] = True, False
        np.testing.assert_allclose(inside[i], phi[i] @ refit(phi[with_it], y[with_it], 0.5), rtol=1e-9)
        np.testing.assert_allclose(outside[i], phi[i] @ refit(phi[without], y[without], 0.5), rtol=1e-9)


def test_the_attack_finds_what_a_model_remembers_and_nothing_in_a_model_of_other_data():
    rng = np.random.default_rng(1)
    phi, y = rng.standard_normal((200, 60)), rng.standard_normal((200, 2))
    member = np.arange(200) < 100
    for trained, finds in ((member, True), (~member, False)):
        outputs = phi @ refit(phi[trained], y[trained], 1.0)
        scores = likelihood_ratios(phi, y, outputs, lam=1.0, num_train=100, key=KEY)
        assert (np.mean(scores[member]) > np.mean(scores[~member]) + 1) == finds
    other = rng.standard_normal((100, 60)), rng.standard_normal((100, 2))
    scores = likelihood_ratios(phi, y, phi @ refit(*other, 1.0), lam=1.0, num_train=100, key=KEY)
    order = np.argsort(np.argsort(scores))
    assert abs(order[member].mean() - order[~member].mean()) < 25


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shadows": 1}, "shadows is 1"),
        ({"num_train": 25}, "at most the 24 candidates"),
        ({"lam": 0.0}, "need a positive penalty"),
        ({"outputs": np.ones((24, 3))}, r"outputs have shape \(24, 3\), expected \(24, 2\)"),
        ({"y": np.ones((5, 2))}, "features have shape"),
    ],
)
def test_what_makes_no_sense_is_refused(data, changes, told):
    request = {"features": data[0], "y": data[1], "outputs": data[1], "lam": 1.0, "num_train": 12, "key": KEY}
    with pytest.raises(InputError, match=told):
        likelihood_ratios(**(request | changes))
