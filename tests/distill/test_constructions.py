"""Labels, reduced rank and realistic sets: theorems and optimality, against brute force."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.distill.exact import inverse_features, retrain
from jaxdistill.distill.labels import self_conditioning_penalty, soft_labels, weighted_labels
from jaxdistill.distill.realistic import nearest_inverse, nearest_spanning
from jaxdistill.distill.reduced_rank import reduce_rank

seeds = st.integers(0, 2**31)
soft_64, weighted_64, retrain_64 = compiled(soft_labels), compiled(weighted_labels), compiled(retrain)
nearest_64, inverse_64, penalty_64 = map(
    compiled, (nearest_inverse, inverse_features, self_conditioning_penalty)
)
spanning_64, reduce_64 = compiled(nearest_spanning, static=2), compiled(reduce_rank, static=2)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def features_of_condition(rng, m, p, condition):
    left, right = (np.linalg.qr(rng.standard_normal(s))[0] for s in ((m, m), (p, m)))
    return left * np.logspace(0, -np.log10(condition), m) @ right.T


@given(seeds, st.sampled_from([(4, 9, 3), (7, 7, 2), (12, 6, 3)]), st.sampled_from([0.0, 1e-3, 1.0, 1e4]))
def test_soft_labels_are_exact_for_every_penalty(seed, size, lam):
    m, p, k = size
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((m, p))
    weights = features.T @ rng.standard_normal((m, k))
    again = retrain_64(features, soft_64(features, weights, lam), lam)
    s = np.linalg.svd(features, compute_uv=False)
    assert relative(again, weights) < 1e-14 * p * (s[0] / s[-1]) ** 2


@given(seeds)
def test_label_distillation_is_the_projection_on_the_row_space(seed):
    rng = np.random.default_rng(seed)
    features, weights = rng.standard_normal((4, 9)), rng.standard_normal((9, 3))
    again = retrain_64(features, soft_64(features, weights, 0.5), 0.5)
    np.testing.assert_allclose(again, np.linalg.pinv(features) @ features @ weights, atol=1e-9)


@pytest.mark.parametrize("condition", [10.0, 1e3, 1e5])
def test_self_conditioning_makes_float32_retraining_immune(condition):
    rng = np.random.default_rng(0)
    narrow = features_of_condition(rng, 10, 40, condition).astype(np.float32)
    exact = narrow.astype(np.float64)
    weights = exact.T @ rng.standard_normal((10, 3))
    lam = float(penalty_64(exact))
    labels = soft_64(exact, weights, lam).astype(np.float32)
    # Phis Phis^T + lam I has a condition number below m + 1, whatever that of Phis is.
    bound = 11 * 4 * np.finfo(np.float32).eps
    again = retrain(jnp.asarray(narrow), jnp.asarray(labels), np.float32(lam).item())
    assert relative(np.asarray(again), weights) < bound


@given(seeds)
def test_weighted_labels_predict_the_data_best(seed):
    rng = np.random.default_rng(seed)
    data, features, weights = (rng.standard_normal(s) for s in ((30, 8), (3, 8), (8, 2)))
    gram = data.T @ data
    labels = weighted_64(features, weights, gram, 0.7)
    again = retrain_64(features, labels, 0.7)
    best = features.T @ np.linalg.lstsq(data @ features.T, data @ weights, rcond=None)[0]
    np.testing.assert_allclose(data @ again, data @ best, atol=1e-8)


@given(seeds, st.integers(1, 4))
def test_reduced_rank_is_the_best_of_its_rank(seed, rank):
    rng = np.random.default_rng(seed)
    data, weights = rng.standard_normal((40, 7)), rng.standard_normal((7, 4))
    reduced, rows, lost = reduce_64(weights, data.T @ data, rank)
    predictions = data @ weights
    u, s, vt = np.linalg.svd(predictions, full_matrices=False)
    s[rank:] = 0  # Eckart and Young: nothing of this rank is nearer
    np.testing.assert_allclose(data @ reduced, u * s @ vt, atol=1e-9)
    assert rows.shape == (rank, 4)
    expected = np.sum((predictions - data @ reduced) ** 2) / np.sum(predictions**2)
    np.testing.assert_allclose(lost, expected, atol=1e-12)


@given(seeds, st.sampled_from([0.0, 0.3]))
def test_corollary_411_is_admissible_and_nearest(seed, lam):
    rng = np.random.default_rng(seed)
    weights, labels, features = (rng.standard_normal(s) for s in ((9, 3), (5, 3), (5, 9)))
    d = nearest_64(weights, labels, features, lam)
    np.testing.assert_allclose(labels.T @ d, weights.T, atol=1e-10)
    gram = features @ features.T + lam * np.eye(5)
    target = np.linalg.solve(gram, features)
    other = inverse_64(weights, labels, rng.standard_normal((5, 9)))
    assert np.linalg.norm(d - target) <= np.linalg.norm(other - target) + 1e-12
    # Normal equations of the constrained problem: the change stays in the range of the labels.
    outside = np.eye(5) - labels @ np.linalg.pinv(labels)
    np.testing.assert_allclose(outside @ (d - target), 0, atol=1e-9)


@given(seeds)
def test_nearest_spanning_set_spans_and_its_change_tends_to_the_smallest_singular_values(seed):
    rng = np.random.default_rng(seed)
    features, weights = rng.standard_normal((8, 20)), rng.standard_normal((20, 3))
    for sharpness, slack in ((10.0, 1.2), (1e4, 1.0001)):
        near = spanning_64(weights, features, 3, sharpness)
        inside = np.linalg.pinv(near) @ near @ weights
        assert relative(inside, weights) < 1e-15 * 1e5 * sharpness
        smallest = np.sqrt(np.sum(np.linalg.svd(features, compute_uv=False)[-3:] ** 2))
        assert np.linalg.norm(near - features) <= slack * smallest


def test_more_real_rows_than_features_need_no_change():
    rng = np.random.default_rng(1)
    features = rng.standard_normal((9, 6))
    near = spanning_64(rng.standard_normal((6, 2)), features, 2)
    np.testing.assert_array_equal(near, features)
