"""Convolutional, deep linear and invertible maps: forward, inverse, exact sets, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill import errors
from jaxdistill.distill.deep_linear import share_outside
from jaxdistill.features import KINDS, ConvolutionalNetwork, DeepLinear, InvertibleNetwork
from jaxdistill.networks.pooling import pool
from jaxdistill.numerics.linalg import in_float64

KEY = jax.random.key(0)
SHAPE = (6, 6, 2)
X = np.random.default_rng(0).standard_normal((4, 72))


def conv(shape=SHAPE, **settings):
    return ConvolutionalNetwork.create(shape, **({"channels": (2,), "key": KEY} | settings))


INVERTIBLE = {
    "patches": lambda: conv(channels=(8,), kernel_size=2, stride=2),
    "two layers of patches": lambda: conv(channels=(8, 6), kernel_size=2, stride=2, padding="valid"),
    "overlapping": lambda: conv(channels=(2,), kernel_size=3),
    "strided, same": lambda: conv(channels=(7,), kernel_size=3, stride=2),
    "average pooling": lambda: conv(channels=(2,), kernel_size=2, padding="valid", pool="average"),
    "two layers of pooling": lambda: conv(channels=(2, 2), kernel_size=2, pool="average"),
    "asinh": lambda: conv(channels=(8,), kernel_size=2, stride=2, activation="asinh"),
    "deep linear, narrow": lambda: DeepLinear.create(72, widths=(60, 50), key=KEY),
    "deep linear, wide": lambda: DeepLinear.create(72, widths=(100, 90), key=KEY),
    "coupling": lambda: InvertibleNetwork.create(72, depth=3, key=KEY),
    "coupling, odd": lambda: InvertibleNetwork.create(7, depth=2, width=5, activation="tanh", key=KEY),
}


@functools.cache
def invertible(name):
    return INVERTIBLE[name]()


def inputs(phi):
    return X[:, : phi.num_inputs]


# Forward


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 3])
def test_convolutions_are_those_of_scipy(padding, stride, size):
    phi = conv(channels=(3,), kernel_size=size, stride=stride, padding=padding, activation="identity")
    image, kernel = X[0].reshape(SHAPE), np.float64(phi.kernels[0])
    if padding == "same":  # as many zeros as the last step needs, the odd one below and to the right
        missing = max((-(-6 // stride) - 1) * stride + size - 6, 0)
        image = np.pad(image, ((missing // 2, missing - missing // 2),) * 2 + ((0, 0),))
    expected = np.stack(
        [
            sum(
                scipy.signal.correlate2d(image[..., c], kernel[..., c, o], mode="valid")
                for c in range(SHAPE[2])
            )[::stride, ::stride]
            for o in range(3)
        ],
        axis=-1,
    )
    found = in_float64(phi, X[:1])
    assert phi.num_features == expected.size == found.shape[1]
    np.testing.assert_allclose(found[0], expected.ravel(), atol=1e-13)


def test_pooling_takes_squares_and_leaves_out_the_rest():
    image = np.random.default_rng(1).standard_normal((1, 5, 4, 2))
    for kind, of in (("average", np.mean), ("max", np.max)):
        found = in_float64(lambda x, kind=kind: pool(x, kind), image)
        assert found.shape == (1, 2, 2, 2)
        assert found[0, 1, 0, 1] == pytest.approx(of(image[0, 2:4, :2, 1]), rel=1e-15)


def test_shapes_follow_the_layers():
    phi = conv((28, 28, 1), channels=(4, 5), pool="max", stride=1)
    assert phi.num_features == 7 * 7 * 5
    assert phi(jnp.zeros((2, 784))).shape == (2, 245) and phi(jnp.zeros((3, 2, 784))).shape == (3, 2, 245)


def test_coupling_layers_stretch_no_more_than_they_say():
    phi = InvertibleNetwork.create(6, depth=1, stretch=0.3, key=KEY)
    determinant = in_float64(lambda p, x: jnp.linalg.det(jax.jacfwd(p)(x)), phi, X[0, :6])
    assert np.exp(-0.9) <= abs(determinant) <= np.exp(0.9)  # three of six coordinates are stretched


# Inverse


@pytest.mark.parametrize("name", INVERTIBLE)
def test_features_are_reached_and_their_own_inputs_stay(name):
    phi = invertible(name)
    x = inputs(phi)
    target = in_float64(phi, x)
    back = phi.inverse(target)
    np.testing.assert_allclose(in_float64(phi, back), target, atol=1e-8)
    np.testing.assert_allclose(phi.inverse(target, reference=x), x, atol=1e-8)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_maps_compose_and_are_rebuilt(name):
    phi = invertible(name)
    x = jnp.asarray(inputs(phi), jnp.float32)
    together = jax.jit(phi)(x)
    np.testing.assert_allclose(jax.jit(jax.vmap(phi))(x), together, rtol=1e-4, atol=1e-5)
    if "odd" in name or "patches" in name:  # one of each kind: compilation is most of the time
        back = jax.jit(jax.grad(lambda f: jnp.sum(phi.pull_back(f, jnp.zeros_like(x)) ** 2)))(together)
        assert bool(jnp.all(jnp.isfinite(back)))
    again = KINDS[phi.kind].from_parts(phi.settings(), phi.arrays())
    np.testing.assert_array_equal(in_float64(again, inputs(phi)), in_float64(phi, inputs(phi)))


@pytest.mark.parametrize("name", ["patches", "average pooling", "deep linear, narrow", "coupling"])
def test_sets_are_exact_from_the_file(name, tmp_path):
    phi = invertible(name)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 72)).astype(np.float32)
    labels = np.argmax(x[:, :3], axis=1)
    model = jd.fit_ridge(phi, x, jd.one_hot(labels, 3), lam=1.0)
    for ipc, dtype, most in ((4, "float64", 1e-8), (1, "float32", 1e-3)):
        small = jd.distill(model, ipc=ipc, dtype=dtype, key=KEY)
        again = jd.DistilledSet.load(small.save(tmp_path / "set.npz"))
        found = jd.certify(model, again, x, labels)
        assert found.exact and found.relative_weight_error < most and found.agreement == 1.0


def test_sets_near_real_images_are_exact_too():
    phi = invertible("patches")
    x = np.random.default_rng(2).standard_normal((200, 72)).astype(np.float32)
    y = jd.one_hot(np.argmax(x[:, :3], axis=1), 3)
    model = jd.fit_ridge(phi, x, y, lam=1.0)
    near = jd.distill(model, ipc=2, realistic="closest", reference=(x, y), key=KEY)
    assert jd.certify(model, near).exact


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"channels": (3,)}, r"wider \(108\).*larger stride or fewer channels"),
        ({"pool": "max"}, "pool='average'"),
        ({"activation": "gelu"}, "not monotone"),
    ],
)
def test_convolutions_without_an_inverse_name_the_alternative(settings, says):
    phi = conv(**settings)
    with pytest.raises(errors.InverseError, match=says):
        phi.inverse(np.zeros((1, phi.num_features)))


def test_a_bounded_activation_below_an_average_is_no_construction():
    phi = conv(channels=(2,), kernel_size=2, padding="valid", pool="average", activation="tanh")
    assert phi.inverse_obstacle is None and "outside its range" in phi.construction_obstacle


@pytest.mark.parametrize(
    "make",
    [
        lambda: conv((6, 6), channels=(2,)),
        lambda: conv(channels=()),
        lambda: conv(channels=(0,)),
        lambda: conv(stride=0),
        lambda: conv(kernel_size=7, padding="valid"),
        lambda: conv(channels=(2, 2, 2), pool="average"),
        lambda: conv(padding="circular"),
        lambda: conv(pool="mean"),
        lambda: conv(weights="uniform"),
        lambda: conv(activation="swish"),
        lambda: DeepLinear.create(4, widths=(), key=KEY),
        lambda: DeepLinear.create(4, widths=(0,), key=KEY),
        lambda: DeepLinear.create(4, widths=(3,), weights="uniform", key=KEY),
        lambda: InvertibleNetwork.create(1, key=KEY),
        lambda: InvertibleNetwork.create(4, depth=0, key=KEY),
        lambda: InvertibleNetwork.create(4, stretch=-1.0, key=KEY),
        lambda: InvertibleNetwork.create(4, activation="swish", key=KEY),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(errors.InputError):
        make()


# Deep linear: p > d


def deep_model(dtype=np.float64, widths=(30, 40), lam=0.5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((150, 12))
    y = jd.one_hot(np.argmax(x[:, :4] + 0.5 * rng.standard_normal((150, 4)), axis=1), 4)
    phi = DeepLinear.create(12, widths=widths, key=jax.random.key(seed))
    return jd.fit_ridge(phi, x.astype(dtype), y, lam=lam), x, y


@pytest.mark.parametrize("widths", [(40,), (30, 40), (5, 40)], ids=str)
@pytest.mark.parametrize("ipc", [1, 5])
def test_trained_weights_of_wide_deep_linear_maps_need_k_points(widths, ipc):
    model, x, y = deep_model(widths=widths)
    assert share_outside(model.features, model.weights) < 1e-12
    small = jd.distill(model, ipc=ipc, key=KEY)
    found = jd.certify(model, small, x, y)
    assert found.exact and found.relative_weight_error < 1e-8 and found.agreement == 1.0
    assert small.features is model.features and small.weights.shape == (40, 4)
    assert small.recipe["outside_range"] < 1e-12


def test_all_requests_serve_wide_deep_linear_maps(tmp_path):
    model, x, y = deep_model()
    requests = (
        {"labels": "soft", "lam_s": 3.0},
        {"lam_s": "max"},
        {"realistic": "closest", "reference": (x, y)},
        {"realistic": "inverse", "reference": (x, y)},
    )
    for request in requests:
        small = jd.distill(model, ipc=2, key=KEY, **request)
        assert jd.certify(model, jd.DistilledSet.load(small.save(tmp_path / "set.npz"))).exact
    fewer = jd.distill(model, size=2, key=KEY)
    assert fewer.recipe["lost"] > 0


def test_float32_data_leave_a_share_outside_that_is_rounding():
    model, x, _ = deep_model(dtype=np.float32, lam=1e-3)
    assert share_outside(model.features, model.weights) < 1e-14  # the fit does not keep it
    small = jd.distill(model, ipc=1, key=KEY)
    assert jd.certify(model, small, np.float32(x)).relative_weight_error < 1e-8


def test_arbitrary_weights_are_refused_with_the_share():
    model, _, _ = deep_model()
    rng = np.random.default_rng(0)
    other = type(model)(**{**model.__dict__, "weights": rng.standard_normal((40, 4))})
    share = share_outside(model.features, other.weights)
    left = np.linalg.svd(in_float64(model.features, np.eye(12)).T)[0][:, :12]
    expected = np.linalg.norm(other.weights - left @ left.T @ other.weights) / np.linalg.norm(other.weights)
    assert share == pytest.approx(expected, rel=1e-9) and share > 0.7
    with pytest.raises(errors.RankError, match=f"{100 * share:.2g} % of the weights lie outside"):
        jd.distill(other, ipc=1, key=KEY)


def test_features_outside_the_range_have_no_inverse():
    phi = DeepLinear.create(12, widths=(40,), key=KEY)
    with pytest.raises(errors.InverseError, match="outside the range of the deep linear map"):
        phi.inverse(np.random.default_rng(0).standard_normal((2, 40)))


@given(seed=st.integers(0, 10**6), d=st.integers(1, 6), more=st.integers(1, 6), k=st.integers(1, 4))
def test_the_published_condition_cannot_hold_for_more_features_than_inputs(seed, d, more, k):
    """Free features need rank(A) = p; and no number of points helps weights outside the range of A."""
    rng = np.random.default_rng(seed)
    p = d + more
    a, b = rng.standard_normal((p, d)), rng.standard_normal((p, k))
    # Right singular vectors of the full-rank system [A, -I] (x; phi) = 0 that solve it: their last p rows,
    # the features, have the rank of A, never p.
    system = np.hstack([a, -np.eye(p)])
    assert np.linalg.matrix_rank(system) == p
    free = np.linalg.svd(system)[2][p:].T
    assert np.linalg.matrix_rank(free[d:]) == min(d, p) < p
    # Whatever Z is, D = (B L^+)^T + P Z has at least the part of B outside the range: L^T D N = (N B)^T.
    outside = np.eye(p) - a @ np.linalg.pinv(a)
    for m in (k, k + 1, 3 * k + p):
        labels, z = rng.standard_normal((m, k)), rng.standard_normal((m, p))
        pseudo = np.linalg.pinv(labels)
        inverse = (b @ pseudo).T + z - labels @ (pseudo @ z)
        np.testing.assert_allclose(labels.T @ inverse @ outside, b.T @ outside, atol=1e-8)
        # And what ridge returns from any points lies in the range.
        points = rng.standard_normal((m, d))
        features = points @ a.T
        weights = features.T @ np.linalg.solve(features @ features.T + 0.1 * np.eye(m), labels)
        assert np.linalg.norm(outside @ weights) < 1e-8 * np.linalg.norm(weights)
    assert np.linalg.norm(outside @ b) > 0


@given(seed=st.integers(0, 10**6), d=st.integers(1, 5), more=st.integers(1, 5), lam=st.floats(1e-3, 1e3))
def test_ridge_weights_lie_in_the_range_for_every_penalty(seed, d, more, lam):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((d + more, d))
    features = rng.standard_normal((9, d)) @ a.T
    weights = np.linalg.solve(
        features.T @ features + lam * np.eye(d + more), features.T @ rng.standard_normal((9, 2))
    )
    share = share_outside(DeepLinear((a,)), weights)
    assert share < 1e-10 * (1 + np.linalg.norm(features) ** 2 / lam)
