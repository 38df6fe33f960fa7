"""The shared factorisations: against NumPy, on rank-deficient and badly conditioned matrices."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS, compiled, condition, of_condition, relative, rounding
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxdistill.errors import InputError
from jaxdistill.numerics.linalg import (
    check_finite,
    in_float64,
    least_change,
    matmul,
    pinv,
    rank_tolerance,
    reciprocal,
)

seeds = st.integers(0, 2**31)
shapes = st.sampled_from([(4, 7), (7, 4), (6, 6)])
pinv_64, least_change_64 = compiled(pinv), compiled(least_change)


@given(seeds, shapes, st.integers(1, 4))
def test_pinv_is_the_pseudo_inverse_of_any_rank(seed, shape, rank):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    s = np.linalg.svd(matrix, compute_uv=False)
    assert relative(pinv_64(matrix), np.linalg.pinv(matrix, rcond=1e-12)) < 100 * EPS[np.float64] * (
        (s[0] / s[rank - 1]) ** 2
    )


@given(seeds, shapes, st.sampled_from([1.0, 1e8, 1e15, 1e17]))
def test_rank_is_that_of_numpy(seed, shape, number):
    s = np.linalg.svd(of_condition(np.random.default_rng(seed), *shape, number), compute_uv=False)
    found = in_float64(rank_tolerance, s, shape)
    assert found == s[0] * max(shape) * EPS[np.float64]


@given(seeds, st.sampled_from([(5, 5), (4, 7)]), st.sampled_from([1.0, 1e4, 1e8, 1e12]))
def test_least_change_pays_the_condition_number_once_and_moves_least(seed, shape, number):
    rng = np.random.default_rng(seed)
    matrix = of_condition(rng, *shape, number)
    residual = rng.standard_normal((3, shape[0]))
    change = least_change_64(matrix, residual)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    # The normal equations A A^T would have lost everything at 1e12: their error is eps times 1e24.
    assert relative(change, residual @ u / s @ vt) < rounding(matrix)
    null = np.eye(shape[1]) - vt.T @ vt
    assert np.linalg.norm(change @ null) <= rounding(matrix) * np.linalg.norm(change)


def test_least_change_takes_any_batch():
    rng = np.random.default_rng(0)
    matrix, residual = rng.standard_normal((3, 5)), rng.standard_normal((2, 4, 3))
    found = least_change_64(matrix, residual)
    one = least_change_64(matrix, residual[1, 2])
    assert found.shape == (2, 4, 5)
    np.testing.assert_allclose(found[1, 2], one, rtol=0, atol=rounding(matrix) * np.abs(one).max())


@pytest.mark.parametrize("kind", ["hard", "centred", "rotated", "uneven", "faint", "zero", "one row"])
def test_pinv_of_rows_whose_singular_values_coincide_or_nearly_do(kind):
    rows = np.eye(6)[np.arange(12) % 6]
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    matrix = {
        "hard": 3.0 * rows,
        "centred": rows - 1 / 6,
        "rotated": rows @ turn,
        "uneven": rows[:8],
        "faint": rows @ turn @ np.diag([1, 1, 1, 1, 1, 1e-9]),  # shows in no square
        "zero": 0 * rows,
        "one row": turn[:1],
    }[kind]
    expected = np.linalg.pinv(matrix, rcond=1e-13)
    assert np.linalg.norm(pinv_64(matrix) - expected) <= 1e-6 * np.linalg.norm(expected)
    if kind != "faint":
        assert np.linalg.norm(pinv_64(matrix) - expected) <= 64 * EPS[np.float64] * np.linalg.norm(expected)


def test_class_rows_need_no_decomposition():
    """A thousand classes would take seconds: the branch that decomposes must not be the one that runs."""
    inverse = pinv_64(2.0 * np.eye(5)[[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]])
    # Only the closed form has exact zeros and equal entries.
    assert set(np.unique(inverse).tolist()) == {0.0, 0.25}


@pytest.mark.parametrize("kind", ["generic", "tall", "orthonormal", "class rows"])
def test_pinv_has_the_derivatives_of_finite_differences_also_at_repeated_singular_values(kind):
    wide = of_condition(np.random.default_rng(1), 3, 5, 3.0)
    orthonormal = np.linalg.qr(wide.T)[0].T
    rows = np.eye(3)[[0, 1, 2, 0, 1]]
    matrix = {"generic": wide, "tall": wide.T, "orthonormal": orthonormal, "class rows": rows}[kind]
    with jax.enable_x64(True):
        check_grads(jax.jit(pinv), (jnp.asarray(matrix),), order=1, modes=("fwd", "rev"), rtol=1e-5)


def test_a_cut_leaves_out_what_is_small_and_keeps_the_derivative_of_the_rest():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, 3)))[0] for side in (5, 4))
    matrix = left * np.array([1.0, 0.5, 1e-9]) @ right.T
    rest = left[:, :2] * np.array([1.0, 0.5]) @ right[:, :2].T
    coarse, fine = (compiled(lambda a, cut=cut: pinv(a, cut))(matrix) for cut in (1e-8, 1e-10))
    assert relative(coarse, np.linalg.pinv(rest, rcond=1e-12)) < 1e-8
    assert np.linalg.norm(fine) > 1e8
    with jax.enable_x64(True):
        jvp = jax.jit(lambda a, change: jax.jvp(lambda a: pinv(a, 1e-8), (a,), (change,))[1])
        change = jnp.asarray(rest @ rng.standard_normal((4, 4)))
        change = change @ jnp.asarray(right[:, :2] @ right[:, :2].T)  # the rank stays
        found, expected = jvp(jnp.asarray(matrix), change), jvp(jnp.asarray(rest), change)
        assert relative(np.asarray(found), np.asarray(expected)) < 1e-7


def test_reciprocal_of_what_is_dropped_is_zero_with_zero_derivative():
    values, keep = jnp.array([2.0, 0.0]), jnp.array([True, False])
    np.testing.assert_array_equal(reciprocal(values, keep), [0.5, 0.0])
    np.testing.assert_array_equal(jax.grad(lambda v: reciprocal(v, keep).sum())(values), [-0.25, 0.0])


def test_in_float64_computes_in_float64_and_leaves_the_flag_alone():
    before = jax.config.jax_enable_x64
    seen = []

    def function(tree, count, word):
        seen.append((tree["a"].dtype, tree["i"].dtype, count, word))
        return {"square": matmul(tree["a"], tree["a"].T)}

    a = np.float32([[1.0, 1e-5]])
    out = in_float64(function, {"a": a, "i": np.int32([1])}, 3, "word")["square"]
    assert type(out) is np.ndarray and out.dtype == np.float64
    assert out[0, 0] == 1.0 + float(a[0, 1]) ** 2  # lost in float32
    assert seen == [(np.float64, np.int32, 3, "word")]
    assert jax.config.jax_enable_x64 == before


def test_in_float64_leaves_the_flag_alone_when_it_fails():
    before = jax.config.jax_enable_x64
    with pytest.raises(ZeroDivisionError):
        in_float64(lambda a: 1 / 0, np.ones(2))
    assert jax.config.jax_enable_x64 == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_named(value):
    array = np.zeros((3, 4), np.float32)
    array[1, 2] = array[2, 3] = value
    with pytest.raises(InputError, match=r"x holds 2 values.* the first .* index \(1, 2\)"):
        check_finite("x", array)


def test_infinities_of_both_signs_do_not_cancel():
    with pytest.raises(InputError, match="2 values"):
        check_finite("x", np.array([np.inf, -np.inf]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_finite_values_pass_without_a_warning(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_finite("x", np.full(9, np.finfo(dtype).max))
        check_finite("x", np.zeros((0, 3), dtype))


def test_the_helper_makes_the_condition_it_is_asked_for():
    assert np.isclose(condition(of_condition(np.random.default_rng(0), 4, 6, 1e3)), 1e3, rtol=1e-9)
