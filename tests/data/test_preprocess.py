import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.data import preprocess, zca
from jaxdistill.data.preprocess import (
    AbstractPreprocess,
    Identity,
    Standardize,
)
from jaxdistill.data.transforms import fit_preprocess, rebuild_preprocess
from jaxdistill.data.zca import ZCA
from jaxdistill.errors import InputError, RankError

KINDS = ["none", "standardize", "zca"]


def examples(n, shape, dtype=np.float64, seed=0):
    """Correlated values with a different mean and scale in each entry."""
    rng = np.random.default_rng(seed)
    d = int(np.prod(shape))
    mix = rng.normal(size=(d, d)) + np.eye(d)
    return (rng.normal(size=(n, d)) @ mix + rng.normal(size=d)).reshape(n, *shape).astype(dtype)


shapes = st.one_of(
    st.tuples(st.integers(1, 6)), st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    shape=shapes,
    n=st.integers(2, 12),
    dtype=st.sampled_from([np.float32, np.float64]),
    use_jax=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_inverse_undoes_forward(kind, shape, n, dtype, use_jax, seed):
    x = examples(n, shape, dtype, seed)
    pre = fit_preprocess(kind, x)
    assert pre.kind == kind and pre.shape == shape and pre.num_inputs == np.prod(shape)
    with jax.enable_x64(True):
        given_x = jnp.asarray(x) if use_jax else x
        rows = pre.forward(given_x)
        back = pre.inverse(rows)
    assert rows.shape == (n, pre.num_inputs) and rows.dtype == dtype
    assert back.shape == x.shape and back.dtype == dtype
    assert isinstance(rows, jax.Array if use_jax else np.ndarray)
    # Relative to the largest value: the products of ZCA mix the entries, with a condition number of
    # sqrt((e_max + lam) / lam) <= sqrt(10 d + 1) for its default regulariser.
    size = np.abs(x).max() + np.abs(x.mean(0)).max()
    np.testing.assert_allclose(back, x, rtol=0, atol=100 * pre.num_inputs * np.finfo(dtype).eps * size)


@settings(deadline=None, max_examples=30)
@given(shape=shapes, n=st.integers(2, 30), seed=st.integers(0, 2**16))
def test_standardize_gives_mean_zero_and_std_one(shape, n, seed):
    x = examples(n, shape, seed=seed)
    pre = Standardize.fit(x)
    rows = pre.forward(x).reshape(x.shape)
    over = tuple(range(x.ndim - 1))
    np.testing.assert_allclose(rows.mean(over), 0, atol=1e-12)
    np.testing.assert_allclose(rows.std(over), 1, atol=1e-12)
    assert pre.constant_channels == ()


def test_standardize_in_blocks(monkeypatch):
    x = examples(50, (3, 4, 2), np.float32)
    whole = Standardize.fit(x)
    monkeypatch.setattr(preprocess, "_CACHED_ELEMENTS", 7 * 24)
    parts = Standardize.fit(x)
    np.testing.assert_allclose(parts.std, whole.std, rtol=1e-14)
    np.testing.assert_allclose(whole.std, x.astype(np.float64).std((0, 1, 2)), rtol=1e-14)
    np.testing.assert_allclose(whole.mean, x.astype(np.float64).mean((0, 1, 2)), rtol=1e-13)


@given(
    offset=st.sampled_from([0.0, 1.0, 1e4, 1.7e9]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    order=st.sampled_from(["drawn", "sorted"]),
    shape=st.sampled_from([(3,), (4, 5, 3), (6, 6, 1)]),
)
def test_one_pass_finds_the_moments_of_two_far_from_zero_and_in_any_order(offset, scale, order, shape):
    x = offset + scale * np.random.default_rng(0).standard_normal((400, *shape))
    if order == "sorted":  # the first block says little of the rest
        x = np.sort(x, axis=0)
    over = tuple(range(x.ndim - 1))
    count, mean, squares = preprocess.moments_by_channel(x)[:3]
    wide = x.astype(np.longdouble)
    exact = wide.mean(over)
    eps = np.finfo(np.float64).eps
    assert count == x.size // shape[-1]
    np.testing.assert_allclose(mean, exact.astype(float), rtol=8 * eps, atol=64 * eps * scale)
    # Values are given to eps |x|: their distances from the mean, and the squares, to that over the spread.
    slack = 64 * eps * (1 + offset / scale)
    np.testing.assert_allclose(squares, ((wide - exact) ** 2).sum(over).astype(float), rtol=slack)


def test_values_whose_squares_overflow_are_named():
    with pytest.raises(InputError, match="overflow"):
        Standardize.fit(np.array([[1e200], [-1e200]]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_channel_is_centred_and_named(dtype):
    x = examples(1001, (3,), dtype)
    x[:, 1] = 0.1  # its mean in floating point is not exactly 0.1
    pre = Standardize.fit(x)
    assert pre.constant_channels == (1,) and pre.std[1] == 0
    assert (pre.forward(x)[:, 1] == 0).all()
    np.testing.assert_array_equal(pre.inverse(pre.forward(x))[:, 1], x[:, 1])
    assert (np.asarray(pre.forward(jnp.asarray(x, jnp.float32)))[:, 1] == 0).all()


def test_published_constants():
    pre = Standardize.from_constants([0.5, 0.0], [0.25, 0.0], (2, 1, 2))
    x = np.array([[[[1.0, 3.0]], [[0.0, 4.0]]]])
    np.testing.assert_array_equal(pre.forward(x), [[2.0, 3.0, -2.0, 4.0]])
    assert pre.constant_channels == (1,)


# ZCA


@pytest.mark.parametrize("reg", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("n", [200, 4])
def test_zca_spectrum(n, reg):
    """The covariance of the rows has the eigenvalues S / (S + lam), in the same directions."""
    x = examples(n, (2, 2, 2))
    if n < 8 and reg == 0:
        with pytest.raises(RankError, match="rank 3 of 8"):
            ZCA.fit(x, reg=reg)
        return
    flat = x.reshape(n, -1)
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    values = np.maximum(values, 0)
    rows = ZCA.fit(x, reg=reg).forward(x)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-12)
    shrunk = values / (values + reg * values.mean())
    np.testing.assert_allclose(np.cov(rows.T, bias=True), (vectors * shrunk) @ vectors.T, atol=1e-11)


def test_zca_is_the_symmetric_whitening():
    x = examples(100, (5,))
    pre = ZCA.fit(x, reg=0.0)
    matrix = pre.forward(np.eye(5) + pre.mean)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-13)
    np.testing.assert_allclose(matrix @ np.cov(x.T, bias=True) @ matrix, np.eye(5), atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zca_in_blocks_and_on_jax(monkeypatch, dtype):
    x = examples(50, (3, 2, 2), dtype)
    whole = ZCA.fit(x)
    rows = whole.forward(x)
    tolerance = 200 * np.finfo(dtype).eps
    with jax.enable_x64(True):
        np.testing.assert_allclose(whole.forward(jnp.asarray(x)), rows, atol=tolerance)
    monkeypatch.setattr(preprocess, "_CACHED_ELEMENTS", 5 * 12)
    monkeypatch.setattr(zca, "PRODUCT_ELEMENTS", 7 * 12)
    parts = ZCA.fit(x)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-12)
    np.testing.assert_allclose(whole.forward(x), rows, atol=tolerance)


@pytest.mark.parametrize(
    ("x", "reg", "error", "message"),
    [
        (np.full((9, 3), 0.1, np.float32), 0.1, RankError, "all the same"),
        (np.ones((1, 3)), 0.1, RankError, "all the same"),
        (np.outer(np.arange(9.0), np.ones(3)), 0.0, RankError, "rank 1 of 3.*larger reg"),
        (np.outer(np.arange(9.0), np.ones(3)), 1e-18, RankError, "rank 1 of 3.*larger reg"),
        (np.eye(3), -0.1, InputError, "reg is -0.1"),
        (np.eye(3), np.nan, InputError, "reg is nan"),
    ],
)
def test_zca_refuses(x, reg, error, message):
    with pytest.raises(error, match=message):
        ZCA.fit(x, reg=reg)


# All kinds


@pytest.mark.parametrize("kind", KINDS)
def test_jit_vmap_grad_and_pytree(kind):
    x = examples(6, (2, 3, 2), np.float32)
    pre = fit_preprocess(kind, x)
    rows = pre.forward(x)
    on_device = jnp.asarray(x)
    tolerance = 1e-4
    np.testing.assert_allclose(jax.jit(pre.forward)(on_device), rows, atol=tolerance)
    np.testing.assert_allclose(jax.vmap(pre.forward)(on_device), rows, atol=tolerance)
    np.testing.assert_allclose(jax.vmap(pre.inverse)(jnp.asarray(rows)), x, atol=tolerance)
    # The transform itself may be an argument, next to NumPy or JAX data.
    for data in (x, on_device):
        result = jax.jit(lambda p, data=data: p.forward(data))(pre)
        np.testing.assert_allclose(result, rows, atol=tolerance)
        result = jax.jit(lambda p, data=data: p.inverse(p.forward(data)))(pre)
        np.testing.assert_allclose(result, x, atol=tolerance)
    # forward and inverse are affine, so that the gradients of sums are their column sums.
    grad = jax.grad(lambda v: jnp.sum(pre.inverse(pre.forward(v)) ** 2) / 2)(on_device)
    np.testing.assert_allclose(grad, x, atol=1e-3)
    leaves, structure = jax.tree.flatten(pre)
    assert len(leaves) == len(pre.arrays())
    assert type(jax.tree.unflatten(structure, leaves)) is type(pre)


@pytest.mark.parametrize("kind", KINDS)
def test_strict_promotion_and_float64_data(kind):
    x = examples(6, (4,))
    pre = fit_preprocess(kind, x)
    with jax.numpy_dtype_promotion("strict"):
        assert pre.forward(jnp.asarray(x, jnp.float32)).dtype == jnp.float32
        with jax.enable_x64(True):
            rows = jax.jit(pre.forward)(jnp.asarray(x))
            assert rows.dtype == jnp.float64
            np.testing.assert_allclose(rows, pre.forward(x), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 2)])
def test_rebuilding_from_parts_changes_nothing(kind, shape):
    x = examples(9, shape)
    x[..., 0] = 1.0
    pre = fit_preprocess(kind, x)
    parts = json.loads(json.dumps(pre.settings()))
    assert parts == pre.settings()
    arrays = pre.arrays()
    assert all(array.dtype == np.float64 for array in arrays.values())
    again = rebuild_preprocess(pre.kind, parts, arrays)
    assert type(again) is type(pre) and again.settings() == pre.settings()
    np.testing.assert_array_equal(again.forward(x), pre.forward(x))
    np.testing.assert_array_equal(again.inverse(pre.forward(x)), pre.inverse(pre.forward(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_single_examples_empty_batches_and_memory_order(kind):
    x = examples(9, (3, 2, 2))
    pre = fit_preprocess(kind, x)
    rows = pre.forward(x)
    np.testing.assert_allclose(pre.forward(x[0]), rows[0], atol=1e-13)
    np.testing.assert_allclose(pre.inverse(rows[0]), x[0], atol=1e-12)
    assert pre.forward(x[:0]).shape == (0, 12) and pre.inverse(rows[:0]).shape == (0, 3, 2, 2)
    np.testing.assert_array_equal(pre.forward(np.asfortranarray(x)), rows)
    original = x.copy()
    pre.inverse(pre.forward(x))
    np.testing.assert_array_equal(x, original)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_shapes_and_types_are_checked(kind, convert):
    pre = fit_preprocess(kind, examples(9, (3, 2, 2), np.float32))
    with pytest.raises(InputError, match=r"x of shape \(n, 3, 2, 2\), got \(9, 2, 3, 2\)"):
        pre.forward(convert(np.zeros((9, 2, 3, 2), np.float32)))
    with pytest.raises(InputError, match=r"inputs of shape \(n, 12\), got \(9, 11\)"):
        pre.inverse(convert(np.zeros((9, 11), np.float32)))
    with pytest.raises(InputError, match=r"got \(2,\)"):
        pre.forward(convert(np.zeros(2, np.float32)))
    with pytest.raises(InputError, match="x has type uint8"):
        pre.forward(convert(np.zeros((9, 3, 2, 2), np.uint8)))
    with pytest.raises(InputError, match="inputs has type int32"):
        pre.inverse(convert(np.zeros((9, 12), np.int32)))
    # Half precision is read as the float32 numbers that it holds.
    half = convert(np.linspace(-1, 1, 108).reshape(9, 12).astype(np.float16))
    assert pre.inverse(half).dtype == np.float32
    np.testing.assert_array_equal(pre.inverse(half), pre.inverse(half.astype(np.float32)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 4), np.uint8), "type uint8"),
        (np.zeros((3, 4, 4)), r"images \(n,H,W,C\) or a table"),
        (np.zeros((0, 4)), "to fit on"),
        (np.zeros((5, 3, 32, 32)), r"channels come last.*\(5, 32, 32, 3\)"),
        (np.zeros((5, 1, 8, 8), np.float32), r"channels come last.*\(5, 8, 8, 1\)"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), r"x holds 1 .*index \(1, 0\)"),
        (np.array([[0.0, -np.inf]]), r"index \(0, 1\)"),
    ],
)
def test_training_data_are_checked(kind, x, message):
    with pytest.raises(InputError, match=message):
        fit_preprocess(kind, x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_preprocess("standardise", np.eye(2)), "did you mean 'standardize'"),
        (lambda: fit_preprocess("pca-42", np.eye(2)), "choose one of none, standardize, zca"),
        (lambda: fit_preprocess("none", np.eye(2), reg=0.1), "takes no reg"),
        (lambda: Standardize.from_constants([0.5], [0.2], (4, 4, 3)), r"mean of shape \(3,\)"),
        (lambda: Standardize.from_constants([0.5], [-0.2], (1,)), r"std\[0\] is negative"),
        (lambda: Standardize.from_constants([np.nan], [0.2], (1,)), "not finite"),
        (lambda: Standardize.from_constants([0.5], [0.2], (4, 1)), "shape is"),
        (lambda: rebuild_preprocess("zac", {}, {}), "did you mean 'zca'"),
        (lambda: rebuild_preprocess("none", {}, {}), "damaged.*shape"),
        (lambda: rebuild_preprocess("none", {"shape": 3}, {}), "damaged"),
        (lambda: rebuild_preprocess("none", {"shape": [0]}, {}), "positive"),
        (lambda: rebuild_preprocess("standardize", {"shape": [2]}, {"mean": np.zeros(2)}), "damaged.*std"),
        (lambda: rebuild_preprocess("standardize", {"shape": [1]}, {"mean": ["a"]}), "damaged"),
        (
            lambda: rebuild_preprocess(
                "zca",
                {"shape": [1], "reg": 0.1},
                {"mean": np.zeros(1), "scale": np.zeros(1), "eigenvectors": np.ones((1, 1))},
            ),
            "scale must be positive",
        ),
    ],
)
def test_refusals_are_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_zca_takes_its_regulariser_by_name():
    x = examples(9, (3,))
    assert fit_preprocess("zca", x).settings()["reg"] == 0.1
    assert fit_preprocess("zca", x, reg=0.5).settings() == {"shape": [3], "reg": 0.5}


def test_every_class_is_abstract_or_final():
    with pytest.raises(TypeError, match="abstract"):
        AbstractPreprocess(shape=(2,))  # type: ignore[abstract]
    for cls in (Identity, Standardize, ZCA):
        assert cls.__final__
