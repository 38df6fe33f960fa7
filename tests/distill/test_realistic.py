"""Sets near real examples, and centred labels: exactness, minimality, limits."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import compiled, of_condition, relative, rounding
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxdistill.distill.exact import InverseFactors, inverse_features, retrain
from jaxdistill.distill.labels import soft_labels
from jaxdistill.distill.realistic import nearest_inverse, nearest_spanning
from jaxdistill.distill.reduced_rank import principal_outputs, reduce_rank

seeds = st.integers(0, 2**31)
spanning_64 = compiled(nearest_spanning, static=2)
inverse_64, nearest_64 = compiled(inverse_features), compiled(nearest_inverse)
soft_64, retrain_64 = compiled(soft_labels), compiled(retrain)
set_of_64 = compiled(lambda d, lam: InverseFactors.of(d).features(lam))
reduce_64, outputs_64 = compiled(reduce_rank, static=2), compiled(principal_outputs)


@given(seeds, st.sampled_from([0.0, 1e-3, 10.0]), st.sampled_from([1.0, 10.0]))
def test_the_nearest_spanning_set_trains_to_the_weights_for_every_penalty(seed, lam, sharpness):
    rng = np.random.default_rng(seed)
    features, weights = rng.standard_normal((8, 20)), of_condition(rng, 20, 3, 10.0)
    near = spanning_64(weights, features, 3, sharpness)
    assert near.shape == features.shape
    found = retrain_64(near, soft_64(near, weights, lam), lam)
    assert relative(found, weights) < rounding(near, near)


@given(seeds, st.integers(1, 3))
def test_its_change_tends_to_the_smallest_singular_values_from_above_for_weights_of_any_rank(seed, rank):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((8, 20))
    weights = rng.standard_normal((20, rank)) @ rng.standard_normal((rank, 3))
    limit = np.sqrt(np.sum(np.linalg.svd(features, compute_uv=False)[8 - rank :] ** 2))
    excess = []
    for sharpness in (10.0, 100.0, 1000.0):
        near = spanning_64(weights, features, rank, sharpness)
        excess.append(np.linalg.norm(near - features) / limit - 1)
        inside = np.linalg.pinv(near) @ near @ weights
        assert relative(inside, weights) < rounding(near) * sharpness
    # |Q/c - Phi^T M| is within 1/c of its limit in relative terms, sqrt(rank) for the columns of Q.
    for value, sharpness in zip(excess, (10.0, 100.0, 1000.0), strict=True):
        assert abs(value) <= np.sqrt(rank) / sharpness + 1e-9


@given(seeds)
def test_no_other_admissible_inverse_is_nearer(seed):
    rng = np.random.default_rng(seed)
    weights, labels, features = (rng.standard_normal(s) for s in ((9, 3), (5, 3), (5, 9)))
    ideal = np.linalg.pinv(features).T
    near = np.linalg.norm(nearest_64(weights, labels, features, 0.0) - ideal)
    others = [inverse_64(weights, labels, ideal + s * rng.standard_normal((5, 9))) for s in (1e-3, 0.1, 10.0)]
    for other in others:
        np.testing.assert_allclose(labels.T @ other, weights.T, rtol=0, atol=1e-9)  # admissible too
        assert np.linalg.norm(other - ideal) > near


@given(seeds, st.sampled_from([0.0, 0.01]))
def test_corollary_411_keeps_real_examples_whose_labels_fit_already(seed, lam):
    rng = np.random.default_rng(seed)
    # Of all roots the larger is theirs where every s^2 >= lam.
    features = of_condition(rng, 5, 9, 5.0)
    weights = features.T @ np.linalg.solve(features @ features.T + lam * np.eye(5), np.eye(5)[:, :3])
    near = set_of_64(nearest_64(weights, np.eye(5)[:, :3], features, lam), lam)
    # At lam > 0 the map from s' back to s has the slope (s^2 + lam)^2 / (s^2 - lam).
    assert relative(near, features) < rounding(features, features)


@given(seeds, st.sampled_from([0.0, 0.01]))
def test_corollary_411_with_labels_of_its_own_is_exact(seed, lam):
    rng = np.random.default_rng(seed)
    features, weights = of_condition(rng, 5, 9, 5.0), 0.1 * of_condition(rng, 9, 3, 3.0)
    labels = features @ weights
    d = nearest_64(weights, labels, features, lam)
    largest = 0.25 / np.linalg.norm(d, 2) ** 2
    near = set_of_64(d, min(lam, largest))
    assert relative(retrain_64(near, labels, min(lam, largest)), weights) < rounding(near, labels, near)


@given(seeds, st.sampled_from([2, 3, 5]))
def test_centred_labels_train_to_centred_weights_from_one_point_fewer_than_classes(seed, k):
    rng = np.random.default_rng(seed)
    weights = of_condition(rng, 9, k, 4.0)
    weights = weights - weights.mean(axis=1, keepdims=True)
    labels = (np.eye(k) - 1 / k)[: k - 1]
    near = set_of_64(inverse_64(weights, labels), 0.0)
    assert len(near) == k - 1
    assert relative(retrain_64(near, labels, 0.0), weights) < rounding(near, labels)


@given(seeds, st.integers(1, 3))
def test_the_lost_share_and_rows_of_the_reduced_model(seed, rank):
    rng = np.random.default_rng(seed)
    data, weights = rng.standard_normal((40, 7)) * np.geomspace(1, 0.1, 7), rng.standard_normal((7, 4))
    reduced, rows, lost = reduce_64(weights, data.T @ data, rank)
    s = np.linalg.svd(data @ weights, compute_uv=False)
    np.testing.assert_allclose(lost, np.sum(s[rank:] ** 2) / np.sum(s**2), rtol=1e-9)
    np.testing.assert_allclose(rows @ rows.T, np.eye(rank), atol=1e-13)
    np.testing.assert_allclose(reduced @ rows.T @ rows, reduced, atol=1e-12)
    assert np.linalg.matrix_rank(reduced) == rank
    energies, _ = outputs_64(weights, data.T @ data)
    np.testing.assert_allclose(energies, s**2, rtol=1e-9)


def test_a_reduced_model_of_full_rank_is_the_model_and_loses_nothing():
    rng = np.random.default_rng(0)
    weights, data = rng.standard_normal((7, 3)), rng.standard_normal((20, 7))
    reduced, _, lost = reduce_64(weights, data.T @ data, 3)
    np.testing.assert_allclose(reduced, weights, atol=1e-13)
    assert lost == 0


def test_real_sets_have_the_derivatives_of_finite_differences_and_compose_with_vmap():
    rng = np.random.default_rng(5)
    features, weights = of_condition(rng, 3, 6, 3.0), of_condition(rng, 6, 2, 2.0)
    with jax.enable_x64(True):
        f, b = jnp.asarray(features), jnp.asarray(weights)
        near = jax.jit(lambda b, f: nearest_spanning(b, f, 2, 2.0))
        # The basis of the weights may turn; the set may not: only differences of the set are compared.
        check_grads(near, (b, f), order=1, modes=("fwd", "rev"), rtol=1e-4)
        both = jax.vmap(near, (None, 0))(b, jnp.stack([f, 2 * f]))
        np.testing.assert_allclose(both[1], near(b, 2 * f), rtol=0, atol=1e-12)
        corollary = jax.jit(lambda f: nearest_inverse(b, f @ b, f, 0.01))
        check_grads(corollary, (f,), order=1, modes=("fwd", "rev"), rtol=1e-4)
