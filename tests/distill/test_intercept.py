"""Sets for models with an unpenalised intercept, judged by scikit-learn and NumPy on the set alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS, compiled, of_condition, relative, rounding
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from jaxdistill.distill.exact import (
    InverseFactors,
    exact_features,
    inverse_features,
    mean_features,
    retrain_with_intercept,
)
from jaxdistill.distill.intercept import check_label_mean
from jaxdistill.distill.labels import self_conditioning_penalty, soft_labels, weighted_labels
from jaxdistill.distill.realistic import nearest_inverse, nearest_spanning
from jaxdistill.distill.reduced_rank import reduce_rank
from jaxdistill.distill.scaling import choose_scale
from jaxdistill.errors import InverseError, PenaltyError, RankError
from jaxdistill.features import RandomFourier
from jaxdistill.numerics.contrasts import contrasts, from_contrasts

seeds = st.integers(0, 2**31)
shares = st.sampled_from([0.0, 0.3, 1.0])


def _exact(weights, intercept, labels, free, lam, near, larger):
    return exact_features(weights, labels, free, lam, larger, intercept=intercept, near=near)


def _inverse(weights, labels, free):
    return from_contrasts(inverse_features(weights, contrasts(labels), contrasts(free)))


def _nearest(weights, labels, real, share):
    wanted = contrasts(real)
    lam = share * InverseFactors.of(nearest_inverse(weights, contrasts(labels), wanted, 0.0)).largest_penalty
    factors = InverseFactors.of(nearest_inverse(weights, contrasts(labels), wanted, lam))
    lam = jnp.minimum(lam, factors.largest_penalty)
    return from_contrasts(factors.features(lam)) + jnp.mean(real, axis=0), lam


exact_64, inverse_64, retrain_64 = compiled(_exact), compiled(_inverse), compiled(retrain_with_intercept)
largest_64 = compiled(
    lambda b, y, z: InverseFactors.of(inverse_features(b, contrasts(y), contrasts(z))).largest_penalty
)
soft_64 = compiled(lambda f, w, lam, b: soft_labels(f, w, lam, intercept=b))
weighted_64 = compiled(lambda f, w, g, lam, means: weighted_labels(f, w, g, lam, means=means))
spanning_64 = compiled(lambda w, f, rank, c: nearest_spanning(w, f, rank, c, intercept=True), static=2)
mean_64, reduce_64 = compiled(mean_features), compiled(reduce_rank, static=2)
nearest_64, rows_64 = compiled(_nearest), compiled(from_contrasts)


def trained_by_others(features, labels, lam):
    """Weights and intercept from the set alone: scikit-learn, or least squares of least norm at lam = 0."""
    if lam > 0:
        oracle = Ridge(alpha=lam, solver="svd").fit(features, labels)
        return oracle.coef_.reshape(labels.shape[1], -1).T, np.atleast_1d(oracle.intercept_)
    middle, level = features.mean(axis=0), labels.mean(axis=0)
    weights = np.linalg.lstsq(features - middle, labels - level, rcond=1e-11)[0]
    return weights, level - middle @ weights


@pytest.fixture(scope="module")
def digits():
    """What scikit-learn learns from digits, one-hot, with an intercept; and the mean image."""
    x, labels = load_digits(return_X_y=True)
    model = Ridge(alpha=1.0, solver="svd").fit(x / 16, np.eye(10)[labels])
    return model.coef_.T, model.intercept_, x.mean(axis=0) / 16


@pytest.mark.parametrize("m", [10, 30])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_one_example_a_class_and_three_give_digits_back_to_fourteen_digits(digits, m, share):
    weights, intercept, mean = digits
    labels = np.eye(10)[np.arange(m) % 10]
    free = 0.3 * np.random.default_rng(0).standard_normal((m, 64))
    lam = share * float(largest_64(weights, labels, free))
    features = exact_64(weights, intercept, labels, free, lam, mean, True)
    for found in (retrain_64(features, labels, lam), trained_by_others(features, labels, lam)):
        assert relative(found[0], weights) < 5e-14 and relative(found[1], intercept) < 5e-14
    # Realistic: the mean of the set is that of the images but for the classes' unequal numbers.
    assert relative(features.mean(axis=0), mean) < 0.01


def draw(seed, size, exponent):
    """Weights of condition number 10^exponent, an intercept, labels and a free part, means in all of them."""
    p, k, m = size
    rng = np.random.default_rng(seed)
    weights = of_condition(rng, p, k, 10.0**exponent)
    columns = rng.standard_normal((m, k))
    columns = np.linalg.qr(columns - columns.mean(axis=0))[0]
    labels = columns @ of_condition(rng, k, k, 3.0) + rng.standard_normal(k)
    return weights, rng.standard_normal(k), labels, rng.standard_normal((m, p)) / 3


sizes = st.sampled_from([(3, 2, 3), (6, 3, 4), (8, 3, 8), (5, 2, 9), (12, 4, 6), (4, 1, 2)])  # p, k, m


def spread_of(features):
    """Singular values of the centred features, those that are rounding left out."""
    s = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    return s[s > 1e-11 * s[0]]


def tolerance(features, power=1):
    """Rounding of a retraining: eps, the condition of the centred set, and its mean beside its spread."""
    s = spread_of(features)
    lever = 1 + np.linalg.norm(features.mean(axis=0)) / s[0]
    return 400 * max(features.shape) * EPS[np.float64] * (s[0] / s[-1]) ** power * lever


@given(seeds, sizes, st.floats(0, 2), shares)
def test_retraining_returns_weights_and_intercept_for_every_admissible_penalty(seed, size, exponent, share):
    weights, intercept, labels, free = draw(seed, size, exponent)
    lam = share * float(largest_64(weights, labels, free))
    near = np.random.default_rng(seed).standard_normal(size[0])
    features = exact_64(weights, intercept, labels, free, lam, near, True)
    for found in (retrain_64(features, labels, lam), trained_by_others(features, labels, lam)):
        assert relative(found[0], weights) < tolerance(features)
        assert relative(found[1], intercept) < tolerance(features) * (1 + 1 / np.linalg.norm(intercept))


@given(seeds, sizes, st.floats(0.1, 0.9))
def test_either_root_serves_per_singular_value(seed, size, share):
    weights, intercept, labels, free = draw(seed, size, 1.0)
    lam = share * float(largest_64(weights, labels, free))
    larger = np.random.default_rng(seed).random(min(size[0], size[2] - 1)) < 0.5
    features = exact_64(weights, intercept, labels, free, lam, np.zeros(size[0]), larger)
    found, offset = retrain_64(features, labels, lam)
    assert relative(found, weights) < tolerance(features)
    np.testing.assert_allclose(offset, intercept, rtol=0, atol=10 * tolerance(features))


@given(seeds, sizes)
def test_the_inverse_is_the_formula_with_centred_labels(seed, size):
    weights, _, labels, free = draw(seed, size, 1.0)
    m = size[2]
    p1 = np.eye(m) - 1 / m
    centred = p1 @ labels
    pseudo = np.linalg.pinv(centred, rcond=1e-10)
    formula = (weights @ pseudo).T + (p1 - centred @ pseudo) @ free
    found = inverse_64(weights, labels, free)
    assert relative(found, formula) < 1e-13
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-13)


@given(seeds)
def test_the_mean_is_a_solution_and_no_other_is_nearer(seed):
    rng = np.random.default_rng(seed)
    weights, offset, near = of_condition(rng, 7, 3, 10.0), rng.standard_normal(3), rng.standard_normal(7)
    for target in (near, None):
        c = mean_64(weights, offset, target)
        assert relative(c @ weights, offset) < 1e-13
        target = np.zeros(7) if target is None else target
        null = np.linalg.svd(weights)[0][:, 3:]
        assert np.linalg.norm((c - target) @ null) < 1e-12  # moved within col(B) alone: the least change


def test_labels_with_the_mean_of_the_targets_keep_the_mean_of_the_data():
    rng = np.random.default_rng(0)
    weights, mean = rng.standard_normal((6, 3)), 1e3 * rng.standard_normal(6)
    intercept = rng.standard_normal(3)
    found = mean_64(weights, mean @ weights, mean)
    assert relative(found, mean) < 1e-15
    check_label_mean(weights, intercept, (intercept + mean @ weights)[None])


def test_rows_that_sum_to_zero_but_for_rounding_do_not_pull_the_mean_away(digits):
    weights, intercept, mean = digits
    values = np.linalg.svd(weights, compute_uv=False)
    assert 0 < values[-1] < 1e-12 * values[0]  # there is something to be pulled by
    balanced = mean_64(weights, np.full(10, 0.1) - intercept, mean)
    assert relative(balanced @ weights + intercept, np.full(10, 0.1)) < 1e-14
    assert relative(balanced, mean) < 0.01


def test_a_mean_out_of_reach_is_named_and_that_of_one_hot_rows_is_not(digits):
    weights, intercept, _ = digits
    for rows in (np.eye(10), np.eye(10)[[0, 0, 1]], np.full((2, 10), 0.1)):
        check_label_mean(weights, intercept, rows)
    with pytest.raises(RankError, match=r"% of the difference lie outside .* labels='soft'"):
        check_label_mean(weights, intercept, np.eye(10) - 0.1)
    with pytest.raises(RankError, match="100 %"):
        check_label_mean(np.zeros((4, 2)), np.zeros(2), np.eye(2))


def test_centred_sets_lose_no_digits_to_a_mean_a_million_times_their_spread():
    rng = np.random.default_rng(1)
    features, labels = 1e6 + rng.standard_normal((9, 4)), rng.standard_normal((9, 2)) - 1e6
    exact, wanted = (np.asarray(a, np.longdouble) for a in (features, labels))
    exact, wanted = (np.asarray((a - a[0]) - (a - a[0]).mean(axis=0), np.float64) for a in (exact, wanted))
    for lam in (0.0, 0.5):
        expected = np.linalg.solve(exact.T @ exact + lam * np.eye(4), exact.T @ wanted)
        weights, intercept = retrain_64(features, labels, lam)
        assert relative(weights, expected) < rounding(exact, exact)
        fit = features.mean(axis=0) @ weights + intercept
        assert relative(fit, labels.mean(axis=0)) < 1e-14


def test_duplicate_rows_add_no_rank():
    features = np.repeat(np.random.default_rng(2).standard_normal((3, 5)), 4, axis=0)
    labels = np.random.default_rng(3).standard_normal((12, 2))
    found, offset = retrain_64(features, labels, 0.0)
    expected = trained_by_others(features, labels, 0.0)
    assert relative(found, expected[0]) < 1e-12 and relative(offset, expected[1]) < 1e-12


# Labels for given features


@given(seeds, st.sampled_from([0.0, 0.1, 1e3]), st.sampled_from([(5, 3, 4), (9, 4, 9), (4, 2, 12)]))
def test_soft_labels_are_exact_for_every_penalty_where_centred_rows_span(seed, lam, size):
    p, k, m = size
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((m, p)) + 3 * rng.standard_normal(p)
    centred = features - features.mean(axis=0)
    weights, intercept = centred.T @ rng.standard_normal((m, k)), rng.standard_normal(k)
    labels = soft_64(features, weights, lam, intercept)
    bound = tolerance(features, power=2)
    for found in (retrain_64(features, labels, lam), trained_by_others(features, labels, lam)):
        assert relative(found[0], weights) < bound
        scale = np.linalg.norm(features.mean(axis=0)) * np.linalg.norm(weights) + np.linalg.norm(intercept)
        assert np.linalg.norm(found[1] - intercept) < bound * scale


@given(seeds, st.sampled_from([0.0, 2.0]))
def test_where_they_do_not_the_projection_is_reached_and_the_models_agree_at_the_mean(seed, lam):
    rng = np.random.default_rng(seed)
    features, weights = rng.standard_normal((4, 9)), rng.standard_normal((9, 2))
    intercept = rng.standard_normal(2)
    found, offset = retrain_64(features, soft_64(features, weights, lam, intercept), lam)
    centred = features - features.mean(axis=0)
    assert relative(found, np.linalg.pinv(centred, rcond=1e-12) @ centred @ weights) < 1e-10
    middle = features.mean(axis=0)
    np.testing.assert_allclose(middle @ found + offset, middle @ weights + intercept, atol=1e-11)


@given(seeds, st.sampled_from([0.0, 0.7]))
def test_no_model_of_the_rows_predicts_the_data_better_than_weighted_labels(seed, lam):
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((40, 8)) * np.geomspace(1, 0.01, 8) + rng.standard_normal(8)
    features, weights, intercept = rng.standard_normal((4, 8)), rng.standard_normal((8, 2)), np.ones(2)
    wanted, mean = data @ weights + intercept, data.mean(axis=0)
    gram = (data - mean).T @ (data - mean)
    labels = weighted_64(features, weights, gram, lam, (mean, wanted.mean(axis=0)))
    found, offset = retrain_64(features, labels, lam)
    centred = features - features.mean(axis=0)
    design = np.column_stack([data @ centred.T, np.ones(40)])
    best = design @ np.linalg.lstsq(design, wanted, rcond=1e-12)[0]
    np.testing.assert_allclose(data @ found + offset, best, rtol=0, atol=1e-8)


@given(seeds, st.sampled_from([1.0, 1e2, 1e5]), st.sampled_from([0.0, 1e3]))
def test_the_self_conditioned_centred_system_has_a_condition_number_of_m_at_most(seed, number, mean):
    rng = np.random.default_rng(seed)
    features = of_condition(rng, 6, 9, number) + mean
    lam = float(compiled(lambda f: self_conditioning_penalty(contrasts(f)))(features))
    centred = features - features.mean(axis=0)
    assert np.isclose(lam, np.sum(centred**2) / 5, rtol=1e-9)
    values = np.linalg.eigvalsh(centred @ centred.T + lam * np.eye(6))
    assert values[-1] / values[0] <= 6 * (1 + 1e-9)


# Near real examples


@given(seeds, st.sampled_from([0.0, 10.0]), st.sampled_from([1.0, 10.0]))
def test_the_nearest_spanning_set_keeps_the_mean_and_trains_to_the_model(seed, lam, sharpness):
    rng = np.random.default_rng(seed)
    real, weights = rng.standard_normal((8, 20)) + 2, of_condition(rng, 20, 3, 10.0)
    intercept = rng.standard_normal(3)
    near = spanning_64(weights, real, 3, sharpness)
    np.testing.assert_allclose(near.mean(axis=0), real.mean(axis=0), atol=1e-12)
    found, offset = retrain_64(near, soft_64(near, weights, lam, intercept), lam)
    assert relative(found, weights) < 100 * tolerance(near) * sharpness
    assert np.linalg.norm(offset - intercept) < 1000 * tolerance(near) * sharpness


@given(seeds)
def test_its_change_tends_to_the_smallest_singular_values_of_the_centred_features(seed):
    rng = np.random.default_rng(seed)
    real, weights = rng.standard_normal((8, 20)) + 2, rng.standard_normal((20, 3))
    values = np.linalg.svd(real - real.mean(axis=0), compute_uv=False)[:7]
    limit = np.sqrt(np.sum(values[4:] ** 2))
    for sharpness in (10.0, 100.0, 1000.0):
        change = np.linalg.norm(spanning_64(weights, real, 3, sharpness) - real)
        assert abs(change / limit - 1) <= np.sqrt(3) / sharpness + 1e-9


@pytest.mark.parametrize(("m", "same"), [(6, True), (5, False)])
def test_one_example_more_than_features_spans_already(m, same):
    rng = np.random.default_rng(4)
    real, weights = rng.standard_normal((m, 5)), rng.standard_normal((5, 2))
    assert np.allclose(spanning_64(weights, real, 2, 10.0), real, atol=1e-14) == same


@given(seeds, shares)
def test_corollary_411_holds_for_contrasts(seed, share):
    rng = np.random.default_rng(seed)
    real, intercept = rng.standard_normal((6, 9)) + 1, np.ones(3)
    weights = (real - real.mean(axis=0)).T @ of_condition(rng, 6, 3, 3.0)
    labels = real @ weights + intercept  # the labels that the model gives them

    features, lam = nearest_64(weights, labels, real, share)
    found, offset = retrain_64(features, labels, float(lam))
    assert relative(found, weights) < 100 * tolerance(features)
    assert relative(offset, intercept) < 1000 * tolerance(features)
    if share == 0:  # real rows whose labels fit already stay as they are
        assert relative(features, real) < 1e-10


@given(seeds, st.integers(1, 3))
def test_below_the_rank_one_example_more_holds_the_best_model_of_that_rank(seed, rank):
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((50, 7)) * np.geomspace(1, 0.1, 7) + 2
    weights, intercept, mean = rng.standard_normal((7, 4)), rng.standard_normal(4), data.mean(axis=0)
    reduced, rows, lost = reduce_64(weights, (data - mean).T @ (data - mean), rank)
    level = mean @ weights + intercept
    labels = rows_64(rows) + level
    best = level - mean @ reduced
    features = exact_64(reduced, best, labels, np.zeros((rank + 1, 7)), 0.0, mean, True)
    found, offset = retrain_64(features, labels, 0.0)
    assert relative(features.mean(axis=0), mean) < 1e-12
    predictions = data @ weights - mean @ weights
    u, s, vt = np.linalg.svd(predictions, full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ vt[:rank] + level
    assert relative(data @ found + offset, expected) < 1e-9
    assert np.isclose(lost, np.sum(s[rank:] ** 2) / np.sum(s**2), rtol=1e-9)


# Bounded maps


@pytest.fixture(scope="module")
def bounded():
    """A cosine map, a model with an intercept, and what its exact set is scaled from."""
    rng = np.random.default_rng(5)
    phi = RandomFourier.create(12, 10, lengthscale=4.0, key=jax.random.key(0))
    data = compiled(lambda f, x: f(x))(phi, rng.standard_normal((60, 12)) + 1)
    targets = rng.standard_normal((60, 3)) + 4
    model = Ridge(alpha=0.1, solver="svd").fit(data, targets)
    rows = rng.standard_normal((5, 3))
    weights, mean = model.coef_.T, data.mean(axis=0)

    def features_at(lam):
        middle = rows.mean(axis=0) - np.zeros(3)
        return exact_64(weights, middle, rows, np.zeros((5, 10)), lam, np.zeros(10), True)

    largest = float(largest_64(weights, rows, np.zeros((5, 10))))
    return phi, weights, model.intercept_, features_at, rows - rows.mean(axis=0), largest, mean


@pytest.mark.parametrize("lam", [0.0, "max", "some"])
def test_the_centred_part_is_scaled_into_the_range_around_the_mean(bounded, lam):
    phi, weights, intercept, features_at, rows, largest, mean = bounded
    level = mean @ weights + intercept
    if lam == "some":
        lam = 0.5 * choose_scale(phi, features_at, rows, "max", largest, None, (mean, level)).lam_s
    scaled = choose_scale(phi, features_at, rows, lam, largest, None, (mean, level))
    assert np.all(np.abs(scaled.features) < phi.feature_bound)
    np.testing.assert_allclose(scaled.features.mean(axis=0), mean, atol=1e-13)
    # As far as the margin goes, in the entry with the least room.
    moved = scaled.features - mean
    used = np.max(np.abs(moved) / (phi.feature_bound - np.sign(moved) * mean))
    assert 0.8 < used <= 0.9 * (1 + 1e-12)
    found, offset = trained_by_others(scaled.features, scaled.labels, scaled.lam_s)
    assert relative(found, weights) < 1e-10 and relative(offset, intercept) < 1e-10


def test_a_scale_or_a_mean_outside_the_range_is_named(bounded):
    phi, _, _, features_at, rows, largest, mean = bounded
    means = mean, np.zeros(3)
    fits = choose_scale(phi, features_at, rows, 0.0, largest, None, means)
    with pytest.raises(InverseError, match=f"scale of at most {fits.scale / 0.9:.4g}"):
        choose_scale(phi, features_at, rows, 0.0, largest, 10 * fits.scale, means)
    with pytest.raises(InverseError, match="mean feature vector"):
        choose_scale(phi, features_at, rows, 0.0, largest, None, (100 * mean, np.zeros(3)))
    with pytest.raises(PenaltyError, match="largest that these labels admit"):
        choose_scale(phi, features_at, rows, 1e9, largest, None, means)


# Derivatives and transformations


@pytest.mark.parametrize("x64", [False, True])
def test_cores_compose_with_jit_and_vmap_in_both_precisions(x64):
    weights, intercept, labels, free = draw(1, (8, 3, 6), 1)
    with jax.enable_x64(x64):
        dtype = jnp.zeros(()).dtype
        b, b0, y, z = (jnp.asarray(a, dtype) for a in (weights, intercept, labels, free))
        sets = jax.jit(jax.vmap(lambda z: exact_features(b, y, z, intercept=b0)))(jnp.stack([z, 2 * z]))
        again, offsets = jax.jit(jax.vmap(lambda f: retrain_with_intercept(f, y, 0.0)))(sets)
        assert sets.dtype == again.dtype == offsets.dtype == dtype
        bound = 100 * EPS[dtype.type] / EPS[np.float64] * tolerance(np.asarray(sets[1], np.float64))
        assert float(jnp.max(jnp.abs(again - b))) < bound and float(jnp.max(jnp.abs(offsets - b0))) < bound


@pytest.mark.parametrize("size", [(6, 3, 5), pytest.param((3, 2, 6), marks=pytest.mark.long)])
def test_derivatives_are_those_of_finite_differences(size):
    weights, intercept, labels, free = draw(2, size, 0.5)
    with jax.enable_x64(True):
        b, b0, y, z = (jnp.asarray(a) for a in (weights, intercept, labels, free))
        lam = float(0.5 * largest_64(weights, labels, free))

        @jax.jit
        def features(b, b0, y, z):
            return jnp.sin(exact_features(b, y, z, lam, intercept=b0))

        check_grads(features, (b, b0, y, z), order=1, modes=("fwd", "rev"), rtol=1e-4)
        real = z + 1
        for penalty in (0.0, 0.3):
            again = jax.jit(lambda f, y, lam=penalty: retrain_with_intercept(f, y, lam))
            check_grads(again, (real, y), order=1, modes=("fwd", "rev"), rtol=1e-4)
            labelled = jax.jit(lambda f, b, b0, lam=penalty: soft_labels(f, b, lam, intercept=b0))
            check_grads(labelled, (real, b, b0), order=1, modes=("fwd", "rev"), rtol=1e-4)


def test_derivatives_are_finite_for_balanced_one_hot_rows_and_rows_that_sum_to_zero():
    rng = np.random.default_rng(6)
    weights = rng.standard_normal((7, 4))
    weights -= weights.mean(axis=1, keepdims=True)
    with jax.enable_x64(True):
        b, y = jnp.asarray(weights), jnp.asarray(np.eye(4)[np.arange(8) % 4])
        level = jnp.full(4, 0.25)

        @jax.jit
        def loss(b, z):
            found, offset = retrain_with_intercept(exact_features(b, y, z, intercept=level), y, 0.1)
            return jnp.sum(jnp.sin(found)) + jnp.sum(offset**2)

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(b, jnp.asarray(rng.standard_normal((8, 7))))
        assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in gradients)
