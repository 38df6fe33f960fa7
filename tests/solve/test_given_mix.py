"""Inputs for coefficients that are given: in a box, and as near as they come where there are none."""

import numpy as np

from jaxdistill.features import Linear
from jaxdistill.numerics.contrasts import from_contrasts
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.solve.given_mix import inputs_for_mix

RNG = np.random.default_rng(0)
TARGET = RNG.standard_normal((6, 2))


def test_inputs_at_the_low_end_serve_where_coefficients_sum_to_zero():
    """Three corners of a simplex reach every target by inputs that only rise; two orthonormal rows do not."""
    square = np.linalg.qr(RNG.standard_normal((2, 2)))[0]
    box, simplex = (1.0, 100.0), in_float64(from_contrasts, square)
    x = inputs_for_mix(Linear(6), TARGET, simplex, np.ones((3, 6)), box, tolerance=1e-9)
    assert x.min() >= 1
    np.testing.assert_allclose(x.T @ simplex, TARGET, rtol=0, atol=1e-8)
    x = inputs_for_mix(Linear(6), TARGET, square, np.ones((2, 6)), box, tolerance=1e-9)
    assert x.min() >= 1 and np.linalg.norm(x.T @ square - TARGET) > 0.1 * np.linalg.norm(TARGET)


def test_inputs_that_are_near_enough_stay_where_they_are():
    mix, start = RNG.standard_normal((4, 2)), RNG.standard_normal((4, 6))
    assert np.array_equal(inputs_for_mix(Linear(6), start.T @ mix, mix, start, tolerance=1e-9), start)
