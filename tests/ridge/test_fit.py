"""Fitting: the choice of the penalty, precision, primal and dual, prediction; and what is refused."""

import jax
import numpy as np
import pytest
from helpers import EPS, compiled, relative, source_of
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

import jaxdistill as jd
from jaxdistill.errors import InputError, PenaltyError
from jaxdistill.ridge.model import _predict_chunk
from jaxdistill.ridge.moments import Moments, accumulate_moments
from jaxdistill.ridge.path import RidgePath, solve_ridge
from jaxdistill.ridge.selection import LamSelection
from jaxdistill.ridge.targets import TargetKind, detect_targets

LAMS = np.array([1e-2, 1.0, 1e2])


def regression(n, d, k, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = x @ rng.standard_normal((d, k)) + 0.5 * rng.standard_normal((n, k))
    return x.astype(dtype), y


def one_left_out(x, y, lam):
    """Mean squared error of every example's prediction by a ridge model of the others."""
    errors = []
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        model = Ridge(alpha=lam, fit_intercept=False, solver="svd").fit(x[rest], y[rest])
        errors.append(np.sum((model.predict(x[i : i + 1]) - y[i]) ** 2))
    return np.mean(errors)


@pytest.mark.parametrize("shape", [(30, 6, 2), (10, 16, 2)], ids=["primal", "dual"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_leave_one_out_of_a_fit_equals_brute_force_and_the_best_is_chosen(shape, dtype):
    x, y = regression(*shape, dtype)
    model = jd.fit_ridge(jd.features.Linear(shape[1]), x, y, lams=LAMS)
    expected = [one_left_out(x.astype(np.float64), y, lam) for lam in LAMS]
    selection = model.selection
    assert isinstance(selection, LamSelection) and selection.error_rates is None
    np.testing.assert_allclose(selection.squared_errors, expected, rtol=1e-9)
    assert model.lam == LAMS[np.argmin(expected)]
    oracle = Ridge(alpha=model.lam, fit_intercept=False, solver="svd").fit(x.astype(np.float64), y)
    assert relative(model.weights, oracle.coef_.T) < 1e-10


def test_leave_one_out_of_one_hot_targets_counts_wrong_answers_first(problem):
    model = jd.fit_ridge(jd.features.Linear(12), problem["x"], problem["y"], lams=LAMS)
    rates, errors = model.selection.error_rates, model.selection.squared_errors
    best = [i for i in range(3) if rates[i] == rates.min()]
    assert model.selection.index == min(best, key=lambda i: errors[i])


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_interpolates_is_never_chosen_by_leave_one_out(seed):
    x, y = regression(8, 20, 1, seed=seed)
    model = jd.fit_ridge(jd.features.Linear(20), x, y, lams=[0.0, 1.0])
    # Every leverage is one at lam = 0: residual and distance from one are both nothing but rounding.
    assert model.selection.squared_errors[0] == np.inf
    assert model.lam == 1.0


def test_small_penalties_are_scored_right_also_where_products_are_float32():
    x, y = regression(10, 16, 2, np.float32)
    lams = np.array([1e-7, 1e-4])  # leverages of one, as far as float32 can tell
    model = jd.fit_ridge(jd.features.Linear(16), x, y, lams=lams, dtype=np.float32)
    expected = [one_left_out(x.astype(np.float64), y, lam) for lam in lams]
    np.testing.assert_allclose(model.selection.squared_errors, expected, rtol=1e-5)


def test_candidates_are_sorted_and_a_best_one_at_the_edge_is_said_to_be():
    x, y = regression(12, 5, 1)
    model = jd.fit_ridge(jd.features.Linear(5), x, y, lams=[1e6, 1e5, 1e4])
    np.testing.assert_array_equal(model.selection.lams, [1e4, 1e5, 1e6])
    assert model.lam == 1e4 and model.selection.at_edge
    assert not jd.fit_ridge(jd.features.Linear(5), x, y, lams=[1e-9, 0.3, 1e6]).selection.at_edge


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_precision_of_the_products_is_the_one_asked_for(dtype):
    x, y = regression(60, 8, 2)
    found = jd.fit_ridge(jd.features.Linear(8), x, y, lam=1e-3, dtype=dtype).weights
    oracle = np.linalg.solve(x.T @ x + 1e-3 * np.eye(8), x.T @ y)
    error = relative(found, oracle)
    assert error < 60 * np.linalg.cond(x) ** 2 * EPS[dtype]
    assert found.dtype == np.float64
    if dtype is np.float32:
        assert error > EPS[np.float64] * 1e3  # it was float32 indeed


def test_primal_and_dual_are_one_path_at_the_border():
    x, y = regression(12, 12, 2)
    phi = jd.features.Linear(12)
    models = [jd.fit_ridge(phi, x[:n], y[:n], lam=0.5) for n in (11, 12)]
    for model, n in zip(models, (11, 12), strict=True):
        oracle = Ridge(alpha=0.5, fit_intercept=False, solver="svd").fit(x[:n], y[:n]).coef_.T
        assert relative(model.weights, oracle) < 1e-11
        assert model.rank == n


def test_a_held_out_fraction_at_no_penalty_gives_the_weights_of_least_norm_on_all_data():
    x, y = regression(30, 6, 2)
    x[:, 5] = x[:, 0]  # no Cholesky factor exists
    model = jd.fit_ridge(
        jd.features.Linear(6), x, y, lams=[0.0], validation=0.2, key=jax.random.key(0), dtype=np.float64
    )
    assert relative(model.weights, np.linalg.pinv(x) @ y) < 1e-10
    assert model.lam == 0.0 and model.moments.count == 30


def test_the_key_decides_which_examples_are_held_out():
    x, y = regression(40, 5, 1)

    def errors(seed):
        model = jd.fit_ridge(
            jd.features.Linear(5), x, y, lams=LAMS, validation=0.25, key=jax.random.key(seed)
        )
        return model.selection.squared_errors

    np.testing.assert_array_equal(errors(0), errors(0))
    assert np.all(errors(0) != errors(1))


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
def test_many_fourier_features_approach_gaussian_kernel_ridge(kind):
    rng = np.random.default_rng(0)
    x, fresh = rng.standard_normal((40, 3)), rng.standard_normal((20, 3))
    y = np.sin(x.sum(axis=1, keepdims=True))
    oracle = KernelRidge(alpha=1.0, kernel="rbf", gamma=1 / 8).fit(x, y)
    spread = []
    for p in (200, 2000):
        phi = jd.features.RandomFourier.create(3, p, lengthscale=2.0, frequencies=kind, key=jax.random.key(1))
        model = jd.fit_ridge(phi, x, y, lam=1.0)
        spread.append(np.max(np.abs(model.predict(fresh) - oracle.predict(fresh))))
        # |dK| <= 5 deviations sqrt(2/p) an entry; |alpha|_1 <= sqrt(n) |y| at lam = 1, once for the kernel
        # at the fresh points and once, times the leverage below one, for the system.
        assert spread[-1] < 2 * 5 * np.sqrt(2 / p) * np.abs(oracle.dual_coef_).sum()
    assert spread[1] < spread[0]


def test_cholesky_and_path_give_the_same_weights_and_no_factor_gives_nan():
    x, y = regression(30, 6, 2)
    moments = accumulate_moments(jd.features.Linear(6), source_of(x, y), dtype=np.float64)
    path = compiled(lambda m, lam: RidgePath.from_moments(m).weights(lam))
    solve = compiled(solve_ridge)
    assert relative(solve(moments, 0.1), path(moments, 0.1)) < 1e-12
    assert np.isnan(solve(moments, -1e6)).any()


def test_weighted_and_streamed_moments_are_those_of_the_rows():
    x, y = regression(9, 4, 2)
    weight = np.arange(9.0)
    one = compiled(lambda x, y, w: Moments.from_features(x, y, w))(x, y, weight)
    np.testing.assert_allclose(one.gram, x.T @ np.diag(weight) @ x, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(one.cross, x.T @ np.diag(weight) @ y, rtol=1e-13, atol=1e-13)
    assert one.count == weight.sum()

    def streamed(x, y):
        first, second, third = (Moments.zeros(4, 2).update(x[s], y[s]) for s in np.split(np.arange(9), 3))
        return first.merge(second).merge(third), first.merge(second.merge(third))

    left, right = compiled(streamed)(x, y)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(left.gram, x.T @ x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (np.eye(3), TargetKind.ONE_HOT),
        (np.eye(3) - 1 / 3, TargetKind.CENTRED),
        ((np.eye(3) - 1 / 3).astype(np.float32), TargetKind.CENTRED),
        (2 * np.eye(3), TargetKind.REAL),
        (np.ones((3, 3)), TargetKind.REAL),
        (np.zeros((3, 3)), TargetKind.REAL),
        (np.ones((3, 1)), TargetKind.REAL),
        (np.vstack([np.eye(3), [[0.5, 0.5, 0.0]]]), TargetKind.REAL),
    ],
)
def test_targets_are_told_apart(rows, kind):
    assert detect_targets(rows) is kind


def test_weights_of_centred_targets_have_one_rank_less_than_classes(problem):
    model = jd.fit_ridge(jd.features.Linear(12), problem["x"], problem["y"] - 1 / 3, lam=1.0)
    assert np.linalg.matrix_rank(model.weights) == 2
    assert np.abs(model.weights.sum(axis=1)).max() < 8 * EPS[np.float64] * np.abs(model.weights).max()


def test_prediction_in_chunks_compiles_once_and_pads_nothing_into_the_result():
    x, y = regression(40, 2, 3)
    model = jd.fit_ridge(jd.features.Linear(2), x, y, lam=1.0)
    many = np.random.default_rng(1).standard_normal((20_000, 2))  # one full chunk of 16384 and a part
    _predict_chunk.clear_cache()
    found = model.predict(many)
    assert _predict_chunk._cache_size() == 1
    np.testing.assert_allclose(found, many @ model.weights, rtol=1e-12, atol=1e-12)
    assert model.predict(many[:0]).shape == (0, 3)
    assert model.predict(many.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("x", [np.zeros(2), np.zeros((3, 4)), np.zeros((3, 2), int)], ids=str)
def test_prediction_refuses_other_shapes_and_types(x):
    model = jd.fit_ridge(jd.features.Linear(2), *regression(20, 2, 3), lam=1.0)
    with pytest.raises(InputError, match=r"expected \(n, 2\)"):
        model.predict(x)


GOOD = regression(20, 4, 2)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"validation": (GOOD[0][:, :3], GOOD[1])}, InputError, "validation x"),
        ({"validation": (GOOD[0], GOOD[1][:5])}, InputError, "validation y"),
        ({"validation": (GOOD[0] * np.nan, GOOD[1])}, InputError, "validation x holds"),
        ({"validation": (GOOD[0], GOOD[1] * np.inf)}, InputError, "validation y holds"),
        ({"validation": 1, "key": jax.random.key(0)}, InputError, "between 0 and 1"),
        ({"validation": 0.01, "key": jax.random.key(0)}, InputError, "without any"),
        ({"validation": 0.999, "key": jax.random.key(0)}, InputError, "without any"),
        ({"lams": [1.0, -1.0]}, PenaltyError, ">= 0"),
        ({"lams": [1.0, np.nan]}, PenaltyError, "finite"),
        ({"lams": 3.0}, PenaltyError, "list"),
        ({"lam": np.inf}, PenaltyError, "finite"),
        ({"lam": None}, PenaltyError, "number"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, error, says):
    with pytest.raises(error, match=says):
        jd.fit_ridge(jd.features.Linear(4), *GOOD, **change)


@pytest.mark.parametrize(
    ("x", "y"), [(GOOD[0][:0], GOOD[1][:0]), (GOOD[0], GOOD[1][:, 0]), (GOOD[0][0], GOOD[1]), (GOOD[0], 1.0)]
)
def test_shapes_that_do_not_fit_are_refused(x, y):
    with pytest.raises(InputError, match="shape"):
        jd.fit_ridge(jd.features.Linear(4), x, y, lam=1.0)


@pytest.mark.parametrize("intercept", (False, True))
def test_generalised_cross_validation_is_leave_one_out_with_the_mean_leverage(intercept):
    rng = np.random.default_rng(5)
    x, lams = rng.standard_normal((40, 6)) + 2, np.array([0.01, 1.0, 30.0, 1e4])
    y = x @ rng.standard_normal((6, 2)) + 3 * rng.standard_normal((40, 2))
    chunks = iter([(x[:30], y[:30]), (x[30:], y[30:])])  # one pass is enough
    found = jd.fit_ridge(
        jd.features.Linear(6), chunks, lams=lams, validation="generalised", intercept=intercept
    )
    hats = [
        (c := x - intercept * x.mean(0)) @ np.linalg.solve(c.T @ c + lam * np.eye(6), c.T) for lam in lams
    ]
    hats = [hat + intercept / 40 for hat in hats]
    scores = [np.sum((y - hat @ y) ** 2) / 40 / (1 - np.trace(hat) / 40) ** 2 for hat in hats]
    np.testing.assert_allclose(found.selection.squared_errors, scores, rtol=1e-10)
    assert found.lam == lams[np.argmin(scores)] and found.selection.method == "generalised cross-validation"


def test_an_error_that_rounding_hides_chooses_no_penalty_by_chance():
    x = np.random.default_rng(6).standard_normal((40, 6))
    found = jd.fit_ridge(jd.features.Linear(6), x, x[:, :2], validation="generalised")
    assert found.lam <= 1e-5 and np.all(found.selection.squared_errors > 0)
    with pytest.raises(InputError, match="unknown validation 'gcv'; use 'leave-one-out', 'generalised'"):
        jd.fit_ridge(jd.features.Linear(6), x, x, validation="gcv")
