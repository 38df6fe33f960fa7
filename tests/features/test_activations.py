"""Activations and the networks made of them: values, inverses, ranges, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.features import ACTIVATIONS, Activation, RandomNetwork
from jaxdistill.numerics.linalg import in_float64

Z = np.linspace(-4.0, 4.0, 41)
KEY = jax.random.key(0)
VALUES = {
    "identity": Z,
    "leaky_relu": np.maximum(Z, 0.1 * Z),
    "relu": np.maximum(Z, 0),
    "gelu": 0.5 * Z * (1 + np.tanh(np.sqrt(2 / np.pi) * (Z + 0.044715 * Z**3))),
    "silu": Z * scipy.special.expit(Z),
    "tanh": np.tanh(Z),
    "sigmoid": scipy.special.expit(Z),
    "softplus": np.log1p(np.exp(Z)),
    "elu": np.where(Z < 0, np.expm1(np.minimum(Z, 0)), Z),
    "asinh": np.arcsinh(Z),
    "cosine": np.cos(Z),
    "sine": np.sin(Z),
}
INVERTIBLE = [name for name in ACTIVATIONS if Activation(name).invertible]


def test_every_activation_has_an_oracle_here():
    assert set(VALUES) == set(ACTIVATIONS)
    assert set(INVERTIBLE) >= {"leaky_relu", "tanh", "softplus", "asinh"}
    assert not {"relu", "gelu", "cosine", "sine"} & set(INVERTIBLE)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_the_stated_range(name):
    act = Activation(name)
    found = in_float64(act, Z)
    np.testing.assert_allclose(found, VALUES[name], atol=1e-14)
    low, high = act.range
    assert low <= found.min() and found.max() <= high
    assert act.bound is None or np.abs(found).max() <= act.bound


@pytest.mark.parametrize("name", INVERTIBLE)
def test_inverses_undo_the_function(name):
    act = Activation(name)
    np.testing.assert_allclose(in_float64(act.inverse, in_float64(act, Z)), Z, atol=1e-11)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_networks_of_invertible_activations_are_inverted(name):
    phi = RandomNetwork.create(9, widths=(9, 7), activation=name, key=KEY)
    x = np.random.default_rng(0).standard_normal((4, 9))
    target = in_float64(phi, x)
    back = phi.inverse(target, reference=x + 0.01)
    np.testing.assert_allclose(in_float64(phi, back), target, atol=1e-10)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - set(INVERTIBLE)))
def test_the_others_name_the_obstacle_and_a_cure(name):
    phi = RandomNetwork.create(5, widths=(4,), activation=name, key=KEY)
    with pytest.raises(errors.InverseError, match="leaky_relu"):
        phi.inverse(np.full((2, 4), 0.5))


@pytest.mark.parametrize("name", ["tanh", "asinh"])
def test_exact_sets_of_other_activations_with_an_inverse(problem, name):
    phi = RandomNetwork.create(12, widths=(11,), activation=name, key=KEY)
    model = jd.fit_ridge(phi, problem["x"], problem["y"], lam=1.0)
    small = jd.distill(model, ipc=2, key=KEY)
    found = jd.certify(model, small)
    assert found.exact and found.relative_weight_error < 1e-10
    if name == "tanh":
        assert small.recipe["scale"] != 1.0  # inside (-1, 1)


@pytest.mark.parametrize(
    ("name", "widths", "says"),
    [("softplus", (4,), "both signs"), ("sigmoid", (4,), "both signs"), ("tanh", (5, 4), "use one layer")],
)
def test_ranges_too_small_for_constructions_are_named(name, widths, says):
    phi = RandomNetwork.create(5, widths=widths, activation=name, key=KEY)
    assert phi.inverse_obstacle is None
    assert says in phi.construction_obstacle


def test_features_outside_the_range_are_named():
    phi = RandomNetwork.create(5, widths=(4,), activation="softplus", key=KEY)
    with pytest.raises(errors.InverseError, match=r"-1 is outside the range \(0, inf\) of softplus"):
        phi.inverse(np.full((1, 4), -1.0))


def test_values_outside_the_range_inside_a_network_are_named():
    phi = RandomNetwork.create(5, widths=(5, 4), activation="tanh", key=KEY)
    with pytest.raises(errors.InverseError, match="no pre-image"):
        phi.inverse(np.full((1, 4), 0.999999))


def test_wide_networks_work_forward_and_name_the_obstacle(problem):
    phi = RandomNetwork.create(12, widths=(40,), activation="gelu", key=KEY)
    model = jd.fit_ridge(phi, problem["x"], problem["y"], lam=1.0)
    assert model.weights.shape == (40, 3) and model.predict(problem["x_test"]).shape == (60, 3)
    leaky = RandomNetwork.create(12, widths=(40,), key=KEY)
    assert "wider (40)" in leaky.inverse_obstacle


def test_activations_pass_through_jit_vmap_and_grad():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 6)), jnp.float32)
    for name in ("gelu", "softplus", "elu"):
        phi = RandomNetwork.create(6, widths=(8,), activation=name, key=KEY)
        np.testing.assert_allclose(jax.jit(jax.vmap(phi))(x), phi(x), atol=1e-6)
        assert bool(jnp.all(jnp.isfinite(jax.grad(lambda v, phi=phi: jnp.sum(phi(v)))(x))))


def test_unknown_activations_are_refused_with_the_nearest():
    with pytest.raises(errors.InputError, match="did you mean 'gelu'"):
        RandomNetwork.create(5, widths=(4,), activation="gellu", key=KEY)
