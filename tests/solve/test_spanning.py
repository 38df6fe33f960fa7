"""The spanning equations: counting, the step, the solver, its box, its pull and its refusals."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled, relative
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.errors import InputError, MemoryBudgetError
from jaxdistill.features import RandomNetwork
from jaxdistill.solve import spanning_solver as solver
from jaxdistill.solve import tangent
from jaxdistill.solve.spanning import (
    least_squares_mix,
    orthonormal_basis,
    relative_residual,
    spanning_count,
    spanning_mix,
)
from jaxdistill.solve.spanning_report import SpanningOutcome
from jaxdistill.solve.spanning_solver import choose_method, solve_spanning
from jaxdistill.solve.spanning_step import SpanningMethod
from jaxdistill.solve.spanning_walk import walk_on
from jaxdistill.solve.tangent import jacobians, tangent_gram

D, P, K = 8, 26, 3
cache_size: Any = getattr(walk_on, "_cache_size")  # noqa: B009
features_of = compiled(lambda phi, x: phi(x))


def network(activation="gelu", widths=(P,)):
    return RandomNetwork.create(D, widths=widths, activation=activation, key=jax.random.key(1))


@pytest.fixture(scope="module")
def trained():
    """Weights that ridge regression learned through the GELU network, and examples to start from."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, D))
    phi = features_of(network(), x)
    weights = np.linalg.solve(phi.T @ phi + 0.1 * np.eye(P), phi.T @ rng.standard_normal((80, K)))
    return weights, x


def outside(phi, x, weights):
    """Relative part of the weights outside the span of the features: an independent judge of exactness."""
    f = features_of(phi, x)
    return relative(np.linalg.pinv(f) @ (f @ weights), weights)


def asleep(phi, x):
    """Features of which half are zero wherever anybody looks."""
    features = phi(x)
    return features * (jnp.arange(P) % 2).astype(features.dtype)


def test_units_that_sleep_leave_the_coefficients_of_the_others(trained):
    weights, x = trained
    weights = weights * (np.arange(P) % 2)[:, None]
    phi = jax.tree_util.Partial(asleep, network())
    found = solve_spanning(phi, weights, x[:20])  # of rank 13
    assert found.report.reached and found.report.began == "start" and found.report.steps < 20
    assert outside(phi, found.x, weights) < 1e-11


@given(p=st.integers(1, 5000), d=st.integers(1, 3000), k=st.integers(1, 30), rank=st.integers(1, 30))
def test_the_count_is_the_first_size_with_enough_unknowns(p, d, k, rank):
    r, m = min(rank, k), spanning_count(p, d, k, rank)
    assert m >= r and m * (d + r) >= p * r
    assert m == r or (m - 1) * (d + r) < p * r


def test_a_count_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        spanning_count(0, 3, 2)


@pytest.mark.parametrize("method", SpanningMethod)
def test_both_methods_reach_an_exact_set_at_the_count(trained, method):
    weights, x = trained
    count = spanning_count(P, D, K)
    found = solve_spanning(network(), weights, x[: count + 1], method=method)
    assert found.report.reached and found.report.method is method
    assert found.report.count == count and found.report.size == count + 1
    assert outside(network(), found.x, weights) < 1e-11
    assert (found.report.iterations > 0) == (method is SpanningMethod.MATRIX_FREE)
    f = features_of(network(), found.x)
    basis = np.linalg.svd(weights, full_matrices=False)[0]
    residual = np.linalg.norm(f.T @ found.mix - basis) / np.sqrt(K)
    assert (
        np.isclose(residual, found.report.residual, rtol=1, atol=1e-14) and residual < found.report.tolerance
    )


def test_below_the_count_nothing_is_exact_and_the_best_is_returned(trained):
    weights, x = trained
    size = spanning_count(P, D, K) - 1
    found = solve_spanning(network(), weights, x[:size], steps=60)
    assert not found.report.reached
    assert found.report.outcome in (SpanningOutcome.STALLED, SpanningOutcome.STEPS)
    assert 1e-6 < outside(network(), found.x, weights) <= 1.01 * found.report.residual * np.sqrt(K) * 10
    assert found.report.residual < outside(network(), x[:size], weights)


