"""Rates of attacks against scikit-learn, and intervals that hold what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import roc_auc_score, roc_curve

from jaxdistill.errors import InputError
from jaxdistill.privacy.rates import area_under_curve, clopper_pearson, hits_at, score_attack

scores = st.lists(st.integers(-5, 5), min_size=2, max_size=30).map(lambda v: np.array(v, np.float64))


@given(scores, scores)
def test_the_area_is_that_of_scikit_learn(members, others):
    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    expected = roc_auc_score(truth, np.r_[members, others])
    assert area_under_curve(members, others).value == pytest.approx(expected)


@given(scores, scores, st.sampled_from((0.0, 0.01, 0.1, 0.5)))
def test_hits_are_those_of_the_curve(members, others, rate):
    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    false, true, _ = roc_curve(truth, np.r_[members, others], drop_intermediate=False)
    assert hits_at(members, others, rate).value == pytest.approx(true[false <= rate].max())


@pytest.mark.parametrize("share", (0.01, 0.3, 0.9))
def test_the_interval_of_a_share_holds_it(share):
    hits = np.arange(51)
    held = [low <= share <= high for low, high in (clopper_pearson(int(h), 50) for h in hits)]
    assert np.sum(binom.pmf(hits, 50, share) * held) >= 0.95


def test_the_interval_of_the_area_holds_it():
    rng = np.random.default_rng(0)
    found = [area_under_curve(rng.standard_normal(150) + 1, rng.standard_normal(150)) for _ in range(300)]
    truth = 0.7602499389065233  # N(1 / sqrt 2)
    assert 0.9 < np.mean([one.low <= truth <= one.high for one in found]) < 0.99


def test_scores_are_numbers():
    with pytest.raises(InputError, match="scores of others"):
        score_attack(np.ones(3), np.array([]))
    with pytest.raises(InputError, match="scores of members"):
        score_attack(np.array([np.nan]), np.ones(3))
