"""Pre-images by Levenberg-Marquardt: reached, nearest to the start, judged one by one, refused in words."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import compiled, of_condition, relative
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.errors import InputError, MemoryBudgetError
from jaxdistill.features import DeepLinear, RandomNetwork
from jaxdistill.solve import invert as module
from jaxdistill.solve.invert import REACHED, inversion_step, invert

D, M = 7, 5
cache_size: Any = getattr(module._advance, "_cache_size")  # noqa: B009


def network(*widths, activation="tanh"):
    return RandomNetwork.create(D, widths=widths, activation=activation, key=jax.random.key(1))


def by_hand(phi, x):
    """Features of a tanh network in NumPy."""
    for weight in phi.weights:
        x = np.tanh(x @ np.float64(weight).T)
    return x


def linear(matrix):
    """A linear map with this matrix, in float64."""
    return DeepLinear((np.asarray(matrix, np.float64),))


def points(seed, m=M, size=1.0):
    return size * np.random.default_rng(seed).standard_normal((m, D))


@pytest.mark.parametrize("widths", [(4,), (12, 4), (D,), (21,), (10, 30)], ids=str)
def test_reachable_features_are_reached_by_maps_narrow_and_wide(widths):
    phi = network(*widths)
    x = points(0)
    found = invert(phi, by_hand(phi, x), x + points(1, size=0.3))
    assert np.all(found.report.reached) and np.all(found.report.residual <= REACHED)
    for row, wanted in zip(by_hand(phi, found.x), by_hand(phi, x), strict=True):
        assert relative(row, wanted) < 1e-10
    if widths[-1] >= D:  # as many equations as inputs: the pre-image near the start is that one
        assert relative(found.x, x) < 1e-9
    else:
        assert relative(found.x, x) > 1e-2


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu", "cosine"])
def test_kinks_and_slopes_of_both_signs_are_no_obstacle_near_the_start(activation):
    phi = network(21, activation=activation)
    wanted = compiled(lambda phi, x: phi(x))(phi, points(0))
    found = invert(phi, wanted, points(0) + points(1, size=0.05))
    assert np.all(found.report.reached) and relative(found.x, points(0)) < 1e-9


def test_several_starts_find_their_way_from_far():
    phi = network(4)
    found = invert(phi, by_hand(phi, points(2)), np.zeros((M, D)))
    assert np.all(found.report.reached)
    distance = np.sqrt(np.mean(found.x**2, axis=1))
    np.testing.assert_allclose(found.report.distance, distance, rtol=1e-12)


# Linear maps: the pseudo-inverse is the judge


@given(seed=st.integers(0, 10**6), p=st.sampled_from([3, D, 10]), condition=st.sampled_from([1.0, 30.0]))
def test_linear_maps_get_the_solution_of_least_change_and_the_residual_of_least_squares(seed, p, condition):
    rng = np.random.default_rng(seed)
    matrix = of_condition(rng, p, D, condition)
    target, start = rng.standard_normal((M, p)), rng.standard_normal((M, D))
    found = invert(linear(matrix), target, start)
    inverse = np.linalg.pinv(matrix)
    nearest = start + (target - start @ matrix.T) @ inverse.T
    # A residual that is stationary to rounding determines x to its square root where it is not zero.
    assert relative(found.x, nearest) < (1e-9 if p <= D else 1e-5)
    outside = np.linalg.norm(target - target @ (matrix @ inverse).T, axis=1) / np.linalg.norm(target, axis=1)
    np.testing.assert_allclose(found.report.residual, outside, rtol=1e-9, atol=REACHED)
    assert np.all(found.report.reached == (p <= D))


def test_what_a_bottleneck_leaves_out_is_reported_and_never_called_reached():
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((6, 2)) @ rng.standard_normal((2, D))
    inside, start = points(4, 2) @ matrix.T, points(5, 4)
    target = np.concatenate([inside, rng.standard_normal((2, 6))])
    found = invert(linear(matrix), target, start)
    inverse = np.linalg.pinv(matrix)
    outside = np.linalg.norm(target - target @ (matrix @ inverse).T, axis=1) / np.linalg.norm(target, axis=1)
    assert found.report.reached.tolist() == [True, True, False, False]
    np.testing.assert_allclose(found.report.residual, outside, rtol=1e-6, atol=1e-11)
    assert relative(found.x, start + (target - start @ matrix.T) @ inverse.T) < 1e-5


def test_every_example_is_judged_by_itself():
    phi = network(21)
    x = points(6, 3)
    target = by_hand(phi, x)
    target[2] = 1.5  # beyond the range of tanh
    start = np.stack([x[0], x[1] + 0.1, x[2]])
    found = invert(phi, target, start)
    assert found.report.reached.tolist() == [True, True, False]
    assert found.report.steps[0] == 0 and found.report.distance[0] == 0
    assert 0 < found.report.steps[1] < found.report.steps[2] == 100
    left = np.linalg.norm(by_hand(phi, found.x[2:]) - target[2]) / np.linalg.norm(target[2])
    assert found.report.residual[2] == pytest.approx(left, rel=1e-9)
    assert found.report.residual[2] < np.linalg.norm(by_hand(phi, x[2:]) - target[2]) / np.linalg.norm(
        target[2]
    )
    for i in range(3):  # whatever the others do
        alone = invert(phi, target[i : i + 1], start[i : i + 1])
        np.testing.assert_allclose(alone.x[0], found.x[i], rtol=1e-6, atol=1e-9)


def test_steps_and_tolerance_end_it():
    phi = network(4)
    target = by_hand(phi, points(7))
    none = invert(phi, target, points(8), steps=0)
    np.testing.assert_array_equal(none.x, points(8))
    gap = np.linalg.norm(by_hand(phi, points(8)) - target, axis=1) / np.linalg.norm(target, axis=1)
    np.testing.assert_allclose(none.report.residual, gap, rtol=1e-12)
    one, few, all_ = (invert(phi, target, points(8), steps=steps) for steps in (1, 3, 100))
    assert np.all(one.report.steps == 1) and np.all(few.report.steps == 3)
    for more, less in ((none, one), (one, few), (few, all_)):
        assert np.all(less.report.residual <= more.report.residual)
    loose = invert(phi, target, points(8), tolerance=1e-3)
    assert np.all(loose.report.reached) and np.all(loose.report.steps <= all_.report.steps)
    assert np.any(loose.report.residual > REACHED) and np.all(loose.report.residual <= 1e-3)


def test_features_of_zero_are_measured_as_they_are():
    phi = network(4)
    found = invert(phi, np.zeros((2, 4)), points(9, 2, size=0.1))
    assert np.all(found.report.reached) and np.all(np.abs(by_hand(phi, found.x)) < 1e-12)


@pytest.mark.parametrize("p", [3, D, 12])
def test_a_step_is_the_damped_one_by_either_matrix(p):
    rng = np.random.default_rng(p)
    matrix, x, target = rng.standard_normal((p, D)), rng.standard_normal(D), rng.standard_normal(p)
    found = compiled(inversion_step)(linear(matrix), x, target, 0.3)
    shift = 0.3 * np.trace(matrix @ matrix.T) / p
    expected = matrix.T @ np.linalg.solve(matrix @ matrix.T + shift * np.eye(p), target - matrix @ x)
    assert relative(found, expected) < 1e-12


def test_a_second_inversion_of_the_same_shapes_compiles_nothing():
    phi = network(4)
    invert(phi, by_hand(phi, points(0)), points(1))
    before = cache_size()
    invert(phi, by_hand(phi, points(2)), points(3), tolerance=1e-8)
    assert cache_size() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features": np.zeros(4)}, r"expected \(m, p\)"),
        ({"start": np.zeros(D)}, r"\(m, d\)"),
        ({"start": np.zeros((M + 1, D))}, "shapes"),
        ({"start": np.zeros((M, D + 1))}, f"expected .*{D}"),
        ({"features": np.zeros((M, 6))}, "4 features, the targets 6"),
        ({"features": np.full((M, 4), np.nan)}, "features holds"),
        ({"start": np.full((M, D), -np.inf)}, "start holds"),
        ({"steps": -1}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": np.nan}, "tolerance"),
    ],
)
def test_requests_that_make_no_sense_are_refused(change, says):
    request = {"features": np.zeros((M, 4)), "start": np.zeros((M, D))} | change
    with pytest.raises(InputError, match=says):
        invert(network(4), request.pop("features"), request.pop("start"), **request)


def test_jacobians_that_do_not_fit_are_refused_before_any_work(monkeypatch):
    monkeypatch.setenv("JAXDISTILL_MEMORY_LIMIT", "1K")
    with pytest.raises(MemoryBudgetError, match="Jacobians of 5 examples"):
        invert(network(4), np.zeros((M, 4)), np.zeros((M, D)))
