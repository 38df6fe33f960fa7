"""Encoders: any layer of any flax module, both libraries; files with and without code; every refusal."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.features import Encoder, Linear, RandomNetwork
from jaxdistill.networks.standard import STANDARD, make_network
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.solve.derivative import check_derivative

KEY = jax.random.key(0)
X = np.random.default_rng(0).standard_normal((5, 12))


@pytest.fixture(autouse=True)
def ordinary_promotion():
    """Modules are initialised by their own code, which relies on JAX's ordinary promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Block(nn.Module):
    width: int
    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        return nn.tanh(nn.BatchNorm(use_running_average=not self.train)(x))


class LinenNet(nn.Module):
    """Two blocks and a head, on inputs of shape (3, 4)."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = Block(9, train=self.train, name="first")(x.reshape(len(x), -1))
        return nn.Dense(3, name="head")(Block(7, train=self.train, name="second")(x))


class NnxBlock(nnx.Module):
    def __init__(self, fan_in, fan_out, rngs):
        self.linear = nnx.Linear(fan_in, fan_out, rngs=rngs)
        self.norm = nnx.BatchNorm(fan_out, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.dropout(self.norm(self.linear(x))))


class NnxNet(nnx.Module):
    """The same in the other library, with dropout."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.blocks = nnx.List([NnxBlock(12, 9, rngs), NnxBlock(9, 7, rngs)])
        self.head = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class OtherNnxNet(NnxNet):
    def __call__(self, x):
        return super().__call__(2 * x)


class Says(nn.Module):
    """A module without parameters: whatever function it is given."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def linen_parts(shape=(3, 4)):
    module = LinenNet()
    return module, jax.jit(module.init)(KEY, jnp.zeros((1, *shape)))


def nnx_module(kind=NnxNet, **settings):
    module = kind(**settings)
    module.eval()
    return module


def encoder(library, layer=None, **options):
    if library == "linen":
        module, variables = linen_parts()
        return Encoder.of(module, variables=variables, input_shape=(3, 4), layer=layer, **options)
    return Encoder.of(nnx_module(), input_shape=(3, 4), layer=layer, **options)


def fixed_set(phi, rows=30):
    """A set whose features are the encoder's; nothing here depends on the solver."""
    x = np.random.default_rng(1).standard_normal((rows, phi.num_inputs)).astype(np.float32)
    y = jd.one_hot(np.arange(rows) % 3, 3)
    model = jd.fit_ridge(phi, x, y, lam=1.0)
    size = phi.num_features
    return model, jd.distill(model, size=size, realistic="fixed", reference=(x, y), key=KEY)


def test_linen_layers_are_those_of_the_module():
    module, variables = linen_parts()
    images = jnp.asarray(X, jnp.float32).reshape(5, 3, 4)
    expected = module.apply(variables, images)
    np.testing.assert_allclose(encoder("linen")(jnp.asarray(X, jnp.float32)), expected, rtol=1e-5)
    dense = variables["params"]["first"]["Dense_0"]
    norm = variables["params"]["first"]["BatchNorm_0"]
    hidden = X @ np.float64(dense["kernel"]) + np.float64(dense["bias"])
    hidden = np.tanh(hidden / np.sqrt(1 + 1e-5) * np.float64(norm["scale"]) + np.float64(norm["bias"]))
    found = in_float64(encoder("linen", "first"), X)
    np.testing.assert_allclose(found, hidden, rtol=1e-6)


