"""The empirical NTK: brute force, neural-tangents and closed forms as oracles; chunks, derivatives, files."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.flatten_util import ravel_pytree

import jaxdistill as jd
from jaxdistill import kernels
from jaxdistill.errors import ArtifactError, InputError, MemoryBudgetError
from jaxdistill.kernels import EmpiricalNTK, empirical
from jaxdistill.kernels.empirical import plan_chunks
from jaxdistill.kernels.tiles import kernel_matrix
from jaxdistill.networks.standard import make_network
from jaxdistill.numerics.linalg import in_float64

KEY = jax.random.key(0)
SHAPE = (4, 4, 1)


def points(seed, n, dim=16):
    return np.random.default_rng(seed).standard_normal((n, dim))


def init(module, shape=SHAPE):
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(module.init)(KEY, jnp.zeros((1, *shape)))


class Counted(nn.Module):
    """Convolution, norm with statistics, a counter and a fixed scale beside the parameters."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3))(x)
        x = nn.gelu(nn.BatchNorm(use_running_average=True)(x))
        scale = self.variable("constants", "scale", lambda: jnp.float32(1.5))
        steps = self.param("steps", lambda key: jnp.int32(2))
        return nn.Dense(2)(x.reshape(len(x), -1) * scale.value) * steps


class NnxConv(nnx.Module):
    """The like in the other library."""

    def __init__(self, seed=0, outputs=2):
        rngs = nnx.Rngs(seed)
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(48, outputs, rngs=rngs)
        self.steps = nnx.Variable(jnp.int32(2))

    def __call__(self, x):
        x = jnp.tanh(self.norm(self.conv(x)))
        return self.head(x.reshape(len(x), -1)) * self.steps[...]


class Says(nn.Module):
    """Whatever function it is given, of the input and of one parameter."""

    function: object
    integer: bool = False

    @nn.compact
    def __call__(self, x):
        w = self.param("w", lambda key: jnp.int32(2) if self.integer else jnp.float32(2.0))
        return self.function(x, w)


def nnx_module(**settings):
    module = NnxConv(**settings)
    module.eval()
    return module


def linen_kernel(module, shape=SHAPE, **options):
    return EmpiricalNTK.of(module, variables=init(module, shape), input_shape=shape, **options)


MLP = make_network("mlp", widths=(6, 5), num_outputs=3, activation="gelu")


@pytest.fixture(scope="module")
def made():
    return {
        "linen mlp": linen_kernel(MLP),
        "linen conv": linen_kernel(Counted()),
        "nnx conv": EmpiricalNTK.of(nnx_module(), input_shape=SHAPE),
    }


