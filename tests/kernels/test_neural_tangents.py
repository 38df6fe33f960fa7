"""The infinite networks against neural-tangents and against wide finite ones; neural-tangents' own import."""

import dataclasses
import importlib.metadata
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import kernels
from jaxdistill.errors import ArtifactError, InputError, MemoryBudgetError
from jaxdistill.kernels.convolve import convolve
from jaxdistill.numerics.linalg import in_float64

D = 7


def points(seed, n):
    return np.random.default_rng(seed).standard_normal((n, D))


def stax_kernel(depth, weight_variance, bias_variance, slope):
    with jax.numpy_dtype_promotion("standard"):
        stax = kernels.import_neural_tangents().stax
        dense = {"W_std": weight_variance**0.5, "b_std": bias_variance**0.5 or None}
        layers = []
        for _ in range(depth):
            layers += [stax.Dense(1, **dense), stax.LeakyRelu(slope) if slope else stax.Relu()]
        return stax.serial(*layers, stax.Dense(1, **dense))[2]


matrix = jax.jit(lambda kernel, x, z: kernel.matrix(x, z))
diagonal = jax.jit(lambda kernel, x: kernel.diagonal(x))


@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("bias", [0.0, 0.01])
def test_ntk_and_nngp_equal_those_of_neural_tangents(depth, slope, bias):
    # All pairs, and among them equal, parallel and opposite ones.
    x = points(0, 5)
    x = np.concatenate([x, points(1, 4), 3 * x[:1], -x[1:2]])
    kernel_fn = stax_kernel(depth, 2.0, bias, slope)
    for get, kind in (("ntk", kernels.NTK), ("nngp", kernels.NNGP)):
        ours = kind(depth, 2.0, bias, slope)
        expected = in_float64(matrix, kernels.from_neural_tangents(kernel_fn, get), x, x)
        np.testing.assert_allclose(in_float64(matrix, ours, x, x), expected, rtol=1e-7)
        np.testing.assert_allclose(in_float64(diagonal, ours, x), np.diag(expected), rtol=1e-7)


def finite_network(depth, width, weight_variance, bias_variance, slope):
    sizes = [D] + [width] * depth + [1]

    def init(key):
        keys = jax.random.split(key, (len(sizes) - 1, 2))
        return [
            (jax.random.normal(k[0], (i, o)), jax.random.normal(k[1], (o,)))
            for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]

    def apply(parameters, x):
        for number, (w, b) in enumerate(parameters):
            if number:
                x = jnp.where(x > 0, x, slope * x)
            x = (weight_variance / w.shape[0]) ** 0.5 * (x @ w) + bias_variance**0.5 * b
        return x[0]

    return init, apply


@pytest.mark.long
@pytest.mark.parametrize(("depth", "slope", "bias"), [(1, 0.0, 0.1), (2, 0.3, 0.0)])
def test_wide_finite_networks_have_these_kernels_on_average(depth, slope, bias):
    x = points(2, 3).astype(np.float32)
    init, apply = finite_network(depth, 256, 1.7, bias, slope)
    draws = 200

    @jax.jit
    def sample(key):
        parameters = init(key)
        outputs, slopes = jax.vmap(lambda row: jax.value_and_grad(apply)(parameters, row))(jnp.asarray(x))
        flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(slopes)], axis=1)
        return jnp.outer(outputs, outputs), flat @ flat.T

    nngp, ntk = jax.lax.map(sample, jax.random.split(jax.random.key(3), draws))
    for drawn, kind in ((nngp, kernels.NNGP), (ntk, kernels.NTK)):
        expected = in_float64(matrix, kind(depth, 1.7, bias, slope), x, x)
        error = np.std(drawn, axis=0) / np.sqrt(draws)
        # A kernel of finite width has a bias of order depth / width beside the error of the mean.
        assert np.all(np.abs(np.mean(drawn, axis=0) - expected) < 4 * error + depth / 256 * np.abs(expected))


def test_a_convolutional_kernel_has_derivatives_and_a_cheap_diagonal():
    with jax.numpy_dtype_promotion("standard"):
        stax = kernels.import_neural_tangents().stax
        layers = [stax.Conv(1, (3, 3), padding="SAME"), stax.Relu(), stax.AvgPool((2, 2), (2, 2))]
        kernel_fn = stax.serial(*layers, stax.Flatten(), stax.Dense(1))[2]
    kernel = kernels.from_neural_tangents(kernel_fn, shape=(4, 4, 1))
    x = np.random.default_rng(3).standard_normal((3, 16))
    gram = in_float64(matrix, kernel, x, x)
    np.testing.assert_allclose(in_float64(diagonal, kernel, x), np.diag(gram), rtol=1e-6)
    assert np.linalg.eigvalsh(gram)[0] > 0
    slope = in_float64(jax.jit(jax.grad(lambda a, b: kernel(a, b))), x[0], x[1])
    step = 1e-6 * np.eye(16)[5]
    value = jax.jit(lambda a, b: kernel(a, b))
    central = (in_float64(value, x[0] + step, x[1]) - in_float64(value, x[0] - step, x[1])) / 2e-6
    np.testing.assert_allclose(slope[5], central, rtol=1e-5)


