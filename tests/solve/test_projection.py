"""The projection below the count: its loss and gradient, its optimum for linear maps, its budget, its box."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled, relative
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.errors import DivergenceError, InputError, MemoryBudgetError
from jaxdistill.features import Linear, RandomNetwork
from jaxdistill.solve import projection
from jaxdistill.solve.projection import project, projection_loss, share_lost

N, D, P, K = 60, 5, 9, 3
loss_of, lost_of = compiled(projection_loss), compiled(share_lost)
cache_size: Any = getattr(projection._descend, "_cache_size")  # noqa: B009


def data(seed, p=P, k=K):
    """Features of the training data with columns of unequal size, and weights."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, p)) * np.geomspace(1, 10, p), rng.standard_normal((p, k))


def by_data(features, weights, phi):
    """What the best labels leave of the predictions on the data, by least squares on the data themselves."""
    wanted = phi @ weights
    left = wanted - phi @ features.T @ np.linalg.lstsq(phi @ features.T, wanted, rcond=None)[0]
    return np.sum(left**2) / np.sum(wanted**2)


def least_lost(weights, phi, rank):
    """What no set of that many points can do without: the singular values that reduced rank leaves out."""
    energies = np.linalg.svd(phi @ weights, compute_uv=False) ** 2
    return np.sum(energies[rank:]) / np.sum(energies)


@given(seed=st.integers(0, 10**6), m=st.sampled_from([1, 4]))
def test_the_loss_is_that_of_weighted_least_squares_on_the_data(seed, m):
    phi, weights = data(seed)
    features = np.random.default_rng(seed + 1).standard_normal((m, P))
    gram = phi.T @ phi
    expected = by_data(features, weights, phi)
    # The formula, term by term: 1 - tr(T^T T) / tr(B^T G B).
    system, right = features @ gram @ features.T, features @ gram @ weights
    half = np.linalg.solve(np.linalg.cholesky(system), right)
    assert 1 - np.sum(half**2) / np.trace(weights.T @ gram @ weights) == pytest.approx(expected, abs=1e-10)
    for found in (loss_of(features, weights, gram), lost_of(features, weights, gram)):
        assert found == pytest.approx(expected, abs=1e-10)
        assert -1e-12 <= found <= 1 and found >= least_lost(weights, phi, m) - 1e-12


def test_neither_the_scale_of_points_nor_that_of_the_data_matters():
    phi, weights = data(1)
    features = np.random.default_rng(2).standard_normal((4, P))
    rows = np.array([[1e-3], [1.0], [-7.0], [1e3]])
    expected = loss_of(features, weights, phi.T @ phi)
    assert loss_of(rows * features, 5 * weights, 1e6 * phi.T @ phi) == pytest.approx(expected, rel=1e-8)


def test_a_point_more_never_loses_more_and_a_copy_loses_the_same():
    phi, weights = data(3)
    features = np.random.default_rng(4).standard_normal((P, P))
    gram = phi.T @ phi
    losses = [lost_of(features[:m], weights, gram) for m in (1, 2, 4, P)]
    assert np.all(np.diff(losses) < 0) and abs(losses[-1]) < 1e-12
    copies = np.concatenate([features[:2]] * 4)
    assert lost_of(copies, weights, gram) == pytest.approx(losses[1], abs=1e-12)
    assert lost_of(np.zeros((2, P)), weights, gram) == 1


def test_single_precision_sees_the_same_loss():
    phi, weights = data(5)
    features = np.random.default_rng(6).standard_normal((4, P))
    arrays = [jnp.asarray(a, jnp.float32) for a in (features, weights, phi.T @ phi)]
    found = jax.jit(projection_loss)(*arrays)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(by_data(features, weights, phi), rel=1e-4)


def test_the_gradient_is_that_of_finite_differences_on_the_data():
    phi, weights = data(7)
    features = np.random.default_rng(8).standard_normal((4, P))
    found = compiled(jax.grad(projection_loss))(features, weights, phi.T @ phi)
    step, expected = 1e-5, np.empty_like(features)
    for at in np.ndindex(features.shape):
        ends = [features.copy(), features.copy()]
        ends[0][at] += step
        ends[1][at] -= step
        expected[at] = (by_data(ends[0], weights, phi) - by_data(ends[1], weights, phi)) / (2 * step)
    assert relative(found, expected) < 1e-7


# The descent


@pytest.fixture(scope="module")
def linear():
    phi, weights = data(9, D)
    return phi, weights, phi.T @ phi


def start(m, seed=10):
    return np.random.default_rng(seed).standard_normal((m, D))


@pytest.mark.parametrize("m", [1, 2])
def test_below_the_rank_linear_maps_reach_reduced_rank_regression_and_never_beat_it(linear, m):
    phi, weights, gram = linear
    found = project(Linear(D), weights, gram, start(m))
    best = least_lost(weights, phi, m)
    assert best > 1e-3
    assert best * (1 - 1e-9) <= found.report.loss <= best * (1 + 1e-3) < found.report.start
    assert found.report.loss == pytest.approx(by_data(found.x, weights, phi), rel=1e-9)


def test_from_the_rank_on_linear_maps_lose_nothing(linear):
    phi, weights, gram = linear
    found = project(Linear(D), weights, gram, start(K))
    assert -1e-12 < found.report.loss < 1e-5 < found.report.start
    assert by_data(found.x, weights, phi) == pytest.approx(found.report.loss, abs=1e-12)


