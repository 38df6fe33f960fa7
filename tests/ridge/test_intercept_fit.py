"""Models with an unpenalised intercept: against scikit-learn, a bordered system, and refits."""

import jax
import numpy as np
import pytest
from helpers import EPS, exact_numbers, rational, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

import jaxdistill as jd
from jaxdistill.errors import InputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5)) + 3
T = X @ RNG.standard_normal((5, 2)) + np.array([7.0, -40.0]) + 0.1 * RNG.standard_normal((60, 2))
CLASSES = RNG.integers(0, 3, 60)


def oracle(x, y, lam):
    """Ridge with an intercept, by the singular value decomposition of centred columns."""
    middle, level = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - middle, full_matrices=False)
    kept = s > 1e-12 * s.max()
    factors = np.where(kept, s, 0) / np.where(kept, s**2 + lam, 1)
    weights = vt.T @ (factors[:, None] * (u.T @ (y - level)))
    return weights, level - middle @ weights


@given(
    seed=st.integers(0, 2**31),
    n=st.sampled_from([4, 40]),
    lam=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
)
def test_weights_and_intercept_are_those_of_centred_columns(seed, n, lam, offset):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, 6)) + offset, rng.standard_normal((n, 2)) + offset
    model = jd.fit_ridge(jd.features.Linear(6), x, y, lam=lam, intercept=True)
    weights, intercept = oracle(x, y, lam)
    condition = np.linalg.cond(x - x.mean(axis=0)) if n > 6 else 1e3
    slack = 1e3 * EPS[np.float64] * condition**2 * max(offset, 1)
    assert relative(model.weights, weights) < slack
    assert relative(model.intercept, intercept) < slack
    assert model.solution.solved
    assert relative(model.predict(x), x @ weights + intercept) < slack


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), lam=st.sampled_from([1e-8, 1.0]), wide=st.booleans())
def test_columns_of_different_units_far_from_zero(seed, lam, wide):
    rng = np.random.default_rng(seed)
    n = 5 if wide else 50
    x = rng.standard_normal((n, 6)) * 10.0 ** rng.uniform(-6, 6, 6)
    x[:, 1] = 2.5  # says nothing beside an intercept
    x = x + 100 * np.abs(x).max(axis=0) * rng.uniform(-1, 1, 6)
    y = rng.standard_normal((n, 1)) + 5
    model = jd.fit_ridge(jd.features.Linear(6), x, y, lam=lam, intercept=True)
    rows, targets = (
        [[v - sum(column) / n for v in column] for column in zip(*exact_numbers(a), strict=True)]
        for a in (x, y)
    )
    expected = rational(*(list(zip(*a, strict=True)) for a in (rows, targets)), lam)
    sizes = np.array([float(max(map(abs, column))) for column in rows])[:, None]
    assert relative(sizes * model.weights, sizes * expected) < 1e-9
    assert model.weights[1, 0] == 0
    assert model.solution.solved


@pytest.mark.parametrize("n", [60, 4])
def test_leave_one_out_is_that_of_refits(n):
    lams = [1e-2, 1.0, 30.0]
    x, y = X[:n], T[:n]
    found = jd.fit_ridge(jd.features.Linear(5), x, y, lams=lams, intercept=True).selection
    for lam, error in zip(lams, found.squared_errors, strict=True):
        left_out = cross_val_predict(Ridge(alpha=lam, solver="svd"), x, y, cv=LeaveOneOut())
        np.testing.assert_allclose(error, ((left_out - y) ** 2).sum(axis=1).mean(), rtol=1e-8)


def test_held_out_data_are_judged_by_the_whole_model_and_then_trained_on():
    lams, y = [1e-2, 1.0, 30.0], jd.one_hot(CLASSES, 3)
    given_pair = {"validation": (X[40:], y[40:]), "lams": lams}
    found = jd.fit_ridge(jd.features.Linear(5), X[:40], y[:40], intercept=True, **given_pair).selection
    for lam, error, rate in zip(lams, found.squared_errors, found.error_rates, strict=True):
        predicted = Ridge(alpha=lam).fit(X[:40], y[:40]).predict(X[40:])
        np.testing.assert_allclose(error, ((predicted - y[40:]) ** 2).sum(axis=1).mean(), rtol=1e-8)
        assert rate == np.mean(predicted.argmax(axis=1) != CLASSES[40:])
    model = jd.fit_ridge(jd.features.Linear(5), X, y, lams=lams, validation=0.3, intercept=True, key=KEY)
    everything = Ridge(alpha=model.lam, solver="svd").fit(X, y)
    assert relative(model.weights, everything.coef_.T) < 1e-12
    assert relative(model.intercept, everything.intercept_) < 1e-12


def test_class_weights_sum_to_zero_and_the_intercept_to_one():
    model = jd.fit_ridge(jd.features.Linear(5), X, jd.one_hot(CLASSES, 3), lam=0.1, intercept=True)
    assert np.linalg.matrix_rank(model.weights) == 2
    assert abs(model.intercept.sum() - 1) < 1e-13
    rare = np.zeros(1001, int)
    rare[0] = 1  # without an intercept half of the answers are wrong where the majority alone has 0.999
    x = np.random.default_rng(1).standard_normal((1001, 5))
    model = jd.fit_ridge(jd.features.Linear(5), x, jd.one_hot(rare, 2), lam=1.0, intercept=True)
    assert np.mean(model.predict(x).argmax(axis=1) == rare) >= 0.999