FRESH = """
import sys
from functools import partial
import jax, jax.core
from jax.interpreters import ad
import jaxdistill as jd
before = set(vars(jax.core)), set(vars(ad))
nt = jd.kernels.import_neural_tangents()
import neural_tangents as again
assert again is nt is jd.kernels.import_neural_tangents()
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "tf2jax")]
assert (set(vars(jax.core)), set(vars(ad))) == before and "jax.util" not in sys.modules
x = jax.numpy.ones((2, 6, 6, 1)) * jax.numpy.array([1.0, 2.0]).reshape(2, 1, 1, 1)
stax = nt.stax
init, apply, kernel_fn = stax.serial(
    stax.Conv(4, (3, 3)), stax.Relu(), stax.AvgPool((2, 2)), stax.GlobalAvgPool(), stax.Dense(3)
)
assert jax.jit(kernel_fn, static_argnums=2)(x, None, "ntk").shape == (2, 2)
assert nt.batch(kernel_fn, 1)(x, None, "ntk").shape == (2, 2)
predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, jax.numpy.ones((2, 3)), diag_reg=1e-3)
assert predict(x_test=x, get="ntk").shape == (2, 3)
parameters = init(jax.random.key(0), x.shape)[1]
for implementation in (1, 2):
    found = nt.empirical_ntk_fn(apply, implementation=implementation)(x, None, parameters)
    assert found.shape == (2, 2)
kernel = jd.kernels.from_neural_tangents(kernel_fn, shape=(6, 6, 1))
x, y = jax.numpy.cos(jax.numpy.arange(72.0)).reshape(2, 36), jax.numpy.eye(2)
model = jd.fit_kernel_ridge(kernel, x, y, lam=0.1)
small = jd.distill_kernel(model, x, y, ipc=1, labels="projected", key=jax.random.key(1))
assert jd.certify(model, small).exact
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "tf2jax")]
"""

AFTER_A_FAILURE = """
import sys
from functools import partial
sys.modules["tensorflow"] = sys.modules["tf2jax"] = None  # to fail early is to fail fast
try:
    import neural_tangents
except ImportError:
    pass
else:
    raise AssertionError("the import works by itself: this package has nothing to do")
import jaxdistill as jd
assert jd.kernels.import_neural_tangents().stax.Dense(1)
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(FRESH, marks=pytest.mark.long, id="at first"),
        pytest.param(AFTER_A_FAILURE, id="after a failure"),
    ],
)
def test_a_fresh_process_gets_the_library_without_tensorflow_and_jax_is_left_as_it_was(code):
    # Compiled as users compile: the set there is exact to float64's rounding only then.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True)


def test_an_untested_version_is_named_and_used(monkeypatch):
    from jaxdistill.kernels import neural_tangents as shim

    real = importlib.metadata.version
    monkeypatch.setattr(shim.metadata, "version", lambda name: "0.7.1" if "neural" in name else real(name))
    with pytest.warns(UserWarning, match=r"0\.7\.1 .* is untested: 0\.6\.5"):
        shim._check_versions()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(shim.metadata, "version", missing)
    with pytest.raises(InputError, match="pip install neural-tangents"):
        shim._check_versions()


def test_bad_input_is_refused_with_the_cure():
    with pytest.raises(InputError, match="did you mean 'ntk'"):
        kernels.from_neural_tangents(lambda a, b, get: a, "nkt")
    with pytest.raises(InputError, match="third of what"):
        kernels.from_neural_tangents((1, 2, 3))  # pyright: ignore[reportArgumentType]
    kernel = kernels.from_neural_tangents(lambda a, b, get: a @ b.T, shape=(4, 4, 1))
    with pytest.raises(InputError, match="length 9"):
        kernel.matrix(jnp.ones((2, 9)), jnp.ones((2, 9)))
    with pytest.raises(ArtifactError, match="no file can hold"):
        kernel.settings()
    # A convolution is given rows, or images of another rank, and says so in one line.
    images = dataclasses.replace(small_convolution(), shape=None)
    with pytest.raises(InputError, match=r"examples of shape \(36,\) .*; pass shape=\(H, W, C\)"):
        images.matrix(jnp.ones((2, 36)), jnp.ones((2, 36)))
    with pytest.raises(InputError, match=r"examples of shape \(6, 6\) .*; pass their real shape"):
        dataclasses.replace(images, shape=(6, 6)).matrix(jnp.ones((2, 36)), jnp.ones((2, 36)))


def small_convolution(pool=True):
    with jax.numpy_dtype_promotion("standard"):
        stax = kernels.import_neural_tangents().stax
        last = [stax.GlobalAvgPool()] if pool else [stax.Flatten()]
        kernel_fn = stax.serial(stax.Conv(1, (3, 3), padding="SAME"), stax.Relu(), *last, stax.Dense(1))[2]
    return kernels.from_neural_tangents(kernel_fn, shape=(6, 6, 1))


# Under jaxlib 0.10 the convolution of XLA reads before its input here, and the process dies.
CRASH = """
import jax, numpy as np
from jaxdistill.kernels import from_neural_tangents, import_neural_tangents
jax.config.update("jax_enable_x64", True)
stax = import_neural_tangents().stax
layers = [stax.Conv(1, (3, 3), padding="SAME"), stax.AvgPool((2, 2), (2, 2), "SAME"), stax.GlobalAvgPool()]
kernel = from_neural_tangents(stax.serial(*layers, stax.Dense(1))[2], shape=(8, 8, 1))
for n in (4, 12, 20):
    jax.jit(lambda x: kernel.matrix(x, x))(np.ones((n, 64))).block_until_ready()
