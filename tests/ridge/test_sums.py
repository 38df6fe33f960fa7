"""Sums beside the product of the features: of many classes counted, of anything else multiplied."""

import numpy as np
import pytest
from helpers import compiled, relative, source_of

import jaxdistill as jd
from jaxdistill.numerics.placement import float64_on
from jaxdistill.ridge.moments import accumulate_moments
from jaxdistill.ridge.sums import target_gram, target_gram_on_host

K, N = 130, 40
found_64 = compiled(target_gram)


def expected(y, t, w):
    about = y.astype(np.longdouble) - t
    return np.asarray(about.T @ (w[:, None] * about), np.float64)


def classes(seed=0):
    """Class rows, the last three of padding."""
    y = np.eye(K)[np.random.default_rng(seed).integers(0, 5, N)]
    y[-3:] = 0
    return y


@pytest.mark.parametrize("shift", [0.0, 1 / K, 0.9])
def test_classes_are_counted_about_any_point(shift):
    y, t, w = classes(), np.full(K, shift), np.ones(N)
    w[-3:] = 0
    for found in (found_64(y, t, w), target_gram_on_host(y, t, w)):
        assert relative(found, expected(y, t, w)) < 1e-15
    if not shift:
        np.testing.assert_array_equal(found_64(y, t, w), y.T @ y)


@pytest.mark.parametrize("change", [np.nextafter(1, 2), 0.5, -1.0])
def test_a_row_that_is_no_class_is_multiplied(change):
    y, t, w = classes(), np.zeros(K), np.arange(N) / N
    y[7] *= change
    two = classes()
    two[7, 3:5] = 1
    for rows in (y, two):
        assert relative(found_64(rows, t, w), expected(rows, t, w)) < 1e-15
        ones = np.ones(N)
        assert relative(target_gram_on_host(rows, t, ones), expected(rows, t, ones)) < 1e-15


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_pass_counts_the_same_wherever_float64_lives(place):
    y, x = classes(1)[:-3], np.ones((N - 3, 1), np.float32)
    with float64_on(place):
        found = accumulate_moments(jd.features.Linear(1), source_of(x, y, 16), shifted=True)
    point = found.target_shift
    assert relative(found.target_gram, expected(y, point, np.ones(N - 3))) < 1e-15