def test_a_network_comes_nearer_and_is_reported_as_it_is():
    net = RandomNetwork.create(D, widths=(16,), activation="tanh", key=jax.random.key(0))
    features_of = compiled(lambda phi, x: phi(x))
    phi, weights = features_of(net, start(80, 11)), data(12, 16)[1]
    found = project(net, weights, phi.T @ phi, start(4))
    assert found.report.loss < 0.5 * found.report.start
    assert found.report.start == pytest.approx(by_data(features_of(net, start(4)), weights, phi), rel=1e-9)
    assert found.report.loss == pytest.approx(by_data(features_of(net, found.x), weights, phi), rel=1e-9)
    assert found.report.loss >= least_lost(weights, phi, 4)


def test_the_best_is_kept_whatever_the_steps_do(linear):
    _, weights, gram = linear
    optimum = project(Linear(D), weights, gram, start(2))
    for rate in (1e-3, 1e3):
        again = project(Linear(D), weights, gram, optimum.x, steps=30, learning_rate=rate)
        assert again.report.loss <= optimum.report.loss
        if again.report.best == 0:
            np.testing.assert_array_equal(again.x, optimum.x)
    assert again.report.best == 0 and again.report.loss == again.report.start
    far = project(Linear(D), weights, gram, start(2), steps=30, learning_rate=1e3)
    assert far.report.loss <= far.report.start


def test_a_descent_that_leaves_the_finite_numbers_returns_the_best_before(linear):
    phi, weights, gram = linear
    limit = np.abs(start(2)).max() + 0.45
    cut = jax.tree_util.Partial(lambda x: jnp.where(jnp.abs(x) < limit, x, jnp.nan))
    found = project(cut, weights, gram, start(2), steps=100)
    assert 0 < found.report.best < 50 and found.report.loss < found.report.start
    assert found.report.loss == pytest.approx(by_data(found.x, weights, phi), rel=1e-9)


def test_moments_beyond_the_range_of_single_precision_are_no_obstacle(linear):
    _, weights, gram = linear
    found, huge = (project(Linear(D), weights, g, start(2), steps=50) for g in (gram, 2.0**150 * gram))
    np.testing.assert_allclose(huge.x, found.x, rtol=1e-5)
    assert huge.report.loss == pytest.approx(found.report.loss, rel=1e-5)


def test_steps_and_seconds_are_a_budget(linear):
    _, weights, gram = linear
    found = project(Linear(D), weights, gram, start(2), steps=30)
    assert found.report.steps == 30 and 0 < found.report.best < 30
    for budget in ({"steps": 0}, {"seconds": 1e-9}):
        none = project(Linear(D), weights, gram, start(2), **budget)
        assert none.report.steps == none.report.best == 0 and none.report.loss == none.report.start
        np.testing.assert_array_equal(none.x, start(2))
    assert found.report.to_dict().keys() == {"loss", "start", "steps", "best"}


def test_a_box_holds_to_the_last_digit_and_is_descended_in(linear):
    phi, weights, gram = linear
    low, high = np.full(D, -0.1), np.linspace(0.1, 0.3, D)
    low[0] = -np.inf
    found = project(Linear(D), weights, gram, start(2), box=(low, high), steps=100)
    assert np.all(found.x >= low) and np.all(found.x <= high)
    assert np.any(found.x == high) or np.any(found.x == low)
    inside = np.clip(start(2), low, high)
    assert found.report.start == pytest.approx(by_data(inside, weights, phi), rel=1e-9)
    # Descending inside is not descending first and cutting then.
    cut = np.clip(project(Linear(D), weights, gram, inside, steps=100).x, low, high)
    assert found.report.loss < 0.99 * min(by_data(cut, weights, phi), found.report.start)


def test_a_second_descent_of_the_same_shapes_compiles_nothing(linear):
    _, weights, gram = linear
    project(Linear(D), weights, gram, start(2), steps=25)
    before = cache_size()
    project(Linear(D), 2 * weights, 3 * gram, start(2, 13), steps=25, learning_rate=0.01, box=(-2.0, 2.0))
    assert cache_size() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"start": np.zeros(D)}, r"expected \(m, d\)"),
        ({"weights": np.zeros(D)}, r"\(p, k\)"),
        ({"gram": np.eye(D + 1)}, r"\(p, p\)"),
        ({"weights": np.ones((D + 1, K)), "gram": np.eye(D + 1)}, f"{D} features, the weights {D + 1}"),
        ({"start": np.full((2, D), np.inf)}, "start holds"),
        ({"weights": np.full((D, K), np.nan)}, "weights holds"),
        ({"gram": np.full((D, D), np.nan)}, "gram holds"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": np.inf}, "learning_rate"),
        ({"seconds": -1.0}, "seconds"),
        ({"steps": -1}, "steps"),
        ({"steps": 2.0}, "steps"),
        ({"steps": True}, "steps"),
        ({"box": (1.0, 0.0)}, "below"),
        ({"box": (np.zeros(2), 1.0)}, f"length {D}"),
    ],
)
def test_requests_that_make_no_sense_are_refused(linear, change, says):
    _, weights, gram = linear
    request = {"weights": weights, "gram": gram, "start": start(2)} | change
    arrays = [request.pop(name) for name in ("weights", "gram", "start")]
    with pytest.raises(InputError, match=says):
        project(Linear(D), *arrays, **request)


def test_a_start_without_a_finite_loss_is_named(linear):
    _, weights, gram = linear
    with pytest.raises(DivergenceError, match="start is not finite"):
        project(jax.tree_util.Partial(lambda x: 1 / x), weights, gram, np.zeros((2, D)))


def test_what_does_not_fit_into_memory_is_refused_before_any_work(linear, monkeypatch):
    _, weights, gram = linear
    monkeypatch.setenv("JAXDISTILL_MEMORY_LIMIT", "1K")
    with pytest.raises(MemoryBudgetError, match="projecting 2 examples"):
        project(Linear(D), weights, gram, start(2))
