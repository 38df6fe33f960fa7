"""Kernels: their formulas against NumPy, the block form against pairs, derivatives, algebra, refusals."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS

import jaxdistill as jd
from jaxdistill import kernels
from jaxdistill.errors import InputError
from jaxdistill.kernels.arc_cosine import arc_cosine
from jaxdistill.kernels.base import parts_of
from jaxdistill.kernels.stored import rebuild
from jaxdistill.numerics.linalg import in_float64

D = 5


def every_kernel():
    return {
        "linear": kernels.Linear(),
        "polynomial": kernels.Polynomial(3, 0.5),
        "rbf": kernels.RBF(1.5),
        "laplace": kernels.Laplace(1.5),
        "matern32": kernels.Matern32(1.5),
        "matern52": kernels.Matern52(1.5),
        "rational_quadratic": kernels.RationalQuadratic(1.5, 0.7),
        "nngp": kernels.NNGP(2, 1.8, 0.1, 0.2),
        "ntk": kernels.NTK(3, 1.8, 0.1),
        "features": kernels.FeatureKernel(
            jd.features.RandomFourier.create(D, D, lengthscale=2.0, key=jax.random.key(0))
        ),
        "sum": kernels.RBF(1.5) + kernels.Linear(),
        "product": kernels.RBF(1.5) * kernels.NTK(1),
        "scaled": 0.3 * kernels.NTK(1),
        "normalised": kernels.NTK(2).normalised(),
    }


KERNELS = every_kernel()


def points(seed, n, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, D)).astype(dtype)


@jax.jit
def three_forms(kernel, x, z):
    pairs = jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(z))(x)
    return kernel.matrix(x, z), pairs, kernel.matrix(x, x), kernel.diagonal(x)


def numpy_formula(name, a, b):
    r = np.linalg.norm(a - b) / 1.5
    return {
        "linear": lambda: a @ b,
        "polynomial": lambda: (a @ b / D + 0.5) ** 3,
        "rbf": lambda: np.exp(-(r**2) / 2),
        "laplace": lambda: np.exp(-r),
        "matern32": lambda: (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r),
        "matern52": lambda: (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r),
        "rational_quadratic": lambda: (1 + r**2 / 1.4) ** -0.7,
        "sum": lambda: np.exp(-(r**2) / 2) + a @ b,
    }[name]()


@pytest.mark.parametrize(
    "name",
    ["linear", "polynomial", "rbf", "laplace", "matern32", "matern52", "rational_quadratic", "sum"],
)
def test_the_formula_is_that_of_numpy(name):
    x, z = points(0, 4), points(1, 3)
    found = in_float64(three_forms, KERNELS[name], x, z)[0]
    expected = [[numpy_formula(name, a, b) for b in z] for a in x]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(KERNELS))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrix_pairs_and_diagonal_agree_and_are_semidefinite(name, dtype):
    x = points(2, 6, dtype)
    z = np.concatenate([points(3, 3, dtype), x[:1], np.zeros((1, D), dtype)])
    with jax.enable_x64(dtype == np.float64):
        block, pairs, gram, diagonal = (np.asarray(a) for a in three_forms(KERNELS[name], x, z))
    assert block.dtype == dtype
    # Where points coincide, distances and angles are roots of rounding.
    tolerance = (
        40 * np.sqrt(EPS[dtype]) if name in ("laplace", "ntk", "product", "scaled", "normalised") else 0
    )
    np.testing.assert_allclose(block, pairs, rtol=100 * EPS[dtype] + tolerance, atol=100 * EPS[dtype])
    np.testing.assert_allclose(np.diag(gram), diagonal, rtol=100 * EPS[dtype] + tolerance)
    lowest = np.linalg.eigvalsh(gram.astype(np.float64))[0]
    assert lowest > -(100 * EPS[dtype] + tolerance) * diagonal.max()


def central(f, x, step):
    eye = np.eye(len(x)) * step
    return np.array([(f(x + e) - f(x - e)) / (2 * step) for e in eye])


# Kernels are arguments, so that what one test has compiled serves the others.
value = jax.jit(lambda kernel, a, b: kernel(a, b))
gradient_of_pairs = jax.jit(jax.grad(lambda kernel, a, b: kernel(a, b), argnums=1))
gradient_of_squares = jax.jit(jax.grad(lambda kernel, a: kernel(a, a), argnums=1))


@pytest.mark.parametrize("name", sorted(KERNELS))
@pytest.mark.parametrize("where", ["apart", "coincident", "opposite", "near", "zero"])
def test_gradients_are_those_of_central_differences(name, where):
    x = points(4, 1)[0]
    other = {
        "apart": points(5, 1)[0],
        "coincident": x,
        "opposite": -2 * x,
        "near": x + 1e-3 * points(5, 1)[0],
        "zero": np.zeros(D),
    }[where]
    kernel = KERNELS[name]
    gradient = in_float64(gradient_of_pairs, kernel, x, other)
    # Beside a kink the two sides cancel, up to the step, and with them the digits of a small one.
    step, slack = (1e-4, 1e-5) if where == "coincident" else (1e-6, 2e-6)
    expected = central(lambda a: in_float64(value, kernel, a, other), x, step)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient, expected, atol=slack * max(1.0, np.abs(expected).max()))
    total = in_float64(gradient_of_squares, kernel, x)
    diagonal = central(lambda a: in_float64(value, kernel, a, a), x, step)
    np.testing.assert_allclose(total, diagonal, atol=slack * max(1.0, np.abs(diagonal).max()))


def test_gradients_of_whole_matrices_are_finite_in_float32_with_repeated_and_zero_rows():
    x = np.concatenate([points(6, 3, np.float32)] * 2 + [np.zeros((1, D), np.float32)])
    for name, kernel in KERNELS.items():
        loss = jax.jit(jax.grad(lambda x, kernel=kernel: jnp.sum(jnp.sin(kernel.matrix(x, x)))))
        assert np.all(np.isfinite(loss(x))), name


def test_settings_are_differentiable_and_do_not_compile_anew():
    value = jax.jit(jax.grad(lambda kernel, x, z: kernel(x, z)))
    x, z = points(7, 2)
    for scale in (0.7, 2.0):
        slope = in_float64(value, kernels.RBF(scale), x, z)
        square = np.sum((x - z) ** 2)
        np.testing.assert_allclose(
            slope.lengthscale, np.exp(-square / 2 / scale**2) * square / scale**3, rtol=1e-12
        )
    assert value._cache_size() == 1


@hypothesis.given(st.floats(-1, 1))
def test_arc_cosine_functions_follow_their_definition(cosine):
    angle = np.arccos(cosine)
    expected = (np.pi - angle) / np.pi, (np.sin(angle) + (np.pi - angle) * cosine) / np.pi
    wide = in_float64(jax.jit(arc_cosine), np.float64(cosine))
    np.testing.assert_allclose(wide, expected, atol=8 * np.sqrt(EPS[np.float64]))
    narrow = arc_cosine(jnp.float32(cosine))
    angle32 = np.arccos(np.float64(np.float32(cosine)))
    np.testing.assert_allclose(narrow[0], 1 - angle32 / np.pi, atol=8 * np.sqrt(EPS[np.float32]))
    np.testing.assert_allclose(narrow[1], expected[1], atol=100 * EPS[np.float32])


def test_the_polynomial_is_as_good_as_the_precision():
    cosine = np.linspace(-0.999, 0.999, 4001, dtype=np.float32)
    found = arc_cosine(jnp.asarray(cosine))[0]
    expected = 1 - np.arccos(cosine.astype(np.float64)) / np.pi
    # An angle of cosine c feels the rounding of c by 1/sin.
    slack = 4 * EPS[np.float32] * (1 + 1 / np.sqrt(1 - cosine.astype(np.float64) ** 2))
    assert np.all(np.abs(found - expected) < slack)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_parts_rebuild_the_kernel(name):
    import json

    kernel = KERNELS[name]
    again = rebuild(json.loads(json.dumps(parts_of(kernel))), kernel.arrays())
    x = points(8, 3)
    np.testing.assert_array_equal(
        in_float64(three_forms, again, x, x)[0], in_float64(three_forms, kernel, x, x)[0]
    )


def test_algebra_of_kernels():
    x = points(9, 4)
    a, b = KERNELS["rbf"], KERNELS["ntk"]
    matrix = {name: in_float64(three_forms, k, x, x)[0] for name, k in {"a": a, "b": b}.items()}
    both = in_float64(three_forms, 2.0 * (a + b) * b, x, x)[0]
    np.testing.assert_allclose(both, 2 * (matrix["a"] + matrix["b"]) * matrix["b"], rtol=1e-13)
    np.testing.assert_allclose(in_float64(three_forms, b.normalised(), x, x)[3], 1.0, rtol=1e-14)
    with pytest.raises(TypeError):
        a + 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: kernels.RBF(0.0), "lengthscale is 0.0"),
        (lambda: kernels.RBF(np.nan), "finite"),
        (lambda: kernels.RBF("wide"), "must be a number"),
        (lambda: kernels.Polynomial(0), "degree is 0"),
        (lambda: kernels.Polynomial(2, -1.0), ">= 0"),
        (lambda: kernels.NTK(depth=0), "depth is 0"),
        (lambda: kernels.NTK(depth=1.5), "whole number"),
        (lambda: kernels.NTK(weight_variance=0.0), "positive"),
        (lambda: kernels.NNGP(negative_slope=np.inf), "finite"),
        (lambda: kernels.RBF(1.0) * -2.0, "factor is -2.0"),
        (lambda: kernels.RBF(1.0).matrix(jnp.ones((2, 3, 3, 1)), jnp.ones((2, 9))), "flatten images"),
        (lambda: kernels.RBF(1.0).matrix(jnp.ones(3), jnp.ones((2, 3))), "call kernel"),
        (lambda: kernels.RBF(1.0).matrix(jnp.ones((2, 3)), jnp.ones((2, 4))), "one length"),
        (lambda: kernels.RBF(1.0).matrix(jnp.ones((2, 3), int), jnp.ones((2, 3), int)), "float32"),
    ],
)
def test_bad_input_is_refused_with_the_cure(make, says):
    with pytest.raises(InputError, match=says):
        make()
