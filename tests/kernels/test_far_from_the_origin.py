"""Kernels of distances far from the origin, against float64: a shift changes nothing, nor does a tile."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS

from jaxdistill import kernels
from jaxdistill.kernels.stationary import central_row
from jaxdistill.kernels.tiles import TiledKernel, kernel_matrix
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.ridge.kernel_fit import fit_kernel_ridge

D = 6
STATIONARY = {
    "rbf": kernels.RBF(1.5),
    "laplace": kernels.Laplace(1.5),
    "matern32": kernels.Matern32(1.5),
    "matern52": kernels.Matern52(1.5),
    "rational_quadratic": kernels.RationalQuadratic(1.5, 0.7),
}
COMPOSITES = {
    "sum": 0.25 * kernels.RBF(1.5) + 0.75 * kernels.Laplace(2.0),
    "product": kernels.RBF(1.5) * kernels.Matern32(2.0),
    "normalised": (kernels.RBF(1.5) + 2.0 * kernels.Matern52(2.0)).normalised(),
}
ALL = STATIONARY | COMPOSITES
MIXED = kernels.RBF(1.5) + 1e-6 * kernels.Linear()

matrix = jax.jit(lambda kernel, x, z: kernel.matrix(x, z))
diagonal = jax.jit(lambda kernel, x: kernel.diagonal(x))
pairs = jax.jit(lambda kernel, x, z: jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(z))(x))
weighted_pairs = jax.jit(lambda weights, kernel, x, z: jnp.sum(weights * pairs(kernel, x, z)))
slopes = jax.jit(jax.grad(lambda x, weights, kernel, z: jnp.sum(weights * kernel.matrix(x, z))))


def far(seed, n, offset, dtype=np.float32):
    """Rows about a point at a distance, a third of them twice."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, D)) + offset * np.resize([-1.0, 0.5, 1.0], D)
    x[: n // 3] = x[n - n // 3 :]
    return x.astype(dtype)


def exact(kernel, x, z):
    """In float64, from the differences of all pairs."""
    return in_float64(pairs, kernel, x, z)


def slack(dtype, kernel, spread=4.0):
    """Distances are off by some eps of the squared spread; their roots by more where they are near zero."""
    rounding = 64 * EPS[dtype] * spread**2
    rooted = any(isinstance(k, kernels.Laplace) for k in jax.tree.leaves(kernel, is_leaf=_is_leaf))
    return np.sqrt(rounding) if rooted else rounding


def _is_leaf(kernel):
    return isinstance(kernel, kernels.Laplace)


@pytest.mark.parametrize("name", sorted(ALL))
@hypothesis.given(
    exponent=st.floats(-1, 6), seed=st.integers(0, 99), dtype=st.sampled_from([np.float32, np.float64])
)
def test_the_matrix_is_that_of_float64_at_every_offset(name, exponent, seed, dtype):
    kernel, x = ALL[name], far(seed, 12, 10**exponent, dtype)
    z = np.concatenate([x[3:8], far(seed + 100, 4, 10**exponent, dtype)])
    with jax.enable_x64(dtype == np.float64):
        cross, gram = np.asarray(matrix(kernel, x, z)), np.asarray(matrix(kernel, x, x))
        one = np.asarray(diagonal(kernel, x))
    assert cross.dtype == gram.dtype == dtype
    np.testing.assert_allclose(cross, exact(kernel, x, z), atol=slack(dtype, kernel))
    np.testing.assert_allclose(gram, exact(kernel, x, x), atol=slack(dtype, kernel))
    for values in (cross, gram):
        assert values.max() <= 1 + (2 * EPS[dtype] if name == "normalised" else 0)
    if name != "normalised":
        np.testing.assert_array_equal(np.diag(gram), 1)
        twice = np.argwhere(np.all(x[:, None] == x[None], axis=2))
        assert len(twice) > len(x)
        np.testing.assert_array_equal(gram[tuple(twice.T)], 1)
    np.testing.assert_array_equal(one, 1)
    np.testing.assert_array_equal(gram, gram.T)


@pytest.mark.parametrize("d", [1, 2, 31, 784, 3072])
@pytest.mark.parametrize("n", [1, 7, 65])
def test_rows_that_coincide_have_no_distance_however_long_they_are(d, n):
    rng = np.random.default_rng(d)
    z = (rng.random((70, d)) * (rng.random((70, d)) < 0.5)).astype(np.float32)
    found = np.asarray(matrix(kernels.Laplace(0.1), z[:n], z))
    np.testing.assert_array_equal(np.diag(found), 1)


def test_rows_that_are_near_keep_their_distance():
    # Nearer than what rounding may leave of coinciding rows, but of other norms.
    rng = np.random.default_rng(1)
    z = rng.standard_normal((60, 40)).astype(np.float32)
    near = z + 3e-3 * rng.standard_normal((60, 40)).astype(np.float32)
    kernel = kernels.Laplace(0.02)
    found, expected = np.diag(matrix(kernel, near, z)), np.diag(exact(kernel, near, z))
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_a_single_row_far_off_spoils_no_other():
    x = far(3, 30, 10.0)
    x[7] = 1e9
    found = np.delete(np.asarray(matrix(kernels.RBF(1.5), x, x)), 7, axis=1)
    np.testing.assert_allclose(
        np.delete(found, 7, axis=0), exact(kernels.RBF(1.5), *[np.delete(x, 7, 0)] * 2), atol=1e-4
    )
    np.testing.assert_array_equal(found[7], 0)


@pytest.mark.parametrize("n", [1, 2, 5, 9, 40])
def test_the_point_is_amid_the_rows(n):
    x = far(4, n, 100.0)
    for rows in (x, jnp.asarray(x)):
        found = np.asarray(central_row(rows))
        assert found.dtype == np.float32
        assert np.all(found >= x.min(axis=0)) and np.all(found <= x.max(axis=0))
    assert central_row(x[:0]).shape == (D,)
    assert matrix(kernels.RBF(1.0), x, x[:0]).shape == (n, 0)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_gradients_of_a_matrix_are_those_of_central_differences(name, offset):
    kernel, x = ALL[name], far(5, 6, offset, np.float64)
    z = np.concatenate([x[:3], far(6, 2, offset, np.float64)])
    weights = np.random.default_rng(7).standard_normal((6, 5))
    # From pairs, whose differences are exact: coincident ones are among them.
    found = in_float64(slopes, x, weights, kernel, z)
    step = 1e-4
    expected = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[at] = step
        ahead, behind = (in_float64(weighted_pairs, weights, kernel, x + s, z) for s in (moved, -moved))
        expected[at] = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The settings too; and in float32, of the same inputs.
    with jax.enable_x64(False):
        narrow = slopes(np.float32(x), np.float32(weights), kernel, np.float32(z))
    again = in_float64(slopes, np.float64(np.float32(x)), weights, kernel, np.float64(np.float32(z)))
    np.testing.assert_allclose(narrow, again, atol=100 * slack(np.float32, kernels.RBF(1.0)))


@pytest.mark.parametrize("kernel", [*STATIONARY.values(), MIXED], ids=[*STATIONARY, "mixed"])
def test_an_entry_hardly_depends_on_its_tile(kernel):
    """Sums of a product differ with the size of a block, by rounding; nothing else does."""
    x, z = far(8, 75, 1e6, np.float64), far(9, 41, 1e6, np.float64)
    z[:20] = x[:20]
    for rows, columns in ((x, None), (x, z)):
        tilings, found = set(), []
        for size in (10**5, 16**2):
            operator = TiledKernel.of(kernel, rows, columns, dtype=np.float32, memory=16 * size)
            tilings.add(operator.tiling)
            found.append(operator.to_matrix())
        assert len(tilings) == 2
        np.testing.assert_allclose(found[1], found[0], rtol=16 * EPS[np.float32], atol=1e-7)
        if columns is None:
            for one in found:
                np.testing.assert_array_equal(one, one.T)


@pytest.mark.parametrize("name", sorted(ALL))
@hypothesis.given(exponent=st.floats(-1, 6), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=8)
def test_tiles_of_float32_keep_what_float64_inputs_have(name, exponent, seed):
    kernel = ALL[name]
    x = far(seed, 25, 10**exponent, np.float64)
    found = kernel_matrix(kernel, x, dtype=np.float32)
    np.testing.assert_allclose(found, exact(kernel, x, x), atol=slack(np.float32, kernel))
    assert found.max() <= 1
    np.testing.assert_array_equal(np.diag(found), 1)
    z = x[::2]
    np.testing.assert_allclose(
        kernel_matrix(kernel, x, z, dtype=np.float32), exact(kernel, x, z), atol=slack(np.float32, kernel)
    )


def test_a_sum_with_a_kernel_that_no_shift_leaves_alone_is_right_too():
    x = far(10, 40, 1000.0, np.float64)
    for dtype in (np.float32, np.float64):
        found = kernel_matrix(MIXED, x, dtype=dtype)
        np.testing.assert_allclose(found, exact(MIXED, x, x), atol=slack(dtype, MIXED) + 100 * EPS[dtype] * 6)
    normalised = MIXED.normalised()
    np.testing.assert_allclose(
        kernel_matrix(normalised, x, dtype=np.float32), exact(normalised, x, x), atol=slack(np.float32, MIXED)
    )


def test_a_column_of_years_costs_no_digits():
    rng = np.random.default_rng(11)
    x = np.column_stack([rng.integers(1990, 2021, 300), rng.standard_normal((300, 2))])
    y = np.sin(x[:, :1] / 5) + x[:, 1:2]
    kernel = kernels.RBF(3.0)
    wide = fit_kernel_ridge(kernel, x, y, lam=1e-2, solver="cholesky")
    narrow = fit_kernel_ridge(
        kernel, x, y, lam=1e-2, solver="cg", dtype=np.float32, tolerance=1e-6, key=jax.random.key(0)
    )
    test = np.column_stack([rng.integers(1990, 2021, 50), rng.standard_normal((50, 2))])
    expected = wide.predict(test)
    np.testing.assert_allclose(wide.predict(test.astype(np.float32)), expected, atol=1e-4)
    np.testing.assert_allclose(narrow.predict(test.astype(np.float32)), expected, atol=1e-3)
    # What is predicted does not depend on the year from which one counts.
    shifted = fit_kernel_ridge(kernel, x - [2000, 0, 0], y, lam=1e-2)
    np.testing.assert_allclose(shifted.predict(test - [2000, 0, 0]), expected, atol=1e-8)


def test_one_pass_over_the_inputs_and_one_product():
    """Subtracting costs what the norms cost; nothing of the size (n, m, d) is made, and no second product."""
    x = jax.ShapeDtypeStruct((64, D), np.float32)
    text = str(jax.make_jaxpr(lambda x: kernels.RBF(1.0).matrix(x, x))(x))
    assert text.count("dot_general") == 1
    assert f"f32[64,64,{D}]" not in text


@pytest.mark.parametrize(
    "kernel", [kernels.NTK(2), kernels.NNGP(2), kernels.Polynomial(3, 1.0), kernels.NTK(1).normalised()]
)
@hypothesis.given(exponent=st.floats(-1, 4))
@hypothesis.settings(max_examples=8)
def test_kernels_that_a_shift_changes_keep_their_size_far_away(kernel, exponent):
    """Relative to their values, that is: their differences are lost, as their docstrings say."""
    x = far(12, 15, 10**exponent)
    found = np.asarray(matrix(kernel, x, x))
    expected = in_float64(matrix, kernel, np.float64(x), np.float64(x))
    # The angle of two inputs is known to the root of the rounding of its cosine.
    np.testing.assert_allclose(found, expected, atol=16 * np.sqrt(EPS[np.float32]) * expected.max())
    one = np.asarray(diagonal(kernel, x))
    np.testing.assert_allclose(one, in_float64(diagonal, kernel, np.float64(x)), rtol=1e-5)
    roots = np.sqrt(np.float64(one))
    assert np.all(found <= np.outer(roots, roots) * (1 + 1e-5))
