"""CHW Theorems 4.1 and 5.1 as properties, with tolerances from eps and conditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.distill.exact import InverseFactors, exact_features, inverse_features, retrain
from jaxdistill.numerics.linalg import in_float64

sizes = st.sampled_from([(3, 2, 2), (6, 3, 3), (8, 3, 7), (5, 2, 9), (12, 4, 6)])  # p, k, m
seeds = st.integers(0, 2**31)
exact_64, retrain_64, inverse_64 = compiled(exact_features), compiled(retrain), compiled(inverse_features)
factors_64 = compiled(lambda *a: InverseFactors.of(inverse_features(*a)))
features_64 = compiled(InverseFactors.features)
exponents = st.floats(0, 4)


def draw(seed, size, exponent):
    """Weights of condition number 10^exponent, labels of rank k, and a free part of their size."""
    p, k, m = size
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal(s))[0] for s in ((p, k), (k, k)))
    weights = left * np.logspace(0, -exponent, k) @ right
    labels = np.linalg.qr(rng.standard_normal((m, k)))[0] @ np.linalg.qr(rng.standard_normal((k, k)))[0]
    return weights, labels, 0.3 * rng.standard_normal((m, p))


def tolerance(features, dtype=np.float64):
    s = np.linalg.svd(features, compute_uv=False)
    s = s[s > s[0] * 1e-12]
    return 200 * max(features.shape) * np.finfo(dtype).eps * s[0] / s[-1]


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@given(seeds, sizes, exponents, st.floats(0, 1))
def test_retraining_returns_the_weights_for_every_admissible_penalty(seed, size, exponent, share):
    weights, labels, free = draw(seed, size, exponent)
    factors = factors_64(weights, labels, free)
    lam = share * 0.25 / factors.values.max() ** 2
    features = exact_64(weights, labels, free, lam)
    assert relative(retrain_64(features, labels, lam), weights) < tolerance(features)


@given(seeds, sizes, st.floats(0, 2), st.floats(0.05, 0.95))
def test_either_root_per_singular_value_trains_to_the_same_weights(seed, size, exponent, share):
    weights, labels, free = draw(seed, size, exponent)
    factors = factors_64(weights, labels, free)
    lam = share * 0.25 / factors.values.max() ** 2
    larger = np.random.default_rng(seed).random(len(factors.values)) < 0.5
    features = exact_64(weights, labels, free, lam, larger)
    # The smaller root leaves features of size lam s' beside those of 1/s'.
    assert relative(retrain_64(features, labels, lam), weights) < tolerance(features)


@given(seeds, sizes, st.floats(0, 2))
def test_the_largest_penalty_is_the_boundary(seed, size, exponent):
    factors = factors_64(*draw(seed, size, exponent))
    limit = 0.25 / factors.values.max() ** 2
    assert np.isfinite(features_64(factors, limit)).all()
    assert np.isnan(features_64(factors, limit * (1 + 1e-9))).any()


@given(seeds, sizes, st.floats(0, 2), st.floats(0.01, 100), st.floats(0, 1))
def test_scaling_features_labels_and_penalty_together_changes_nothing(seed, size, exponent, c, share):
    weights, labels, free = draw(seed, size, exponent)
    factors = factors_64(weights, labels, free)
    lam = share * 0.25 / factors.values.max() ** 2
    features = features_64(factors, lam)
    again = retrain_64(c * features, c * labels, c * c * lam)
    assert relative(again, weights) < tolerance(features)


@given(seeds, sizes, st.floats(0, 2))
def test_every_inverse_reproduces_the_weights_through_the_labels(seed, size, exponent):
    weights, labels, free = draw(seed, size, exponent)
    d = inverse_64(weights, labels, free)
    np.testing.assert_allclose(labels.T @ d, weights.T, atol=1e-12)


def test_one_point_per_class_and_k_minus_one_for_centred_labels():
    weights, _, _ = draw(3, (8, 4, 4), 1)
    weights = weights - weights.mean(axis=1, keepdims=True)
    labels = (np.eye(4) - 0.25)[:3]
    features = exact_64(weights, labels)
    assert relative(retrain_64(features, labels, 0.0), weights) < tolerance(features)


@pytest.mark.parametrize("x64", [False, True])
def test_cores_compose_with_jit_and_vmap_in_both_precisions(x64):
    weights, labels, free = draw(1, (8, 3, 6), 1)
    with jax.enable_x64(x64):
        dtype = jnp.zeros(()).dtype
        b, y, z = (jnp.asarray(a, dtype) for a in (weights, labels, free))
        sets = jax.jit(jax.vmap(lambda z: exact_features(b, y, z)))(jnp.stack([z, 2 * z]))
        again = jax.jit(jax.vmap(lambda f: retrain(f, y, 0.0)))(sets)
        assert sets.dtype == dtype
        assert float(jnp.max(jnp.abs(again - b))) < 50 * tolerance(np.asarray(sets[1]), dtype)


def test_gradients_equal_finite_differences():
    weights, labels, free = draw(2, (6, 3, 5), 1)

    @jax.jit
    def loss(b, z):
        features = exact_features(b, jnp.asarray(labels), z, 0.01)
        return jnp.sum(jnp.sin(features))

    with jax.enable_x64(True):
        b, z = jnp.asarray(weights), jnp.asarray(free)
        for argument, direction in ((0, np.cos(weights)), (1, np.cos(free))):
            g = jax.jit(jax.grad(loss, argnums=argument))(b, z)
            step = 1e-6 * jnp.asarray(direction)
            plus, minus = ([b + s * step, z] if argument == 0 else [b, z + s * step] for s in (1, -1))
            numeric = (loss(*plus) - loss(*minus)) / 2e-6
            np.testing.assert_allclose(float(jnp.sum(g * direction)), float(numeric), rtol=1e-5)


def test_a_literal_zero_free_part_is_not_needed_under_jit():
    weights, labels, _ = draw(4, (6, 3, 5), 0)
    with jax.enable_x64(True):
        under_jit = jax.jit(exact_features)(jnp.asarray(weights), jnp.asarray(labels))
    np.testing.assert_allclose(under_jit, in_float64(exact_features, weights, labels), atol=1e-10)
