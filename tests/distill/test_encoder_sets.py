"""Exact sets of maps without an inverse, end to end: encoders, wide and convolutional networks, refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.distill.options import SolverOptions
from jaxdistill.features import ConvolutionalNetwork, Encoder, RandomNetwork
from jaxdistill.networks.standard import make_network

KEY = jax.random.key(0)
SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 16))
    labels = np.arange(240) % 3
    x = (centres[labels] + rng.standard_normal((240, 16))).astype(np.float32)
    return {"x": x, "y": jd.one_hot(labels, 3), "labels": labels}


class Probe(nnx.Module):
    """An nnx module with a hidden layer of 40 features."""

    def __init__(self):
        self.hidden = nnx.Linear(16, 40, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(40, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(nnx.gelu(self.hidden(x.reshape(len(x), -1))))


class Steps(nn.Module):
    """A module without a derivative."""

    @nn.compact
    def __call__(self, x):
        return jnp.round(2 * x.reshape(len(x), -1))


def own_encoder():
    with jax.numpy_dtype_promotion("standard"):
        net = make_network("encoder", channels=(6,), num_features=30, num_outputs=3, activation="tanh")
        variables = jax.jit(net.init)(KEY, jnp.zeros((1, *SHAPE)))
        return Encoder.of(net, variables=variables, input_shape=SHAPE, layer="features")


MAPS = {
    "own network": own_encoder,
    "any network": lambda: Encoder.of(Probe(), input_shape=SHAPE, layer="hidden"),
    "wide network": lambda: RandomNetwork.create(16, widths=(40,), activation="softplus", key=KEY),
    "convolution": lambda: ConvolutionalNetwork.create(
        SHAPE, channels=(6,), pool="average", activation="gelu", key=KEY
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_sets_of_maps_without_an_inverse_are_exact_from_the_file(name, task, tmp_path):
    phi = MAPS[name]()
    model = jd.fit_ridge(phi, task["x"], task["y"], lam=1.0)
    small = jd.distill(model, ipc=4, reference=(task["x"], task["y"]), dtype="float32", key=KEY)
    path = small.save(tmp_path / "set.npz")
    module = {"module": Probe()} if name == "any network" else {}
    found = jd.certify(model, jd.DistilledSet.load(path, **module), task["x"], task["labels"])
    assert found.exact and found.relative_weight_error < 1e-5 and found.agreement == 1.0


def test_a_module_without_a_derivative_is_named_before_any_step(task):
    phi = Encoder.of(Steps(), variables={}, input_shape=SHAPE)
    model = jd.fit_ridge(phi, task["x"], task["y"], lam=1.0)
    with pytest.raises(errors.InverseError, match="derivative of the encoder features is zero"):
        jd.distill(model, ipc=3, reference=(task["x"], task["y"]), key=KEY)


def test_too_few_examples_with_exactness_demanded_name_the_count(task):
    phi = RandomNetwork.create(16, widths=(200,), activation="gelu", key=KEY)
    model = jd.fit_ridge(phi, task["x"], task["y"], lam=1.0)
    count = -(-200 * 3 // (16 + 3))
    with pytest.raises(errors.RankError, match=f"{count}"):
        jd.distill(model, ipc=3, exact=True, reference=(task["x"], task["y"]), key=KEY)


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_one_per_class_is_exact_by_default_from_small_features(activation, task):
    phi = RandomNetwork.create(16, widths=(16, 14), activation=activation, key=KEY)
    model = jd.fit_ridge(phi, task["x"], task["y"], lam=1.0)
    reference = (task["x"], task["y"])
    small = jd.distill(model, ipc=1, reference=reference, dtype="float32", key=KEY)
    told = small.recipe["solver"]
    assert told["began"] == "small features" and told["rung"] == 1 and told["rungs"] == 5
    found = jd.certify(model, small, task["x"], task["labels"])
    assert found.exact and found.agreement == 1.0
    # Whoever names a start gets the nearest set to it that the ladder finds.
    named = jd.distill(model, ipc=1, reference=reference, solver=SolverOptions(start="real"), key=KEY)
    assert named.recipe["solver"]["reached"] and (named.recipe["solver"]["began"] == "sharpness 10") == (
        named.recipe["solver"]["rung"] == 1
    )


def test_sets_that_stay_near_are_never_begun_elsewhere(task):
    phi = RandomNetwork.create(16, widths=(24,), activation="gelu", key=KEY)
    model = jd.fit_ridge(phi, task["x"], task["y"], lam=1.0)
    for realistic, rungs in (("closest", 3), (None, 4)):
        small = jd.distill(
            model, ipc=4, reference=(task["x"], task["y"]), realistic=realistic, sharpness=5.0, key=KEY
        )
        assert small.recipe["solver"]["rungs"] == rungs and small.recipe["solver"]["began"] == "sharpness 5"
