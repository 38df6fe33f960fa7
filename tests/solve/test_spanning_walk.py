"""Walks: a loop is its steps one by one, it ends by itself, and float32 is not believed beyond its digits."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from jaxdistill.features import RandomNetwork
from jaxdistill.numerics.linalg import in_float32, in_float64
from jaxdistill.solve import spanning_solver as solver
from jaxdistill.solve.ladder import Rung
from jaxdistill.solve.spanning import SpanningProblem, orthonormal_basis
from jaxdistill.solve.spanning_solver import begin_rung
from jaxdistill.solve.spanning_step import SpanningMethod
from jaxdistill.solve.spanning_walk import Walk, measure_walk, walk_on

D, P, K, M = 8, 26, 3, 10
WEIGHTS = np.random.default_rng(1).standard_normal((P, K))
PHI = RandomNetwork.create(D, widths=(P,), activation="gelu", key=jax.random.key(1))


@pytest.fixture(scope="module")
def problem():
    basis = in_float64(orthonormal_basis, WEIGHTS, K)
    ends = np.full(D, -np.inf), np.full(D, np.inf)
    start = np.random.default_rng(0).standard_normal((2, M, D))
    return SpanningProblem(basis, start, *ends, np.float64(1.0), False)


@pytest.fixture(scope="module")
def walk(problem):
    states = begin_rung(PHI, problem, Rung("start", 10.0))
    assert states is not None
    return Walk.begin(states, None, solver.PATIENCE)


def go_on(problem, walk, *, loop, stop, exact=1e-12, door=in_float64):
    # As the solver calls it, which then compiles nothing anew.
    settings: Any = {"method": SpanningMethod.DIRECT, "most_iterations": solver.MOST_ITERATIONS}
    function = partial(walk_on, loop=loop, **settings)
    return door(function, PHI, problem, walk, 0.0, 2.0, 0.5, exact, 1e-2, np.int32(stop))


def test_a_loop_is_its_steps_one_by_one_and_ends_where_it_is_exact(problem, walk):
    single = walk
    for _ in range(5):
        single = go_on(problem, single, loop=False, stop=0)
    looped = go_on(problem, walk, loop=True, stop=5)
    assert single.taken == looped.taken == 5
    for one, other in zip(jax.tree.leaves(single), jax.tree.leaves(looped), strict=True):
        # Steps in float32 are rounded otherwise in another program.
        assert np.allclose(one, other, rtol=1e-3, atol=1e-3 * np.max(one, where=np.isfinite(one), initial=0))
    end = go_on(problem, looped, loop=True, stop=100)
    assert 5 < end.taken < 30 and end.marks[-1] <= 1e-12 < end.marks[-2]
    assert end.marks[-1] == end.lowest.min() == end.best.residual.min() and end.found.all()


def test_a_loop_ends_where_it_comes_no_nearer(problem, walk):
    few = replace(problem, start=problem.start[:, :4])  # four examples are too few
    states = begin_rung(PHI, few, Rung("start", 10.0))
    assert states is not None
    end = go_on(few, Walk.begin(states, None, solver.PATIENCE), loop=True, stop=400)
    assert end.stalled(0.5) and solver.PATIENCE < end.taken < 400
    assert end.marks[-1] > 0.5 * end.marks[0] and np.all(np.diff(end.marks) <= 0)


def test_the_best_of_an_earlier_walk_stays_until_a_smaller_residual_is_found(walk):
    states = replace(walk.states, residual=np.array([0.5, np.nan]))
    best = replace(walk.states, x=walk.states.x + 1, residual=np.array([0.4, np.nan]))
    begun = Walk.begin(states, best, solver.PATIENCE)
    assert begun.found.tolist() == [False, True]
    assert np.array_equal(begun.best.x[0], best.x[0]) and np.array_equal(begun.best.x[1], states.x[1])
    assert begun.marks[-1] == 0.5 and not begun.stalled(0.5)
    none = replace(states, residual=np.full(2, np.nan))
    assert Walk.begin(none, None, solver.PATIENCE).stalled(0.5)


def test_what_float32_measures_is_measured_again(problem, walk):
    ahead = go_on(problem, replace(walk, found=np.zeros(2, bool)), loop=True, stop=3, door=in_float32)
    assert ahead.states.residual.dtype == np.float32
    found, alike = in_float64(measure_walk, PHI, problem, walk, ahead)
    assert alike and found.taken == 3 and found.marks.dtype == np.float64
    assert np.allclose(found.states.residual, ahead.states.residual, rtol=1e-3)
    # A walk that claims to be nearer than it is.
    states, best = (replace(s, residual=s.residual / 4) for s in (ahead.states, ahead.best))
    claimed = replace(ahead, states=states, best=best, lowest=ahead.lowest / 4, marks=ahead.marks / 4)
    measured, alike = in_float64(measure_walk, PHI, problem, walk, claimed)
    assert not alike
    for name in ("lowest", "marks"):
        assert np.all(getattr(measured, name) >= found.marks[-1])
    assert np.array_equal(measured.best.residual, found.best.residual)


def test_an_accelerator_takes_several_steps_between_two_looks(problem, monkeypatch):
    looks = []

    class Counted(solver.Pace):
        def took(self, steps, seconds):
            looks.append(steps)
            return super().took(steps, seconds)

    monkeypatch.setattr(solver, "on_accelerator", lambda: True)
    monkeypatch.setattr(solver, "Pace", Counted)
    report = solver.solve_spanning(PHI, WEIGHTS, problem.start, steps=9).report
    assert sum(looks) == report.steps and len(looks) < report.steps
    found = solver.solve_spanning(PHI, WEIGHTS, problem.start, pull=1)
    assert found.report.reached and found.report.steps > report.steps
