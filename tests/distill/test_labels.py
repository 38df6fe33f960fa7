"""Soft, self-conditioned and weighted labels: what the theorems say of rounding and of optimality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS, compiled, condition, of_condition, relative, rounding
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxdistill.distill.exact import retrain
from jaxdistill.distill.labels import (
    labels_of_coefficients,
    self_conditioning_penalty,
    soft_labels,
    weighted_labels,
)

seeds = st.integers(0, 2**31)
soft_64, retrain_64 = compiled(soft_labels), compiled(retrain)
weighted_64, coefficients_64 = compiled(weighted_labels), compiled(labels_of_coefficients)
retrain_32 = jax.jit(retrain)


def float32_drift(number, self_conditioned, seed, balanced=True):
    """Relative error of a retraining wholly in float32, and |Phis| |a| / |B|, the weight of the labels.

    Balanced weights are a combination of all rows, B = Phis^T a with a of order one; others lean on the
    weak directions of the set as much as on the strong ones, with coefficients as large as its condition.
    """
    rng = np.random.default_rng(seed)
    stored = of_condition(rng, 10, 40, number).astype(np.float32)
    features = stored.astype(np.float64)
    coefficients = rng.standard_normal((10, 3))
    if not balanced:
        coefficients = np.linalg.lstsq(features.T, rng.standard_normal((40, 3)), rcond=None)[0]
    weights = features.T @ coefficients
    lam = float(self_conditioning_penalty(jnp.asarray(stored))) if self_conditioned else 0.0
    labels = soft_64(features, weights, lam).astype(np.float32)
    again = np.asarray(retrain_32(jnp.asarray(stored), jnp.asarray(labels), lam))
    size = np.linalg.norm(features, 2) * np.linalg.norm(coefficients) / np.linalg.norm(weights)
    return relative(again, weights), size


@pytest.mark.parametrize("number", [10.0, 1e3, 1e5])
def test_self_conditioning_makes_float32_immune_where_no_penalty_drifts(number):
    immune = [float32_drift(number, True, seed)[0] for seed in range(4)]
    drifting = [float32_drift(number, False, seed)[0] for seed in range(4)]
    assert max(immune) < 11 * EPS[np.float32]  # cond(Phis Phis^T + lam I) <= m + 1 = 11
    if number > 10:
        assert min(drifting) > 10 * max(immune)
        assert min(drifting) > EPS[np.float32] * number / 100  # in proportion to the condition number


@pytest.mark.parametrize("number", [10.0, 1e3, 1e5])
def test_what_is_left_of_rounding_is_the_size_of_the_coefficients(number):
    for seed in range(4):
        drift, size = float32_drift(number, True, seed, balanced=False)
        assert drift < 11 * EPS[np.float32] * size


@given(seeds, st.sampled_from([1.0, 1e2, 1e5]))
def test_the_self_conditioned_system_has_a_condition_number_below_m_plus_one(seed, number):
    features = of_condition(np.random.default_rng(seed), 6, 9, number)
    lam = float(compiled(self_conditioning_penalty)(features))
    assert condition(features @ features.T + lam * np.eye(6)) <= 7 * (1 + 1e-12)


@given(seeds, st.sampled_from([(6, 4), (9, 4), (4, 4)]), st.sampled_from([0.0, 0.1, 1e3]))
def test_with_m_at_least_p_every_weight_matrix_is_reached(seed, size, lam):
    rng = np.random.default_rng(seed)
    features, weights = of_condition(rng, *size, 30.0), rng.standard_normal((4, 3))
    found = retrain_64(features, soft_64(features, weights, lam), lam)
    assert relative(found, weights) < rounding(features, features)


@given(seeds, st.sampled_from([0.0, 0.5, 1e3]))
def test_with_m_below_p_the_projection_is_reached_and_nothing_is_nearer(seed, lam):
    rng = np.random.default_rng(seed)
    features, weights = of_condition(rng, 4, 9, 30.0), rng.standard_normal((9, 3))
    found = retrain_64(features, soft_64(features, weights, lam), lam)
    assert np.linalg.norm(features @ (weights - found)) < rounding(features, features) * np.linalg.norm(
        weights
    )
    other = found + features.T @ (0.1 * rng.standard_normal((4, 3)))
    assert np.linalg.norm(weights - found) < np.linalg.norm(weights - other)


@given(seeds, st.sampled_from([0.0, 0.7]))
def test_no_other_labels_predict_the_data_better_than_weighted_ones(seed, lam):
    rng = np.random.default_rng(seed)
    data, features, weights = (rng.standard_normal(s) for s in ((30, 8), (3, 8), (8, 2)))
    data *= np.geomspace(1, 0.01, 8)  # far from white, or weighting would change nothing
    labels = weighted_64(features, weights, data.T @ data, lam)

    def loss(labels):
        return np.sum((data @ (weights - retrain_64(features, labels, lam))) ** 2)

    best, plain = loss(labels), loss(soft_64(features, weights, lam))
    assert best <= plain * (1 + 1e-9)
    for scale in (1e-3, 1e-1, 10.0):
        step = scale * np.linalg.norm(labels) * rng.standard_normal(labels.shape)
        assert loss(labels + step) > best
        assert loss(labels - step) > best


def test_weighted_labels_are_exact_where_soft_ones_are():
    rng = np.random.default_rng(0)
    data, features = rng.standard_normal((40, 5)), of_condition(rng, 7, 5, 10.0)
    weights = rng.standard_normal((5, 2))
    labels = weighted_64(features, weights, data.T @ data, 0.2)
    assert relative(retrain_64(features, labels, 0.2), weights) < rounding(features, features, data, data)


@given(seeds, st.sampled_from([0.0, 1.0]))
def test_labels_of_coefficients_train_to_that_combination_of_the_rows(seed, lam):
    rng = np.random.default_rng(seed)
    features, coefficients = of_condition(rng, 4, 9, 10.0), rng.standard_normal((4, 3))
    found = retrain_64(features, coefficients_64(features, coefficients, lam), lam)
    assert relative(found, features.T @ coefficients) < rounding(features, features)


@pytest.mark.parametrize("x64", [False, True])
def test_labels_compose_with_vmap_and_have_the_derivatives_of_finite_differences(x64):
    rng = np.random.default_rng(3)
    with jax.enable_x64(x64):
        dtype = jnp.zeros(()).dtype
        features, other, weights = (
            jnp.asarray(a, dtype)
            for a in (of_condition(rng, 3, 5, 3.0), of_condition(rng, 3, 5, 3.0), rng.standard_normal((5, 2)))
        )
        chain = jax.jit(lambda f, b, lam: retrain(f, soft_labels(f, b, lam), lam))
        both = jax.vmap(chain, (0, None, 0))(
            jnp.stack([features, other]), weights, jnp.arange(2, dtype=dtype)
        )
        assert both.dtype == dtype
        one = np.asarray(chain(other, weights, jnp.ones((), dtype)))
        np.testing.assert_allclose(both[1], one, rtol=0, atol=1000 * jnp.finfo(dtype).eps)
        if x64:
            labels = jax.jit(lambda f, b: soft_labels(f, b, 0.3))
            check_grads(labels, (features, weights), order=1, modes=("fwd", "rev"), rtol=1e-5)