def test_nnx_layers_are_those_of_the_module():
    module = nnx_module()
    x = jnp.asarray(X, jnp.float32)
    np.testing.assert_allclose(encoder("nnx")(x), module(x.reshape(5, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(encoder("nnx", "blocks/0")(x), module.blocks[0](x), rtol=1e-5)
    last = module.blocks[1].linear(module.blocks[0](x))
    np.testing.assert_allclose(encoder("nnx", "blocks/1/linear")(x), last, rtol=1e-5)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_encoders_are_pure_maps_in_either_precision(library):
    phi = encoder(library, "first" if library == "linen" else "blocks/0")
    assert (phi.num_inputs, phi.num_features) == (12, 9)
    x = jnp.asarray(X, jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        together = jax.jit(phi)(x)
        np.testing.assert_allclose(jax.vmap(phi)(x), together, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(phi(x[0]), together[0], rtol=1e-5, atol=1e-6)
        assert phi(x.reshape(5, 1, 12)).shape == (5, 1, 9) and phi(x[:0]).shape == (0, 9)
        wide = in_float64(phi, X)
        assert wide.dtype == np.float64
        np.testing.assert_allclose(wide, together, atol=1e-5)
        step = 1e-6
        gradient = in_float64(jax.jacfwd(phi), X[0])
        moved = in_float64(phi, X[0] + step * np.eye(12)) - in_float64(phi, X[0])
        np.testing.assert_allclose(moved.T / step, gradient, atol=1e-5)


def test_parameters_are_frozen_when_the_encoder_is_made():
    module = nnx_module()
    phi = Encoder.of(module, input_shape=(3, 4))
    before = in_float64(phi, X)
    module.head.kernel[...] = module.head.kernel[...] + 1.0
    np.testing.assert_array_equal(in_float64(phi, X), before)


def test_a_stack_of_images_is_flattened_on_request_only():
    net = make_network("encoder", channels=(2,), num_features=6, num_outputs=3)
    variables = jax.jit(net.init)(KEY, jnp.zeros((1, 4, 4, 1)))
    make = {"variables": variables, "input_shape": (4, 4, 1), "layer": "Conv_0"}
    with pytest.raises(errors.InputError, match=r"\(n, 2, 2, 2\).*flatten=True"):
        Encoder.of(net, **make)
    phi = Encoder.of(net, **make, flatten=True)
    assert phi(jnp.ones((3, 16))).shape == (3, 8)


@pytest.mark.parametrize("name", STANDARD)
def test_own_networks_are_loaded_from_the_file_alone(name, tmp_path):
    small = {
        "convnet": {"width": 4, "depth": 1},
        "encoder": {"channels": (3,), "num_features": 6},
        "mlp": {"widths": (7,)},
        "resnet": {"widths": (2, 3), "norm": "none"},
    }[name]
    net = make_network(name, num_outputs=3, **small)
    variables = jax.jit(net.init)(KEY, jnp.zeros((1, 4, 4, 1)))
    phi = Encoder.of(net, variables=variables, input_shape=(4, 4, 1), layer="features")
    model, made = fixed_set(phi)
    path = made.save(tmp_path / "set.npz")
    again = jd.DistilledSet.load(path)
    assert again.digest == made.digest
    np.testing.assert_array_equal(in_float64(again.features, made.x), in_float64(phi, made.x))
    np.testing.assert_array_equal(again.weights, model.weights)


def test_a_stranger_loads_an_own_network_without_this_process(tmp_path):
    net = make_network("mlp", widths=(6,), num_outputs=3)
    variables = jax.jit(net.init)(KEY, jnp.zeros((1, 3, 4)))
    phi = Encoder.of(net, variables=variables, input_shape=(3, 4), layer="features")
    path = fixed_set(phi)[1].save(tmp_path / "set.npz")
    code = (
        "import sys, jaxdistill as jd\n"
        "assert not any(name.split('.')[0] == 'flax' for name in sys.modules)\n"
        f"small = jd.DistilledSet.load({str(path)!r})\n"
        "assert jd.certify(small, small).num_test == 0\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_other_modules_are_asked_for_and_checked(library, tmp_path):
    layer = "second" if library == "linen" else "blocks/1"
    made = fixed_set(encoder(library, layer))[1]
    path = made.save(tmp_path / "set.npz")
    with pytest.raises(errors.ArtifactError, match=r"Net \(flax .*module=\.\.\."):
        jd.DistilledSet.load(path)
    # The file's parameters count, not those that the module happens to have.
    module = LinenNet() if library == "linen" else nnx_module(seed=7)
    again = jd.DistilledSet.load(path, module=module)
    assert again.digest == made.digest
    np.testing.assert_array_equal(in_float64(again.features, made.x), in_float64(made.features, made.x))


def test_a_module_that_computes_something_else_is_refused(tmp_path):
    path = fixed_set(encoder("nnx", "blocks/1"))[1].save(tmp_path / "set.npz")
    with pytest.raises(errors.ArtifactError, match="other features"):
        jd.DistilledSet.load(path, module=nnx_module(OtherNnxNet))
    smaller = nnx_module()
    smaller.head = nnx.Linear(7, 2, rngs=nnx.Rngs(0))
    with pytest.raises(errors.ArtifactError, match="does not fit the file at parameter head/bias"):
        jd.DistilledSet.load(path, module=smaller)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_parameters_can_be_referred_to_by_their_hash(library, tmp_path):
    layer = "second" if library == "linen" else "blocks/1"
    made = fixed_set(encoder(library, layer, store=False))[1]
    path = made.save(tmp_path / "set.npz")
    assert not [name for name in np.load(path).files if "kernel" in name]
    module, variables = linen_parts()
    right = {"module": module, "variables": variables} if library == "linen" else {"module": nnx_module()}
    again = jd.DistilledSet.load(path, **right)
    np.testing.assert_array_equal(in_float64(again.features, made.x), in_float64(made.features, made.x))
    if library == "linen":
        wrong = right | {"variables": jax.tree.map(lambda a: a + 0.1, variables)}
        with pytest.raises(errors.ArtifactError, match=r"only a hash.*variables=\.\.\."):
            jd.DistilledSet.load(path, module=module)
    else:
        wrong = {"module": nnx_module(seed=1)}
    with pytest.raises(errors.ArtifactError, match="their hash is"):
        jd.DistilledSet.load(path, **wrong)


def test_a_module_for_features_without_one_is_refused(tmp_path, problem):
    model = jd.fit_ridge(Linear(12), problem["x"], problem["y"], lam=1.0)
    path = jd.distill(model, ipc=1, key=KEY).save(tmp_path / "set.npz")
    with pytest.raises(errors.ArtifactError, match="linear features, which need no module"):
        jd.DistilledSet.load(path, module=nnx_module())


@pytest.mark.parametrize(
    ("layer", "says"),
    [("secnd", "did you mean 'second'"), ("nothing like it", "first/Dense_0.*head")],
)
def test_a_layer_that_does_not_exist_lists_those_that_do(layer, says):
    with pytest.raises(errors.InputError, match=says):
        encoder("linen", layer)


def test_layers_of_nnx_are_listed_too():
    with pytest.raises(errors.InputError, match=r"did you mean 'blocks/1'.*blocks/0/linear.*head"):
        encoder("nnx", "block/1")


def test_state_that_changes_is_refused():
    module = LinenNet(train=True)
    variables = jax.jit(LinenNet().init)(KEY, jnp.zeros((1, 3, 4)))
    with pytest.raises(errors.InputError, match=r"changes when it is called.*evaluation mode"):
        Encoder.of(module, variables=variables, input_shape=(3, 4))
    training = NnxNet()
    with pytest.raises(errors.InputError, match=r"changes when it is called.*module\.eval"):
        Encoder.of(training, input_shape=(3, 4))
    norm_only = nnx_module()
    norm_only.blocks[0].norm.use_running_average = False
    with pytest.raises(errors.InputError, match="blocks/0/norm"):
        Encoder.of(norm_only, input_shape=(3, 4))


def test_random_numbers_are_refused():
    module = Says(lambda x: nn.Dropout(0.5, deterministic=False)(x))
    with pytest.raises(errors.InputError, match="random numbers"):
        Encoder.of(module, variables={}, input_shape=(4,))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: jnp.sum(x), r"shape \(\), expected \(13, p\)"),
        (lambda x: x[:, 0], r"shape \(13,\), expected"),
        (lambda x: x[:2], r"shape \(2, 4\), expected"),
        (lambda x: (x, x), "tuple, not one array"),
        (lambda x: x.astype(jnp.float16), "type float16.*dtype=jnp.float32"),
        (lambda x: x.astype(jnp.bfloat16), "type bfloat16.*dtype=None"),
        (lambda x: jnp.argmax(x, axis=1, keepdims=True), "type int"),
        (lambda x: x - jnp.mean(x, axis=0), "depend on the others"),
        (lambda x: jnp.log(x - 10.0), "not finite"),
    ],
)
def test_outputs_that_are_no_features_are_refused(function, says):
    with pytest.raises(errors.InputError, match=says):
        Encoder.of(Says(function), variables={}, input_shape=(4,))


def test_other_inputs_and_other_objects_are_refused():
    module, variables = linen_parts()
    with pytest.raises(errors.InputError, match=r"inputs of shape \(5,\).*input_shape it was made for"):
        Encoder.of(module, variables=variables, input_shape=(5,))
    with pytest.raises(errors.InputError, match=r"variables=module\.init"):
        Encoder.of(module, input_shape=(3, 4))
    with pytest.raises(errors.InputError, match="leave variables out"):
        Encoder.of(nnx_module(), variables=variables, input_shape=(3, 4))
    with pytest.raises(errors.InputError, match="function; pass a flax module"):
        Encoder.of(lambda x: x, input_shape=(3, 4))
    with pytest.raises(errors.InputError, match="not a tree of arrays"):
        Encoder.of(module, variables=3, input_shape=(3, 4))
    with pytest.raises(errors.InputError, match="input_shape"):
        Encoder.of(module, variables=variables, input_shape=(3, 0))
    spoilt = jax.tree.map(lambda a: a * jnp.nan, variables)
    with pytest.raises(errors.InputError, match=r"parameter .* holds"):
        Encoder.of(module, variables=spoilt, input_shape=(3, 4))
    with pytest.raises(errors.InputError, match=r"expected \(\.\.\., 12\)"):
        encoder("linen")(jnp.ones((2, 11)))
    with pytest.raises(errors.InverseError, match=r"no closed-form inverse.*spanning"):
        encoder("linen").inverse(np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: jnp.round(x), "forward derivative of the encoder features is zero"),
        (lambda x: jax.lax.stop_gradient(x), "is zero"),
        (lambda x: jnp.sqrt(x - x), "not finite"),
        (lambda x: one_way(x), "no derivative"),
    ],
)
def test_a_missing_derivative_is_named_where_one_is_needed(function, says):
    phi = Encoder.of(Says(function), variables={}, input_shape=(4,))
    with pytest.raises(errors.InverseError, match=says):
        check_derivative(phi, X[:, :4])


@jax.custom_vjp
def one_way(x):
    """A function that can be differentiated backwards only."""
    return x**2


one_way.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


def test_smooth_maps_and_kinks_have_derivatives():
    for activation in ("gelu", "leaky_relu", "relu"):
        check_derivative(RandomNetwork.create(12, widths=(20,), activation=activation, key=KEY), X)
    check_derivative(encoder("nnx"), X)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("convnet", {"depht": 2}, "did you mean 'depth'"),
        ("resnett", {}, "did you mean 'resnet'"),
        ("mlp", {"widths": ()}, "sizes must be positive"),
        ("convnet", {"width": 0}, "sizes must be positive"),
        ("convnet", {"norm": "batch"}, "unknown norm"),
        ("mlp", {"activation": "gellu"}, "did you mean 'gelu'"),
    ],
)
def test_settings_of_own_networks_are_checked(name, settings, says):
    with pytest.raises(errors.InputError, match=says):
        make_network(name, **settings)