def test_steps_and_seconds_end_the_solver_with_the_best_so_far(trained):
    weights, x = trained
    few = solve_spanning(network(), weights, x[:9], steps=2)
    assert few.report.outcome is SpanningOutcome.STEPS and few.report.steps == 2
    short = solve_spanning(network(), weights, x[:9], seconds=1e-9)
    assert short.report.outcome is SpanningOutcome.SECONDS and short.report.steps == 0
    assert few.report.residual < short.report.residual


def test_several_starts_return_an_exact_one_like_the_single_run(trained):
    weights, x = trained
    starts = np.stack([x[:8], x[8:16], x[16:24]])
    found = solve_spanning(network(), weights, starts)
    assert found.report.reached and found.report.starts == 3
    assert outside(network(), found.x, weights) < 1e-11
    alone = solve_spanning(network(), weights, starts[found.report.chosen])
    assert alone.report.reached


def test_a_box_holds_exactly_and_the_set_is_exact_inside(trained):
    weights, x = trained
    free = solve_spanning(network(), weights, x[:20])
    limit = np.abs(x[:20]).max()
    low, high = np.full(D, -limit), np.full(D, 0.9 * np.abs(free.x).max())
    boxed = solve_spanning(network(), weights, np.clip(x[:20], low, high), box=(low, high))
    assert boxed.report.reached and outside(network(), boxed.x, weights) < 1e-11
    assert np.all(boxed.x >= low) and np.all(boxed.x <= high)


def test_a_box_that_cannot_be_met_returns_the_best_and_says_how_far(trained):
    weights, x = trained
    found = solve_spanning(network(), weights, x[:8], box=(-1e-3, 1e-3), steps=40)
    assert not found.report.reached and found.report.residual > 1e-3
    assert np.all(np.abs(found.x) <= 1e-3)


def test_a_pull_keeps_exactness_and_comes_nearer_to_the_start(trained):
    weights, x = trained
    plain, pulled = (solve_spanning(network(), weights, x[:16], pull=rounds) for rounds in (0, 3))
    assert pulled.report.reached and pulled.report.distance < plain.report.distance
    assert outside(network(), pulled.x, weights) < 1e-11


def test_sharp_first_coefficients_keep_inputs_nearer_than_least_squares(trained):
    weights, x = trained
    fitted, sharp = (solve_spanning(network(), weights, x[:16], sharpness=c) for c in (None, 10.0))
    assert fitted.report.reached and sharp.report.reached
    assert sharp.report.distance < 0.5 * fitted.report.distance


@pytest.mark.parametrize("widths", [(P,), (10, P)])
@pytest.mark.parametrize("activation", ["leaky_relu", "cosine"])
def test_the_mean_tangent_gram_of_networks_is_that_of_jacobians(widths, activation):
    phi = network(activation, widths)
    x = np.random.default_rng(2).standard_normal((300, D))
    explicit = compiled(lambda phi, x: jacobians(phi, x))(phi, x)
    mean = np.einsum("ipd,iqd->pq", explicit, explicit) / len(x)
    found = compiled(lambda phi, x: tangent_gram(phi, x))(phi, x)
    assert relative(found, mean) < (1e-12 if len(widths) == 1 else 0.5)
    few = compiled(lambda phi, x: tangent_gram(lambda z: phi(z), x))(phi, x)  # a map that it does not know
    assert relative(few, mean) < 0.8


def test_random_tangents_stand_for_the_jacobians_of_wide_maps(monkeypatch):
    monkeypatch.setattr(tangent, "_WIDE", 0)
    monkeypatch.setattr(tangent, "_TANGENTS", 1000)
    phi, x = network("cosine"), np.random.default_rng(2).standard_normal((40, D))
    explicit = compiled(lambda phi, x: jacobians(phi, x))(phi, x)
    mean = np.einsum("ipd,iqd->pq", explicit, explicit) / len(x)
    found = compiled(lambda phi, x: tangent_gram(lambda z: phi(z), x))(phi, x)
    # Sample covariance of N vectors of length p: relative error about sqrt(p / N).
    assert relative(found, mean) < 0.1