def by_brute_force(name, x):
    """One flat Jacobian of all outputs by ``jax.jacobian``, from the libraries' own calls."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        images = jnp.asarray(x.reshape(-1, *SHAPE))
        if name == "nnx conv":
            graph, parameters, rest = nnx.split(nnx_module(), nnx.Param, ...)
            wide, rest = (jax.tree.map(promoted, part) for part in (parameters, rest))

            def function(p):
                return nnx.merge(graph, p, rest)(images)
        else:
            module = MLP if name == "linen mlp" else Counted()
            variables = jax.tree.map(promoted, dict(init(module)))
            steps = {"steps": variables["params"].pop("steps")} if name == "linen conv" else {}
            wide = variables["params"]

            def function(p):
                return module.apply({**variables, "params": p | steps}, images)

        flat, unravel = ravel_pytree(wide)
        jacobian = np.asarray(jax.jit(jax.jacobian(lambda p: function(unravel(p))))(flat))
    assert jacobian.dtype == np.float64
    return jacobian


def promoted(leaf):
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


@jax.jit
def four_forms(kernel, x, z):
    pairs = jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(z))(x)
    return pairs, kernel.matrix(x, z), kernel.matrix(x, x), kernel.diagonal(x)


matrix = jax.jit(lambda kernel, x, z: kernel.matrix(x, z))
diagonal = jax.jit(lambda kernel, x: kernel.diagonal(x))
gradient_of_pairs = jax.jit(jax.grad(lambda kernel, a, b: kernel(a, b), argnums=1))
NAMES = ["linen mlp", "linen conv", "nnx conv"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_flat_jacobian_with_itself(made, name):
    x, z = points(0, 5), points(1, 3)
    left, right = by_brute_force(name, x), by_brute_force(name, z)
    outputs = left.shape[1]
    expected = np.einsum("iop,jop->ij", left, right) / outputs
    np.testing.assert_allclose(in_float64(matrix, made[name], x, z), expected, rtol=1e-12)
    squares = np.sum(left**2, axis=(1, 2)) / outputs
    np.testing.assert_allclose(in_float64(diagonal, made[name], x), squares, rtol=1e-12)


@pytest.mark.parametrize("name", ["linen mlp", "linen conv"])
def test_it_is_that_of_neural_tangents(made, name):
    module = MLP if name == "linen mlp" else Counted()
    x, z = points(2, 4), points(3, 3)
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(True):
        nt = kernels.import_neural_tangents()
        variables = jax.tree.map(promoted, dict(init(module)))
        fixed = {"steps": variables["params"].pop("steps")} if name == "linen conv" else {}

        def apply(parameters, images):
            return module.apply({**variables, "params": parameters | fixed}, images)

        theirs = jax.jit(
            nt.empirical_ntk_fn(apply, vmap_axes=0, implementation=nt.NtkImplementation.JACOBIAN_CONTRACTION)
        )
        images = [jnp.asarray(rows.reshape(-1, *SHAPE)) for rows in (x, z)]
        expected = np.asarray(theirs(*images, variables["params"]))
    np.testing.assert_allclose(in_float64(matrix, made[name], x, z), expected, rtol=1e-10)


def test_a_linear_layer_has_the_linear_kernel_and_one_hidden_layer_its_formula():
    x, z = points(4, 4, 6), points(5, 3, 6)
    affine = linen_kernel(nn.Dense(3), (6,))
    np.testing.assert_allclose(in_float64(matrix, affine, x, z), x @ z.T + 1, rtol=1e-12)
    net = make_network("mlp", widths=(7,), num_outputs=2, activation="tanh")
    kernel = linen_kernel(net, (6,))
    p = {k: np.float64(v) for k, v in flatten_dict(init(net, (6,))["params"], sep="/").items()}
    h, h2 = (np.tanh(rows @ p["Dense_0/kernel"] + p["Dense_0/bias"]) for rows in (x, z))
    weights = np.mean(p["head/kernel"] ** 2, axis=1)
    expected = h @ h2.T + 1 + ((1 - h**2) * weights) @ (1 - h2**2).T * (x @ z.T + 1)
    np.testing.assert_allclose(in_float64(matrix, kernel, x, z), expected, rtol=1e-12)
    hidden = linen_kernel(net, (6,), layer="features")
    expected = ((1 - h**2) @ (1 - h2**2).T) * (x @ z.T + 1) / 7
    np.testing.assert_allclose(in_float64(matrix, hidden, x, z), expected, rtol=1e-12)


class Scaled(nn.Module):
    """A dense layer as in the theory of wide networks: standard normal parameters, scaled when used."""

    width: int

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.normal(1.0), (x.shape[1], self.width))
        b = self.param("b", nn.initializers.normal(1.0), (self.width,))
        return (2.0 / x.shape[1]) ** 0.5 * (x @ w) + 0.1**0.5 * b


class Wide(nn.Module):
    """One hidden layer of width 256."""

    @nn.compact
    def __call__(self, x):
        return Scaled(2)(nn.relu(Scaled(256)(x)))


def test_wide_networks_have_the_infinite_kernel_on_average():
    kernel, x, draws = linen_kernel(Wide(), (6,)), points(6, 3, 6), 100

    @jax.jit
    def sample(key):
        with jax.numpy_dtype_promotion("standard"):
            variables = flatten_dict(Wide().init(key, jnp.zeros((1, 6))), sep="/")
        drawn = replace(kernel, encoder=replace(kernel.encoder, parameters=variables))
        return drawn.matrix(jnp.asarray(x, jnp.float32), jnp.asarray(x, jnp.float32))

    found = np.asarray(jax.lax.map(sample, jax.random.split(jax.random.key(1), draws)))
    expected = in_float64(matrix, kernels.NTK(1, 2.0, 0.1), x, x)
    error = np.std(found, axis=0) / np.sqrt(draws)
    # A kernel of finite width has a bias of order 1 / width beside the error of the mean.
    assert np.all(np.abs(np.mean(found, axis=0) - expected) < 4 * error + np.abs(expected) / 256)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrix_pairs_and_diagonal_agree_and_are_semidefinite(made, name, dtype):
    kernel, x, z = made[name], points(7, 5).astype(dtype), points(8, 3).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        found = four_forms(kernel, x, z)
        pairs, block, gram, squares = (np.asarray(form) for form in found)
    assert block.dtype == pairs.dtype == squares.dtype == dtype
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(block, pairs, rtol=100 * eps, atol=100 * eps * np.max(squares))
    np.testing.assert_allclose(np.diag(gram), squares, rtol=100 * eps)
    np.testing.assert_allclose(gram, gram.T, rtol=100 * eps, atol=100 * eps * np.max(squares))
    assert np.linalg.eigvalsh(np.float64(gram))[0] > -100 * eps * np.max(squares)
    np.testing.assert_allclose(block, in_float64(matrix, kernel, x, z), rtol=5e3 * eps, atol=5e3 * eps)


@pytest.mark.parametrize("derivatives", [2, pytest.param(13, marks=pytest.mark.long)])
def test_chunks_change_nothing_and_compile_once(made, derivatives):
    whole, x, z = made["linen mlp"], points(9, 11), points(10, 7)
    small = replace(whole, memory=8 * derivatives * whole._num_trained)
    plan = small._plan(7, 11, np.float64)
    assert plan.outputs * (plan.held + plan.passing) <= derivatives
    before = empirical._matrix._cache_size()
    for _ in range(2):
        found = in_float64(lambda x, z: small.matrix(x, z), x, z)
    assert empirical._matrix._cache_size() == before + 1
    np.testing.assert_allclose(found, in_float64(matrix, whole, x, z), rtol=1e-12)
    np.testing.assert_allclose(in_float64(diagonal, small, x), in_float64(diagonal, whole, x), rtol=1e-12)
    loss = jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(kernel.matrix(x, z)))))
    np.testing.assert_allclose(in_float64(loss, x, small), in_float64(loss, x, whole), rtol=1e-9, atol=1e-12)


def test_accelerators_make_all_jacobians_of_a_chunk_at_once(made, monkeypatch):
    kernel, x = made["linen conv"], points(14, 3)
    expected = in_float64(matrix, kernel, x, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = in_float64(jax.jit(lambda x, z: empirical._matrix.__wrapped__(kernel, x, z)), x, x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("memory", [2, 3, 10, 64, 700, 10**6])
@pytest.mark.parametrize(("held", "passing", "outputs"), [(1, 1, 1), (5, 9, 3), (300, 5000, 10), (700, 0, 7)])
def test_plans_fit_the_budget_and_waste_nothing(memory, held, passing, outputs):
    plan = plan_chunks(held, passing, outputs, 8, 8 * memory)
    assert plan.outputs * (plan.held + plan.passing) <= memory
    assert 1 <= plan.outputs <= outputs and 1 <= plan.held <= held and min(1, passing) <= plan.passing
    if memory >= outputs * (held + passing):
        assert plan.outputs == outputs and plan.held == held


def test_memory_is_bounded_by_the_budget_not_by_the_number_of_inputs():
    net = make_network("mlp", widths=(64,), num_outputs=5)
    memory = 2**22
    kernel = linen_kernel(net, memory=memory)
    n = 500
    assert 4 * kernel._num_trained * 5 * n > 3 * memory
    x = jax.ShapeDtypeStruct((n, 16), jnp.float32)
    loss = jax.jit(jax.grad(lambda x: jnp.sum(kernel.matrix(x, x))))
    for function, times in ((jax.jit(lambda x: kernel.matrix(x, x)), 1.5), (loss, 4.0)):
        used = function.lower(x).compile().memory_analysis()
        assert used is not None
        assert used.temp_size_in_bytes < times * memory + 4 * 4 * n * n


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["apart", "coincident"])
def test_gradients_are_those_of_central_differences(made, name, where):
    kernel, x = made[name], points(11, 1)[0]
    other = x if where == "coincident" else points(12, 1)[0]
    gradient = in_float64(gradient_of_pairs, kernel, x, other)
    step = 1e-6 * np.eye(16)
    ahead, behind = (in_float64(matrix, kernel, x + s, other[None])[:, 0] for s in (step, -step))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-6)


def any_set(kernel):
    """A set as a file keeps it; nothing here depends on how it was made."""
    x, y = points(13, 3, 12).astype(np.float32), np.eye(3)
    return jd.KernelSet(x, y, 0.1, kernel, values=y, squared_norm=1.0, resolution=0.0)


@pytest.mark.long
def test_a_set_of_an_own_network_is_loaded_from_the_file_alone(problem, tmp_path):
    kernel = linen_kernel(make_network("mlp", widths=(8,), num_outputs=3), (12,))
    model = jd.fit_kernel_ridge(kernel, problem["x"], problem["y"], lam=0.1)
    small = jd.distill_kernel(model, problem["x"], problem["y"], ipc=2, key=KEY)
    found = jd.certify(model, small, problem["x_test"], problem["y_test"])
    path = small.with_certificate(found).save(tmp_path / "set.npz")
    assert found.accuracy_full > 0.9 and found.accuracy_distilled > 0.8
    assert found.largest_gap <= found.gap_bound
    again = jd.load_set(path)
    assert again.digest == small.digest and isinstance(again.kernel, EmpiricalNTK)
    assert jd.certify(model, again, problem["x_test"], problem["y_test"]) == found
    assert again.certificate == found.to_dict()
    config = jd.kip.KipConfig(start=small, steps=5, labels="learned")
    trained = jd.kip.train(model, problem["x"], problem["y"], config, key=KEY)
    assert trained.history.loss[-1, 0] < trained.history.loss[0, 0]


@pytest.mark.parametrize(
    "around", [lambda k: k, lambda k: 0.5 * k + kernels.RBF(2.0), lambda k: k.normalised()]
)
def test_other_modules_are_asked_for_and_checked(around, tmp_path):
    class Net(nnx.Module):
        def __init__(self, seed=0, factor=1.0):
            self.linear = nnx.Linear(12, 3, rngs=nnx.Rngs(seed))
            self.factor = factor

        def __call__(self, x):
            return jnp.tanh(self.factor * self.linear(x))

    kernel = around(EmpiricalNTK.of(Net(), input_shape=(12,)))
    small = any_set(kernel)
    path = small.save(tmp_path / "set.npz")
    with pytest.raises(ArtifactError, match=r"Net \(flax .*load_set\(file, module=\.\.\.\)"):
        jd.load_set(path)
    # The file's parameters count, not those that the module happens to have.
    again = jd.load_set(path, module=Net(seed=3))
    assert again.digest == small.digest
    np.testing.assert_array_equal(
        kernel_matrix(again.kernel, small.x, dtype=np.float64),
        kernel_matrix(kernel, small.x, dtype=np.float64),
    )
    with pytest.raises(ArtifactError, match="other features"):
        jd.load_set(path, module=Net(factor=2.0))


def test_parameters_can_be_referred_to_by_their_hash(tmp_path):
    net = make_network("mlp", widths=(4,), num_outputs=3)
    variables = init(net, (12,))
    small = any_set(EmpiricalNTK.of(net, variables=variables, input_shape=(12,), store=False))
    path = small.save(tmp_path / "set.npz")
    assert not [name for name in np.load(path).files if "Dense" in name]
    with pytest.raises(ArtifactError, match=r"only a hash.*variables=\.\.\."):
        jd.load_set(path)
    assert jd.load_set(path, variables=variables).digest == small.digest
    wrong = jax.tree.map(lambda a: a + 0.1, variables)
    with pytest.raises(ArtifactError, match="their hash is"):
        jd.KernelSet.load(path, variables=wrong)


def test_features_of_a_foreign_module_are_loaded_as_a_kernel_too(tmp_path):
    phi = jd.features.Encoder.of(nn.Dense(5), variables=init(nn.Dense(5), (12,)), input_shape=(12,))
    path = any_set(kernels.FeatureKernel(phi) + kernels.RBF(3.0)).save(tmp_path / "set.npz")
    with pytest.raises(ArtifactError, match=r"module=\.\.\."):
        jd.load_set(path)
    assert isinstance(jd.load_set(path, module=nn.Dense(5)).kernel, kernels.Sum)
    plain = any_set(kernels.RBF(3.0)).save(tmp_path / "plain.npz")
    with pytest.raises(ArtifactError, match="'rbf', which needs no module"):
        jd.load_set(plain, module=nn.Dense(5))


@jax.custom_jvp
def no_derivative(x):
    return x


@no_derivative.defjvp
def _(primals, tangents):
    raise TypeError("none is known")


@pytest.mark.parametrize(
    ("function", "integer", "says"),
    [
        (lambda x, w: x, True, r"no parameters that can be differentiated.*'params'.*this one has params/w"),
        (lambda x, w: x, False, "derivative .* is zero"),
        (lambda x, w: x * jnp.sqrt(w - w), False, "derivative .* is not finite"),
        (lambda x, w: x * no_derivative(w), False, r"no derivative .*none is known"),
    ],
)
def test_modules_that_training_cannot_move_are_refused(function, integer, says):
    with pytest.raises(InputError, match=says):
        linen_kernel(Says(function, integer), (4,))


def test_bad_input_is_refused_with_the_cure(made):
    with pytest.raises(InputError, match="function; pass a flax module"):
        EmpiricalNTK.of(lambda x: x, input_shape=(3,))
    with pytest.raises(InputError, match=r"variables=module\.init"):
        EmpiricalNTK.of(MLP, input_shape=SHAPE)
    with pytest.raises(InputError, match="there is no layer 'haed'; did you mean 'head'"):
        linen_kernel(MLP, layer="haed")
    with pytest.raises(InputError, match="input_shape it was made for"):
        EmpiricalNTK.of(nnx_module(), input_shape=(5, 5, 1))
    with pytest.raises(InputError, match="changes when it is called"):
        EmpiricalNTK.of(NnxConv(), input_shape=SHAPE)
    with pytest.raises(InputError, match="memory is nan"):
        linen_kernel(MLP, memory=np.nan)
    with pytest.raises(MemoryBudgetError, match="cannot hold two derivatives"):
        linen_kernel(MLP, memory=100)
    kernel = made["linen mlp"]
    with pytest.raises(InputError, match=r"expected \(\.\.\., 16\)"):
        kernel.matrix(jnp.ones((2, 15)), jnp.ones((2, 15)))
    with pytest.raises(InputError, match="flatten images"):
        kernel.matrix(jnp.ones((2, 4, 4, 1)), jnp.ones((2, 16)))
    with pytest.raises(InputError, match="float32 or float64"):
        kernel.diagonal(jnp.ones((2, 16), int))
    assert kernel.matrix(jnp.ones((0, 16)), jnp.ones((2, 16))).shape == (0, 2)
    assert kernel.diagonal(jnp.ones((0, 16))).shape == (0,)