def test_targets_with_a_mean_are_met():
    images = RNG.uniform(0, 1, (200, 4))
    y = 2 * images[:, :1] + 5
    model = jd.fit_ridge(jd.features.Linear(4), images, y, lam=1e-8, intercept=True)
    np.testing.assert_allclose(model.intercept, [5.0], rtol=1e-9)
    np.testing.assert_allclose(model.weights.ravel(), [2, 0, 0, 0], atol=1e-9)


def test_a_model_is_a_pure_function_with_its_intercept():
    model = jd.fit_ridge(jd.features.Linear(5), X, T, lam=1.0, intercept=True)
    with jax.enable_x64(True):
        again = jax.jit(lambda m, x: m(x))(model, X)
    assert relative(np.asarray(again), model.predict(X)) < 1e-14


def test_float32_products_round_about_the_mean_not_about_zero():
    x = (RNG.standard_normal((400, 5)) + 500).astype(np.float32)
    y = (x.astype(np.float64) - 500) @ np.ones((5, 1)) + 3
    model = jd.fit_ridge(jd.features.Linear(5), x, y, lam=1e-3, intercept=True, dtype=np.float32)
    weights, _ = oracle(x.astype(np.float64), y, 1e-3)
    assert relative(model.weights, weights) < 1e-5  # about zero the products alone would lose 500^2 eps


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_kernels_solve_the_system_that_ones_border(solver):
    x, y, lam, n = X / 2, T, 0.1, len(X)
    kernel = jd.kernels.RBF(2.0)
    gram = np.exp(-np.sum((x[:, None] - x) ** 2, axis=-1) / 8)
    bordered = np.block([[gram + lam * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    expected = np.linalg.solve(bordered, np.vstack([y, np.zeros((1, 2))]))
    told = {"solver": solver, "tolerance": 1e-11, "key": KEY}
    model = jd.fit_kernel_ridge(kernel, x, y, lam=lam, intercept=True, **told)
    assert relative(model.alpha, expected[:-1]) < 1e-9
    assert relative(model.intercept, expected[-1]) < 1e-9
    assert relative(model.predict(x), gram @ expected[:-1] + expected[-1]) < 1e-9
    assert model.solution.value <= 1e-10


def test_kernels_choose_lam_as_refits_do():
    x, lams, kernel = X / 2, [1e-2, 0.3], jd.kernels.RBF(2.0)
    found = jd.fit_kernel_ridge(kernel, x, T, lams=lams, intercept=True).selection
    held = {"validation": (x[:20], T[:20]), "lams": lams}
    judged = jd.fit_kernel_ridge(kernel, x[20:], T[20:], intercept=True, **held).selection
    for i, lam in enumerate(lams):
        total = 0.0
        for row in range(len(x)):
            rest = np.arange(len(x)) != row
            one = jd.fit_kernel_ridge(kernel, x[rest], T[rest], lam=lam, intercept=True)
            total += np.sum((one.predict(x[row : row + 1]) - T[row]) ** 2)
        np.testing.assert_allclose(found.squared_errors[i], total / len(x), rtol=1e-7)
        one = jd.fit_kernel_ridge(kernel, x[20:], T[20:], lam=lam, intercept=True)
        error = np.sum((one.predict(x[:20]) - T[:20]) ** 2, axis=1).mean()
        np.testing.assert_allclose(judged.squared_errors[i], error, rtol=1e-7)


def test_the_kernel_of_features_is_the_model_of_features():
    kernel = jd.kernels.FeatureKernel(jd.features.Linear(5))
    plain = jd.fit_kernel_ridge(kernel, X, T, lam=1.0, intercept=True)
    linear = jd.fit_ridge(jd.features.Linear(5), X, T, lam=1.0, intercept=True)
    assert relative(plain.predict(X), linear.predict(X)) < 1e-11
    assert relative(plain.intercept, linear.intercept) < 1e-9


def test_heads_keep_the_intercept_they_came_with():
    fitted = LogisticRegression().fit(X, CLASSES)
    head = jd.RidgeModel.from_weights(jd.features.Linear(5), fitted.coef_.T, intercept=fitted.intercept_)
    assert relative(head.predict(X), fitted.decision_function(X)) < 1e-14


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jd.fit_ridge(jd.features.Linear(5), X[:1], T[:1], intercept=True), "at least 2"),
        (lambda: jd.fit_kernel_ridge(jd.kernels.RBF(1.0), X[:1], T[:1], lam=1.0, intercept=True), "at least"),
        (
            lambda: jd.RidgeModel.from_weights(jd.features.Linear(5), np.ones((5, 2)), intercept=np.ones(3)),
            r"intercept has shape \(3,\), expected \(2,\)",
        ),
        (
            lambda: jd.RidgeModel.from_weights(jd.features.Linear(5), np.ones((5, 1)), intercept=[np.nan]),
            "intercept",
        ),
    ],
)
def test_what_cannot_have_an_intercept_is_told(call, words):
    with pytest.raises(InputError, match=words):
        call()
