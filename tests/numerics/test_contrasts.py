"""Coordinates of centred rows: an orthonormal basis of what is orthogonal to ones, blind to the mean."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS, compiled, relative
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.numerics.contrasts import centred, contrasts, from_contrasts

contrasts_64, rows_64, centred_64 = compiled(contrasts), compiled(from_contrasts), compiled(centred)
sizes = st.sampled_from([(2, 1), (3, 4), (7, 2), (40, 5)])
seeds = st.integers(0, 2**31)


@pytest.mark.parametrize("m", [2, 3, 10, 100])
def test_the_basis_is_orthonormal_and_spans_what_is_orthogonal_to_ones(m):
    basis, rounding = rows_64(np.eye(m - 1)), 4 * EPS[np.float64] * np.sqrt(m)
    np.testing.assert_allclose(basis.T @ basis, np.eye(m - 1), rtol=0, atol=rounding)
    np.testing.assert_allclose(basis @ basis.T, np.eye(m) - 1 / m, rtol=0, atol=rounding)
    np.testing.assert_allclose(contrasts_64(np.eye(m)), basis.T, rtol=0, atol=rounding)


@given(seeds, sizes, st.sampled_from([0.0, 1.0, 1e6, 1e12]))
def test_a_mean_of_any_size_costs_no_digits(seed, size, offset):
    rows = offset + np.random.default_rng(seed).standard_normal(size)
    columns = [[Fraction(value) for value in column] for column in rows.T]
    exact = np.array([[float(value - sum(column) / len(column)) for value in column] for column in columns]).T
    for found in (centred_64(rows), rows_64(contrasts_64(rows))):
        assert relative(found, exact) < 4 * EPS[np.float64] * np.sqrt(len(rows))


@given(seeds, sizes)
def test_rows_are_their_contrasts_and_their_mean(seed, size):
    rows = np.random.default_rng(seed).standard_normal(size)
    assert relative(rows_64(contrasts_64(rows)) + rows.mean(axis=0), rows) < 1e-14
    coordinates = contrasts_64(rows)
    assert relative(contrasts_64(5.0 + rows_64(coordinates)), coordinates) < 1e-14


def test_one_row_has_no_contrasts():
    assert contrasts_64(np.ones((1, 3))).shape == (0, 3)
    np.testing.assert_array_equal(rows_64(np.zeros((0, 3))), np.zeros((1, 3)))


def test_the_precision_of_the_rows_is_kept():
    rows = jnp.ones((3, 2), jnp.float32)
    assert {f(rows).dtype for f in (centred, contrasts, from_contrasts)} == {jnp.dtype(jnp.float32)}
