"""The ladder of starts: nearest first, one budget, the best kept; and starts from small features."""

import jax
import numpy as np
import pytest
from helpers import relative
from test_spanning import features_of, network, outside

from jaxdistill.errors import InputError
from jaxdistill.features import RandomNetwork
from jaxdistill.numerics.linalg import matmul
from jaxdistill.solve import spanning_solver as solver
from jaxdistill.solve.ladder import Rung, softer
from jaxdistill.solve.small_features import SMALL, small_features
from jaxdistill.solve.spanning_report import SpanningOutcome
from jaxdistill.solve.spanning_solver import solve_spanning

D, P, K = 12, 10, 3
KEY = jax.random.key(3)


def kinked(seed=1):
    """A problem that descent and steps downhill alone do not solve from this start."""
    rng = np.random.default_rng(seed)
    phi = RandomNetwork.create(16, widths=(32,), activation="leaky_relu", key=jax.random.key(seed))
    return phi, rng.standard_normal((32, 3)), rng.standard_normal((8, 16))


def faint(size=1e-5):
    """A linear map one of whose features hardly moves, and a start that spans all but a little of it."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    square = (turn * [1, 1, 1, size]) @ turn.T
    phi = jax.tree_util.Partial(lambda a, x: matmul(x, a.astype(x.dtype)), square)
    start = rng.standard_normal((3, 4))
    return phi, (start @ square).sum(axis=0)[:, None] + 0.05 * size * turn[:, 3:], start


def narrow(activation):
    """Weights of full rank for a map with at least as many inputs as features, and ordinary inputs."""
    rng = np.random.default_rng(0)
    phi = RandomNetwork.create(D, widths=(P,), activation=activation, key=jax.random.key(1))
    x = rng.standard_normal((60, D))
    f = features_of(phi, x)
    return phi, np.linalg.solve(f.T @ f + np.eye(P), f.T @ rng.standard_normal((60, K))), x


def test_a_first_rung_that_is_exact_is_what_it_is_alone():
    phi, weights, start = network(), np.random.default_rng(0).standard_normal((26, 3)), np.eye(9, 8)

    def never():
        raise AssertionError("the second rung is not to be tried")

    alone = solve_spanning(phi, weights, start, sharpness=3.0)
    first = solve_spanning(phi, weights, start, rungs=(Rung("a", 3.0), Rung("b", 1.0, never)))
    assert alone.report.reached and np.array_equal(alone.x, first.x)
    assert (first.report.rung, first.report.rungs, first.report.began) == (1, 2, "a")
    assert first.report.steps == alone.report.steps


def test_a_rung_that_stalls_gives_way_to_the_next_and_the_distance_is_from_the_start_asked_for(monkeypatch):
    phi, weights, start = kinked()
    exact = solve_spanning(phi, weights, start)
    assert exact.report.reached
    monkeypatch.setattr(solver, "PATIENCE", 3)  # the first rung has no time
    rungs = (Rung("zero", 10.0, lambda: np.zeros((1, 8, 16))), Rung("near", None, lambda: exact.x[None]))
    found = solve_spanning(phi, weights, start, rungs=rungs)
    assert found.report.reached and (found.report.rung, found.report.began) == (2, "near")
    assert outside(phi, found.x, weights) < 1e-10
    assert found.report.distance == pytest.approx(np.sqrt(np.mean((found.x - start) ** 2)))


def test_a_rung_without_a_start_is_passed_over_and_one_budget_serves_all():
    phi, weights, start = kinked()
    nowhere = Rung("nowhere", None, lambda: None)
    found = solve_spanning(phi, weights, start, rungs=(nowhere, *softer(10.0)), steps=6)
    assert found.report.outcome is SpanningOutcome.STEPS and found.report.steps == 6
    assert found.report.rungs == 4 and found.report.rung >= 2
    begun = []
    many = [Rung(str(i), 10.0, lambda i=i: begun.append(i) or start[None]) for i in range(5)]
    assert solve_spanning(phi, weights, start, rungs=many, steps=12).report.steps == 12
    assert begun == list(range(5))[: len(begun)] and len(begun) > 1  # a rung may not use all that is left


def test_where_no_rung_is_exact_the_nearest_is_returned_with_its_number():
    phi, weights, start = kinked()
    rungs = (Rung("worse", 10.0, lambda: 1e-3 * start[None]), Rung("better", None))
    found = solve_spanning(phi, weights, start, rungs=rungs, steps=0)
    assert (found.report.rung, found.report.began) == (
        1,
        "worse",
    )  # none but the first begins without a budget
    with pytest.raises(InputError, match="sharpness"):
        solve_spanning(phi, weights, start, rungs=(Rung("a", -1.0),))


def test_a_direction_below_the_rounding_of_float32_takes_steps_in_float64(monkeypatch):
    phi, weights, start = faint()
    found = solve_spanning(phi, weights, start, sharpness=None)
    assert found.report.reached and outside(phi, found.x, weights) < 1e-12
    monkeypatch.setattr(solver, "FINE", 0.0)  # no step is wide
    creeping = solve_spanning(phi, weights, start, sharpness=None).report
    assert creeping.outcome is SpanningOutcome.STALLED and creeping.residual > 1e-8


def test_softer_rungs_go_down_from_the_one_asked_for():
    assert [rung.sharpness for rung in softer(10.0)] == [10.0, 3.0, 1.0]
    assert [rung.sharpness for rung in softer(2.0)] == [2.0, 1.0]
    assert [rung.sharpness for rung in softer(0.5)] == [0.5]
    assert [rung.sharpness for rung in softer(None)] == [None]


@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh", "elu", "asinh", "leaky_relu"])
@pytest.mark.parametrize("size", [K, pytest.param(K + 2, marks=pytest.mark.long)])
def test_small_features_span_the_weights_at_once_with_as_few_examples_as_their_rank(activation, size):
    phi, weights, x = narrow(activation)
    found = small_features(phi, weights, x[:size], rank=K, key=KEY)
    assert found is not None and outside(phi, found, weights) < 1e-9
    f = features_of(phi, found)
    assert np.sqrt(np.mean(f**2)) == pytest.approx(SMALL * np.sqrt(np.mean(features_of(phi, x[:size]) ** 2)))
    assert np.linalg.cond(f) < 1e3
    begun = solve_spanning(phi, weights, x[:size], rungs=(Rung("small", None, lambda: found[None]),))
    assert begun.report.reached and begun.report.steps < 5


@pytest.mark.parametrize("activation", ["softplus", "sigmoid"])
def test_with_an_intercept_features_of_one_sign_have_a_small_spread(activation):
    phi, weights, x = narrow(activation)
    size = K + 1
    found = small_features(phi, weights, x[:size], rank=K, intercept=True, key=KEY)
    assert found is not None
    f = features_of(phi, found)
    spread = f - f.mean(axis=0)
    assert relative(np.linalg.pinv(spread, rcond=1e-9) @ (spread @ weights), weights) < 1e-7
    assert f.min() > 0 and np.linalg.norm(spread) < 0.05 * np.linalg.norm(f)
    # Without one there are none: no small vector has both signs.
    assert small_features(phi, weights, x[:size], rank=K, key=KEY) is None


def test_a_map_with_more_features_than_inputs_or_too_few_examples_is_refused():
    phi, weights, x = narrow("gelu")
    with pytest.raises(InputError, match="at least 3"):
        small_features(phi, weights, x[:2], rank=3, key=KEY)
    wide = network()
    with pytest.raises(InputError, match="26 features of 8 inputs"):
        small_features(wide, np.ones((26, 1)), np.zeros((2, 8)), rank=1, key=KEY)


def test_the_same_key_gives_the_same_inputs():
    phi, weights, x = narrow("gelu")
    keys = (KEY, KEY, jax.random.key(4))
    one, two, other = (np.asarray(small_features(phi, weights, x[:3], rank=3, key=key)) for key in keys)
    assert np.array_equal(one, two) and not np.allclose(one, other)
