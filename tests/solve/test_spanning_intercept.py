"""Spanning equations and projection with an intercept: the count, its transition, moments about means."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import compiled, relative
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from jaxdistill.errors import InputError
from jaxdistill.features import Linear, RandomNetwork
from jaxdistill.solve.projection import project
from jaxdistill.solve.spanning import least_squares_mix, orthonormal_basis, spanning_count, spanning_mix
from jaxdistill.solve.spanning_solver import solve_spanning
from jaxdistill.solve.spanning_step import SpanningMethod
from jaxdistill.solve.spanning_walk import walk_on

cache_size: Any = getattr(walk_on, "_cache_size")  # noqa: B009
features_of = compiled(lambda phi, x: phi(x))
D, P, K = 6, 24, 2


def centred(rows):
    return rows - rows.mean(axis=0)


def model(activation="cosine", d=D, p=P, k=K):
    """Weights that ridge regression with an intercept learned through a network, and examples."""
    phi = RandomNetwork.create(d, widths=(p,), activation=activation, key=jax.random.key(1))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * p, d))
    f, y = centred(features_of(phi, x)), centred(rng.standard_normal((4 * p, k)))
    return phi, np.linalg.solve(f.T @ f + 0.1 * np.eye(p), f.T @ y), x


def starts(x, m, number=3):
    return np.stack([x[i * m : (i + 1) * m] for i in range(number)])


def outside(phi, x, weights):
    """Part of the weights that a model with an intercept, trained on soft labels of the set, cannot hold."""
    f = features_of(phi, x)
    # Labels of the full model: least squares with an intercept returns the projection of the weights.
    found = LinearRegression().fit(f, f @ weights)
    return relative(np.reshape(found.coef_, weights.T.shape).T, weights)


@given(p=st.integers(1, 5000), d=st.integers(1, 3000), k=st.integers(1, 30), rank=st.integers(1, 30))
def test_the_count_is_the_first_size_with_enough_unknowns(p, d, k, rank):
    r, m = min(rank, k), spanning_count(p, d, k, rank, intercept=True)
    assert m >= r + 1 and m * d + (m - 1) * r >= p * r
    assert m == r + 1 or (m - 1) * d + (m - 2) * r < p * r
    assert m - spanning_count(p, d, k, rank) in (0, 1)


@pytest.mark.parametrize("method", SpanningMethod)
def test_the_transition_is_where_the_count_puts_it(method):
    phi, weights, x = model()
    plain, count = spanning_count(P, D, K), spanning_count(P, D, K, intercept=True)
    assert (plain, count) == (6, 7)
    for m in (6, 7):
        found = solve_spanning(phi, weights, starts(x, m), intercept=True, sharpness=1.0, method=method)
        assert found.report.count == count and found.report.size == m
        assert found.report.reached == (m >= count)
        error = outside(phi, found.x, weights)
        assert error < 1e-11 if m >= count else error > 1e-4
    # Without an intercept six are enough.
    assert solve_spanning(phi, weights, starts(x, plain), sharpness=1.0, method=method).report.reached


@pytest.mark.long
@pytest.mark.parametrize("case", [("gelu", 8, 26, 3), ("tanh", 5, 23, 1)])
def test_other_networks_change_there_too(case):
    activation, d, p, k = case
    phi, weights, x = model(activation, d, p, k)
    count = spanning_count(p, d, k, intercept=True)
    for m in (count - 1, count):
        found = solve_spanning(phi, weights, starts(x, m), intercept=True, sharpness=1.0)
        assert found.report.reached == (m >= count)
        assert (outside(phi, found.x, weights) < 1e-11) == (m >= count)


def test_coefficients_have_mean_zero_and_solve_the_equations():
    phi, weights, x = model()
    found = solve_spanning(phi, weights, x[:9], intercept=True)
    assert found.report.reached
    np.testing.assert_allclose(found.mix.sum(axis=0), 0, atol=1e-14 * np.abs(found.mix).max())
    basis = np.linalg.svd(weights, full_matrices=False)[0]
    residual = np.linalg.norm(features_of(phi, found.x).T @ found.mix - basis) / np.sqrt(K)
    assert residual < found.report.tolerance


def test_features_far_from_the_origin_are_no_obstacle():
    phi, weights, x = model()
    far = jax.tree_util.Partial(lambda phi, z: phi(z) + 1e3, phi)
    near, moved = (solve_spanning(f, weights, x[:9], intercept=True) for f in (phi, far))
    assert near.report.reached and outside(phi, near.x, weights) < 1e-11
    assert moved.report.residual < 1e-10 and outside(phi, moved.x, weights) < 1e-9


def test_first_coefficients_are_those_of_the_centred_features_and_of_mean_zero():
    phi, weights, x = model()
    f = centred(features_of(phi, x[:9]))
    basis = compiled(orthonormal_basis, static=1)(weights, K)
    fitted = compiled(lambda f, q: least_squares_mix(f, q, intercept=True))(5 + f, basis)
    np.testing.assert_allclose(fitted, np.linalg.pinv(f.T, rcond=1e-12) @ basis, atol=1e-12)
    sharp = compiled(lambda f, q: spanning_mix(f, q, 5.0, intercept=True))(5 + f, basis)
    np.testing.assert_allclose(sharp.sum(axis=0), 0, atol=1e-14)
    gram = sharp.T @ sharp
    assert relative(gram, np.eye(K) * gram[0, 0]) < 1e-12
    # Along the weakest directions but the ones vector, which is weaker than all.
    weakest = np.linalg.svd(f)[0][:, -1 - K : -1]
    assert relative(weakest @ weakest.T @ sharp, sharp) < 1e-9


def test_a_box_and_a_pull_keep_exactness():
    phi, weights, x = model()
    plain = solve_spanning(phi, weights, x[:12], intercept=True)
    pulled = solve_spanning(phi, weights, x[:12], intercept=True, pull=2)
    assert pulled.report.reached and pulled.report.distance < plain.report.distance
    high = 0.95 * np.abs(plain.x).max()
    boxed = solve_spanning(phi, weights, np.clip(x[:12], -high, high), intercept=True, box=(-high, high))
    assert boxed.report.reached and np.abs(boxed.x).max() <= high
    assert max(outside(phi, s.x, weights) for s in (pulled, boxed)) < 1e-11


def test_too_few_examples_are_refused_and_one_more_is_taken():
    phi, weights, x = model()
    with pytest.raises(InputError, match="rank 2 and an intercept; start from at least 3"):
        solve_spanning(phi, weights, x[:2], intercept=True)
    assert solve_spanning(phi, weights, x[:3], intercept=True, steps=1).report.steps == 1


def test_a_second_solve_of_the_same_shapes_compiles_nothing():
    phi, weights, x = model()
    solve_spanning(phi, weights, x[:9], intercept=True, steps=2)
    before = cache_size()
    solve_spanning(phi, weights, x[9:18], intercept=True, steps=2, sharpness=3.0)
    assert cache_size() == before


# The projection


def by_data(features, weights, phi):
    """What the best labels and intercept leave of the predictions about their mean, by least squares."""
    wanted = phi @ weights
    fit = LinearRegression().fit(phi @ centred(features).T, wanted)
    left = wanted - fit.predict(phi @ centred(features).T)
    return np.sum(left**2) / np.sum(centred(wanted) ** 2)


def test_the_projection_descends_what_is_lost_with_the_best_intercept():
    rng = np.random.default_rng(2)
    data = rng.standard_normal((60, 5)) * np.geomspace(1, 10, 5) + 3
    weights, start = rng.standard_normal((5, 3)), rng.standard_normal((3, 5))
    gram = centred(data).T @ centred(data)
    found = project(Linear(5), weights, gram, start, intercept=True)
    assert found.report.start == pytest.approx(by_data(start, weights, data), rel=1e-9)
    assert found.report.loss == pytest.approx(by_data(found.x, weights, data), rel=1e-6)
    # Three examples hold rank two: reduced-rank regression about the mean, and nothing below it.
    energies = np.linalg.svd(centred(data) @ weights, compute_uv=False) ** 2
    best = energies[2] / energies.sum()
    assert best * (1 - 1e-9) <= found.report.loss <= best * (1 + 1e-3) < found.report.start


def test_one_example_has_nothing_to_project():
    with pytest.raises(InputError, match="at least 2"):
        project(Linear(3), np.ones((3, 1)), np.eye(3), np.ones((1, 3)), intercept=True)
