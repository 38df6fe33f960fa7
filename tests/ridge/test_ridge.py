"""Moments, ridge path, choice of the penalty: against scikit-learn, NumPy and brute force."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import source_of
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.ridge.model import predict
from jaxdistill.ridge.moments import _add_chunk, accumulate_moments
from jaxdistill.ridge.path import RidgePath, factor_primal, path_weights
from jaxdistill.ridge.selection import score_penalties

RNG = np.random.default_rng(0)
TALL = RNG.standard_normal((60, 8)), RNG.standard_normal((60, 3))
WIDE = RNG.standard_normal((9, 20)), RNG.standard_normal((9, 2))


@pytest.mark.parametrize("data", [TALL, WIDE], ids=["primal", "dual"])
@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e3])
def test_weights_equal_scikit_learn(data, lam):
    x, y = data
    model = jd.fit_ridge(jd.features.Linear(x.shape[1]), x, y, lam=lam)
    oracle = Ridge(alpha=lam, fit_intercept=False, solver="svd").fit(x, y).coef_.T
    np.testing.assert_allclose(model.weights, oracle, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("data", [TALL, WIDE], ids=["primal", "dual"])
def test_no_penalty_gives_the_weights_of_least_norm_on_rank_deficient_data(data):
    x, y = data
    x = x.copy()
    x[:, 1] = 2 * x[:, 0]
    model = jd.fit_ridge(jd.features.Linear(x.shape[1]), x, y, lam=0.0)
    np.testing.assert_allclose(model.weights, np.linalg.pinv(x) @ y, atol=1e-8)
    assert model.rank == np.linalg.matrix_rank(x)


def test_training_error_in_closed_form_and_primal_equals_dual():
    x, y = TALL
    primal = in_float64(
        lambda m: RidgePath.from_moments(m),
        accumulate_moments(jd.features.Linear(8), source_of(x, y), dtype=np.float64),
    )
    dual = in_float64(RidgePath.from_features, x, y)
    for lam in (0.1, 10.0):
        weights = in_float64(path_weights, primal, lam)
        np.testing.assert_allclose(weights, in_float64(path_weights, dual, lam), rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(
            float(in_float64(RidgePath.training_error, primal, lam)),
            np.sum((y - x @ weights) ** 2),
            rtol=1e-9,
        )
    stacked = in_float64(RidgePath.weights_path, primal, np.array([0.1, 10.0]))
    np.testing.assert_allclose(stacked[1], in_float64(path_weights, primal, 10.0), rtol=1e-9)


def test_random_fourier_features_approach_gaussian_kernel_ridge():
    x, y = RNG.standard_normal((80, 3)), RNG.standard_normal((80, 1))
    phi = jd.features.RandomFourier.create(3, 20000, lengthscale=2.0, key=jax.random.key(0))
    z = np.asarray(phi(jnp.asarray(x, jnp.float32)), np.float64)
    oracle = KernelRidge(alpha=1.0, kernel="rbf", gamma=1 / 8).fit(x, y).predict(x)
    weights = z.T @ np.linalg.solve(z @ z.T + np.eye(80), y)
    assert np.max(np.abs(z @ weights - oracle)) < 5 / np.sqrt(20000) * np.sqrt(80)


@pytest.mark.parametrize("data", [TALL, WIDE], ids=["primal", "dual"])
def test_leave_one_out_equals_brute_force(data):
    x, y = data
    lams = np.array([0.01, 1.0, 100.0])
    path = in_float64(RidgePath.from_features, x, y)
    found = score_penalties(
        "leave-one-out",
        path,
        jd.features.Linear(x.shape[1]),
        source_of(x, y),
        lams,
        classes=True,
        dtype=np.float64,
    )
    for i, lam in enumerate(lams):
        squared = wrong = 0.0
        for left in range(len(x)):
            rest = np.arange(len(x)) != left
            weights = x[rest].T @ np.linalg.solve(x[rest] @ x[rest].T + lam * np.eye(len(x) - 1), y[rest])
            prediction = x[left] @ weights
            squared += np.sum((prediction - y[left]) ** 2)
            wrong += prediction.argmax() != y[left].argmax()
        np.testing.assert_allclose(found.squared_errors[i], squared / len(x), rtol=1e-8)
        assert found.error_rates is not None
        np.testing.assert_allclose(found.error_rates[i], wrong / len(x))


def test_validation_scores_equal_direct_ones_and_choose_the_best(problem):
    phi = jd.features.Linear(12)
    train, held = slice(0, 100), slice(100, 150)
    model = jd.fit_ridge(
        phi, problem["x"][train], problem["y"][train], validation=(problem["x"][held], problem["y"][held])
    )
    selection = model.selection
    assert selection is not None
    for lam, rate in zip(selection.lams, selection.error_rates, strict=True):
        other = jd.fit_ridge(phi, problem["x"][train], problem["y"][train], lam=float(lam))
        direct = other.predict(problem["x"][held]).argmax(1) != problem["y"][held].argmax(1)
        assert abs(rate - direct.mean()) <= 1 / 50 + 1e-12  # a tie may fall either way in float32
    assert selection.error_rates[selection.index] == selection.error_rates.min()


def test_a_fraction_held_out_is_trained_on_afterwards(problem):
    model = jd.fit_ridge(
        jd.features.Linear(12), problem["x"], problem["y"], validation=0.2, key=jax.random.key(0)
    )
    again = jd.fit_ridge(jd.features.Linear(12), problem["x"], problem["y"], lam=model.lam)
    np.testing.assert_allclose(model.weights, again.weights, rtol=1e-7, atol=1e-9)
    assert model.moments.count == 150


@pytest.mark.parametrize("chunk", [7, 16, 60, 256])
def test_moments_do_not_depend_on_chunks_and_compile_once(chunk):
    x, y = TALL
    _add_chunk.clear_cache()
    moments = accumulate_moments(jd.features.Linear(8), source_of(x, y, chunk), dtype=np.float64)
    assert _add_chunk._cache_size() == 1
    np.testing.assert_allclose(moments.gram, x.T @ x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.cross, x.T @ y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.target_gram, y.T @ y, rtol=1e-12, atol=1e-12)
    assert moments.count == 60


def test_padding_does_not_count_for_maps_that_move_zero(maps):
    x, y = RNG.standard_normal((50, 12)), RNG.standard_normal((50, 2))
    phi = maps["fourier"]
    rows = np.arange(0, 50, 3)
    moments = accumulate_moments(phi, source_of(x, y, 8, rows), dtype=np.float64)
    z = in_float64(phi, x[rows])
    np.testing.assert_allclose(moments.gram, z.T @ z, rtol=1e-11, atol=1e-12)
    merged = accumulate_moments(phi, source_of(x[:20], y[:20]), dtype=np.float64)
    rest = accumulate_moments(phi, source_of(x[20:], y[20:]), dtype=np.float64)
    whole = accumulate_moments(phi, source_of(x, y), dtype=np.float64)
    both = in_float64(lambda a, b: a.merge(b), merged, rest)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), both, whole)


def test_eight_devices_give_what_one_gives():
    code = (
        "import jax, numpy as np, jaxdistill as jd\n"
        "from jaxdistill.ridge.moments import accumulate_moments\n"
        "from jaxdistill.ridge.source import ArraySource\n"
        "assert jax.local_device_count() == 8\n"
        "rng = np.random.default_rng(0)\n"
        "x, y = rng.standard_normal((101, 6)), rng.standard_normal((101, 2))\n"
        "m = accumulate_moments(jd.features.Linear(6), ArraySource(x, y, 32), dtype=np.float64)\n"
        "np.testing.assert_allclose(m.gram, x.T @ x, rtol=1e-12)\n"
        "model = jd.fit_ridge(jd.features.Linear(6), x, y, lam=1.0)\n"
        "assert jd.certify(model, jd.distill(model, size=2, key=jax.random.key(0)), x).exact\n"
    )
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, check=True)


def test_prediction_is_the_same_in_batches_and_inside_jit(problem, maps):
    model = jd.fit_ridge(maps["network"], problem["x"], problem["y"], lam=1.0)
    one = np.asarray(jax.jit(lambda x: model(x))(problem["x_test"]))
    np.testing.assert_allclose(model.predict(problem["x_test"]), one, rtol=1e-5, atol=1e-6)
    assert predict(model.features, model.weights, problem["x_test"].astype(np.float64)).dtype == np.float64


def test_path_gradient_with_respect_to_the_penalty():
    x, y = TALL
    with jax.enable_x64(True):
        path = factor_primal(jd.Moments.from_features(jnp.asarray(x), jnp.asarray(y)), "float64")
        loss = lambda lam: jnp.sum(path.weights(lam) ** 2)  # noqa: E731
        numeric = (loss(1.0 + 1e-5) - loss(1.0 - 1e-5)) / 2e-5
        np.testing.assert_allclose(float(jax.grad(loss)(1.0)), float(numeric), rtol=1e-6)


def nan_at(x, value=np.nan):
    x = x.copy()
    x[3, 1] = value
    return x


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": nan_at(TALL[0])}, errors.InputError, r"\(3, 1\)"),
        ({"y": nan_at(TALL[1], np.inf)}, errors.InputError, r"inf.*\(3, 1\)"),
        ({"x": TALL[0][:, :5]}, errors.InputError, r"expected \(n, 8\)"),
        ({"y": TALL[1][:10]}, errors.InputError, "one row of targets"),
        ({"y": np.arange(60)}, errors.InputError, "one_hot"),
        ({"lam": -1.0}, errors.PenaltyError, ">= 0"),
        ({"lam": np.nan}, errors.PenaltyError, "finite"),
        ({"lam": "big"}, errors.PenaltyError, "number"),
        ({"lam": "auto", "validation": 0.1}, errors.InputError, "key="),
        ({"lam": "auto", "validation": 2.0}, errors.InputError, "between 0 and 1"),
        ({"lam": "auto", "validation": "some"}, errors.InputError, "leave-one-out"),
        ({"lam": "auto", "lams": []}, errors.PenaltyError, "non-empty"),
    ],
)
def test_bad_input_is_named(change, error, says):
    arguments = {"x": TALL[0], "y": TALL[1], "lam": 1.0} | change
    with pytest.raises(error, match=says):
        jd.fit_ridge(jd.features.Linear(8), arguments.pop("x"), arguments.pop("y"), **arguments)


def test_too_little_memory_is_named_in_bytes(monkeypatch):
    monkeypatch.setenv("JAXDISTILL_MEMORY_LIMIT", "1M")
    with pytest.raises(errors.MemoryBudgetError, match=r"\d+ bytes"):
        jd.fit_ridge(jd.features.Linear(8), *TALL, lam=1.0)
    monkeypatch.setenv("JAXDISTILL_MEMORY_LIMIT", "much")
    with pytest.raises(errors.InputError, match="2G"):
        jd.fit_ridge(jd.features.Linear(8), *TALL, lam=1.0)
