"""One penalty by Cholesky: the same weights and rank, and only where the spectrum decides nothing."""

import numpy as np
import pytest
from helpers import of_condition, relative
from hypothesis import given
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill.ridge import definite, fit

P = 6


@pytest.fixture(autouse=True)
def of_few_features(monkeypatch):
    monkeypatch.setattr(definite, "_FEWEST", P)


def problem(seed, number, n=40):
    """Features of a condition number, and targets, in float32."""
    rng = np.random.default_rng(seed)
    x = of_condition(rng, n, P, number).astype(np.float32)
    return x, rng.standard_normal((n, 2))


def fitted(x, y, lam=1e-3, **options):
    return jd.fit_ridge(jd.features.Linear(P), x, y, lam=lam, **{"dtype": np.float32, **options})


@given(st.integers(0, 2**31), st.floats(0, 4), st.sampled_from([1e-2, 1.0]), st.booleans())
def test_weights_and_rank_are_those_of_the_path(seed, digits, lam, intercept):
    x, y = problem(seed, 10**digits)
    found = fitted(x, y, lam, intercept=intercept)
    moments, solution = found.moments_for("this"), found.solution
    assert solution is not None
    gram, cross = moments.gram, moments.cross
    values = np.linalg.eigvalsh(gram)
    resolution = values[-1] * (8 * np.finfo(np.float32).eps + P * np.finfo(np.float64).eps)
    assert found.rank == np.sum(values > resolution)
    if found.factorisation == "Cholesky":
        assert solution.solved
        assert found.rank == P and values[0] > found.resolution >= resolution and found.dropped == 0
    else:  # the Frobenius norm of G is not so much larger than its largest eigenvalue
        assert values[0] < 2.5 * resolution
    exact = np.linalg.solve(gram + lam * np.eye(P), cross)
    assert relative(found.weights, exact) < 1e-11


@pytest.mark.parametrize(
    ("change", "options"),
    [("none", {"dtype": np.float64}), ("none", {"lam": "auto"}), ("few", {}), ("flat", {}), ("units", {})],
)
def test_an_eigendecomposition_wherever_it_decides_something(change, options):
    x, y = problem(0, 10)
    if change == "few":
        x, y = x[: P - 1], y[: P - 1]
    if change == "flat":
        x[:, 1] = x[:, 0]
    if change == "units":
        x[:, 2] *= 1e5
    found = fitted(x, y, **options)
    assert found.factorisation == ("QR, then Jacobi" if change == "units" else "eigendecomposition")


def test_without_an_eigendecomposition(monkeypatch):
    def refuse(*_):
        raise AssertionError("no eigendecomposition is needed")

    monkeypatch.setattr(fit, "factor_primal", refuse)
    x, y = problem(1, 10)
    held = fitted(x, y)
    assert held.factorisation == "Cholesky"
    monkeypatch.undo()
    assert fitted(x, y).factorisation == "eigendecomposition"  # of so few features
