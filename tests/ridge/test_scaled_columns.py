"""Columns of different units: against exact rational arithmetic, and scikit-learn where float64 serves it."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
from helpers import EPS, rational, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

import jaxdistill as jd
from jaxdistill.errors import ConditioningWarning, InputError
from jaxdistill.ridge.moments import accumulate_moments
from jaxdistill.ridge.scaled import ScaledFactor, badly_scaled, factor_scaled
from jaxdistill.ridge.source import ArraySource

OWN = EPS[np.float64]


def errors(x, y, found, expected):
    """Errors of predictions and of weights in units of the columns, relative to the targets."""
    sizes = np.linalg.norm(x, axis=0)[:, None]
    return (
        np.linalg.norm(x @ (found - expected)) / np.linalg.norm(y),
        np.linalg.norm(sizes * (found - expected)) / np.linalg.norm(sizes * expected),
    )


def fit(x, y, lam, **more):
    return jd.fit_ridge(jd.features.Linear(x.shape[1]), x, y, lam=lam, **more)


def scaled_condition(x):
    s = np.linalg.svd(x / np.linalg.norm(x, axis=0), compute_uv=False)
    return s[0] / s[-1]


@settings(max_examples=60)
@given(
    shape=st.sampled_from([(12, 4), (6, 6), (4, 7), (20, 3)]),
    exponents=st.lists(st.floats(-8, 8), min_size=7, max_size=7),
    lam=st.floats(-12, 4).map(lambda e: 10.0**e),
    seed=st.integers(0, 2**20),
)
def test_weights_are_those_of_rational_arithmetic_whatever_the_units(shape, exponents, lam, seed):
    n, p = shape
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 10.0 ** np.array(exponents[:p])
    y = rng.standard_normal((n, 2))
    model = fit(x, y, lam)
    prediction, weights = errors(x, y, model.weights, rational(x, y, lam))
    # From the Gram matrix half of the digits are left at least, for columns within 1351 of one another.
    limit = 1000 * OWN * scaled_condition(x) if model.resolution == 0 else np.sqrt(OWN)
    assert prediction < limit and weights < limit
    assert model.solution.solved and model.residual < np.sqrt(OWN)


@pytest.mark.parametrize("lam", [1e-12, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(400, 6), (30, 40)], ids=["primal", "dual"])
@pytest.mark.parametrize("size", [1e-8, 1e-4, 1.0, 1e4, 1e8])
def test_one_column_of_another_unit_costs_the_others_nothing(shape, size, lam):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    x[:, 0] *= size
    y = x @ (rng.standard_normal((shape[1], 2)) / np.linalg.norm(x, axis=0)[:, None])
    y = y + 0.1 * rng.standard_normal(y.shape) * np.linalg.norm(y) / np.sqrt(y.size)
    oracle = Ridge(alpha=lam, solver="svd", fit_intercept=False, tol=1e-12).fit(x, y).coef_.T
    model = fit(x, y, lam)
    # The oracle's own rounding is eps of the largest singular value, in units of the smallest that counts.
    s = np.linalg.svd(x, compute_uv=False)
    own = OWN * s[0] / np.sqrt(s[-1] ** 2 + lam)
    prediction, _ = errors(x, y, model.weights, oracle)
    assert prediction < 100 * own + 1e-12
    assert model.rank == min(shape) and model.solution.solved


def test_five_columns_beside_one_of_size_1e8_are_not_dropped():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6))
    x[:, 0] *= 1e8
    true = np.array([[1e-8], [1.0], [2.0], [3.0], [4.0], [5.0]])
    model = fit(x, x @ true, 1e-6)
    np.testing.assert_allclose(model.weights, true, rtol=1e-7)
    assert model.rank == 6 and model.residual < 1e-13 and model.dropped == 0


def test_columns_of_one_size_keep_the_eigendecomposition_bit_for_bit():
    from jaxdistill.numerics.linalg import in_float64
    from jaxdistill.ridge.path import factor_primal, path_weights

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 5)) * np.array([1.0, 10, 100, 300, 900]), rng.standard_normal((50, 2))
    model = fit(x, y, 0.1)
    path = in_float64(factor_primal, model.moments, "float64")
    np.testing.assert_array_equal(model.weights, in_float64(path_weights, path, 0.1))
    assert model.resolution > 0 and not badly_scaled(model.moments.gram, model.resolution)


@pytest.mark.parametrize("lam", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("shape", [(12, 5), (4, 6)], ids=["primal", "dual"])
def test_dependent_columns_of_any_size_get_the_weights_of_least_norm(shape, lam):
    rng = np.random.default_rng(1)
    x = rng.integers(-9, 10, shape).astype(float)
    x[:, 3] = 2 * x[:, 0] - x[:, 1]  # exact in floating point, before and after powers of two
    units = 2.0 ** np.array([20, 20, 0, 20, -2, 3])[: shape[1]]
    x *= units
    y = rng.standard_normal((shape[0], 2))
    model = fit(x, y, lam)
    assert model.rank == np.linalg.matrix_rank(x / np.linalg.norm(x, axis=0))
    # Least norm: no part in the null space, which is known. Least squares: residual against every column.
    null = np.zeros(shape[1])
    null[[0, 1, 3]] = 2, -1, -1
    null /= units
    assert np.linalg.norm(x @ null) == 0
    # As near as a relative change of eps in every column lets it be: no prediction sees it.
    sizes = np.linalg.norm(x, axis=0)
    change = 100 * OWN * np.linalg.norm(null * sizes) * np.abs(model.weights / sizes[:, None]).max()
    assert np.abs(null @ model.weights).max() <= change
    residual = x.T @ (y - x @ model.weights) - lam * model.weights
    assert np.max(np.abs(residual) / sizes[:, None]) < 1e-11 * np.linalg.norm(y)
    if lam:
        assert errors(x, y, model.weights, rational(x, y, lam))[0] < 1e-11


@pytest.mark.parametrize("validation", ["leave-one-out", 0.25, "data"])
@pytest.mark.parametrize("shape", [(40, 5), (8, 12)], ids=["primal", "dual"])
def test_penalties_of_badly_scaled_columns_are_scored_as_brute_force_does(shape, validation):
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal(shape), rng.standard_normal((shape[0], 1))
    units = 10.0 ** rng.uniform(-5, 5, shape[1])
    y = y + x @ rng.standard_normal((shape[1], 1))
    held = rng.standard_normal((10, shape[1])) * units, rng.standard_normal((10, 1))
    x, lams = x * units, np.array([1e-3, 10.0, 1e6])

    def predicted(train, target, at, lam):
        scaled = train / np.linalg.norm(train, axis=0)
        root = np.sqrt(lam) / np.linalg.norm(train, axis=0)
        stacked = np.vstack([scaled, np.diag(root)])
        right = np.vstack([target, np.zeros((shape[1], 1))])
        return at / np.linalg.norm(train, axis=0) @ np.linalg.lstsq(stacked, right, rcond=1e-15)[0]

    given_ = held if validation == "data" else validation
    model = fit(x, y, "auto", lams=lams, validation=given_, key=jax.random.key(0))
    assert model.solution.solved
    if validation == 0.25:
        again = fit(x, y, model.lam)
        assert errors(x, y, model.weights, again.weights)[0] < 1e-10
        return
    for lam, found in zip(lams, model.selection.squared_errors, strict=True):
        if validation == "data":
            expected = np.mean((predicted(x, y, held[0], lam) - held[1]) ** 2)
        else:
            parts = [(np.arange(len(x)) != i, i) for i in range(len(x))]
            expected = np.mean(
                [(predicted(x[rest], y[rest], x[i : i + 1], lam) - y[i]) ** 2 for rest, i in parts]
            )
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_classes_and_other_features_than_linear_ones_are_served(problem):
    x = problem["x"].astype(np.float64)
    # Weights of rows, each for one feature: the first a million times the rest.
    units = np.ones((12, 1), np.float32)
    units[0] = 1e6
    drawn = jd.features.RandomNetwork.create(12, widths=(12,), key=jax.random.key(0))
    scaled = dataclasses.replace(drawn, weights=(drawn.weights[0] * units,))
    model = jd.fit_ridge(scaled, x, problem["y"], lam=1e-3)
    assert model.solution.solved and badly_scaled(model.moments.gram)
    assert jd.certify(model, jd.distill(model, ipc=4, key=jax.random.key(1))).exact
    # Three examples hold the weights to ten digits, and the large feature's to none: predictions differ.
    found = jd.certify(model, jd.distill(model, ipc=1, key=jax.random.key(1)))
    assert found.relative_weight_error <= found.tolerance
    assert not found.exact and found.training_error > 1e-6


def test_chunks_do_not_matter():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((60, 4)) * np.array([1e6, 1, 1e-6, 1]), rng.standard_normal((60, 2))
    phi = jd.features.Linear(4)

    def weights(source):
        factor = factor_scaled(phi, source, accumulate_moments(phi, source, dtype=np.float64))
        assert isinstance(factor, ScaledFactor)
        path = factor.path
        return path.basis @ (path.projected / path.eigenvalues[:, None])

    whole = weights(ArraySource(x, y, 60))
    for chunk in (7, 16, 59):
        found = weights(ArraySource(x, y, chunk))
        assert max(errors(x, y, found, whole)) < 1e-13


def test_columns_that_float64_cannot_tell_apart_are_named_with_the_rank():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((50, 5))
    x[:, 4] = x[:, 1] + 1e-13 * rng.standard_normal(50)
    y = rng.standard_normal((50, 1))
    with pytest.warns(ConditioningWarning, match=r"features [14] lie.*rank 5 of 5.*larger lam"):
        fit(x, y, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(x, y, 1.0)  # what the penalty damps is no concern
        x[:, 4] = x[:, 1]
        assert fit(x, y, 0.0).rank == 4  # an exact copy has a least norm
    assert issubclass(ConditioningWarning, UserWarning)


def test_weights_whose_own_rounding_is_visible_are_warned_of():
    x = np.random.default_rng(1).integers(-9, 10, (12, 5)).astype(float)
    x[:, 3] = 2 * x[:, 0] - x[:, 1]
    x *= 2.0 ** np.array([20, 20, 0, 20, -20])
    # The least norm of the large columns' weights hangs on the last digits of the small one's, 2e9 in its
    # units.
    with pytest.warns(ConditioningWarning, match=r"residual of .*rank 4 of 5"):
        fit(x, np.random.default_rng(2).standard_normal((12, 2)), 0.0)


def test_columns_near_one_another_in_one_size_are_not_left_to_the_gram_matrix():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((60, 4))
    x[:, 3] = x[:, 0] + 1e-7 * rng.standard_normal(60)
    true = np.array([[1.0], [2.0], [3.0], [4.0]])
    model = fit(x, x @ true, 0.0)
    assert model.rank == 4 and relative(model.weights, true) < 1e-6


def test_a_column_whose_square_overflows_is_named():
    x = np.ones((5, 3))
    x[:, 2] = 1e200
    with pytest.raises(InputError, match="feature 2"):
        fit(x, np.ones((5, 1)), 1.0)


def test_columns_of_zeros_and_no_information_at_all_are_harmless():
    x, y = np.zeros((6, 3)), np.ones((6, 1))
    model = fit(x, y, 0.0)
    assert np.all(model.weights == 0) and model.rank == 0
    x[:, 1] = 1e9
    x[0, 2] = 1e-9
    model = fit(x, y, 0.0)
    assert model.rank == 2 and np.all(model.weights[0] == 0) and model.solution.solved
    np.testing.assert_allclose(x @ model.weights, np.ones((6, 1)), rtol=1e-12)