"""


def test_a_padded_convolution_of_images_8_wide_does_not_end_the_process():
    subprocess.run([sys.executable, "-W", "ignore", "-c", CRASH], check=True)


@pytest.mark.parametrize(
    "layout", [("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC"), ("CNHW", "HWIO", "HWNC")]
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", [(1, 2), (0, 1)]])
def test_a_sum_of_shifted_inputs_is_a_convolution(layout, strides, padding):
    sizes, rng = {"N": 3, "H": 7, "W": 9, "C": 1, "O": 1, "I": 1}, np.random.default_rng(0)
    x = rng.standard_normal([sizes[axis] for axis in layout[0]])
    w = rng.standard_normal([{**sizes, "H": 3, "W": 2}[axis] for axis in layout[1]])

    def value(f, x, w):
        return jnp.sum(jnp.sin(f(x, w, strides, padding, dimension_numbers=layout)))

    @jax.jit
    def both(x, w):
        functions = (convolve, jax.lax.conv_general_dilated)
        return [jax.value_and_grad(partial(value, f), (0, 1))(x, w) for f in functions]

    ours, theirs = in_float64(both, x, w)
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_a_convolution_of_several_channels_is_left_to_jax():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, 5, 5)), rng.standard_normal((3, 2, 2, 2))
    ours, theirs = (
        in_float64(partial(f, window_strides=(1, 1), padding="VALID"), x, w)
        for f in (convolve, jax.lax.conv_general_dilated)
    )
    assert ours.shape == (1, 3, 4, 4)
    np.testing.assert_array_equal(ours, theirs)


def test_the_workspace_grows_with_pairs_of_pixels_where_they_are_pooled_and_adds_up():
    pooled, flat = small_convolution(), small_convolution(pool=False)
    array = 8 * 36**2
    assert array <= pooled.workspace(36, np.float64) // 8 <= 2 * array
    assert 8 * 36 <= flat.workspace(36, np.float64) // 8 <= 4 * 8 * 36
    with jax.enable_x64(False):  # the library computes in float64 wherever it may
        assert pooled.workspace(36, np.float32) == pooled.workspace(36, np.float64)
    both = (2.0 * pooled.normalised() + kernels.RBF(1.0)) * flat
    assert both.workspace(36, np.float64) == sum(k.workspace(36, np.float64) for k in (pooled, flat))


@pytest.mark.long
def test_matrices_in_blocks_are_the_matrices_with_their_derivatives_and_little_memory(monkeypatch):
    from jaxdistill.kernels import neural_tangents as module

    kernel = small_convolution()
    x, z = (np.random.default_rng(seed).standard_normal((n, 36)) for seed, n in ((0, 7), (1, 5)))

    def value(kernel, x, z):
        return jnp.sum(jnp.sin(kernel.matrix(x, z))) + jnp.sum(kernel.normalised().diagonal(x) * x[:, 0])

    both = jax.jit(lambda *args: (args[0].matrix(*args[1:]), jax.grad(value, argnums=(1, 2))(*args)))
    whole = in_float64(both, kernel, x, z)
    monkeypatch.setattr(module, "WORKSPACE", 3 * kernel.workspace(36, np.float64))
    again = jax.jit(lambda *args: both.__wrapped__(*args))
    parts = in_float64(again, kernel, x, z)
    for found, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    many = jax.ShapeDtypeStruct((100, 36), np.float64)
    with jax.enable_x64(True):
        compiled = jax.jit(lambda x, z: kernel.matrix(x, z)).lower(many, many).compile()
    # As one block it would take 100 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * module.WORKSPACE + 2 * 8 * 100**2


def test_an_entry_that_does_not_fit_is_named(monkeypatch):
    from jaxdistill.kernels import neural_tangents as module

    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryBudgetError, match=r"one entry .* shape \(6, 6, 1\).* without pooling"):
        small_convolution().matrix(jnp.ones((2, 36)), jnp.ones((2, 36)))
