"""Feature maps: forward, inverse, branches, domain, composability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.features import KINDS
from jaxdistill.features.base import check_inputs
from jaxdistill.numerics.linalg import in_float64

NAMES = ["linear", "fourier", "orthogonal fourier", "network", "gaussian network"]
X = np.random.default_rng(0).standard_normal((6, 12))


@pytest.mark.parametrize("name", NAMES)
def test_inverse_reaches_the_features(maps, name):
    phi = maps[name]
    target = in_float64(phi, X)
    back = phi.inverse(target)
    np.testing.assert_allclose(in_float64(phi, back), target, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "orthogonal fourier", "network", "gaussian network"])
def test_inverse_from_the_input_itself_stays_there(maps, name):
    phi = maps[name]
    np.testing.assert_allclose(phi.inverse(in_float64(phi, X), reference=X), X, atol=1e-7)


def test_fourier_branches_are_nearer_than_those_of_each_phase_alone():
    phi = jd.features.RandomFourier.create(40, 40, lengthscale=6.0, key=jax.random.key(2))
    x = np.random.default_rng(1).standard_normal((5, 40))
    target = in_float64(phi, x)
    a, b = (np.asarray(v, np.float64) for v in (phi.frequencies, phi.phases))
    angle = np.arccos(target / phi.feature_bound)
    options = [s * angle + 2 * np.pi * np.round((b - s * angle) / (2 * np.pi)) for s in (1, -1)]
    alone = np.where(np.abs(options[0] - b) <= np.abs(options[1] - b), *options)
    naive = np.linalg.solve(a, (alone - b).T).T
    found = phi.inverse(target)
    np.testing.assert_allclose(in_float64(phi, found), target, atol=1e-10)
    assert np.all(np.linalg.norm(found, axis=1) <= np.linalg.norm(naive, axis=1) * (1 + 1e-9))
    assert np.linalg.norm(found) < 0.5 * np.linalg.norm(naive)


@pytest.mark.parametrize("name", ["fourier", "gaussian network"])
def test_fewer_features_than_inputs_move_the_input_least(maps, name):
    phi = maps[name]
    start = X + 0.01 * np.ones_like(X)
    change = phi.inverse(in_float64(phi, X), reference=start) - start
    matrix = np.asarray(phi.frequencies if name == "fourier" else phi.weights[0], np.float64)
    null = np.eye(12) - np.linalg.pinv(matrix) @ matrix
    np.testing.assert_allclose(change @ null, 0, atol=1e-9)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("widths", [(12,), (12, 10), (11, 11, 7)], ids=str)
def test_networks_of_any_depth_are_inverted_to_rounding(weights, widths):
    phi = jd.features.RandomNetwork.create(12, widths=widths, weights=weights, key=jax.random.key(3))
    target = np.random.default_rng(4).standard_normal((5, widths[-1]))  # any features, not only reached ones
    back = phi.inverse(target, reference=X[:5])
    # Each layer multiplies an error by its condition number and at most by 1/0.1, the slope.
    growth = np.prod([10 * np.linalg.cond(np.asarray(w, np.float64)) for w in phi.weights])
    error = np.linalg.norm(in_float64(phi, back) - target) / np.linalg.norm(target)
    assert error < 12 * np.finfo(np.float64).eps * growth


def test_orthogonal_weights_have_unit_rows_orthogonal_within_a_block():
    w = np.asarray(jd.features.RandomNetwork.create(4, widths=(10,), key=jax.random.key(0)).weights[0])
    for block in (w[:4], w[4:8], w[8:]):
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=16 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("name", NAMES)
def test_maps_compose_with_jit_vmap_and_grad(maps, name):
    phi = maps[name]
    x = jnp.asarray(X, jnp.float32)
    together = jax.jit(phi)(x)
    np.testing.assert_allclose(jax.jit(jax.vmap(phi))(x), together, rtol=1e-5, atol=1e-6)
    reference = jnp.zeros_like(x)
    back = jax.jit(lambda f: phi.pull_back(f, reference))
    grads = jax.jit(jax.grad(lambda f: jnp.sum(back(f) ** 2)))(0.5 * together)
    assert bool(jnp.all(jnp.isfinite(grads)))
    singly = jax.jit(jax.vmap(phi.pull_back))(0.5 * together, reference)
    np.testing.assert_allclose(singly, back(0.5 * together), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_rebuilt_from_their_parts(maps, name):
    phi = maps[name]
    again = KINDS[phi.kind].from_parts(phi.settings(), phi.arrays())
    np.testing.assert_array_equal(in_float64(again, X), in_float64(phi, X))


def test_same_key_same_map_other_key_other_map():
    a, b, c = (
        jd.features.RandomNetwork.create(5, widths=(4,), key=jax.random.key(s)).weights[0] for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert float(jnp.max(jnp.abs(a - c))) > 0


def test_fourier_features_estimate_the_gaussian_kernel():
    for kind in ("gaussian", "orthogonal"):
        phi = jd.features.RandomFourier.create(
            4, 40000, lengthscale=1.5, frequencies=kind, key=jax.random.key(1)
        )
        x = X[:, :4]
        z = np.asarray(phi(jnp.asarray(x, jnp.float32)))
        distance = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
        # Each product of features has variance at most 1/p * 2: five deviations.
        np.testing.assert_allclose(z @ z.T, np.exp(-distance / 4.5), atol=5 * np.sqrt(2 / 40000))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda k: jd.features.RandomFourier.create(4, 5, lengthscale=1.0, key=k), "at most 4 features"),
        (lambda k: jd.features.RandomNetwork.create(4, widths=(5,), key=k), "do not increase"),
        (
            lambda k: jd.features.RandomNetwork.create(4, widths=(4,), negative_slope=0.0, key=k),
            "positive slope",
        ),
    ],
)
def test_maps_without_an_inverse_name_the_alternative(make, says):
    phi = make(jax.random.key(0))
    with pytest.raises(errors.InverseError, match=says):
        phi.inverse(np.zeros((2, phi.num_features)))


def test_features_out_of_range_name_the_largest_scale(maps):
    phi = maps["fourier"]
    target = np.full((1, 10), 2 * phi.feature_bound)
    with pytest.raises(errors.InverseError, match=r"at most 0\.5"):
        phi.inverse(target)


@pytest.mark.parametrize(
    "make",
    [
        lambda k: jd.features.Linear(0),
        lambda k: jd.features.RandomFourier.create(3, 0, lengthscale=1.0, key=k),
        lambda k: jd.features.RandomFourier.create(3, 2, lengthscale=-1.0, key=k),
        lambda k: jd.features.RandomFourier.create(3, 2, lengthscale=1.0, frequencies="sobol", key=k),
        lambda k: jd.features.RandomNetwork.create(3, widths=(), key=k),
        lambda k: jd.features.RandomNetwork.create(3, widths=(2,), negative_slope=2.0, key=k),
        lambda k: jd.features.RandomNetwork.create(3, widths=(2,), weights="uniform", key=k),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(errors.InputError):
        make(jax.random.key(0))


def test_integers_and_wrong_shapes_are_refused(maps):
    with pytest.raises(errors.InputError, match="float32"):
        check_inputs(jnp.zeros((2, 12), jnp.int32), 12)
    with pytest.raises(errors.InputError, match="flatten"):
        maps["network"](jnp.zeros((2, 3, 4)))
    with pytest.raises(errors.InputError, match="expected"):
        maps["network"].inverse(np.zeros((2, 3)))
    with pytest.raises(errors.InputError, match="reference"):
        maps["network"].inverse(np.zeros((2, 9)), reference=np.zeros((1, 12)))
