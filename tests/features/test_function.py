"""Any JAX function as a feature map, maps of fixed float32, and modules as people call them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.features import Encoder, Function
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.ridge.stream import source_of
from jaxdistill.solve.derivative import check_derivative

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 12))
Y = jd.one_hot(np.arange(60) % 3, 3)


@pytest.fixture(autouse=True)
def ordinary_promotion():
    """Code that is not ours may rely on JAX's ordinary promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def weights(seed=1, width=16):
    rng = np.random.default_rng(seed)
    return {
        "first": (rng.standard_normal((12, 20)) / 3, rng.standard_normal(20)),
        "last": rng.standard_normal((20, width)) / 4,
    }


def network(parameters, x):
    """Two layers, on inputs of shape (3, 4)."""
    w, b = parameters["first"]
    return jnp.tanh(jnp.tanh(x.reshape(len(x), -1) @ w + b) @ parameters["last"])


def network32(parameters, x):
    return network(jax.tree.map(lambda a: a.astype(jnp.float32), parameters), x.astype(jnp.float32))


class Net32(nn.Module):
    """What most pretrained modules of flax are: of a type of their own."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(20, dtype=jnp.float32)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, dtype=jnp.float32)(jnp.tanh(x))
        return nn.tanh(nn.Dense(16, dtype=jnp.float32)(nn.Dropout(0.5, deterministic=not train)(x)))


def flax32():
    net = Net32()
    variables = net.init(KEY, jnp.ones((1, 3, 4)), train=False)
    return Encoder.of(net, variables=variables, input_shape=(3, 4), call_arguments={"train": False})


MAPS = {
    "function": lambda: Function(network, weights(), (3, 4)),
    "function of float32": lambda: Function(network32, weights(), (3, 4)),
    "flax module of float32": flax32,
}


def test_a_function_is_itself_in_either_precision_and_its_parameters_are_copies():
    parameters = weights()
    phi = Function(network, parameters, (3, 4))
    expected = in_float64(network, parameters, X.reshape(-1, 3, 4))
    np.testing.assert_allclose(in_float64(phi, X), expected, rtol=1e-6)
    parameters["last"][:] = 0
    np.testing.assert_allclose(in_float64(phi, X), expected, rtol=1e-6)
    assert phi(jnp.asarray(X, jnp.float32)).dtype == jnp.float32
    assert phi(jnp.zeros((0, 12))).shape == (0, 16) and phi(jnp.zeros(12)).shape == (16,)
    assert sorted(phi.parameters) == ["first/0", "first/1", "last"]
    check_derivative(phi, X)


def test_a_function_is_a_pytree_that_compiles_once_and_is_told_from_another():
    phi, traced = Function(network, weights(), (3, 4)), []

    @jax.jit
    def features(phi, x):
        traced.append(0)
        return phi(x)

    x = jnp.asarray(X, jnp.float32)
    first = features(phi, x)
    leaves, structure = jax.tree.flatten(phi)
    np.testing.assert_array_equal(features(jax.tree.unflatten(structure, leaves), x), first)
    assert len(traced) == 1
    assert structure != jax.tree.structure(Function(network, weights(), (3, 4)))


@pytest.mark.parametrize("name", MAPS)
def test_sets_are_exact_to_what_the_map_is_computed_in_and_say_so(name, tmp_path):
    phi = MAPS[name]()
    precision = "float64" if name == "function" else "float32"
    assert phi.precision == precision
    model = jd.fit_ridge(phi, X, Y, lam=1.0)
    small = jd.distill(model, ipc=4, reference=(X, Y), dtype="float64", key=KEY)
    cert = jd.certify(model, small, X, Y)
    assert cert.exact and cert.precision == precision and cert.agreement == 1.0
    limit = 1e-9 if precision == "float64" else 2e-4
    assert cert.relative_weight_error < limit
    assert (cert.tolerance > 1e-6) == (precision == "float32")
    path = small.with_certificate(cert).save(tmp_path / "s.npz")
    if isinstance(phi, Function):
        with pytest.raises(errors.ArtifactError, match=r"network.*features="):
            jd.load_set(path)
    again = jd.load_set(path, features=MAPS[name]())
    assert again.digest == small.digest
    second = jd.certify(again, again, X, Y)
    assert second.exact and second.relative_weight_error < limit


def test_a_set_that_is_off_by_more_than_float32_rounds_is_not_exact():
    phi = MAPS["function of float32"]()
    model = jd.fit_ridge(phi, X, Y, lam=1.0)
    small = jd.distill(model, ipc=4, reference=(X, Y), dtype="float64", key=KEY)
    worse = type(small)(**{**small.__dict__, "y": small.y * (1 + 1e-2 * RNG.standard_normal(small.y.shape))})
    assert not jd.certify(model, worse).exact


def test_a_parameter_may_have_any_name(tmp_path):
    def scaled(parameters, x):
        return jnp.tanh(x @ parameters["probe"])

    phi = Function(scaled, {"probe": RNG.standard_normal((12, 16)) / 3}, (12,))
    small = jd.distill(jd.fit_ridge(phi, X, Y, lam=1.0), ipc=4, reference=(X, Y), key=KEY)
    assert jd.load_set(small.save(tmp_path / "s.npz"), features=phi).digest == small.digest


@pytest.mark.parametrize("kernel", [False, True])
def test_a_file_takes_its_own_map_back_and_no_other(kernel, tmp_path):
    phi = Function(network, weights(), (3, 4))
    if kernel:
        full = jd.fit_kernel_ridge(jd.kernels.FeatureKernel(phi), X, Y, lam=1.0)
        small = jd.distill_kernel(full, X, Y, ipc=2, key=KEY)
    else:
        small = jd.distill(jd.fit_ridge(phi, X, Y, lam=1.0), ipc=4, reference=(X, Y), key=KEY)
    path = small.save(tmp_path / "s.npz")
    # The file has the parameters, so those of the map that is passed do not matter; its code does.
    loaded = jd.load_set(path, features=Function(network, weights(seed=5), (3, 4)))
    assert loaded.digest == small.digest
    wrong = {
        "other features": Function(lambda p, x: 2 * network(p, x), weights(), (3, 4)),
        "does not fit": Function(network, weights(width=9), (3, 4)),
        "pass the map": jd.features.Linear(12),
    }
    for words, other in wrong.items():
        with pytest.raises(errors.ArtifactError, match=words):
            jd.load_set(path, features=other)
    with pytest.raises(errors.ArtifactError, match="features="):
        jd.load_set(path, module=nn.Dense(3))
    linear = jd.distill(jd.fit_ridge(jd.features.Linear(12), X, Y, lam=1.0), ipc=1, key=KEY)
    with pytest.raises(errors.ArtifactError, match="need no features"):
        jd.load_set(linear.save(tmp_path / "l.npz"), features=phi)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"apply": lambda p, x: x - jnp.mean(x, axis=0)}, "depend on the others"),
        ({"apply": lambda p, x: jnp.sum(x)}, r"shape \(\), expected \(13, p\)"),
        ({"apply": lambda p, x: x[:, :2, None]}, "flatten=True"),
        ({"apply": lambda p, x: x.astype(jnp.float16)}, "type float16"),
        ({"apply": lambda p, x: p["absent"]}, r"cannot be called on .*\(12,\).*absent"),
        ({"apply": lambda x: x}, "cannot be called"),
        ({"apply": 3}, "apply is a int"),
        ({"parameters": {"act": jnp.tanh}}, "at act.*equinox.partition"),
        ({"parameters": {"w": np.array([np.nan])}}, "w holds 1 values that are not finite"),
        ({"parameters": {"key": jax.random.key(0)}}, "at key.*arrays alone"),
        ({"input_shape": (0,)}, "input_shape is"),
        ({"input_shape": 12}, "input_shape is 12"),
    ],
)
def test_functions_that_are_no_feature_maps_are_refused(change, says):
    request = {"apply": lambda p, x: x, "parameters": {}, "input_shape": (12,)} | change
    with pytest.raises(errors.InputError, match=says) as caught:
        Function(**request)
    assert "\n" not in str(caught.value)


def test_a_function_without_a_derivative_is_refused_where_one_is_needed():
    phi = Function(lambda p, x: jnp.round(5 * x), {}, (12,))
    model = jd.fit_ridge(phi, X, Y, lam=1.0)
    with pytest.raises(errors.InverseError, match="derivative of the function features is zero"):
        jd.distill(model, ipc=4, reference=(X, Y), key=KEY)


def test_an_equinox_network_is_distilled_saved_and_certified_again(tmp_path):
    eqx = pytest.importorskip("equinox")

    def feature_map():
        net = eqx.nn.MLP(12, 16, 20, 2, activation=jnp.tanh, key=KEY)
        parameters, rest = eqx.partition(net, eqx.is_array)
        return Function(lambda p, x: jax.vmap(eqx.combine(p, rest))(x), parameters, (12,))

    model = jd.fit_ridge(feature_map(), X, Y, lam=1.0)
    small = jd.distill(model, ipc=4, reference=(X, Y), key=KEY)
    cert = jd.certify(model, small, X, Y)
    assert cert.exact and cert.agreement == 1.0
    again = jd.load_set(small.save(tmp_path / "s.npz"), features=feature_map())
    assert jd.certify(again, again).exact


# Flax as people write it


def test_a_module_that_needs_arguments_says_which_and_keeps_them(tmp_path):
    net = Net32()
    variables = net.init(KEY, jnp.ones((1, 3, 4)), train=False)
    with pytest.raises(errors.InputError, match=r"'train'.*call_arguments"):
        Encoder.of(net, variables=variables, input_shape=(3, 4))
    with pytest.raises(errors.InputError, match="a list; give numbers"):
        Encoder.of(net, variables=variables, input_shape=(3, 4), call_arguments={"train": []})
    phi = flax32()
    model = jd.fit_ridge(phi, X, Y, lam=1.0)
    path = jd.distill(model, ipc=4, reference=(X, Y), key=KEY).save(tmp_path / "s.npz")
    again = jd.load_set(path, module=Net32())
    np.testing.assert_allclose(in_float64(again.features, X), in_float64(phi, X), rtol=1e-5, atol=1e-6)


def test_the_collection_params_alone_is_enough():
    net = nn.Dense(4)
    variables = net.init(KEY, jnp.ones((1, 12)))
    whole, alone = (Encoder.of(net, variables=v, input_shape=(12,)) for v in (variables, variables["params"]))
    assert sorted(whole.parameters) == sorted(alone.parameters) == ["params/bias", "params/kernel"]
    np.testing.assert_array_equal(in_float64(whole, X), in_float64(alone, X))


class Jitted(nnx.Module):
    """A module whose call is jitted, as tutorials write it: every call writes all of its state back."""

    def __init__(self, rngs, training=False):
        self.linear = nnx.Linear(12, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=not training, rngs=rngs)

    @nnx.jit
    def __call__(self, x):
        return jnp.tanh(self.norm(self.linear(x)))


def test_an_nnx_module_whose_call_is_jitted_is_served_unless_its_state_changes():
    module = Jitted(nnx.Rngs(0))
    phi = Encoder.of(module, input_shape=(12,))
    expected = module(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(in_float64(phi, X), expected, atol=1e-5)
    with pytest.raises(errors.InputError, match="state of the module changes"):
        Encoder.of(Jitted(nnx.Rngs(0), training=True), input_shape=(12,))
    with pytest.raises(errors.InputError, match="jitted"):
        Encoder.of(module, input_shape=(12,), layer="linear")


def test_chunks_are_sized_by_the_largest_array_inside_and_not_by_weights():
    """Sixteen channels of 32 x 32 pixels are more than their 64 means, and than an image."""
    rng = np.random.default_rng(0)
    parameters = {"filters": rng.standard_normal((3, 3, 3, 16)), "head": rng.standard_normal((16, 13 * 5))}

    def network(p, x):
        @jax.jit
        def inside(x):
            shape = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, p["filters"], (1, 1), "SAME", dimension_numbers=shape)

        return jnp.tanh(inside(x)).mean(axis=(1, 2)) @ p["head"]

    phi = Function(network, parameters, input_shape=(32, 32, 3))
    assert (phi.num_features, phi.breadth) == (65, 16 * 32 * 32)
    x = rng.standard_normal((1000, 3072)).astype(np.float32)
    source = source_of(x, x[:, :2], num_inputs=3072, breadth=phi.breadth)
    assert source.chunk_size == 2**24 // (4 * 16 * 32 * 32)
    assert Function(lambda p, x: x[:, 0, 0], {}, input_shape=(32, 32, 3)).breadth == 3072