def test_sharp_coefficients_have_equal_singular_values_and_least_squares_the_least_residual(trained):
    weights, x = trained
    f = features_of(network(), x[:12])
    basis = compiled(orthonormal_basis, static=1)(weights, K)
    sharp = compiled(spanning_mix)(f, basis, 5.0)
    gram = sharp.T @ sharp
    assert relative(gram, np.eye(K) * gram[0, 0]) < 1e-12
    fitted = compiled(least_squares_mix)(f, basis)
    norm = compiled(relative_residual)
    noise = np.random.default_rng(3).standard_normal(fitted.shape)
    assert norm(f, fitted, basis) < min(norm(f, fitted + 1e-3 * noise, basis), norm(f, sharp, basis))


def test_any_differentiable_function_will_do(trained):
    weights, x = trained
    inner = np.random.default_rng(4).standard_normal((D, P)) / np.sqrt(D)
    phi = jax.tree_util.Partial(lambda w, z: jnp.sin(jnp.matmul(z, w.astype(z.dtype))), inner)
    found = solve_spanning(phi, weights, x[:10])
    assert found.report.reached and outside(phi, found.x, weights) < 1e-11


def test_the_method_follows_the_shapes():
    assert choose_method(128, 784, 100, 10) is SpanningMethod.DIRECT
    assert choose_method(3136, 784, 100, 10) is SpanningMethod.MATRIX_FREE
    assert choose_method(128, 3072, 1000, 10) is SpanningMethod.MATRIX_FREE


def test_a_second_solve_of_the_same_shapes_compiles_nothing(trained):
    weights, x = trained
    solve_spanning(network(), weights, x[:9], steps=2)
    before = cache_size()
    solve_spanning(network(), weights, x[9:18], steps=2, sharpness=3.0)
    assert cache_size() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"box": 1.0}, "pair"),
        ({"box": (1.0, 0.0)}, "below"),
        ({"box": (np.zeros(3), 1.0)}, "length 8"),
        ({"box": (np.nan, 1.0)}, "below"),
        ({"sharpness": 0.0}, "sharpness"),
        ({"mobility": np.inf}, "mobility"),
        ({"steps": -1}, "steps"),
        ({"pull": 1.5}, "pull"),
        ({"seconds": -2.0}, "seconds"),
        ({"weights": np.zeros(P)}, "weights"),
        ({"start": np.zeros(D)}, "start"),
        ({"start": np.full((9, D), np.nan)}, "not finite"),
        ({"start": np.zeros((2, D))}, "at least 3"),
    ],
)
def test_requests_that_make_no_sense_are_refused(trained, change, says):
    weights, x = trained
    request = {"weights": weights, "start": x[:9]} | change
    with pytest.raises(InputError, match=says):
        solve_spanning(network(), request.pop("weights"), request.pop("start"), **request)


def test_what_does_not_fit_into_memory_is_refused_before_any_work(trained, monkeypatch):
    weights, x = trained
    monkeypatch.setenv("JAXDISTILL_MEMORY_LIMIT", "1K")
    with pytest.raises(MemoryBudgetError, match="spanning equations"):
        solve_spanning(network(), weights, x[:9])


def test_kinks_where_descent_stalls_are_passed_uphill_and_the_best_is_kept(monkeypatch):
    outcomes = []
    for seed, uphill in itertools.product(range(1, 4), (solver.DOWNHILL, solver.UPHILL)):
        monkeypatch.setattr(solver, "UPHILL", uphill)
        rng = np.random.default_rng(seed)
        phi = RandomNetwork.create(16, widths=(32,), activation="leaky_relu", key=jax.random.key(seed))
        weights, start = rng.standard_normal((32, 3)), rng.standard_normal((8, 16))
        found = solve_spanning(phi, weights, start)
        left = np.linalg.svd(weights, full_matrices=False)[0] - features_of(phi, found.x).T @ found.mix
        assert found.report.residual == pytest.approx(np.linalg.norm(left) / K**0.5, rel=1e-6, abs=1e-13)
        outcomes.append(found.report.outcome.name)
    assert outcomes == ["STALLED", "REACHED"] * 3
