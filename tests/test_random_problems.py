"""Some random problems judged by NumPy alone, by the script that draws ten thousand of them."""

import dataclasses

import numpy as np
import random_problems
from random_problems import CRASHED, SILENT, outcome_of

import jaxdistill as jd

SOUND = {"features": "linear", "n": 40, "k": 3, "size": 3, "spoiled": "nothing", "condition": 10.0}
SOUND |= {"dtype": "float64", "stored": "float64"}  # few types, few programs to compile


def test_every_problem_is_exact_or_not_and_said_so_or_refused():
    outcomes = [outcome_of(np.random.default_rng([2, number]), **SOUND) for number in range(40)]
    assert [o for o in outcomes if o[0] in (SILENT, CRASHED)] == []
    kinds = {outcome for outcome, *_ in outcomes}
    assert "exact, as NumPy finds" in kinds and any(kind.startswith("refused") for kind in kinds)


def test_a_model_that_is_not_the_ridge_solution_would_be_found(monkeypatch):
    fit = jd.fit_ridge

    def wrong(*args, **settings):
        model = fit(*args, **settings)
        return dataclasses.replace(model, weights=model.weights * 1.001)

    monkeypatch.setattr(random_problems.jd, "fit_ridge", wrong)
    plain = {"lam": 1.0, "labels": None, "lam_s": None, "targets": "real"}
    told = outcome_of(np.random.default_rng(3), **SOUND, **plain)[0]
    assert told.startswith("not exact and said so") and "model" in told
    certify = jd.certify

    def blind(*args, **settings):
        return dataclasses.replace(certify(*args, **settings), exact=True)

    monkeypatch.setattr(random_problems.jd, "certify", blind)
    assert outcome_of(np.random.default_rng(3), **SOUND, **plain)[0] == SILENT


def test_the_oracle_knows_ridge_regression():
    rng = np.random.default_rng(4)
    phi, y = rng.standard_normal((30, 6)), rng.standard_normal((30, 2))
    for lam in (0.0, 0.3, 1e4):
        expected = np.linalg.solve(phi.T @ phi + lam * np.eye(6), phi.T @ y)
        np.testing.assert_allclose(random_problems.ridge(phi, y, lam), expected, rtol=1e-10, atol=1e-14)
        distance = random_problems.distance(phi, lam, (1.01 * expected, None), (expected, None))
        np.testing.assert_allclose(distance, 0.01, rtol=1e-10)
        weights, level = random_problems.trained(phi + 7, y + 5, lam, intercept=True)
        bordered = np.hstack([phi + 7, np.ones((30, 1))])
        damped = bordered.T @ bordered + lam * np.diag([1.0] * 6 + [0.0])
        both = np.linalg.solve(damped, bordered.T @ (y + 5))
        np.testing.assert_allclose(weights, both[:-1], rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(level, both[-1], rtol=1e-9)
